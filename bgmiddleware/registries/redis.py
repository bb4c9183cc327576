"""Jobs in a Redis or Valkey server: for the processes of any number of hosts.

The layout, with the prefix ``bg``. All keys of a job are in one slot of a cluster, and all of the index in another; so
what concerns both is done in two steps, the record first: it says what is true, and the index is corrected by it.

* ``bg:{KEY}``: a hash, the record. Beside it ``:request``, ``:output``, ``:body``: strings, the channels; ``:wake``: a
  stream of one entry, whose number is the end of the output, so that a reader who asks for what is behind its offset
  cannot miss it; ``:gone``: what is left for a while when the job has expired; ``:times``: a string, when the output
  came.
* ``{bg}:jobs``, ``:pending``, ``:running``, ``:due``, ``:ended`` …: sorted sets of keys (see ``lua/_index.lua``);
  ``{bg}:group:NAME``: who runs of a group; ``{bg}:name:NAME``: who holds a name; ``{bg}:secret``.
* ``{bg}:minute:NUMBER``: a hash, what was counted in that minute; ``{bg}:paths``: a sorted set, of which paths.

Only ended jobs have a time to live on the server. It is a little longer than ``ttl``, and each read compares the
instants exactly: so a job is never found with one half of its keys.
"""

import contextlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from typing import ClassVar

from .._ground.numbers import check_positive
from .._ground.weakly import weakly
from .._jobs import Channel, Job, JobState, Progress, Steps
from ..errors import ConfigurationError, JobExists, JobExpired, JobNotFound, QueueFull, RegistryError
from . import _changes as changes
from ._history import History, events_of, minutes_since, path_of, undone
from ._redis.index import LINGER, Entered, Index
from ._redis.link import Address, Call, Damaged, Server
from ._redis.outbox import RedisOutbox
from ._redis.records import Records, Stored, nonce
from ._times import MOST as MOST_TIMES
from .base import END, FILLED, PAGE_BYTES, SHORT, Evicted, Outbox, Piece, Registry, Renewal, Times, Transition

__all__ = ["RedisRegistry"]

_log = logging.getLogger("bgmiddleware")

_STRING_BYTES = 512 * 1024 * 1024  # the most that a string of Redis holds
_EVICT_AT_ONCE = 10
_TIDIED_AT_ONCE = 100
_GRACE = 10.0
_TRIES = 100
_BATCH = 200
_REMEMBERED = 1000
_MOMENT = 0.01
_NAMED = 30 * 24 * 3600.0  # a name of what has not ended: of one whose record the server lost, it is left for so long


