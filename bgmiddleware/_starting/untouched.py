"""The answer to a request that was done in time: the app's own, as if nothing had been between."""

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
    """Answer with what the app answered in time, as if nothing had been between; the job leaves no trace."""
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
    """Print what the job did where it would be if nobody had captured it."""
    write = write_late("stdout")
    try:
        for text in _texts(registry, job):
            write(text)
    except (OSError, ValueError) as error:  # a pipe that nobody reads, an encoding without a character of it
        # The app is done: what is wrong with the console is not its client's business any more.
        _log.warning("job %s: its output cannot be printed: %s", job.key[:8], error)


def _texts(registry: Registry, job: Job) -> Iterator[str]:
    decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode
    offset = 0
    while (piece := registry.read(job.key, Channel.OUTPUT, offset)).data:
        offset = piece.end
        yield decode(piece.data)
    yield decode(b"", True)


class _ForgottenAfter:
    """The body of a job that is forgotten when it was read, or nobody reads on."""

    def __init__(self, visit: Visit, job: Job) -> None:
        self._registry = visit.registry
        self._key = job.key
        self._chunks = iter(Stored(self._registry, job.key, Channel.BODY, 0, job.body_end).begun(visit.environ))

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._registry.discard(self._key)
