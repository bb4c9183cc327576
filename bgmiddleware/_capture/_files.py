"""What the output of a job in a process of its own goes through: a file that survives the process, and a pipe for all
that is not printed by our stand-ins."""

import array
import contextlib
import ctypes
import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ._pipes import ChildPipe, enlarge, read_late, waiting_in

try:
    import fcntl
except ImportError:  # Windows has no executor with processes
    fcntl = None  # type: ignore[assignment]

__all__ = ["Outlet", "OutputFile"]

_COLLECT_BYTES = 256 * 1024
_PUNCH_BYTES = 1024 * 1024
_PUNCH_BEHIND = 2 * 1024 * 1024  # more than may be collected and not be in the registry yet
_PIPE = ".pipe"
_PIPE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Outlet:
    """Where the output of a job goes first that another process runs: made by who looks after that process, and can
    read there what it printed before it died.

    *file*: a descriptor of an empty file, which has all of the output in the end. *reader*, *writer*: the ends of a
    pipe, which is the process's file 1 and 2; the process moves to the file what comes through it. Negative: they are
    not this process's business.
    """

    file: int
    reader: int
    writer: int = -1

    @classmethod
    def open(cls) -> "Outlet":
        """Make one: a file without a name, and a pipe with much room."""
        reader, writer = os.pipe()
        enlarge(reader, _PIPE_BYTES)
        os.set_blocking(reader, False)
        return cls(open_output_file(), reader, writer)

    @classmethod
    def make_at(cls, path: str) -> "Outlet":
        """Make one with names, at *path*, for who looks after this process; or take the one that is there."""
        cls.name_at(path)
        file = os.open(path, os.O_RDWR | os.O_APPEND)
        reader = os.open(path + _PIPE, os.O_RDONLY | os.O_NONBLOCK)
        enlarge(reader, _PIPE_BYTES)
        return cls(file, reader, os.open(path + _PIPE, os.O_WRONLY))

    @staticmethod
    def name_at(path: str) -> None:
        """Make the names of one at *path*, if they are not there: the process that is to use it, or who looks after
        that process, whichever comes first."""
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        with contextlib.suppress(FileExistsError):
            os.mkfifo(path + _PIPE, 0o600)

    @classmethod
    def find_at(cls, path: str) -> "Outlet":
        """Open the one at *path*, to read it. Raises ``FileNotFoundError``."""
        reader = os.open(path + _PIPE, os.O_RDONLY | os.O_NONBLOCK)  # made last
        try:
            return cls(os.open(path, os.O_RDWR | os.O_APPEND), reader)
        except FileNotFoundError:
            os.close(reader)
            raise

    @staticmethod
    def remove_at(path: str) -> None:
        """Remove its names, whoever has it open. Does nothing if they are gone."""
        for name in (path, path + _PIPE):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)

    @staticmethod
    def is_pipe(path: str) -> bool:
        """Whether *path* is the second name of one."""
        return path.endswith(_PIPE)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The descriptors, to be sent to another process: there they make an outlet again."""
        return tuple(number for number in (self.file, self.reader, self.writer) if number >= 0)

    def close(self) -> None:
        for number in self.numbers:
            os.close(number)

    def without_writer(self) -> "Outlet":
        """Let go of the writing end, which another process has now: else the pipe would never end."""
        if self.writer >= 0:
            os.close(self.writer)
        return Outlet(self.file, self.reader)

    def relieve(self) -> bool:
        """Move to the file what the pipe holds, if that is much: then the process does not read it, since C code of
        its own lets no thread run. Return whether it was so."""
        if waiting_in(self.reader, array.array("i", [0])) < _PIPE_BYTES // 4:
            return False
        self.move(waiting=False)
        return True

    def move(self, *, waiting: bool = True) -> None:
        """Move to the file what the pipe holds. Another process may be at it: *waiting* for that."""
        if waiting_in(self.reader, array.array("i", [0])):
            with contextlib.suppress(BlockingIOError), _locked(self.file, waiting):
                _move(self.reader, self.file)

    def end(self, write: Callable[[str], Any]) -> None:
        """Let go of the file. What is still written to the pipe goes to *write*."""
        os.close(self.file)
        if self.writer >= 0:
            os.close(self.writer)
        read_late(self.reader, write)


class OutputFile:
    """The file of an :class:`Outlet`, in the process that runs the job: what is in it is moved to the job's output."""

    def __init__(self, outlet: Outlet) -> None:
        self._number = os.dup(outlet.file)
        self.pipe = ChildPipe((outlet.reader, outlet.writer))
        self.backlog = 0
        """Bytes that this process added and that were not collected since."""
        self._collected = 0
        self._punched = 0

    @property
    def end(self) -> int:
        """Where what this process added last ends."""
        return os.lseek(self._number, 0, os.SEEK_CUR)

    def append(self, data: bytes) -> bytes:
        """Add *data* behind what came through the pipe so far; return what the system has no room for."""
        if self.pipe.has_more():
            self.move()
        rest = _write(self._number, data)
        self.backlog += len(data) - len(rest)
        return rest

    def move(self) -> None:
        """Move to the file what the pipe holds."""
        with _locked(self._number):
            self.pipe.moved += _move(self.pipe.reader, self._number)

    def collect(self, store: Callable[[bytes], None]) -> None:
        """Move to *store* what was added since the last time, and give its space back.

        What is added meanwhile waits for the next time: a child may write faster than we read.
        """
        self.move()
        self.backlog = 0
        end = os.fstat(self._number).st_size
        while self._collected < end:
            data = os.pread(self._number, min(_COLLECT_BYTES, end - self._collected), self._collected)
            if not data:
                break  # somebody truncated it
            self._collected += len(data)
            store(data)
            until = self._collected - _PUNCH_BEHIND
            if until - self._punched >= _PUNCH_BYTES:
                # From the page where the last hole ended: it was freed in part only.
                begin = self._punched & -4096
                _give_back(self._number, begin, until - begin)
                self._punched = until

    def close(self, store: Callable[[bytes], None]) -> None:
        """Collect the rest. Who made the outlet reads what comes after it."""
        self.collect(store)
        os.close(self.pipe.close())
        os.close(self._number)


