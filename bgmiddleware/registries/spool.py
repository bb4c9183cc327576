"""Jobs in a directory that the processes of one host share, and that outlives them."""

import contextlib
import errno
import itertools
import logging
import os
import re
import sqlite3
import sys
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import ClassVar, TypeVar

from .._ground.numbers import check_positive
from .._ground.weakly import weakly
from .._jobs import Channel, Job, JobState, Progress, Steps
from ..errors import (
    Fenced,
    JobExists,
    JobExpired,
    JobNotFound,
    QueueFull,
    RegistryError,
    RegistryFull,
)
from . import _changes as changes
from ._history import History, events_of, minutes_since, path_of
from ._spool import counting
from ._spool import rows as table
from ._spool.clock import HostClock
from ._spool.jobfiles import look
from ._spool.layout import Ends, open_file
from ._spool.outbox import SpoolOutbox
from ._spool.rows import Row
from ._spool.store import Change, Store, storage_errors, trouble
from ._spool.waking import Waking
from ._spool.writer import Sealed, Writer
from ._times import MOST as MOST_TIMES
from .base import PAGE_BYTES, SHORT, Evicted, Outbox, Piece, Registry, Renewal, StorageFull, Times, Transition

__all__ = ["SpoolRegistry"]

_KEY = re.compile(r"[0-9a-f]{32}")
_EVICT_IN_ONE = 100  # step: meanwhile no other process can write
_EVICT_AT_ONCE = 10  # each may be some files to remove, and a request waits
_CLEAN_UP_EVERY = 10.0
_REST = 20  # times as long as a look at what was left behind took, until the next
_LOOK_EVERY = 5.0

T = TypeVar("T")

_log = logging.getLogger("bgmiddleware")


