"""Where prints go: the output of one job, and what a request in the foreground printed so far."""

import contextlib
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ..errors import JobCancelled
from ._files import OutputFile, collector

__all__ = ["ForegroundOutput", "JobOutput", "Output"]

_BATCH = 1024
_LARGE = 4096
_ROUNDS = 4
_YIELD_EVERY = 0.0005
_PIECE = 256 * 1024  # characters that become bytes at a time: a copy of what is larger would double its memory
_BACKLOG = 4 * 1024 * 1024
_LONGEST_WAIT = 1.0


class Output(Protocol):
    """What the stand-ins write to on behalf of the running code.

    Where *pending* is a list, a text may be appended to it instead of calling ``out`` or ``err``; then ``drain_soon``
    must be called if the text is large or the list holds *batch* of them. It saves a call for each print.
    """

    out: Callable[[str], int]
    err: Callable[[str], int]
    pending: list[str | bytes] | None
    batch: int

    @property
    def job(self) -> Any:
        """The running job whose output this is; None in the foreground and after its end."""

    def drain_soon(self) -> None:
        """Store what is pending. Never blocks."""

    def write_bytes(self, data: bytes, original: Callable[[bytes], int]) -> int:
        """Write to ``.buffer``."""

    def flush(self) -> None:
        """Make visible to children what is written so far."""

    def fileno(self) -> int | None:
        """A file descriptor of the output's own; None: it has none."""


class ForegroundOutput:
    """What the requests of one context print in the foreground, one request after the other.

    A print goes where it went. The first *limit* characters of a request are kept as well: they begin the output of
    the ``@background`` function that it may yet call. One object serves all requests of a server's thread: to make one
    for each would cost more than all else that a request pays.
    """

    job = None
    pending: list[str | bytes] | None = None
    batch = 1

    def __init__(self, out: Callable[[str], int], err: Callable[[str], int], limit: int = 65536) -> None:
        self.out = self._keeping(out)
        self.err = self._keeping(err)
        self._limit = self._room = limit
        self._thread = threading.get_ident()
        self.request: dict[str, Any] | None = None
        """The environ of the request that is being answered, as it was before the app saw it; None: there is none."""
        self.wish: Any = None
        """What a view of this request asked for."""
        self.is_used = False
        """Whether :meth:`end` has something to do after this request."""
        self.stdout: Any = None
        self.stderr: Any = None
        """``sys.stdout`` and ``sys.stderr`` as they were when the stand-ins were last known to be in place."""
        self._kept: list[str] = []

    def is_answering(self) -> bool:
        """Whether the calling thread answers a request of this output. A copied context may take it to others."""
        if self.request is None:
            return False
        return self._thread == threading.get_ident() or _runs_loop_for(self._thread)

    def _keeping(self, write: Callable[[str], int]) -> Callable[[str], int]:
        def keep(text: str) -> int:
            written = write(text)
            self._keep(text)
            return written

        return keep

    def _keep(self, text: str) -> None:
        if self._room > 0 and self.is_answering():
            self._kept.append(text[: self._room])
            self._room -= len(text)
            self.is_used = True

    def ask(self, wish: object) -> None:
        """Note what a view of this request asks for."""
        self.wish = wish
        self.is_used = True

    def end(self) -> None:
        """End the request: forget what was kept of it."""
        self.request = self.wish = None
        self._kept.clear()
        self._room = self._limit
        self.is_used = False

    @property
    def text(self) -> str:
        """All that was kept."""
        return "".join(self._kept)

    def write_bytes(self, data: bytes, original: Callable[[bytes], int]) -> int:
        written = original(data)
        if self._room > 0:
            self._keep(memoryview(data).tobytes()[: 4 * self._room].decode("utf-8", "backslashreplace"))
        return written

    def drain_soon(self) -> None:
        """Do nothing: nothing is ever pending."""

    def flush(self) -> None:
        """Do nothing: the stand-in flushes the original."""

    def fileno(self) -> int | None:
        return None


