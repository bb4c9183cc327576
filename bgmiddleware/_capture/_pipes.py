"""Pipes that children of jobs print to, and the thread that reads them.

A pipe, and not a file, because that is what programs expect of a stdout: ``> /dev/stderr`` opens it once more and
truncates nothing, ``tee /dev/stderr`` works, and who writes when the job has ended gets no error.
"""

import array
import codecs
import contextlib
import logging
import os
import select
import threading
import time
import weakref
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol

try:
    import fcntl
    import termios
except ImportError:  # Windows: a job has no number of its own there
    fcntl = None  # type: ignore[assignment]
else:
    _ioctl, _FIONREAD = fcntl.ioctl, termios.FIONREAD

__all__ = ["HAS_PIPES", "ChildPipe", "after_fork", "collector", "enlarge", "identity", "read_late", "waiting_in"]

HAS_PIPES = fcntl is not None
"""Whether this system lets one ask how much a pipe holds."""

_log = logging.getLogger("bgmiddleware")

_READ_BYTES = 256 * 1024
_LARGE_PIPE = 256 * 1024
_GATHER = 0.005
_MUCH = 4096
_FAR = 200  # from the numbers that open() gives: who closes ours has not the next file there
_F_SETPIPE_SZ = 1031


class ChildPipe:
    """What children of a job are given as their stdout: they write to it, and this process reads it.

    The numbers that user code is given are duplicates, which we use for nothing: it may close them, and the system may
    then give them to somebody else. *ends*: those of a pipe that another process made; they are duplicated.
    """

    def __init__(self, ends: tuple[int, int] | None = None) -> None:
        self.reader, self._writer = os.pipe() if ends is None else (os.dup(ends[0]), os.dup(ends[1]))
        self._size = array.array("i", [0])
        self._is_large = ends is not None
        self._identity = identity(self._writer)
        self._public: dict[str, int] = {}
        self._put_there: dict[int, tuple[int, int] | None] = {}  # what the job let one of these stand for
        self.moved = 0
        """How many bytes were read from it."""
        os.set_blocking(self.reader, False)
        _open_pipes.add(self)

    def number(self, name: str) -> int:
        """Return the number that user code uses for the stream *name*: the same one, as long as it is this pipe."""
        number = self._public.get(name)
        if number is None or not self.is_given(number):
            number = self._public[name] = _reopened(self._writer)
        return number

    def is_given(self, number: int) -> bool:
        """Whether user code was given *number*, and has neither closed it nor lost it to somebody else."""
        what = identity(number)
        known = self._identity, self._put_there.get(number)
        return number in self._public.values() and what is not None and what in known

    def note_redirected(self, number: int) -> None:
        """Take note that the job has let *number*, which it was given, stand for something else: it is still the job's,
        and closed at its end."""
        self._put_there[number] = identity(number)

    def has_more(self) -> bool:
        """Whether there is something to read. Each print of a job with a pipe asks."""
        size = self._size
        try:
            _ioctl(self.reader, _FIONREAD, size)
        except (OSError, ValueError):  # it is closed
            return False
        return size[0] > 0

    def append(self, data: bytes) -> None:
        """Write *data*; wait until there is room. Drop it where nobody reads any more."""
        at = 0
        while at < len(data):
            try:
                at += os.write(self._writer, memoryview(data)[at:])
            except BlockingIOError:  # somebody who shares it asked for writes that do not wait
                poll = select.poll()
                poll.register(self._writer, select.POLLOUT)
                poll.poll()
            except OSError:
                return

    def collect(self, store: Callable[[bytes], None]) -> None:
        """Move to *store* what the pipe holds now. What is written meanwhile waits for the next time: a child may
        write faster than we read."""
        left = waiting_in(self.reader, self._size)
        if left >= 65536 and not self._is_large:
            self._is_large = True
            enlarge(self.reader, _LARGE_PIPE)
        while left > 0:
            try:
                data = os.read(self.reader, min(left, _READ_BYTES))
            except OSError:  # somebody else read it
                break
            if not data:
                break
            left -= len(data)
            self.moved += len(data)
            store(data)

    def close(self) -> int:
        """Write no more; return the reading end, of which the caller takes care."""
        for number in self._public.values():
            if not _close_if(number, self._identity) and self._put_there.get(number) is not None:
                _close_if(number, self._put_there[number])
        self._public.clear()
        reader, self.reader = self.reader, -1
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1
        return reader

    def after_fork(self, is_used: bool) -> None:
        """In a forked child: leave reading to the parent; keep the writing end if the child is the job's (*is_used*).
        Else the pipe would never end, or fill up with nobody to read it."""
        if is_used:
            reader, self.reader = self.reader, -1
        else:
            reader = self.close()
        if reader >= 0:
            os.close(reader)


_open_pipes: "weakref.WeakSet[ChildPipe | _LatePipe]" = weakref.WeakSet()


def identity(number: int) -> tuple[int, int] | None:
    """Return what a descriptor stands for, as the system tells files apart; None: it is closed."""
    try:
        status = os.fstat(number)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _close_if(number: int, what: tuple[int, int] | None) -> bool:
    """Close *number* if it is still what it was: user code may have closed it, and others have it now."""
    is_same = identity(number) == what
    if is_same:
        with contextlib.suppress(OSError):
            os.close(number)
    return is_same


