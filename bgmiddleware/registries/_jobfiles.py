"""The files of one job. Its runner appends to them without asking the index; who reads takes no lock.

A job has one file with a header and its output, and others for its body and its request where there are such. The
header says how long each channel is. It is written after the bytes, so a writer that is killed in between has written
nothing: all or nothing, and never a hole.

How a runner is fenced off without a look at the index for each append. Who ends a job 1. sets the *seal* in the header,
2. reads how long the channels are, 3. writes that into the index, where it is the truth from then on. Who appends
1. writes bytes, 2. writes how long the channel is, 3. looks at the seal. If it is not set, step 2 of the other one is
yet to come and will find these bytes; if it is, the append is refused, and it does not matter whether they were found.
So nobody waits for anybody, not even for a process that is stopped in the midst of an append.
"""

import contextlib
import errno
import fcntl
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .._jobs import Channel, Job
from ..errors import BadOffset, RegistryError, RegistryFull
from ._bounds import Bounds
from .base import Piece

__all__ = ["Ends", "JobFiles", "Sealed", "Writer", "look"]

_MAGIC = b"bgm-job\x01"
_HEADER = struct.Struct("<8sQQ")  # magic, bounds: what every process must know the same
_ENDS = struct.Struct("<QQQQ")
_CHECK = struct.Struct("<I")
_ENDS_AT = 24
_CHECK_AT = _ENDS_AT + _ENDS.size
_SEAL_AT = 64
_STAMP_AT = 72
_DATA_AT = 128
_TRIES = 1000
_RESERVE = 256 * 1024


class Sealed(Exception):
    """Somebody ended the job, or began to."""


class Ends(NamedTuple):
    """How long the channels are; of the output, what is between *head* and *floor* was dropped (floor 0: nothing)."""

    request: int = 0
    output: int = 0
    body: int = 0
    floor: int = 0
    head: int = 0

    @classmethod
    def of_job(cls, job: Job) -> "Ends":
        """Return those that an ended job says."""
        head, floor = job.output_dropped or (0, 0)
        return cls(0, job.output_end, job.body_end, floor, head)

    def of(self, channel: Channel) -> int:
        """Return the length of *channel*."""
        return {Channel.REQUEST: self.request, Channel.OUTPUT: self.output, Channel.BODY: self.body}[channel]

    def to(self, channel: Channel, end: int) -> "Ends":
        """Return the same with another length of *channel*."""
        return self._replace(**{channel.value: end})

    @property
    def dropped(self) -> tuple[int, int] | None:
        """The range of the output that was dropped, if any."""
        floor = min(self.floor, self.output)  # of an append that is under way the bytes are not there yet
        return (self.head, floor) if floor > self.head else None

    @property
    def kept(self) -> int:
        """How many bytes there are of all channels."""
        begin, end = self.dropped or (0, 0)
        return self.request + self.output - (end - begin) + self.body


