"""Which jobs a list shows: filters, and pages that leave out nothing, whatever comes in or is forgotten meanwhile."""

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode

from .._jobs import Job, JobState
from ..registries.base import Registry
from .visit import BadParameter

__all__ = ["ROWS", "Cursor", "Filters", "Found", "look_for", "matching"]

ROWS = 50
_BATCH = 200
_SLACK = 100
_BUDGET = 0.05
"""Seconds that a look may take before it says how far it came."""
_LONGEST = 200
_CURSOR = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)-([0-9a-f]{32})-([0-9]{1,9})")
_FIELDS = ("state", "path", "owner", "version", "text", "sort")
_SORTED = 1000
"""How many jobs are sorted, the newest: a registry has an index by time and none by anything else."""
_NEWEST_FIRST = "-created"

_Sorts = Mapping[str, Callable[[Job, float], Any]]
_BY_TEXT: _Sorts = {
    "state": lambda job, now: list(JobState).index(job.state),
    "title": lambda job, now: job.title.casefold(),
    "path": lambda job, now: str(job.asked.get("path") or ""),
    "owner": lambda job, now: (job.owner or "").casefold(),
    "version": lambda job, now: job.version,
}
_BY_NUMBER: _Sorts = {  # the largest first
    "duration": lambda job, now: -1.0 if job.started_at is None else job.elapsed(now),
    "output": lambda job, now: job.output_end,
}
_SORTS: _Sorts = {**_BY_TEXT, **_BY_NUMBER, "created": lambda job, now: job.created_at}
_LIVE = (JobState.PENDING, JobState.RUNNING)


class Cursor(NamedTuple):
    """A place in the list, newest first: behind the job of a *key* that came *at* then, and that was the one of this
    *number* when it was shown."""

    at: float
    key: str
    number: int

    def __str__(self) -> str:
        return f"{self.at:.9f}-{self.key}-{self.number}"


@dataclass(frozen=True, slots=True)
class Filters:
    """What is asked for: jobs in a *state*, of a *path*, an *owner*, a *version*, that came in the last *since* s,
    and whose title or reason has a *text*, whatever its case. Empty: any. *sort*: by what they are sorted, with ``-``
    the largest first; empty: the newest first."""

    state: str = ""
    path: str = ""
    owner: str = ""
    version: str = ""
    text: str = ""
    sort: str = ""
    since: int = 0
    owners: Collection[str] = ()
    """Where there are any, only the jobs of these. Nobody asks for that by a query."""

    @classmethod
    def of_query(cls, query: str) -> "tuple[Filters, Cursor | None]":
        """Return what a query asks for, and from where on. Raises ``BadParameter``."""
        given = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=100))
        state, since, before = given.get("state", ""), given.get("since", ""), given.get("before", "")
        if state and state not in list(JobState):
            raise BadParameter(f"state must be one of {', '.join(JobState)}")
        sort = given.get("sort", "")
        if sort and sort.removeprefix("-") not in _SORTS:
            raise BadParameter(f"sort must be one of {', '.join(_SORTS)}, with or without - before it")
        if since and not (since.isascii() and since.isdigit() and len(since) <= 9):
            raise BadParameter("since must be a whole number of seconds")
        found = _CURSOR.fullmatch(before)
        if before and found is None:
            raise BadParameter("before must be one that a list said")
        cursor = None if found is None else Cursor(float(found[1]), found[2], int(found[3]))
        texts = {name: given.get(name, "")[:_LONGEST] for name in _FIELDS} | {"sort": _unless_newest_first(sort)}
        return cls(**texts, since=int(since or 0)), cursor

    def query(self, **changes: str) -> str:
        """Return a reference to the list with these filters, and with *changes*."""
        values = {name: getattr(self, name) for name in _FIELDS} | {"since": str(self.since or "")} | changes
        return "?" + urlencode({name: value for name, value in values.items() if value}, errors="backslashreplace")

    def order_by(self, name: str) -> tuple[str, str]:
        """Return how the jobs are sorted by *name*: ``ascending``, ``descending``, or not (empty); and a reference to
        the list that is sorted by it, the other way round where it is."""
        now, first = self.sort or _NEWEST_FIRST, name if name in _BY_TEXT else f"-{name}"
        if now.removeprefix("-") != name:
            return "", self.query(sort=_unless_newest_first(first))
        other = name if now.startswith("-") else f"-{name}"
        return "descending" if now.startswith("-") else "ascending", self.query(sort=_unless_newest_first(other))

    def match(self, job: Job, now: float) -> bool:
        """Whether a job is one of those that are asked for."""
        return (
            (not self.state or job.state == self.state)
            and (not self.path or job.asked.get("path") == self.path)
            and (not self.owners or job.owner in self.owners)
            and (not self.owner or job.owner == self.owner)
            and (not self.version or job.version == self.version)
            and (not self.since or job.created_at >= now - self.since)
            and (not self.text or self.text.casefold() in f"{job.title}\n{job.reason}".casefold())
        )


