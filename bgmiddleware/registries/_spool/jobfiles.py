"""The files of one job, for those who read them, and for who makes, ends and removes it. Nobody here takes a lock.

A job has one file with a header and its output, and others for its body and its request where there are such.
"""

import contextlib
import errno
import os
from dataclasses import dataclass
from functools import partial

from ..._jobs import Channel
from ...errors import RegistryError
from .._bounds import Bounds
from .._times import ENTRY_BYTES, HEAD_BYTES, Head, times_after
from ..base import Piece
from .layout import (
    DATA_AT,
    SEAL_AT,
    STAMP_AT,
    TRIES,
    Ends,
    new_header,
    opened,
    read_at,
    read_header,
    write_at,
)
from .room import check_room

__all__ = ["TIMES", "JobFiles", "look"]

TIMES = "times"
"""The end of the name of a file that says when the output came."""


def look(path: str) -> bytes | None:
    """Return what every change of a job changes, or None where its file is gone."""
    try:
        with opened(path, os.O_RDONLY) as number:
            return os.pread(number, DATA_AT, 0)
    except OSError:
        return None


@dataclass(frozen=True, slots=True)
class JobFiles:
    """The files of the job with *key* in *directory*; *number* tells it from an earlier one of the same key.

    A job that waits has none, unless its request has a body: where a disk is busy, to make a file takes longer than all
    else that a start does.
    """

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

    @property
    def times_path(self) -> str:
        """The file that says when the output came."""
        return f"{self.path}.{TIMES}"

    def kept(self, ends: Ends | None = None) -> int:
        """Return how many bytes there are of a job, which ended with *ends*, or (None) has not ended."""
        times = 0
        with contextlib.suppress(OSError):
            times = os.stat(self.times_path).st_size
        return (ends or self.ends()).kept + times

    def create(self, max_output: int) -> None:
        """Make the file that every job has from its first byte or its claim on, if there is none. To be called while
        nobody else does."""
        try:
            self._create(max_output)
        except FileNotFoundError:
            self.make_directory()
            self._create(max_output)

    def _create(self, max_output: int) -> None:
        with opened(self.path, os.O_RDWR | os.O_CREAT) as number:
            if os.fstat(number).st_size >= DATA_AT:
                return  # else it is new, or who made it was killed just then
            try:
                write_at(number, new_header(Bounds.of(max_output)), 0)
            except OSError:
                self.remove()
                raise

    def is_there(self) -> bool:
        """Whether it has a file. An empty one is none: who made it was killed just then."""
        try:
            return os.lstat(self.path).st_size >= DATA_AT
        except FileNotFoundError:
            return False

    def make_directory(self) -> None:
        """Make the directory of the file, which some jobs have in common, if there is none."""
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(self.path), 0o700)

    def forget_earlier(self) -> None:
        """Remove what is there of an earlier job of the same key and number, which the index has lost."""
        if os.path.lexists(self.path):
            self.remove()

    def ends(self) -> Ends:
        """Return how long the channels of a job are that has not ended."""
        with opened(self.path, os.O_RDONLY) as number:
            return read_header(number).ends

    def seal(self) -> Ends:
        """Let nobody append any more; return how long the channels are."""
        with opened(self.path, os.O_RDWR) as number:
            if not self.is_there():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.path)
            os.pwrite(number, b"\1", SEAL_AT)
            return read_header(number).ends

    def write_body(self, data: bytes) -> None:
        """Store the whole body of a sealed job that has none. The header does not say so: only the index does, when it
        says that the job has ended."""
        with opened(self.path_of(Channel.BODY), os.O_RDWR | os.O_CREAT | os.O_TRUNC) as number:
            check_room(number, len(data))
            try:
                write_at(number, data, 0)
            except OSError:
                os.ftruncate(number, 0)  # nobody would read it, but it takes room where there is none
                raise

    def unseal(self) -> None:
        """Take a seal back whose setter was killed before it could end the job."""
        with opened(self.path, os.O_RDWR) as number:
            os.pwrite(number, b"\0", SEAL_AT)

    def stamp(self) -> None:
        """Wake who waits for this job."""
        try:
            with opened(self.path, os.O_RDWR) as number:
                os.pwrite(number, os.urandom(8), STAMP_AT)
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                os.utime(os.path.dirname(self.path))  # who waits for a job without a file watches this
        except OSError:
            pass

    def read(self, channel: Channel, offset: int, limit: int, ends: Ends | None) -> Piece:
        """Return a piece of a job that ended with *ends*, or (None) of one that has not ended."""
        if ends is not None and offset >= ends.of(channel):
            return Piece(offset, b"")
        if channel is Channel.OUTPUT:
            with opened(self.path, os.O_RDONLY) as number:
                return _read_output(number, offset, limit, ends)
        size = min(limit, (ends or self.ends()).of(channel) - offset)
        if size <= 0:
            return Piece(offset, b"")
        with opened(self.path_of(channel), os.O_RDONLY) as number:
            return Piece(offset, read_at(number, offset, size))

    def times(self, offset: int) -> tuple[tuple[int, int], ...]:
        """See :meth:`Registry.times`; all of them."""
        try:
            with opened(self.times_path, os.O_RDONLY) as number:
                return times_after(offset, partial(_read_times, number))
        except FileNotFoundError:
            self.ends()  # where the job is gone, this raises too
            return ()

    def remove(self, *channels: Channel) -> None:
        """Remove the files of *channels*, or all."""
        for channel in channels or Channel:
            with contextlib.suppress(OSError):  # gone is gone, and what cannot be removed is tried again by who cleans
                os.unlink(self.path_of(channel))
        if not channels:
            with contextlib.suppress(OSError):
                os.unlink(self.times_path)


def _read_times(number: int, count: int) -> tuple[Head, bytes]:
    for _ in range(TRIES):
        head = Head.unpacked(os.pread(number, HEAD_BYTES, 0))
        count = min(count, head.length)
        entries = os.pread(number, ENTRY_BYTES * count, HEAD_BYTES + ENTRY_BYTES * (head.length - count))
        if len(entries) == ENTRY_BYTES * count and head.fits(entries):
            return head, entries
    return Head(), b""  # who wrote it was killed in the midst of it; the next one mends it


def _read_output(number: int, offset: int, limit: int, known: Ends | None) -> Piece:
    for _ in range(TRIES):
        bounds, ends, _sealed = read_header(number)
        if known is not None:
            ends = known
        floor = min(ends.floor, ends.output)  # an append that is under way drops more than there is yet
        begin = floor if bounds.head <= offset < floor else offset
        size = min(limit, ends.output - begin)
        if begin < bounds.head and ends.floor:
            size = min(size, bounds.head - begin)
        if size <= 0:
            return Piece(begin, b"")
        parts = [read_at(number, DATA_AT + position, room) for position, room in bounds.places(begin, size)]
        # A writer drops bytes before it writes others in their place: what is not dropped now was whole a moment ago.
        if known is not None or begin < bounds.head or read_header(number).ends.floor <= begin:
            return Piece(begin, parts[0] if len(parts) == 1 else b"".join(parts))
    raise RegistryError("the job prints faster than its output can be read")
