"""Serve jobs for long while workers are killed, and see that no byte is lost that a client has, and no state is false.

``python -m tests.reliability.soak spool --minutes 60``, or ``redis``: gunicorn with two workers, of which one is killed
every 20 seconds. Prints a line a minute, and ends with a status other than 0 where something is wrong.
"""

import argparse
import contextlib
import http.client
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tests.kit.clients import Reply
from tests.kit.processes import Server, gunicorn, running
from tests.kit.redis_server import RedisServer

__all__ = ["Soak"]

T = TypeVar("T")
LINES = 300
CLIENTS = 3
_PAUSE = 1.0  # of each client between two jobs: the load is small
_LOST = {"its runner vanished", "never started"}


class Soak:
    """Clients that start jobs and follow them through whichever worker answers; *wrong* has what broke a promise."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = threading.Lock()  # guards the next four
        self.wrong: list[str] = []
        self.states: Counter[str] = Counter()
        self.seen = 0
        self.refused = 0
        self.kills = 0
        self._killed: dict[int, float] = {}  # worker: when

    def kill(self) -> None:
        """Kill a worker."""
        parent = self._server.process.pid
        workers = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if workers:
            pid = int(random.choice(workers))
            self._killed[pid] = time.time()
            os.kill(pid, signal.SIGKILL)
            self.kills += 1

    def follow(self, name: str) -> None:
        """Start a job and follow it to its end; look whether all is as it was promised."""
        begun = time.time()
        path = f"/x/lines?{name}&{LINES}"
        reply = self._reply("POST", path, Idempotency_Key=name)
        target = path.partition("?")[0] + reply["Location"]
        seen, state = b"", "pending"
        while state in ("pending", "running"):
            reply = self._reply("GET", f"{target}&_view=log&_offset={len(seen)}&_wait=1")
            if reply.status != 200 or int(reply["Job-Offset"]) != len(seen):
                return self._say(f"{name}: {reply}")
            seen += reply.body
            if not reply.body or reply["Job-State"] == "pending":
                state = reply["Job-State"]
            if time.time() - begun > 300:
                return self._say(f"{name}: {state} for ever")
        with self._lock:
            self.states[state] += 1
            self.seen += len(seen)
        whole = "".join(f"{name}: {line}\n" for line in range(LINES)).encode()
        kept = self._again(partial(self._server.output, target))
        document = self._reply("GET", f"{target}&_view=status").json
        if not kept.startswith(seen):
            self._say(f"{name}: {len(seen)} bytes were seen, and are not there")
        elif not whole.startswith(kept):
            self._say(f"{name}: it never printed {kept[-100:]!r}")
        elif state == "finished" and kept != whole:
            self._say(f"{name}: finished with {len(kept)} of {len(whole)} bytes")
        elif state == "finished" and self._reply("GET", f"{target}&_view=result").text != f"{name} is done\n":
            self._say(f"{name}: finished without its response")
        elif state == "lost" and not self._was_killed(document, begun):
            self._say(f"{name}: lost, and nobody killed its worker: {document}")
        elif state not in ("finished", "lost"):
            self._say(f"{name}: {document}")
        return None

    def _was_killed(self, document: Any, begun: float) -> bool:
        runner = (document["receipt"] or {}).get("runner")
        if document["reason"] not in _LOST:
            return False
        if runner is None:  # it waited in a process that nobody knows
            return any(at >= begun for at in self._killed.values())
        return int(runner.partition(":")[2]) in self._killed

    def _reply(self, method: str, target: str, **headers: str) -> Reply:
        def ask() -> Reply:
            reply = self._server.request(method, target, **headers)
            if reply.status == 503:
                with self._lock:
                    self.refused += 1
                raise ConnectionError("refused for now")
            if len(reply.body) != int(reply["Content-Length"]):
                raise ConnectionError("its worker was killed while it answered")
            return reply

        return self._again(ask)

    def _again(self, ask: Callable[[], T]) -> T:
        """Ask until there is an answer; a worker may be killed with a request in its hands, or be just started."""
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                return ask()
            assert time.monotonic() < deadline, "no answer for two minutes"
            time.sleep(0.1)

    def _say(self, what: str) -> None:
        with self._lock:
            self.wrong.append(what)
        print("WRONG", what, flush=True)


@contextlib.contextmanager
def _served(kind: str, directory: Path) -> Iterator[Server]:
    options = ("-k", "gthread", "--threads", "4")
    with contextlib.ExitStack() as stack:
        if kind == "redis":
            redis = stack.enter_context(RedisServer(directory=str(directory / "redis")))
            url = redis.url
        else:
            url = f"spool:{directory}/jobs"
        server = gunicorn(directory, *options, workers=2, SITE_REGISTRY=url, SITE_REGISTRY_OPTIONS='{"ttl": 120}')
        yield stack.enter_context(running(server))


def main() -> int:
    """Soak, and print figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.soak", description=__doc__)
    parser.add_argument("registry", choices=["spool", "redis"])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two kills")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        (Path(name) / "redis").mkdir()
        with _served(chosen.registry, Path(name)) as server:
            soak = Soak(server)
            _run(soak, 60 * chosen.minutes, chosen.every)
            print(f"{chosen.registry}: {_figures(soak)}", flush=True)
    return int(bool(soak.wrong))


def _run(soak: Soak, seconds: float, every: float) -> None:
    until = time.monotonic() + seconds

    def client(number: int) -> None:
        count = 0
        while time.monotonic() < until:
            count += 1
            try:
                soak.follow(f"client-{number}-{count}")
            except Exception as error:
                soak._say(f"client {number}, job {count}: {error!r}")
            time.sleep(_PAUSE)

    clients = [threading.Thread(target=client, args=(number,), name=f"client {number}") for number in range(CLIENTS)]
    for each in clients:
        each.start()
    told = time.monotonic()
    while time.monotonic() < until:
        time.sleep(every)
        soak.kill()
        if time.monotonic() - told >= 60:
            told = time.monotonic()
            print(_figures(soak), flush=True)
    for each in clients:
        each.join()


def _figures(soak: Soak) -> str:
    states = ", ".join(f"{count} {state}" for state, count in sorted(soak.states.items()))
    return (
        f"{soak.kills} kills, {sum(soak.states.values())} jobs ({states}), {soak.seen} bytes acknowledged,"
        f" {soak.refused} answers of 503, {len(soak.wrong)} wrong"
    )


if __name__ == "__main__":
    sys.exit(main())
