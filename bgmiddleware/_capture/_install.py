"""Put the stand-ins and the hooks in place: once, lazily, for good."""

import threading
from typing import Any, TextIO

from . import _hooks
from ._system import are_in_place, replace_streams, stand_in_of

__all__ = ["error_stream", "install"]

_lock = threading.Lock()  # guards the replacing of sys.stdout, sys.stderr and sys.stdin


def install() -> None:
    """Put the stand-ins in place, where they are not or no longer. Idempotent; any thread; cheap to repeat.

    They are never taken away again: that is only safe as long as nobody else has put a stream over them.
    """
    if are_in_place():
        return
    with _lock:
        _hooks.install_hooks(_forget_lock)
        for original, stand_in in replace_streams().values():
            _hooks.rebind_logging(original, stand_in)


def error_stream() -> TextIO:
    """Return the stand-in of ``sys.stderr``, to be a replayed request's ``wsgi.errors``. They must be in place."""
    stream: Any = stand_in_of("stderr")
    return stream  # type: ignore[no-any-return]


def _forget_lock() -> None:
    """In a forked child: another thread of the parent may have been installing."""
    global _lock
    _lock = threading.Lock()
