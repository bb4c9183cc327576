"""Byte logs that begin in memory and move to files when they grow."""

import contextlib
import io
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from typing import BinaryIO

from ...errors import RegistryError
from .._bounds import Bounds
from ..base import Piece

__all__ = ["Log", "Spool"]

_LEAST_TAIL = 4096


class Log:
    """An append-only byte log that keeps its first and its last *limit* bytes; without a limit it keeps all."""

    __slots__ = ("_bounds", "_file", "_path", "_spool", "end")

    def __init__(self, spool: "Spool", limit: int | None) -> None:
        self._spool = spool
        self._bounds = None if limit is None else Bounds.of(limit)
        self._file: BinaryIO | None = io.BytesIO()
        self._path: str | None = None
        self.end = 0

    @property
    def dropped(self) -> tuple[int, int] | None:
        return None if self._bounds is None else self._bounds.dropped(self.end)

    @property
    def stored(self) -> int:
        """Bytes kept."""
        return self.end if self._bounds is None else min(self.end, self._bounds.size)

    def growth(self, size: int) -> int:
        """How many bytes more are kept when *size* bytes are added."""
        return size if self._bounds is None else min(size, self._bounds.size - self.stored)

    def has(self, offset: int, data: bytes) -> bool:
        """Whether *data* is what was added at *offset*, as far as it is still kept."""
        if not 0 <= offset <= self.end - len(data):
            return False
        at, end = offset, offset + len(data)
        while at < end:
            piece = self.read(at, end - at)
            kept = data[piece.offset - offset :][: len(piece.data)]
            if piece.data[: len(kept)] != kept:
                return False
            at = piece.end
        return True

    def append(self, data: bytes) -> None:
        """Add *data*, or nothing if the file system refuses."""
        assert self._file is not None  # noqa: S101  # sealed logs are not written to
        if self._path is None and self.stored + self.growth(len(data)) > self._spool.threshold:
            self._file, self._path = self._spool.move(self._file)
        if self._bounds is None:
            self._write(self.end, data)
        else:
            for at, position, room in self._bounds.writes(self.end, len(data)):
                self._write(position, memoryview(data)[at : at + room])
        self.end += len(data)

    def _write(self, position: int, data: bytes | memoryview) -> None:
        assert self._file is not None  # noqa: S101  # sealed logs are not written to
        view = memoryview(data)
        while view:
            self._file.seek(position)
            written = self._file.write(view)
            position, view = position + written, view[written:]

    def read(self, offset: int, limit: int) -> Piece:
        dropped = self.dropped
        if dropped is not None and dropped[0] <= offset < dropped[1]:
            offset = dropped[1]
        limit = min(limit, self.end - offset)
        if dropped is not None and offset < dropped[0]:
            limit = min(limit, dropped[0] - offset)
        if limit <= 0:
            return Piece(offset, b"")
        places = [(offset, limit)] if self._bounds is None else self._bounds.places(offset, limit)
        file = self._file if self._file is not None else self._spool.open(self._path)
        try:
            parts = [self._read(file, position, room) for position, room in places]
        except OSError as error:
            raise RegistryError(f"cannot read from {self._spool.directory}: {error}") from error
        finally:
            if file is not self._file:
                file.close()
        return Piece(offset, parts[0] if len(parts) == 1 else b"".join(parts))

    def _read(self, file: BinaryIO, position: int, size: int) -> bytes:
        file.seek(position)
        data = file.read(size)
        while len(data) < size:
            part = file.read(size - len(data))
            if not part:  # an empty piece would say that this is the end
                raise RegistryError(f"a file of {self._spool.directory} was cut by somebody else")
            data += part
        return data

    def open(self) -> int | None:
        """Return a descriptor of the file that a sealed log without a limit is in; None where it is in memory."""
        if self._path is None or self._file is not None or self._bounds is not None:
            return None
        with self._spool.open(self._path) as file:
            return os.dup(file.fileno())

    def stop_growing(self) -> None:
        """From now on keep no more bytes than there are, or a few: new ones replace those of the second half."""
        if self._bounds is not None and self.dropped is None:
            head = min(self._bounds.head, self.end - self.end // 2)
            self._bounds = Bounds(head, min(self._bounds.size - head, max(self.end - head, _LEAST_TAIL)))

    def seal(self) -> None:
        """Keep no file open, and no room for more: there may be thousands of ended jobs."""
        if isinstance(self._file, io.BytesIO):
            self._file.getvalue()  # which shares its bytes, and so makes them as long as they need be
        elif self._path is not None and self._file is not None:
            self._file.close()
            self._file = None

    def remove(self) -> None:
        self.seal()
        if self._path is not None:
            self._spool.remove(self._path)


class Spool:
    """A private directory (mode 0700) for what is too large for memory; made when first needed, by each process."""

    def __init__(self, threshold: int) -> None:
        self.threshold = threshold
        self.directory: str | None = None
        self._pid = 0
        self._remove_directory: Callable[[], object] = lambda: None

    def move(self, content: BinaryIO) -> tuple[BinaryIO, str]:
        """Copy *content* to a new file (mode 0600); return it, open, and its path."""
        # Made anew: 1. in a forked child, where the directory is the parent's; 2. where somebody cleaned up in /tmp.
        if self.directory is None or self._pid != os.getpid() or not os.path.isdir(self.directory):
            self.directory, self._pid = tempfile.mkdtemp(prefix="bgmiddleware-"), os.getpid()
            self._remove_directory = weakref.finalize(self, _remove_in_process, self.directory, self._pid)
        number, path = tempfile.mkstemp(dir=self.directory)
        # Unbuffered: what could not be written must not come back at the next seek.
        file = os.fdopen(number, "r+b", buffering=0)
        content.seek(0)
        try:
            shutil.copyfileobj(content, file)
        except OSError:
            file.close()
            self.remove(path)
            raise
        return file, path

    def open(self, path: str | None) -> BinaryIO:
        assert path is not None  # noqa: S101  # what is in memory is never closed
        try:
            return open(path, "rb")
        except FileNotFoundError:
            raise RegistryError(f"a file of {self.directory} was removed by somebody else") from None
        except OSError as error:
            raise RegistryError(f"cannot read from {self.directory}: {error}") from error

    def remove(self, path: str) -> None:
        if self._pid != os.getpid() or os.path.dirname(path) != self.directory:
            return  # the parent's, or gone with its directory
        with contextlib.suppress(OSError):  # somebody cleaned the temporary directory: gone is gone
            os.unlink(path)

    def close(self) -> None:
        self._remove_directory()
        self.directory = None
        self._remove_directory = lambda: None


def _remove_in_process(directory: str, pid: int) -> None:
    # A forked child has a copy of this finalizer, and the files are not its own.
    if os.getpid() == pid:
        shutil.rmtree(directory, ignore_errors=True)
