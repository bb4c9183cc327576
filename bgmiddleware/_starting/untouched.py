"""The answer to a request that was done in time: the app's own response, as if the middleware were not there."""

import codecs
import logging
from collections.abc import Iterator

from .._capture import write_late
from .._jobs import Channel, Job
from .._serving import Answer, Headers, Stored, Visit, problem
from ..registries.base import PAGE_BYTES, Registry

__all__ = ["untouched"]

_log = logging.getLogger("bgmiddleware")


def untouched(visit: Visit, job: Job) -> Answer:
    """Answer with the app's response, as if the middleware were not there, and delete the job."""
    registry = visit.site.registry
    _print_late(registry, job)
    response = job.response
    if response is None or not response.complete:
        registry.discard(job.key)
        return problem(visit.environ, 500, "failed", "The request failed.")
    if job.body_end > PAGE_BYTES:
        length = () if _has(response.headers, "content-length") else (("Content-Length", str(job.body_end)),)
        return Answer(response.status, (*response.headers, *length), _ForgottenAfter(visit, job))
    body = registry.read(job.key, Channel.BODY, 0).data
    registry.discard(job.key)
    return Answer(response.status, response.headers, [body] if body else [])


def _has(headers: Headers, name: str) -> bool:
    return any(key.lower() == name for key, _ in headers)


def _print_late(registry: Registry, job: Job) -> None:
    """Print the job's output where it would have gone without capture."""
    write = write_late("stdout")
    try:
        for text in _texts(registry, job):
            write(text)
    except (OSError, ValueError) as error:  # nobody reads the pipe, or the encoding lacks a character
        # The app has answered: a fault of the console must not change the response.
        _log.warning("job %s: its output cannot be printed: %s", job.key[:8], error)


def _texts(registry: Registry, job: Job) -> Iterator[str]:
    decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode
    offset = 0
    while (piece := registry.read(job.key, Channel.OUTPUT, offset)).data:
        offset = piece.end
        yield decode(piece.data)
    yield decode(b"", True)


class _ForgottenAfter:
    """The body of a job that is deleted when the body has been read or closed."""

    def __init__(self, visit: Visit, job: Job) -> None:
        self._registry = visit.registry
        self._key = job.key
        self._chunks = iter(Stored(self._registry, job.key, Channel.BODY, 0, job.body_end).begun(visit.environ))

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._registry.discard(self._key)
