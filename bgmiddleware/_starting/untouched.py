"""The answer to a request that was done in time: the app's own response, as if the middleware were not there."""

import codecs
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from .._capture import write_late
from .._jobs import Channel, Job, RecordedResponse
from .._serving import Answer, Stored, Visit, compressed, conditional, is_for_us, problem
from ..registries.base import END, PAGE_BYTES, Registry

__all__ = ["untouched"]

_log = logging.getLogger("bgmiddleware")

_LEAST_COMPRESSED = 200  # bytes: what is smaller becomes larger
_RANGES = {"HTTP_RANGE", "HTTP_IF_RANGE"}
_CONDITIONS = {f"HTTP_IF_{name}" for name in ("MATCH", "NONE_MATCH", "MODIFIED_SINCE", "UNMODIFIED_SINCE")}


def untouched(visit: Visit, job: Job) -> Answer:
    """Answer with the app's response, as if the middleware were not there, and delete the job."""
    registry = visit.site.registry
    _print_late(registry, job)
    response = job.response
    if response is None or not response.complete:
        registry.discard(job.key)
        return problem(visit.environ, 500, "failed", "The request failed.")
    is_large = job.body_end > PAGE_BYTES
    names = {name.lower() for name, _ in response.headers}
    length = (("Content-Length", str(job.body_end)),) if is_large and "content-length" not in names else ()
    content = Stored(registry, job.key, Channel.BODY, 0, job.body_end).begun(visit.environ)
    answer = Answer(response.status, (*response.headers, *length), content)
    if is_for_us(response):
        answer = conditional(_heeded(visit.environ, response), answer.headers, content, response.status)
        if job.body_end >= _LEAST_COMPRESSED:
            answer = compressed(visit.environ, answer)
    if is_large:
        return Answer(answer.status, answer.headers, _ForgottenAfter(registry, job.key, answer.body))
    body = b"".join(answer.body)
    registry.discard(job.key)
    return Answer(answer.status, answer.headers, [body] if body else [])


def _heeded(environ: Mapping[str, Any], response: RecordedResponse) -> dict[str, Any]:
    """Return a request with the conditions and the range that its app would have heeded, as its answer shows.

    A job's app is never told of them: its answer may be for other readers, too.
    """
    headers = {name.lower(): value for name, value in response.headers}
    dropped = set() if headers.get("accept-ranges", "").lower() == "bytes" else _RANGES
    if headers.keys().isdisjoint(("etag", "last-modified")):
        dropped = dropped | _CONDITIONS
    return {name: value for name, value in environ.items() if name not in dropped}


def _print_late(registry: Registry, job: Job) -> None:
    """Print the job's output where it would have gone without capture."""
    writes = write_late("stdout"), write_late("stderr")
    try:
        for is_error, text in _texts(registry, job):
            writes[is_error](text)
    except (OSError, ValueError) as error:  # nobody reads the pipe, or the encoding lacks a character
        # The app has answered: a fault of the console must not change the response.
        _log.warning("job %s: its output cannot be printed: %s", job.key[:8], error)


def _texts(registry: Registry, job: Job) -> Iterator[tuple[bool, str]]:
    """Yield the texts of the output in their order, and whether each of them came on stderr."""
    decoders = [codecs.getincrementaldecoder("utf-8")("backslashreplace") for _ in range(2)]
    for is_error, data in _parts(registry, job):
        yield is_error, decoders[is_error].decode(data)
    for is_error in (False, True):
        yield is_error, decoders[is_error].decode(b"", True)


def _parts(registry: Registry, job: Job) -> Iterator[tuple[bool, bytes]]:
    ranges = deque(job.error_ranges or ())
    offset = 0
    while (piece := registry.read(job.key, Channel.OUTPUT, offset)).data:
        offset, left = piece.offset, piece.data
        while left:
            while ranges and ranges[0][1] <= offset:
                ranges.popleft()
            begin, end = ranges[0] if ranges else (END, END)
            is_error = begin <= offset
            size = (end if is_error else begin) - offset
            yield is_error, left[:size]
            offset, left = offset + len(left[:size]), left[size:]


class _ForgottenAfter:
    """The body of a job that is deleted when the body has been read or closed."""

    def __init__(self, registry: Registry, key: str, chunks: Iterable[bytes]) -> None:
        self._registry = registry
        self._key = key
        self._chunks = iter(chunks)

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self._registry.discard(self._key)
