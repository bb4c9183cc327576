"""File descriptors 1 and 2 of a process that runs one job at a time: then C code and all children print to the job."""

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

from ._files import Outlet
from ._output import JobOutput
from ._pipes import identity

__all__ = ["own_descriptors"]

_IONBF = 2  # of C's setvbuf: unbuffered


@contextlib.contextmanager
def own_descriptors(output: JobOutput, outlet: Outlet) -> Iterator[None]:
    """Let file descriptors 1 and 2, in a process that runs one job at a time, be *output*, in order with its prints.

    All of it goes through *outlet*, an empty one. What C code holds back in its own buffers is flushed at the end.
    Afterwards both descriptors are what they were before. One that the job closed, and the system gave to somebody
    else, stays theirs, and is not the next job's either.
    """
    _flush()
    _unbuffer_c()
    output.share(outlet)
    kept = {at: _duplicate(at) for at in (1, 2) if at not in _lost or identity(at) != _lost[at]}
    try:
        for descriptor in kept:
            os.dup2(outlet.writer, descriptor)
        yield
    finally:
        _flush()
        for descriptor, original in kept.items():
            is_now = identity(descriptor)
            if is_now not in (None, identity(outlet.writer)):
                _lost[descriptor] = is_now
            elif original is not None:
                os.dup2(original, descriptor)
            elif is_now is not None:
                os.close(descriptor)
            if original is not None:
                os.close(original)


# Which of the two a job let others have, and what it is now.
_lost: dict[int, tuple[int, int] | None] = {}


def _duplicate(descriptor: int) -> int | None:
    try:
        return os.dup(descriptor)
    except OSError:  # a daemon that closed it
        return None


def _flush() -> None:
    for stream in (sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(OSError, ValueError):  # a pipe that nobody reads, or closed
            if stream is not None:
                stream.flush()
    library = _c()
    if library is not None:
        library.fflush(None)


@functools.cache
def _unbuffer_c() -> None:
    """Let C code write to files 1 and 2 at once: it buffers what is no terminal, and would come late."""
    library = _c()
    for name in ("stdout", "stderr"):
        with contextlib.suppress(ValueError, AttributeError):  # it is called otherwise, or there is no C library
            library.setvbuf(ctypes.c_void_p.in_dll(library, name), None, _IONBF, ctypes.c_size_t(0))


@functools.cache
def _c() -> Any:
    try:
        return ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
