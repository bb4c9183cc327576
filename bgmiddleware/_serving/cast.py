"""A job's output as a recording of a terminal, which ``asciinema play`` and web players show: asciicast v3, and v2 for
asciinema before 3.0."""

import codecs
from collections.abc import Iterator
from typing import Any

from .._jobs import EXIT_STATUS, Channel, Job
from ..registries.base import PAGE_BYTES
from .log import Held, file_name, gap, whole_length
from .negotiate import View
from .problems import Answer, json_line
from .stored import TOO_MANY, Missing
from .timed import Came
from .visit import Visit, about

__all__ = ["answer_cast"]

_COLUMNS, _ROWS = 120, 32


def answer_cast(visit: Visit, job: Job) -> Answer:
    """Answer with what there is by now, as a file to save."""
    headers = (
        ("Content-Type", "application/x-asciicast"),
        ("Content-Disposition", f'attachment; filename="{file_name(job, "cast")}"'),
        *about(job),
    )
    if visit.environ["REQUEST_METHOD"] == "HEAD":
        return Answer("200 OK", headers)
    held = visit.take_slot_for_bytes(whole_length(job))
    return visit.refused(TOO_MANY) if held is None else Answer("200 OK", headers, Held(_cast(visit, job), held))


def _cast(visit: Visit, job: Job) -> Iterator[bytes]:
    is_old = visit.parameters.get("_view") == View.CAST2
    header: dict[str, Any] = {"version": 3, "term": {"cols": _COLUMNS, "rows": _ROWS}}
    if is_old:
        header = {"version": 2, "width": _COLUMNS, "height": _ROWS}
    header["title"] = job.title
    if job.started_at is not None:
        header["timestamp"] = int(job.started_at)
    yield json_line(header)
    before = 0
    for at, code, data in _events(visit, job):
        at = max(at, before)
        # Since the begin in the old version, since the event before in the new one.
        yield json_line([(at if is_old else at - before) / 1000, code, data])
        before = at


def _events(visit: Visit, job: Job) -> Iterator[tuple[int, str, str]]:
    """Yield what was printed, where steps begin, and the end: when, as what kind of event, and its data."""
    steps = list(job.steps.listed if job.steps is not None else ())[::-1]
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    came = Came(visit.registry, visit.key, 0)
    offset = 0
    while offset < job.output_end:
        piece = visit.registry.read(visit.key, Channel.OUTPUT, offset, min(PAGE_BYTES, job.output_end - offset))
        if piece.end <= offset:
            raise Missing("the job's bytes are not there any more")
        if piece.offset > offset:
            yield came.at(offset), "o", _shown(gap(offset, piece.offset).decode())
        for part, at in came.parts(piece):
            while steps and steps[-1].start < part.end:
                yield at, "m", steps.pop().title
            text = decoder.decode(part.data)
            if text:
                yield at, "o", _shown(text)
        offset = piece.end
    if job.state.ended:
        yield int(1000 * job.elapsed(0.0)), "x", str(EXIT_STATUS[job.state])


def _shown(text: str) -> str:
    # A terminal that is played to has no driver that would put a carriage return before each end of a line.
    return text.replace("\r\n", "\n").replace("\n", "\r\n")
