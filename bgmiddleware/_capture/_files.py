"""Files without a name that children of jobs write to, and the thread that looks into them."""

import contextlib
import ctypes
import functools
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable
from contextvars import Context
from typing import Any, Protocol

__all__ = ["OutputFile", "collector", "open_output_file", "refuse_more"]

_log = logging.getLogger("bgmiddleware")

_COLLECT_EVERY = 0.05
_COLLECT_BYTES = 256 * 1024
_PUNCH_BYTES = 1024 * 1024
_PUNCH_BEHIND = 2 * 1024 * 1024  # more than may be collected and not be in the registry yet


class OutputFile:
    """A file without a name that children append to; what is in it is moved to the job's output.

    *number*: an empty one of whoever wants to read the rest of it when this process is gone; None: a new one.
    """

    def __init__(self, number: int | None = None) -> None:
        self.number = open_output_file() if number is None else os.dup(number)
        self.is_parents = False
        """Whether this is a forked child's copy: then it only appends, its parent collects."""
        self.backlog = 0
        """Bytes that this process added and that were not collected since."""
        self._collected = 0
        self._punched = 0
        self._behind = 0 if number is None else _PUNCH_BEHIND

    def append(self, data: bytes) -> bytes:
        """Add *data* behind what children wrote so far; return what the system has no room for."""
        at = 0
        try:
            while at < len(data):
                at += os.write(self.number, memoryview(data)[at:])
        except OSError:
            return data[at:]
        finally:
            self.backlog += at
        return b""

    def collect(self, store: Callable[[bytes], None]) -> None:
        """Move to *store* what was added since the last time, and give its space back.

        What is added meanwhile waits for the next time: a child may write faster than we read.
        """
        if self.is_parents:
            return
        self.backlog = 0
        end = os.fstat(self.number).st_size
        while self._collected < end:
            data = os.pread(self.number, min(_COLLECT_BYTES, end - self._collected), self._collected)
            if not data:
                break  # somebody truncated it
            self._collected += len(data)
            store(data)
            until = self._collected - self._behind
            if until - self._punched >= _PUNCH_BYTES:
                # From the page where the last hole ended: it was freed in part only.
                begin = self._punched & -4096
                _give_back(self.number, begin, until - begin)
                self._punched = until

    def close(self, store: Callable[[bytes], None]) -> None:
        """Collect the rest. Children that live on cannot write any more: it would fill the memory, read by nobody."""
        if not self.is_parents:
            refuse_more(self.number)
            self.collect(store)
        os.close(self.number)


def open_output_file() -> int:
    """Return a descriptor of a new file without a name, which writes at its end."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("bgmiddleware-output", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        import fcntl  # where there is memfd_create, there is fcntl

        fcntl.fcntl(number, fcntl.F_SETFL, os.O_APPEND)
        return number
    with tempfile.NamedTemporaryFile(prefix="bgmiddleware-") as file:
        return os.open(file.name, os.O_RDWR | os.O_APPEND)


def refuse_more(number: int) -> None:
    """Let nobody write behind the end of the file from now on, whoever has it open (Linux)."""
    with contextlib.suppress(ImportError, AttributeError, OSError):  # no memfd: a file on disk, which may grow
        import fcntl

        fcntl.fcntl(number, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)


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


class _Collected(Protocol):
    @property
    def job(self) -> Any: ...

    def drain(self) -> None: ...


class _Collector:
    """One thread that looks every 50 ms into the files that children of jobs write to, while there are any."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew; in a forked child, where the thread is not, and the lock may be held by nobody."""
        self._lock = threading.RLock()  # guards both; a __del__ in the midst of it may ask for a file, too
        self._outputs: set[_Collected] = set()
        self._runs = False

    def add(self, output: _Collected) -> None:
        with self._lock:
            self._outputs.add(output)
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
        while True:
            time.sleep(_COLLECT_EVERY)
            with self._lock:
                self._outputs = {output for output in self._outputs if output.job is not None}
                outputs = list(self._outputs)
                if not outputs:
                    self._runs = False
                    return
            for output in outputs:
                try:
                    output.drain()
                except Exception:  # the other jobs need their output
                    _log.exception("the output of a job could not be collected")


collector = _Collector()
