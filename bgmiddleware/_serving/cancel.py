"""Asking a job to stop."""

from .._jobs import Job
from .problems import Answer
from .status import status_answer
from .visit import Visit

__all__ = ["answer_cancel"]


def answer_cancel(visit: Visit, job: Job) -> Answer:
    """Ask the job to stop, and say so by its state. Raises nothing where the job has ended: then nothing changes."""
    visit.registry.request_cancel(visit.key)
    visit.site.executor.stop(visit.key)
    ended = job.state.ended
    return status_answer(visit, visit.registry.get(visit.key), "200 OK" if ended else "202 Accepted")
