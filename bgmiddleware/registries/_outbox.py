"""Messages that wait to be delivered. A registry does not know to whom."""

import threading
from abc import ABC, abstractmethod

__all__ = ["MOST", "MemoryOutbox", "Outbox"]

MOST = 10_000
"""The most messages that one outbox holds."""


class Outbox(ABC):
    """Short texts, each under an id, and when each is due. All who share a registry share its outboxes.

    Instants are seconds since the epoch by the registry's clock. Any thread may call, and for a registry that processes
    share, any process. Errors of the storage are raised as ``RegistryError``.
    """

    @abstractmethod
    def put(self, id: str, at: float, text: str) -> bool:  # noqa: A002  # it is what it is
        """Store a text that is due *at* then, in place of another one of this *id*. Return false where there is no room
        for one more."""

    @abstractmethod
    def take(self, now: float, lease: float) -> tuple[str, str] | None:
        """Return the id and text of what is due first, None where nothing is. It is due again *lease* seconds later, if
        it is still there: exactly one of all who ask gets it."""

    @abstractmethod
    def first(self) -> tuple[str, float, str] | None:
        """Return the id of what is due first, when that is, and its text; None where there is nothing. Only looks."""

    @abstractmethod
    def remove(self, id: str) -> None:  # noqa: A002
        """Forget a text. Does nothing if it is gone."""

    @abstractmethod
    def size(self) -> int:
        """Return how many texts there are."""


class MemoryOutbox(Outbox):
    """An outbox of this process, which ends with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._texts: dict[str, tuple[float, str]] = {}

    def put(self, id: str, at: float, text: str) -> bool:  # noqa: A002
        with self._lock:
            if id not in self._texts and len(self._texts) >= MOST:
                return False
            self._texts[id] = at, text
            return True

    def take(self, now: float, lease: float) -> tuple[str, str] | None:
        with self._lock:
            if not self._texts:
                return None
            first, (at, text) = min(self._texts.items(), key=lambda item: item[1][0])
            if at > now:
                return None
            self._texts[first] = now + lease, text
            return first, text

    def first(self) -> tuple[str, float, str] | None:
        with self._lock:
            found = min(self._texts.items(), key=lambda item: item[1][0], default=None)
        return None if found is None else (found[0], *found[1])

    def remove(self, id: str) -> None:  # noqa: A002
        with self._lock:
            self._texts.pop(id, None)

    def size(self) -> int:
        return len(self._texts)
