"""Jobs in the memory of one process; what is large is spooled to files."""

import contextlib
import itertools
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

from .._ground.numbers import check_positive
from .._jobs import Channel, Job, JobState, Progress, Steps
from ..errors import (
    BadOffset,
    Fenced,
    JobExists,
    JobExpired,
    JobNotFound,
    QueueFull,
    RegistryError,
    RegistryFull,
)
from . import _changes as changes
from ._history import Counts, History, events_of, minutes_since, path_of
from ._memory.heap import give_back
from ._memory.logs import Log, Spool
from ._steady import SteadyClock
from ._times import MOST as MOST_TIMES
from ._times import Times as KeptTimes
from .base import END, PAGE_BYTES, Evicted, Piece, Registry, Renewal, Source, Times, Transition

__all__ = ["MemoryRegistry"]

_LOOK_EVERY = 0.25
_MUCH = 4 * 1024 * 1024  # bytes of forgotten jobs, that are worth to be given back to the system
_EVICT_AT_ONCE = 10  # each may be two files to remove, and the others wait


class MemoryRegistry(Registry):
    """Stores jobs in the memory of this process: the default, for one process with any number of threads.

    A channel that grows beyond *spool_threshold* bytes moves to a file in a private temporary directory, which the
    first use creates, and ``close`` or the end of the process removes. *max_bytes* limits all jobs together, in memory
    and in files. Ended jobs are removed for new data, oldest first. If that is not enough, new jobs are refused
    (``QueueFull``), running ones drop the middle of their output, and a response that finds no space fails its job.

    Instants are the wall clock at the first use plus the time since then, so setting the wall clock does no harm. On
    systems other than Linux they are the wall clock itself.
    """

    def __init__(
        self,
        *,
        ttl: float = 3600.0,
        pending_ttl: float = 3600.0,
        max_jobs: int = 10_000,
        max_output: int = 16 * 1024 * 1024,
        max_result: int = 256 * 1024 * 1024,
        max_kept: int = 100,
        max_kept_bytes: int = 256 * 1024 * 1024,
        max_bytes: int = 1024 * 1024 * 1024,
        spool_threshold: int = 256 * 1024,
        clock: Callable[[], float] | None = None,
    ) -> None:
        super().__init__(
            ttl=ttl,
            pending_ttl=pending_ttl,
            max_jobs=max_jobs,
            max_output=max_output,
            max_result=max_result,
            max_kept=max_kept,
            max_kept_bytes=max_kept_bytes,
            clock=clock or SteadyClock(),
        )
        for name, value in {"max_bytes": max_bytes, "spool_threshold": spool_threshold}.items():
            check_positive(name, value)
        self.max_bytes = max_bytes
        self.max_kept_bytes: int = min(max_kept_bytes, int(max_bytes // 2))
        self._spool = Spool(spool_threshold)
        self._lock = threading.Lock()  # guards all that follows, and every record
        self._records: dict[str, _Record] = {}
        # Who is to be looked at when something is due. No heap of times: for a whole TTL it would keep entries of jobs
        # that are long gone.
        self._pending: OrderedDict[str, None] = OrderedDict()  # in the order of their coming
        self._running: dict[str, None] = {}
        self._ended: OrderedDict[str, None] = OrderedDict()  # in the order of their ends: oldest first
        self._kept: dict[str, None] = {}  # of those that ended, who has no TTL
        self._expired: OrderedDict[str, None] = OrderedDict()  # remembered as gone, at most max_jobs
        self._held_until: dict[str, float] = {}  # by the process that jobs wait in
        self._names: dict[str, str] = {}  # the key of the last job of each name
        self._counts = Counts()
        self._untold: deque[Job] = deque()  # whose ends are to be told when the lock is free
        self._bytes = 0
        self._freed = 0  # since memory was given back
        self._noticed_at = float("-inf")

    def add(self, job: Job, *, lease: float | None = None) -> Job:
        is_late = self.keep_house()
        with self._lock:
            now = self._notice_the_time()
            if is_late or (len(self._records) >= self.max_jobs and not self._ended):
                self._evict(now, _EVICT_AT_ONCE)
            taken = self._records.get(job.key)
            if taken is not None:
                if not taken.job.has_expired(now):
                    raise JobExists(job.key)
                self._forget(job.key)
            holder = self._names.get(job.name)
            if holder is not None and self._records[holder].job.holds_name(now):
                raise JobExists(holder)
            if len(self._records) >= self.max_jobs and not self._make_room():
                raise QueueFull(f"{self.max_jobs} jobs are waiting or running")
            while self._bytes >= self.max_bytes:
                if not self._make_room():
                    raise QueueFull(f"the running jobs hold {self.max_bytes} bytes")
            job = job.changed(state=JobState.PENDING, created_at=now, expires_at=now + self._patience(lease))
            if job.process and lease is not None:
                self._hold(job.process, now + lease)
            self._records[job.key] = _Record(job)
            self._pending[job.key] = None
            self._expired.pop(job.key, None)
            if job.name:
                self._names[job.name] = job.key
            return job

    def hold(self, process: str, lease: float) -> None:
        with self._lock:
            self._hold(process, self.clock() + lease)

    def get(self, key: str) -> Job:
        with self._lock:
            source = self._find(key).source
        if source is not None:
            source.drain()
        with self._lock:
            return self._job(key)

    def append(
        self, key: str, channel: Channel, offset: int, data: bytes, *, runner: str = "", times: Times = ()
    ) -> int:
        with self._lock:
            record = self._find(key)
            self._check_writable(record, channel, runner)
            log = record.log(channel, self)
            if offset != log.end:
                if log.has(offset, data):
                    return log.end
                raise BadOffset(log.end)
            self._store(channel, log, data)
            if channel is Channel.OUTPUT and data:
                self._keep_times(record, times)
                record.wake()
            return log.end

    def read(self, key: str, channel: Channel, offset: int, limit: int = PAGE_BYTES) -> Piece:
        with self._lock:
            log = self._find(key).logs.get(channel)
            return Piece(offset, b"") if log is None else log.read(offset, limit)

    def times(self, key: str, offset: int = 0, limit: int = MOST_TIMES) -> tuple[tuple[int, int], ...]:
        with self._lock:
            times = self._find(key).times
            return () if times is None else times.after(offset, limit)

    def open_body(self, key: str) -> int | None:
        with self._lock:
            log = self._find(key).logs.get(Channel.BODY)
            return None if log is None else log.open()

    def wait(self, key: str, offset: int, timeout: float) -> Job:
        deadline = time.monotonic() + timeout
        with self._lock:
            record = self._find(key)
            record.waiting += 1
        try:
            while True:
                woken = record.woken
                source = record.source
                watching = source is not None and offset < END
                if source is not None and watching:
                    # Told to append each line at once, then drained: what is printed from here on wakes us.
                    source.watch(True)
                    source.drain()
                with self._lock:
                    job = self._job(key)
                    left = deadline - time.monotonic()
                    if job.output_end > offset or job.state.ended or left <= 0:
                        return job
                    limit = job.lease_expires_at if job.state is JobState.RUNNING else job.expires_at
                    if limit is not None:
                        left = min(left, max(0.001, limit - self.clock()))
                    if watching:
                        left = min(left, _LOOK_EVERY)  # half a line wakes nobody
                    if record.woken == woken:  # else somebody was woken, and told the source not to hurry any more
                        record.changed(self._lock).wait(left)
        finally:
            with self._lock:
                record.waiting -= 1
                if not record.waiting:
                    record.condition = None
                    if record.source is not None:
                        record.source.watch(False)

    def transition(self, key: str, expect: Collection[JobState], change: Transition) -> bool:
        with self._lock:
            record = self._find(key)
            now = self._notice_the_time()
            job = record.job
            if not changes.may_change(job, now, expect, change.runner):
                return False
            if change.to is JobState.RUNNING:
                running = (self._records[other].job for other in self._running)
                if job.groups and not changes.has_room(job.groups, running, now):
                    return False
                record.job = changes.claimed(job, now, change)
                self._counts.add(now, path_of(job), events_of(job, record.job))
                self._pending.pop(key, None)
                self._running[key] = None
            else:
                job = record.snapshot()
                changes.check_whole(job, change)
                self._end(record, changes.ended(job, now, change, ttl=self.ttl))
            record.wake()
        self._tell()
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
        with self._lock:
            record = self._find(key)
            cancel = record.job.cancel_requested_at is not None
            job = changes.renewed(
                record.job,
                self.clock(),
                runner=runner,
                lease=lease,
                progress=progress,
                title=title,
                steps=steps,
                pending_ttl=self.pending_ttl,
            )
            if job is not None:
                waits_here = job.state is JobState.PENDING and job.process in self._held_until
                record.job = changes.held(job, self._held_until[job.process]) if waits_here else job
            return Renewal(job is not None, cancel)

    def amend(self, key: str, change: Callable[[Job], Job | None]) -> Job | None:
        with self._lock:
            record = self._find(key)
            job, now = record.snapshot(), self._notice_the_time()
            new = changes.amended(job, job.as_of(now), change, now, ttl=self.ttl)
            if new is not None:
                record.job = new
                self._forget_request(record)
                if new.expires_at != job.expires_at:
                    self._ended.move_to_end(key)
            return new

    def request_cancel(self, key: str, reason: str = "cancelled on request") -> JobState:
        with self._lock:
            record = self._find(key)
            now = self._notice_the_time()
            job = changes.asked_to_stop(record.snapshot(), now, ttl=self.ttl, reason=reason)
            if job is None:
                return record.job.as_of(now).state
            if job.state.ended:
                self._end(record, job)
                record.wake()
            else:
                record.job = job
                if record.source is not None:
                    record.source.interrupt(reason)
        self._tell()
        return job.state

    def position(self, key: str) -> int:
        with self._lock:
            if self._find(key).job.as_of(self.clock()).state is not JobState.PENDING:
                return 0
            # Sorting leaves those of one priority in the order of their coming.
            in_turn = sorted(self._pending, key=lambda waiting: self._records[waiting].job.priority.rank)
            return 1 + in_turn.index(key)

    def take_cookies(self, key: str) -> bool:
        with self._lock:
            record = self._find(key)
            taken, record.cookies_taken = record.cookies_taken, True
            return not taken

    def keep(self, key: str, keep: bool = True) -> Job | None:
        with self._lock:
            record = self._find(key)
            now = self._notice_the_time()
            if record.snapshot().as_of(now).state.ended and not record.job.state.ended:
                self._settle(record, now)
            job = record.job
            if job.state.ended and job.kept is not keep:
                others = (self._records[other].job for other in self._kept)
                if keep and not changes.has_room_to_keep(job, others, self.max_kept, self.max_kept_bytes):
                    return None
                job = record.job = changes.kept(job, now, ttl=self.ttl, keep=keep)
                before, after = (self._ended, self._kept) if keep else (self._kept, self._ended)
                before.pop(key)
                after[key] = None
        self._tell()
        return job

    def discard(self, key: str) -> bool:
        with self._lock:
            record = self._records.get(key)
            if record is None or record.job.state is JobState.RUNNING or record.job.has_expired(self.clock()):
                return False
            self._forget(key)
            return True

    def jobs(self, state: JobState | None = None, limit: int = 100, *, skip: int = 0) -> list[Job]:
        with self._lock:
            now = self.clock()
            newest_first = (record.snapshot().as_of(now) for record in reversed(self._records.values()))
            asked_for = (job for job in newest_first if state in (None, job.state) and not job.has_expired(now))
            return list(itertools.islice(asked_for, skip, skip + limit))

    def evict(self, limit: int = 1000) -> Evicted:
        with self._lock:
            evicted = self._evict(self._notice_the_time(), limit)
            is_much = self._freed >= _MUCH and evicted.evicted < limit
            if is_much:
                self._freed = 0
        self._tell()
        if is_much:
            give_back()
        return evicted

    def tidy(self) -> float | None:
        with self._lock:
            self._counts.note_level(self._notice_the_time(), len(self._pending), len(self._running))
        return super().tidy()

    def history(self, since: float) -> History:
        with self._lock:
            now = self._notice_the_time()
            self._counts.note_level(now, len(self._pending), len(self._running))
            return self._counts.since(minutes_since(since, now)[0])

    def is_empty(self) -> bool:
        return not self._records

    def close(self) -> None:
        self.leave_house()
        with self._lock:
            for key in list(self._records):
                self._forget(key)
            self._spool.close()

    def attach(self, key: str, source: Source) -> bool:
        with self._lock:
            record = self._find(key)
            record.source = source
            if record.waiting:
                source.watch(True)
            if record.job.cancel_requested_at is not None:
                source.interrupt(record.job.reason)
            return True

    def _tell(self) -> None:
        while self._untold:
            with contextlib.suppress(IndexError):  # another thread has told of it
                self._has_ended(self._untold.popleft())

    # All that follows is called with the lock held.

    def _find(self, key: str) -> "_Record":
        record = self._records.get(key)
        if record is None:
            raise JobExpired(key) if key in self._expired else JobNotFound(key)
        if record.job.expires_at is not None and record.job.has_expired(self.clock()):
            raise JobExpired(key)
        return record

    def _job(self, key: str) -> Job:
        return self._find(key).snapshot().as_of(self.clock())

    def _hold(self, process: str, until: float) -> None:
        # Each of them is changed: who shares no jobs with other processes has no need of this.
        self._held_until[process] = until
        for record in map(self._records.__getitem__, self._pending):
            if record.job.process == process:
                waits = record.job.changed(expires_at=record.job.created_at + self.pending_ttl)
                record.job = changes.held(waits, until)

    def _check_writable(self, record: "_Record", channel: Channel, runner: str) -> None:
        job = record.job
        if channel is Channel.REQUEST:
            if job.as_of(self.clock()).state is not JobState.PENDING:
                raise Fenced(job.key)
        elif job.state is not JobState.RUNNING or job.runner != runner:
            raise Fenced(job.key)

    def _store(self, channel: Channel, log: Log, data: bytes) -> None:
        if channel is Channel.BODY and log.end + len(data) > self.max_result:
            raise RegistryFull("response", self.max_result)
        growth = log.growth(len(data))
        while self._bytes + growth > self.max_bytes and self._make_room():
            pass
        if self._bytes + growth > self.max_bytes:
            if channel is not Channel.OUTPUT:
                raise RegistryFull(f"{channel} with what all jobs keep", self.max_bytes)
            log.stop_growing()
        before = log.stored
        try:
            try:
                log.append(data)
            except OSError:
                # No room for files either: the output goes on in the room that it has. A body cannot.
                if channel is not Channel.OUTPUT:
                    raise
                log.stop_growing()
                log.append(data)
        except OSError as error:
            self._count("errors", 1)
            raise RegistryError(f"cannot write to {self._spool.directory}: {error}") from error
        finally:
            self._bytes += log.stored - before

    def _keep_times(self, record: "_Record", times: Times) -> None:
        if not times:
            return
        if record.times is None:
            record.times = KeptTimes()
        before = record.times.stored
        record.times.add(times)
        self._bytes += record.times.stored - before

    def _make_room(self) -> bool:
        """Forget the job that ended first; false if none has ended."""
        if not self._ended:
            return False
        key = next(iter(self._ended))
        self._forget(key)
        self._remember_expired(key)
        return True

    def _end(self, record: "_Record", job: Job) -> None:
        """Write down that a job has ended, as *job* says."""
        self._counts.add(self._noticed_at, path_of(job), events_of(record.job, job))
        record.job = job
        record.source = None
        self._forget_request(record)
        for log in record.logs.values():
            log.seal()
        self._pending.pop(job.key, None)
        self._running.pop(job.key, None)
        self._ended[job.key] = None
        if self._tells:
            self._untold.append(job)

    def _forget_request(self, record: "_Record") -> None:
        """Let go of the body of a request that is not needed any more."""
        if not record.job.state.ended or record.job.holds_request:
            return
        request = record.logs.pop(Channel.REQUEST, None)
        if request is not None:
            self._bytes -= request.stored
            request.remove()

    def _settle(self, record: "_Record", now: float) -> None:
        """Write down that a job has ended which reads so."""
        self._end(record, changes.settled(record.snapshot(), now, ttl=self.ttl))
        record.wake()

    def _forget(self, key: str) -> None:
        record = self._records.pop(key)
        self._pending.pop(key, None)
        self._running.pop(key, None)
        self._ended.pop(key, None)
        self._kept.pop(key, None)
        if self._names.get(record.job.name) == key:
            del self._names[record.job.name]
        for log in record.logs.values():
            self._bytes -= log.stored
            self._freed += log.stored
            log.remove()
        if record.times is not None:
            self._bytes -= record.times.stored
        record.wake()

    def _remember_expired(self, key: str) -> None:
        self._count("evicted", 1)
        self._expired[key] = None
        while len(self._expired) > self.max_jobs:
            self._expired.popitem(last=False)

    def _notice_the_time(self) -> float:
        """Return it. Where somebody set the clock back, keep nothing for longer than its time from now: so what comes
        or ends first is due first, too."""
        now = self.clock()
        if now < self._noticed_at:
            for keys, ttl in ((self._ended, self.ttl), (self._pending, self.pending_ttl)):
                for record in map(self._records.__getitem__, keys):
                    if record.job.expires_at is not None and record.job.expires_at > now + ttl:
                        record.job = record.job.changed(expires_at=now + ttl)
        self._noticed_at = now
        return now

    def _evict(self, now: float, limit: int) -> Evicted:
        lost = evicted = 0
        while self._ended and evicted < limit:
            key = next(iter(self._ended))
            if not self._records[key].job.has_expired(now):
                break
            self._forget(key)
            self._remember_expired(key)
            evicted += 1
        for key in self._overdue(now, limit - evicted):
            self._settle(self._records[key], now)
            lost += 1
        return Evicted(lost, evicted)

    def _overdue(self, now: float, limit: int) -> list[str]:
        """Return up to *limit* keys of what reads as ended and is not written down as that."""

        def is_overdue(key: str) -> bool:
            return self._records[key].job.as_of(now).state.ended

        # Those that wait for nobody's sake are due in the order of their coming.
        first: Callable[..., Iterator[str]] = filter if self._held_until else itertools.takewhile
        overdue = itertools.chain(first(is_overdue, self._pending), filter(is_overdue, self._running))
        return list(itertools.islice(overdue, limit))


@dataclass(slots=True)
class _Record:
    """A job with its bytes. Guarded by the registry's lock, of which there is a condition while somebody waits."""

    job: Job
    logs: dict[Channel, Log] = field(default_factory=dict)
    times: KeptTimes | None = None
    source: Source | None = None
    waiting: int = 0
    woken: int = 0
    cookies_taken: bool = False
    condition: threading.Condition | None = None

    def log(self, channel: Channel, registry: MemoryRegistry) -> Log:
        log = self.logs.get(channel)
        if log is None:
            limit = registry.max_output if channel is Channel.OUTPUT else None
            log = self.logs[channel] = Log(registry._spool, limit)
        return log

    def snapshot(self) -> Job:
        """Return the job with the sizes of its logs. It is kept: most who look see what the one before them saw."""
        output, body = self.logs.get(Channel.OUTPUT), self.logs.get(Channel.BODY)
        end = output.end if output else 0
        body_end = body.end if body else 0
        if (end, body_end) != (self.job.output_end, self.job.body_end):
            dropped = output.dropped if output else None
            self.job = self.job.changed(output_end=end, output_dropped=dropped, body_end=body_end)
        return self.job

    def changed(self, lock: threading.Lock) -> threading.Condition:
        if self.condition is None:
            self.condition = threading.Condition(lock)
        return self.condition

    def wake(self) -> None:
        self.woken += 1
        if self.waiting and self.condition is not None:
            self.condition.notify_all()
            # Woken readers take their time: until they look again, the job need not append each write.
            if self.source is not None:
                self.source.watch(False)
