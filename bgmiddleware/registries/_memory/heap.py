"""The memory of the process, of which the C library gives little back by itself."""

import contextlib
import ctypes
import functools
from collections.abc import Callable

__all__ = ["give_back"]


def give_back() -> None:
    """Give memory that was freed back to the system, where the C library can be asked to: glibc keeps all that lies
    below anything still in use. Takes milliseconds, in which other threads go on."""
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], object] | None:
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another library, or another system
        trim: Callable[[int], object] = ctypes.CDLL(None).malloc_trim
        return trim
    return None
