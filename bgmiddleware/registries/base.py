"""The contract of a registry: fewer than twenty primitives, and the conveniences written once above them.

A registry keeps, under a job's *key*, one record (a :class:`~bgmiddleware.Job`) and three append-only byte channels.
Every primitive may be called from any thread, and for a registry that processes share, from any process.
"""

import os
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from types import TracebackType
from typing import ClassVar, NamedTuple, Protocol, Self

from .._ground.numbers import check_count, check_positive
from .._jobs import Channel, Job, JobState, Progress, RecordedResponse, Steps
from ..errors import Fenced, RegistryError
from ._history import BOUNDS, MOST_PATHS, OTHER, History, Level, Minute, Spread, path_of
from ._housekeeping import house
from ._outbox import MemoryOutbox, Outbox
from ._times import MOST as MOST_TIMES

__all__ = [
    "BOUNDS",
    "END",
    "FILLED",
    "MOST_PATHS",
    "OTHER",
    "PAGE_BYTES",
    "SHORT",
    "Evicted",
    "History",
    "Level",
    "Minute",
    "Outbox",
    "Page",
    "Piece",
    "Queue",
    "Registry",
    "Renewal",
    "Source",
    "Spread",
    "Times",
    "Transition",
    "path_of",
]

PAGE_BYTES = 256 * 1024
"""The most that one read is asked for: larger pieces stall the other readers of a shared registry."""


SHORT = 64 * 1024
"""Up to how many bytes of a request are added with its job."""

FILLED = 64 * 1024
"""The longest gap in an output that is filled."""

Times = Sequence[tuple[int, int]]
"""When output came: offsets, and by how many milliseconds since the job began the bytes up to there had come."""

END = 2**62
"""An offset that no output reaches: to wait for it is to wait for the end."""


_LATE = 30.0  # seconds after which somebody else must do what a thread should have done
_TIDIED_AT_ONCE = 10  # each may be some files to remove, and requests wait for the same locks


class StorageFull(RegistryError):
    """The registry's storage is full. Waiting would block the caller; other jobs must end first."""


class Queue(NamedTuple):
    """How many jobs are *waiting* and *running*, and the *oldest* that waits, if it does still."""

    waiting: int
    running: int
    oldest: Job | None

    def waited(self, now: float) -> float:
        """Return for how many seconds the oldest has waited."""
        return 0.0 if self.oldest is None else max(0.0, now - self.oldest.created_at)


class Piece(NamedTuple):
    """Some bytes of a channel, and their real offset: after the requested one if bytes were dropped."""

    offset: int
    data: bytes

    @property
    def end(self) -> int:
        """The offset just behind the bytes: where to read on."""
        return self.offset + len(self.data)


class Page(NamedTuple):
    """A piece of output that begins and ends between characters, and the job as it was just before the read."""

    job: Job
    piece: Piece


class Renewal(NamedTuple):
    """The answer to a runner: whether the claim is still its own (*ok*), and whether the job must stop (*cancel*)."""

    ok: bool
    cancel: bool


class Transition(NamedTuple):
    """A change of state: a claim by *runner* for *lease* seconds (None: until its process ends), or an end.

    An end has a *reason*, and the *response* if there is one. *receipt* is added to the job's. *output_end* and
    *body_end* are the least lengths that the runner knows of; if the storage has less, it lost writes, and the end
    raises ``BadOffset``.
    """

    to: JobState
    runner: str = ""
    lease: float | None = None
    reason: str = ""
    response: RecordedResponse | None = None
    receipt: Mapping[str, str | float] | None = None
    output_end: int = 0
    body_end: int = 0


class Evicted(NamedTuple):
    """The result of an eviction: jobs whose loss was made permanent, and ended jobs that were deleted."""

    lost: int
    evicted: int


class Source(Protocol):
    """The live output of a job of this process, which its registry reads on demand."""

    def drain(self) -> None:
        """Append what was printed so far, unless that is under way. Never called with the registry's lock held."""

    def watch(self, watched: bool) -> None:
        """From now on append each line at once (*watched*), or in batches again. Never blocks."""

    def interrupt(self, reason: str) -> None:
        """Stop the job at its next print. Never blocks."""


