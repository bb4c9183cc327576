"""A job's output as JSON, a line for each of its lines: for jq and for what ships logs."""

import time
from collections.abc import Iterator

from .._jobs import Job
from ..registries.base import Piece
from .connections import broken_off, is_behind_proxy
from .log import SIGN_EVERY, SIGN_EVERY_TO_PROXY, Held, whole_length
from .problems import Answer, json_line
from .readable import readable
from .stored import TOO_MANY, Missing
from .timed import Came, Streams, step_at
from .visit import LOOK_EVERY, Hold, Visit, about

__all__ = ["answer_lines"]

_LONGEST = 64 * 1024


def answer_lines(visit: Visit, job: Job) -> Answer:
    """Answer with all lines, and those to come while the job runs; or with those from ``_offset`` on that are whole."""
    offset = visit.number("_offset")
    headers = (("Content-Type", "application/x-ndjson"), *about(job))
    if offset is not None:
        return _answer_page(visit, job, max(0, offset), headers)
    if visit.environ["REQUEST_METHOD"] == "HEAD":
        return Answer("200 OK", headers)
    held = visit.take_slot_for_bytes(whole_length(job)) if job.state.ended else visit.take_slot()
    if held is None:
        return visit.refused(TOO_MANY if job.state.ended else "Too many viewers: ask with _offset instead.")
    return Answer("200 OK", (*headers, ("X-Accel-Buffering", "no")), Held(_followed(visit, held), held))


def _answer_page(visit: Visit, job: Job, offset: int, headers: tuple[tuple[str, str], ...]) -> Answer:
    job = visit.hold(job, offset, visit.wait)
    lines = _Lines(visit, offset)
    job, piece = visit.registry.page(visit.key, offset, job=job)
    body = b"".join(lines.add(job, piece))
    if job.state.ended and lines.end >= job.output_end:
        body += b"".join(lines.rest(job)) + _last(job)
    told = (("Content-Length", str(len(body))), ("Job-Next-Offset", str(lines.begin)))
    answer = Answer("200 OK", (*headers, *told), [body])
    return answer if job.state.ended else visit.polled(answer)


def _followed(visit: Visit, held: Hold) -> Iterator[bytes]:
    lines = _Lines(visit, 0)
    sign_every = SIGN_EVERY_TO_PROXY if is_behind_proxy(visit.environ) else SIGN_EVERY
    sent_at = time.monotonic()
    while True:
        job, piece = visit.registry.page(visit.key, lines.end)
        goes_on = piece.end > lines.end
        data = b"".join(lines.add(job, piece))
        if job.state.ended and lines.end >= job.output_end:
            yield data + b"".join(lines.rest(job)) + _last(job)
            return
        if job.state.ended and not goes_on:
            raise Missing("the job's bytes are not there any more")
        if not data and time.monotonic() - sent_at >= sign_every:
            data = b"\n"  # a sign of life that no reader of JSON sees
        if data:
            sent_at = time.monotonic()
            yield data
        if held.gone() or held.revoked() or (held.must_end() and not job.state.ended):
            raise broken_off(visit.environ)
        if lines.end >= job.output_end or not goes_on:
            visit.registry.wait(visit.key, lines.end, LOOK_EVERY)


class _Lines:
    """Makes lines of output that comes in pieces, from *begin* on; *end* is where the next piece begins."""

    def __init__(self, visit: Visit, begin: int) -> None:
        self.begin = self.end = begin
        self._came = Came(visit.registry, visit.key, begin)
        self._streams: Streams | None = None
        self._data = b""

    def add(self, job: Job, piece: Piece) -> Iterator[bytes]:
        """Yield the lines that a piece ends."""
        if job.state.ended:
            self._streams = self._streams or Streams(job)
        if piece.offset > self.end:
            yield from self.rest(job)
            yield json_line({"offset": self.end, "next": piece.offset, "dropped": piece.offset - self.end})
            self.begin = piece.offset
        self.end = piece.end
        *lines, self._data = (self._data + piece.data).split(b"\n")
        for line in lines:
            yield self._made(job, line, len(line) + 1)
        if len(self._data) > _LONGEST:
            yield from self.rest(job)

    def rest(self, job: Job) -> Iterator[bytes]:
        """Yield what ends no line, as one."""
        if self._data:
            line, self._data = self._data, b""
            yield self._made(job, line, len(line))

    def _made(self, job: Job, line: bytes, size: int) -> bytes:
        begin = self.begin
        self.begin += size
        came = self._came.at(self.begin - 1)
        step = step_at(job, begin)
        return json_line(
            {
                "offset": begin,
                "next": self.begin,
                "time": came / 1000,
                "at": round((job.started_at or 0.0) + came / 1000, 3),
                "step": None if step is None else step.title,
                "stream": None if self._streams is None else self._streams.at(begin),
                "text": readable(line.decode("utf-8", "replace")),
            }
        )


def _last(job: Job) -> bytes:
    return json_line(
        {"offset": job.output_end, "time": job.elapsed(0.0), "state": job.state.value, "reason": job.reason}
    )
