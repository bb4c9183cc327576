"""When the output of a job came: entries of 8 bytes, coded as the difference to the one before, and a head.

An entry says that the bytes up to an offset had come by an instant. The head has the last entry as it is, and the one
before it: so to add an entry, and to read the last ones, nobody reads the others. Memory, files and Redis (see
``_redis/lua/append.lua``) have the same layout.
"""

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from operator import itemgetter
from typing import NamedTuple

__all__ = ["ENTRY_BYTES", "HEAD_BYTES", "MOST", "RESOLUTION", "Head", "Times", "thinned", "times_after"]

RESOLUTION = 50
"""Milliseconds: within so many, entries are joined. Doubled as often as there are more than ``MOST`` of them."""

MOST = 64 * 1024
"""The most entries of a job."""

_HEAD = struct.Struct("<6d")  # numbers as Lua has them
_LARGEST = 2**32 - 1
_FEW = 512

HEAD_BYTES = _HEAD.size
ENTRY_BYTES = 8


class Head(NamedTuple):
    """What is needed to add an entry: within *gap* milliseconds they are joined; there are *length* of them; the last
    one is (*end*, *at*), and the one before it (*before_end*, *before_at*)."""

    gap: int = RESOLUTION
    length: int = 0
    end: int = 0
    at: int = 0
    before_end: int = 0
    before_at: int = 0

    @classmethod
    def unpacked(cls, data: bytes) -> "Head":
        """Return the head that *data* begins with; a new one, where it is too short."""
        return cls(*map(int, _HEAD.unpack_from(data))) if len(data) >= HEAD_BYTES else cls()

    def packed(self) -> bytes:
        """Return it as it is stored."""
        return _HEAD.pack(*self)

    def added(self, end: int, at: int) -> tuple["Head", int, bytes]:
        """Return the head with one more entry, at which number bytes are to be written, and which: none where *end*
        is not behind the last one. The first entry and the last one stay as they were told."""
        at = max(at, self.at)
        if end <= self.end:
            return self, self.length, b""
        if self.length > 1 and at - self.before_at < self.gap and end - self.before_end <= _LARGEST:
            entry = _packed(end - self.before_end, at - self.before_at)
            return Head(self.gap, self.length, end, at, self.before_end, self.before_at), self.length - 1, entry
        entries, from_end, from_at = [], self.end, self.at
        while end - from_end > _LARGEST or at - from_at > _LARGEST:  # a step that one entry cannot say
            step = min(end - from_end, _LARGEST), min(at - from_at, _LARGEST)
            entries.append(_packed(*step))
            from_end, from_at = from_end + step[0], from_at + step[1]
        entries.append(_packed(end - from_end, at - from_at))
        head = Head(self.gap, self.length + len(entries), end, at, from_end, from_at)
        return head, self.length, b"".join(entries)

    def fits(self, entries: bytes) -> bool:
        """Whether this head and *entries* were read at one moment."""
        last = _packed(self.end - self.before_end, self.at - self.before_at) if self.length else b""
        return len(entries) % ENTRY_BYTES == 0 and entries[-ENTRY_BYTES:] == last


class Times:
    """The times of one job, in memory."""

    __slots__ = ("_entries", "_head")

    def __init__(self) -> None:
        self._head = Head()
        self._entries = bytearray()

    @property
    def stored(self) -> int:
        """Bytes kept."""
        return len(self._entries)

    def add(self, times: Iterable[tuple[int, int]]) -> None:
        """Add entries: offset and milliseconds."""
        for end, at in times:
            self._head, number, data = self._head.added(end, at)
            self._entries[number * ENTRY_BYTES :] = data
        if self._head.length > MOST:
            self._head, self._entries = thinned(self._head, self._entries)

    def after(self, offset: int, limit: int) -> tuple[tuple[int, int], ...]:
        """See :meth:`Registry.times`."""
        return times_after(offset, lambda count: (self._head, self._entries[-ENTRY_BYTES * count :]))[:limit]


def thinned(head: Head, entries: bytes | bytearray) -> tuple[Head, bytearray]:
    """Return half as many entries, as even as before: as if they had been added with a larger gap."""
    times = _last_of(head, entries, -1)
    gap = head.gap
    while len(times) > MOST // 2:
        gap *= 2
        kept = [times[0]]
        for time in times[1:]:
            if len(kept) > 1 and time[1] - kept[-2][1] < gap and time[0] - kept[-2][0] <= _LARGEST:
                kept[-1] = time
            else:
                kept.append(time)
        times = tuple(kept)
    (before_end, before_at), (end, at) = times[-2:]
    data = bytearray()
    for (from_end, from_at), (to_end, to_at) in zip(((0, 0), *times), times, strict=False):
        data += _packed(to_end - from_end, to_at - from_at)
    return Head(gap, len(times), end, at, before_end, before_at), data


def times_after(offset: int, read: Callable[[int], tuple[Head, bytes | bytearray]]) -> tuple[tuple[int, int], ...]:
    """Return the entries that end behind *offset*, oldest first. *read* returns a head, and as many of the last entries
    as it is asked for."""
    last: tuple[tuple[int, int], ...] = ()
    for count in (_FEW, MOST):  # who follows asks for the last ones
        head, entries = read(count)
        last = _last_of(head, entries, offset)
        if len(last) < count or head.length <= count:
            break
    return last


def _last_of(head: Head, entries: bytes | bytearray, offset: int) -> tuple[tuple[int, int], ...]:
    """Return the entries that end behind *offset*, oldest first, of those that are given: the last ones."""
    steps: Sequence[tuple[int, int]] = list(struct.iter_unpack("<II", entries))
    # Backwards from the last one, since the head says where that ends.
    ends = list(accumulate(map(itemgetter(0), reversed(steps[1:])), int.__sub__, initial=head.end))[::-1]
    ats = list(accumulate(map(itemgetter(1), reversed(steps[1:])), int.__sub__, initial=head.at))[::-1]
    first = bisect_right(ends, offset)
    return tuple(zip(ends[first:], ats[first:], strict=True)) if steps else ()


def _packed(size: int, milliseconds: int) -> bytes:
    return struct.pack("<II", size, milliseconds)
