"""Where the prints of a job go: its output."""

import contextlib
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from .._ground.redaction import Redaction, Redactor
from ..errors import JobCancelled
from ._files import Outlet, OutputFile
from ._pieces import ErrorRanges, ErrorText, both, decoded, pieces_of, runs_of
from ._pipes import HAS_PIPES, ChildPipe, after_fork, collector, identity, read_late

__all__ = ["LARGE", "JobOutput", "Output", "pass_on"]

_BATCH = 1024
LARGE = 4096
"""Characters of a write that is stored at once."""
_ROUNDS = 4
_YIELD_EVERY = 0.0005
_BACKLOG = 4 * 1024 * 1024
_LONGEST_WAIT = 1.0


class Output(Protocol):
    """What the stand-ins write to on behalf of the running code.

    Where *pending* is a list, a text may be appended to it instead of calling ``out`` or ``err``; then ``drain_soon``
    must be called if the text is large or the list holds *batch* of them. It saves a call for each write. *printer* is
    what ``print`` calls, for good: it does as it is at the time.
    """

    out: Callable[[str], int]
    err: Callable[[str], int]
    printer: Callable[[str], int]
    pending: list[str | bytes] | None
    batch: int

    @property
    def assigned(self) -> dict[str, Any]:
        """What the job has put into ``sys``, by name."""

    @property
    def job(self) -> Any:
        """The running job whose output this is; None in the foreground and after its end."""

    def assign(self, name: str, stream: Any) -> None:
        """Let *stream* be what ``sys`` has by *name*, for the job alone."""

    def unassign(self, name: str) -> None:
        """Let it be the stand-in again."""

    def drain_soon(self) -> None:
        """Store what is pending. Never blocks."""

    def write_bytes(self, data: bytes, original: Callable[[bytes], int]) -> int:
        """Write to ``.buffer``."""

    def flush(self) -> None:
        """Make visible to children what is written so far."""

    def fileno(self, name: str = "stdout") -> int | None:
        """A file descriptor of the output's own for the stream *name*; None: it has none."""


