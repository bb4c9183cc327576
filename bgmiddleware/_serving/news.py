"""The list of all jobs as it changes, as server-sent events: while a slot is free that no reader of a job wants."""

import json
import time
from collections.abc import Iterator

from ..errors import ConfigurationError, RegistryError
from .log import Held
from .overview import FRESH, PAGE_HEADERS, Look, drawn_lately
from .problems import Answer
from .visit import Hold, Visit

__all__ = ["answer_news"]

_RETRY_MS = 1000
_LONGEST = 20.0
_TOLD_AGAIN = 5.0  # seconds after which it is told anew how long ago all that was


def answer_news(look: Look, visit: Visit) -> Answer:
    """Answer with the part of the page that changes, whenever it did, each as an event. As with those of a job, the
    stream ends after 20 seconds at the latest, and the client comes again; so others get their turn."""
    headers = (("Content-Type", "text/event-stream; charset=utf-8"), ("X-Accel-Buffering", "no"), *PAGE_HEADERS)
    if visit.environ["REQUEST_METHOD"] == "HEAD":
        return Answer("200 OK", headers)
    held = visit.take_slot(spare=1)
    if held is None:
        return visit.refused("Too many viewers: ask for the list instead.")
    return Answer("200 OK", headers, Held(_events(look, held), held))


def _events(look: Look, held: Hold) -> Iterator[bytes]:
    begin = f"retry: {_RETRY_MS}\n"
    ends_at = time.monotonic() + _LONGEST
    told_at, told = float("-inf"), None
    while True:
        try:
            drawn = drawn_lately(look)
        except (RegistryError, ConfigurationError):  # it is away: who comes again is told so
            return
        now = time.monotonic()
        if drawn.news != told or now - told_at >= _TOLD_AGAIN:
            told_at, told = now, drawn.news
            yield f"{begin}data: {json.dumps({'html': drawn.html})}\n\n".encode()
            begin = ""
        if now >= ends_at or held.gone() or held.must_end():
            return
        time.sleep(FRESH)