def _runs_loop_for(waiting: int) -> bool:
    """Whether the calling thread runs an event loop that the thread *waiting* waits for, as asgiref has it do for an
    asynchronous view of Flask: what happens here happens on behalf of that view's request."""
    arguments = getattr(threading.current_thread(), "_args", ())
    # A worker of a pool knows its pool from the start, the pool knows its worker a moment later.
    pool = arguments[0]() if arguments and isinstance(arguments[0], weakref.ref) else None
    if pool is None:
        return False
    frame = sys._current_frames().get(waiting)
    while frame is not None:
        if frame.f_globals.get("__name__") == "asgiref.sync" and frame.f_locals.get("loop_executor") is pool:
            return True
        frame = frame.f_back
    return False


class JobOutput:
    """The output of one job: any thread may write, nobody who writes waits for a reader.

    Whoever writes faster than *store* takes it waits for that: a backlog has bounds.

    A write appends to a list, which is atomic; every 1024 writes, or when a reader asks, the list becomes UTF-8 bytes
    and goes to *store*. After the job, what is written goes to where the stand-ins wrote before it: to *late_out* and
    *late_err*. *takes_children*: children of the job that were given no streams get this one. *tee* is given all that
    is stored too, soon after it is written.
    """

    def __init__(
        self,
        store: Callable[[bytes], None],
        late_out: Callable[[str], int],
        late_err: Callable[[str], int],
        *,
        job: object,
        takes_logging: bool = True,
        takes_children: bool = False,
        tee: Callable[[bytes], None] | None = None,
    ) -> None:
        self.job: Any = job
        self.takes_logging = takes_logging
        self.takes_children = takes_children
        self._store = store if tee is None else _both(store, tee)
        self._late = late_out, late_err
        # Guards the order in which things are stored, and the file. Its owner may come again, by a signal handler or a
        # __del__ in the midst of storing: _busy tells it so.
        self._lock = threading.RLock()
        self._busy = False
        self._pending: list[str | bytes] = []
        self._missed = 0  # about how much was written while somebody else stored; guarded by nothing: it is a guess
        self._yielded_at = 0.0
        self._thread = 0
        self._reason = ""
        self._due = False  # an interrupt is to be delivered
        self._children: dict[int, weakref.ref[subprocess.Popen[Any]]] = {}
        self._file: OutputFile | None = None
        self._is_shared = False  # others write to the file at any time: what is printed goes there line by line
        self._is_watched = False
        self.pending: list[str | bytes] | None = self._pending
        self._batch = _BATCH if tee is None else 1
        self.batch = self._batch
        self.out: Callable[[str], int] = self._write
        self.err: Callable[[str], int] = self._write

    def _write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self._pending.append(text)
        size = len(text)
        if size > _LARGE or len(self._pending) >= self.batch:
            self.drain_soon()
        return size

    def write_bytes(self, data: bytes, original: Callable[[bytes], int]) -> int:
        """Add bytes in order with the text; they need not be UTF-8."""
        if self.pending is None:
            if self.job is None:
                return original(data)
            self.out("")  # where an interrupt is delivered
        if not isinstance(data, bytes):
            data = memoryview(data).tobytes()
        self._pending.append(data)
        if len(data) > _LARGE or len(self._pending) >= self.batch:
            self.drain_soon()
        return len(data)

    def drain_soon(self) -> None:
        """Store what is pending, unless somebody is at it; wait a little for them where the backlog is long."""
        if self.batch == 1 and self.job is not None and not self._ends_line():
            return  # a print is two writes; readers take lines, as from a terminal, and what is flushed
        if self._is_shared:
            self._store_soon(patience=-1, collecting=self._is_watched)
        else:
            self._store_soon(patience=None)

    def store_soon(self) -> None:
        """Store what was written so far, unless somebody is at it. Never blocks."""
        self._store_soon()

    def _store_soon(self, *, patience: float | None = 0, collecting: bool = True) -> None:
        """Store what is pending, when the lock is free within *patience* seconds: -1 for ever, None as the backlog
        asks for."""
        # Who holds the lock looks again when it has given it back: what came meanwhile found it taken. A few times
        # only, or it might work for the other writers for ever. That is enough: 1. each round stored something; 2. so
        # it woke the readers, and they drain themselves before they sleep.
        for _ in range(_ROUNDS):
            if not self._acquire(patience):
                break
            try:
                if self._busy:
                    return  # further down this very stack
                self._drain(collecting)
            finally:
                self._lock.release()
            if len(self._pending) < self.batch:
                break
        # A job that prints without pause would leave the other threads a turn every 5 ms only.
        now = time.monotonic()
        if now - self._yielded_at > _YIELD_EVERY:
            time.sleep(0)
            self._yielded_at = time.monotonic()

    def _acquire(self, patience: float | None) -> bool:
        if patience is not None:
            return self._lock.acquire(timeout=patience)
        if self._lock.acquire(blocking=False):
            return True
        with contextlib.suppress(IndexError):  # somebody stored it just now
            self._missed += len(self._pending[-1])
        if self._missed < _BACKLOG and len(self._pending) < 8 * _BATCH:
            return False
        # Not for ever: a __del__ may write while its thread holds a lock that who stores needs.
        return self._lock.acquire(timeout=_LONGEST_WAIT)

    def _ends_line(self) -> bool:
        try:
            last = self._pending[-1]
        except IndexError:  # somebody stored it already
            return False
        return len(last) > _LARGE or (last[-1:] in ("\n", "\r", b"\n", b"\r") or last[:1] in ("\r", b"\r"))

    def _drain(self, collecting: bool = True) -> None:
        """Store what is pending; where it goes through a file first, leave it there unless *collecting*."""
        if self._busy:
            return
        self._busy = True
        try:
            file = self._file  # taken once: whoever interrupts us here may ask for it
            batch = self._pending[:]
            if batch:
                del self._pending[: len(batch)]
                self._missed = 0
                for data in _pieces(batch):
                    if file is None:
                        self._store(data)
                        continue
                    rest = file.append(data)  # behind what children wrote so far
                    if rest or file.backlog > _BACKLOG:
                        file.collect(self._store)
                    if rest:  # the system had no room for it
                        self._store(rest)
            if file is not None and collecting:
                file.collect(self._store)
        finally:
            self._busy = False

    def _look_again(self) -> None:
        """To be called by who held the lock: a writer that came meanwhile could not store."""
        if len(self._pending) >= self.batch:
            self.drain_soon()

    def flush(self) -> None:
        """Put what is written into the file that children write to, if there is one; show it to who is waiting."""
        if self._file is not None or self.batch == 1:
            self._store_soon(patience=-1 if self._is_shared else 0)

    def fileno(self) -> int | None:
        """Return a descriptor that appends to this output, for children; the first call makes it."""
        return self._open_file(None)

    def share(self, number: int) -> None:
        """Use the file *number*, an empty one, for this output: somebody else reads it, and others of this process
        write to it. From now on each line that is printed is in it when the print returns, and so comes in order with
        what they write. To be called before anything is written."""
        self._is_shared = True
        self.batch = 1
        self._open_file(number)

    def _open_file(self, number: int | None) -> int | None:
        with self._lock:
            if self.job is None:
                return None
            self._drain()
            file = self._file
            if file is None:
                file = self._file = OutputFile(number)
                collector.add(self)
        self._look_again()
        return file.number

    def drain(self, patience: float = 0.0) -> None:
        """Store all that was written so far. Waits *patience* seconds for a drain under way, and leaves it to that."""
        if self._lock.acquire(timeout=patience):
            try:
                self._drain()
            finally:
                self._lock.release()
            self._look_again()

    def watch(self, watched: bool) -> None:
        """Store each write at once (*watched*), or in batches."""
        if self.job is not None:
            self._is_watched = watched
            self.batch = 1 if watched or self._is_shared else self._batch

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Store nothing meanwhile. To be held by the job's own thread when it calls its registry: else a ``__del__``
        that prints in the midst of that call would call the registry again and wait for itself."""
        try:
            with self._lock:
                busy, self._busy = self._busy, True
                try:
                    yield
                finally:
                    self._busy = busy
        finally:
            self._look_again()

    def adopt(self, child: "subprocess.Popen[Any]") -> None:
        """Terminate *child*, which was given this output, when the job is interrupted."""
        number = id(child)
        self._children[number] = weakref.ref(child, lambda _: self._children.pop(number, None))
        # Here as in interrupt(), first the one's own mark, then a look at the other's: one of the two sees both.
        if self._reason and (self._due or not _is_stopping()):
            child.terminate()

    def begin(self) -> None:
        """Say that the calling thread is the job's own: the one to interrupt."""
        self._thread = threading.get_ident()

    @property
    def is_interrupted(self) -> bool:
        """Whether it was interrupted once."""
        return bool(self._reason)

    def interrupt(self, reason: str) -> None:
        """Make the next print of the job's own thread raise ``JobCancelled``; terminate its children. Each later one
        does, too, unless the code is about to stop: what swallows the exception and goes on is told again."""
        if self._reason or self.job is None:
            return
        self._reason = reason
        self._due = True
        # Swapping the function costs nothing until it is used.
        self.out = self.err = self._write_or_raise
        self.pending = None
        for reference in list(self._children.values()):
            child = reference()
            if child is not None:
                with contextlib.suppress(Exception):  # of a subclass of Popen, too: a cancel goes on
                    child.terminate()

    def note(self, text: str) -> None:
        """Write on behalf of the runner: a pending interrupt is not delivered here."""
        self._write(text)

    def check(self) -> None:
        """Raise ``JobCancelled`` if the job was interrupted, and this is its own thread; not while it stops."""
        # A helper thread must not die of it. And clean-up code may print: it runs while the exception is handled.
        is_told = self._reason and self.job is not None and threading.get_ident() == self._thread
        if is_told and (self._due or not _is_stopping()):
            self._due = False
            raise JobCancelled(self._reason)

    def _write_or_raise(self, text: str) -> int:
        if self.job is None:  # it ended while it was interrupted
            self.out, self.err = self._late
            return self.out(text)
        self.check()
        return self._write(text)

    def end(self) -> None:
        """Store the rest. What is written from here on goes to where the stand-ins wrote before the job."""
        with self._lock:
            # The job's end is seen by all who still hold this output (threads, contexts), so it must not keep the job.
            self.job = None
            self._due = False
            self.pending = None
            self.out, self.err = self._late
            # A writer that took the list just before now finds that it must store its text itself.
            self.batch = 1
            try:
                self._drain()
                if self._file is not None:
                    self._file.close(self._store)
            finally:
                self._file = None
                self._store = self._store_late
        self._look_again()

    def _store_late(self, data: bytes) -> None:
        self._late[0](data.decode("utf-8", "backslashreplace"))

    def after_fork(self) -> None:
        """In a forked child: put each write into the shared file at once, since nobody will drain this copy."""
        self._lock = threading.RLock()
        self._busy = self._due = False
        self._pending.clear()  # it is the parent's, which still has it
        self.batch = 1
        self.pending = self._pending
        self.out = self.err = self._write
        self._store = self._store_late  # the registry's locks are as other threads left them
        if self._file is not None:
            self._file.is_parents = True


def _both(store: Callable[[bytes], None], tee: Callable[[bytes], None]) -> Callable[[bytes], None]:
    def store_and_tee(data: bytes) -> None:
        store(data)
        tee(data)

    return store_and_tee


def _is_stopping() -> bool:
    """Whether the calling code handles a ``JobCancelled``, or what was raised meanwhile: ``finally`` and ``except``."""
    error = sys.exc_info()[1]
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, JobCancelled):
            return True
        seen.add(id(error))
        error = error.__context__
    return False


def _pieces(batch: list[str | bytes]) -> Iterator[bytes]:
    """Yield what was written as bytes; what is large in pieces, one at a time."""
    large = batch.pop() if len(batch[-1]) > _PIECE else ""  # who writes so much has it stored at once: it is the last
    text: str | bytes
    try:
        text = "".join(batch)  # type: ignore[arg-type]
    except TypeError:  # some writes went to .buffer
        text = b"".join(map(_encoded, batch))
    for whole in (text, large):
        for begin in range(0, len(whole), _PIECE):
            yield _encoded(whole[begin : begin + _PIECE])


def _encoded(part: str | bytes) -> bytes:
    return part if isinstance(part, bytes) else part.encode("utf-8", "backslashreplace")
