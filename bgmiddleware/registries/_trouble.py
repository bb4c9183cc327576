"""Counts the calls that a storage did not answer, and for how long it did not."""

import threading
import time
from collections.abc import Callable

__all__ = ["Trouble"]


class Trouble:
    """Tells *count* of ``errors``, one for each call that failed; and of the seconds that the storage was ``away``,
    from a call that failed until one that did not. Any thread may call."""

    def __init__(self, count: Callable[[str, float], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._clock = clock
        self._lock = threading.Lock()  # guards the next
        self.told_until: float | None = None
        """While the storage is away: up to when that is counted."""

    def failed(self) -> None:
        """Take note of a call that failed."""
        self._count("errors", 1)
        with self._lock:
            now, before = self._clock(), self.told_until
            self.told_until = now
        if before is not None:
            self._count("away", now - before)

    def ended(self) -> None:
        """Take note of a call that was answered. To be called where *told_until* says that one failed before."""
        with self._lock:
            now, before = self._clock(), self.told_until
            self.told_until = None
        if before is not None:
            self._count("away", now - before)
