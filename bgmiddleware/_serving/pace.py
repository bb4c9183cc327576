"""How often those may ask who poll: all together about fifty times a second, and nobody at the cost of another."""

import math
import threading
import time
from collections.abc import Callable, Collection, Hashable

__all__ = ["FASTEST", "POLLS_PER_SECOND", "SLOWEST", "Pace"]

FASTEST = 1.0
"""Seconds between two polls where there are few: who is told to wait longer is one of a crowd."""

SLOWEST = 30.0

POLLS_PER_SECOND = 50.0
_DECAY = 10.0
_MOST_GROUPS = 1000
_FORGOTTEN = 0.01  # pollers


class Pace:
    """Tells those who poll how long to wait. Any thread.

    Without knowing anybody: N pollers that each come every S seconds say S, N/S times a second, which adds up to N per
    second (Little's law). So the sum, forgotten with a time constant of ten seconds, is ten times their number.

    They are counted in groups, among which the polls are divided: each gets what it needs, or as much as any other. So
    who says what is not true slows its own group down.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()  # guards all of these
        self._clock = clock
        self._pollers: dict[Hashable, float] = {}
        self._counted_at = clock()

    def __call__(self, every: float | None, group: Hashable = None) -> float:
        """Return how many seconds a poller of *group* should wait, which waited *every* seconds for this answer (None:
        unknown).

        Who says 0 is new, and counted at once: for ten, which are forgotten just as fast as what it says adds up.
        """
        waited = _DECAY if every == 0 else min(every or 0.0, SLOWEST)
        with self._lock:
            self._forget()
            if group not in self._pollers and len(self._pollers) >= _MOST_GROUPS:
                group = None
            self._pollers[group] = count = self._pollers.get(group, 0.0) + waited / _DECAY
            share = _share(self._pollers.values())
        return min(SLOWEST, max(FASTEST, max(1.0, count) / share))

    def _forget(self) -> None:
        now = self._clock()
        left = math.exp((self._counted_at - now) / _DECAY)
        self._counted_at = now
        counts = ((group, count * left) for group, count in self._pollers.items())
        self._pollers = {group: count for group, count in counts if count >= _FORGOTTEN}


def _share(counts: Collection[float]) -> float:
    """Return how many polls a second a group may have at most, so that all have no more than there are."""
    left, number = POLLS_PER_SECOND, len(counts)
    if sum(counts) <= left:
        return left
    for count in sorted(counts):
        if count * number >= left:
            break
        left -= count
        number -= 1
    return left / max(1, number)
