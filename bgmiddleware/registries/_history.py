"""What a registry counts, each minute of a day and for each path: so that nobody reads all jobs for a chart."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from .._jobs import Job, JobState

__all__ = [
    "BOUNDS",
    "KEPT",
    "MOST_PATHS",
    "OTHER",
    "Counts",
    "History",
    "Level",
    "Minute",
    "Spread",
    "added",
    "events_of",
    "minutes_of",
    "minutes_since",
    "path_of",
    "undone",
]

KEPT = 1440
"""For how many minutes counts are kept."""

MOST_PATHS = 200
"""How many paths are told apart within that time, ``OTHER`` included."""

OTHER = "other"
"""What jobs are counted as whose path is one too many, or not known."""

BOUNDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
"""Up to how many seconds the buckets of a :class:`Spread` reach; the last one, behind them, has no bound."""

_LONGEST = "_longest"
_STATES = ("started", *(state.value for state in JobState if state.ended))


@dataclass(frozen=True, slots=True)
class Spread:
    """How long something took: the *total* and the *longest* in seconds, and how many took up to each of ``BOUNDS``."""

    total: float = 0.0
    longest: float = 0.0
    buckets: tuple[int, ...] = (0,) * (len(BOUNDS) + 1)

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.buckets)

    def quantile(self, share: float) -> float | None:
        """Return how long that *share* of them took at most, as far as the buckets tell; None where there are none."""
        left = share * self.count
        below = 0.0
        for bound, count in zip((*BOUNDS, self.longest), self.buckets, strict=True):
            top = min(bound, self.longest) if self.longest > below else bound
            if count and count >= left:
                return below + (top - below) * left / count
            left -= count
            below = bound
        return self.longest if self.count else None

    def __add__(self, other: "Spread") -> "Spread":
        buckets = tuple(one + two for one, two in zip(self.buckets, other.buckets, strict=True))
        return Spread(self.total + other.total, max(self.longest, other.longest), buckets)


@dataclass(frozen=True, slots=True)
class Minute:
    """What happened to the jobs of one *path* in the minute that began *at* then: how many *started*, and how many
    ended in each state; how long those ran that ended, and how long those had waited that started."""

    at: float
    path: str
    started: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0
    lost: int = 0
    run_time: Spread = Spread()
    queue_wait: Spread = Spread()

    @classmethod
    def from_counts(cls, minute: int, path: str, counts: Mapping[str, int]) -> "Minute":
        """Return what a registry has counted; skips what it does not know."""
        states = {name: max(0, counts.get(name, 0)) for name in _STATES}
        return cls(60.0 * minute, path, **states, run_time=_spread(counts, "run"), queue_wait=_spread(counts, "wait"))

    def __add__(self, other: "Minute") -> "Minute":
        """Return what happened in both, as if it were in this one."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in (*_STATES, "run_time", "queue_wait")}
        return replace(self, **sums)


class Level(NamedTuple):
    """How many jobs were *waiting* and *running* when somebody looked, in the minute that began *at* then."""

    at: float
    waiting: int
    running: int


class History(NamedTuple):
    """What was counted, oldest first; of a minute in which nothing happened there may be nothing."""

    minutes: tuple[Minute, ...] = ()
    levels: tuple[Level, ...] = ()

    def by_path(self) -> dict[str, Minute]:
        """Return what happened to the jobs of each path in all, as if it were in its first minute."""
        sums: dict[str, Minute] = {}
        for minute in self.minutes:
            there = sums.get(minute.path)
            sums[minute.path] = minute if there is None else there + minute
        return sums


def _spread(counts: Mapping[str, int], what: str) -> Spread:
    buckets = tuple(max(0, counts.get(f"{what}_{number}", 0)) for number in range(len(BOUNDS) + 1))
    return Spread(max(0, counts.get(f"{what}_total", 0)) / 1000, counts.get(what + _LONGEST, 0) / 1000, buckets)


