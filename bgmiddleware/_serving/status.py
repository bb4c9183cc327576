"""A job's state as JSON."""

import json
from typing import Any

from .._jobs import Job, JobState
from .problems import Answer
from .visit import Visit, about

__all__ = ["answer_status", "status_answer", "status_document"]


def status_document(visit: Visit, job: Job) -> dict[str, Any]:
    """Return what scripts are told of a job: instants in seconds since the epoch, durations in seconds, bytes."""
    progress = job.progress
    dropped = job.output_dropped
    return {
        "token": visit.token,
        "title": job.title,
        "state": job.state.value,
        "reason": job.reason,
        "progress": None
        if progress is None
        else {
            "done": progress.done,
            "total": progress.total,
            "percent": progress.percent,
            "message": progress.message,
        },
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "cancel_requested_at": job.cancel_requested_at,
        "elapsed": job.elapsed(visit.registry.clock()),
        "output": {"start": 0, "end": job.output_end, "dropped": list(dropped) if dropped else None},
        "estimate": _estimate(visit, job),
        "status_code": job.response.code if job.response is not None and job.state.ended else None,
        "links": {
            "self": visit.link(),
            "log": visit.link(_view="log"),
            "events": visit.link(_view="events"),
            "status": visit.link(_view="status"),
            "result": visit.link(_view="result"),
            "cancel": visit.link(),
        },
    }


def _estimate(visit: Visit, job: Job) -> dict[str, Any] | None:
    """Return how long a running job may take; None where nothing like it has finished yet."""
    if job.state is not JobState.RUNNING:
        return None  # to start one shall cost no look at others
    estimate = visit.site.estimates.of(visit.registry, job)
    return None if estimate is None else estimate._asdict()


def status_answer(visit: Visit, job: Job, status: str, *headers: tuple[str, str], vary: str = "Accept") -> Answer:
    """Return the state of *job* as the body of an answer with this *status* line."""
    body = json.dumps(status_document(visit, job)).encode()
    content = (("Content-Type", "application/json"), ("Content-Length", str(len(body))))
    if not job.state.ended:
        headers += visit.pace()
    return Answer(status, (*content, *about(job, vary), *headers), [body])


def answer_status(visit: Visit, job: Job) -> Answer:
    """Answer with the state; with ``_wait`` when there is more output than ``_offset`` (or than now), or the end."""
    offset = visit.number("_offset")
    job = visit.hold(job, job.output_end if offset is None else max(0, offset), visit.wait)
    return status_answer(visit, job, "200 OK")
