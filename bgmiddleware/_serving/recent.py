"""What is made for one client, and is good for all who ask for the same just after it."""

import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["Recent"]

_Made = TypeVar("_Made")

_MOST = 50
_OLD = 10.0


class Recent(Generic[_Made]):
    """Remembers up to fifty things by what they are made for. Any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards the next
        self._made: dict[Hashable, tuple[float, float, _Made]] = {}
        """When each was made, when somebody began to make it last, and what it is."""

    def of(self, key: Hashable, fresh: float, make: Callable[[], _Made]) -> _Made:
        """Return what was made for *key* within the last *fresh* seconds, else what *make* returns now. Who asks while
        that is being made gets the one before it, unless it is ten times as old."""
        now = self._clock()
        with self._lock:
            made_at, begun_at, made = self._made.get(key, (float("-inf"), float("-inf"), None))
            if made is not None and now - made_at < _OLD * fresh:
                if now - begun_at < fresh:
                    return made
                self._made[key] = made_at, now, made
        new = make()
        with self._lock:
            self._made.pop(key, None)
            self._made[key] = now, now, new
            while len(self._made) > _MOST:
                del self._made[next(iter(self._made))]
        return new
