"""A circuit breaker: while a server hangs, one thread waits for it, and all other calls fail at once."""

import contextlib
import threading
from collections.abc import Callable
from contextvars import Context

__all__ = ["Breaker"]

_PAUSE = 0.1


class Breaker:
    """Is open from a call that timed out until the server answers again. Any thread may call.

    *probe* asks the server for nothing in particular, and returns whether it answered, even if only by a refusal. One
    thread calls it again and again while the breaker is open. *on_close* is called when the server is back.
    """

    def __init__(self, probe: Callable[[], bool], on_close: Callable[[], None]) -> None:
        self._probe = probe
        self._on_close = on_close
        self._lock = threading.Lock()  # guards the next one: there is one thread at most
        self.is_open = False
        """Whether calls must fail now, since the server hangs."""
        self._ended = threading.Event()

    def open(self) -> None:
        """Say that a call timed out. Without room for a thread that probes, the breaker stays closed."""
        with self._lock:
            if self.is_open or self._ended.is_set():
                return
            thread = threading.Thread(target=self._watch, name="bgmiddleware-redis-probe", daemon=True)
            self.is_open = True
            try:
                Context().run(thread.start)  # it inherits nothing of the job or request whose call timed out
            except RuntimeError:
                self.is_open = False

    def end(self) -> None:
        """Probe no more. Idempotent."""
        self._ended.set()

    def _watch(self) -> None:
        while not self._ended.is_set() and not self._probe():
            self._ended.wait(_PAUSE)
        with contextlib.suppress(Exception):  # whatever it is, no call may be refused for ever
            self._on_close()
        self.is_open = False
