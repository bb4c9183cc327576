"""The thread that drains the jobs of this process which nobody reads just now: so that it is known when they print."""

import os
import threading
import time
from contextvars import Context
from typing import Protocol

__all__ = ["ticking"]

_EVERY = 0.1


class _Drained(Protocol):
    def drain(self) -> None: ...


class Ticker:
    """Drains ten times a second, in a thread that is there while jobs run. Any thread may call."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()  # guards what follows
        self._outputs: dict[int, _Drained] = {}
        self._is_ticking = False

    def join(self, output: _Drained) -> None:
        """Begin to drain an output. Where no thread can begin, it goes without."""
        with self._lock:
            self._outputs[id(output)] = output
            if self._is_ticking:
                return
            self._is_ticking = True
        thread = threading.Thread(target=self._tick, name="bgmiddleware-ticker", daemon=True)
        try:
            Context().run(thread.start)  # it is of no job
        except RuntimeError:
            self._is_ticking = False

    def leave(self, output: _Drained) -> None:
        """Drain an output no more. A drain under way may go on."""
        with self._lock:
            self._outputs.pop(id(output), None)

    def _tick(self) -> None:
        while True:
            time.sleep(_EVERY)
            with self._lock:
                outputs = list(self._outputs.values())
                if not outputs:
                    self._is_ticking = False
                    return
            for output in outputs:
                output.drain()
            del outputs
            output = None  # type: ignore[assignment]  # keeps no job until the next tick


_ticker = Ticker()


def ticking() -> Ticker:
    """Return that of this process: a forked child has one of its own."""
    global _ticker
    if _ticker.pid != os.getpid():
        _ticker = Ticker()
    return _ticker
