"""A job's output as plain text: followed live, whole, a range, or a page of it."""

import itertools
import re
import time
from collections.abc import Generator, Iterator, Mapping
from typing import Any

from .._jobs import Channel, Job, JobState
from ..errors import JobCancelled, JobExpired, JobNotFound
from ..registries.base import PAGE_BYTES, Piece, Registry
from .connections import broken_off, is_behind_proxy, makes_ends_visible
from .problems import Answer, Headers
from .stored import TOO_MANY, Asked, Missing, Stored, asked_range, conditional, entity_tag
from .visit import LOOK_EVERY, Hold, Visit, about

__all__ = ["SIGN_EVERY", "SIGN_EVERY_TO_PROXY", "Held", "answer_log", "file_name", "gap", "whole_length"]

_TEXT = ("Content-Type", "text/plain; charset=utf-8")
SIGN_EVERY = 20.0
SIGN_EVERY_TO_PROXY = 2.0
_MORE = 4096


def answer_log(visit: Visit, job: Job) -> Answer:
    """Answer with the output: a page from ``_offset``, the range asked for, or all; followed while the job runs."""
    offset = visit.number("_offset")
    if offset is not None:
        return _answer_page(visit, job, offset)
    if job.state.ended:
        return _answer_whole(visit, job)
    asked = asked_range(visit.environ)
    if asked is not None and job.output_dropped is None and "HTTP_IF_RANGE" not in visit.environ:
        return _answer_range(visit, job, asked)
    if visit.environ["REQUEST_METHOD"] == "HEAD":
        return Answer("200 OK", (*_head(job), _length(whole_length(job)), *visit.pace()))
    held = visit.take_slot()
    if held is not None:
        # Not kept by proxies until it is whole.
        return Answer("200 OK", (*_head(job), ("X-Accel-Buffering", "no")), _Followed(visit, job, held))
    return _answer_so_far(visit, job)


def _answer_so_far(visit: Visit, job: Job) -> Answer:
    """Answer with what there is, so that nobody takes it for all: it says to be longer than it is, and breaks off."""
    held = visit.take_slot_for_bytes(whole_length(job))
    if held is None:
        return visit.refused(TOO_MANY)
    headers = (
        *_head(job),
        _length(whole_length(job) + _MORE),
        ("Accept-Ranges", "none"),  # wget would take an empty rest for the end
        ("Job-Next-Offset", str(job.output_end)),
        *visit.pace(),
    )
    return Answer("200 OK", headers, Held(_begun(visit, job), held, visit.environ))


def _head(job: Job) -> Headers:
    return (_TEXT, ("Content-Disposition", f'inline; filename="{file_name(job)}"'), *about(job))


def file_name(job: Job, kind: str = "log") -> str:
    """Return a name to save the output under: ``reports-2026.log`` for ``GET /reports/2026``."""
    path = re.sub(r"^[A-Z]+ (?=/)", "", job.title).partition("?")[0]
    words = re.findall(r"[A-Za-z0-9_.-]+", path)
    return ("-".join(words).strip(".-")[:80] or "output") + f".{kind}"


def _length(size: int) -> tuple[str, str]:
    return "Content-Length", str(size)


def _answer_page(visit: Visit, job: Job, offset: int) -> Answer:
    if offset >= 0:
        job = visit.hold(job, offset, visit.wait)
    job, piece = visit.registry.page(visit.key, offset, job=job)
    headers = (
        *_head(job),
        _length(len(piece.data)),
        ("Job-Offset", str(piece.offset)),
        ("Job-Next-Offset", str(piece.end)),
    )
    answer = Answer("200 OK", headers, [piece.data])
    return answer if job.state.ended else visit.polled(answer)


def _answer_whole(visit: Visit, job: Job) -> Answer:
    headers = (*_head(job), _length(whole_length(job)))
    if job.output_dropped is not None:
        held = visit.take_slot_for_bytes(whole_length(job))
        if held is None:
            return visit.refused(TOO_MANY)
        return Answer("200 OK", headers, Held(_begun(visit, job), held))  # offsets are not positions in this text
    headers += (("Accept-Ranges", "bytes"), ("ETag", entity_tag(job, Channel.OUTPUT)))
    content = Stored(visit.registry, job.key, Channel.OUTPUT, 0, job.output_end, _last_line(job))
    return conditional(visit.environ, headers, content) if content.is_held(visit) else visit.refused(TOO_MANY)


def _answer_range(visit: Visit, job: Job, asked: Asked) -> Answer:
    """Answer with a part of what there is by now; its whole length is not known yet (RFC 9110 §14.4)."""
    there = job.output_end
    begin, end = asked.within(there)
    if begin >= end:
        return Answer(
            "416 Range Not Satisfiable",
            (_TEXT, *about(job), ("Content-Range", f"bytes */{there}"), _length(0), *visit.pace()),
        )
    placed = (("Content-Range", f"bytes {begin}-{end - 1}/*"), _length(end - begin), ("Accept-Ranges", "bytes"))
    content = Stored(visit.registry, job.key, Channel.OUTPUT, begin, end)
    if not content.is_held(visit):
        return visit.refused(TOO_MANY)
    return Answer("206 Partial Content", (*_head(job), *placed, *visit.pace()), content.begun(visit.environ))


def gap(begin: int, end: int) -> bytes:
    """Say to a person what is missing here."""
    return f"\n[… {end - begin} bytes of output were dropped here: {begin} to {end} …]\n".encode()


_ENDS = {JobState.FAILED: "failed", JobState.CANCELLED: "was cancelled", JobState.LOST: "was lost"}


