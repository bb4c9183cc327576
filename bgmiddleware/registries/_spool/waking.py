"""Waiting for a file to change: by inotify where there is one, else by looking again and again."""

import contextlib
import ctypes
import functools
import os
import time
from collections.abc import Callable, Iterator

from ..._ground.polling import is_readable

__all__ = ["Waking"]

_MODIFIED = 0x2
_CHANGED = _MODIFIED | 0x4 | 0x400 | 0x800  # attributes (links too), removed, moved
_MOST_IDLE = 16
_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1


class Waking:
    """Waits for files. No thread is begun: who waits, waits by itself.

    *look* returns what a change of the file at a path changes, or None where it is gone; it is used where there is no
    inotify, or where the user's instances of it are used up.
    """

    def __init__(self, look: Callable[[str], bytes | None]) -> None:
        self._look = look
        # To close one takes the kernel some 10 ms, so they are used again; each by the process that made it only: a
        # forked child has it in common with its parent, and would take its events.
        self._idle: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def watch(self, path: str, *, is_there: bool = True) -> Iterator[Callable[[float], None]]:
        """Give a function that waits, at most so many seconds, for a change since it was given, or last returned.

        It may return without one. Begin to watch, then look, then wait: so nothing is missed. Where a file *is_there*
        not yet, its directory is watched.
        """
        kernel = _inotify()
        instance = self._instance(kernel) if kernel is not None else -1
        if kernel is None or instance < 0:
            yield _Looking(self._look, path).wait if is_there else _Pausing().wait
            return
        watched = path if is_there else os.path.dirname(path)
        watch = kernel.inotify_add_watch(instance, os.fsencode(watched), _CHANGED)
        try:
            # A file that is gone cannot be watched; who looks will see that.
            yield functools.partial(_wait_for_events, instance) if watch >= 0 else _Looking(self._look, path).wait
        finally:
            if watch >= 0:
                kernel.inotify_rm_watch(instance, watch)
            if len(self._idle) < _MOST_IDLE:
                self._idle.append((os.getpid(), instance))
            else:
                os.close(instance)

    def close(self) -> None:
        """Close the instances that nobody uses just now."""
        with contextlib.suppress(IndexError):
            while True:
                os.close(self._idle.pop()[1])

    def _instance(self, kernel: ctypes.CDLL) -> int:
        with contextlib.suppress(IndexError):
            while True:
                pid, instance = self._idle.pop()
                if pid == os.getpid():
                    _drain(instance)  # what it still has to say of its last file
                    return instance
                os.close(instance)
        made: int = kernel.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        return made


def _wait_for_events(instance: int, seconds: float) -> None:
    if is_readable(instance, max(0.001, seconds)):
        _drain(instance)


def _drain(instance: int) -> None:
    # Not until it would block: eventlet's os.read waits then, though the descriptor is not to block.
    while is_readable(instance, 0.0):
        os.read(instance, 4096)


class _Looking:
    def __init__(self, look: Callable[[str], bytes | None], path: str) -> None:
        self._look = look
        self._path = path
        self._seen = look(path)

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        pause = _FIRST_PAUSE
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            seen, self._seen = self._seen, self._look(self._path)
            if self._seen != seen or self._seen is None:
                return
            pause = min(pause * 1.5, _LONGEST_PAUSE)


class _Pausing:
    """Waits a little, and then a little longer: who waits looks by himself."""

    def __init__(self) -> None:
        self._pause = _FIRST_PAUSE

    def wait(self, seconds: float) -> None:
        time.sleep(min(self._pause, max(0.0, seconds)))
        self._pause = min(self._pause * 1.5, _LONGEST_PAUSE)


@functools.cache
def _inotify() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None, use_errno=True)
        return library if hasattr(library, "inotify_init1") else None
    except OSError:
        return None
