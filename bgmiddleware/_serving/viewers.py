"""Viewers must never starve the app: how many connections may be held, and how often the others may ask."""

import threading
import time
from collections.abc import Callable

from .pace import POLLS_PER_SECOND, SLOWEST, Pace

__all__ = ["Viewers"]

_SLOTS = 2  # where the server does not say how many threads it has


class Viewers:
    """Counts held connections against *slots*, and tells those who poll how long to wait. Any thread.

    *slots*: None for half of the threads that the server has, where it says so, else for two.
    """

    def __init__(self, slots: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.pace: Pace = Pace(clock)
        self._lock = threading.Lock()  # guards all below
        self._slots = slots
        self._held: dict[object, Callable[[], bool]] = {}
        self._next_turn = clock()
        self._ended = False
        self._tells: tuple[Callable[[str, int], None], ...] = ()

    def tell_numbers(self, tell: Callable[[str, int], None]) -> None:
        """From now on call *tell* with ``held`` and by how many more (or fewer) connections are held, and with
        ``refused`` and how many more were not. It must raise nothing."""
        self._tells = (*self._tells, tell)

    def _count(self, name: str, number: int) -> None:
        for tell in self._tells:
            tell(name, number)

    def take_slot(
        self, gone: Callable[[], bool], *, threads: int | None = None, least: int = 0, spare: int = 0
    ) -> object | None:
        """Return a slot, to be given back; None if all are held by clients that are still there.

        *gone* tells whether the client that it is for has left, without waiting. *threads*: of the server, where that
        is known. *least*: how many slots there are at least. *spare*: how many are left to others.
        """
        slot = object()
        slots = self._slots if self._slots is not None else _SLOTS if threads is None else threads // 2
        slots = max(slots, least) - spare
        if not self._hold(slot, gone, slots):
            # Servers notice only at the next write: nobody shall be turned away for one who left. Not looked at with
            # the lock held: under gevent a look lets others run, who may want the lock.
            for other, other_gone in list(self._held.items()):
                if other_gone():
                    self.give_back(other)
            if not self._hold(slot, gone, slots):
                self._count("refused", 1)
                return None
        self._count("held", 1)
        return slot

    def _hold(self, slot: object, gone: Callable[[], bool], slots: int) -> bool:
        with self._lock:
            if self._ended or len(self._held) >= slots:
                return False
            self._held[slot] = gone
            return True

    def give_back(self, slot: object) -> None:
        """Give a slot back. Does nothing if somebody else was given it meanwhile."""
        with self._lock:
            was_held = self._held.pop(slot, None) is not None
        if was_held:
            self._count("held", -1)

    @property
    def none_allowed(self) -> bool:
        """Whether the site wants no connection to be held, ever."""
        return self._slots == 0

    def end(self) -> None:
        """Hold nobody any more: the site shuts down. Those that are held hear of it when they look."""
        self._ended = True

    @property
    def ended(self) -> bool:
        """Whether nobody is held any more."""
        return self._ended

    def turn(self) -> float:
        """Return in how many seconds who is refused a slot should begin to poll: each a fiftieth of a second after the
        one before, and at once where nobody came just before. Those who come at once would all be back at once."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next_turn)
            self._next_turn = min(turn + 1 / POLLS_PER_SECOND, now + SLOWEST)
            return turn - now
