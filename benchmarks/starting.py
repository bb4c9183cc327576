"""What it costs to start a job that does nothing, beside a hand-written pool: 20 lines over a ThreadPoolExecutor.

``python -m benchmarks.starting``. In the process: from the call of the app until it has answered 303, above a view that
does nothing, without the wait for an early answer. By HTTP, with it: the same on waitress with eight threads, by one
client; then how many jobs a second one client starts and sees done, and the server's processor time for each. All take
turns; medians over the rounds.
"""

import argparse
import contextlib
import http.client
import io
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

from waitress.server import create_server

from bgmiddleware import BackgroundMiddleware, marks
from bgmiddleware._starting import early

from ._measure import header, verdict

__all__ = ["main"]

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_FLOOR, _OURS = "hand-written pool", "ours"
_MOST_IN_PROCESS_US = 60.0
_MOST_BY_HTTP_MS = 0.1
_LEAST_RATE = 0.9
_MOST_CPU = 1.1
_ENDED = threading.Semaphore(0)


def _view(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/start":
        _ENDED.release()
    return [b"done"]


class _Pool:
    """What people write by hand: a pool, a dictionary, a token."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._pool = ThreadPoolExecutor(8)
        self._jobs: dict[str, dict[str, Any]] = {}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        query = environ.get("QUERY_STRING", "")
        if query.startswith("_t="):
            job = self._jobs[query[3:39]]
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"done" if job["body"] is not None else b"running"]
        if environ["PATH_INFO"] != "/start":
            return self._app(environ, start_response)
        token = str(uuid.uuid4())
        self._jobs[token] = {"body": None, "environ": {**environ, "wsgi.input": io.BytesIO()}}
        self._pool.submit(self._run, token)
        start_response("303 See Other", [("Location", f"?_t={token}"), ("Content-Length", "0")])
        return []

    def _run(self, token: str) -> None:
        job = self._jobs[token]
        job["body"] = b"".join(self._app(job.pop("environ"), lambda status, headers: None))


def _apps() -> dict[str, Application]:
    return {_FLOOR: _Pool(_view), _OURS: BackgroundMiddleware(_view, when=marks.path("/start"))}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; or be a server."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.starting", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--starts", type=int, default=200)
    parser.add_argument("--serve", choices=(_FLOOR, _OURS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        _serve(_apps()[options.serve])
        return 0
    print(header("Start of a job that does nothing, above a view that does nothing"))
    # A start waits a moment for an early answer: that is the job's time, and in the rows by HTTP only.
    early._has_greenlets = lambda: True
    here = _medians({name: _in_process(app) for name, app in _apps().items()}, options.rounds, options.starts)
    with _served(_FLOOR) as floor, _served(_OURS) as ours:
        sites = {_FLOOR: floor, _OURS: ours}
        there = _medians({name: _by_http(port) for name, (port, _) in sites.items()}, options.rounds, options.starts)
        rates = _rates(sites, options.rounds, options.starts)
    _print_row("in the process, µs", 1e6, here, _MOST_IN_PROCESS_US)
    _print_row("by HTTP, ms", 1e3, there, _MOST_BY_HTTP_MS)
    rate = statistics.median(ours / floor for ours, floor in zip(rates[_OURS][0], rates[_FLOOR][0], strict=True))
    cpu = statistics.median(ours / floor for ours, floor in zip(rates[_OURS][1], rates[_FLOOR][1], strict=True))
    each = statistics.median(rates[_OURS][0])
    print(f"{'jobs a second, seen done':28}{each:8.0f}   {rate:.2f} × pool; budget ≥ {_LEAST_RATE}: ", end="")
    print(verdict(-rate, -_LEAST_RATE, "trivial jobs a second, memory, × pool"))
    print(f"{'processor time a job':28}{'':8}   {cpu:.2f} × pool; budget ≤ {_MOST_CPU}: ", end="")
    print(verdict(cpu, _MOST_CPU, "processor time a job, memory, × pool"))
    return 0


def _print_row(what: str, unit: float, took: dict[str, float], budget: float) -> None:
    ours, floor = took[_OURS] * unit, took[_FLOOR] * unit
    judged = verdict(ours, budget, f"start − no-op, {what}", floor)
    print(f"{what:28}{ours:8.2f}   pool {floor:.2f}; budget ≤ {budget:g}: {judged}")


def _medians(start: dict[str, Callable[[str], float]], rounds: int, starts: int) -> dict[str, float]:
    """Return how much longer a start takes than a view, in seconds."""
    took: dict[str, list[float]] = {name: [] for name in start}
    for turn in range(rounds):
        for name in (list(start), list(start)[::-1])[turn % 2]:
            call = start[name]
            each = {path: statistics.median(call(path) for _ in range(starts)) for path in ("/view", "/start")}
            took[name].append(each["/start"] - each["/view"])
    return {name: statistics.median(differences) for name, differences in took.items()}


def _in_process(app: Application) -> Callable[[str], float]:
    def call(path: str) -> float:
        environ: dict[str, Any] = {"PATH_INFO": path, "QUERY_STRING": "", "HTTP_ACCEPT": "text/html"}
        setup_testing_defaults(environ)
        begun = time.perf_counter()
        for _ in app(environ, lambda status, headers: None):
            pass
        took = time.perf_counter() - begun
        if path == "/start":
            _ENDED.acquire()
            time.sleep(0.0005)  # the worker is idle again
        return took

    return call


def _by_http(port: int) -> Callable[[str], float]:
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def call(path: str) -> float:
        begun = time.perf_counter()
        connection.request("GET", path)
        connection.getresponse().read()
        return time.perf_counter() - begun

    return call


def _rates(sites: dict[str, tuple[int, int]], rounds: int, starts: int) -> dict[str, tuple[list[float], list[float]]]:
    """Return of each site, and each round, how many jobs a second are seen done, and the processor time of each."""
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in sites}
    for turn in range(rounds):
        for name in (list(sites), list(sites)[::-1])[turn % 2]:
            port, pid = sites[name]
            connection = http.client.HTTPConnection("127.0.0.1", port)
            used, begun = _cpu(pid), time.perf_counter()
            for _ in range(starts):
                connection.request("GET", "/start")
                response = connection.getresponse()
                response.read()
                _see_done(connection, str(response.headers["Location"]))
            found[name][0].append(starts / (time.perf_counter() - begun))
            found[name][1].append(max(_cpu(pid) - used, 1.0) / starts)
            connection.close()
    return found


def _see_done(connection: http.client.HTTPConnection, location: str) -> None:
    headers = {"Accept": "text/plain"}
    while True:
        connection.request("GET", f"/start{location}&_view=result", headers=headers)
        if connection.getresponse().read() == b"done":
            return


def _cpu(pid: int) -> float:
    """Return the processor time of a process, in ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return float(fields[11]) + float(fields[12])


@contextlib.contextmanager
def _served(name: str) -> Iterator[tuple[int, int]]:
    """Yield the port and the process of a server."""
    command = [sys.executable, "-m", "benchmarks.starting", "--serve", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline()), process.pid
        finally:
            process.terminate()


def _serve(app: Application) -> None:
    server = create_server(app, host="127.0.0.1", port=0, threads=8)
    print(int(server.effective_port), flush=True)  # type: ignore[union-attr]
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
