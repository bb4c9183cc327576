"""The thread of a process that has its registries forget what is due: by time, in small steps, outside of requests."""

import contextlib
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable
from contextvars import Context
from typing import Protocol

from .._ground.weakly import nudge
from ._steady import since_start

__all__ = ["House", "Tidied", "house"]

_log = logging.getLogger("bgmiddleware")

_SHARE = 0.2  # of the time, at most, for the steps of what is due at once: requests need the same locks
_SHORTEST_PAUSE = 0.002
_AFTER_TROUBLE = 30.0
_STOOD_STILL = 3.0  # seconds too late: the process was stopped, or the host slept
_AFTER_STANDSTILL = 10.0  # then those who live need a moment to say so, before they are taken for lost


class Tidied(Protocol):
    """What is tidied: a registry."""

    tidied_at: tuple[int, float]
    tidy_every: float

    def tidy(self) -> float | None:
        """Do a small step; return in how many seconds to do another one, None: there will be nothing to do."""

    def is_empty(self) -> bool:
        """Whether that is still so."""


class House:
    """Calls ``tidy`` of registries when they ask for it, in one thread. That begins with the first of them, holds none
    of them while it waits, and ends with the last. Any thread may call; a forked child has a house of its own."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        # Guards what follows. Its owner may come again: a registry that nobody holds is collected in any thread.
        self._changed = threading.Condition(threading.RLock())
        self._due: dict[
            weakref.ref[Tidied], tuple[float, float]
        ] = {}  # by the monotonic clock, and one that never stops
        self._busy: weakref.ref[Tidied] | None = None
        self._thread: threading.Thread | None = None

    def take(self, registry: Tidied, seconds: float) -> None:
        """Have a registry tidied, from so many seconds on. Where no thread can begin, nobody does."""
        with self._changed:
            self._plan(weakref.ref(registry, self._gone), registry, seconds)
            if self._thread is None or not self._thread.is_alive():
                thread = threading.Thread(target=self._run, name="bgmiddleware-housekeeping", daemon=True)
                with contextlib.suppress(RuntimeError):
                    Context().run(thread.start)  # it inherits nothing of the request that happens to need it
                    self._thread = thread
            self._changed.notify_all()

    def leave(self, registry: Tidied) -> None:
        """Have a registry tidied no more; wait for the end of a step that is under way."""
        reference = weakref.ref(registry)
        with self._changed:
            self._let_go(reference, registry)
            self._changed.notify_all()
            if self._busy == reference and threading.current_thread() is not self._thread:
                self._changed.wait(1.0)

    def _plan(self, reference: "weakref.ref[Tidied]", registry: Tidied, seconds: float) -> None:
        at = time.monotonic() + seconds
        self._due[reference] = at, _instant() + seconds
        registry.tidied_at = self.pid, at

    def _let_go(self, reference: "weakref.ref[Tidied]", registry: Tidied) -> None:
        self._due.pop(reference, None)
        registry.tidied_at = 0, 0.0

    def _gone(
        self, _: "weakref.ref[Tidied]", wake: Callable[[threading.Condition], None] = nudge
    ) -> None:  # at the interpreter's end the module's own names may be gone
        wake(self._changed)

    def _run(self) -> None:
        while (reference := self._next()) is not None:
            self._step(reference)

    def _next(self) -> "weakref.ref[Tidied] | None":
        """Wait until a registry is due; None: there are none any more."""
        with self._changed:
            while True:
                for gone in [each for each in self._due if each() is None]:
                    del self._due[gone]
                if not self._due:
                    break
                reference, (at, instant) = min(self._due.items(), key=lambda item: item[1])
                left = at - time.monotonic()
                registry = reference()
                if registry is not None and _instant() - instant > _STOOD_STILL:
                    self._plan(reference, registry, _AFTER_STANDSTILL)
                    continue
                del registry
                if left <= 0:
                    self._busy = reference
                    return reference
                self._changed.wait(left)
            self._thread = None
            return None

    def _step(self, reference: "weakref.ref[Tidied]") -> None:
        registry, begun, again = reference(), time.monotonic(), None
        try:
            if registry is not None:
                again = registry.tidy()
        except Exception as error:  # it is away; the next time
            again = _AFTER_TROUBLE
            with contextlib.suppress(Exception):  # of a log handler
                _log.debug("what is due could not be forgotten: %s", error)
        took = time.monotonic() - begun
        with self._changed:
            self._busy = None
            self._changed.notify_all()
            if registry is None or reference not in self._due:
                return
            if again is not None:
                self._plan(reference, registry, max(again, _SHORTEST_PAUSE, took * (1 / _SHARE - 1)))
                return
            self._let_go(reference, registry)
        with contextlib.suppress(Exception):
            if not registry.is_empty():  # a job came between the look and here
                self.take(registry, registry.tidy_every)


def _instant() -> float:
    return since_start() if sys.platform == "linux" else time.monotonic()


_houses: dict[int, House] = {}


def house() -> House:
    """Return that of this process."""
    pid = os.getpid()
    return _houses.get(pid) or _houses.setdefault(pid, House())