def events_of(before: Job, after: Job) -> dict[str, int]:
    """Return what is to be counted when a job changes, by name: numbers that are added, but of ``…_longest`` the larger
    one counts. Durations are in milliseconds."""
    if after.state is before.state:
        return {}
    if after.state is JobState.RUNNING:
        return {"started": 1, **_took("wait", (after.started_at or 0.0) - after.created_at)}
    if not after.state.ended:
        return {}
    ran = {} if after.started_at is None else _took("run", after.elapsed(after.ended_at or 0.0))
    return {after.state.value: 1, **ran}


def _took(what: str, seconds: float) -> dict[str, int]:
    took = max(0, round(1000 * seconds))
    total, longest, buckets = _NAMES[what]
    return {buckets[bisect_left(BOUNDS, seconds)]: 1, total: took, longest: took}


# Not put together each time: every job needs two of these.
_NAMES = {
    what: (f"{what}_total", what + _LONGEST, tuple(f"{what}_{number}" for number in range(len(BOUNDS) + 1)))
    for what in ("wait", "run")
}


def path_of(job: Job) -> str:
    """Return what a job is counted under."""
    return job.asked.get("path") or OTHER


def minutes_since(since: float, now: float) -> tuple[int, int]:
    """Return the first minute that is to be told of, and the last."""
    last = int(now // 60)
    return min(last, max(int(max(0.0, since) // 60), last - KEPT + 1)), last


def added(counts: dict[str, int], events: Mapping[str, int]) -> dict[str, int]:
    """Add *events* to *counts*; return these."""
    for name, number in events.items():
        there = counts.get(name, 0)
        counts[name] = max(there, number) if name.endswith(_LONGEST) else there + number
    return counts


def undone(events: Mapping[str, int]) -> dict[str, int]:
    """Return what takes *events* back, as far as that can be."""
    return {name: -number for name, number in events.items() if not name.endswith(_LONGEST)}


class Counts:
    """Counts in memory. To be used with a lock held."""

    def __init__(self) -> None:
        self._minutes: dict[int, dict[str, dict[str, int]]] = {}
        self._levels: dict[int, tuple[int, int]] = {}
        self._paths: dict[str, int] = {}  # the last minute of each
        self._newest = 0

    def add(self, now: float, path: str, events: Mapping[str, int]) -> None:
        """Count *events* of a path."""
        minute = self._begun(now)
        if path not in self._paths and len(self._paths) >= MOST_PATHS - 1:
            path = OTHER
        if path != OTHER:
            self._paths[path] = minute
        added(self._minutes.setdefault(minute, {}).setdefault(path, {}), events)

    def note_level(self, now: float, waiting: int, running: int) -> None:
        """Note how many jobs wait and run."""
        self._levels[self._begun(now)] = waiting, running

    def since(self, minute: int) -> History:
        """Return all that was counted from a *minute* on."""
        each = ((at, counted) for at, counted in sorted(self._minutes.items()) if at >= minute)
        minutes = [Minute.from_counts(at, path, counts) for at, paths in each for path, counts in paths.items()]
        levels = [Level(60.0 * at, *level) for at, level in sorted(self._levels.items()) if at >= minute]
        return History(tuple(minutes), tuple(levels))

    def _begun(self, now: float) -> int:
        minute = int(now // 60)
        if minute != self._newest:
            self._newest, oldest = minute, minute - KEPT + 1
            for kept in (self._minutes, self._levels):
                for gone in [at for at in kept if not oldest <= at <= minute]:
                    del kept[gone]
            self._paths = {path: at for path, at in self._paths.items() if oldest <= at <= minute}
        return minute


def minutes_of(counted: Iterable[tuple[int, str, Mapping[str, int]]]) -> tuple[Minute, ...]:
    """Return what was counted in some minutes, in this order."""
    return tuple(Minute.from_counts(at, path, counts) for at, path, counts in counted)
