"""Where the bytes of a log lie that keeps its first and its last ones."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

__all__ = ["Bounds"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Byte *n* of a log lies at position *n* while n < *head*, and behind that in a ring of *tail* bytes.

    *floor*: where the ring begins, if that is not behind the head since bytes between them are missing.
    """

    head: int
    tail: int
    floor: int | None = None

    @classmethod
    @functools.cache  # a registry has one for all its jobs
    def of(cls, limit: int) -> Self:
        """Return the bounds that keep *limit* bytes, half of them from the beginning."""
        return cls(limit // 2, limit - limit // 2)

    @property
    def size(self) -> int:
        """Bytes kept at most."""
        return self.head + self.tail

    def dropped(self, end: int) -> tuple[int, int] | None:
        """Return the range that is not kept of a log of *end* bytes, if any."""
        if self.floor is not None:
            return self.head, max(self.floor, end - self.tail)
        return None if end <= self.size else (self.head, end - self.tail)

    def places(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield where *size* bytes from *offset* lie: positions, and how many bytes there are in a row."""
        while size > 0:
            if offset < self.head:
                position, room = offset, self.head - offset
            else:
                within = (offset - self.head) % self.tail
                position, room = self.head + within, self.tail - within
            room = min(room, size)
            yield position, room
            offset, size = offset + room, size - room

    def writes(self, end: int, size: int) -> Iterator[tuple[int, int, int]]:
        """Yield what of *size* bytes to be added at *end* is to be written: from where in them, to which position, how
        many. Of what is larger than the ring it is the end only: the rest would be overwritten at once."""
        head = min(size, max(0, self.head - end))
        for at, stop in ((0, head), (max(head, size - self.tail), size)):
            for position, room in self.places(end + at, stop - at):
                yield at, position, room
                at += room
