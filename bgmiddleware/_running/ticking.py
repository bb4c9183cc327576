"""Reads the outputs of running jobs now and then, where their registry does so only when somebody looks: so it is known
when a job printed."""

import contextlib
import os
import threading
import time
import weakref

from .._capture import JobOutput
from ..registries.base import Registry
from .keeping import Keeping, Place, keeping_of

__all__ = ["Ticking", "ticking_of"]

_TICK = 0.1
_EVER = float("inf")


class Ticking:
    """Drains outputs ten times a second, in turns of *keeping*: one turn for all jobs. Most of them end before it
    comes, so to join and to leave costs next to nothing. Any thread may call."""

    def __init__(self, keeping: Keeping) -> None:
        self.pid = os.getpid()
        self._keeping = keeping
        self._outputs: set[JobOutput] = set()
        self._lock = threading.Lock()  # guards the next one
        self._place: Place | None = None  # None: there are no turns

    def join(self, output: JobOutput) -> None:
        """Drain one output more. Where no thread can begin, nobody does: then it is known less well when it printed."""
        self._outputs.add(output)
        if self._place is None:
            with self._lock, contextlib.suppress(RuntimeError):
                if self._place is None:
                    self._place = self._keeping.join(self, _EVER, time.monotonic() + _TICK)

    def leave(self, output: JobOutput) -> None:
        """Drain an output no more."""
        self._outputs.discard(output)

    def look(self) -> float:
        return _EVER

    def turn(self) -> float:
        for output in self._outputs.copy():
            with contextlib.suppress(Exception):  # the next one that stores meets it again
                output.drain()
        with self._lock:
            place, self._place = self._place, None
            # Who comes from here on begins anew; who saw a place came before, and is seen here.
            if self._outputs:
                self._place = place
                return time.monotonic() + _TICK
        if place is not None:
            self._keeping.leave(place)
        return _EVER


_tickings: "weakref.WeakKeyDictionary[Registry, Ticking]" = weakref.WeakKeyDictionary()


def ticking_of(registry: Registry) -> Ticking:
    """Return what drains the outputs of the jobs of *registry* that run in this process."""
    found = _tickings.get(registry)
    if found is None or found.pid != os.getpid():
        found = _tickings[registry] = Ticking(keeping_of(registry))  # of two at once, each may have its own
    return found
