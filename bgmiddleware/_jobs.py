"""What a job is: frozen values, made by registries and read by everybody."""

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import NoneType
from typing import Any, NamedTuple, Self

__all__ = [
    "EXIT_STATUS",
    "KEY_LENGTH",
    "MOST_ERROR_RANGES",
    "NONE",
    "Channel",
    "Job",
    "JobState",
    "NextTry",
    "Priority",
    "Progress",
    "Question",
    "RecordedResponse",
    "Step",
    "StepState",
    "Steps",
    "Tries",
    "key_of",
    "new_token",
]


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


MOST_ERROR_RANGES = 500
"""How many ranges of its output a job tells that came on stderr."""

_LIVE = frozenset({JobState.PENDING, JobState.RUNNING})

EXIT_STATUS = {JobState.FINISHED: 0, JobState.FAILED: 1, JobState.CANCELLED: 3, JobState.LOST: 4}
"""What a program exits with that is told how a job ended; 2 is for a command line that is wrong."""


class Channel(StrEnum):
    """The three append-only byte logs of a job, read by offset."""

    REQUEST = "request"
    """The body of the recorded request. Forgotten when the job ends, unless the job keeps it."""

    OUTPUT = "output"
    """What the job printed."""

    BODY = "body"
    """The body of the job's HTTP response."""


class Priority(StrEnum):
    """Which of the jobs that wait is taken first; of those of one priority, the one that came first."""

    HIGH = "high"
    """Before all others."""

    NORMAL = "normal"
    """As all are where nothing else is said."""

    LOW = "low"
    """When no other waits."""

    @property
    def rank(self) -> int:
        """0 for the highest."""
        return _RANKS[self]


_RANKS = {priority: rank for rank, priority in enumerate(Priority)}


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

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the progress that a part of a job's document holds. Skips what it does not know."""
        return cls(document["done"], document.get("total"), document.get("message", ""))

    @property
    def percent(self) -> float | None:
        """*done* in percent of *total*, within 0 and 100; None where there is no total."""
        if not self.total or self.total < 0:
            return None
        return min(100.0, max(0.0, 100.0 * self.done / self.total))


class StepState(StrEnum):
    """Where a step of a job is on its way: ``running → done | failed | cancelled``."""

    RUNNING = "running"
    """It has begun, and not ended."""

    DONE = "done"
    """It came to its end."""

    FAILED = "failed"
    """It was left by an exception."""

    CANCELLED = "cancelled"
    """The job was asked to stop, or ended, before it came to its end."""


@dataclass(frozen=True, slots=True)
class Step:
    """A part of a job, which its code names by :func:`bgmiddleware.step`.

    *parent*: the number of the step that it is within, in the order of the steps; None: of none. *begun* and *ended*:
    milliseconds since the job began. *start* and *end*: offsets in the output.
    """

    title: str
    parent: int | None = None
    state: StepState = StepState.RUNNING
    begun: int = 0
    ended: int | None = None
    start: int = 0
    end: int | None = None
    progress: Progress | None = None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the step that a part of a job's document holds. Skips what it does not know."""
        known = {name: value for name, value in document.items() if name in cls.__dataclass_fields__}
        known["state"] = StepState(known["state"])
        if known.get("progress") is not None:
            known["progress"] = Progress.from_document(known["progress"])
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of a job in the order of their begin: the first 500 are *listed*, and the others counted."""

    listed: tuple[Step, ...] = ()
    unlisted: int = 0

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the steps that a part of a job's document holds."""
        return cls(tuple(map(Step.from_document, document["listed"])), int(document["unlisted"]))

    def within(self, state: JobState, ended: int) -> "Steps":
        """Return the steps of a job in *state*, as they read: where it *ended* then, none of them runs."""
        if not state.ended or all(step.state is not StepState.RUNNING for step in self.listed):
            return self
        listed = (
            dataclasses.replace(step, state=StepState.CANCELLED, ended=ended)
            if step.state is StepState.RUNNING
            else step
            for step in self.listed
        )
        return Steps(tuple(listed), self.unlisted)


@dataclass(frozen=True, slots=True)
class Question:
    """What a running job asks its readers, by :func:`bgmiddleware.ask`.

    *choices*: the answers that it takes; none: any line. *until*: the instant at which it waits no longer. *id*: names
    the question, so that an answer to an earlier one is not taken for this. *answer*: None until there is one.
    """

    text: str
    choices: tuple[str, ...] = ()
    until: float = 0.0
    id: str = ""
    answer: str | None = None

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the question that a part of a job's document holds. Skips what it does not know."""
        known = {name: value for name, value in document.items() if name in cls.__dataclass_fields__}
        known["choices"] = tuple(map(str, known.get("choices", ())))
        return cls(**known)


