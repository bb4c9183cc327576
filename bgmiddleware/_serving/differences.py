"""What differs between two texts, line by line, in a time that grows with their lines and not with their product."""

import difflib
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

__all__ = ["MOST_LINES", "Change", "changes_between", "keys_of"]

MOST_LINES = 100_000
"""How many lines a text may have; of a longer one, the head and the tail are compared."""

_DEEPEST = 12  # how often what lies between lines that are the same is looked at anew
_WORK = 1_000_000  # pairs of lines that are compared one with each other, in all: at worst each some hundred times
_MOST_PAIRS = 250_000  # and of one gap
_NUMBERS = re.compile(r"\d+(?:[.,:]\d+)*")


class Change(NamedTuple):
    """The lines *begin* to *end* of the earlier text became those from *new_begin* to *new_end* of the later one."""

    begin: int
    end: int
    new_begin: int
    new_end: int


def keys_of(lines: Sequence[str], *, ignores_numbers: bool) -> list[str]:
    """Return what of each line is compared: all of it, or all but its numbers and times."""
    return [_NUMBERS.sub("0", line) for line in lines] if ignores_numbers else list(lines)


def changes_between(earlier: Sequence[str], later: Sequence[str]) -> list[Change]:
    """Return the changes that make the later text of the earlier one, in order. Not always the fewest."""
    numbers: dict[str, int] = {}
    old = [numbers.setdefault(line, len(numbers)) for line in earlier]
    new = [numbers.setdefault(line, len(numbers)) for line in later]
    changes = list(_Differences(old, new).between(0, len(old), 0, len(new), 0))
    return _joined(changes)


def _joined(changes: list[Change]) -> list[Change]:
    joined: list[Change] = []
    for change in changes:
        if joined and (joined[-1].end, joined[-1].new_end) == (change.begin, change.new_begin):
            change = Change(joined[-1].begin, change.end, joined.pop().new_begin, change.new_end)
        joined.append(change)
    return joined


class _Differences:
    def __init__(self, old: list[int], new: list[int]) -> None:
        self._old = old
        self._new = new
        self._left = _WORK

    def between(self, begin: int, end: int, new_begin: int, new_end: int, depth: int) -> Iterator[Change]:
        """Yield the changes between two ranges of lines."""
        old, new = self._old, self._new
        while begin < end and new_begin < new_end and old[begin] == new[new_begin]:
            begin, new_begin = begin + 1, new_begin + 1
        while begin < end and new_begin < new_end and old[end - 1] == new[new_end - 1]:
            end, new_end = end - 1, new_end - 1
        if begin == end or new_begin == new_end:
            if begin < end or new_begin < new_end:
                yield Change(begin, end, new_begin, new_end)
            return
        anchors = self._anchors(begin, end, new_begin, new_end) if depth < _DEEPEST else []
        if not anchors:
            yield from self._by_pairs(begin, end, new_begin, new_end)
            return
        for at, new_at in anchors:
            yield from self.between(begin, at, new_begin, new_at, depth + 1)
            begin, new_begin = at + 1, new_at + 1
        yield from self.between(begin, end, new_begin, new_end, depth + 1)

    def _anchors(self, begin: int, end: int, new_begin: int, new_end: int) -> list[tuple[int, int]]:
        """Return the lines that are once in each range, as many as come in the same order (patience diff)."""
        once = {line for line, count in Counter(self._old[begin:end]).items() if count == 1}
        once &= {line for line, count in Counter(self._new[new_begin:new_end]).items() if count == 1}
        places = {line: at for at, line in enumerate(self._new[new_begin:new_end], new_begin) if line in once}
        pairs = [(at, places[line]) for at, line in enumerate(self._old[begin:end], begin) if line in once]
        return _longest_rising(pairs)

    def _by_pairs(self, begin: int, end: int, new_begin: int, new_end: int) -> Iterator[Change]:
        """Compare each line with each, where those are few; else say that all of them changed."""
        pairs = (end - begin) * (new_end - new_begin)
        if pairs > min(_MOST_PAIRS, self._left):
            yield Change(begin, end, new_begin, new_end)
            return
        self._left -= pairs
        matcher = difflib.SequenceMatcher(None, self._old[begin:end], self._new[new_begin:new_end], autojunk=False)
        for kind, first, last, new_first, new_last in matcher.get_opcodes():
            if kind != "equal":
                yield Change(begin + first, begin + last, new_begin + new_first, new_begin + new_last)


def _longest_rising(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the most of *pairs*, whose first numbers rise, so that the second ones rise too."""
    tops: list[int] = []  # the least second number that a chain of each length ends with
    chains: list[int] = []  # the place of that pair
    before: list[int] = []
    for at, (_, second) in enumerate(pairs):
        length = bisect_left(tops, second)
        before.append(chains[length - 1] if length else -1)
        tops[length : length + 1] = [second]
        chains[length : length + 1] = [at]
    rising: list[tuple[int, int]] = []
    at = chains[-1] if chains else -1
    while at >= 0:
        rising.append(pairs[at])
        at = before[at]
    return rising[::-1]
