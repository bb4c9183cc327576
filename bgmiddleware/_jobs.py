"""What a job is: frozen values, made by registries and read by everybody."""

import hashlib
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

__all__ = ["Channel", "Job", "JobState", "Progress", "RecordedResponse", "key_of", "new_token"]


class JobState(StrEnum):
    """Where a job is on its way: ``pending → running → finished | failed | cancelled | lost``."""

    PENDING = "pending"
    """Recorded and queued; no runner has claimed it yet."""

    RUNNING = "running"
    """A runner has claimed it."""

    FINISHED = "finished"
    """The app answered with a status below 500."""

    FAILED = "failed"
    """The app raised, or answered 5xx; ``Job.reason`` says which."""

    CANCELLED = "cancelled"
    """It was asked to stop, and did not get to its end."""

    LOST = "lost"
    """Its runner vanished or was shut down, or none ever came; ``Job.reason`` says which."""

    @property
    def ended(self) -> bool:
        """Whether this is one of the four states that never change again."""
        return self not in _LIVE


_LIVE = frozenset({JobState.PENDING, JobState.RUNNING})


class Channel(StrEnum):
    """The three append-only byte logs of a job, read by offset."""

    REQUEST = "request"
    """The body of the recorded request. Forgotten when the job ends: nothing is ever re-run."""

    OUTPUT = "output"
    """What the job printed."""

    BODY = "body"
    """The body of the job's HTTP response."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job says that it is: *done* of *total* (None: unknown), and a *message*."""

    done: float
    total: float | None = None
    message: str = ""

    def __post_init__(self) -> None:
        # Plain values: numpy's integers, Decimals and what os.fsdecode() gave are no JSON, or no UTF-8.
        for name in ("done", "total"):
            number = getattr(self, name)
            if number is not None and type(number) not in (int, float):
                object.__setattr__(self, name, float(number))
        object.__setattr__(self, "message", str(self.message).encode("utf-8", "backslashreplace").decode())
        if not all(math.isfinite(number) for number in (self.done, self.total or 0)):
            raise ValueError(f"progress takes finite numbers: {self.done!r} of {self.total!r}")  # JSON has no others

    @property
    def percent(self) -> float | None:
        """*done* in percent of *total*, within 0 and 100; None where there is no total."""
        if not self.total or self.total < 0:
            return None
        return min(100.0, max(0.0, 100.0 * self.done / self.total))


@dataclass(frozen=True, slots=True)
class RecordedResponse:
    """The head of the app's response: *status* line and *headers* as the app gave them, hop-by-hop ones left out.

    *complete* is false where the app raised before its body was whole.
    """

    status: str
    headers: tuple[tuple[str, str], ...]
    complete: bool = True

    @property
    def code(self) -> int:
        """The status code as a number."""
        return int(self.status[:3])


@dataclass(frozen=True, slots=True)
class Job:
    """One background run of one request (or function), as its registry saw it at one moment.

    Instants (``…_at``) are seconds since the epoch as float, by the registry's clock; sizes and offsets are bytes.
    A change gives a new value: nothing in here is live.
    """

    key: str
    title: str
    state: JobState = JobState.PENDING
    reason: str = ""
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    expires_at: float | None = None
    """When a pending job turns lost, or an ended one is forgotten; None while it runs, and until a loss is made
    permanent."""
    cancel_requested_at: float | None = None
    runner: str = ""
    """Who claimed it."""
    lease_expires_at: float | None = None
    """When its runner's claim runs out; None where the runner is a thread of the registry's own process."""
    owner: str | None = None
    """The user it belongs to; None: whoever holds its token."""
    fingerprint: str = ""
    """A digest of what the request asks for, to tell a repetition from another request."""
    request: Mapping[str, str] = field(default_factory=dict)
    """The recorded environ; empty when the job has ended."""
    response: RecordedResponse | None = None
    progress: Progress | None = None
    output_end: int = 0
    output_dropped: tuple[int, int] | None = None
    """The range of output bytes that was dropped to stay within the registry's bounds, if any."""
    body_end: int = 0

    def elapsed(self, now: float) -> float:
        """Seconds that it has run until *now*, or until it ended; 0.0 if it never started."""
        if self.started_at is None:
            return 0.0
        return max(0.0, (now if self.ended_at is None else self.ended_at) - self.started_at)


def new_token() -> str:
    """Return a token: a random (version 4) UUID of RFC 9562, 122 unguessable bits, in its canonical form."""
    return str(uuid.uuid4())


def key_of(token: str) -> str:
    """Return the key that names a token's job: a digest, so that who reads a registry cannot read jobs by HTTP."""
    return hashlib.sha256(token.encode("ascii")).hexdigest()[:32]