class RedisRegistry(Registry):
    """Stores jobs in a Redis (5 or newer) or Valkey server, which all processes of a fleet share.

    *url*: ``redis://[user:password@]host[:port][/db]``, ``rediss://…`` for TLS, ``unix://path``, or
    ``redis+sentinel://[user:password@]host[:port],…/service[/db]`` (``rediss+sentinel://…``) for a service that the
    sentinels at these hosts know. Options of redis-py may follow as a query; prefix those for the sentinels with
    ``sentinel_``. *prefix* begins all keys: registries with different prefixes do not see each other. *timeout*:
    seconds that the server may take for an answer before ``RegistryError``. *max_waiting*: how many connections this
    process opens to wait for output; further readers poll four times a second. Instants use the server's clock, so the
    clocks of the hosts may differ; only tests pass *clock*.

    If an answer does not arrive, the call may or may not have been done; it is safe to repeat it. If the server lost a
    record, by a restart without a copy on disk or by eviction, the job raises ``JobNotFound``.
    """

    shared: ClassVar[bool] = True
    short_body: ClassVar[int] = SHORT

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        prefix: str = "bg",
        ttl: float = 3600.0,
        pending_ttl: float = 3600.0,
        max_jobs: int = 10_000,
        max_output: int = 16 * 1024 * 1024,
        max_result: int = 256 * 1024 * 1024,
        max_kept: int = 100,
        max_kept_bytes: int = 256 * 1024 * 1024,
        timeout: float = 5.0,
        max_waiting: int = 50,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if not re.fullmatch(r"[\w.:/-]{1,100}", prefix, re.ASCII):
            raise ConfigurationError.of_setting("prefix", prefix, "1 to 100 letters, digits and .:/_-")
        for name, value in {"timeout": timeout, "max_waiting": max_waiting}.items():
            check_positive(name, value)
        self._server = Server(
            Address(url, timeout=timeout), max_waiting=max_waiting, clock=clock, count=weakly(self._count)
        )
        super().__init__(
            ttl=ttl,
            pending_ttl=pending_ttl,
            max_jobs=max_jobs,
            max_output=max_output,
            max_result=max_result,
            max_kept=max_kept,
            max_kept_bytes=max_kept_bytes,
            clock=self._server.time,
        )
        for name, value in {"max_output": max_output, "max_result": max_result}.items():
            if value > _STRING_BYTES:
                raise ConfigurationError.of_setting(
                    name, value, f"at most {_STRING_BYTES}, since Redis stores no longer strings"
                )
        self._prefix = prefix
        self._records = Records(self._server, prefix)
        self._index = Index(self._server, prefix)
        self._written: dict[str, Stored] = {}  # by key

    def __repr__(self) -> str:
        return f"<RedisRegistry {self._server.shown} {self._prefix}>"

    def add(self, job: Job, *, lease: float | None = None) -> Job:
        return self.add_request(job, b"", lease=lease)

    def add_request(self, job: Job, body: bytes, *, lease: float | None = None) -> Job:
        if self.keep_house():
            self._evict_unless_just_back(_EVICT_AT_ONCE)
        patience = self.pending_ttl if job.process else self._patience(lease)
        here = (lease or 0.0) if job.process else 0.0
        if job.state is not JobState.PENDING:
            job = job.changed(state=JobState.PENDING)
        for _ in range(_TRIES):
            entered, stored = self._enter(job, body, patience, here)
            if stored is None:
                if not entered.known:
                    self._file(self._records.look(job.key))  # the index had lost it
                raise JobExists(job.key)
            if job.process:
                self._index.is_held(job.process, stored.now + here)
            if entered.known:  # of one that has expired
                self._index.file(stored.job, stored.now, "", anew=True)
            if self._has_name(stored.job, patience):
                self._remember(stored)
                return changes.held(stored.job, stored.now + here) if job.process else stored.job
            # Between its place and its record it was taken for one that is gone: who did so has the name now.
            self.discard(job.key)
        raise self._too_busy(job.key)

    def hold(self, process: str, lease: float) -> None:
        self._index.hold(process, lease)

    def get(self, key: str) -> Job:
        return self._look(key).seen

    def append(
        self, key: str, channel: Channel, offset: int, data: bytes, *, runner: str = "", times: Times = ()
    ) -> int:
        most = self.max_result if channel is Channel.BODY else _STRING_BYTES
        return self._records.append(key, channel, offset, data, runner=runner, most=most, times=times)

    def leave_gap(self, key: str, offset: int, note: bytes, *, runner: str) -> int:
        return self._records.leave_gap(key, offset, note, FILLED, runner=runner)

    def read(self, key: str, channel: Channel, offset: int, limit: int = PAGE_BYTES) -> Piece:
        return self._records.read(key, channel, offset, min(limit, PAGE_BYTES))

    def times(self, key: str, offset: int = 0, limit: int = MOST_TIMES) -> tuple[tuple[int, int], ...]:
        return self._records.times(key, offset)[:limit]

    def wait(self, key: str, offset: int, timeout: float) -> Job:
        deadline = time.monotonic() + timeout
        while True:
            # The look comes first, and what wakes stays: what is appended between the two does not block.
            stored = self._look(key)
            job = stored.seen
            left = deadline - time.monotonic()
            if job.output_end > offset or job.state.ended or left <= 0:
                return job
            limit = job.lease_expires_at if job.state is JobState.RUNNING else job.expires_at
            if limit is not None:
                left = min(left, limit - stored.now)
            self._records.pause(key, min(max(offset, 0), END), left)

    def transition(self, key: str, expect: Collection[JobState], change: Transition) -> bool:
        return self._transition(key, expect, change)

    def finish_with(self, key: str, body: bytes, change: Transition) -> bool:
        return self._transition(key, {JobState.RUNNING}, change._replace(body_end=len(body)), body)

    def _transition(self, key: str, expect: Collection[JobState], change: Transition, body: bytes = b"") -> bool:
        """Change the state, at an end behind the whole *body* of a short response."""
        for _ in range(_TRIES):
            stored = self._recall(key) or self._look(key)
            job, now = stored.job, stored.now
            if not changes.may_change(stored.held, now, expect, change.runner):
                if stored.is_recalled:
                    self._forget(key)
                    continue
                return False
            if change.to is JobState.RUNNING:
                new = changes.claimed(job, now, change)
                place = nonce()
                # Where it can be refused it is asked for first. Where not, it goes along: who dies before it has filed
                # the job as running leaves it due when its lease runs out.
                if new.groups and not self._index.reserve(new, place):
                    return False
                along = () if new.groups or new.lease_expires_at is None else (self._index.reserving(new, place),)
                if self._write(stored, new, place, along=along):
                    return True
                self._index.leave(new, place)
            else:
                if not stored.is_recalled:
                    changes.check_whole(job, change._replace(body_end=0) if body else change)
                least = change.output_end, change.body_end
                ended = changes.ended(job, now, change, ttl=self.ttl)
                if self._write(stored, ended, least=least, body=body):
                    return True
        raise self._too_busy(key)

    def renew(
        self,
        key: str,
        runner: str,
        *,
        lease: float | None = None,
        progress: Progress | None = None,
        title: str | None = None,
        steps: Steps | None = None,
    ) -> Renewal:
        def renewed(stored: Stored) -> Job | None:
            return changes.renewed(
                stored.job,
                stored.now,
                runner=runner,
                lease=lease,
                progress=progress,
                title=title,
                steps=steps,
                pending_ttl=self.pending_ttl,
            )

        job, ok = self._change(key, renewed)
        return Renewal(ok, job.cancel_requested_at is not None)

    def amend(self, key: str, change: Callable[[Job], Job | None]) -> Job | None:
        def amended(stored: Stored) -> Job | None:
            return changes.amended(stored.job, stored.seen, change, stored.now, ttl=self.ttl)

        job, done = self._change(key, amended)
        return job if done else None

    def request_cancel(self, key: str, reason: str = "cancelled on request") -> JobState:
        def asked(stored: Stored) -> Job | None:
            return changes.asked_to_stop(stored.held, stored.now, ttl=self.ttl, reason=reason)

        return self._change(key, asked)[0].state

    def position(self, key: str) -> int:
        return self._index.position(key) if self.get(key).state is JobState.PENDING else 0

    def waiting(self, group: str) -> int:
        return self._index.waiting(group)

    def take_cookies(self, key: str) -> bool:
        return self._records.take_cookies(key)

    def keep(self, key: str, keep: bool = True) -> Job | None:
        stored = self._look(key)
        if stored.seen.state.ended and not stored.job.state.ended:
            self._settle(key)
        job = self.get(key)
        asks = keep and job.state.ended and not job.kept
        # Its place comes first. Who dies before the record is written leaves one that is given back when it is due.
        if asks and not self._index.reserve_to_keep(job, self.max_kept, self.max_kept_bytes):
            return None

        def kept(stored: Stored) -> Job | None:
            if not stored.job.state.ended or stored.job.kept is keep or (keep and not asks):
                return None
            return changes.kept(stored.job, stored.now, ttl=self.ttl, keep=keep)

        return self._change(key, kept)[0]

    def discard(self, key: str) -> bool:
        try:
            done = self._records.forget(key, as_expired=False)
        except JobExpired:
            return False
        except JobNotFound:
            done = None  # perhaps by a call of this kind that came no further
        if done is not False:
            self._index.drop(key)
        return done is True

    def jobs(self, state: JobState | None = None, limit: int = 100, *, skip: int = 0) -> list[Job]:
        found: dict[str, Job] = {}  # by key: who comes meanwhile moves the others down
        # Those that are skipped need not be read where the index tells all. A state may have changed since it was
        # filed, and only the job says so.
        begin, skip = (skip, 0) if state is None else (0, skip)
        batch = min(_BATCH, skip + limit)  # of most lists the first one is all
        while len(found) < skip + limit and (keys := self._index.newest(state, begin, batch)):
            batch = _BATCH
            begin += len(keys)
            each = (self._with_process(stored).seen for stored in self._records.look_at_each(keys))
            found |= {job.key: job for job in each if state in (None, job.state)}
        return list(found.values())[skip : skip + limit]

    def evict(self, limit: int = 1000) -> Evicted:
        expired, due, forgotten = self._index.due(limit, self.max_jobs)
        if forgotten:
            self._records.unremember(forgotten)
        if expired:
            self._count("evicted", expired)
        return Evicted(sum(map(self._settle, due)), expired)

    def tidy(self) -> float | None:
        if self._evict_unless_just_back(_TIDIED_AT_ONCE) >= _TIDIED_AT_ONCE:
            return 0.0
        self._server.run_all(self._index.counting("", {}, self.clock()))
        return None if self.is_empty() else self.tidy_every

    def history(self, since: float) -> History:
        first, last = minutes_since(since, self.clock())
        return self._index.history(first, last)

    def is_empty(self) -> bool:
        return self._index.is_empty()

    def close(self) -> None:
        self.leave_house()
        self._server.close()

    def outbox(self, name: str) -> Outbox:
        return RedisOutbox(self._server, f"{self._prefix}:outbox:{name}")

    def secret(self) -> bytes:
        return self._index.secret(secrets.token_bytes(32))

    def _look(self, key: str) -> Stored:
        return self._with_process(self._records.look(key))

    def _with_process(self, stored: Stored) -> Stored:
        job = stored.job
        if job.state is not JobState.PENDING or not job.process:
            return stored
        return stored._replace(held_until=self._index.held_until(job.process, stored.now))

    def _enter(self, job: Job, body: bytes, patience: float, lease: float) -> tuple[Entered, Stored | None]:
        """Take a place and a name for a new job, then store its record; return what the index says, and the record,
        None where the key is taken."""
        gone: list[str] = []
        holder, may_evict, op = "", True, nonce()
        for tried in range(_TRIES):
            entering = self._index.entering(job, self.max_jobs, patience, lease, holder)
            creating = self._records.creating(job, body, op, patience, self.max_output)
            # Of jobs that have no name nearly all are taken in: their record is stored in the same round trip.
            replies = self._server.run_all(entering, *(() if job.name else (creating,)))
            entered = self._index.entered(replies[0])
            gone += entered.gone
            stored = None if job.name else self._records.created(job, op, patience, replies[1])
            if entered.full and stored is not None:
                self._records.forget(job.key, as_expired=False)
            if entered.holder.endswith("?") and tried < _TRIES // 2:
                time.sleep(_MOMENT)  # whoever takes it just now has it then, unless he died
            elif entered.holder:
                holder = entered.holder
                self._check_is_free(holder.removesuffix("?"))
            elif entered.full and may_evict:
                may_evict, op = False, nonce()
                self.evict(_EVICT_AT_ONCE)  # those that were never started make room too
            else:
                break
        else:
            raise self._too_busy(job.key)
        if gone:
            self._count("evicted", len(gone))
        for other in gone:
            with contextlib.suppress(JobNotFound, JobExpired):
                self._records.forget(other, as_expired=True)
        if entered.full:
            raise QueueFull(f"{self.max_jobs} jobs are waiting or running")
        if job.name:
            stored = self._records.created(job, op, patience, self._server.run_all(creating)[0])
        return entered, stored

    def _has_name(self, job: Job, patience: float) -> bool:
        """Whether a job that was just stored has the name that it was given."""
        try:
            return not job.name or self._index.keep_name(job, patience + LINGER)
        except RegistryError:
            with contextlib.suppress(RegistryError):
                self.discard(job.key)
            raise

    def _check_is_free(self, holder: str) -> None:
        """Raise ``JobExists`` where the job of this key holds its name."""
        with contextlib.suppress(JobNotFound, JobExpired, Damaged):
            stored = self._look(holder)
            if stored.held.holds_name(stored.now):
                raise JobExists(holder)

    def _change(self, key: str, change: Callable[[Stored], Job | None]) -> tuple[Job, bool]:
        """Change a job unless *change* returns None; return it as it reads, and whether it was changed."""
        for _ in range(_TRIES):
            stored = self._look(key)
            new = change(stored)
            if new is None:
                return stored.seen, False
            if self._write(stored, new):
                return new, True
        raise self._too_busy(key)

    def _write(
        self,
        stored: Stored,
        new: Job,
        place: str | None = None,
        *,
        least: tuple[int, int] = (0, 0),
        along: tuple[Call, ...] = (),
        body: bytes = b"",
    ) -> bool:
        """Replace a record that is still what was read, and file the job as what it is now, behind what goes *along*
        and the whole *body* of its response, in one round trip."""
        after = Stored(new, stored.now, nonce(), stored.place if place is None else place)
        writing = self._records.writing(stored, after, self.ttl, least)
        filing = self._index.filing(new, stored.now, after.place)
        events = events_of(stored.job, new)
        counting = (self._index.counting(path_of(new), events, stored.now),) if events else ()
        if body:
            most = self.max_result
            along += (self._records.appending(new.key, Channel.BODY, 0, body, runner=new.runner, most=most),)
        replies = self._server.run_all(*along, writing, filing, *counting)
        reply, filed = replies[len(along) : len(along) + 2]
        is_written = False
        try:
            if body:
                self._server.checked(replies[0])  # what else it answers, the next one does too
            is_written = self._records.written(new.key, reply)
        finally:
            if not is_written:
                self._forget(new.key)
                self._file_as_it_is(new.key)
                if events:
                    self._uncount(new, events, stored.now)
        if not is_written:
            return False
        self._index.filed(new.key, filed)
        self._remember(after)
        if new.name and _times_its_name(new) != _times_its_name(stored.job):
            with contextlib.suppress(RegistryError):  # it is done; the name lasts as long as it was meant to
                self._index.keep_name(new, self.ttl + LINGER if new.state.ended and not new.kept else _NAMED)
        if self._tells and new.state.ended and not stored.job.state.ended:
            with contextlib.suppress(RegistryError, JobNotFound, JobExpired):  # how long it is, only the server knows
                new = self.get(new.key)
            self._has_ended(new)
        return True

    def _uncount(self, job: Job, events: Mapping[str, int], now: float) -> None:
        """Take back what was counted of a change that was none."""
        with contextlib.suppress(RegistryError):
            self._server.run_all(self._index.counting(path_of(job), undone(events), now))

    def _file_as_it_is(self, key: str) -> None:
        """Take back what was filed of a job that could not be changed. Where that fails, it is done when it is due."""
        try:
            self._file(self._records.look(key))
        except (JobNotFound, JobExpired):
            self._index.drop(key)
        except RegistryError:
            pass

    # What this process wrote of jobs is most often what there is still: who claims or ends one need not look first.

    def _remember(self, stored: Stored) -> None:
        key = stored.job.key
        self._written.pop(key, None)
        if not stored.job.state.ended:
            self._written[key] = stored
            while len(self._written) > _REMEMBERED:
                with contextlib.suppress(KeyError, RuntimeError, StopIteration):  # another thread does so too
                    del self._written[next(iter(self._written))]

    def _recall(self, key: str) -> Stored | None:
        stored = self._written.get(key)
        if stored is None:
            return None
        now = max(stored.now, self._server.time())
        return self._with_process(stored._replace(now=now, is_recalled=True))

    def _forget(self, key: str) -> None:
        self._written.pop(key, None)

    def _file(self, stored: Stored) -> None:
        self._index.file(stored.job, stored.now, stored.place)

    def _too_busy(self, key: str) -> RegistryError:
        return RegistryError(f"{self._server.shown}: too many change the job {key[:8]}… at once")

    def _evict_unless_just_back(self, limit: int) -> int:
        # When the server was away, those who run jobs need a moment to say that they are there still.
        return 0 if time.monotonic() - self._server.link.back_at < _GRACE else sum(self.evict(limit))

    def _settle(self, key: str) -> bool:
        """Look at a job that is due. Make its loss permanent, and return whether this call did; or file it again."""
        try:
            stored = self._look(key)
            job, seen = stored.job, stored.seen
            if job.state.ended or not seen.state.ended:
                self._file(stored)
                return False
            return self._write(stored, changes.settled(stored.held, stored.now, ttl=self.ttl))
        except Damaged as error:
            _log.warning("the job %s… is given up: %s", key[:8], error)
        except (JobNotFound, JobExpired):
            pass
        self._index.drop(key)
        return False


def _times_its_name(job: Job) -> tuple[object, ...]:
    """Return what of a job says for how long it has its name."""
    return job.state, job.admitted, job.kept
