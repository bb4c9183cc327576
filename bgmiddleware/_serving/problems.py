"""Answers, and what is said when there is nothing better to say: problem+json (RFC 9457) or one line of text."""

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, NamedTuple

from .negotiate import by_script, parsed, wants_html
from .problem_page import problem_fragment, problem_page

__all__ = [
    "UNSTORED",
    "Answer",
    "Headers",
    "StartResponse",
    "as_json",
    "bad_query",
    "json_line",
    "problem",
    "retry_after",
    "see_other",
    "whole",
]

# PEP 3333: a native string is latin-1; and RFC 9110 §5.5: a header has no controls.
_UNSENDABLE = re.compile(r"[^\x20-\x7e\x80-\xff]")

StartResponse = Callable[..., Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType | None]
Headers = tuple[tuple[str, str], ...]

UNSTORED: Headers = (
    ("Cache-Control", "no-store, no-transform"),
    ("X-Content-Type-Options", "nosniff"),
    # Not no-referrer: a form of our own page would then be sent with "Origin: null" and look like another site's.
    ("Referrer-Policy", "same-origin"),
    ("X-Robots-Tag", "noindex"),
)
"""What all answers about a job say, but for a replayed response: they are for the holder of a token, now."""


class Answer(NamedTuple):
    """An HTTP response: *status* line, *headers*, and a *body* that is iterated at most once."""

    status: str
    headers: Headers
    body: Iterable[bytes] = ()

    def send(
        self, environ: Mapping[str, Any], start_response: StartResponse, exc_info: ExcInfo | None = None
    ) -> Iterable[bytes]:
        """Answer the request of *environ*: to HEAD without the body, which is closed and not begun.

        *exc_info*: what left the app, where it may have called ``start_response`` before (PEP 3333, "Error Handling").
        """
        begun = False
        try:
            if exc_info is None:
                start_response(self.status, list(self.headers))
            else:
                start_response(self.status, list(self.headers), exc_info)
            begun = environ["REQUEST_METHOD"] != "HEAD"
        finally:
            close = getattr(self.body, "close", None)
            if close is not None and not begun:  # nobody else will: a slot may be held by it
                close()
        if not begun:
            return []
        hand = getattr(self.body, "handed_to", None)
        return self.body if hand is None else hand(environ)

    def unkept(self) -> "Answer":
        """Return the answer without its length, to one of a crowd that comes back much later.

        Browsers keep their connections, and waitress closes one only after an answer without a length. A crowd's are
        not for keeping: 1. waitress looks at each that is open, one by one, whenever anything happens on any of them;
        2. with a hundred of them, by default, it lets nobody else in.
        """
        # No list: of one that has a single element, servers find out the length by themselves.
        headers = tuple(header for header in self.headers if header[0] != "Content-Length")
        return Answer(self.status, headers, iter(self.body))


def whole(content_type: str, body: bytes | str, headers: Headers, status: str = "200 OK") -> Answer:
    """Return an answer with a body that is there, and so with its length; a text is sent as UTF-8."""
    data = body.encode("utf-8", "backslashreplace") if isinstance(body, str) else body
    return Answer(status, (("Content-Type", content_type), ("Content-Length", str(len(data))), *headers), [data])


def as_json(document: object, headers: Headers, status: str = "200 OK") -> Answer:
    """Return an answer that is a JSON document."""
    return whole("application/json", f"{json.dumps(document)}\n", headers, status)


def json_line(value: object) -> bytes:
    """Return a value as one line of JSON, for answers that have one after the other."""
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


def see_other(place: str, text: str, headers: Headers) -> Answer:
    """Return an answer that leads to another *place*, with a line of text for a client that does not go there."""
    return whole("text/plain; charset=utf-8", f"{text}\n", (("Location", place), *headers), "303 See Other")


def bad_query(environ: Mapping[str, Any]) -> Answer | None:
    """Return the answer to a query that no header can repeat, None where it is none: a faulty gateway gave it on as
    text, or with controls in it."""
    query = environ.get("QUERY_STRING") or ""
    if query.isascii() and query.isprintable():  # as nearly all are
        return None
    if _UNSENDABLE.search(query) is None:
        return None
    return problem(environ, 400, "bad-query", "The query of the URL has characters that must be encoded with %.")


def retry_after(seconds: float) -> tuple[str, str]:
    """Return the header that says when to ask again: whole seconds, at least one."""
    return "Retry-After", str(max(1, math.ceil(seconds)))


def problem(
    environ: Mapping[str, Any],
    code: int,
    kind: str,
    detail: str,
    *headers: tuple[str, str],
    vary: str = "Accept",
    again: str | None = None,
    watch: str | None = None,
) -> Answer:
    """Return the answer that something is not as asked: *kind* names what, in one word for machines. *again*: where
    the reader of a page can start the job again, if there was one; *watch*: where its page is."""
    status = f"{code} {HTTPStatus(code).phrase}"
    if _wants_json(environ.get("HTTP_ACCEPT", "")):
        content_type = "application/problem+json"
        document = {
            "type": f"urn:bgmiddleware:problem:{kind}",
            "title": HTTPStatus(code).phrase,
            "status": code,
            "detail": detail,
        }
        body = f"{json.dumps(document)}\n"
    elif wants_html(environ):
        content_type = "text/html; charset=utf-8"
        vary = f"{vary}, Accept-Language"
        if by_script(environ):
            body = problem_fragment(detail)
        else:
            body, policy = problem_page(environ, status, kind, detail, again, watch)
            headers = (*headers, ("Content-Security-Policy", policy))
    else:
        content_type = "text/plain; charset=utf-8"
        # One line, though what an app raised may have several.
        body = f"{' '.join(detail.split())}\n"
    return whole(content_type, body, (("Vary", vary), *UNSTORED, *headers), status)


_JSON = ("application/json", "application/problem+json", "text/event-stream")


def _wants_json(accept: str) -> bool:
    """Whether a client names a kind of JSON, or events, and does not also take a page."""
    named = {media_range.lower() for media_range, quality, *_ in parsed(accept).parsed or () if quality}
    return not named.isdisjoint(_JSON) and "text/html" not in named