class Registry(ABC):
    """Stores jobs until their TTL.

    *ttl*: seconds that an ended job stays readable, counted from its end. *pending_ttl*: seconds that a job may wait
    for a runner. *max_jobs*: the maximum number of jobs; ended ones are removed for new ones, oldest first.
    *max_output* and *max_result*: bytes of output of one job (beyond it the middle is dropped) and of its response
    (beyond it the job fails). *max_kept* and *max_kept_bytes*: how many ended jobs are kept beyond their TTL, and the
    bytes of all of them; never more than half of what bounds all jobs. *clock* returns seconds since the epoch; only
    tests pass it.

    A missing record is an exception: every primitive that names a job, except ``discard``, raises ``JobNotFound`` or
    ``JobExpired``. Errors of the storage behind a registry are raised as ``RegistryError``.
    """

    shared: ClassVar[bool] = False
    """Whether other processes see the same jobs."""

    short_body: ClassVar[int] = 0
    """Up to how many bytes of a response :meth:`finish_with` is faster with than :meth:`append` and :meth:`finish`."""

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
        clock: Callable[[], float] = time.time,
    ) -> None:
        for name, seconds in {"ttl": ttl, "pending_ttl": pending_ttl}.items():
            check_positive(name, seconds)
        for name, most in {"max_jobs": max_jobs, "max_output": max_output, "max_result": max_result}.items():
            check_count(name, most, 1)
        for name, most in {"max_kept": max_kept, "max_kept_bytes": max_kept_bytes}.items():
            check_count(name, most, 0)
        self.ttl = ttl
        self.pending_ttl = pending_ttl
        self.max_jobs = max_jobs
        self.max_output = max_output
        self.max_result = max_result
        self.max_kept: int = min(max_kept, max_jobs // 2)  # the rest is for new jobs
        self.max_kept_bytes = max_kept_bytes
        self.clock = clock
        self._secret = secrets.token_bytes(32)
        self._outboxes: dict[str, Outbox] = {}
        self._tells: tuple[Callable[[Job], None], ...] = ()
        self._counters: tuple[Callable[[str, float], None], ...] = ()
        self.tidy_every: float = min(60.0, max(1.0, min(ttl, pending_ttl) / 10))
        """Seconds from one :meth:`tidy` to the next."""
        self.tidied_at: tuple[int, float] = 0, 0.0
        """In which process :meth:`tidy` will be called, and when, by the monotonic clock; process 0: in none."""

    # The primitives.

    @abstractmethod
    def add(self, job: Job, *, lease: float | None = None) -> Job:
        """Store a new pending job and return it as stored: ``created_at`` and ``expires_at`` are the registry's.

        *lease*: seconds that it may wait before somebody says that it is there still; None: ``pending_ttl``. Where it
        waits in the memory of a process, its ``process``, this is :meth:`hold` too; else ``renew`` says so.
        Raises ``QueueFull`` where ``max_jobs`` are pending or running, ``JobExists`` where the key is taken, or where
        the job has a name that another one holds (:meth:`Job.holds_name`): with the key of that one.
        From then on what is due is evicted by time, see :meth:`tidy`; here only to make room.
        """

    def add_request(self, job: Job, body: bytes, *, lease: float | None = None) -> Job:
        """The same as :meth:`add`, and append the whole body of its request, where that is short: a registry may do
        both at once. All or nothing."""
        job = self.add(job, lease=lease)
        try:
            self.append(job.key, Channel.REQUEST, 0, body)
        except BaseException:
            self.discard(job.key)
            raise
        return job

    @abstractmethod
    def hold(self, process: str, lease: float) -> None:
        """Say that *process* is there for *lease* seconds from now: that long its jobs may wait, and never
        beyond ``pending_ttl``. One call for all of them. Late, it revives them, unless their loss was made permanent.
        """

    @abstractmethod
    def get(self, key: str) -> Job:
        """Return the job as it is now. A running job whose lease ran out *reads* as lost (or cancelled, if that was
        asked for), a pending one that nobody claimed in time as ``lost: never started``. Its TTL does not begin before
        ``evict`` makes that permanent."""

    @abstractmethod
    def append(
        self, key: str, channel: Channel, offset: int, data: bytes, *, runner: str = "", times: Times = ()
    ) -> int:
        """Add *data* at the end of a channel, which must be at *offset*; return the new end. All or nothing.

        What is already stored there, or was and is dropped, is a no-op, so a retry is safe; any other offset is
        ``BadOffset``.
        ``REQUEST`` takes bytes while the job is pending, the others while it runs and only from *runner*: else
        ``Fenced``. ``BODY`` beyond ``max_result`` is ``RegistryFull``; ``OUTPUT`` beyond ``max_output`` drops its
        middle. *times* say when the parts of ``OUTPUT`` came; a repetition changes none.
        """

    def leave_gap(self, key: str, offset: int, note: bytes, *, runner: str) -> int:
        """Let the output of a running job go on at *offset*, or a little behind it, where that is behind its end: for
        the storage went back to what it was earlier, and the bytes between are lost. A *note* of that takes their
        place. Return where the output goes on. A repetition is a no-op.

        Readers go on at the offset where they were. So a short gap is filled; a registry whose storage is known to go
        back can drop the range of a long one.
        """
        end = self.get(key).output_end
        if end >= offset:
            return end
        size = min(offset - end, FILLED)
        return self.append(key, Channel.OUTPUT, end, note.rstrip(b"\n").ljust(size - 1) + b"\n", runner=runner)

    @abstractmethod
    def read(self, key: str, channel: Channel, offset: int, limit: int = PAGE_BYTES) -> Piece:
        """Return up to *limit* bytes from *offset*; none at the end or behind it.

        Inside a dropped range it begins behind that range, which the piece's offset says. So a piece from before the
        end ends behind *offset*, also where it is empty, since all that was left was dropped. May cut inside a
        character.
        """

    @abstractmethod
    def times(self, key: str, offset: int = 0, limit: int = MOST_TIMES) -> tuple[tuple[int, int], ...]:
        """Return when the output behind *offset* came, oldest first, at most *limit* entries: offsets, and by how many
        milliseconds since the job began the bytes up to there had come.

        What comes within 50 ms is one entry. Of a job that has more than 65,536 entries, each second one is left out,
        and so on; the first one and the last one stay. What was dropped of the output keeps its times. Bytes that came
        without a time have that of the next ones.
        """

    @abstractmethod
    def wait(self, key: str, offset: int, timeout: float) -> Job:
        """Block until the output is longer than *offset* or the job has ended, at most *timeout* seconds; return it."""

    @abstractmethod
    def transition(self, key: str, expect: Collection[JobState], change: Transition) -> bool:
        """Change the state in one atomic compare-and-set; return whether it was done.

        Refused if the state is none of *expect*, if the job has ended, or if it runs and ``change.runner`` is not who
        claimed it. A claim is refused too while as many jobs of one of the job's ``groups`` run as that may be, not
        counting those whose lease ran out. At an end all channels are sealed, the request is forgotten unless the job
        keeps it, and the TTL begins.
        """

    @abstractmethod
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
        """Extend the claim of *runner* by *lease* seconds from now, and say how far the job is, what it is called from
        now on, and which steps it has.

        A lease that had run out is revived, unless the loss was made permanent; then ``ok`` is false. A pending job has
        no runner: with none, this says that the job is admitted, and may wait for *lease* seconds, if it does not wait
        in the memory of a process.
        """

    @abstractmethod
    def amend(self, key: str, change: Callable[[Job], Job | None]) -> Job | None:
        """Replace a job by what *change* makes of it, in one atomic step, and return the new one. Where that is None,
        nothing changes, and None is returned.

        *change* is given the job as it reads. It may be called several times and from within a transaction, so it only
        computes. Of what it returns, only ``question``, ``rerun_as``, ``shares`` and ``tries`` count: all else is the
        registry's own. The request of a job that has ended is forgotten where no more tries of it follow. The TTL of
        one that has ended and was run again begins anew: it leads to the other.
        """

    @abstractmethod
    def request_cancel(self, key: str, reason: str = "cancelled on request") -> JobState:
        """Ask that a job stop; return its state. Pending: cancelled at once, for *reason*. Running: its runner is told,
        and ``cancel_requested_at`` and ``reason`` are set, by the first who asks. Ended: nothing changes."""

    @abstractmethod
    def position(self, key: str) -> int:
        """Return the place of a pending job among those that wait, in the order in which they are taken: the higher
        priority first, and of one priority who came first. The first is 1; of any other job it is 0."""

    def waiting(self, group: str) -> int:
        """Return how many pending jobs belong to a group."""
        return sum(group in job.groups for job in self.jobs(JobState.PENDING, self.max_jobs))

    @abstractmethod
    def take_cookies(self, key: str) -> bool:
        """Say that the caller delivers the response's cookies; true for exactly one of all who ask."""

    @abstractmethod
    def keep(self, key: str, keep: bool = True) -> Job | None:
        """Take an ended job out of its TTL: it is not forgotten until it is discarded, not even to make room. Or give
        it a TTL again, which begins now. Return the job as it is then, a job that has not ended as it was; None where
        ``max_kept`` jobs are kept, or ``max_kept_bytes`` with this one would be exceeded.

        What reads as lost is made permanent first.
        """

    @abstractmethod
    def discard(self, key: str) -> bool:
        """Forget a job that does not run, and its bytes; return whether there was one. A running job stays."""

    @abstractmethod
    def jobs(self, state: JobState | None = None, limit: int = 100, *, skip: int = 0) -> list[Job]:
        """Return up to *limit* jobs, newest first, all or those in one state, without the first *skip* of them."""

    @abstractmethod
    def history(self, since: float) -> History:
        """Return what was counted from the minute of *since* on, at most a day: what started and ended, and how long it
        took, by path; and how many jobs waited and ran, as of each ``tidy`` and now.

        A job counts under ``asked["path"]``; at most 200 paths are told apart, the rest is ``other``. A change of state
        counts once, in the minute in which it is written down; only what is repeated after an outage may count twice.
        """

    @abstractmethod
    def evict(self, limit: int = 1000) -> Evicted:
        """Make permanent what reads as lost, forget what expired; at most *limit* jobs. Safe from many threads."""

    @abstractmethod
    def close(self) -> None:
        """Let go of files and connections. Idempotent. What a shared registry stores stays."""

    def tidy(self) -> float | None:
        """Evict a few of what is due; return in how many seconds to do so again, None: there is nothing to evict, ever.

        One thread of the process calls it, from the first ``add`` on: see :meth:`keep_house`.
        """
        if sum(self.evict(_TIDIED_AT_ONCE)) >= _TIDIED_AT_ONCE:
            return 0.0
        return None if self.is_empty() else self.tidy_every

    def is_empty(self) -> bool:
        """Whether there are no jobs at all."""
        return not self.jobs(limit=1)

    def keep_house(self) -> bool:
        """Have :meth:`tidy` called by time; return whether it is late, since the server lets no thread run, say. To be
        called by ``add``."""
        pid, at = self.tidied_at
        if pid != os.getpid():
            house().take(self, self.tidy_every)
            return False
        return time.monotonic() > at + _LATE

    def leave_house(self) -> None:
        """Have :meth:`tidy` called no more. To be called by ``close``."""
        if self.tidied_at[0] == os.getpid():
            house().leave(self)

    def check(self) -> None:
        """Raise ``ConfigurationError`` where it can be known already that the storage cannot be used. Makes nothing."""
        return

    def is_there(self) -> bool:
        """Whether anybody used the storage before: where nobody did, somebody who only looks may have mistyped its
        name. Makes nothing."""
        return True

    def open_body(self, key: str) -> int | None:
        """Return a descriptor, open for reading, of the file that has an ended job's body from its first byte on; None
        where it lies in no such file. The caller closes it."""
        return None

    def secret(self) -> bytes:
        """Return 32 bytes that nobody else knows, the same for all who share the jobs: tokens that can be found again
        are made with it. They outlive a shared registry's processes."""
        return self._secret

    def outbox(self, name: str) -> Outbox:
        """Return the messages that wait under *name*, letters and digits, for all who share the jobs."""
        return self._outboxes.setdefault(name, MemoryOutbox())

    def tell_ends(self, tell: Callable[[Job], None]) -> None:
        """From now on call *tell* once with each job whose end this object writes down, whoever asked for it, in the
        thread that did so and with no lock held. It must raise nothing."""
        self._tells = (*self._tells, tell)

    def _has_ended(self, job: Job) -> None:
        """To be called, with no lock held, when this object has written down the end of a job."""
        for tell in self._tells:
            tell(job)

    def tell_numbers(self, tell: Callable[[str, float], None]) -> None:
        """From now on call *tell* with numbers of this object, each to be added to a sum: ``errors``, calls that the
        storage did not answer; ``away``, seconds for which it did not; ``evicted``, ended jobs that were forgotten.

        In any thread, perhaps with a lock held: it must neither call the registry, nor raise anything.
        """
        self._counters = (*self._counters, tell)

    def _count(self, name: str, number: float) -> None:
        """To be called where there is such a number."""
        for tell in self._counters:
            tell(name, number)

    def attach(self, key: str, source: Source) -> bool:
        """Take the live output of a job to read it when asked; true if this registry does so.

        Only for a registry of the job's own process: it then shows a print at once and costs the job nothing while
        nobody looks. Where it is false, who runs the job appends its output in batches.
        """
        return False

    # What is the same for all of them.

    def _patience(self, lease: float | None) -> float:
        """Return how many seconds a job that is added with *lease* may wait for now."""
        return self.pending_ttl if lease is None else min(lease, self.pending_ttl)

    def claim(
        self,
        key: str,
        runner: str,
        *,
        lease: float | None = None,
        receipt: Mapping[str, str | float] | None = None,
    ) -> bool:
        """Take a pending job to run it; true for exactly one of all who try. Where it is false and the job still
        pending, one of its groups is full."""
        change = Transition(JobState.RUNNING, runner, lease, receipt=receipt)
        return self.transition(key, {JobState.PENDING}, change)

    def finish(
        self,
        key: str,
        runner: str,
        state: JobState,
        *,
        reason: str = "",
        response: RecordedResponse | None = None,
        receipt: Mapping[str, str | float] | None = None,
        output_end: int = 0,
        body_end: int = 0,
    ) -> bool:
        """End a job that *runner* runs. All its bytes must be in: who sees the end sees everything."""
        change = Transition(state, runner, None, reason, response, receipt, output_end, body_end)
        return self.transition(key, {JobState.RUNNING}, change)

    def finish_with(self, key: str, body: bytes, change: Transition) -> bool:
        """The same as to append the whole *body* of a short response, and then to end the running job by
        :meth:`transition`: a registry may do both at once. Where it breaks off in between, it is safe to repeat."""
        try:
            end = self.append(key, Channel.BODY, 0, body, runner=change.runner)
        except Fenced:
            return False
        return self.transition(key, {JobState.RUNNING}, change._replace(body_end=end))

    def follow(self, key: str, offset: int = 0, *, tick: float = 5.0) -> Generator[Piece, None, None]:
        """Yield the output from *offset* until the job has ended, each byte once and in order, waiting for more.

        An empty piece says that nothing came for *tick* seconds, or at an offset further on, what was dropped.
        Raises ``RegistryError`` where bytes are missing: silence is no end.
        """
        while True:
            # The state is taken before reading: 1. a runner appends, then ends; 2. so an end seen first means that
            # the reads below reach the end of the output.
            job = self.wait(key, offset, tick)
            piece = self.read(key, Channel.OUTPUT, offset)
            if piece.end <= offset:
                if job.output_end > offset:
                    raise RegistryError(f"bytes of the job {key[:8]}… are not there")
                if job.state.ended:
                    return
                yield Piece(offset, b"")
                continue
            while piece.end > offset:
                yield piece
                offset = piece.end
                piece = self.read(key, Channel.OUTPUT, offset)

    def queue(self) -> Queue:
        """Return how many jobs wait and run now, and the one that has waited longest."""
        levels = self.history(self.clock()).levels
        waiting, running = (levels[-1].waiting, levels[-1].running) if levels else (0, 0)
        oldest = self.jobs(JobState.PENDING, 1, skip=waiting - 1) if waiting else []
        return Queue(waiting, running, oldest[-1] if oldest else None)

    def page(
        self, key: str, offset: int, *, limit: int = PAGE_BYTES, timeout: float = 0.0, job: Job | None = None
    ) -> Page:
        """Return one page of output from *offset*, or its last ``-offset`` bytes, cut between characters.

        Waits up to *timeout* seconds for more than *offset*; or does not look at the job again, where it is given one
        that was just read. An offset behind the end gives an empty page at the end. A page from before the end ends
        behind *offset*, unless all that is there is the beginning of a character and the job may print its rest.
        """
        if job is None:
            job = self.wait(key, offset, timeout) if timeout > 0 and offset >= 0 else self.get(key)
        tail = offset < 0
        if tail:
            offset = max(0, job.output_end + offset)
        piece = self.read(key, Channel.OUTPUT, min(offset, job.output_end), limit)
        if tail or piece.offset > offset:
            piece = _from_character(piece)
        # What was dropped behind a piece will not complete its last character.
        goes_on = job.output_dropped is None or piece.end != job.output_dropped[0]
        if goes_on and (piece.end < job.output_end or not job.state.ended):
            whole = _to_character(piece)
            # A page that is too small for a character has a part of it: the next one must begin further on.
            piece = piece if whole.end <= offset and piece.end < job.output_end else whole
        return Page(job, piece)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _from_character(piece: Piece) -> Piece:
    """Leave out the rest of a UTF-8 character that began before the piece: at most three continuation bytes."""
    skip = 0
    while skip < min(3, len(piece.data)) and piece.data[skip] & 0xC0 == 0x80:
        skip += 1
    return Piece(piece.offset + skip, piece.data[skip:])


def _to_character(piece: Piece) -> Piece:
    """Leave out the beginning of a UTF-8 character that ends behind the piece; what is no UTF-8 stays."""
    for back in range(1, min(3, len(piece.data)) + 1):
        byte = piece.data[-back]
        if byte & 0xC0 != 0x80:
            length = 2 if byte >> 5 == 0b110 else 3 if byte >> 4 == 0b1110 else 4 if byte >> 3 == 0b11110 else 1
            return Piece(piece.offset, piece.data[:-back]) if length > back else piece
    return piece
