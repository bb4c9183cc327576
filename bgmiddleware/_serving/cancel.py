"""Asking a job to stop, and having it forgotten."""

import contextlib
import dataclasses
from collections.abc import Callable

from .._jobs import Job
from ..errors import JobExpired, JobNotFound
from ..registries.base import Registry
from .problems import UNSTORED, Answer, problem, see_other
from .status import status_answer
from .visit import Site, Visit

__all__ = ["answer_cancel", "answer_discard", "cancelled", "stop"]


def stop(site: Site, key: str) -> None:
    """Ask a job to stop, wherever it runs."""
    site.registry.request_cancel(key)
    site.executor.stop(key)


def answer_cancel(visit: Visit, job: Job) -> Answer:
    """Ask the job to stop, and say so by its state. Where it has ended, no other try of its request follows; else
    nothing changes then."""
    now = cancelled(visit.registry, job, lambda key: stop(visit.site, key))
    return status_answer(visit, now, "200 OK" if job.state.ended else "202 Accepted")


def cancelled(registry: Registry, job: Job, stop: Callable[[str], object]) -> Job:
    """Have *stop* ask a job to stop, by its key, and see to it that no other try of its request follows. Return the job
    as it is then."""
    stop(job.key)
    now = registry.get(job.key)
    if now.tries is None or not (job.awaits_try or now.awaits_try):  # it may have failed since it was read
        return now
    registry.amend(job.key, _without_tries)
    for coming in now.tries.coming[:1]:
        with contextlib.suppress(JobNotFound, JobExpired):  # it has not begun, and will not
            stop(coming.key)
    return registry.get(job.key)


def _without_tries(job: Job) -> Job | None:
    return None if job.tries is None else job.changed(tries=dataclasses.replace(job.tries, coming=()))


def answer_discard(visit: Visit, job: Job) -> Answer:
    """Have an operator's job forgotten, and lead him back to the list; 409 where it has not ended."""
    if not job.state.ended or not visit.registry.discard(visit.key):
        return problem(visit.environ, 409, "job-runs", "Only a job that has ended can be discarded. Cancel it first.")
    return see_other(visit.site.path_to_list, "See the others.", UNSTORED)
