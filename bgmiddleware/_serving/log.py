"""A job's output as plain text: followed live, whole, or a page of it."""

from collections.abc import Callable, Iterator

from .._jobs import Channel, Job
from ..registries.base import PAGE_BYTES, Piece, Registry
from .problems import Answer, retry_after
from .visit import Visit, about

__all__ = ["answer_log"]

_TEXT = ("Content-Type", "text/plain; charset=utf-8")
_LOOK_EVERY = 1.0


def answer_log(visit: Visit, job: Job) -> Answer:
    """Answer with the output: from ``_offset`` a page, else all of it, followed to its end while the job runs."""
    offset = visit.number("_offset")
    if offset is not None:
        return _answer_page(visit, offset)
    length = ("Content-Length", str(_whole_length(job)))
    if job.state.ended:
        return Answer("200 OK", (_TEXT, length, *about(job)), _whole(visit.registry, job))
    if visit.environ["REQUEST_METHOD"] == "HEAD":
        return Answer("200 OK", (_TEXT, length, *about(job), retry_after(1.0)))
    if visit.take_slot():
        # Not kept by proxies until it is whole.
        return Answer("200 OK", (_TEXT, ("X-Accel-Buffering", "no"), *about(job)), _Followed(visit))
    # Without a length: a job that prints much may drop some of it while it is being sent.
    return Answer("200 OK", (_TEXT, *about(job), retry_after(1.0)), _whole(visit.registry, job))


def _answer_page(visit: Visit, offset: int) -> Answer:
    wait = visit.wait if visit.environ["REQUEST_METHOD"] != "HEAD" and offset >= 0 else 0.0
    held = wait > 0 and visit.take_slot()
    try:
        job, piece = visit.registry.page(visit.key, offset, timeout=wait if held else 0.0)
    finally:
        if held:
            visit.slots.give_back()
    headers = (
        _TEXT,
        ("Content-Length", str(len(piece.data))),
        ("Job-Offset", str(piece.offset)),
        ("Job-Next-Offset", str(piece.end)),
        *about(job),
    )
    if not job.state.ended:
        headers += (retry_after(1.0),)
    return Answer("200 OK", headers, [piece.data])


def _gap(begin: int, end: int) -> bytes:
    """Say to a person what is missing here."""
    return f"\n[… {end - begin} bytes of output were dropped here: {begin} to {end} …]\n".encode()


def _whole_length(job: Job) -> int:
    if job.output_dropped is None:
        return job.output_end
    begin, end = job.output_dropped
    return job.output_end - (end - begin) + len(_gap(begin, end))


def _whole(registry: Registry, job: Job) -> Iterator[bytes]:
    """Yield the output as it was when *job* was read: ``_whole_length(job)`` bytes, if none is dropped since."""
    offset = 0
    while offset < job.output_end:
        piece = registry.read(job.key, Channel.OUTPUT, offset, min(PAGE_BYTES, job.output_end - offset))
        if not piece.data:
            return
        if piece.offset > offset:
            yield _gap(offset, piece.offset)
        yield piece.data[: job.output_end - piece.offset]
        offset = piece.end


class _Followed:
    """The output as it comes. Holds a slot until it is closed; ends with the job, or raises: silence is no end."""

    def __init__(self, visit: Visit) -> None:
        self._give_back: Callable[[], None] | None = visit.slots.give_back
        self._pieces = visit.registry.follow(visit.key, tick=_LOOK_EVERY)
        self._disconnected = visit.environ.get("waitress.client_disconnected")
        self._offset = 0
        self._next: Piece | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        piece, self._next = self._next, None
        while piece is None or not piece.data:
            piece = next(self._pieces)
            if not piece.data and self._disconnected is not None and self._disconnected():
                raise StopIteration
        if piece.offset > self._offset:
            gap = _gap(self._offset, piece.offset)
            self._offset, self._next = piece.offset, piece
            return gap
        self._offset = piece.end
        return piece.data

    def close(self) -> None:
        self._pieces.close()  # type: ignore[attr-defined]  # a generator
        if self._give_back is not None:
            self._give_back()
            self._give_back = None
