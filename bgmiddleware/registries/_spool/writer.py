"""Appending to the files of a job, without a look at the index for each append.

The header says how long each channel is. It is written after the bytes, so a writer that is killed in between has
written nothing: all or nothing, and never a hole.

How a runner is fenced off. Who ends a job 1. sets the *seal* in the header, 2. reads how long the channels are,
3. writes that into the index, where it is the truth from then on. Who appends 1. writes bytes, 2. writes how long the
channel is, 3. looks at the seal. If it is not set, step 2 of the other one is yet to come and will find these bytes; if
it is, the append is refused, and it does not matter whether they were found. So nobody waits for anybody, not even for
a process that is stopped in the midst of an append.
"""

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator

from ..._jobs import Channel
from ...errors import BadOffset, RegistryError, RegistryFull
from .._times import ENTRY_BYTES, HEAD_BYTES, Head, thinned
from .._times import MOST as MOST_TIMES
from ..base import Times
from .jobfiles import JobFiles
from .layout import (
    DATA_AT,
    ENDS_AT,
    Ends,
    Header,
    is_sealed,
    open_file,
    opened,
    packed_ends,
    read_at,
    read_header,
    write_at,
)
from .room import check_room

__all__ = ["Sealed", "Writer", "Writers"]


class Sealed(Exception):
    """Somebody ended the job, or began to."""


class Writer:
    """The files of one job, open for this process to append to. Any thread may call.

    *patience*: seconds to wait for another process that appends to the same job.
    """

    def __init__(self, files: JobFiles, runner: str, patience: float) -> None:
        self.files = files
        self.runner = runner
        self._patience = patience
        self._lock = threading.Lock()  # guards what follows, for threads; the lock of the file is for processes
        self._numbers = {Channel.OUTPUT: open_file(files.path, os.O_RDWR)}
        self._times: int | None = None  # the descriptor of their file
        self._closed = False

    def append(self, channel: Channel, offset: int, data: bytes, limit: int | None = None, times: Times = ()) -> int:
        """Add *data* at the end of *channel*, which is at *offset*; return the new end. *times* say when it came.

        Raises ``Sealed`` if the job has ended, or is about to.
        """
        with self._lock, self._alone() as number:
            header = read_header(number)
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
                check_room(number, len(data))
                ends = header.ends.to(channel, end + len(data))
                if channel is Channel.OUTPUT:
                    ends = self._write_output(number, header, ends, data)
                else:
                    self._write_whole(self._number(channel), data, end)
                os.pwrite(number, packed_ends(ends), ENDS_AT)
                if is_sealed(number):
                    raise Sealed
                if times:
                    self._add_times(times)
            return end + len(data)

    def close(self) -> None:
        """Let go of the files."""
        with self._lock:
            self._closed = True
            for number in self._numbers.values():
                os.close(number)
            self._numbers.clear()
            if self._times is not None:
                os.close(self._times)
                self._times = None

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
            self._numbers[channel] = open_file(self.files.path_of(channel), os.O_RDWR | os.O_CREAT)
        return self._numbers[channel]

    def _write_output(self, number: int, header: Header, ends: Ends, data: bytes) -> Ends:
        """Write *data* into head and ring; return *ends* with the range that it drops."""
        bounds, end = header.bounds, header.ends.output
        dropped = bounds.dropped(ends.output)
        if dropped is None:
            self._write_whole(number, data, DATA_AT + end)
            return ends
        # What is to be overwritten is dropped before it is, so that readers can see it; and who seals just now reads
        # of it, or else we read of the seal.
        ends = ends._replace(floor=max(header.ends.floor, dropped[1]))
        os.pwrite(number, packed_ends(header.ends._replace(floor=ends.floor)), ENDS_AT)
        if is_sealed(number):
            raise Sealed
        for at, position, room in bounds.writes(end, len(data)):
            write_at(number, memoryview(data)[at : at + room], DATA_AT + position)
        return ends

    def _add_times(self, times: Times) -> None:
        with contextlib.suppress(OSError):  # the bytes are there; where there is no room, they go without
            number = self._times
            if number is not None and not os.fstat(number).st_nlink:  # another process has put a thinner one there
                os.close(number)
                number = None
            if number is None:
                number = self._times = open_file(self.files.times_path, os.O_RDWR | os.O_CREAT)
            head = Head.unpacked(os.pread(number, HEAD_BYTES, 0))
            for end, at in times:
                head, index, entry = head.added(end, at)
                # A writer that is killed in between has added nothing: a reader knows by the head.
                write_at(number, entry, HEAD_BYTES + ENTRY_BYTES * index)
                write_at(number, head.packed(), 0)
            if head.length > MOST_TIMES:
                self._thin_times(number, head)

    def _thin_times(self, number: int, head: Head) -> None:
        entries = read_at(number, HEAD_BYTES, ENTRY_BYTES * head.length)
        head, thin = thinned(head, entries)
        # Another file in its place: who reads the old one meanwhile finds it whole.
        path = f"{self.files.times_path}.new"
        with opened(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as new:
            write_at(new, head.packed() + thin, 0)
        os.replace(path, self.files.times_path)
        os.close(number)
        self._times = None

    def _write_whole(self, number: int, data: bytes, position: int) -> None:
        try:
            write_at(number, data, position)
        except OSError:
            os.ftruncate(number, position)  # nobody would read it, but it takes room where there is none
            raise

    def _has(self, header: Header, channel: Channel, offset: int, data: bytes) -> bool:
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


class Writers:
    """The writers of this process, by their jobs' keys. Any thread may call."""

    def __init__(self) -> None:
        # By process too: a forked child has copies of its parent's, whose locks would be its parent's as well.
        self._open: dict[tuple[int, str], Writer] = {}

    def get(self, key: str, runner: str) -> Writer | None:
        """Return the one that is open for *runner*."""
        writer = self._open.get((os.getpid(), key))
        return writer if writer is not None and writer.runner == runner else None

    def add(self, writer: Writer) -> Writer:
        """Take in the writer of a job, in place of one of an earlier runner; return it. Where another thread was
        faster, return the writer of that one and close this one."""
        name = os.getpid(), writer.files.key
        # No lock, which a fork could copy while it is held: each step is one operation of a dict. A writer that is
        # closed by somebody else raises Sealed, and whoever uses it opens one again.
        while (there := self._open.setdefault(name, writer)) is not writer:
            if there.runner == writer.runner:
                writer.close()
                return there
            self.close(writer.files.key)
        return writer

    def close(self, key: str) -> None:
        """Close the one of a job, if there is one."""
        writer = self._open.pop((os.getpid(), key), None)
        if writer is not None:
            writer.close()

    def close_all(self) -> None:
        """Close those of this process."""
        for pid, key in list(self._open):
            if pid == os.getpid():
                self.close(key)
