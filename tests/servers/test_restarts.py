"""What outlives a server: stopped and started again, killed, paused; with jobs in registries that processes share."""

import contextlib
import http.client
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bgmiddleware.registries import open_registry
from tests.conftest import needs
from tests.kit.processes import LONG, TRIES, Server, gunicorn, running
from tests.kit.redis_server import redis_server_of_module  # noqa: F401  # a fixture

pytestmark = pytest.mark.everything

LEASE = 3.0


@pytest.fixture(params=["spool", "redis"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        return f"{request.getfixturevalue('redis_server_of_module').url}"
    return f"spool:{tmp_path}/jobs"


def on_gunicorn(directory: Path, registry: str, drain: float, **more: str) -> Server:
    needs("gunicorn")
    options = ("-k", "gthread", "--threads", "4")
    site = {"SITE_REGISTRY": registry, "SITE_DRAIN": str(drain), "SITE_LEASE": str(LEASE), **more}
    return gunicorn(directory, *options, **site)


def on_the_command_line(directory: Path, registry: str, drain: float) -> Server:
    options = ["--background", "/x/*", "--port", "0", "--registry", registry, "--drain", str(drain)]
    command = [sys.executable, "-m", "bgmiddleware", "serve", "tests.kit.served_site:answer", *options]
    return Server(command, r"Serving on http://127\.0\.0\.1:(\d+)", directory, SITE_LEASE=str(LEASE))


@pytest.mark.parametrize("serve", [on_gunicorn, on_the_command_line])
def test_a_server_that_is_started_again_has_the_jobs_of_before(
    serve: Callable[[Path, str, float], Server], registry: str, tmp_path: Path
) -> None:
    with running(serve(tmp_path, registry, 0.1)) as server:
        done = [server.started(path) for path in ("/x/large?1000000", "/x/count?20000", "/x/nothing")]
        interrupted = server.started("/x/wait?never")
        states = [server.ended(target) for target in done]
        kept = [server.request("GET", f"{target}&_view={view}") for target in done for view in ("log", "result")]
        server.begun(interrupted)
        assert server.end() == 0
    with running(serve(tmp_path, registry, 0.1)) as server:
        for target, state in zip(done, states, strict=True):
            assert server.ended(target) == state
        again = [server.request("GET", f"{target}&_view={view}") for target in done for view in ("log", "result")]
        assert [each.body for each in again] == [each.body for each in kept]
        assert len(again[1].body) > 2_000_000
        state = server.ended(interrupted)
        assert (state["state"], state["reason"]) == ("lost", "server shut down")
        assert server.request("GET", f"{interrupted}&_view=log&_offset=0").text == "begun\n"
        assert server.request("GET", f"{interrupted}&_view=log").text.endswith(
            "\n[the job was lost: server shut down]\n"
        )
        assert server.request("GET", f"{interrupted}&_view=result").status == 502


class Viewer:
    """Follows a job through whichever worker answers, whatever happens to the others; keeps all that it saw."""

    def __init__(self, server: Server, number: int, saw: Callable[[int], None]) -> None:
        self._server = server
        self._saw = saw
        self.name = f"job-{number}"
        self.path = f"/x/lines?{self.name}&{LINES}"
        self.target = ""
        self.seen = b""
        self.state = ""

    def __call__(self) -> None:
        until = time.monotonic() + 3 * LONG
        while not self.state:
            assert time.monotonic() < until, (self.name, self.target, self.seen[-100:])
            # A worker may be killed with our request in its hands.
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._go_on()

    def _go_on(self) -> None:
        if not self.target:
            self.target = self._server.started(self.path, Idempotency_Key=self.name)
        reply = self._server.request("GET", f"{self.target}&_view=log&_offset={len(self.seen)}&_wait=1")
        assert (reply.status, int(reply["Job-Offset"])) == (200, len(self.seen)), reply
        self.seen += reply.body
        if reply["Job-State"] not in ("pending", "running") and not reply.body:
            self.state = reply["Job-State"]
        self._saw(len(reply.body))


JOBS = 50
LINES = 300


class Killer:
    """Kills a worker, again and again, each time when the viewers have seen some thousand bytes more: of bytes there
    are as many on a slow machine as on a fast one, of looks there are not."""

    def __init__(self, server: Server, seed: int) -> None:
        self._server = server
        self._chance = random.Random(seed)
        self._lock = threading.Lock()  # guards these
        self._left = self._chance.randrange(2_000, 10_000)
        self.kills = 0

    def saw(self, size: int) -> None:
        with self._lock:
            self._left -= size
            if self._left > 0:
                return
            self._left = self._chance.randrange(2_000, 10_000)
            self.kills += 1
            os.kill(self._chance.choice(workers_of(self._server)), signal.SIGKILL)


def workers_of(server: Server) -> list[int]:
    """Return the workers that live now."""
    pid = server.process.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_workers_killed_at_random_moments_lose_no_byte_that_was_seen_and_leave_no_job_running(
    registry: str, tmp_path: Path
) -> None:
    with running(on_gunicorn(tmp_path, registry, 0.1)) as server, ThreadPoolExecutor(16) as pool:
        killer = Killer(server, seed=5)
        viewers = [Viewer(server, number, killer.saw) for number in range(JOBS)]
        for each in [pool.submit(viewer) for viewer in viewers]:
            each.result(2 * LONG)
        assert killer.kills >= 5
        for viewer in viewers:
            whole = "".join(f"{viewer.name}: {line}\n" for line in range(LINES)).encode()
            kept = server.request("GET", f"{viewer.target}&_view=log&_offset=0").body
            assert kept.startswith(viewer.seen)
            assert whole.startswith(kept)
            assert kept == whole or viewer.state == "lost", viewer.state
        states = [viewer.state for viewer in viewers]
        assert set(states) == {"finished", "lost"}, states


def test_what_waited_in_a_worker_that_is_killed_is_lost_and_what_waits_in_another_goes_on(
    registry: str, tmp_path: Path
) -> None:
    with running(on_gunicorn(tmp_path, registry, 0.1, SITE_WORKERS="1")) as server:
        jobs: dict[str, list[str]] = {}
        # At most one a worker runs, the others wait; until two workers have some that wait.
        while sum(len(targets) >= 2 for targets in jobs.values()) < 2:
            assert sum(map(len, jobs.values())) < TRIES
            reply = server.request("POST", "/x/wait?gate")
            jobs.setdefault(reply["Worker"], []).append(f"/x/wait{reply['Location']}")
        (killed, *waited), (_, *others) = sorted(jobs.values(), key=len)[-2:]
        server.begun(killed)
        os.kill(int(server.request("GET", f"{killed}&_view=status").json["receipt"]["runner"].partition(":")[2]), 9)
        assert server.ended(killed)["reason"] == "its runner vanished"
        assert [server.ended(target)["reason"] for target in waited] == ["never started"] * len(waited)
        with open_registry(registry) as other:
            other.evict()  # it is written down
        assert [server.ended(target)["reason"] for target in waited] == ["never started"] * len(waited)
        (tmp_path / "gate").touch()
        assert {server.ended(target)["state"] for target in others} == {"finished"}


def paused(server: Server, path: str, text: str) -> tuple[str, int]:
    """Start a job and stop its process, as a laptop that sleeps; return its target and that process when it is lost."""
    reply = server.request("POST", path)
    target = path.partition("?")[0] + reply["Location"]
    runner = int(reply["Worker"])
    server.begun(target, text)
    os.kill(runner, signal.SIGSTOP)
    state = server.ended(target)
    assert (state["state"], state["reason"]) == ("lost", "its runner vanished")
    return target, runner


def test_a_paused_worker_that_comes_back_goes_on_with_its_job(registry: str, tmp_path: Path) -> None:
    with running(on_gunicorn(tmp_path, registry, 0.1)) as server:
        target, runner = paused(server, "/x/wait?gate", "begun\n")
        os.kill(runner, signal.SIGCONT)
        server.until(lambda reply: reply.json["state"] == "running", "GET", f"{target}&_view=status")
        (tmp_path / "gate").touch()
        assert server.ended(target)["state"] == "finished"
        assert server.request("GET", f"{target}&_view=log").text == "begun\nended\n"
        assert server.request("GET", f"{target}&_view=result")["Ran-In"] == str(runner)


def test_under_gevent_a_job_that_computes_for_longer_than_its_lease_reads_as_lost_until_it_is_done(
    registry: str, tmp_path: Path
) -> None:
    needs("gevent")
    options = ("-k", "gevent", "--timeout", "0")  # it does not kill a worker that computes
    with running(gunicorn(tmp_path, *options, SITE_REGISTRY=registry, SITE_LEASE=str(LEASE))) as server:
        target = server.started("/x/burn?gate")
        until = time.monotonic() + LONG
        while not (tmp_path / "burning").exists():  # before, that worker might still take what is asked next
            assert time.monotonic() < until
        assert server.ended(target)["reason"] == "its runner vanished"
        (tmp_path / "gate").touch()
        server.until(lambda reply: reply.status == 200, "GET", f"{target}&_view=result&_wait=1")
        assert server.ended(target)["state"] == "finished"


def test_a_paused_worker_that_comes_back_too_late_leaves_its_job_as_it_is(registry: str, tmp_path: Path) -> None:
    with running(on_gunicorn(tmp_path, registry, 0.1)) as server:
        target, runner = paused(server, "/x/stay", "still here\n")
        with open_registry(registry) as other:
            other.evict()  # it is written down
        state = server.ended(target)
        kept = server.request("GET", f"{target}&_view=log").body
        os.kill(runner, signal.SIGCONT)
        # It hears of it, and stops the job.
        server.until(lambda _: (tmp_path / "interrupted").exists(), "GET", "/fast")
        assert server.ended(server.started("/x/count?1"))["state"] == "finished"
        assert server.ended(target) == state
        assert server.request("GET", f"{target}&_view=log").body == kept
        assert server.request("GET", f"{target}&_view=result").status == 502