class Found(NamedTuple):
    """The *jobs* of a page; *next*, where the next one begins, None at the end; *looked*: how many jobs were looked at;
    *whole*: whether the page is full, or nothing is left to look at."""

    jobs: list[Job]
    next: Cursor | None
    looked: int
    whole: bool


def _unless_newest_first(sort: str) -> str:
    return "" if sort == _NEWEST_FIRST else sort


def look_for(
    registry: Registry,
    filters: Filters,
    after: Cursor | None,
    limit: int = ROWS,
    clock: Callable[[], float] = time.monotonic,
    budget: float = _BUDGET,
) -> Found:
    """Return up to *limit* jobs that match, newest first, behind *after*. Where that takes longer than *budget*, fewer,
    with where to look on.

    Where they are to be sorted, the first of the thousand newest that match, or of the oldest, and nowhere to look on.
    """
    if filters.sort:
        found = _look(registry, filters, None, ROWS if filters.sort == "created" else _SORTED, clock, clock() + budget)
        by, now = _SORTS[filters.sort.removeprefix("-")], registry.clock()
        jobs = sorted(found.jobs, key=lambda job: by(job, now), reverse=filters.sort.startswith("-"))
        return Found(jobs[:limit], None, found.looked, found.next is None)
    return _look(registry, filters, after, limit, clock, clock() + budget)


def _look(
    registry: Registry,
    filters: Filters,
    after: Cursor | None,
    limit: int,
    clock: Callable[[], float],
    until: float,
) -> Found:
    now, oldest_first = registry.clock(), filters.sort == "created"
    found: list[Job] = []
    looked, place = 0, after
    for number, job in _oldest_first(registry, filters) if oldest_first else _behind(registry, filters, after):
        if len(found) == limit:
            return Found(found, place, looked, True)
        if looked and looked % _BATCH == 0 and clock() > until:
            return Found(found, place, looked, False)
        if filters.since and job.created_at < now - filters.since and not oldest_first:
            break
        looked += 1
        place = Cursor(job.created_at, job.key, number)
        if filters.match(job, now):
            found.append(job)
    return Found(found, None, looked, True)


def matching(registry: Registry, filters: Filters, limit: int, wanted: Callable[[Job], bool]) -> list[Job]:
    """Return all jobs that match and are *wanted*, up to *limit*, newest first."""
    now = registry.clock()
    found = (job for _, job in _behind(registry, filters, None) if filters.match(job, now) and wanted(job))
    return list(islice(found, limit))


def _behind(registry: Registry, filters: Filters, after: Cursor | None) -> Iterator[tuple[int, Job]]:
    """Yield the jobs behind a place, with their numbers: where that is now, since it moves down with each that comes,
    and up with each that is forgotten."""
    state = JobState(filters.state) if filters.state in _LIVE else None  # of these every registry has an index
    begin = 0 if after is None else _beginning(registry, state, after)
    seen: set[str] = set()
    apart: list[tuple[int, Job]] = []  # what came at the same instant, and may be before it or behind it
    passed = False
    for number, job in _from(registry, state, begin, first=_BATCH if after else ROWS + 1):
        if job.key in seen:
            continue
        seen.add(job.key)
        if after is None or job.created_at < after.at:
            yield from apart
            apart = []
            yield number, job
        elif job.key == after.key:
            passed, apart = True, []
        elif job.created_at == after.at and passed:
            yield number, job
        elif job.created_at == after.at:
            apart.append((number, job))
    yield from apart


def _oldest_first(registry: Registry, filters: Filters) -> Iterator[tuple[int, Job]]:
    """Yield the jobs from the oldest on, with their numbers. What comes meanwhile moves them down the list, so each
    piece that is read ends with one that was seen."""
    state = JobState(filters.state) if filters.state in _LIVE else None
    begin, seen = _count(registry, state), set[str]()
    while begin > 0:
        size = min(_BATCH, begin)
        begin -= size
        jobs = registry.jobs(state, size + (_SLACK if seen else 0), skip=begin)
        for number, job in reversed(list(enumerate(jobs, begin))):
            if job.key not in seen:
                seen.add(job.key)
                yield number, job


def _count(registry: Registry, state: JobState | None) -> int:
    """Return how many jobs there are, by looking for the last one: each look halves the rest."""
    more = 1
    while registry.jobs(state, 1, skip=more - 1):
        more *= 2
    least, most = more // 2, more - 1
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if registry.jobs(state, 1, skip=middle - 1) else (least, middle - 1)
    return least


def _from(registry: Registry, state: JobState | None, begin: int, first: int) -> Iterator[tuple[int, Job]]:
    size = first
    while jobs := registry.jobs(state, size, skip=begin):
        yield from enumerate(jobs, begin)
        begin, size = begin + len(jobs), _BATCH


def _beginning(registry: Registry, state: JobState | None, after: Cursor) -> int:
    """Return the number of a job that is not behind a place yet, not far before it."""
    begin, back = after.number, _SLACK
    while begin > 0:
        begin = max(0, begin - back)
        first = registry.jobs(state, 1, skip=begin)
        if first and first[0].created_at > after.at:
            return begin
        back *= 4
    return 0