@dataclass(frozen=True, slots=True)
class NextTry:
    """A try of a request that has not begun. Its token is known to nobody but who has that of the try before.

    *link*: leads to it from the try before. *back*: leads from it to that one. *asked*: see :class:`Job`.
    """

    link: str
    back: str
    asked: Mapping[str, str]

    @property
    def key(self) -> str:
        """The key of the job that it will be."""
        return self.link.partition(":")[0]


_PAUSES = (5.0, 30.0, 180.0, 600.0)
_JITTER = 0.25


@dataclass(frozen=True, slots=True)
class Tries:
    """Which try of its request a job is: *number*, from 1, of at most *of*. *coming*: those that may follow it."""

    number: int = 1
    of: int = 1
    coming: tuple[NextTry, ...] = ()

    def pause(self, ttl: float) -> float:
        """Return for how many seconds the next try waits: longer each time, and never so long that the request would be
        forgotten. Jobs that failed together do not come back together, though everybody finds the same number."""
        spread = int(self.coming[0].key[:8], 16) / 0xFFFFFFFF
        seconds = min(_PAUSES[min(self.number, len(_PAUSES)) - 1], ttl / 2)
        return seconds * (1 - _JITTER + 2 * _JITTER * spread)

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the tries that a part of a job's document holds."""
        coming = tuple(NextTry(each["link"], each["back"], dict(each["asked"])) for each in document["coming"])
        return cls(int(document["number"]), int(document["of"]), coming)


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

    def to_document(self) -> dict[str, Any]:
        """Return the head as what JSON has."""
        return {"status": self.status, "headers": self.headers, "complete": self.complete}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the head that a part of a job's document holds."""
        headers = tuple((name, value) for name, value in document["headers"])
        return cls(document["status"], headers, document["complete"])


NONE: Mapping[str, Any] = {}
"""What jobs have that have none of something: one for all of them, so that each need not keep one."""


