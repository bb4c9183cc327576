"""What viewers cost the others: an unrelated view is pinged while 200 viewers look at one chatty and one quiet job.

``python -m benchmarks.viewers``. Server (waitress, 4 threads), viewers and ping have a process each. A viewer tries an
event stream; where it is refused, it polls the log at the pace that the server sets. Once they come one by one, as
people do, and once all in the same moment. Budgets: the ping's p99 is at most twice what it is while nobody looks, no
viewer starves, and each ends with the identical bytes.

A machine that does other things too spoils a p99 easily. So a second server, which nobody looks at, is pinged beside
the first: what both show at the same time is the machine, the viewers' own process included, and not the server.
"""

import argparse
import asyncio
import hashlib
import json
import os
import random
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from statistics import quantiles
from typing import Any, NamedTuple

from bgmiddleware import BackgroundMiddleware, marks
from bgmiddleware._server import serve

from ._measure import header, verdict
from ._viewing import Viewer, asked

__all__ = ["main"]

_MOST_RATIO = 2.0
_PING_EVERY = 0.004  # seconds between two pings, on average
_PATIENCE = 5.0  # seconds that a ping waits for its answer
_PRINT_EVERY = {"chatty": 0.1, "quiet": 2.0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; or be one of the other two processes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.viewers", description=__doc__)
    parser.add_argument("--viewers", type=int, default=200)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=2, help="how often each is measured, in turns")
    parser.add_argument("--seconds", type=float, default=12.0, help="how long the jobs run")
    parser.add_argument("--idle", type=float, default=6.0, help="how long nobody looks, before each time that they do")
    parser.add_argument("--arrival", type=float, default=5.0, help="within how many seconds they come one by one")
    kept = "whether viewers keep their connections, as browsers do, or not, as scripts do"
    parser.add_argument("--keep-alive", action=argparse.BooleanOptionalAction, default=True, help=kept)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ping", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        jobs = marks.path(*(f"/{kind}" for kind in _PRINT_EVERY))
        serve(BackgroundMiddleware(_app, when=jobs), port=0, threads=options.threads)
        return 0
    if options.ping:
        print(json.dumps(_pinged(options.ping)))
        return 0

    with (
        _server(options.threads) as port,
        _server(options.threads) as twin,
        _pinging(port) as pings,
        _pinging(twin) as twin_pings,
    ):
        os.nice(5)  # real viewers have machines of their own
        time.sleep(1)  # whatever is done at first
        spans, crowds = _watched(port, options)
    kept = "kept" if options.keep_alive else "one for each request"
    print(header(f"{options.viewers} viewers of two jobs, connections {kept}, waitress with {options.threads} threads"))
    _report_pings(spans, pings, twin_pings)
    for crowd in crowds:
        _report_viewers(crowd, options.seconds)
    return 0


# The server.


def _app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    kind = environ["PATH_INFO"].strip("/")
    if kind in _PRINT_EVERY:
        begun = time.monotonic()
        for number in range(int(float(environ["QUERY_STRING"]) / _PRINT_EVERY[kind])):
            print(f"{number:06} {kind}: the quick brown fox jumps over the lazy dög")
            time.sleep(max(0.0, begun + (number + 1) * _PRINT_EVERY[kind] - time.monotonic()))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"pong"]


def _itself(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.viewers", *arguments]


@contextmanager
def _server(threads: int) -> Iterator[int]:
    command = _itself("--serve", "--threads", str(threads))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().split("/ ")[0].rpartition(":")[2])
        finally:
            process.terminate()


# The ping.


class _Ping(NamedTuple):
    """One answer: when it was asked for, and how many seconds it took."""

    at: float
    took: float


@contextmanager
def _pinging(port: int) -> Iterator[list[_Ping]]:
    """Ping until the end of the block; what is given is filled then."""
    pings: list[_Ping] = []
    with subprocess.Popen(_itself("--ping", str(port)), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield pings
        pings += [_Ping(*ping) for ping in json.loads(process.communicate()[0])]


def _pinged(port: int) -> list[_Ping]:
    """Ask again and again, on a new connection each time, until standard input ends.

    At random moments: what keeps step with something else measures that. And at moments of their own: what comes due
    while an answer is still out has waited since then, or a server that stands still would be asked once meanwhile.
    """
    pings: list[_Ping] = []
    due = done = time.monotonic()
    while not select.select([sys.stdin], [], [], max(0.0, due - time.monotonic()))[0]:
        begun = due if done > due else time.monotonic()
        with suppress(TimeoutError), socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE) as connection:
            connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            while connection.recv(65536):
                pass
        done = time.monotonic()
        pings.append(_Ping(begun, done - begun))
        due += _PING_EVERY * random.uniform(0.5, 1.5)
    return pings


