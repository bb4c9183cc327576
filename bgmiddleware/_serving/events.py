"""A job's output and state as server-sent events (WHATWG HTML, §9.2), for EventSource."""

import json
import time
from collections.abc import Iterator
from typing import Any

from .._jobs import Job, JobState, StepState
from ..registries.base import Page
from .log import Held
from .problems import Answer
from .status import status_document
from .stored import Missing
from .visit import LOOK_EVERY, BadParameter, Hold, Visit, about

__all__ = ["answer_events"]

_RETRY_MS = 1000
_HEARTBEAT_EVERY = 5.0
_APART = 0.1
_TOLD_EVERY = 30.0  # that there is no worker
_LONGEST = 20.0
_DONE = ";done"


def answer_events(visit: Visit, job: Job) -> Answer:
    """Answer with events from ``Last-Event-ID``, else from ``_offset``, else from the first byte.

    An ``id`` is the offset behind the event's text; that of ``done``, the last event, says so. Who has seen that one
    gets 204, which tells EventSource to stop. While the job runs the stream holds a slot, and ends after 20 seconds at
    the latest: some servers kill a process, with every job in it, over one long response. The client resumes by itself.
    """
    last = visit.environ.get("HTTP_LAST_EVENT_ID", "")
    offset = _offset(last) if last else max(0, visit.number("_offset") or 0)
    if last.endswith(_DONE) and job.state.ended:
        return Answer("204 No Content", about(job))
    headers = (("Content-Type", "text/event-stream; charset=utf-8"), ("X-Accel-Buffering", "no"), *about(job))
    if visit.environ["REQUEST_METHOD"] == "HEAD":
        return Answer("200 OK", headers)
    held = visit.take_slot_for_bytes(job.output_end - offset) if job.state.ended else visit.take_slot()
    if held is None:
        return visit.refused("Too many viewers: ask for the log instead.")
    return Answer("200 OK", headers, _events(visit, offset, held))


def _offset(last_event_id: str) -> int:
    digits = last_event_id.removesuffix(_DONE)
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise BadParameter("Last-Event-ID must be one that was sent before")
    return int(digits)


def _event(data: dict[str, Any], *, kind: str | None = None, number: str | None = None) -> bytes:
    # JSON: the text may hold line breaks of all kinds, which would end a field.
    lines = [f"event: {kind}"] if kind else []
    if number is not None:
        lines.append(f"id: {number}")
    lines.append(f"data: {json.dumps(data)}")
    return ("\n".join(lines) + "\n\n").encode()


def _events(visit: Visit, offset: int, held: Hold) -> Held:
    try:
        first = visit.registry.page(visit.key, offset)  # what cannot be read can still be said
    except BaseException:
        held.give_back()
        raise
    return Held(_made(visit, offset, held, first), held)


def _made(visit: Visit, offset: int, held: Hold, first: Page) -> Iterator[bytes]:
    blocks = _blocks(visit, offset, held, first)
    # Not alone: some clients take a block without data for an empty message. The first one comes at once.
    yield f"retry: {_RETRY_MS}\n".encode() + next(blocks)
    yield from blocks


def _blocks(visit: Visit, offset: int, held: Hold, first: Page) -> Iterator[bytes]:
    ends_at = time.monotonic() + _LONGEST
    sent_at = time.monotonic()
    seen: tuple[object, ...] = ()
    seen_steps: list[StepState] | None = None
    page: Page | None = first
    while True:
        job, piece = page or visit.registry.page(visit.key, offset)
        page = None
        offset = min(offset, job.output_end)
        news = _news(visit, job)
        if news != seen and not job.state.ended:
            seen = news
            sent_at = time.monotonic()
            document = status_document(visit, job)
            states = [step.state for step in job.steps.listed] if job.steps is not None else []
            if states == seen_steps:  # there may be hundreds, and the progress of one changes ten times a second
                del document["steps"]
            seen_steps = states
            yield _event(document, kind="status")
        goes_on = piece.end > offset  # also without a text: what was dropped, or the rest of a character
        offset = max(offset, piece.end)
        if piece.data:
            sent_at = time.monotonic()
            text = piece.data.decode("utf-8", "replace")
            yield _event({"offset": piece.offset, "text": text}, number=str(offset))
        if job.state.ended:
            if offset < job.output_end:
                if not goes_on:
                    raise Missing("the job's bytes are not there any more")  # breaks the connection: it is no end
                continue
            yield _event(status_document(visit, job), kind="done", number=f"{offset}{_DONE}")
            return
        now = time.monotonic()
        if now >= ends_at or held.gone() or held.must_end() or held.revoked():
            return
        if now - sent_at >= _HEARTBEAT_EVERY:
            sent_at = now
            yield b": still there\n\n"
        if goes_on and offset < job.output_end:
            continue  # more is there already
        if goes_on or offset < job.output_end:
            time.sleep(_APART)  # what is printed meanwhile is one event; and half a character may become one
        visit.registry.wait(visit.key, offset, min(LOOK_EVERY, max(0.0, ends_at - now)))


def _news(visit: Visit, job: Job) -> tuple[object, ...]:
    """Return what a status event is sent about, when it changes."""
    place = visit.registry.position(job.key) if job.state is JobState.PENDING else 0
    unseen = visit.no_worker_for(job)
    asked = job.question and (job.question.id, job.question.answer)
    return job.state, job.progress, job.steps, job.cancel_requested_at, asked, place, unseen and unseen // _TOLD_EVERY
