"""Show the output of a job where the server prints, as well as to its readers."""

import codecs
import contextlib
import os
import sys
from collections.abc import Callable, Iterator

from .._capture import detached, write_late

__all__ = ["open_tee"]


@contextlib.contextmanager
def open_tee(*, has_descriptors: bool) -> Iterator[Callable[[bytes], None]]:
    """Return a function that writes to what is ``sys.stdout`` outside of jobs; it raises nothing.

    *has_descriptors*: whether the job will have the file descriptors of this process for itself. Then it is written to
    what file descriptor 1 is now.
    """
    if not has_descriptors:
        yield _to_stream()
        return
    try:
        number = os.dup(1)
    except OSError:  # a daemon that closed it
        yield lambda data: None
        return
    try:
        yield lambda data: _write(number, data)
    finally:
        os.close(number)


def _to_stream() -> Callable[[bytes], None]:
    decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode
    write = write_late("stdout")

    def tee(data: bytes) -> None:
        # Whatever is wrong with the console, a pipe that nobody reads say, is no matter of the job's.
        with contextlib.suppress(Exception), detached():
            write(decode(data))
            sys.stdout.flush()

    return tee


def _write(number: int, data: bytes) -> None:
    view = memoryview(data)
    with contextlib.suppress(OSError):
        while view:
            view = view[os.write(number, view) :]
