"""Clients of a job, as many as wanted: each tries an event stream, and polls at the server's pace where refused."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

__all__ = ["Viewer", "asked"]

_HOST = "127.0.0.1"
_PATIENCE = 5.0  # seconds that a viewer waits for an answer


@dataclass
class Viewer:
    """One client of a job: what it has seen, and how it came to it. *keep*: whether it keeps its connection."""

    port: int
    target: str
    keep: bool = False
    seen: bytearray = field(default_factory=bytearray)
    streamed: bool = False
    requests: int = 0
    ended: bool = False
    failed: str = ""

    async def view(self) -> None:
        """Look until the job has ended: by events, else by asking again and again."""
        try:
            async with _Connection(self.port, self.keep) as connection:
                while not self.ended:
                    status = await self._stream(connection)
                    if status == 503:
                        await self._poll(connection)
                    elif not self.ended:
                        await asyncio.sleep(1.0)  # as an EventSource does, before it comes back
        except (TimeoutError, OSError, ValueError, EOFError) as error:
            self.failed = f"{type(error).__name__}: {error}"

    async def _stream(self, connection: "_Connection") -> int:
        answer = await self._ask(connection, "&_view=events", f"Last-Event-ID: {len(self.seen)}\r\n")
        if answer.status == 200:
            self.streamed = True
            async for data in answer.chunks(_PATIENCE + 2):  # a heartbeat comes every five seconds
                for event in data.split(b"\n\n"):
                    self._take(event)
        else:
            await answer.body()
            await asyncio.sleep(float(answer.headers.get("job-poll", 0)))
        return answer.status

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

    async def _poll(self, connection: "_Connection") -> None:
        waited = 0.0
        while True:
            answer = await self._ask(connection, f"&_view=log&_offset={len(self.seen)}&_every={waited:.3f}")
            body = await answer.body()
            self._add(int(answer.headers["job-offset"]), body)
            if answer.headers["job-state"] not in ("pending", "running") and not body:
                self.ended = True
                return
            if "job-poll" in answer.headers:
                waited = float(answer.headers["job-poll"]) * random.uniform(0.9, 1.1)
                await asyncio.sleep(waited)

    async def _ask(self, connection: "_Connection", query: str, headers: str = "") -> "_Answer":
        self.requests += 1
        return await connection.ask("GET", self.target + query, headers)


async def asked(port: int, method: str, target: str, patience: float = _PATIENCE) -> tuple[Mapping[str, str], bytes]:
    """Send one request without a body; return the headers and the body of its answer."""
    async with _Connection(port, keep=False) as connection:
        answer = await connection.ask(method, target, "Content-Length: 0\r\n")
        return answer.headers, await answer.body(patience)


class _Connection:
    """To one server: a new one for each request, or one for all where the server lets us *keep* it."""

    def __init__(self, port: int, keep: bool) -> None:
        self._port = port
        self._keep = keep
        self._kept = False
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, target: str, headers: str) -> "_Answer":
        """Send a request; return its answer as soon as its head is there. The one before must be read to its end."""
        if not self._kept:
            await self.__aexit__(None, None, None)
        if self._streams is None:
            self._streams = await asyncio.wait_for(asyncio.open_connection(_HOST, self._port), _PATIENCE)
        reader, writer = self._streams
        kept = "" if self._keep else "Connection: close\r\n"
        writer.write(f"{method} {target} HTTP/1.1\r\nHost: x\r\n{kept}{headers}\r\n".encode())
        answer = _Answer(reader, await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), _PATIENCE))
        self._kept = answer.headers.get("connection", "").lower() != "close"
        return answer

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class _Answer:
    """An HTTP response as it comes."""

    def __init__(self, reader: asyncio.StreamReader, head: bytes) -> None:
        first, *lines = head.decode("latin-1").rstrip().split("\r\n")
        self.status = int(first.split()[1])
        self.headers: Mapping[str, str] = {
            name.lower(): value for name, value in (line.split(": ", 1) for line in lines)
        }
        self._reader = reader

    async def body(self, patience: float = _PATIENCE) -> bytes:
        """Return all of the body."""
        return b"".join([data async for data in self.chunks(patience)])

    async def chunks(self, patience: float) -> AsyncIterator[bytes]:
        """Yield the body: what has a length in one piece, else chunk by chunk, each within *patience* seconds."""
        if "content-length" in self.headers:
            yield await asyncio.wait_for(self._reader.readexactly(int(self.headers["content-length"])), patience)
            return
        while size := int(await asyncio.wait_for(self._reader.readline(), patience), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readline()