class SpoolRegistry(Registry):
    """Stores jobs in *directory*, for all processes of one host that use it. Jobs survive a restart.

    The first use creates the directory (mode 0700) in an existing parent. It must belong to the user of this process,
    be on a local file system, and have no other use. Acknowledged data survives the kill of any process. No write waits
    for the disk, so a power loss may lose the last seconds.

    *max_bytes* limits all jobs together: ended jobs are removed, oldest first, and if that is not enough, new jobs are
    refused (``QueueFull``). It is checked when a job is added, renews its claim, or ends. *busy_timeout*: seconds to
    wait for another process's lock before ``RegistryError``.

    All processes of a host share the clock of the instants: the wall clock at the first use since boot, plus the time
    since then. So setting the wall clock does no harm, but instants differ from it by as much until the next boot. On
    systems other than Linux it is the wall clock itself.
    """

    shared: ClassVar[bool] = True
    short_body: ClassVar[int] = SHORT

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        ttl: float = 3600.0,
        pending_ttl: float = 3600.0,
        max_jobs: int = 10_000,
        max_output: int = 16 * 1024 * 1024,
        max_result: int = 256 * 1024 * 1024,
        max_kept: int = 100,
        max_kept_bytes: int = 256 * 1024 * 1024,
        max_bytes: int = 4 * 1024 * 1024 * 1024,
        busy_timeout: float = 5.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._store = Store(directory, busy_timeout, weakly(self._has_ended), weakly(self._count))
        steady = HostClock(self._store.path) if sys.platform == "linux" else time.time
        super().__init__(
            ttl=ttl,
            pending_ttl=pending_ttl,
            max_jobs=max_jobs,
            max_output=max_output,
            max_result=max_result,
            max_kept=max_kept,
            max_kept_bytes=max_kept_bytes,
            clock=clock or steady,
        )
        for name, value in {"max_bytes": max_bytes, "busy_timeout": busy_timeout}.items():
            check_positive(name, value)
        self.tidy_every: float = min(self.tidy_every, _CLEAN_UP_EVERY)
        self.max_bytes = max_bytes
        self.max_kept_bytes: int = min(max_kept_bytes, int(max_bytes // 2))
        self.busy_timeout = busy_timeout
        self._waking = Waking(look)
        self._clean_up_at = float("-inf")  # by the monotonic clock

    @property
    def directory(self) -> str:
        """The absolute path."""
        return self._store.path

    def check(self) -> None:
        """Raise ``ConfigurationError`` where the directory cannot be used, or made. Makes nothing."""
        self._store.check()

    def is_there(self) -> bool:
        return self._store.is_there()

    # The primitives.

    def add(self, job: Job, *, lease: float | None = None) -> Job:
        if not _KEY.fullmatch(job.key):
            raise RegistryError("a key has 32 characters of 0123456789abcdef: it names files")
        self._free_disk()
        is_late = self.keep_house()
        with self._store.changing() as change:
            now = self.clock()
            patience = self.pending_ttl if job.process else self._patience(lease)
            job = job.changed(state=JobState.PENDING, created_at=now, expires_at=now + patience)
            here = (lease or 0.0) if job.process else 0.0
            if job.process:
                table.hold(change.database, job.process, now + here)
            if is_late:
                self._evict(change, now, _EVICT_AT_ONCE)
            taken = table.find(change.database, job.key)
            if taken is not None:
                if not taken.job.has_expired(now):
                    raise JobExists(job.key)
                change.forget(taken, remembered=0)
            holder = table.last_of_name(change.database, job.name) if job.name else None
            if holder is not None and holder.job.holds_name(now):
                raise JobExists(holder.job.key)
            self._make_room(change, now)
            row = table.insert(change.database, job)
            self._store.files(row).forget_earlier()
        return changes.held(job, now + here) if job.process else job

    def hold(self, process: str, lease: float) -> None:
        with self._store.changing() as change:
            table.hold(change.database, process, self.clock() + lease)

    def get(self, key: str) -> Job:
        return self._look(key)[1]

    def append(
        self, key: str, channel: Channel, offset: int, data: bytes, *, runner: str = "", times: Times = ()
    ) -> int:
        try:
            return self._append(key, channel, offset, data, runner, times)
        except StorageFull:
            if not any(self.evict(_EVICT_IN_ONE)):
                raise
        return self._append(key, channel, offset, data, runner, times)

    def read(self, key: str, channel: Channel, offset: int, limit: int = PAGE_BYTES) -> Piece:
        def read(row: Row) -> Piece:
            if row.job.state is JobState.PENDING and not self._store.files(row).is_there():
                return Piece(offset, b"")
            is_sealed = row.job.state.ended and not (channel is Channel.REQUEST and row.job.holds_request)
            ends = Ends.of_job(row.job) if is_sealed else None
            return self._store.files(row).read(channel, offset, limit, ends)

        return self._with_files(key, read)

    def times(self, key: str, offset: int = 0, limit: int = MOST_TIMES) -> tuple[tuple[int, int], ...]:
        def times(row: Row) -> tuple[tuple[int, int], ...]:
            return () if row.job.state is JobState.PENDING else self._store.files(row).times(offset)

        return self._with_files(key, times)[:limit]

    def open_body(self, key: str) -> int | None:
        def open_body(row: Row) -> int | None:
            if not (row.job.state.ended and row.job.body_end):
                return None
            return open_file(self._store.files(row).path_of(Channel.BODY), os.O_RDONLY)

        return self._with_files(key, open_body)

    def wait(self, key: str, offset: int, timeout: float) -> Job:
        deadline = time.monotonic() + timeout
        row, job = self._look(key)
        while not (job.output_end > offset or job.state.ended or time.monotonic() >= deadline):
            # A job that waits has no file yet: when it has one, that is watched.
            files, is_there = self._store.files(row), row.job.state is not JobState.PENDING
            if not is_there:
                with storage_errors():
                    files.make_directory()
            with self._waking.watch(files.path, is_there=is_there) as wait_for_change:
                row, job = self._look(key)
                while (row.job.state is not JobState.PENDING) == is_there:
                    left = deadline - time.monotonic()
                    if job.output_end > offset or job.state.ended or left <= 0:
                        break
                    limit = job.lease_expires_at if job.state is JobState.RUNNING else job.expires_at
                    if limit is not None:
                        left = min(left, max(0.001, limit - self.clock()))
                    # A process may be killed between what it did and its waking us.
                    wait_for_change(min(left, _LOOK_EVERY))
                    row, job = self._look(key)
        return job

    def transition(self, key: str, expect: Collection[JobState], change: Transition) -> bool:
        return self._transition(key, expect, change)

    def finish_with(self, key: str, body: bytes, change: Transition) -> bool:
        if len(body) > self.max_result:
            raise RegistryFull("response", self.max_result)
        expect, change = {JobState.RUNNING}, change._replace(body_end=len(body))
        try:
            return self._transition(key, expect, change, body)
        except StorageFull:
            if not any(self.evict(_EVICT_IN_ONE)):
                raise
        return self._transition(key, expect, change, body)

    def _transition(self, key: str, expect: Collection[JobState], change: Transition, body: bytes = b"") -> bool:
        """Change the state, at an end with the whole *body* of a short response."""
        if change.to.ended:
            self._store.writers.close(key)
        with self._store.changing() as store:
            now = self.clock()
            row = self._find(store.database, key)
            job = row.job
            if not changes.may_change(job, now, expect, change.runner):
                return False
            if change.to is JobState.RUNNING:
                if job.groups and not changes.has_room(job.groups, table.running(store.database), now):
                    return False
                # Within the transaction: no job runs without its file. A process that is killed just here leaves one
                # that the next claim takes.
                self._store.files(row).create(self.max_output)
                self._change(store, row, changes.claimed(job, now, change), now)
            else:
                self._end(store, row, changes.ended(job, now, change, ttl=self.ttl), now, change, body)
                self._keep_max_bytes(store, row)
        return True

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
        with self._store.changing() as change:
            row = self._find(change.database, key)
            cancel = row.job.cancel_requested_at is not None
            job = changes.renewed(
                row.job,
                self.clock(),
                runner=runner,
                lease=lease,
                progress=progress,
                title=title,
                steps=steps,
                pending_ttl=self.pending_ttl,
            )
            if job is not None and any(news is not None for news in (lease, progress, title, steps)):
                # Nobody is woken: who waits looks by himself when the lease that he knows of runs out.
                is_there = job.state is not JobState.PENDING or self._store.files(row).is_there()
                kept = self._store.files(row).kept() if is_there else 0
                table.store(change.database, row, job, kept)
                self._keep_max_bytes(change, row)
        if job is None:
            self._store.writers.close(key)
        return Renewal(job is not None, cancel)

    def amend(self, key: str, change: Callable[[Job], Job | None]) -> Job | None:
        with self._store.changing() as store:
            row = self._find(store.database, key)
            now = self.clock()
            job = changes.amended(row.job, row.job.as_of(now), change, now, ttl=self.ttl)
            if job is not None and row.job.request and not job.request:
                store.store(row, job, self._store.files(row).kept(Ends.of_job(job)))
                store.ended.append(replace(row, job=job))
            elif job is not None:
                store.store(row, job)
        return job

    def request_cancel(self, key: str, reason: str = "cancelled on request") -> JobState:
        with self._store.changing() as change:
            now = self.clock()
            row = self._find(change.database, key)
            job = changes.asked_to_stop(row.job, now, ttl=self.ttl, reason=reason)
            if job is None:
                return row.job.as_of(now).state
            if job.state.ended:
                self._end(change, row, job, now)
            else:
                change.store(row, job)
        return job.state

    def position(self, key: str) -> int:
        with self._store.reading() as database:
            row = self._find(database, key)
            waits = row.job.as_of(self.clock()).state is JobState.PENDING
            return table.place(database, row) if waits else 0

    def waiting(self, group: str) -> int:
        with self._store.reading() as database:
            return table.waiting(database, group)

    def take_cookies(self, key: str) -> bool:
        with self._store.changing() as change:
            return table.take_cookies(change.database, self._find(change.database, key))

    def keep(self, key: str, keep: bool = True) -> Job | None:
        with self._store.changing() as change:
            now = self.clock()
            row = self._find(change.database, key)
            if row.job.as_of(now).state.ended and not row.job.state.ended:
                self._end(change, row, changes.settled(row.job, now, ttl=self.ttl), now)
                row = self._find(change.database, key)
            if not row.job.state.ended or row.job.kept is keep:
                return row.job
            others = table.kept(change.database) if keep else []
            if keep and not changes.has_room_to_keep(row.job, others, self.max_kept, self.max_kept_bytes):
                return None
            job = changes.kept(row.job, now, ttl=self.ttl, keep=keep)
            change.store(row, job)
        return job

    def discard(self, key: str) -> bool:
        with self._store.changing() as change:
            row = table.find(change.database, key)
            if row is None or row.job.state is JobState.RUNNING or row.job.has_expired(self.clock()):
                return False
            change.forget(row, remembered=0)
        return True

    def jobs(self, state: JobState | None = None, limit: int = 100, *, skip: int = 0) -> list[Job]:
        now = self.clock()
        rows = (
            row for row in self._store.newest_first(state, skip + limit) if state in (None, row.job.as_of(now).state)
        )
        asked_for = (row for row in rows if not row.job.has_expired(now))
        found = []
        for row in itertools.islice(asked_for, skip, skip + limit):
            with storage_errors(), contextlib.suppress(FileNotFoundError):  # it is gone by now
                found.append(self._as_read(row, now))
        return found

    def evict(self, limit: int = 1000) -> Evicted:
        lost = evicted = 0
        while (most := min(limit - lost - evicted, _EVICT_IN_ONE)) > 0:
            if self._store.is_full():
                self._store.free_what_expired(self.clock(), most)
            with self._store.changing() as change:
                done = self._evict(change, self.clock(), most)
            lost, evicted = lost + done.lost, evicted + done.evicted
            if sum(done) < most:
                break
        self._store.clean_up()
        return Evicted(lost, evicted)

    def tidy(self) -> float | None:
        with self._store.changing() as change:
            table.forget_processes(change.database, self.clock())
            counting.note_level(change.database, self.clock())
            done = self._evict(change, self.clock(), _EVICT_AT_ONCE)
            jobs, _ = table.totals(change.database)
        instant = time.monotonic()
        left = self._clean_up_at - instant
        if left <= 0:
            self._store.clean_up()
            self._clean_up_at = instant + max(_CLEAN_UP_EVERY, _REST * (time.monotonic() - instant))
        if sum(done) >= _EVICT_AT_ONCE:
            return 0.0
        if jobs:
            return self.tidy_every
        return None if left <= 0 else left  # what the last one left in the log is taken away too

    def history(self, since: float) -> History:
        with self._store.reading() as database:
            return counting.history(database, *minutes_since(since, self.clock()))

    def is_empty(self) -> bool:
        with self._store.reading() as database:
            return table.totals(database)[0] == 0

    def close(self) -> None:
        self.leave_house()
        self._waking.close()
        self._store.close()

    def secret(self) -> bytes:
        return self._store.secret()

    def outbox(self, name: str) -> Outbox:
        self._store.secret()  # the directory is there then
        return SpoolOutbox(os.path.join(self.directory, "outbox", name))

    # Looking.

    def _find(self, database: sqlite3.Connection, key: str) -> Row:
        row = table.find(database, key)
        if row is None:
            raise JobExpired(key) if table.has_expired(database, key) else JobNotFound(key)
        if row.job.has_expired(self.clock()):
            raise JobExpired(key)
        return row

    def _look(self, key: str) -> tuple[Row, Job]:
        """Return a job as it is stored and as it reads."""
        return self._with_files(key, lambda row: (row, self._as_read(row, self.clock())))

    def _with_files(self, key: str, look: Callable[[Row], T]) -> T:
        """Return what *look* finds of a job whose row is given to it."""
        with self._store.reading() as database:
            row = self._find(database, key)
        while True:
            try:
                return look(row)
            except FileNotFoundError as error:
                with self._store.reading() as database:
                    again = self._find(database, key)
                if again == row:
                    raise RegistryError(f"{error.filename} was removed by somebody else") from error
                row = again  # it ended just now, or made room for another one
            except OSError as error:
                self._store.trouble.failed()
                raise trouble(error) from error

    def _as_read(self, row: Row, now: float) -> Job:
        # The state was read before the ends are: who sees an end sees everything.
        job = row.job
        if job.state is JobState.RUNNING:
            job = _with_ends(job, self._store.files(row).ends())
        return job.as_of(now)

    # Writing bytes.

    def _append(self, key: str, channel: Channel, offset: int, data: bytes, runner: str, times: Times) -> int:
        with storage_errors():
            if channel is Channel.REQUEST:
                return self._append_request(key, offset, data)
            limit = self.max_result if channel is Channel.BODY else None
            while True:
                writer = self._store.writers.get(key, runner) or self._open_writer(key, runner)
                try:
                    return writer.append(channel, offset, data, limit, times)
                except Sealed:
                    self._store.writers.close(key)
                    self._unseal(key, runner)

    def _append_request(self, key: str, offset: int, data: bytes) -> int:
        row = self._find_pending(key)
        if not self._store.files(row).is_there():
            with self._store.changing():  # nobody else makes it now
                self._store.files(row).create(self.max_output)
        writer = Writer(self._store.files(row), "", self.busy_timeout)
        try:
            end = writer.append(Channel.REQUEST, offset, data)
        except Sealed:
            raise Fenced(key) from None
        finally:
            writer.close()
        self._find_pending(key)  # a claim does not seal the file: it may have come in between
        return end

    def _find_pending(self, key: str) -> Row:
        with self._store.reading() as database:
            row = self._find(database, key)
        if row.job.as_of(self.clock()).state is not JobState.PENDING:
            raise Fenced(key)
        return row

    def _open_writer(self, key: str, runner: str) -> Writer:
        with self._store.reading() as database:
            row = self._find(database, key)
        if row.job.state is not JobState.RUNNING or row.job.runner != runner:
            raise Fenced(key)
        return self._store.writers.add(Writer(self._store.files(row), runner, self.busy_timeout))

    def _unseal(self, key: str, runner: str) -> None:
        """Take away the seal of somebody who was to end the job and did not come to it; ``Fenced`` if he did."""
        with self._store.changing() as change:  # nobody else is about to end it now
            row = self._find(change.database, key)
            if row.job.state is not JobState.RUNNING or row.job.runner != runner:
                raise Fenced(key)
            self._store.files(row).unseal()

    # Changing.

    def _change(self, change: Change, row: Row, job: Job, now: float, kept: int | None = None) -> None:
        """Write down that the state of a job has changed, and count it."""
        change.store(row, job, kept)
        counting.count(change.database, now, path_of(job), events_of(row.job, job))

    def _end(
        self,
        change: Change,
        row: Row,
        job: Job,
        now: float,
        transition: Transition | None = None,
        body: bytes = b"",
    ) -> None:
        """Write down that a job has ended, as *job* says, with a *body* if it has none yet."""
        try:
            ends = self._store.files(row).seal()
            if body and not ends.body:
                self._store.files(row).write_body(body)
                ends = ends.to(Channel.BODY, len(body))
            ends = ends if job.holds_request else ends._replace(request=0)
        except FileNotFoundError as error:  # somebody removed it: then nothing is kept, and yet the job must end
            if body:  # without it, that is
                raise RegistryError(f"{error.filename} was removed by somebody else") from error
            ends = Ends()
        job = _with_ends(job, ends)
        if transition is not None:
            changes.check_whole(job, transition)
        self._change(change, row, job, now, self._store.files(row).kept(ends))
        change.ended.append(replace(row, job=job))
        change.told.append(job)

    def _evict(self, change: Change, now: float, limit: int) -> Evicted:
        lost = evicted = 0
        for row in table.due(change.database, now, limit):
            if not isinstance(row, Row):
                _log.warning("%s: the job %s… is given up: it cannot be read", self.directory, row.key[:8])
            if not isinstance(row, Row) or row.job.state.ended:
                change.forget(row, remembered=self.max_jobs)
                evicted += 1
            else:
                self._end(change, row, changes.settled(row.job, now, ttl=self.ttl), now)
                lost += 1
        return Evicted(lost, evicted)

    def _free_disk(self) -> None:
        """Where the disk is full, forget what is due; ``RegistryError`` where that is not enough for a new job."""
        if self._store.is_full():
            self.evict(_EVICT_IN_ONE)
            if self._store.is_full():
                raise StorageFull(f"{self.directory}: {os.strerror(errno.ENOSPC)}")

    def _make_room(self, change: Change, now: float) -> None:
        """Forget ended jobs until there is room for one more; ``QueueFull`` where there are none left."""
        may_evict = True
        while True:
            jobs, kept = table.totals(change.database)
            if jobs < self.max_jobs and kept < self.max_bytes:
                return
            if self._forget_first_ended(change):
                continue
            if may_evict and any(self._evict(change, now, _EVICT_AT_ONCE)):  # those that were never started are lost
                may_evict = False
                continue
            if jobs >= self.max_jobs:
                raise QueueFull(f"{self.max_jobs} jobs are waiting or running")
            raise QueueFull(f"the running jobs hold {self.max_bytes} bytes")

    def _keep_max_bytes(self, change: Change, grown: Row) -> None:
        """Forget jobs that ended before the one that has *grown*: what ends just now shall be seen."""
        while table.totals(change.database)[1] > self.max_bytes and self._forget_first_ended(change, but=grown):
            pass

    def _forget_first_ended(self, change: Change, *, but: Row | None = None) -> bool:
        row = table.first_ended(change.database)
        if row is None or (but is not None and row.number == but.number):
            return False
        change.forget(row, remembered=self.max_jobs)
        return True


def _with_ends(job: Job, ends: Ends) -> Job:
    return job.changed(output_end=ends.output, output_dropped=ends.dropped, body_end=ends.body)
