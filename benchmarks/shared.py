"""What a job costs on a registry that processes share, beside a hand-written pool of threads.

``python -m benchmarks.shared``; ``--redis redis://…`` measures that registry too. All take turns.

A start: how long a marked request takes in this process, above one that starts nothing, while no other job runs. Jobs a
second: requests for a view that does nothing, one after the other over HTTP, until all jobs have ended, as a share of
what the pool does behind the same server. A view under floods: how long a client waits for a view that does nothing,
while eight jobs print without pause. Due: how long the next starts take when many jobs are to be forgotten.
"""

import argparse
import contextlib
import http.client
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any
from wsgiref.util import setup_testing_defaults

from bgmiddleware import BackgroundMiddleware, Job, Registry, ThreadExecutor, marks
from bgmiddleware._jobs import key_of
from bgmiddleware._starting import early
from bgmiddleware.registries import open_registry
from bgmiddleware.registries.base import END

from ._measure import header, verdict

__all__ = ["main"]

_MOST_START = 300.0  # µs
_LEAST_JOBS = 0.4  # × the floor
_MOST_PING = 5.0  # ms
_MOST_DUE = 2.0  # ms
_FLOODS = 8
_LINE = "x" * 79
_FLOOR = "floor"
_HOUR = 3600.0

App = Callable[..., Iterable[bytes]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; or be the server."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=100, help="in each round")
    parser.add_argument("--jobs", type=int, default=500, help="in each round")
    parser.add_argument("--pings", type=int, default=100, help="in each round")
    parser.add_argument("--due", type=int, default=20_000, help="how many jobs are due at once")
    parser.add_argument("--redis", metavar="URL", help="measure this one too; what is in it is not touched")
    parser.add_argument("--only", choices=_PARTS, nargs="*", default=list(_PARTS))
    parser.add_argument("--serve", metavar="LOCATION", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    # A start waits a moment for an early answer: that is the job's time, and not what a start costs.
    early._has_greenlets = lambda: True
    if options.serve:
        _serve(options.serve)
        return 0

    print(header("Jobs of a registry that processes share"), flush=True)
    for part in options.only:
        with tempfile.TemporaryDirectory(prefix="bgmiddleware-benchmark-") as directory:
            locations = {_FLOOR: _FLOOR, "memory": "memory:", "spool": f"spool:{directory}/jobs"}
            if options.redis is not None:
                locations["Redis"] = options.redis
            _PARTS[part](locations, options)
    return 0


def _open(location: str, **settings: Any) -> Registry:
    if location.startswith(("redis", "unix")):
        settings["prefix"] = f"benchmark-{os.getpid()}"
    return open_registry(location, **settings)


def _view(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"ok\n"]


class _Floor:
    """What one writes by hand: a pool, a dictionary and a redirect."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(8)
        self.jobs: dict[str, Future[object]] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        token = str(uuid.uuid4())
        copied = dict(environ)
        self.jobs[token] = self.pool.submit(lambda: _view(copied, lambda status, headers: None))
        start_response("303 See Other", [("Location", f"/?_t={token}"), ("Content-Length", "0")])
        return [b""]

    def finish(self) -> None:
        for future in self.jobs.values():
            future.result()
        self.jobs.clear()

    def close(self) -> None:
        self.pool.shutdown()


class _Ours:
    """The middleware over a registry; it remembers its tokens."""

    def __init__(self, location: str, app: App = _view) -> None:
        self.app = BackgroundMiddleware(
            app,
            when=marks.always,
            registry=_open(location, max_jobs=1_000_000),
            executor=ThreadExecutor(max_workers=8, max_pending=1_000_000),
        )
        self.tokens: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            self.tokens.append(dict(headers)["Location"].rpartition("=")[2])
            return start_response(status, headers)

        return self.app(environ, start)

    def finish(self) -> None:
        for token in self.tokens:
            assert self.app.registry.wait(key_of(token), END, 60.0).state == "finished"
        self.tokens.clear()

    def close(self) -> None:
        self.app.close()


def _made(location: str) -> _Floor | _Ours:
    return _Floor() if location == _FLOOR else _Ours(location)


def _request(app: App, path: str = "/report") -> None:
    environ: dict[str, Any] = {"PATH_INFO": path, "wsgi.input": io.BytesIO()}
    setup_testing_defaults(environ)
    for _ in app(environ, lambda status, headers, exc_info=None: None):
        pass


def _timed(call: Callable[..., object], *arguments: Any) -> float:
    begun = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - begun


# In this process.


def _starts(locations: dict[str, str], options: argparse.Namespace) -> None:
    apps = {name: _made(location) for name, location in locations.items()}
    took: dict[str, list[float]] = {name: [] for name in ("no-op", *apps)}
    for number in range(-20, options.rounds * options.starts):
        took["no-op"].append(_timed(_request, _view))
        for name, app in apps.items():
            took[name].append(_timed(_request, app))
            app.finish()
            time.sleep(0.0005)  # what ended it has come to rest
        if number < 0:  # imports, connections, threads
            took = {name: [] for name in took}
    for name, app in apps.items():
        app.close()
        micros = 1e6 * (median(took[name]) - median(took["no-op"]))
        judged = _judged(name, micros, _MOST_START, "start − no-op, in the process, µs")
        print(f"a start, {name}: {micros:.0f} µs{judged}", flush=True)


def _judged(name: str, value: float, budget: float, what: str) -> str:
    if name not in ("spool", "Redis"):
        return ""
    return f" (budget {abs(budget):g}: {verdict(value, budget, f'{what}, {name}')})"


class _Clock:
    later = 0.0

    def __call__(self) -> float:
        return time.time() + self.later


def _due(locations: dict[str, str], options: argparse.Namespace) -> None:
    del locations[_FLOOR]
    for name, location in locations.items():
        _Clock.later = 0.0
        with _open(location, max_jobs=options.due + 1000, ttl=_HOUR, clock=_Clock()) as registry:
            for number in range(options.due):
                registry.request_cancel(registry.add(Job(key_of(f"{name} old {number}"), "old")).key)
            _Clock.later = 2 * _HOUR
            registry.leave_house()
            registry.tidy_every = 0.01  # from the next start on
            took = [_timed(registry.add, Job(key_of(f"{name} {number}"), "new")) for number in range(200)]
            middle, most = (1000 * seconds for seconds in (median(took), max(took)))
            row = f"{options.due:,} are due: each next start, ms, {name}"
            judged = f" (budget {_MOST_DUE:g}: {verdict(middle, _MOST_DUE, row)})"
            print(f"the next 200 starts of {options.due:,} that are due, {name}: {middle:.2f} ms{judged}", end=", ")
            print(f"at most {most:.1f} ms", flush=True)


# In a server.


def _serve(location: str) -> None:
    """Serve until the standard input ends: ``/job`` is a job, ``/flood/N`` prints without pause, ``/ping`` answers,
    ``/done`` when all jobs have ended."""
    from waitress.server import create_server

    printed, is_over = [0] * _FLOODS, threading.Event()

    def flood(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        number = environ["PATH_INFO"].removeprefix("/flood/")
        if number.isdigit():
            while not is_over.is_set():
                print(_LINE)
                printed[int(number)] += 1
        return _view(environ, start_response)

    jobs = _Floor() if location == _FLOOR else _Ours(location, flood)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith(("/job", "/flood")):
            return jobs(environ, start_response)
        if environ["PATH_INFO"] == "/done":
            is_over.set()
            jobs.finish()
        return _view(environ, start_response)

    server: Any = create_server(app, host="127.0.0.1", port=0, threads=8)
    threading.Thread(target=server.run, daemon=True).start()
    os.write(1, f"{server.effective_port}\n".encode())
    begun = time.perf_counter()
    sys.stdin.read()
    os.write(1, f"{sum(printed) / (time.perf_counter() - begun):,.0f} {sum(os.times()[:2])}\n".encode())
    jobs.close()
    server.close()


@contextlib.contextmanager
def _server(location: str) -> Iterator[tuple[http.client.HTTPConnection, list[str]]]:
    """Give a connection to a server, and what it says in the end."""
    command = [sys.executable, "-m", "benchmarks.shared", "--serve", location]
    said: list[str] = []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        connection = http.client.HTTPConnection("127.0.0.1", int(process.stdout.readline()), timeout=300)
        with contextlib.closing(connection):
            yield connection, said
        process.stdin.close()
        said += process.stdout.read().split()


def _get(connection: http.client.HTTPConnection, path: str) -> None:
    connection.request("GET", path)
    connection.getresponse().read()


def _jobs(locations: dict[str, str], options: argparse.Namespace) -> None:
    rates: dict[str, list[float]] = {name: [] for name in locations}
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(_server(location))[0] for name, location in locations.items()}
        for number in range(-1, options.rounds):
            for name, connection in servers.items():
                begun = time.perf_counter()
                for _ in range(options.jobs if number >= 0 else 20):
                    _get(connection, "/job")
                _get(connection, "/done")
                if number >= 0:
                    rates[name].append(options.jobs / (time.perf_counter() - begun))
    for name in locations:
        share = median(ours / floor for ours, floor in zip(rates[name], rates[_FLOOR], strict=True))
        judged = _judged(name, -share, -_LEAST_JOBS, "trivial jobs a second, × pool")
        print(f"jobs, {name}: {median(rates[name]):,.0f} a second, {share:.2f} × the floor{judged}", flush=True)


def _floods(locations: dict[str, str], options: argparse.Namespace) -> None:
    del locations[_FLOOR]
    took: dict[str, list[float]] = {name: [] for name in locations}
    lines: dict[str, list[str]] = {name: [] for name in locations}
    for _ in range(options.rounds):
        for name, location in locations.items():
            with _server(location) as (connection, said):
                for number in range(_FLOODS):
                    _get(connection, f"/flood/{number}")
                _get(connection, "/ping")
                took[name] += [_timed(_get, connection, "/ping") for _ in range(options.pings)]
                _get(connection, "/done")
            lines[name].append(said[0])
    for name in locations:
        middle, late = (1000 * sorted(took[name])[int(len(took[name]) * share)] for share in (0.5, 0.95))
        judged = _judged(name, middle, _MOST_PING, "an unrelated view under 8 print floods, p50 ms")
        print(f"a view under {_FLOODS} floods, {name}: {middle:.1f} ms{judged}, p95 {late:.1f} ms;", end=" ")
        print(f"they print {sorted(lines[name])[len(lines[name]) // 2]} lines a second", flush=True)


_PARTS = {"start": _starts, "jobs": _jobs, "floods": _floods, "due": _due}


if __name__ == "__main__":
    sys.exit(main())
