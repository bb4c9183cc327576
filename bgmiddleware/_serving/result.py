"""The app's own response, as often as it is asked for."""

from collections.abc import Iterator

from .._jobs import Channel, Job, JobState, RecordedResponse
from ..registries.base import PAGE_BYTES, Registry
from .problems import Answer, problem
from .status import status_answer
from .visit import Visit, job_headers

__all__ = ["answer_result"]

_NEVER = 2**62
_BODYLESS = (204, 304)


def answer_result(visit: Visit, job: Job) -> Answer:
    """Answer with the response that the job recorded; while it runs with 202, after ``_wait`` seconds at most."""
    wait = visit.wait
    if wait > 0 and not job.state.ended and visit.environ["REQUEST_METHOD"] != "HEAD" and visit.take_slot():
        try:
            job = visit.registry.wait(visit.key, _NEVER, wait)
        finally:
            visit.slots.give_back()
    if not job.state.ended:
        return status_answer(visit, job, "202 Accepted")
    if job.state is JobState.CANCELLED:
        return problem(visit.environ, 410, "cancelled", "The job was cancelled.", *job_headers(job))
    if job.state is JobState.LOST:
        return problem(visit.environ, 502, "lost", f"The job was lost: {job.reason}.", *job_headers(job))
    if job.response is None or not job.response.complete:
        detail = f"The job failed: {job.reason}. Its output says more."
        return problem(visit.environ, 500, "failed", detail, *job_headers(job))
    return Answer(job.response.status, _headers(job, job.response), _body(visit.registry, job))


def _headers(job: Job, response: RecordedResponse) -> tuple[tuple[str, str], ...]:
    names = {name.lower() for name, _ in response.headers}
    headers = [(name, value) for name, value in response.headers if name.lower() != "content-length"]
    if response.code not in _BODYLESS:
        # Known now, even if the app did not say; and where it was wrong, the connection would be broken by it.
        headers.append(("Content-Length", str(job.body_end)))
    if "cache-control" not in names:
        headers.append(("Cache-Control", "private, no-cache"))
    return tuple(headers)


def _body(registry: Registry, job: Job) -> Iterator[bytes]:
    """Yield the body in pieces, so that a large one is never in memory as a whole."""
    offset = 0
    while offset < job.body_end:
        data = registry.read(job.key, Channel.BODY, offset, PAGE_BYTES).data
        yield data
        offset += len(data)
