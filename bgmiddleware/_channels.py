"""What a running job writes to its registry, and reads from it. All of it in the job's own thread, and all of it with
the job's output held: a ``__del__`` that prints in the midst of a call would call the registry again."""

import contextlib
import io
import logging
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

from ._capture import JobOutput, current_output, detached
from ._jobs import Channel
from ._recording import IN_MEMORY
from .errors import Fenced, JobExpired, JobNotFound, RegistryError
from .registries.base import Registry

__all__ = ["BodyStore", "OutputStore", "open_request_body"]

_log = logging.getLogger("bgmiddleware")

_BODY_CHUNK = 256 * 1024
_UNSENT_LIMIT = 1024 * 1024


class OutputStore:
    """Appends to the output channel. What the registry cannot take now is kept, within a bound, and sent again.

    Called with the output's lock held, so by one thread at a time.
    """

    def __init__(self, registry: Registry, key: str, runner: str) -> None:
        self._registry = registry
        self._key = key
        self._runner = runner
        self._end = 0
        self._unsent: list[bytes] = []
        self._unsent_size = 0
        self._dropped = 0

    def __call__(self, data: bytes) -> None:
        if self._unsent_size + len(data) > _UNSENT_LIMIT and self._unsent:
            self._dropped += len(data)
        else:
            self._put(data)
        self._send()

    def end(self) -> None:
        """Send what is left, if the registry takes it now, and state what was dropped."""
        self._send()
        if self._dropped and not self._unsent:
            self._put(b"")
            self._send()

    def _put(self, data: bytes) -> None:
        if self._dropped:
            data = f"\n[{self._dropped} bytes of output could not be stored]\n".encode() + data
            self._dropped = 0
        self._unsent.append(data)
        self._unsent_size += len(data)

    def _send(self) -> None:
        try:
            while self._unsent:
                # Always the same frozen chunk at the same offset: if it had arrived after all, it is a no-op.
                chunk = self._unsent[0]
                self._end = self._registry.append(self._key, Channel.OUTPUT, self._end, chunk, runner=self._runner)
                self._unsent_size -= len(chunk)
                del self._unsent[0]
        except (Fenced, JobNotFound, JobExpired):
            self._unsent.clear()  # the job was ended by somebody else: nobody will read this
            self._unsent_size = 0
        except RegistryError as error:
            with detached():  # it is not the job that says this
                _log.warning("job %s: output waits for its registry: %s", self._key[:8], error)


class BodyStore:
    """Gathers the pieces of a response body and appends them to its channel."""

    def __init__(self, registry: Registry, key: str, runner: str, output: JobOutput) -> None:
        self._registry = registry
        self._key = key
        self._runner = runner
        self._output = output
        self._parts: list[bytes] = []
        self._size = 0
        self._end = 0

    def write(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size >= _BODY_CHUNK:
            self.flush()

    def flush(self) -> None:
        if self._size:
            data = b"".join(self._parts)
            self._parts.clear()
            self._size = 0
            with self._output.held():
                self._end = self._registry.append(self._key, Channel.BODY, self._end, data, runner=self._runner)


def open_request_body(registry: Registry, key: str, size: int) -> BinaryIO:
    """Return the body of a recorded request, *size* bytes long, as a seekable file; a small one is read at once."""
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
        with _held():
            data = self._registry.read(self._key, Channel.REQUEST, self._at, limit).data
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
