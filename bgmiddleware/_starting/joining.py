"""Which requests are the same, so that one joins the job of another."""

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from .._recording import RecordedRequest
from .multipart import digest_of_parts, split_boundary

__all__ = ["Flights", "credentials_in", "fingerprint_of", "negotiated_in"]


class Flights:
    """How many times a request was begun that others may join: the last one is the only one that can still run, and
    those before it need not be looked at, nor be there any more. Remembers the *most* recent. Any thread."""

    def __init__(self, most: int = 10_000) -> None:
        self._most = most
        self._beginning: dict[int, threading.Lock] = {}  # by process
        self._lock = threading.Lock()  # guards what follows
        self._last: OrderedDict[str, int] = OrderedDict()

    @property
    def beginning(self) -> threading.Lock:
        """A lock that is held from adding a job that others may join until it is submitted."""
        # Made by its first use in a process. Where gunicorn loads the app before it forks (--preload), gevent comes
        # after that: who waited for a lock of before would stop all greenlets, the one that holds it too.
        return self._beginning.setdefault(os.getpid(), threading.Lock())

    def last(self, flight: str) -> int:
        """Return the number of the last one, 0 if none was begun."""
        with self._lock:
            return self._last.get(flight, 0)

    def began(self, flight: str, number: int) -> None:
        """Remember that there was a *number*."""
        with self._lock:
            self._last[flight] = max(number, self._last.get(flight, 0))
            self._last.move_to_end(flight)
            if len(self._last) > self._most:
                self._last.popitem(last=False)


def credentials_in(environ: Mapping[str, Any]) -> list[str]:
    """Return by what the app may tell apart who sends a request, where no owner does: the answer to one of them is not
    for another, however alike they ask."""
    return [environ.get(name) or "" for name in ("REMOTE_USER", "HTTP_AUTHORIZATION", "HTTP_COOKIE")]


def negotiated_in(environ: Mapping[str, Any]) -> list[str]:
    """Return by what the app may choose between representations: who asks for CSV must not get the PDF of another.
    A key of the client's own says by itself that the request is the same."""
    return [environ.get(name) or "" for name in ("HTTP_ACCEPT", "HTTP_ACCEPT_LANGUAGE")]


def fingerprint_of(environ: Mapping[str, Any], request: RecordedRequest | None) -> str:
    """Return a digest of method, URL and body, and of the body's type: what must be the same for a request to be a
    repetition. A body of several parts is what its parts are."""
    url = ("wsgi.url_scheme", "HTTP_HOST", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING")
    content_type, boundary = split_boundary(environ.get("CONTENT_TYPE") or "")
    parts = digest_of_parts(request.chunks(), boundary) if boundary and request is not None else None
    if parts is None:
        content_type = environ.get("CONTENT_TYPE") or ""
    said = [environ.get(name, "") for name in ("REQUEST_METHOD", *url)]
    digest = hashlib.sha256(json.dumps([*said, content_type]).encode())
    if parts is not None:
        digest.update(b"parts" + parts)
    elif request is not None:
        for chunk in request.chunks():
            digest.update(chunk)
    return digest.hexdigest()
