"""Which of a job's views a client means."""

import re
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any

from webob.acceptparse import create_accept_header

__all__ = ["OFFERED", "View", "by_script", "choose", "names_json", "parsed", "saves", "wants_html"]


class View(StrEnum):
    """What there is to see of a job. The values are those of ``_view``."""

    LOG = "log"
    """Its output, as plain text."""

    STATUS = "status"
    """Its state, as JSON."""

    PAGE = "page"
    """Both and more, as HTML for a person."""

    EVENTS = "events"
    """Both as they change, as server-sent events."""

    RESULT = "result"
    """The app's own response. Never negotiated: only asked for by name."""

    SCRIPT = "app.js"
    """The page's script, the same for all jobs. Never negotiated either."""

    STYLE = "app.css"
    """The page's style."""

    ICON = "icon.svg"
    """The page's icon, for each state one."""


# In the order of what a client gets that does not say: curl, wget and fetch() read text.
_OFFERS = {
    "text/plain": View.LOG,
    "application/json": View.STATUS,
    "text/html": View.PAGE,
    "text/event-stream": View.EVENTS,
}
OFFERED = tuple(_OFFERS)
_FOR_ALL = ("text/plain", "application/json")  # the others only for who names them

# All that we say is UTF-8. Who asks for just that means the type without the parameter too, of JSON even though JSON
# has no such parameter.
_IN_UTF8 = re.compile(r""";\s*+charset\s*+=\s*+"?utf-8"?\s*+(?=[;,]|$)""", re.IGNORECASE)


def parsed(accept: str | None) -> Any:
    """Return an ``Accept`` header as WebOb understands it; without one, or with an odd one, anything is accepted."""
    return create_accept_header(_IN_UTF8.sub("", accept) if accept else None)


def choose(accept: str | None) -> View | None:
    """Return the view for an ``Accept`` header, None if none fits.

    Best quality first, then what the client names outright, then the client's order. A wildcard never means the page,
    nor events: clients that send ``*/*`` are programs, and some of them name JSON before it.
    """
    return _meaning(accept)[0]


def wants_html(environ: Mapping[str, Any]) -> bool:
    """Whether a client wants HTML: a page, or where :func:`by_script` a piece of one."""
    return "HTTP_HX_REQUEST" in environ or choose(environ.get("HTTP_ACCEPT")) is View.PAGE


def by_script(environ: Mapping[str, Any]) -> bool:
    """Whether the script of a page asks, and not its reader: what it gets comes into that page."""
    return (
        "HTTP_HX_REQUEST" in environ
        or environ.get("HTTP_X_REQUESTED_WITH") == "XMLHttpRequest"
        or (environ.get("HTTP_SEC_FETCH_DEST") == "empty" and environ.get("HTTP_SEC_FETCH_MODE") != "navigate")
    )


def saves(environ: Mapping[str, Any]) -> bool:
    """Whether a browser asks for what it will save: by a link with ``download``."""
    return environ.get("HTTP_SEC_FETCH_MODE") == "navigate" and environ.get("HTTP_SEC_FETCH_DEST") == "empty"


def names_json(accept: str | None) -> bool:
    """Whether a client names ``application/json`` and likes nothing better."""
    return _meaning(accept)[1]


def _meaning(accept: str | None) -> tuple[View | None, bool]:
    # What somebody sends must not fill the memory: the remembered ones are never forgotten.
    return _remembered(accept) if accept is None or len(accept) <= _LONGEST_REMEMBERED else _read(accept)


def _read(accept: str | None) -> tuple[View | None, bool]:
    accepted = parsed(accept)
    order: dict[str, int] = {}
    for position, (media_range, *_) in enumerate(accepted.parsed or ()):
        order.setdefault(media_range.lower(), position)
    offers = list(_OFFERS)
    fitting = [
        (-quality, order.get(offer, len(order) + offers.index(offer)), offer)
        for offer, quality in accepted.acceptable_offers(offers)
        if offer in order or offer in _FOR_ALL
    ]
    view = _OFFERS[min(fitting)[2]] if fitting else None
    return view, view is View.STATUS and "application/json" in order


# All clients of a site send a few dozen, and parsing one takes longer than starting a job.
_remembered = lru_cache(256)(_read)
_LONGEST_REMEMBERED = 1024