class JobOutput:
    """The output of one job: any thread may write, nobody who writes waits for a reader.

    Whoever writes faster than *store* takes it waits for that: a backlog has bounds.

    A write appends to a list, which is atomic; every 1024 writes, or when a reader asks, the list becomes UTF-8 bytes
    and goes to *store*. After the job, what is written goes to where the stand-ins wrote before it: to *late_out* and
    *late_err*. *takes_children*: children of the job that were given no streams get this one. *tee* is given all that
    is stored too, soon after it is written. *read_line* gives what the job reads from ``sys.stdin``; None: that is at
    its end. *redaction*: what neither *store* nor *tee* is given.
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
        redaction: Redaction | None = None,
        read_line: Callable[[], str] | None = None,
    ) -> None:
        self.job: Any = job
        self.read_line = read_line
        self.takes_logging = takes_logging
        self.takes_children = takes_children
        self._store = store if tee is None else both(store, tee)
        self._stored = 0  # bytes
        self.errors = ErrorRanges() if redaction is None else None
        """Which bytes came on stderr, of those that this process wrote; None where redaction shifts them."""
        self._marking = threading.RLock()  # guards the next, and a text of stderr until it is pending
        self._has_errors = False  # among what is pending
        self._redactor: Redactor | None = None
        if redaction is not None:
            self._redactor = redaction.stream(self._store)
            self._store = self._redactor.store
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
        self._pipe: ChildPipe | None = None  # from the first question for a number on
        self._file: OutputFile | None = None  # all goes through it, line by line: see share()
        self._is_forked = False  # a forked child's copy: then it only writes, its parent stores
        self._stdout: tuple[int, int] | None = None
        self._is_watched = False
        self.assigned: dict[str, Any] = {}
        """What the job has put into ``sys``, by name: ``stdin``, ``stdout``, ``stderr``."""
        self._batch = _BATCH if tee is None else 1
        self.batch = self._batch
        self.printer, self._adapt = _printer(self._pending)
        self._choosing = threading.RLock()  # guards what follows from the state, which several threads change
        self._choose_writers()

    def _choose_writers(self) -> None:
        """Let the stand-ins do as it is now. What is seldom the case costs the usual print nothing."""
        with self._choosing:
            self.pending: list[str | bytes] | None = None
            if self.job is None:
                self.out, self.err = self._late
                self._adapt(pass_on, sys.maxsize, _do_nothing)
                return
            if self._reason:
                self.out = self._write_or_raise
            elif self._pipe is not None and self._file is None:
                self.out = self._write_in_order
            else:
                self.out = self._write
                self.pending = self._pending
            self.err = self._write_error
            if "stdout" in self.assigned:
                self._adapt(pass_on, sys.maxsize, _do_nothing)
            elif self.pending is None:
                self._adapt(self.out, sys.maxsize, _do_nothing)
            else:
                self._adapt(self._pending.append, self.batch, self.drain_soon)

    def assign(self, name: str, stream: Any) -> None:
        """Let *stream* be what ``sys`` has by *name*, for this job alone."""
        self.assigned[name] = stream
        self._choose_writers()

    def unassign(self, name: str) -> None:
        """Let it be the stand-in again."""
        self.assigned.pop(name, None)
        self._choose_writers()

    def flush_assigned(self) -> None:
        """At the end of the job, and still within it: let the streams that it has put into ``sys`` give what they hold
        back, as Python does at the end of a script; then forget them."""
        if not self.assigned:
            return
        for stream in self.assigned.values():
            with contextlib.suppress(Exception, JobCancelled):  # closed, or somebody's own
                stream.flush()
        self.assigned.clear()
        self._choose_writers()

    def _write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if text.__class__ is ErrorText:
            with self._marking:
                self._has_errors = True
                self._pending.append(text)
        else:
            self._pending.append(text)
        size = len(text)
        if size > LARGE or len(self._pending) >= self.batch:
            self.drain_soon()
        return size

    def _write_error(self, text: str) -> int:
        return self.out(ErrorText(text) if isinstance(text, str) else text)

    def write_bytes(self, data: bytes, original: Callable[[bytes], int]) -> int:
        """Add bytes in order with the text; they need not be UTF-8."""
        if self.pending is None:
            if self.job is None:
                return original(data)
            self.out("")  # where an interrupt is delivered
        if not isinstance(data, bytes):
            data = memoryview(data).tobytes()
        self._pending.append(data)
        if len(data) > LARGE or len(self._pending) >= self.batch:
            self.drain_soon()
        return len(data)

    def drain_soon(self) -> None:
        """Store what is pending, unless somebody is at it; wait a little for them where the backlog is long."""
        if self.batch == 1 and self.job is not None and not self._ends_line():
            return  # a print is two writes; readers take lines, as from a terminal, and what is flushed
        if self._file is not None:
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
        return len(last) > LARGE or (last[-1:] in ("\n", "\r", b"\n", b"\r") or last[:1] in ("\r", b"\r"))

    def _write_in_order(self, text: str) -> int:
        if text != "\n":  # the end of a print, whose begin has looked
            pipe = self._pipe
            if pipe is not None and not self._is_forked and pipe.has_more():
                self._store_soon(patience=_LONGEST_WAIT)  # what children wrote before this
        return self._write(text)

    def _drain(self, collecting: bool = True) -> None:
        """Store what is pending; where it goes through a file first, leave it there unless *collecting*."""
        if self._busy:
            return
        self._busy = True
        try:
            file, pipe = self._file, self._pipe  # taken once: whoever interrupts us here may ask for one
            with self._marking:
                has_errors, self._has_errors = self._has_errors, False
                batch = self._pending[:]
                del self._pending[: len(batch)]
            if batch:
                self._missed = 0
                if has_errors:
                    self._put_runs(batch, file, pipe)
                else:
                    for data in pieces_of(batch):
                        self._put(data, file, pipe)
            if self._is_forked:
                return
            if pipe is not None and file is None:
                pipe.collect(self._keep)  # a print looks before, so that all of this came after what was pending
            elif file is not None and collecting:
                file.collect(self._keep)
        finally:
            self._busy = False

    def _put_runs(self, batch: list[str | bytes], file: OutputFile | None, pipe: ChildPipe | None) -> None:
        for is_error, run in runs_of(batch):
            for data in pieces_of(run):
                self._put(data, file, pipe)
                end = self._stored if file is None else file.end
                if is_error and self.errors is not None and not self._is_forked:
                    self.errors.add(end - len(data), end)

    def _keep(self, data: bytes) -> None:
        self._stored += len(data)
        self._store(data)

    def _put(self, data: bytes, file: OutputFile | None, pipe: ChildPipe | None) -> None:
        if self._is_forked and self._has_own_stdout():
            with contextlib.suppress(OSError):
                os.write(1, data)
        elif self._is_forked and pipe is not None:
            pipe.append(data)
        elif file is None:
            self._keep(data)
        else:
            rest = file.append(data)  # behind what children wrote so far
            if (rest or file.backlog > _BACKLOG) and not self._is_forked:
                file.collect(self._keep)
            if rest:  # the system had no room for it
                self._keep(rest)

    def _look_again(self) -> None:
        """To be called by who held the lock: a writer that came meanwhile could not store."""
        if len(self._pending) >= self.batch:
            self.drain_soon()

    def flush(self) -> None:
        """Store what is written before children write more, if there are any; show it to who is waiting."""
        if self._pipe is not None or self.batch == 1:
            self._store_soon(patience=0 if self._file is None else -1)

    def fileno(self, name: str = "stdout") -> int | None:
        """Return a descriptor that writes to this output, for children and for who asks; the first call makes a pipe.

        We use it for nothing else, so it may be closed, or be made to stand for something else.
        """
        if self._is_forked and self._has_own_stdout():
            return 2 if name == "stderr" else 1
        with self._lock:
            if self.job is None or not HAS_PIPES:
                return None
            self._drain()
            if self._pipe is None:
                self._pipe = ChildPipe()
                self._choose_writers()
                collector.add(self)
            number = self._pipe.number(name)
        self._look_again()
        return number

    def pipe_of(self, number: int) -> ChildPipe | None:
        """Return the pipe whose descriptor *number* the job was given; None: it is none of ours."""
        pipe = self._pipe
        return pipe if pipe is not None and pipe.is_given(number) else None

    @property
    def has_descriptors(self) -> bool:
        """Whether file descriptors 1 and 2 of this process are this output."""
        return self._file is not None

    def _has_own_stdout(self) -> bool:
        return identity(1) != self._stdout

    def share(self, outlet: Outlet) -> None:
        """Let all go through *outlet*: somebody else reads it, and others of this process write to it. From now on each
        line that is printed is in its file when the print returns, and so comes in order with what they write. To be
        called before anything is written."""
        with self._lock:
            self.batch = 1
            self._file = OutputFile(outlet)
            self._pipe = self._file.pipe
            self._choose_writers()
            collector.add(self)

    @property
    def reader(self) -> int:
        """What the collector waits for: the pipe of the children."""
        pipe = self._pipe
        return -1 if pipe is None or self.job is None else pipe.reader

    def collect(self) -> int:
        """Store what children wrote; return how much that was."""
        pipe = self._pipe
        if pipe is None or self.job is None:
            return 0
        before = pipe.moved
        self.drain()
        return pipe.moved - before

    @property
    def holds_back(self) -> bool:
        """Whether something is not stored yet since it may be the beginning of what must not be."""
        return self._redactor is not None and self._redactor.holds

    def drain(self, patience: float = 0.0, *, last: bool = False) -> None:
        """Store all that was written so far. Waits *patience* seconds for a drain under way, and leaves it to that.
        *last*: what is held back too."""
        if self._lock.acquire(timeout=patience):
            try:
                self._drain()
                if last and self._redactor is not None:
                    self._redactor.end()
            finally:
                self._lock.release()
            self._look_again()

    def watch(self, watched: bool) -> None:
        """Store each write at once (*watched*), or in batches."""
        if self.job is not None:
            self._is_watched = watched
            self.batch = 1 if watched or self._file is not None else self._batch
            self._choose_writers()

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
        self._choose_writers()
        for reference in list(self._children.values()):
            child = reference()
            if child is not None:
                with contextlib.suppress(Exception):  # of a subclass of Popen, too: a cancel goes on
                    child.terminate()

    def note(self, text: str, *, is_error: bool = False) -> None:
        """Write on behalf of the runner: a pending interrupt is not delivered here."""
        self._write(ErrorText(text) if is_error else text)

    def check(self) -> None:
        """Raise ``JobCancelled`` if the job was interrupted, and this is its own thread; not while it stops."""
        # A helper thread must not die of it. And clean-up code may print: it runs while the exception is handled.
        is_told = self._reason and self.job is not None and threading.get_ident() == self._thread
        if is_told and (self._due or not _is_stopping()):
            self._due = False
            raise JobCancelled(self._reason)

    def _write_or_raise(self, text: str) -> int:
        if self.job is None:  # it ended while it was interrupted
            self._choose_writers()
            return self.out(text)
        self.check()
        in_order = self._pipe is not None and self._file is None
        return self._write_in_order(text) if in_order else self._write(text)

    def end(self) -> None:
        """Store the rest. What is written from here on goes to where the stand-ins wrote before the job."""
        with self._lock:
            # The job's end is seen by all who still hold this output (threads, contexts), so it must not keep the job.
            self.job = None
            self._due = False
            self.assigned.clear()
            # A writer that took the list just before now finds that it must store its text itself.
            self.batch = 1
            self._choose_writers()
            try:
                self._drain()
                self._close_pipe()
                if self._redactor is not None:
                    self._redactor.end()
            finally:
                self._file = self._pipe = None
                self._store = decoded(self._late[0])
        self._look_again()

    def _close_pipe(self) -> None:
        file, pipe = self._file, self._pipe
        if file is not None:
            file.close(self._store)
        elif pipe is not None:
            read_late(pipe.close(), self._late[0])
        if pipe is not None:
            collector.ring()

    def after_fork(self, stdout: tuple[int, int] | None) -> None:
        """In a forked child: put each write into the pipe at once, since nobody will drain this copy. Where it lets its
        file 1 be another one than *stdout*, the parent's, such as a terminal, that is its stdout."""
        self._stdout = stdout
        self._lock, self._choosing, self._marking = (threading.RLock() for _ in range(3))
        self._busy = self._due = False
        self._is_forked = True
        self._pending.clear()  # it is the parent's, which still has it
        self.batch = 1
        self._store = decoded(self._late[0])  # the registry's locks are as other threads left them
        after_fork(self._pipe)
        self._choose_writers()


def _printer(pending: list[str | bytes]) -> tuple[Callable[[str], int], Callable[..., None]]:
    """Return what ``print`` calls in a job, and what adapts it: *take* is given each text; *drain_soon* is called when
    a text is large or so many are pending as *limit* says. Cells of a function are what Python reads fastest."""
    take: Callable[[str], object] = pending.append
    limit = 1
    drain_soon = _do_nothing

    def write(text: str) -> int:
        take(text)
        if (size := len(text)) < LARGE and len(pending) < limit:
            return size
        drain_soon()
        return size

    def adapt(*now: Any) -> None:
        nonlocal take, limit, drain_soon
        take, limit, drain_soon = now

    return write, adapt


def pass_on(text: str) -> int:
    """Write to what the running code has as ``sys.stdout``, as ``print`` does."""
    try:
        stream = sys.stdout
    except AttributeError:
        raise RuntimeError("lost sys.stdout") from None
    return len(text) if stream is None else int(stream.write(text) or 0)


def _do_nothing() -> None:
    pass


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