def _reopened(number: int) -> int:
    """Return another number for the same pipe. Opened once more where the system can do that: then nobody who asks for
    writes that do not wait has others not wait, too."""
    try:
        opened = os.open(f"/proc/self/fd/{number}", os.O_WRONLY)
    except OSError:
        opened = os.dup(number)
    try:
        far = fcntl.fcntl(opened, fcntl.F_DUPFD_CLOEXEC, _FAR)
    except OSError:  # so many are not allowed
        return opened
    os.close(opened)
    return far


def waiting_in(reader: int, size: "array.array[int]") -> int:
    """Return how many bytes a pipe holds; 0 where it is closed. *size*: room for the answer."""
    try:
        _ioctl(reader, _FIONREAD, size)
    except (OSError, ValueError):
        return 0
    return size[0]


def enlarge(pipe: int, size: int) -> None:
    """Give a pipe more room, where the system has a call for it and grants it."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(pipe, _F_SETPIPE_SZ, size)


class _Source(Protocol):
    """What the collector reads."""

    @property
    def reader(self) -> int:
        """The number to wait for; negative when it is over."""

    def collect(self) -> int:
        """Move what there is; return how many bytes that was. Any thread may call, at any time."""


class _Collector:
    """One thread that reads the pipes that children of jobs write to, while there are any."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew; in a forked child, where the thread is not, and the lock may be held by nobody."""
        self._lock = threading.RLock()  # guards the next two; a __del__ in the midst of it may ask for a pipe, too
        self._sources: set[_Source] = set()
        self._runs = False
        self._bell: tuple[int, int] | None = None

    def after_fork(self) -> None:
        bell = self._bell
        self.reset()
        for number in bell or ():
            os.close(number)

    def add(self, source: _Source) -> None:
        """Read *source* from now on."""
        with self._lock:
            self._sources.add(source)
            if self._bell is None:
                self._bell = os.pipe()
                os.set_blocking(self._bell[1], False)
            with contextlib.suppress(BlockingIOError):  # it has been rung
                os.write(self._bell[1], b"x")
            if self._runs:
                return
            self._runs = True
        thread = threading.Thread(target=self._run, name="bgmiddleware-collect", daemon=True)
        try:
            Context().run(thread.start)  # in an empty context: it is nobody's child
        except RuntimeError:  # no room for a thread, or the process ends: the job collects when it drains
            with self._lock:
                self._runs = False

    def _run(self) -> None:
        while (ready := self._wait()) is not None:
            moved = 0
            for source in ready:
                try:
                    moved += source.collect()
                except Exception:  # the other jobs need their output
                    _log.exception("the output of a job could not be collected")
            if moved < _MUCH:  # who prints line by line shall not wake us for each
                time.sleep(_GATHER)

    def _wait(self) -> list[_Source] | None:
        """Wait until there is something to read; return where, or None where there is nothing to wait for."""
        poll = select.poll()
        with self._lock:
            sources = {source.reader: source for source in self._sources}
            sources.pop(-1, None)
            self._sources = set(sources.values())
            if not sources:
                self._runs = False
                return None
            bell = self._bell
        assert bell is not None  # noqa: S101  # there was a source
        for number in (bell[0], *sources):
            poll.register(number, select.POLLIN)
        ready = [number for number, _ in poll.poll()]
        if bell[0] in ready:
            os.read(bell[0], 4096)
        return [sources[number] for number in ready if number in sources]

    def ring(self) -> None:
        """Look again at what there is to wait for: a source is over."""
        with self._lock:
            if self._bell is not None:
                with contextlib.suppress(BlockingIOError):
                    os.write(self._bell[1], b"x")


collector = _Collector()


class _LatePipe:
    """The pipe of a job that has ended, while it still has writers: what they write goes to the server."""

    def __init__(self, reader: int, write: Callable[[str], Any]) -> None:
        self.reader = reader
        self._write = write
        self._decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode
        _open_pipes.add(self)

    def collect(self) -> int:
        try:
            data = os.read(self.reader, _READ_BYTES)
        except BlockingIOError:
            return 0
        text = self._decode(data, not data)
        if not data:
            reader, self.reader = self.reader, -1
            os.close(reader)
        if text:
            with contextlib.suppress(Exception):  # the server has nowhere to print to: nobody else shall suffer
                self._write(text)
        return len(data)

    def after_fork(self, is_used: bool) -> None:
        """In a forked child: leave it to the parent."""
        reader, self.reader = self.reader, -1
        if reader >= 0:
            os.close(reader)


def read_late(reader: int, write: Callable[[str], Any]) -> None:
    """Give what is written to a pipe from now on to *write*, until its last writer is gone; then close *reader*."""
    late = _LatePipe(reader, write)
    late.collect()
    if late.reader >= 0:  # mostly there is nobody any more
        collector.add(late)


def after_fork(used: ChildPipe | None) -> None:
    """In a forked child: leave the pipes to the parent. *used*: the one of the job that the child belongs to."""
    collector.after_fork()
    for pipe in list(_open_pipes):
        pipe.after_fork(pipe is used)