def look(path: str) -> bytes | None:
    """Return what every change of a job changes, or None where its file is gone."""
    try:
        with _opened(path, os.O_RDONLY) as number:
            return os.pread(number, _DATA_AT, 0)
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class JobFiles:
    """The files of the job with *key* in *directory*; *number* tells it from an earlier one of the same key."""

    directory: str
    key: str
    number: int

    @property
    def path(self) -> str:
        """The file that every job has."""
        return os.path.join(self.directory, self.key[:2], f"{self.key}.{self.number}")

    def path_of(self, channel: Channel) -> str:
        """Return the file in which the bytes of *channel* are."""
        return self.path if channel is Channel.OUTPUT else f"{self.path}.{channel.value}"

    def create(self, max_output: int) -> None:
        """Make the file that every job has; there is none, or the index has lost it."""
        bounds = Bounds.of(max_output)
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(self.path), 0o700)
        with _opened(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as number:
            header = _HEADER.pack(_MAGIC, bounds.head, bounds.tail) + _packed(Ends())
            try:
                _write(number, header.ljust(_DATA_AT, b"\0"), 0)
            except OSError:
                self.remove()
                raise

    def ends(self) -> Ends:
        """Return how long the channels of a job are that has not ended."""
        with _opened(self.path, os.O_RDONLY) as number:
            return _read_header(number).ends

    def seal(self) -> Ends:
        """Let nobody append any more; return how long the channels are."""
        with _opened(self.path, os.O_RDWR) as number:
            os.pwrite(number, b"\1", _SEAL_AT)
            return _read_header(number).ends

    def unseal(self) -> None:
        """Take a seal back whose setter was killed before it could end the job."""
        with _opened(self.path, os.O_RDWR) as number:
            os.pwrite(number, b"\0", _SEAL_AT)

    def stamp(self) -> None:
        """Wake who waits for this job."""
        with contextlib.suppress(OSError), _opened(self.path, os.O_RDWR) as number:
            os.pwrite(number, os.urandom(8), _STAMP_AT)

    def read(self, channel: Channel, offset: int, limit: int, ends: Ends | None) -> Piece:
        """Return a piece of a job that ended with *ends*, or (None) of one that has not ended."""
        if ends is not None and offset >= ends.of(channel):
            return Piece(offset, b"")
        if channel is Channel.OUTPUT:
            with _opened(self.path, os.O_RDONLY) as number:
                return _read_output(number, offset, limit, ends)
        size = min(limit, (ends or self.ends()).of(channel) - offset)
        if size <= 0:
            return Piece(offset, b"")
        with _opened(self.path_of(channel), os.O_RDONLY) as number:
            return Piece(offset, _read(number, offset, size))

    def remove(self, *channels: Channel) -> None:
        """Remove the files of *channels*, or all."""
        for channel in channels or Channel:
            with contextlib.suppress(OSError):  # gone is gone, and what cannot be removed is tried again by who cleans
                os.unlink(self.path_of(channel))


class Writer:
    """The files of one job, open for this process to append to. Any thread may call.

    *patience*: seconds to wait for another process that appends to the same job.
    """

    def __init__(self, files: JobFiles, runner: str, patience: float) -> None:
        self.files = files
        self.runner = runner
        self._patience = patience
        self._lock = threading.Lock()  # guards what follows, for threads; the lock of the file is for processes
        self._numbers = {Channel.OUTPUT: _open(files.path, os.O_RDWR)}
        self._closed = False

    def append(self, channel: Channel, offset: int, data: bytes, limit: int | None = None) -> int:
        """Add *data* at the end of *channel*, which is at *offset*; return the new end.

        Raises ``Sealed`` if the job has ended, or is about to.
        """
        with self._lock, self._alone() as number:
            header = _read_header(number)
            if header.sealed:
                raise Sealed
            if not os.fstat(number).st_nlink:
                raise FileNotFoundError(errno.ENOENT, "removed by somebody else", self.files.path)
            end = header.ends.of(channel)
            if offset != end:
                if self._has(header, channel, offset, data):
                    return end
                raise BadOffset(end)
            if limit is not None and end + len(data) > limit:
                raise RegistryFull("response", limit)
            if data:
                _keep_reserve(number)
                ends = header.ends.to(channel, end + len(data))
                if channel is Channel.OUTPUT:
                    ends = self._write_output(number, header, ends, data)
                else:
                    self._write_whole(self._number(channel), data, end)
                os.pwrite(number, _packed(ends), _ENDS_AT)
                if _is_sealed(number):
                    raise Sealed
            return end + len(data)

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            self._closed = True
            for number in self._numbers.values():
                os.close(number)
            self._numbers.clear()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[int]:
        if self._closed:
            raise Sealed
        number = self._numbers[Channel.OUTPUT]
        until = time.monotonic() + self._patience
        while True:
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise RegistryError(f"another process is stuck in an append to {self.files.path}") from None
                time.sleep(0.001)
        try:
            yield number
        finally:
            fcntl.flock(number, fcntl.LOCK_UN)

    def _number(self, channel: Channel) -> int:
        if channel not in self._numbers:
            self._numbers[channel] = _open(self.files.path_of(channel), os.O_RDWR | os.O_CREAT)
        return self._numbers[channel]

    def _write_output(self, number: int, header: "_Header", ends: Ends, data: bytes) -> Ends:
        """Write *data* into head and ring; return *ends* with the range that it drops."""
        bounds, end = header.bounds, header.ends.output
        dropped = bounds.dropped(ends.output)
        if dropped is None:
            self._write_whole(number, data, _DATA_AT + end)
            return ends
        # What is to be overwritten is dropped before it is, so that readers can see it; and who seals just now reads
        # of it, or else we read of the seal.
        ends = ends._replace(floor=max(header.ends.floor, dropped[1]))
        os.pwrite(number, _packed(header.ends._replace(floor=ends.floor)), _ENDS_AT)
        if _is_sealed(number):
            raise Sealed
        for at, position, room in bounds.writes(end, len(data)):
            _write(number, memoryview(data)[at : at + room], _DATA_AT + position)
        return ends

    def _write_whole(self, number: int, data: bytes, position: int) -> None:
        try:
            _write(number, data, position)
        except OSError:
            os.ftruncate(number, position)  # nobody would read it, but it takes room where there is none
            raise

    def _has(self, header: "_Header", channel: Channel, offset: int, data: bytes) -> bool:
        """Whether *data* is what was added at *offset*, as far as it is still kept."""
        if not 0 <= offset <= header.ends.of(channel) - len(data):
            return False
        at, end = offset, offset + len(data)
        while at < end:
            piece = self.files.read(channel, at, end - at, header.ends)
            kept = data[piece.offset - offset :][: len(piece.data)]
            if piece.data[: len(kept)] != kept:
                return False
            at = piece.end
        return True


class _Header(NamedTuple):
    bounds: Bounds
    ends: Ends
    sealed: bool


def _packed(ends: Ends) -> bytes:
    packed = _ENDS.pack(ends.request, ends.output, ends.body, ends.floor)
    return packed + _CHECK.pack(zlib.crc32(packed))


def _read_header(number: int) -> _Header:
    # A read may meet a write half-way: then the check is wrong, and the next one is right.
    for _ in range(_TRIES):
        header = os.pread(number, _DATA_AT, 0)
        packed = header[_ENDS_AT : _ENDS_AT + _ENDS.size]
        if len(header) == _DATA_AT and header[_ENDS_AT + _ENDS.size :][: _CHECK.size] == _CHECK.pack(
            zlib.crc32(packed)
        ):
            magic, head, tail = _HEADER.unpack_from(header)
            if magic == _MAGIC:
                ends = Ends._make((*_ENDS.unpack(packed), head))
                return _Header(Bounds(head, tail), ends, header[_SEAL_AT] != 0)
    raise RegistryError("a file of a job was damaged by somebody else")


def _keep_reserve(number: int) -> None:
    """Refuse to fill the disk to its last block: the index must be able to say how a job ended."""
    system = os.fstatvfs(number)
    if system.f_bavail * system.f_frsize < _RESERVE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _is_sealed(number: int) -> bool:
    return os.pread(number, 1, _SEAL_AT) != b"\0"


def _read_output(number: int, offset: int, limit: int, known: Ends | None) -> Piece:
    for _ in range(_TRIES):
        bounds, ends, _sealed = _read_header(number)
        if known is not None:
            ends = known
        begin = ends.floor if bounds.head <= offset < ends.floor else offset
        size = min(limit, ends.output - begin)
        if begin < bounds.head and ends.floor:
            size = min(size, bounds.head - begin)
        if size <= 0:
            return Piece(begin, b"")
        parts = [_read(number, _DATA_AT + position, room) for position, room in bounds.places(begin, size)]
        # A writer drops bytes before it writes others in their place: what is not dropped now was whole a moment ago.
        if known is not None or begin < bounds.head or _read_header(number).ends.floor <= begin:
            return Piece(begin, parts[0] if len(parts) == 1 else b"".join(parts))
    raise RegistryError("the job prints faster than its output can be read")


def _read(number: int, position: int, size: int) -> bytes:
    data = os.pread(number, size, position)
    while len(data) < size:
        part = os.pread(number, size - len(data), position + len(data))
        if not part:  # an empty piece would say that this is the end
            raise RegistryError("a file of a job was cut by somebody else")
        data += part
    return data


def _write(number: int, data: bytes | memoryview, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(number, view, position)  # a part only, where the disk is about to be full
        view, position = view[written:], position + written


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


@contextlib.contextmanager
def _opened(path: str, flags: int) -> Iterator[int]:
    number = _open(path, flags)
    try:
        yield number
    finally:
        os.close(number)
