"""Asking a job to stop, and having it forgotten."""

import contextlib
import dataclasses

from .._jobs import Job
from ..errors import JobExpired, JobNotFound
from .problems import UNSTORED, Answer, problem, see_other
from .status import status_answer
from .visit import Site, Visit

__all__ = ["answer_cancel", "answer_discard", "stop"]


def stop(site: Site, key: str) -> None:
    """Ask a job to stop, wherever it runs."""
    site.registry.request_cancel(key)
    site.executor.stop(key)


def answer_cancel(visit: Visit, job: Job) -> Answer:
    """Ask the job to stop, and say so by its state. Where it has ended, no other try of its request follows; else
    nothing changes then."""
    if job.awaits_try:
        _stop_tries(visit.site, job)
    stop(visit.site, visit.key)
    ended = job.state.ended
    return status_answer(visit, visit.registry.get(visit.key), "200 OK" if ended else "202 Accepted")


def _stop_tries(site: Site, job: Job) -> None:
    """See to it that no other try of a request follows that of a *job*."""

    def changed(now: Job) -> Job | None:
        return None if now.tries is None else now.changed(tries=dataclasses.replace(now.tries, coming=()))

    site.registry.amend(job.key, changed)
    for coming in job.tries.coming[:1] if job.tries is not None else ():
        with contextlib.suppress(JobNotFound, JobExpired):  # it has not begun, and will not
            stop(site, coming.key)


def answer_discard(visit: Visit, job: Job) -> Answer:
    """Have an operator's job forgotten, and lead him back to the list; 409 where it has not ended."""
    if not job.state.ended or not visit.registry.discard(visit.key):
        return problem(visit.environ, 409, "job-runs", "Only a job that has ended can be discarded. Cancel it first.")
    return see_other(visit.site.path_to_list, "See the others.", UNSTORED)
