"""File descriptors 1 and 2 of a process that runs one job at a time: then C code and all children print to the job."""

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from typing import Any

from ._output import JobOutput

__all__ = ["own_descriptors"]

_IONBF = 2  # of C's setvbuf: unbuffered


@contextlib.contextmanager
def own_descriptors(output: JobOutput, number: int) -> Iterator[None]:
    """Let file descriptors 1 and 2, in a process that runs one job at a time, be *output*, in order with its prints.

    *number* is an empty file of :func:`open_output_file`, through which all of it goes. What C code holds back in its
    own buffers is flushed at the end. Afterwards both descriptors are what they were before.
    """
    _flush()
    _unbuffer_c()
    output.share(number)
    kept = {1: _duplicate(1), 2: _duplicate(2)}
    try:
        for descriptor in kept:
            os.dup2(number, descriptor)
        yield
    finally:
        _flush()
        for descriptor, original in kept.items():
            if original is None:
                os.close(descriptor)
            else:
                os.dup2(original, descriptor)
                os.close(original)


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