def _move(reader: int, file: int) -> int:
    """Move what a pipe holds now behind the end of *file*; return how much that was."""
    left = moved = waiting_in(reader, array.array("i", [0]))
    with contextlib.suppress(OSError, AttributeError), _without_append(file) as number:
        # Within the system: were it read and then written, a kill between the two would lose it.
        while left > 0 and (size := os.splice(reader, number, left, offset_dst=os.fstat(number).st_size)):
            left -= size
    with contextlib.suppress(BlockingIOError):  # somebody else read it
        while left > 0 and (data := os.read(reader, left)):
            left -= len(data)
            _write(file, data)
    return moved - left


@contextlib.contextmanager
def _without_append(file: int) -> Iterator[int]:
    """Open *file* once more, to write anywhere in it: what appends cannot be spliced to."""
    number = os.open(f"/proc/self/fd/{file}", os.O_RDWR)
    try:
        yield number
    finally:
        os.close(number)


def _write(number: int, data: bytes) -> bytes:
    """Write *data*; return what the system has no room for."""
    at = 0
    try:
        while at < len(data):
            at += os.write(number, memoryview(data)[at:])
    except OSError:
        return data[at:]
    return b""


@contextlib.contextmanager
def _locked(number: int, waiting: bool = True) -> Iterator[None]:
    """Keep other processes from moving meanwhile. Raises ``BlockingIOError`` if one does so and it is not to *wait*."""
    fcntl.lockf(number, fcntl.LOCK_EX | (0 if waiting else fcntl.LOCK_NB))
    try:
        yield
    finally:
        fcntl.lockf(number, fcntl.LOCK_UN)


def open_output_file() -> int:
    """Return a descriptor of a new file without a name, which writes at its end."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("bgmiddleware-output", os.MFD_CLOEXEC)
        fcntl.fcntl(number, fcntl.F_SETFL, os.O_APPEND)
        return number
    with tempfile.NamedTemporaryFile(prefix="bgmiddleware-") as file:
        return os.open(file.name, os.O_RDWR | os.O_APPEND)


_FALLOC_FL_KEEP_SIZE_AND_PUNCH_HOLE = 3


def _give_back(number: int, offset: int, size: int) -> None:
    """Free the space of a range of a file without changing its offsets (Linux; elsewhere it stays)."""
    fallocate = _fallocate()
    if fallocate is not None:
        fallocate(number, _FALLOC_FL_KEEP_SIZE_AND_PUNCH_HOLE, ctypes.c_long(offset), ctypes.c_long(size))


@functools.cache
def _fallocate() -> Any:
    try:
        return ctypes.CDLL(None).fallocate
    except (AttributeError, OSError, TypeError):
        return None
