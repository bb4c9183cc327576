"""What viewers cost the others: an unrelated view is pinged while 200 viewers look at one chatty and one quiet job.

``python -m benchmarks.viewers``. Server (waitress, 4 threads), viewers and ping have a process each. A viewer tries an
event stream; where it is refused, it polls the log at the pace that the server sets. Budgets: the ping's p99 is at most
twice what it is while nobody looks, no viewer starves, and each ends with the identical bytes.

A machine that does other things too spoils a p99 easily. So a second server, which nobody looks at, is pinged in turn
with the first: what both show at the same time is the machine, not the viewers.
"""

import argparse
import asyncio
import hashlib
import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any

from bgmiddleware import BackgroundMiddleware, marks
from bgmiddleware._server import serve

from ._measure import header, verdict

__all__ = ["main"]

_HOST = "127.0.0.1"
_MOST_RATIO = 2.0
_PING_EVERY = 0.005
_PATIENCE = 5.0  # seconds that a viewer, or a ping, waits for an answer
_EVERY = {"chatty": 0.1, "quiet": 2.0}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; or be one of the other two processes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.viewers", description=__doc__)
    parser.add_argument("--viewers", type=int, default=200)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=12.0, help="how long the jobs run")
    parser.add_argument("--idle", type=float, default=3.0, help="how long to ping before, and again after")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--ping", type=int, nargs=2, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(BackgroundMiddleware(_app, when=marks.path("/chatty", "/quiet")), port=0, threads=options.threads)
        return 0
    if options.ping:
        print(json.dumps(_pinged(options.ping, options.seconds)))
        return 0

    with _server(options.threads) as port, _server(options.threads) as twin:
        _collect(_ping(port, twin, 0.5))  # whatever is done at first
        idle, twin_idle = _collect(_ping(port, twin, options.idle))
        pinging = _ping(port, twin, options.seconds)
        viewers, whole = asyncio.run(_viewed(port, options.viewers, options.seconds))
        loaded, twin_loaded = _collect(pinging)
        after, twin_after = _collect(_ping(port, twin, options.idle))
    print(header(f"{options.viewers} viewers of two jobs, waitress with {options.threads} threads"))
    _report_pings(idle + after, loaded, twin_idle + twin_after, twin_loaded)
    _report_viewers(viewers, whole, options.seconds)
    return 0


# The server.


def _app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    kind = environ["PATH_INFO"].strip("/")
    if kind in _EVERY:
        begun = time.monotonic()
        for number in range(int(float(environ["QUERY_STRING"]) / _EVERY[kind])):
            print(f"{number:06} {kind}: the quick brown fox jumps over the lazy dög")
            time.sleep(max(0.0, begun + (number + 1) * _EVERY[kind] - time.monotonic()))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"pong"]