class Job(NamedTuple):
    """One background run of one request (or function), as its registry saw it at one moment.

    Instants (``…_at``) are seconds since the epoch as float, by the registry's clock; sizes and offsets are bytes.
    A change gives a new value: nothing in here is live.
    """

    # A tuple, and no dataclass: every job is made once and changes several times, and that takes a fifth of the time.

    key: str
    title: str
    state: JobState = JobState.PENDING
    reason: str = ""
    """Why it ended as it did; while it runs, why it was asked to stop."""
    created_at: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    expires_at: float | None = None
    """When a pending job turns lost, or an ended one is forgotten; None while it runs, until a loss is made permanent,
    and while it is *kept*."""
    cancel_requested_at: float | None = None
    process: str = ""
    """The process in whose memory it waits, if it does; with that it is lost."""
    runner: str = ""
    """Who claimed it."""
    lease_expires_at: float | None = None
    """When its runner's claim runs out; None where the runner is a thread of the registry's own process."""
    owner: str | None = None
    """The user it belongs to; None: whoever holds its token."""
    version: str = ""
    """Which version of the app took the request; what it is called is the site's choice."""
    deadline: float | None = None
    """Seconds that it may run; then it is asked to stop."""
    priority: Priority = Priority.NORMAL
    groups: Mapping[str, int] = NONE
    """The groups that it belongs to, and how many jobs of each may run at a time, itself included."""
    fingerprint: str = ""
    """A digest of what the request asks for, to tell a repetition from another request."""
    name: str = ""
    """By which a repetition of the request finds the job; no two jobs hold one name at a time. Empty: it has none."""
    name_salt: str = ""
    """A random text: with the name, what the job's token is made of. So a name that is held again has another token."""
    keeps_name: bool = False
    """Whether it holds its name until it is forgotten; else until it ended, or was asked to stop."""
    admitted: bool = True
    """Whether an executor took it: only then others may be told of it."""
    asked: Mapping[str, str] = NONE
    """What is kept of the request: its ``method``, the pattern of its ``path``, its ``query`` where it is too long for
    a redirect, and digests of the credentials and cookies that it bore."""
    request: Mapping[str, str] = NONE
    """The recorded environ; empty when the job has ended, unless it *holds_request*."""
    keeps_request: bool = False
    """Whether its request is kept until its TTL, so that it can be run again."""
    kept: bool = False
    """Whether it has ended and has no TTL, since somebody wants to keep it."""
    rerun_of: str = ""
    """Where the job is that it repeats: a link that only this job's token opens; empty: it repeats none."""
    rerun_as: str = ""
    """Where the last job is that repeats it: a link of the same kind."""
    tries: Tries | None = None
    """Which try of its request it is; None: it is the only one."""
    response: RecordedResponse | None = None
    progress: Progress | None = None
    """How far it says that it is, outside of its steps."""
    steps: Steps | None = None
    question: Question | None = None
    """What it asks its readers, and their answer until it has taken that."""
    shares: Mapping[str, Mapping[str, str | float]] = NONE
    """The links by which its owner shows it to others: by their ids, the ``scope`` and ``until`` when."""
    output_end: int = 0
    output_dropped: tuple[int, int] | None = None
    """The range of output bytes that was dropped to stay within the registry's bounds, if any."""
    body_end: int = 0
    receipt: Mapping[str, str | float] = NONE
    """What its runner says of the run: who it was, how much time of a processor it took, what came on stderr."""

    def changed(self, **fields: Any) -> Self:
        """Return the job with other values in some *fields*."""
        values = list(self)
        for name, value in fields.items():
            values[_PLACES[name]] = value
        return type(self)._make(values)

    def elapsed(self, now: float) -> float:
        """Seconds that it has run until *now*, or until it ended; 0.0 if it never started."""
        if self.started_at is None:
            return 0.0
        return max(0.0, (now if self.ended_at is None else self.ended_at) - self.started_at)

    def as_of(self, now: float) -> Self:
        """Return the job as it reads at *now*: what ran out of time is lost, though nobody wrote that down yet.

        The TTL of such a loss begins when it is made permanent: who comes after a weekend's sleep shall still see it.
        """
        if self.state is JobState.RUNNING and self.lease_expires_at is not None and now >= self.lease_expires_at:
            if self.cancel_requested_at is not None:
                return self.changed(state=JobState.CANCELLED, ended_at=self.lease_expires_at)
            return self.changed(state=JobState.LOST, reason="its runner vanished", ended_at=self.lease_expires_at)
        if self.state is JobState.PENDING and self.expires_at is not None and now >= self.expires_at:
            return self.changed(state=JobState.LOST, reason="never started", ended_at=self.expires_at, expires_at=None)
        return self

    @property
    def current_progress(self) -> Progress | None:
        """How far the innermost of its running steps is that says so; else the job."""
        if self.steps is not None and not self.state.ended:
            for step in reversed(self.steps.listed):
                if step.state is StepState.RUNNING and step.progress is not None:
                    return step.progress
        return self.progress

    @property
    def error_ranges(self) -> tuple[tuple[int, int], ...] | None:
        """Which bytes of its output came on stderr, from a begin up to an end: the first
        ``MOST_ERROR_RANGES``.

        What its child processes wrote is not told apart. None: nobody knows, because the job has not ended, was lost,
        or ran where secrets are replaced.
        """
        ranges = self.receipt.get("stderr")
        if ranges is None:
            return None
        parts = (part.partition("-") for part in str(ranges).split(",") if part)
        return tuple((int(begin), int(end)) for begin, _, end in parts)

    @property
    def size(self) -> int:
        """How many bytes are stored of its output, its response, and its request if it keeps that."""
        begin, end = self.output_dropped or (0, 0)
        request = int(self.request.get("CONTENT_LENGTH") or 0) if self.holds_request else 0
        return self.output_end - (end - begin) + self.body_end + request

    @property
    def is_tried_again(self) -> bool:
        """Whether another try of its request follows, or has followed: it failed or was lost, and not by an answer that
        says what to do. How a job ends that was asked to stop is no reason to go on with it."""
        if self.tries is None or not self.tries.coming or self.state not in (JobState.FAILED, JobState.LOST):
            return False
        if self.cancel_requested_at is not None:
            return False
        return self.response is None or not self.response.complete or self.response.code >= 500

    @property
    def awaits_try(self) -> bool:
        """Whether another try of its request follows, which has not begun."""
        return self.is_tried_again and not self.rerun_as

    def next_try_at(self, ttl: float) -> float | None:
        """Return when the next try of its request begins, if there is room then; None: none is awaited."""
        if self.tries is None or self.ended_at is None or not self.awaits_try:
            return None
        return self.ended_at + self.tries.pause(ttl)

    @property
    def holds_request(self) -> bool:
        """Whether its request is there when it has ended."""
        return self.keeps_request or self.awaits_try

    def has_expired(self, now: float) -> bool:
        """Whether it ended more than its TTL before *now*."""
        return self.state.ended and self.expires_at is not None and now >= self.expires_at

    def holds_name(self, now: float) -> bool:
        """Whether no other job may have its name at *now*."""
        if self.has_expired(now):
            return False
        if self.keeps_name and self.admitted:
            return True
        return not self.as_of(now).state.ended and self.cancel_requested_at is None

    def to_document(self) -> dict[str, Any]:
        """Return the job as what JSON has: it comes back from :meth:`from_document` as it is."""
        return _plain(self._asdict())

    def to_brief_document(self) -> dict[str, Any]:
        """Return the same without what every new job says: :meth:`from_document` knows that."""
        each = zip(self._fields, self, _DEFAULTS, strict=True)
        return _plain({name: value for name, value, default in each if value != default})

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the job that a document of :meth:`to_document` holds. Skips what it does not know: in a fleet there
        may be newer ones. Raises ``ValueError``, ``TypeError`` or ``KeyError`` for what is no job."""
        known = {name: value for name, value in document.items() if name in _KINDS}
        for name, value in known.items():
            if not isinstance(value, _KINDS[name]):
                raise TypeError(f"{name} is no {_KINDS[name]}")
        known["state"] = JobState(known.get("state", JobState.PENDING))
        known["priority"] = Priority(known.get("priority", Priority.NORMAL))
        if known.get("response") is not None:
            known["response"] = RecordedResponse.from_document(known["response"])
        if known.get("progress") is not None:
            known["progress"] = Progress.from_document(known["progress"])
        if known.get("steps") is not None:
            known["steps"] = Steps.from_document(known["steps"])
        if known.get("question") is not None:
            known["question"] = Question.from_document(known["question"])
        if known.get("tries") is not None:
            known["tries"] = Tries.from_document(known["tries"])
        if known.get("output_dropped") is not None:
            begin, end = known["output_dropped"]
            known["output_dropped"] = int(begin), int(end)
        return cls(**known)


_DEFAULTS = (None, None, *Job("", "")[2:])  # a key and a title have none


def _plain(document: dict[str, Any]) -> dict[str, Any]:
    """Let the values in a document be what JSON has."""
    if document.get("response") is not None:
        document["response"] = document["response"].to_document()
    for name in ("progress", "steps", "question", "tries"):
        if document.get(name) is not None:
            document[name] = dataclasses.asdict(document[name])
    return document


_PLACES = {name: place for place, name in enumerate(Job._fields)}
_INSTANT = (int, float, NoneType)
_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("key", "title", "state", "reason", "runner", "version", "priority", "fingerprint"), (str,)),
    **dict.fromkeys(("name", "name_salt", "process", "rerun_of", "rerun_as"), (str,)),
    **dict.fromkeys(("keeps_name", "admitted", "keeps_request", "kept"), (bool,)),
    **dict.fromkeys(("started_at", "ended_at", "expires_at", "cancel_requested_at"), _INSTANT),
    **dict.fromkeys(("lease_expires_at", "deadline"), _INSTANT),
    **dict.fromkeys(("asked", "groups", "request", "receipt", "shares"), (dict,)),
    **dict.fromkeys(("response", "progress", "steps", "question", "tries"), (dict, NoneType)),
    **dict.fromkeys(("output_end", "body_end"), (int,)),
    "created_at": (int, float),
    "owner": (str, NoneType),
    "output_dropped": (list, tuple, NoneType),
}
"""What JSON has of each field: a document may be damaged, and what is in it is compared and counted."""


KEY_LENGTH = 32
"""How many characters of 0123456789abcdef a key has."""

_VERSION_4 = 0x4 << 76 | 0x2 << 62  # and the variant
_NOT_VERSION = ~(0xF << 76 | 0x3 << 62)


def new_token() -> str:
    """Return a token: a random (version 4) UUID of RFC 9562, 122 unguessable bits, in its canonical form."""
    # As uuid.uuid4() makes it, at a third of its time.
    digits = f"{int.from_bytes(os.urandom(16)) & _NOT_VERSION | _VERSION_4:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def key_of(token: str) -> str:
    """Return the key that names a token's job: a digest, so that who reads a registry cannot read jobs by HTTP."""
    return hashlib.sha256(token.encode("ascii")).hexdigest()[:KEY_LENGTH]
