"""Where prints go: the output of one job, and what a request in the foreground printed so far."""

import contextlib
import ctypes
import os
import subprocess
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextvars import Context
from typing import Any, Protocol

from ..errors import JobCancelled

__all__ = ["ForegroundOutput", "JobOutput", "Output"]

_BATCH = 512
_LARGE = 4096
_YIELD_EVERY = 0.0005
_COLLECT_EVERY = 0.05
_COLLECT_BYTES = 256 * 1024


class Output(Protocol):
    """What the stand-ins write to on behalf of the running code."""

    out: Callable[[str], int]
    err: Callable[[str], int]

    @property
    def job(self) -> Any:
        """The running job whose output this is; None in the foreground and after its end."""

    def write_bytes(self, data: bytes, original: Callable[[bytes], int]) -> int:
        """Write to ``.buffer``."""

    def flush(self) -> None:
        """Make visible to children what is written so far."""

    def fileno(self) -> int | None:
        """A file descriptor of the output's own; None: it has none."""


class ForegroundOutput:
    """What one request prints in the foreground: it goes where it went, and its first *limit* characters are kept.

    They begin the output of the ``@background`` function that the request may yet call.
    """

    job = None

    def __init__(self, out: Callable[[str], int], err: Callable[[str], int], limit: int = 65536) -> None:
        self._kept: list[str] = []
        self._room = limit

        def keeping(write: Callable[[str], int]) -> Callable[[str], int]:
            def keep(text: str) -> int:
                written = write(text)
                if self._room > 0:
                    self._kept.append(text[: self._room])
                    self._room -= len(text)
                return written

            return keep

        self.out, self.err = keeping(out), keeping(err)

    @property
    def text(self) -> str:
        """All that was kept."""
        return "".join(self._kept)

    def write_bytes(self, data: bytes, original: Callable[[bytes], int]) -> int:
        written = original(data)
        if self._room > 0:
            self._kept.append(bytes(data[: self._room]).decode("utf-8", "backslashreplace"))
            self._room -= len(data)
        return written

    def flush(self) -> None:
        """Do nothing: the stand-in flushes the original."""

    def fileno(self) -> int | None:
        return None


class JobOutput:
    """The output of one job: any thread may write, nobody who writes waits for a reader.

    A write appends to a list, which is atomic; every 512 writes, or when a reader asks, the list becomes UTF-8 bytes
    and goes to *store*. ``out`` and ``err`` are functions that may be kept: after the job they write to where the
    stand-ins wrote before it, *late_out* and *late_err*.
    """

    def __init__(
        self,
        store: Callable[[bytes], None],
        late_out: Callable[[str], int],
        late_err: Callable[[str], int],
        *,
        job: object,
        takes_logging: bool = True,
    ) -> None:
        self.job: Any = job
        self.takes_logging = takes_logging
        self._store = store
        self._late = late_out, late_err
        self._lock = threading.Lock()  # guards the order in which things are stored, and the file
        self._pending: list[str | bytes] = []
        self._batch = _BATCH
        self._yielded_at = 0.0
        self._thread = 0
        self._reason = ""
        self._children: weakref.WeakSet[subprocess.Popen[Any]] = weakref.WeakSet()
        self._file: _OutputFile | None = None
        self._write = self._make_write()
        self.out = self.err = self._write

    def _make_write(self) -> Callable[[str], int]:
        pending, append = self._pending, self._pending.append

        def write(text: str) -> int:
            if text.__class__ is not str and not isinstance(text, str):
                raise TypeError(f"write() argument must be str, not {type(text).__name__}")
            append(text)
            size = len(text)
            if size > _LARGE or len(pending) >= self._batch:
                self._drain_and_yield()
            return size

        return write

    def _drain_and_yield(self) -> None:
        # Never blocks, because a signal handler or __del__ may print while its own thread drains. Who holds the lock
        # looks again when it has given it back: what came meanwhile found it taken.
        while self._lock.acquire(blocking=False):
            try:
                self._drain()
            finally:
                self._lock.release()
            if len(self._pending) < self._batch:
                break
        # A job that prints without pause would leave the other threads a turn every 5 ms only.
        now = time.monotonic()
        if now - self._yielded_at > _YIELD_EVERY:
            time.sleep(0)
            self._yielded_at = time.monotonic()

    def _drain(self) -> None:
        count = len(self._pending)
        if count:
            batch = self._pending[:count]
            try:
                data = "".join(batch).encode("utf-8", "backslashreplace")  # type: ignore[arg-type]  # bytes: see below
            except TypeError:  # some writes went to .buffer
                data = b"".join(map(_encoded, batch))
            del self._pending[:count]
            if self._file is None or not self._file.append(data):
                self._store(data)
        if self._file is not None:
            self._file.collect(self._store)

    def write_bytes(self, data: bytes, original: Callable[[bytes], int]) -> int:
        """Add bytes in order with the text; they need not be UTF-8."""
        if self.job is None:
            return original(data)
        self.out("")  # where a cancel is delivered
        data = bytes(data)
        self._pending.append(data)
        if len(data) > _LARGE or len(self._pending) >= self._batch:
            self._drain_and_yield()
        return len(data)

    def flush(self) -> None:
        """Put what is written into the file that children write to, if there is one."""
        if self._file is not None:
            self._drain_and_yield()

    def fileno(self) -> int | None:
        """Return a descriptor that appends to this output, for children; the first call makes it."""
        with self._lock:
            if self.job is None:
                return None
            self._drain()
            if self._file is None:
                self._file = _OutputFile()
                _collector.add(self)
            return self._file.number

    def drain(self) -> None:
        """Store all that was written so far; waits for a drain under way."""
        with self._lock:
            self._drain()

    def watch(self, watched: bool) -> None:
        """Store each write at once (*watched*), or in batches."""
        self._batch = 1 if watched else _BATCH

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Store nothing meanwhile. To be held by the job's own thread when it calls its registry: else a ``__del__``
        that prints in the midst of that call would call the registry again and wait for itself."""
        with self._lock:
            yield

    def adopt(self, child: "subprocess.Popen[Any]") -> None:
        """Terminate *child*, which was given this output, when the job is interrupted."""
        self._children.add(child)
        if self._reason and self.out is not self._write:
            child.terminate()

    def begin(self) -> None:
        """Say that the calling thread is the job's own: the one to interrupt."""
        self._thread = threading.get_ident()

    def interrupt(self, reason: str) -> None:
        """Make the next print of the job's own thread raise ``JobCancelled``, once; terminate its children."""
        if self._reason or self.job is None:
            return
        self._reason = reason
        # Swapping the function costs nothing until it is used.
        self.out = self.err = self._raise_once
        for child in list(self._children):
            with contextlib.suppress(OSError):
                child.terminate()

    def note(self, text: str) -> None:
        """Write on behalf of the runner: a pending interrupt is not delivered here."""
        self._write(text)

    def check(self) -> None:
        """Raise ``JobCancelled`` if the job was interrupted and this is its own thread."""
        if self._reason and threading.get_ident() == self._thread:
            self._restore()
            raise JobCancelled(self._reason)

    def _raise_once(self, text: str) -> int:
        # A helper thread must not die of it: only the job's own thread is interrupted. And only once, so that
        # clean-up code may print.
        if self.job is None:
            self.out, self.err = self._late
            return self.out(text)
        if threading.get_ident() != self._thread:
            return self._write(text)
        self._restore()
        raise JobCancelled(self._reason)

    def _restore(self) -> None:
        if self.job is not None:
            self.out = self.err = self._write

    def end(self) -> None:
        """Store the rest. What is written from here on goes to where the stand-ins wrote before the job."""
        with self._lock:
            # The job's end is seen by all who still hold this output (threads, contexts), so it must not keep the job.
            self.job = None
            self.out, self.err = self._late
            self._drain()
            if self._file is not None:
                self._file.close()
                self._file = None
            self._store = _forget

    def after_fork(self) -> None:
        """In a forked child: write each text to the shared file at once, since nobody will drain this copy."""
        self._lock = threading.Lock()
        file = self._file
        if file is not None:
            self._pending.clear()
            self.out = self.err = file.write_text
            self._batch = 1


