"""A job's state as JSON."""

from typing import Any

from .._jobs import Job, JobState, Progress, Question, Steps
from .problems import Answer, as_json
from .rerun import link_to
from .tries import retry_document
from .visit import Visit, about

__all__ = ["answer_status", "status_answer", "status_document"]

_VIEWS = {
    **dict.fromkeys(("log", "lines", "events"), "output"),
    "status": "list",
    "cast": "output",
    "result": "result",
}
"""What is linked, with the right to it."""


def status_document(visit: Visit, job: Job) -> dict[str, Any]:
    """Return what scripts are told of a job: instants in seconds since the epoch, durations in seconds, bytes."""
    progress = job.current_progress
    dropped = job.output_dropped
    here = visit.link()
    can_rerun = job.keeps_request and job.state.ended and not job.is_tried_again
    return {
        **_name(visit, job),
        "title": job.title,
        "state": job.state.value,
        "reason": job.reason,
        "progress": None if progress is None else _progress(progress),
        **_steps(job),
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "cancel_requested_at": job.cancel_requested_at,
        "stopping": _stopping(visit, job),
        "waiting_for": _waiting_for(job.question) if job.state is JobState.RUNNING else None,
        "kept": job.kept,
        "elapsed": job.elapsed(visit.registry.clock()),
        "priority": job.priority.value,
        "queue": _queue(visit, job),
        "output": {"start": 0, "end": job.output_end, "dropped": list(dropped) if dropped else None},
        "estimate": _estimate(visit, job),
        "status_code": job.response.code if job.response is not None and job.state.ended else None,
        "response": _response(job),
        "receipt": _receipt(job, details=visit.site.details and visit.share is None),
        "rerun_of": link_to(visit, job, job.rerun_of),
        "rerun_as": link_to(visit, job, job.rerun_as),
        "retry": retry_document(visit, job),
        "links": {
            "self": here,
            **{view: f"{here}&_view={view}" for view, right in _VIEWS.items() if visit.may(right)},
            **({"cancel": here} if visit.may("cancel") else {}),
            **({"rerun": here if can_rerun else None} if visit.may("rerun") else {}),
        },
    }


def _name(visit: Visit, job: Job) -> dict[str, Any]:
    """Return by what the client may name the job: its token, for an operator its key; by a shared link by nothing."""
    if visit.share is not None:
        return {"shared_until": visit.share.until}
    return {"key": job.key} if visit.is_operators else {"token": visit.token}


def _progress(progress: Progress) -> dict[str, Any]:
    return {
        "done": progress.done,
        "total": progress.total,
        "percent": progress.percent,
        "message": progress.message,
    }


def _steps(job: Job) -> dict[str, Any]:
    """Return the steps of a job in the order of their begin, and how many more there are."""
    steps = (job.steps or Steps()).within(job.state, int(1000 * job.elapsed(0.0)))
    listed = [
        {
            "title": step.title,
            "parent": step.parent,
            "state": step.state.value,
            "begun": step.begun / 1000,
            "ended": None if step.ended is None else step.ended / 1000,
            "start": step.start,
            "end": step.end,
            "progress": None if step.progress is None else _progress(step.progress),
        }
        for step in steps.listed
    ]
    return {"steps": listed, "steps_unlisted": steps.unlisted}


def _stopping(visit: Visit, job: Job) -> float | None:
    """Return for how many seconds a job goes on since it was asked to stop; None where it was not, or has ended."""
    if job.state.ended or job.cancel_requested_at is None:
        return None
    return max(0.0, visit.registry.clock() - job.cancel_requested_at)


def _waiting_for(asked: Question | None) -> dict[str, Any] | None:
    """Return what a job asks its readers; None where it asks nothing, or has its answer."""
    if asked is None or asked.answer is not None:
        return None
    return {"question": asked.text, "choices": list(asked.choices), "until": asked.until, "id": asked.id}


def _queue(visit: Visit, job: Job) -> dict[str, float] | None:
    """Return where a pending job stands in the queue: the first is 1. None too where it has just been taken."""
    position = visit.registry.position(job.key) if job.state is JobState.PENDING else 0
    if not position:
        return None
    unseen = visit.no_worker_for(job)
    return {"position": position} if unseen is None else {"position": position, "no_worker_for": unseen}


def _response(job: Job) -> dict[str, Any] | None:
    """Return what can be said of the app's response without opening it; None where there is none."""
    response = job.response
    if response is None or not response.complete or not job.state.ended:
        return None
    headers = {name.lower(): value for name, value in response.headers}
    return {
        "status": response.status,
        "content_type": headers.get("content-type"),
        "attachment": headers.get("content-disposition", "").lstrip().lower().startswith("attachment"),
    }


def _receipt(job: Job, *, details: bool) -> dict[str, Any] | None:
    """Return how the job ran, with *details* also where; None before it began."""
    if job.started_at is None:
        return None
    return {
        "runner": job.receipt.get("runner") if details else None,
        "version": job.receipt.get("version") or None,
        "queue_wait": max(0.0, job.started_at - job.created_at),
        "run_time": job.elapsed(job.ended_at) if job.ended_at is not None else None,
        "cpu_time": job.receipt.get("cpu_time"),
        "steps": _shares(job),
    }


def _shares(job: Job) -> list[dict[str, Any]]:
    """Return the outermost steps of a job that has ended, with their shares of its time."""
    took = job.elapsed(0.0)
    if not job.state.ended or job.steps is None or not took:
        return []
    outermost = [step for step in job.steps.within(job.state, int(1000 * took)).listed if step.parent is None]
    return [
        {"title": step.title, "share": round(min(1.0, ((step.ended or 0) - step.begun) / 1000 / took), 3)}
        for step in outermost
    ]


def _estimate(visit: Visit, job: Job) -> dict[str, Any] | None:
    """Return how long a running job may take; None where nothing like it has finished yet."""
    if job.state is not JobState.RUNNING:
        return None  # to start one shall cost no look at others
    estimate = visit.site.estimates.of(visit.registry, job)
    return None if estimate is None else estimate._asdict()


def status_answer(visit: Visit, job: Job, status: str, *headers: tuple[str, str], vary: str = "Accept") -> Answer:
    """Return the state of *job* as the body of an answer with this *status* line."""
    # Who may cancel a job, say, but not look at it, is told nothing else of it.
    document = status_document(visit, job) if visit.may("list") else {**_name(visit, job), "state": job.state.value}
    answer = as_json(document, (*about(job, vary), *headers), status)
    return answer if visit.has_ended(job) else visit.polled(answer)


def answer_status(visit: Visit, job: Job) -> Answer:
    """Answer with the state; with ``_wait`` when there is more output than ``_offset`` (or than now), or the end."""
    offset = visit.number("_offset")
    job = visit.hold(job, job.output_end if offset is None else max(0, offset), visit.wait)
    return status_answer(visit, job, "200 OK")
