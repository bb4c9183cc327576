"""The one thread of a process that looks after its running jobs: by turns, each job when it is due."""

import os
import threading
import time
import weakref
from contextvars import Context
from heapq import heappop, heappush
from typing import Protocol

from ..registries.base import Registry

__all__ = ["Keeping", "Place", "keeping_of"]

_IDLE = 5.0  # seconds that the thread stays where no job runs: most jobs come soon after others
_SOON = 0.1  # seconds until it looks by itself whether a job came, as long as it stays
_NEVER = float("inf")
_LOOK, _TURN = 0, 1


class Kept(Protocol):
    """What has turns. Each method returns when it is due again, by the monotonic clock, and raises nothing."""

    def look(self) -> float:
        """Renew a lease, hear of a cancel. The looks of all come before the turn of any."""

    def turn(self) -> float:
        """Send output."""


class Place:
    """The place of one job: when its look is due, and its turn. Guarded by its ``Keeping``."""

    def __init__(self, kept: Kept) -> None:
        self.kept: Kept | None = kept
        self.due = [_NEVER, _NEVER]


class Keeping:
    """Gives jobs their turns, in a thread that begins with the first of them and ends when there were none for a while.

    Any thread may call. A forked child has one of its own.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._changed = threading.Condition()  # guards what follows
        # An entry whose time is not what its place says is void.
        self._heaps: tuple[list[tuple[float, int, Place]], ...] = ([], [])
        self._count = 0  # of two that are due at the same time, the earlier entry goes first
        self._jobs = 0
        self._thread: threading.Thread | None = None
        self._idle_at = 0.0  # when it ends, if there are no jobs
        self._wakes_at = _NEVER  # when the thread goes on by itself, if it waits
        self._busy: list[Place] = []  # whose turn it is; a turn may see to looks

    def join(self, kept: Kept, look_at: float, turn_at: float) -> Place:
        """Give turns to one job more, from these instants on. Raises ``RuntimeError`` where no thread can begin."""
        place = Place(kept)
        with self._changed:
            if not self.is_alive():
                self._busy.clear()
                thread = threading.Thread(target=self._run, name="bgmiddleware-keeper", daemon=True)
                Context().run(thread.start)  # it inherits nothing of the job that happens to need it
                self._thread = thread
            self._jobs += 1
            self._enter(place, _LOOK, look_at)
            self._enter(place, _TURN, turn_at)
        return place

    def leave(self, place: Place) -> None:
        """Give a job no more turns, and wait for the end of one that it has just now."""
        with self._changed:
            if place.kept is not None:
                self._jobs -= 1
                self._idle_at = time.monotonic() + _IDLE
            place.kept = None
            while place in self._busy and self.is_alive() and not self.is_here():
                self._changed.wait(1.0)

    def wake(self, place: Place) -> None:
        """Let it be the turn of a job now."""
        with self._changed:
            self._enter(place, _TURN, time.monotonic())

    def see_to_looks(self) -> None:
        """Let all look that are due, in the midst of a long turn."""
        while (place := self._pop(_LOOK)) is not None:
            self._give(place, _LOOK)

    def is_alive(self) -> bool:
        """Whether there is a thread that gives turns."""
        thread = self._thread
        return thread is not None and thread.is_alive()

    def is_here(self) -> bool:
        """Whether this is called in that thread."""
        return self._thread is threading.current_thread()

    def _enter(self, place: Place, kind: int, at: float) -> None:
        """Called with the lock held."""
        if at >= place.due[kind]:
            return
        place.due[kind] = at
        self._count += 1
        heappush(self._heaps[kind], (at, self._count, place))
        if at < self._wakes_at:
            self._wakes_at = at  # who comes next need not wake it again
            self._changed.notify_all()

    def _pop(self, kind: int) -> Place | None:
        """Return a place whose time has come, as one that is busy."""
        heap, now = self._heaps[kind], time.monotonic()
        with self._changed:
            while heap and (heap[0][0] <= now or heap[0][2].kept is None or heap[0][0] != heap[0][2].due[kind]):
                at, _, place = heappop(heap)
                if place.kept is not None and at == place.due[kind]:
                    place.due[kind] = _NEVER
                    self._busy.append(place)
                    return place
        return None

    def _give(self, place: Place, kind: int) -> None:
        kept, at = place.kept, _NEVER
        try:
            if kept is not None:
                at = kept.look() if kind == _LOOK else kept.turn()
        finally:
            del kept
            with self._changed:
                self._busy.remove(place)
                if place.kept is not None:
                    self._enter(place, kind, at)
                self._changed.notify_all()

    def _run(self) -> None:
        while True:
            self.see_to_looks()
            place = self._pop(_TURN)
            if place is not None:
                self._give(place, _TURN)
                del place
            elif not self._rest():
                return

    def _rest(self) -> bool:
        """Wait until something is due; return whether the thread is to go on."""
        with self._changed:
            first = min((heap[0][0] for heap in self._heaps if heap), default=_NEVER)
            # Where jobs come soon after each other, a thread that looks by itself costs less than one that each wakes.
            now = time.monotonic()
            self._wakes_at = min(first, now + (_IDLE if self._jobs else _SOON))
            self._changed.wait(max(0.0, self._wakes_at - now))
            self._wakes_at = -_NEVER
            if self._jobs or time.monotonic() < self._idle_at:
                return True
            self._thread = None
            return False


_keepings: "weakref.WeakKeyDictionary[Registry, Keeping]" = weakref.WeakKeyDictionary()


def keeping_of(registry: Registry) -> Keeping:
    """Return what keeps the jobs of *registry* that run in this process.

    One for each registry: where one hangs, the jobs of others are kept.
    """
    found = _keepings.get(registry)
    if found is None or found.pid != os.getpid():
        found = _keepings[registry] = Keeping()  # of two threads that come here at once, each may have its own
    return found