@contextmanager
def _server(threads: int) -> Iterator[int]:
    command = [sys.executable, "-m", "benchmarks.viewers", "--serve", "--threads", str(threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline().split("/ ")[0].rpartition(":")[2])
        finally:
            process.terminate()


# The ping.


def _ping(port: int, twin: int, seconds: float) -> "subprocess.Popen[str]":
    ports = ["--ping", str(port), str(twin)]
    command = [sys.executable, "-m", "benchmarks.viewers", *ports, "--seconds", str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def _collect(process: "subprocess.Popen[str]") -> list[list[float]]:
    took: list[list[float]] = json.loads(process.communicate()[0])
    return took


def _pinged(ports: Sequence[int], seconds: float) -> list[list[float]]:
    """Return how many seconds each answer took, on a new connection each, of each server."""
    took: list[list[float]] = [[] for _ in ports]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for port, found in zip(ports, took, strict=True):
            begun = time.perf_counter()
            with suppress(TimeoutError), socket.create_connection((_HOST, port), timeout=_PATIENCE) as connection:
                connection.sendall(b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                while connection.recv(65536):
                    pass
            found.append(time.perf_counter() - begun)
            time.sleep(_PING_EVERY)
    return took


# The viewers.


@dataclass
class _Viewer:
    """One client of a job: what it has seen, and how it came to it."""

    port: int
    target: str
    seen: bytearray = field(default_factory=bytearray)
    streamed: bool = False
    requests: int = 0
    ended: bool = False
    failed: str = ""

    async def view(self) -> None:
        """Look until the job has ended: by events, else by asking again and again."""
        try:
            while not self.ended:
                status = await self._stream()
                if status == 503:
                    await self._poll()
                elif not self.ended:
                    await asyncio.sleep(1.0)  # as an EventSource does, before it comes back
        except (TimeoutError, OSError, ValueError) as error:
            self.failed = f"{type(error).__name__}: {error}"

    async def _stream(self) -> int:
        async with _answer(self.port, self._request("&_view=events", last_event_id=str(len(self.seen)))) as answer:
            self.requests += 1
            if answer.status != 200:
                return answer.status
            self.streamed = True
            async for data in answer.chunks(patience=_PATIENCE + 2):  # a heartbeat comes every five seconds
                for event in data.split(b"\n\n"):
                    self._take(event)
        return 200

    def _take(self, event: bytes) -> None:
        fields = dict(line.split(b": ", 1) for line in event.split(b"\n") if b": " in line)
        if fields.get(b"event") == b"done":
            self.ended = True
        elif b"data" in fields and b"event" not in fields:
            data = json.loads(fields[b"data"])
            self._add(data["offset"], data["text"].encode())

    def _add(self, offset: int, data: bytes) -> None:
        if offset != len(self.seen):
            raise ValueError(f"bytes from {offset} came after {len(self.seen)}")
        self.seen += data

    async def _poll(self) -> None:
        waited = 0.0
        while True:
            query = f"&_view=log&_offset={len(self.seen)}&_every={waited:.3f}"
            async with _answer(self.port, self._request(query)) as answer:
                self.requests += 1
                body = b"".join([data async for data in answer.chunks(patience=_PATIENCE)])
            self._add(int(answer.headers["job-offset"]), body)
            if answer.headers["job-state"] not in ("pending", "running") and not body:
                self.ended = True
                return
            if "job-poll" in answer.headers:
                waited = float(answer.headers["job-poll"]) * random.uniform(0.9, 1.1)
                await asyncio.sleep(waited)

    def _request(self, query: str, **headers: str) -> bytes:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        return f"GET {self.target}{query} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n".encode()


class _Answer:
    """An HTTP response as it comes, over a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, head: bytes) -> None:
        first, *lines = head.decode("latin-1").rstrip().split("\r\n")
        self.status = int(first.split()[1])
        self.headers: Mapping[str, str] = {
            name.lower(): value for name, value in (line.split(": ", 1) for line in lines)
        }
        self._reader = reader

    async def chunks(self, patience: float) -> AsyncIterator[bytes]:
        """Yield the body: what has a length in one piece, else chunk by chunk."""
        if "content-length" in self.headers:
            yield await asyncio.wait_for(self._reader.readexactly(int(self.headers["content-length"])), patience)
            return
        while size := int(await asyncio.wait_for(self._reader.readline(), patience), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]


class _answer:  # noqa: N801  # used as a function
    """Send a request; give its answer, and close the connection."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request

    async def __aenter__(self) -> _Answer:
        reader, self._writer = await asyncio.wait_for(asyncio.open_connection(_HOST, self._port), _PATIENCE)
        self._writer.write(self._request)
        return _Answer(reader, await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _PATIENCE))

    async def __aexit__(self, *exc_info: object) -> None:
        self._writer.close()


async def _viewed(port: int, count: int, seconds: float) -> tuple[list[_Viewer], dict[str, bytes]]:
    """Start the jobs, and look at each with half of the viewers; return these, and what the jobs printed."""
    targets = []
    for kind in _EVERY:
        request = f"POST /{kind}?{seconds} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        async with _answer(port, request.encode()) as answer:
            targets.append(f"/{kind}{answer.headers['location']}")
    viewers = [_Viewer(port, targets[number % len(targets)]) for number in range(count)]
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds + 30):
            await asyncio.gather(*(_after(random.uniform(0, 1), viewer) for viewer in viewers))
    whole = {}
    for target in targets:
        async with _answer(port, f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()) as answer:
            whole[target] = b"".join([data async for data in answer.chunks(seconds)])
    return viewers, whole


async def _after(seconds: float, viewer: _Viewer) -> None:
    await asyncio.sleep(seconds)
    await viewer.view()


# What came of it.


def _report_pings(idle: list[float], loaded: list[float], twin_idle: list[float], twin_loaded: list[float]) -> None:
    print(f"{'an unrelated view':42}{'pings':>7}{'p50 ms':>9}{'p99 ms':>9}   budget")
    ratio = _percentile(loaded, 99) / _percentile(idle, 99)
    judgement = f"   p99 {ratio:.2f} × idle ≤ {_MOST_RATIO:g} ×: {verdict(ratio, _MOST_RATIO)}"
    for name, took, judged in (
        ("while nobody looks", idle, ""),
        ("while they all do", loaded, judgement),
        ("a second server, while nobody looks", twin_idle, ""),
        ("a second server, while they look elsewhere", twin_loaded, "   (the machine)"),
    ):
        print(f"{name:42}{len(took):7}{_percentile(took, 50) * 1e3:9.1f}{_percentile(took, 99) * 1e3:9.1f}{judged}")


def _report_viewers(viewers: list[_Viewer], whole: Mapping[str, bytes], seconds: float) -> None:
    starved = [viewer for viewer in viewers if not viewer.ended]
    digests = {viewer.target: set[str]() for viewer in viewers}
    for viewer in viewers:
        digests[viewer.target].add(hashlib.sha256(viewer.seen).hexdigest())
    identical = all(
        found == {hashlib.sha256(whole[target]).hexdigest()} for target, found in digests.items() if whole[target]
    )
    print(f"Starved viewers: {len(starved)} (budget 0: {verdict(len(starved), 0)})")
    for viewer in starved[:3]:
        print(f"  {viewer.failed or 'not at the end in time'}, after {len(viewer.seen)} bytes")
    sizes = " and ".join(f"{len(data):,}" for data in whole.values())
    print(f"All ended with the identical bytes, {sizes}: {'yes' if identical else 'NO'}")
    requests = sum(viewer.requests for viewer in viewers)
    streams = sum(viewer.streamed for viewer in viewers)
    print(f"{requests} requests of viewers, {requests / seconds:.0f} a second; {streams} had a stream of events.")


def _percentile(values: list[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]


if __name__ == "__main__":
    sys.exit(main())