def _last_line(job: Job) -> bytes:
    """Say how a job ended that did not finish: who follows it by curl sees nothing but this text."""
    if job.state not in _ENDS:
        return b""
    reason = "" if job.reason == JobCancelled().reason else " ".join(job.reason.split())
    which = f"try {job.tries.number} of {job.tries.of} " if job.tries is not None else ""
    line = f"[{which or 'the job '}{_ENDS[job.state]}{': ' if reason else ''}{reason}]\n"
    return (("\n" if job.output_end else "") + line).encode("utf-8", "backslashreplace")


def whole_length(job: Job) -> int:
    length = job.output_end + len(_last_line(job))
    if job.output_dropped is None:
        return length
    begin, end = job.output_dropped
    return length - (end - begin) + len(gap(begin, end))


def _whole(registry: Registry, job: Job) -> Iterator[bytes]:
    """Yield the output as it was when *job* was read: ``whole_length(job)`` bytes, if none is dropped since."""
    offset = 0
    while offset < job.output_end:
        piece = registry.read(job.key, Channel.OUTPUT, offset, min(PAGE_BYTES, job.output_end - offset))
        if piece.end <= offset:
            raise Missing("the job's bytes are not there any more")  # breaks the connection: it is not whole
        if piece.offset > offset:
            yield gap(offset, piece.offset)
        yield piece.data[: max(0, job.output_end - piece.offset)]
        offset = piece.end
    last_line = _last_line(job)
    if last_line:
        yield last_line


def _begun(visit: Visit, job: Job) -> Iterator[bytes]:
    """Return the same with the first piece read by now, unless it is for a HEAD: an answer that was not sent can still
    say that it cannot be read."""
    pieces = _whole(visit.registry, job)
    count = 0 if visit.environ["REQUEST_METHOD"] == "HEAD" else 1
    return itertools.chain(list(itertools.islice(pieces, count)), pieces)


class Held:
    """Pieces to which a slot belongs, until they are read to their end, closed, or dropped. *breaks_off*: where they
    are not all there will be, whoever reads them is told so."""

    def __init__(self, pieces: Iterator[bytes], held: Hold, breaks_off: Mapping[str, Any] | None = None) -> None:
        self._pieces = pieces
        self._held = held
        self._breaks_off = breaks_off

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            for piece in self._pieces:
                return piece
            raise StopIteration if self._breaks_off is None else broken_off(self._breaks_off)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._held.give_back()


class _Followed:
    """The output as it comes, and how the job ended. Holds a slot until it is read to its end, closed, or dropped.

    Ends with the job, else it breaks off: silence is no end. Where a proxy might take silence for one, a sign of life
    is sent that nobody sees: a carriage return where a line begins, and a space of no width within a line.
    """

    def __init__(self, visit: Visit, job: Job, held: Hold) -> None:
        self._held = held
        self._visit = visit
        self._environ = visit.environ
        self._pieces: Generator[Piece, None, None] = visit.registry.follow(visit.key, tick=LOOK_EVERY)
        self._offset = 0
        self._next: Piece | None = None
        self._ends_line = True
        self._sign_every = SIGN_EVERY_TO_PROXY if is_behind_proxy(visit.environ) else SIGN_EVERY
        self._sent_at = time.monotonic()
        self._is_over = False
        self._said_why = makes_ends_visible(visit.environ)
        if job.output_end:  # it can be read at once; and what cannot be read can still be said
            try:
                self._next = next(self._pieces)
            except BaseException:
                self.close()
                raise

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            data = self._take()
        except BaseException:  # the end as well: not all servers and middlewares close what they have read
            self.close()
            raise
        self._sent_at = time.monotonic()
        return data

    def _take(self) -> bytes:
        if self._is_over:
            raise StopIteration
        piece, self._next = self._next, None
        while piece is None or piece.end <= self._offset:
            if self._held.revoked():
                raise broken_off(self._environ)
            if self._held.must_end() and not self._can_be_read_out():
                return self._broken_off()
            following = next(self._pieces, None)
            if following is None:
                return self._said_end()
            piece = following
            if piece.end <= self._offset:
                if self._held.gone():
                    raise broken_off(self._environ)
                if time.monotonic() - self._sent_at >= self._sign_every:
                    return b"\r" if self._ends_line else "\u200b".encode()
        self._ends_line = piece.data.endswith((b"\n", b"\r"))
        if piece.offset > self._offset:
            note = gap(self._offset, piece.offset)
            self._offset, self._next = piece.offset, piece
            return note
        self._offset = piece.end
        return piece.data

    def _said_end(self) -> bytes:
        """Say how the job ended, if it did not finish, and end."""
        self._is_over = True
        try:
            last_line = _last_line(self._visit.job())
        except (JobNotFound, JobExpired):  # since then, so nobody knows
            raise broken_off(self._environ) from None
        if not last_line:
            raise StopIteration
        return last_line

    def _can_be_read_out(self) -> bool:
        """Whether the server stops, but this job has ended before: then nobody waits for what is left of it."""
        return time.monotonic() < self._held.ends_at and self._visit.job().state.ended

    def _broken_off(self) -> bytes:
        """End before the job does: in words where the client might not see it otherwise, then by an error."""
        if self._said_why:
            raise broken_off(self._environ)
        self._said_why = True
        return f"\n[… this answer ends here, at byte {self._offset}, and the job goes on: ask again …]\n".encode()

    def close(self) -> None:
        self._held.give_back()  # first: the other raises where a thread is still in it
        self._pieces.close()