# The viewers.


class _Span(NamedTuple):
    """A stretch of time, by what the viewers did in it."""

    what: str
    begin: float
    end: float

    def holds(self, ping: _Ping) -> bool:
        return self.begin <= ping.at < self.end


class _Crowd(NamedTuple):
    """All viewers of one time, and what the jobs printed, by target."""

    viewers: list[Viewer]
    whole: Mapping[str, bytes]


def _watched(port: int, options: argparse.Namespace) -> tuple[list[_Span], list[_Crowd]]:
    """Let nobody look, and everybody, in turns."""
    spans, crowds = [], []
    for _ in range(options.rounds):
        for way, arrival in (("one by one", options.arrival), ("all at once", 0.0)):
            idle = time.monotonic()
            time.sleep(options.idle)
            begin = time.monotonic()
            crowds.append(asyncio.run(_viewed(port, options, arrival)))
            settled, end = begin + (arrival or 1.0), begin + options.seconds
            spans += [_Span("nobody looks", idle, begin), _Span(f"they look, come {way}", begin, end)]
            spans += [_Span(f"- coming {way}", begin, settled), _Span(f"- having come {way}", settled, end)]
    return spans, crowds


async def _viewed(port: int, options: argparse.Namespace, arrival: float) -> _Crowd:
    """Start the jobs, and look at each with half of the viewers."""
    targets = []
    for kind in _PRINT_EVERY:
        headers, _ = await asked(port, "POST", f"/{kind}?{options.seconds}")
        targets.append(f"/{kind}{headers['location']}")
    viewers = [Viewer(port, targets[number % 2], options.keep_alive) for number in range(options.viewers)]
    with suppress(TimeoutError):
        async with asyncio.timeout(options.seconds + 30):
            await asyncio.gather(*(_after(random.uniform(0, arrival), viewer) for viewer in viewers))
    return _Crowd(viewers, {target: (await asked(port, "GET", target, options.seconds))[1] for target in targets})


async def _after(seconds: float, viewer: Viewer) -> None:
    await asyncio.sleep(seconds)
    await viewer.view()


# What came of it.


def _report_pings(spans: list[_Span], *pings: list[_Ping]) -> None:
    print(f"{'':36}{'an unrelated view':>25}{'a second server':>25}")
    print(f"{'while':36}{'pings':>7}{'p50 ms':>9}{'p99 ms':>9}{'pings':>7}{'p50 ms':>9}{'p99 ms':>9}   budget")
    idle = 0.0
    for what in dict.fromkeys(span.what for span in spans):
        during = [span for span in spans if span.what == what]
        took = [[1e3 * ping.took for ping in of if any(span.holds(ping) for span in during)] for of in pings]
        columns = "".join(f"{len(each):7}{_percentile(each, 50):9.2f}{_percentile(each, 99):9.2f}" for each in took)
        idle = idle or _percentile(took[0], 99)
        ratio = _percentile(took[0], 99) / idle if idle else 1.0
        judgement = f"   p99 {ratio:.2f} × idle ≤ {_MOST_RATIO:g} ×: {verdict(ratio, _MOST_RATIO)}"
        print(f"{what:36}{columns}{judgement if what.startswith('they') else ''}")


def _report_viewers(crowd: _Crowd, seconds: float) -> None:
    starved = [viewer for viewer in crowd.viewers if not viewer.ended]
    digests = {target: hashlib.sha256(data).digest() for target, data in crowd.whole.items()}
    different = [viewer for viewer in crowd.viewers if hashlib.sha256(viewer.seen).digest() != digests[viewer.target]]
    requests = sum(viewer.requests for viewer in crowd.viewers)
    streams = sum(viewer.streamed for viewer in crowd.viewers)
    sizes = " and ".join(f"{len(data):,}" for data in crowd.whole.values())
    print(
        f"Starved viewers: {len(starved)} (budget 0: {verdict(len(starved), 0)}); with other bytes than the {sizes} "
        f"that the jobs printed: {len(different)} (budget 0: {verdict(len(different), 0)}); {requests} requests, "
        f"{requests / seconds:.0f} a second; {streams} had a stream."
    )
    for viewer in starved[:3]:
        print(f"  {viewer.failed or 'not at the end in time'}, after {len(viewer.seen)} bytes")


def _percentile(values: list[float], percent: int) -> float:
    if len(values) < 2:  # a run too short to say anything
        return values[0] if values else 0.0
    return quantiles(values, n=100, method="inclusive")[percent - 1]


if __name__ == "__main__":
    sys.exit(main())
