"""The bodies of a running job's request and response. Read and written in the job's own thread, with the job's output
held: a ``__del__`` that prints in the midst of a call would call the registry again."""

import contextlib
import io
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

from .._capture import JobOutput, current_output
from .._jobs import Channel
from ..registries.base import Registry
from .keeper import patiently
from .recording import IN_MEMORY

__all__ = ["BodyStore", "open_request_body"]

_BODY_CHUNK = 256 * 1024


class BodyStore:
    """Gathers the pieces of a response body and appends them to its channel."""

    def __init__(self, registry: Registry, key: str, runner: str, output: JobOutput) -> None:
        self._registry = registry
        self._key = key
        self._runner = runner
        self._output = output
        self._parts: list[bytes] = []
        self._size = 0
        self.end = 0
        """Where the body ends, as its registry said last."""

    def write(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size >= _BODY_CHUNK:
            self.flush()

    def end_with(self, most: int) -> bytes:
        """Store what is left of the body; or return it, to be stored with the job's end, where it is the whole body
        and at most so long."""
        if self._size <= most and not self.end:
            return self._taken()
        self.flush()
        return b""

    def _taken(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        return data

    def flush(self) -> None:
        if self._size:
            data = self._taken()
            append = self._registry.append
            with self._output.held():
                self.end = patiently(
                    self._registry, lambda: append(self._key, Channel.BODY, self.end, data, runner=self._runner)
                )


def open_request_body(registry: Registry, key: str, size: int) -> BinaryIO:
    """Return the body of a recorded request, *size* bytes long, as a seekable file; a small one is read at once."""
    if not size:
        return io.BytesIO()
    reader = _RequestReader(registry, key, size)
    if size > IN_MEMORY:
        return io.BufferedReader(reader, IN_MEMORY)
    return io.BytesIO(reader.readall())


def _held() -> AbstractContextManager[None]:
    output = current_output()
    return output.held() if isinstance(output, JobOutput) else contextlib.nullcontext()


class _RequestReader(io.RawIOBase):
    """A seekable file over the request channel, so that a large body is never in memory as a whole."""

    def __init__(self, registry: Registry, key: str, size: int) -> None:
        self._registry = registry
        self._key = key
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        limit = min(len(buffer), IN_MEMORY, max(0, self._size - self._at))
        if not limit:
            return 0
        read = self._registry.read
        with _held():
            data = patiently(self._registry, lambda: read(self._key, Channel.REQUEST, self._at, limit).data)
        if not data:  # an abandoned job must not take what it has read for the whole
            raise OSError("the body of the request is gone: its job has ended")
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self._at
        elif whence == io.SEEK_END:
            offset += self._size
        if offset < 0:
            raise ValueError(f"negative seek position {offset}")
        self._at = offset
        return offset

    def tell(self) -> int:
        return self._at
