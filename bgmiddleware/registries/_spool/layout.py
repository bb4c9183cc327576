"""What the file of a job looks like: a header that says how long its channels are, then its output."""

import contextlib
import os
import struct
import time
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from ..._jobs import Channel, Job
from ...errors import RegistryError
from .._bounds import Bounds

__all__ = [
    "DATA_AT",
    "ENDS_AT",
    "SEAL_AT",
    "STAMP_AT",
    "TRIES",
    "Ends",
    "Header",
    "is_sealed",
    "new_header",
    "open_file",
    "opened",
    "packed_ends",
    "read_at",
    "read_header",
    "write_at",
]

ENDS_AT = 24
SEAL_AT = 64
STAMP_AT = 72
DATA_AT = 128
TRIES = 1000
"""How often to look again at what somebody writes just now."""
_HEADER_TRIES = 100

_MAGIC = b"bgm-job\x01"
_FIXED = struct.Struct("<8sQQ")  # magic, bounds: what every process must know the same
_ENDS = struct.Struct("<QQQQ")
_CHECK = struct.Struct("<I")


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


class Header(NamedTuple):
    """The header of a job's file."""

    bounds: Bounds
    ends: Ends
    sealed: bool


def new_header(bounds: Bounds) -> bytes:
    """Return the header of a job without any bytes."""
    return (_FIXED.pack(_MAGIC, bounds.head, bounds.tail) + packed_ends(Ends())).ljust(DATA_AT, b"\0")


def packed_ends(ends: Ends) -> bytes:
    """Return what a header says at ENDS_AT: the ends, and a check of them."""
    packed = _ENDS.pack(ends.request, ends.output, ends.body, ends.floor)
    return packed + _CHECK.pack(zlib.crc32(packed))


def read_header(number: int) -> Header:
    """Return the header of an open file; ``RegistryError`` if it is none."""
    # A read may meet a write half-way: then the check is wrong, and the next one is right; or a later one, where the
    # system has stopped the writer for other processes.
    for attempt in range(_HEADER_TRIES):
        if attempt >= _HEADER_TRIES // 2:
            time.sleep(0.002)
        header = os.pread(number, DATA_AT, 0)
        packed = header[ENDS_AT : ENDS_AT + _ENDS.size]
        if len(header) == DATA_AT and header[ENDS_AT + _ENDS.size :][: _CHECK.size] == _CHECK.pack(zlib.crc32(packed)):
            magic, head, tail = _FIXED.unpack_from(header)
            if magic == _MAGIC:
                ends = Ends._make((*_ENDS.unpack(packed), head))
                return Header(Bounds(head, tail), ends, header[SEAL_AT] != 0)
    raise RegistryError("a file of a job was damaged by somebody else")


def is_sealed(number: int) -> bool:
    """Whether somebody ended the job of an open file, or began to."""
    return os.pread(number, 1, SEAL_AT) != b"\0"


def read_at(number: int, position: int, size: int) -> bytes:
    """Return *size* bytes, which must be there."""
    data = os.pread(number, size, position)
    while len(data) < size:
        part = os.pread(number, size - len(data), position + len(data))
        if not part:  # an empty piece would say that this is the end
            raise RegistryError("a file of a job was cut by somebody else")
        data += part
    return data


def write_at(number: int, data: bytes | memoryview, position: int) -> None:
    """Write all of *data*, or raise ``OSError`` with a part of it written."""
    view = memoryview(data)
    while view:
        written = os.pwrite(number, view, position)  # a part only, where the disk is about to be full
        view, position = view[written:], position + written


def open_file(path: str, flags: int) -> int:
    """Open a file that is its user's alone; a link is not followed."""
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


@contextlib.contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """Open a file for the block."""
    number = open_file(path, flags)
    try:
        yield number
    finally:
        os.close(number)
