"""Which of a job's views a client means."""

import re
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any

from .._ground.webob import create_accept_header

__all__ = ["View", "by_script", "choose", "means_result", "names_json", "parsed", "saves", "wants_html"]


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

    LINES = "lines"
    """The output as JSON, a line for each of its lines."""

    TIMES = "times"
    """When the output came, as JSON. Never negotiated."""

    CAST = "cast"
    """The output as a recording of a terminal. Never negotiated."""

    CAST2 = "cast2"
    """The same for older players."""

    RESULT = "result"
    """The app's own response: for who can use none of the others."""

    SHARE = "share"
    """The links by which it is shown to others, for its owner. Never negotiated."""

    MINE = "mine"
    """The jobs of its reader, a line for each. Never negotiated."""

    COMPARE = "compare"
    """It beside another run. Never negotiated."""

    SCRIPT = "app.js"
    """The page's script, the same for all jobs. Never negotiated either."""

    STYLE = "app.css"
    """The page's style."""

    CLIENT = "client.js"
    """A script for pages of the site's own."""

    ICON = "icon.svg"
    """The page's icon, for each state one."""


# In the order of what a client gets that does not say: curl, wget and fetch() read text.
_OFFERS = {
    "text/plain": View.LOG,
    "application/json": View.STATUS,
    "text/html": View.PAGE,
    "text/event-stream": View.EVENTS,
    "application/x-ndjson": View.LINES,
}
# A page is a page in either. And what is said of errors, or of data as such, is no format to want a response in.
_SAME = {"application/xhtml+xml": "text/html"}
_KNOWN = {*_OFFERS, "*/*", "text/*", "application/*", "application/xml", "application/problem+json"}
_FOR_ALL = ("text/plain", "application/json")  # the others only for who names them

# All that we say is UTF-8. Who asks for just that means the type without the parameter too, of JSON even though JSON
# has no such parameter.
_IN_UTF8 = re.compile(r""";\s*+charset\s*+=\s*+"?utf-8"?\s*+(?=[;,]|$)""", re.IGNORECASE)


def parsed(accept: str | None) -> Any:
    """Return an ``Accept`` header as WebOb understands it; without one, or with an odd one, anything is accepted."""
    return create_accept_header(_IN_UTF8.sub("", accept) if accept else None)


def choose(accept: str | None) -> View:
    """Return the view for an ``Accept`` header.

    Best quality first, then what the client names outright, then the client's order. A wildcard never means the page,
    nor events: clients that send ``*/*`` are programs, and some of them name JSON before it. Who likes best what none
    of our views is, a table or a format of its own, means the app's response.
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


def means_result(environ: Mapping[str, Any]) -> bool:
    """Whether a client can use nothing but the app's response."""
    return choose(environ.get("HTTP_ACCEPT")) is View.RESULT


def names_json(accept: str | None) -> bool:
    """Whether a client names ``application/json`` and likes nothing better."""
    return _meaning(accept)[1]


def _meaning(accept: str | None) -> tuple[View, bool]:
    # What somebody sends must not fill the memory: the remembered ones are never forgotten.
    return _remembered(accept) if accept is None or len(accept) <= _LONGEST_REMEMBERED else _read(accept)


def _read(accept: str | None) -> tuple[View, bool]:
    accepted = parsed(accept)
    order: dict[str, int] = {}
    foreign: list[tuple[float, int]] = []
    for position, (media_range, quality, *_) in enumerate(accepted.parsed or ()):
        name = _SAME.get(media_range.lower(), media_range.lower())
        order.setdefault(name, position)
        if quality and name.partition(";")[0] not in _KNOWN:
            foreign.append((-quality, position))
    offers = list(_OFFERS)
    fitting = [
        (-quality, order.get(offer, len(order) + offers.index(offer)), offer)
        for offer, quality in accepted.acceptable_offers(offers)
        if offer in order or offer in _FOR_ALL
    ]
    if not fitting or (foreign and min(foreign) < _rank(min(fitting), order)):
        return View.RESULT, False
    view = _OFFERS[min(fitting)[2]]
    return view, view is View.STATUS and "application/json" in order


def _rank(fitting: tuple[float, int, str], order: Mapping[str, int]) -> tuple[float, int]:
    """Return where one of our types stands among what a client names: behind all that, if a wildcard means it."""
    quality, _, offer = fitting
    return quality, order.get(offer, len(order))


# All clients of a site send a few dozen, and parsing one takes longer than starting a job.
_remembered = lru_cache(256)(_read)
_LONGEST_REMEMBERED = 1024
