"""The tries of a request: whoever has the token of one is led on to the newest."""

from collections.abc import Mapping
from typing import Any

from .._jobs import Job
from ..errors import JobExpired, JobNotFound
from .negotiate import View
from .problems import Answer, see_other
from .rerun import token_in
from .visit import BadParameter, Visit, about

__all__ = ["led_on", "newest", "note_of_tries", "retry_document"]

_STAYING = (View.MINE, View.SCRIPT, View.STYLE, View.CLIENT, View.ICON)  # the same for all jobs
_READING = ("GET", "HEAD")
# Who reads on in the bytes of a job must get these, not those of another one.
_POSITIONS = ("HTTP_LAST_EVENT_ID", "HTTP_RANGE")
_TAKEN_ALONG = ("_view", "_wait", "_every", "_with", "_ignore")


def newest(visit: Visit, job: Job) -> tuple[Visit, Job]:
    """Return the newest try of a request, of which *job* is one, as the same client sees it."""
    while visit.follows and job.is_tried_again and job.tries is not None:
        token = token_in(visit, job, job.tries.coming[0].link)
        if token is None:
            break
        there = visit.site.visit(visit.environ, token)
        try:
            job = there.job()
        except (JobNotFound, JobExpired):  # it has not begun
            break
        visit = there
    return visit, job


def led_on(visit: Visit, job: Job) -> Answer | None:
    """Return where a client that looks at a job finds the newest try of its request; None where this is it, or where
    the client is in the middle of this one."""
    environ, parameters = visit.environ, visit.parameters
    if parameters.get("_follow", "no") != "no":
        raise BadParameter("_follow must be no, or not be there")
    stays = "_offset" in parameters or parameters.get("_view") in _STAYING or any(map(environ.__contains__, _POSITIONS))
    if stays or environ["REQUEST_METHOD"] not in _READING:
        return None
    there, job = newest(visit, job)
    if there is visit:
        return None
    place = there.link(**{name: parameters[name] for name in _TAKEN_ALONG if name in parameters})
    return there.linked(see_other(place, f"Tried again: see {place}", about(job)))


def retry_document(visit: Visit, job: Job) -> dict[str, Any] | None:
    """Return what scripts are told of the tries; None where there is one only. A shared link shows one job."""
    if job.tries is None or visit.share is not None:
        return None
    next_at = job.next_try_at(visit.registry.ttl)
    return {
        "try": job.tries.number,
        "of": job.tries.of,
        "next_at": next_at,
        "next_in": None if next_at is None else max(0.0, next_at - visit.registry.clock()),
        "is_over": job.state.ended and not job.is_tried_again,
    }


def note_of_tries(visit: Visit, job: Job, said: Mapping[str, str]) -> str:
    """Return what a person is told of the tries: when the next one begins, or which one runs."""
    retry = retry_document(visit, job)
    if retry is None:
        return ""
    if retry["next_in"] is not None:
        named = {**retry, "next": retry["try"] + 1, "time": f"{retry['next_in']:.0f} s"}
        return said["retry" if retry["next_in"] else "retry_now"].format(**named)
    return "" if job.state.ended or retry["try"] == 1 else said["try"].format(**retry)
