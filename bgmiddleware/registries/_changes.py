"""How a job changes, as functions of its record: what all registries decide alike. Each of them reads a record, asks
here, and writes down what it was told; that nothing comes in between is its own business."""

from collections.abc import Callable, Collection, Iterable, Mapping

from .._jobs import NONE, Job, JobState, Progress, Steps
from ..errors import BadOffset
from .base import Transition

__all__ = [
    "amended",
    "asked_to_stop",
    "check_whole",
    "claimed",
    "ended",
    "has_room",
    "has_room_to_keep",
    "held",
    "kept",
    "may_change",
    "renewed",
    "settled",
]

_AMENDED = ("question", "rerun_as", "shares", "tries")
"""What may be amended of a job: what no registry looks at."""


def may_change(job: Job, now: float, expect: Collection[JobState], runner: str) -> bool:
    """Whether *runner* may change the state of *job*, if it is one of *expect*."""
    # What reads as ended may still be written by its runner while it is not made permanent: a late finish of a
    # revived laptop is the truth.
    if job.state not in expect or job.state.ended:
        return False
    if job.state is JobState.PENDING:
        return not job.as_of(now).state.ended
    return job.runner == runner


def has_room(groups: Mapping[str, int], running: Iterable[Job], now: float) -> bool:
    """Whether one more job may run in each of *groups*, beside those that are stored as *running*."""
    counted = dict.fromkeys(groups, 0)
    for job in running:
        if not job.as_of(now).state.ended:
            for group in counted.keys() & job.groups.keys():
                counted[group] += 1
    return all(counted[group] < most for group, most in groups.items())


def has_room_to_keep(job: Job, others: Iterable[Job], most: int, most_bytes: int) -> bool:
    """Whether *job* may be kept beside the *others* that are."""
    sizes = [other.size for other in others]
    return len(sizes) < most and sum(sizes) + job.size <= most_bytes


def kept(job: Job, now: float, *, ttl: float, keep: bool) -> Job:
    """Return an ended job without a TTL, or with one that begins *now*."""
    return job.changed(kept=keep, expires_at=None if keep else now + ttl)


def claimed(job: Job, now: float, change: Transition) -> Job:
    """Return the job as it runs from *now*."""
    return job.changed(
        state=JobState.RUNNING,
        runner=change.runner,
        started_at=now,
        expires_at=None,
        admitted=True,
        lease_expires_at=None if change.lease is None else now + change.lease,
        receipt={**job.receipt, **(change.receipt or {})},
    )


def ended(job: Job, now: float, change: Transition, *, ttl: float, at: float | None = None) -> Job:
    """Return the job as it ended, *now* or *at* an earlier time; its TTL begins now."""
    new = job.changed(
        state=change.to,
        reason=change.reason,
        response=change.response,
        ended_at=now if at is None else at,
        expires_at=now + ttl,
        lease_expires_at=None,
        question=None,
        receipt={**job.receipt, **(change.receipt or {})},
    )
    return new if new.holds_request or not new.request else new.changed(request=NONE)


def check_whole(job: Job, change: Transition) -> None:
    """Raise ``BadOffset`` where a job that is to end has less than its runner knows of."""
    for end, least in ((job.output_end, change.output_end), (job.body_end, change.body_end)):
        if end < least:
            raise BadOffset(end)


def settled(job: Job, now: float, *, ttl: float) -> Job:
    """Return the job, which reads as ended, as one that has ended."""
    seen = job.as_of(now)
    return ended(job, now, Transition(seen.state, reason=seen.reason), ttl=ttl, at=seen.ended_at)


def held(job: Job, until: float) -> Job:
    """Return a pending job whose process is there *until* then."""
    return job.changed(expires_at=until if job.expires_at is None else min(job.expires_at, until))


def renewed(
    job: Job,
    now: float,
    *,
    runner: str,
    lease: float | None,
    progress: Progress | None,
    title: str | None,
    steps: Steps | None,
    pending_ttl: float,
) -> Job | None:
    """Return the job with a lease that counts from *now*; None where it is not the runner's.

    A pending job is nobody's: who has it renewed, never beyond *pending_ttl*, has admitted it. One that waits in a
    process is there as long as that is.
    """
    if job.state is JobState.PENDING and not runner:
        most = job.created_at + pending_ttl
        until = most if job.process else job.expires_at if lease is None else min(now + lease, most)
        return job.changed(expires_at=until, admitted=True)
    if job.state is not JobState.RUNNING or job.runner != runner:
        return None
    until = job.lease_expires_at if lease is None else now + lease
    return job.changed(
        lease_expires_at=until,
        progress=progress or job.progress,
        title=title or job.title,
        steps=steps or job.steps,
    )


def amended(job: Job, seen: Job, change: Callable[[Job], Job | None], now: float, *, ttl: float) -> Job | None:
    """Return a job, which reads as *seen*, with what *change* makes of that; None where that changes nothing."""
    new = change(seen)
    if new is None:
        return None
    amended = job.changed(**{name: getattr(new, name) for name in _AMENDED})
    if amended.rerun_as and amended.expires_at is not None and amended.state.ended:
        amended = amended.changed(expires_at=now + ttl)
    is_kept = amended.holds_request or not (job.request and job.state.ended)
    return amended if is_kept else amended.changed(request=NONE)


def asked_to_stop(job: Job, now: float, *, ttl: float, reason: str) -> Job | None:
    """Return the job when a cancel was asked for; None where that changes nothing."""
    seen = job.as_of(now)
    if seen.state is JobState.PENDING:
        return ended(job, now, Transition(JobState.CANCELLED, reason=reason), ttl=ttl)
    if seen.state is JobState.RUNNING and job.cancel_requested_at is None:
        return job.changed(cancel_requested_at=now, reason=reason)
    return None
