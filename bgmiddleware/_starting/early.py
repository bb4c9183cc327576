"""Early answers: a challenge, a redirect or a refusal that the app gives at once, before anybody could watch a job.
They are meant for the client that sent the request, which can react only to the response of that request."""

import threading
import time
from dataclasses import dataclass, field

from .._jobs import Job, JobState, RecordedResponse
from .._running import Run
from .._serving import Viewers, Visit, disconnection_of, threads_of
from ..registries.base import END

__all__ = ["Patience", "is_early_answer"]

_GRACE = 0.2
"""Seconds that the middleware waits for a job that prints nothing, so that its answer goes to the client directly."""

_QUEUED = 0.05
"""Seconds that the middleware waits for a job to leave the queue."""

_LINGER = 0.005
"""Seconds that the middleware waits on once a job prints: a framework logs a refusal just before it answers."""

_AT_ONCE = 0.002
_LOOK_EVERY = 1.0
_MOST = 32
_NOT_MODIFIED = 304


def is_early_answer(response: RecordedResponse | None) -> bool:
    """Whether a response is meant for this client only: 3xx and 4xx."""
    return response is not None and response.complete and 300 <= response.code < 500 and response.code != _NOT_MODIFIED


@dataclass(frozen=True)
class Patience:
    """How long a client that has just started a job waits for its answer. Any thread.

    These waits have slots of their own: without the middleware, too, a request would hold its thread until it is
    answered.
    """

    slots: Viewers = field(default_factory=lambda: Viewers(_MOST))

    def hold(self, visit: Visit, job: Job, promote_after: float, run: Run | None = None) -> Job:
        """Wait for the end of the job, at most *promote_after* seconds, or a moment if that is 0. Return the job.

        *run*: the job's run, if it is at hand.
        """
        if promote_after <= 0 and _has_greenlets():
            return job
        threads = threads_of(visit.environ)
        gone = disconnection_of(visit.environ)
        slot = self.slots.take_slot(gone, least=threads or 0)
        if slot is None:
            return job
        if visit.site.viewers.none_allowed:
            promote_after = 0.0
        try:
            if promote_after <= 0:
                return _a_moment(visit, job, run if visit.site.executor.in_process else None)
            until = time.monotonic() + promote_after
            while not job.state.ended and (left := until - time.monotonic()) > 0 and not gone():
                job = visit.registry.wait(job.key, END, min(left, _LOOK_EVERY))
            return job
        finally:
            self.slots.give_back(slot)


def _has_greenlets() -> bool:
    """Whether gevent or eventlet has replaced threads by greenlets.

    A job that computes lets no other greenlet run, so a client that waited would hear nothing before the job's end.
    """
    return threading.Lock.__module__ != "_thread"


def _a_moment(visit: Visit, job: Job, run: Run | None) -> Job:
    # What is done at once, as most of what is answered at once, is not waited for by the registry: that would wake us
    # at each step of the job, while it needs the interpreter.
    if run is not None and run.ends_within(min(_AT_ONCE, _GRACE)):
        return visit.registry.get(job.key)
    wait = visit.registry.wait
    begun = time.monotonic()
    job = wait(job.key, 0, _QUEUED)
    if job.state is not JobState.PENDING and not job.state.ended and not job.output_end:
        job = wait(job.key, 0, _GRACE - (time.monotonic() - begun))
    if job.state is JobState.RUNNING and job.output_end:
        job = wait(job.key, END, _LINGER)
    return job
