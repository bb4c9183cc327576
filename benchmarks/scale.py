"""What one Redis has to do for web processes, jobs and viewers: the constants of docs/explanation/scale.rst, and a run.

``python -m benchmarks.scale --redis redis://…``. The server must do nothing else: its time of a processor is counted. A
budget: the run takes at most 1.5 × what the constants say.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import redis

from bgmiddleware import BackgroundMiddleware, Channel, Job, JobState, marks
from bgmiddleware._jobs import key_of
from bgmiddleware.registries.base import Transition
from bgmiddleware.registries.redis import RedisRegistry

from ._measure import header, verdict
from ._viewing import Viewer, asked

__all__ = ["main"]

_MOST = 1.5  # × what the model says
_RUNNER = "benchmark"
_LINES = 10  # a second
_THREADS = 8
_STREAMS = _THREADS // 2  # as many as a process holds by itself


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; or be a web process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--redis", metavar="URL", required=True)
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=8, help="that run in each process")
    parser.add_argument("--viewers", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        _serve(options.redis)
        return 0

    print(header("One Redis, in µs of a processor for one of each"))
    print(f"{'':24}{'Redis':>8}{'process':>10}")
    costs = _constants(options.redis, options.calls)
    for name, (of_server, of_process) in costs.items():
        print(f"{name:24}{of_server:8.0f}{of_process:10.0f}", flush=True)
    asyncio.run(_run(options, costs))
    return 0


def _constants(url: str, calls: int) -> dict[str, tuple[float, float]]:
    with contextlib.closing(redis.Redis.from_url(url)) as server, RedisRegistry(url, prefix="scale") as registry:
        keys = [key_of(f"{time.time()} {number}") for number in range(calls)]
        environ = {"PATH_INFO": "/report", "HTTP_USER_AGENT": "x" * 100, "HTTP_ACCEPT": "text/html"}

        def end(key: str) -> None:
            registry.finish_with(key, b"ok\n", Transition(JobState.FINISHED, _RUNNER))

        registry.claim(registry.add(Job(key_of("first"), "first")).key, _RUNNER, lease=15.0)  # loads the scripts
        parts: dict[str, Callable[[str], object]] = {
            "start": lambda key: registry.add(Job(key, "x", request=environ, process="p"), lease=60.0),
            "claim": lambda key: registry.claim(key, _RUNNER, lease=60.0),
            "batch of output": lambda key: registry.append(key, Channel.OUTPUT, 0, b"x" * 800, runner=_RUNNER),
            "look": registry.get,
            "read": lambda key: registry.read(key, Channel.OUTPUT, 0),
            "renewal": lambda key: registry.renew(key, _RUNNER, lease=60.0),
            "end": end,
        }
        return {name: _cost(server, call, keys) for name, call in parts.items()}


def _cost(server: "redis.Redis", call: Callable[[str], object], keys: Sequence[str]) -> tuple[float, float]:
    of_server, of_process = _used_by(server), time.process_time()
    for key in keys:
        call(key)
    of_process = time.process_time() - of_process
    return 1e6 * (_used_by(server) - of_server) / len(keys), 1e6 * of_process / len(keys)


def _used_by(server: "redis.Redis") -> float:
    used: Any = server.info("cpu")
    return float(used["used_cpu_sys"]) + float(used["used_cpu_user"])


def _serve(url: str) -> None:
    from waitress.server import create_server

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        until = time.monotonic() + float(environ["PATH_INFO"].rpartition("/")[2])
        while time.monotonic() < until:
            print("x" * 79)
            time.sleep(1 / _LINES)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok\n"]

    logging.getLogger("waitress.queue").setLevel(logging.ERROR)  # a queue is what many viewers are
    with BackgroundMiddleware(app, when=marks.path("/run/*"), registry=RedisRegistry(url, prefix="scale")) as site:
        server: Any = create_server(
            site, host="127.0.0.1", port=0, threads=_THREADS, connection_limit=2000, backlog=1024
        )
        os.write(1, f"{server.effective_port}\n".encode())
        with contextlib.suppress(KeyboardInterrupt):
            server.run()


@contextlib.contextmanager
def _process(url: str) -> Iterator[tuple[int, int]]:
    """Give the port and the number of a web process."""
    command = [sys.executable, "-m", "benchmarks.scale", "--serve", "--redis", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline()), process.pid
        finally:
            process.terminate()


def _used_by_process(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _run(options: argparse.Namespace, costs: dict[str, tuple[float, float]]) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(contextlib.closing(redis.Redis.from_url(options.redis)))
        processes = [stack.enter_context(_process(options.redis)) for _ in range(options.processes)]
        targets = []
        for port, _ in processes:
            for _ in range(options.jobs):
                headers, _ = await asked(port, "GET", f"/run/{options.seconds + 300}", 60.0)
                targets.append((port, headers["location"]))
        viewers = [Viewer(*targets[number % len(targets)], keep=True) for number in range(options.viewers)]
        looking = []
        for viewer in viewers:
            looking.append(asyncio.create_task(viewer.view()))
            await asyncio.sleep(5.0 / len(viewers))
        await asyncio.sleep(2.0)
        asked_before = sum(viewer.requests for viewer in viewers)
        of_server, begun = _used_by(server), time.monotonic()
        of_processes = sum(_used_by_process(pid) for _, pid in processes)
        await asyncio.sleep(options.seconds)
        took = time.monotonic() - begun
        of_server = (_used_by(server) - of_server) / took
        of_processes = (sum(_used_by_process(pid) for _, pid in processes) - of_processes) / took
        polls = (sum(viewer.requests for viewer in viewers) - asked_before) / took
        failed = sum(bool(viewer.failed) for viewer in viewers)
        streams = options.processes * _STREAMS
        for task in looking:
            task.cancel()
    said = _model(costs, len(targets), streams, polls)
    print(
        f"{options.processes} processes, {len(targets)} jobs, {options.viewers:,} viewers: {streams} are streamed to,"
        f" {polls:.0f} polls a second, {failed} failed"
    )
    print(f"Redis: {100 * of_server:.1f} % of a processor; the constants say {100 * said:.1f} %", end=" ")
    print(f"(budget {_MOST:g} ×: {verdict(of_server / said, _MOST)}); the processes: {100 * of_processes:.0f} %")


def _model(costs: dict[str, tuple[float, float]], jobs: int, streams: int, polls: float) -> float:
    """Return how much of a processor Redis needs: the formula of docs/explanation/scale.rst."""
    micros = {name: of_server for name, (of_server, _) in costs.items()}
    running = _LINES * micros["batch of output"] + micros["look"] + micros["renewal"] / 5
    stream = _LINES * (micros["look"] + micros["read"])
    return (jobs * running + streams * stream + polls * (micros["look"] + micros["read"])) / 1e6


if __name__ == "__main__":
    sys.exit(main())
