"""The index: which jobs there are, in which order, who runs of a group, and what is due. See ``lua/_index.lua``."""

import contextlib
import logging
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any, NamedTuple

from ..._jobs import Job, JobState
from ...errors import RegistryError
from .._history import KEPT, MOST_PATHS, OTHER, History, Level, minutes_of
from .link import Call, Server

__all__ = ["LINGER", "Entered", "Index"]

_log = logging.getLogger("bgmiddleware")

_NAMES = ("jobs", "pending", "running", "due", "ended", "last", "queue", "processes", "held", "expired", "kept")
_MOST_PROCESSES = 1000
_MINUTES_AT_ONCE = 60
_LOOK_AGAIN = 3600.0  # at jobs that run without a lease, or are kept
LINGER = 60.0  # for so many seconds more a name is kept than its job may hold it


class Entered(NamedTuple):
    """The answer to who wants a place for a new job: *full*; or *known*, there is one of this key already; or *holder*,
    what its name holds. *gone*: the keys of those that made room."""

    full: bool
    known: bool
    holder: str
    now: float
    gone: list[str]


class Index:
    """The index of a registry, all of it in one slot of a cluster."""

    def __init__(self, server: Server, prefix: str) -> None:
        self._server = server
        self._prefix = f"{{{prefix}}}"
        self._keys = [f"{self._prefix}:{name}" for name in _NAMES]
        self._held_until: dict[str, float] = {}  # by process: as of the last look, never too late

    def entering(self, job: Job, max_jobs: int, patience: float, lease: float, holder: str) -> Call:
        """Return the call that takes a place for a new job, pending for *patience* seconds, and its name, which may
        hold *holder* now. The process that it waits in, if it does, is there for *lease* seconds."""
        names = [self._name(job)] if job.name else []
        keys = [*self._keys, *names, *map(self._waits, job.groups)]
        arguments = (job.key, max_jobs, patience, job.priority.rank, holder, _milliseconds(patience + LINGER))
        return Call("enter", keys, (*arguments, job.process, lease, len(names)))

    def entered(self, reply: Any) -> Entered:
        """Return the answer to that call."""
        answer, now, *others = self._server.checked(reply)
        keys = [other.decode() for other in others]
        if answer == b"named":
            return Entered(False, False, keys[0], float(now), [])
        return Entered(answer == b"full", answer == b"known", "", float(now), keys)

    def keep_name(self, job: Job, seconds: float) -> bool:
        """Keep the name of a job, whose record is there; false where another one has it by now."""
        keys = [*self._keys, self._name(job)]
        return bool(self._server.run("name", keys, job.key, _milliseconds(seconds))[0] == b"ok")

    def _name(self, job: Job) -> str:
        return f"{self._prefix}:name:{job.name}"

    def hold(self, process: str, lease: float) -> None:
        """Say that a process is there for *lease* seconds, in whose memory jobs wait."""
        self._held_until[process] = float(self._run("hold", [], process, lease)[1])

    def is_held(self, process: str, until: float) -> None:
        """Take note that a process is there until then, for sure."""
        self._held_until[process] = max(until, self._held_until.get(process, 0.0))

    def held_until(self, process: str, now: float) -> float:
        """Return until when a process is there for sure, or was."""
        until = self._held_until.get(process, 0.0)
        if until <= now:  # else it is that, or later: nobody takes it back
            score = self._server.link.command("ZSCORE", self._keys[7], process)
            if len(self._held_until) > _MOST_PROCESSES:
                self._held_until.clear()
            until = self._held_until[process] = 0.0 if score is None else float(score)
        return until

    def file(self, job: Job, now: float, place: str, *, anew: bool = False) -> None:
        """Bring the index up to date with a job. Where that fails it is done when the job is due: the record counts."""
        self.filed(job.key, self._server.run_all(self.filing(job, now, place, anew=anew))[0])

    def filing(self, job: Job, now: float, place: str, *, anew: bool = False) -> Call:
        """Return the call that does so."""
        at = job.expires_at
        if job.state is JobState.RUNNING:
            at = now + _LOOK_AGAIN if job.lease_expires_at is None else job.lease_expires_at
        where = "ended" if job.state.ended else job.state.value
        if job.kept:
            where, at = "kept", now + _LOOK_AGAIN
        rank = str(job.priority.rank)
        args = (job.key, where, repr(at), "anew" if anew else "", place, _until(job), rank, job.process)
        return Call("file", [*self._keys, *map(self._group, job.groups), *map(self._waits, job.groups)], args)

    def filed(self, key: str, reply: Any) -> None:
        """Take note of the answer to that call."""
        try:
            self._server.checked(reply)
        except RegistryError as error:
            _log.warning("the job %s… is filed later: %s", key[:8], error)

    def drop(self, key: str) -> None:
        """Know nothing more of a job."""
        with contextlib.suppress(RegistryError):
            self._run("file", [], key, "gone", "", "", "", "", "", "")

    def reserving(self, job: Job, place: str) -> Call:
        """Return the call that takes a place in each group of a job that is about to run, or in none. Where there is
        room, the job is due when its lease runs out, whatever becomes of who claims it."""
        args = (place, _until(job), *job.groups.values(), job.key)
        return Call("reserve", [*self._keys, *map(self._group, job.groups)], args)

    def reserve(self, job: Job, place: str) -> bool:
        """Do so; return whether there is room."""
        return bool(self._server.checked(self._server.run_all(self.reserving(job, place))[0])[0] == b"ok")

    def reserve_to_keep(self, job: Job, most: int, most_bytes: int) -> bool:
        """Take a place among the jobs that are kept; return whether there is room, also where it has one."""
        return bool(self._run("keep", [], job.key, job.size, most, most_bytes, _LOOK_AGAIN)[0] == b"ok")

    def leave(self, job: Job, place: str) -> None:
        """Give back what was reserved."""
        for group in job.groups:
            self._server.link.command("ZREM", self._group(group), place)

    def due(self, limit: int, remembered: int) -> tuple[int, list[str], list[str]]:
        """Drop up to *limit* of those that expired; return how many, the keys of what else is to be looked at, and of
        what is not to be remembered any more: of those that expired, the latest *remembered* are."""
        _, expired, due, forgotten = self._run("due", [], limit, remembered)
        return expired, [key.decode() for key in due], [key.decode() for key in forgotten]

    def newest(self, state: JobState | None, begin: int, count: int) -> list[str]:
        """Return keys, newest first, among which are all in *state*."""
        among = {JobState.PENDING: self._keys[1], JobState.RUNNING: self._keys[2]}
        index = self._keys[0] if state is None else among.get(state, self._keys[0])
        return [key.decode() for key in self._server.link.command("ZREVRANGE", index, begin, begin + count - 1)]

    def is_empty(self) -> bool:
        """Whether there are no jobs."""
        return not self._server.link.command("ZCARD", self._keys[0])

    def position(self, key: str) -> int:
        """Return the place of a pending job, from 1; 0 if it is not filed as one."""
        place = self._server.link.command("ZRANK", self._keys[6], key)
        return 0 if place is None else int(place) + 1

    def waiting(self, group: str) -> int:
        """Return how many pending jobs belong to a group."""
        return int(self._server.run("waiting", [*self._keys, self._waits(group)])[1])

    def counting(self, path: str, events: Mapping[str, int], now: float) -> Call:
        """Return the call that counts *events* of a path in this minute, and notes how many jobs wait and run; without
        a path, only the latter."""
        minute = int(now // 60)
        bounds = (MOST_PATHS, OTHER, minute - KEPT, minute, _milliseconds(60.0 * (KEPT + 1)))
        numbers = chain.from_iterable(events.items())
        return Call(
            "count", [*self._keys, f"{self._prefix}:paths", self._minute(minute)], (path, *bounds, *numbers), once=True
        )

    def history(self, first: int, last: int) -> History:
        """Return what was counted from one minute to another one, and how many jobs wait and run now."""
        counted, levels = [], []
        now, waiting, running = 0.0, 0, 0
        for begin in range(first, last + 1, _MINUTES_AT_ONCE):
            minutes = range(begin, min(begin + _MINUTES_AT_ONCE, last + 1))
            _, at, waiting, running, found = self._server.run("history", [*self._keys, *map(self._minute, minutes)])
            now = float(at)
            for minute, fields in zip(minutes, found, strict=True):
                paths, level = _counts(fields)
                counted += [(minute, path, counts) for path, counts in paths.items()]
                levels += [Level(60.0 * minute, *level)] if level is not None else []
        present = 60.0 * (now // 60)
        levels = [level for level in levels if level.at != present]
        return History(minutes_of(counted), (*levels, Level(present, waiting, running)))

    def _minute(self, minute: int) -> str:
        return f"{self._prefix}:minute:{minute}"

    def secret(self, new: bytes) -> bytes:
        """Return the secret of the registry: the *new* one, if there is none yet."""
        name = f"{self._prefix}:secret"
        # Asked for each time: a server that was emptied gets a new one, which must be the same for all.
        stored = self._server.link.command("GET", name)
        if stored is None:
            self._server.link.command("SET", name, new, "NX")
            stored = self._server.link.command("GET", name)
        if stored is None or len(stored) != len(new):
            raise RegistryError(f"{self._server.shown}: {name} is no secret of {len(new)} bytes")
        return bytes(stored)

    def _run(self, script: str, groups: Iterable[str], *args: Any) -> list[Any]:
        return self._server.run(script, [*self._keys, *map(self._group, groups)], *args)

    def _group(self, name: str) -> str:
        return self._named("group", name)

    def _waits(self, name: str) -> str:
        return self._named("waits", name)

    def _named(self, kind: str, name: str) -> str:
        # What of the name is no text (a lone surrogate) is written as its number is.
        return f"{self._prefix}:{kind}:{name}".encode("utf-8", "backslashreplace").decode()


def _counts(fields: list[bytes]) -> tuple[dict[str, dict[str, int]], tuple[int, int] | None]:
    """Return the counts of a minute by path, and how many jobs waited and ran then."""
    paths: dict[str, dict[str, int]] = {}
    level = {"waiting": -1, "running": -1}
    for field, value in zip(fields[::2], fields[1::2], strict=True):
        name, space, path = field.decode("utf-8", "replace").partition(" ")
        if space:
            paths.setdefault(path, {})[name] = int(value)
        else:
            level[name] = int(value)
    return paths, None if level["waiting"] < 0 else (level["waiting"], level["running"])


def _milliseconds(seconds: float) -> int:
    return int(1000 * min(seconds, 1e12))


def _until(job: Job) -> str:
    return "+inf" if job.lease_expires_at is None else repr(job.lease_expires_at)