def _encoded(part: str | bytes) -> bytes:
    return part if isinstance(part, bytes) else part.encode("utf-8", "backslashreplace")


def _forget(data: bytes) -> None:
    """Where an ended job's output stores what comes too late: nowhere."""


class _OutputFile:
    """A file without a name that children append to; what is in it is moved to the job's output."""

    def __init__(self) -> None:
        self.number = _open_unnamed()
        self._collected = 0

    def append(self, data: bytes) -> bool:
        """Add *data* behind what children wrote so far; false if the system has no room for it."""
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self.number, view) :]
        except OSError:
            return False
        return True

    def write_text(self, text: str) -> int:
        self.append(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def collect(self, store: Callable[[bytes], None]) -> None:
        """Move to *store* what was added since the last time, and give its space back."""
        begin = self._collected
        while data := os.pread(self.number, _COLLECT_BYTES, self._collected):
            self._collected += len(data)
            store(data)
        if self._collected - begin:
            _give_back(self.number, self._collected)

    def close(self) -> None:
        os.close(self.number)


def _open_unnamed() -> int:
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("bgmiddleware-output", os.MFD_CLOEXEC)
        import fcntl  # where there is memfd_create, there is fcntl

        fcntl.fcntl(number, fcntl.F_SETFL, os.O_APPEND)
        return number
    with tempfile.NamedTemporaryFile(prefix="bgmiddleware-") as file:
        return os.open(file.name, os.O_RDWR | os.O_APPEND)


_FALLOC_FL_KEEP_SIZE_AND_PUNCH_HOLE = 3


def _give_back(number: int, size: int) -> None:
    """Free the space of the first *size* bytes of a file without changing its offsets (Linux; elsewhere they stay)."""
    try:
        fallocate = ctypes.CDLL(None).fallocate
    except (AttributeError, OSError, TypeError):
        return
    fallocate(number, _FALLOC_FL_KEEP_SIZE_AND_PUNCH_HOLE, ctypes.c_long(0), ctypes.c_long(size))


class _Collector:
    """One thread that looks every 50 ms into the files that children of jobs write to, while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards both
        self._outputs: set[JobOutput] = set()
        self._running_in = 0  # a pid: threads do not survive a fork

    def add(self, output: JobOutput) -> None:
        with self._lock:
            self._outputs.add(output)
            if self._running_in == os.getpid():
                return
            self._running_in = os.getpid()
        # An empty context: the thread is nobody's child.
        thread = threading.Thread(target=self._run, name="bgmiddleware-collect", daemon=True)
        Context().run(thread.start)

    def _run(self) -> None:
        while True:
            time.sleep(_COLLECT_EVERY)
            with self._lock:
                self._outputs = {output for output in self._outputs if output.job is not None}
                outputs = list(self._outputs)
                if not outputs:
                    self._running_in = 0
                    return
            for output in outputs:
                output.drain()


_collector = _Collector()
