"""When a job's output came and on which stream, and how many lines are before it: for the lines of the page."""

import json

from .._jobs import Channel, Job
from ..registries.base import PAGE_BYTES
from .problems import Answer, whole
from .visit import Visit, about

__all__ = ["answer_times"]

_MOST_COUNTED = 64 * 1024 * 1024


def answer_times(visit: Visit, job: Job) -> Answer:
    """Answer with the times of the output behind ``_offset``, and with the number of the line that is there."""
    offset = min(max(0, visit.number("_offset") or 0), job.output_end)
    document = {
        "offset": offset,
        "line": _line_at(visit, job, offset),
        "times": [(end, at / 1000) for end, at in visit.registry.times(visit.key, offset)],
        "stderr": job.error_ranges,
    }
    answer = whole("application/json", f"{json.dumps(document, separators=(',', ':'))}\n", about(job))  # it may be long
    return answer if job.state.ended else visit.polled(answer)


def _line_at(visit: Visit, job: Job, offset: int) -> int | None:
    """Return the number of the line that the byte at *offset* is in; None where nobody knows, or it takes too long."""
    if offset > _MOST_COUNTED or (job.output_dropped is not None and job.output_dropped[0] < offset):
        return None
    counted, at = 1, 0
    while at < offset:
        piece = visit.registry.read(visit.key, Channel.OUTPUT, at, min(PAGE_BYTES, offset - at))
        if piece.offset != at or piece.end <= at:
            return None
        counted += piece.data[: offset - at].count(b"\n")
        at = piece.end
    return counted
