"""What a job costs in a thread, in a child process, in a worker of RQ and in one of Celery, in one run.

``python -m benchmarks.executors``. To a token: a marked request, in this process, until it is answered by 303; and for
the engines what a message of theirs costs without us, by turns with ours: who sends many in a row finds all awake. To
the first line: from the request until the view prints. To the viewer: from a print, 30 ms after the last one, until a
follower in this process has it. Lines a second: while one job prints lines of 100 bytes, until all are stored.
"""

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

from bgmiddleware import BackgroundMiddleware
from bgmiddleware._jobs import key_of
from bgmiddleware._starting import early
from bgmiddleware.registries.base import END
from demo.fleet import redis, redis_program, running, says, wait

from . import _executor_app
from ._measure import header, verdict

__all__ = ["main"]

KINDS = ("thread", "process", "rq", "celery")
_SAID = {"rq": "Listening on", "celery": " ready."}
_OPTIONS = {"rq": [], "celery": ["--concurrency", "1", "--loglevel", "INFO"]}
# µs to a token above the bare engine, ms to the viewer, lines a second, by the registry behind each.
_BUDGETS = {
    "thread": (50, 0.5, 0),
    "process": (300, 15, 100_000),
    "rq": (250, 30, 100_000),
    "celery": (250, 30, 100_000),
}


@dataclass(frozen=True)
class Figures:
    """Of one executor: *token* and *bare* in µs (lower quartiles), *first* and *viewer* in ms (medians), *lines* a
    second."""

    token: float
    bare: float
    first: float
    viewer: float
    lines: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.executors", description=__doc__)
    parser.add_argument("--jobs", type=int, default=50, help="at least 2")
    parser.add_argument("--times", type=int, default=60)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=KINDS)
    options = parser.parse_args(arguments)
    # A start waits a moment for an early answer: that is the job's time, and not what a start costs.
    early._has_greenlets = lambda: True
    print(header("A job, by executor"))
    print(f"{'':10}{'to a token':>14}{'bare engine':>14}{'to first line':>16}{'to the viewer':>16}{'lines/s':>12}")
    with tempfile.TemporaryDirectory(prefix="bgmiddleware-benchmark-") as directory, contextlib.ExitStack() as stack:
        if {"rq", "celery"} & set(options.kinds):
            program = redis_program()
            if program is None:
                parser.error("rq and celery need a redis-server")
            stack.enter_context(redis(program, directory))
        for kind in options.kinds:
            with _site(kind, Path(directory)) as app:
                figures = _measure(kind, app, options)
            print(_row(kind, figures), flush=True)
    return 0


def _row(kind: str, figures: Figures) -> str:
    token, viewer, lines = _BUDGETS[kind]
    row = f"{kind}: token above the bare engine, µs" if figures.bare else ""
    judged = (
        f"token ≤ {token} µs: {verdict(figures.token - figures.bare, token, row)}",
        f"viewer ≤ {viewer} ms: {verdict(figures.viewer, viewer)}",
        *([f"lines ≥ {lines:,}: {verdict(-figures.lines, -lines)}"] if lines else []),
    )
    bare = f"{figures.bare:.0f} µs" if figures.bare else ""
    return (
        f"{kind:10}{figures.token:>11.0f} µs{bare:>14}{figures.first:>13.1f} ms{figures.viewer:>13.2f} ms"
        f"{figures.lines:>12,.0f}   budget: {', '.join(judged)}"
    )


@contextlib.contextmanager
def _site(kind: str, directory: Path) -> Iterator[BackgroundMiddleware]:
    """Yield the app over an executor of this kind, with its worker where it needs one."""
    broker = os.environ.get("DEMO_REDIS_URL", "")
    names = {
        "thread": "thread memory:",
        "process": f"process spool:{directory}/jobs",
        "rq": f"rq:{broker} {broker}",
        "celery": f"celery:benchmarks._executor_app:celery {broker}",
    }
    os.environ |= {"BENCHMARK_EXECUTOR": names[kind], "BENCHMARK_BROKER": broker}
    with contextlib.ExitStack() as stack:
        if kind in _SAID:
            log = directory / f"{kind}.log"
            command = [sys.executable, "-u", "-m", "bgmiddleware", "work", "benchmarks._executor_app:app"]
            process = stack.enter_context(running([*command, *_OPTIONS[kind]], log))
            wait(process, lambda: says(log, _SAID[kind]))
        app = stack.enter_context(_executor_app.make(*names[kind].split(" ")))
        _end(app, _start(app, "/lines/1"))  # imports, connections, the first child
        yield app


def _measure(kind: str, app: BackgroundMiddleware, options: argparse.Namespace) -> Figures:
    send = _bare(kind) if kind in _SAID else None
    tokens, firsts, bare = [], [], []
    for _ in range(options.jobs):
        begun, at = time.perf_counter(), time.time()
        token = _start(app, "/times/1")
        tokens.append(time.perf_counter() - begun)
        _end(app, token)
        firsts.append(float(_output(app, token)) - at)
        if send is not None:
            bare.append(_timed(send))
            _end(app, _start(app, "/times/1"))  # so the next one finds what this one found
    token = _start(app, f"/lines/{options.lines}")
    job = _end(app, token)
    assert job.output_end or job.output_dropped
    lines = options.lines / job.elapsed(0.0)
    seen = _follow(app, _start(app, f"/times/{options.times}"))
    return Figures(
        # A quarter are faster: the worker, which ends the job before, shares the processors with us.
        token=1e6 * statistics.quantiles(tokens, n=4)[0],
        bare=1e6 * statistics.quantiles(bare, n=4)[0] if bare else 0.0,
        first=1e3 * statistics.median(firsts),
        viewer=1e3 * statistics.median(seen),
        lines=lines,
    )


def _start(app: BackgroundMiddleware, path: str) -> str:
    """Send a request; return the token that it is answered with."""
    environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": "POST", "wsgi.input": io.BytesIO()}
    setup_testing_defaults(environ)
    head: list[Any] = []
    for _ in app(environ, lambda status, headers, exc_info=None: head.extend([status, dict(headers)])):
        pass
    assert head[0] == "303 See Other", head
    return str(head[1]["Location"]).rpartition("=")[2]


def _end(app: BackgroundMiddleware, token: str) -> Any:
    """Wait until a job has ended; return it."""
    job = app.registry.wait(key_of(token), END, 60.0)
    assert job.state == "finished", job
    return job


def _output(app: BackgroundMiddleware, token: str) -> bytes:
    return b"".join(piece.data for piece in app.registry.follow(key_of(token)))


def _follow(app: BackgroundMiddleware, token: str) -> list[float]:
    """Follow a job that prints the time; return how late each line came."""
    late, rest = [], b""
    for piece in app.registry.follow(key_of(token)):
        *lines, rest = (rest + piece.data).split(b"\n")
        late += [time.time() - float(line) for line in lines]
    return late


def _timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _bare(kind: str) -> Callable[[], object]:
    """Return what sends a message that nobody takes, as one would without us."""
    if kind == "rq":
        from redis import Redis
        from rq import Queue

        queue = Queue("nobody", connection=Redis.from_url(os.environ["BENCHMARK_BROKER"]), serializer="json")
        return lambda: queue.enqueue("os.getpid")
    return lambda: _executor_app.celery.send_task("nobody", queue="nobody", ignore_result=True)


if __name__ == "__main__":
    sys.exit(main())
