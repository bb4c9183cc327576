"""Decides which requests are the same, so that one joins the job of another.

No client may get what is meant for another. So two requests must come from the same user: ``owner`` says so, or they
agree in everything that the app can see, except in what says nothing about the user.
"""

import hashlib
import hmac
import json
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .._running import RecordedRequest
from .._serving import Headers
from ..owners import CookieOwner, Owner, guest
from .multipart import digest_of_parts, split_boundary

__all__ = ["Asking", "Beginnings", "asker_of", "asking", "asking_again", "fingerprint_of", "negotiated_in"]

_log = logging.getLogger("bgmiddleware")

_URL = ("wsgi.url_scheme", "HTTP_HOST", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING")
_ASKED = ("REQUEST_METHOD", *_URL, "CONTENT_TYPE")
# Ranges in the app's own unit, and conditions of a change, as far as they reach the job.
_CONDITIONS = (
    *("HTTP_RANGE", "HTTP_IF_RANGE", "HTTP_IF_MATCH", "HTTP_IF_NONE_MATCH"),
    *("HTTP_IF_MODIFIED_SINCE", "HTTP_IF_UNMODIFIED_SINCE"),
)
_NEGOTIATED = ("HTTP_ACCEPT", "HTTP_ACCEPT_LANGUAGE", *_CONDITIONS)

# Keys that say nothing about the user. All other keys may, whatever they are called.
_NO_SIGN = frozenset(
    (
        # 1. What the request asks for, and in which form: part of the fingerprint or of what is negotiated.
        *_ASKED,
        *_NEGOTIATED,
        *"""CONTENT_LENGTH REQUEST_URI RAW_URI SCRIPT_URI SCRIPT_URL SCRIPT_FILENAME PATH_TRANSLATED
        HTTP_IDEMPOTENCY_KEY HTTP_PREFER HTTP_ACCEPT_ENCODING HTTP_TE HTTP_EXPECT HTTP_CONNECTION HTTP_KEEP_ALIVE
        HTTP_CONTENT_LENGTH HTTP_CONTENT_TYPE""".split(),
        # 2. What a client says differently each time: how it came here, what it has cached, when it asks.
        *"""HTTP_CACHE_CONTROL HTTP_PRAGMA HTTP_REFERER HTTP_SEC_FETCH_DEST HTTP_SEC_FETCH_MODE HTTP_SEC_FETCH_SITE
        HTTP_SEC_FETCH_USER HTTP_DATE HTTP_PRIORITY HTTP_DOWNLINK HTTP_ECT HTTP_RTT""".split(),
        # 3. The connection, and the ids that servers, proxies and tracing give to one request.
        *"""REMOTE_PORT SSL_SESSION_ID SSL_SESSION_RESUMED SSL_CLIENT_V_REMAIN UNIQUE_ID REQUEST_TIME
        HTTP_TRACEPARENT HTTP_TRACESTATE HTTP_BAGGAGE HTTP_B3 HTTP_SENTRY_TRACE HTTP_NEWRELIC
        HTTP_ELASTIC_APM_TRACEPARENT HTTP_X_CLOUD_TRACE_CONTEXT HTTP_X_OT_SPAN_CONTEXT HTTP_CF_RAY HTTP_X_VARNISH
        HTTP_X_AMZ_CF_ID HTTP_X_ARR_LOG_ID HTTP_X_AZURE_REF HTTP_X_VERCEL_ID HTTP_X_APPENGINE_REQUEST_LOG_ID
        HTTP_X_REQUEST_START HTTP_X_QUEUE_START HTTP_X_TIMER HTTP_X_ENVOY_EXPECTED_RQ_TIMEOUT_MS HTTP_AMZ_SDK_REQUEST
        eventlet.input eventlet.posthooks eventlet.set_idle""".split(),
    )
)
# 4. More of the third kind, which many tools call by names of the same form.
_ID_OF_ONE_TRY = re.compile(
    r"HTTP_(?:\w+_)?(?:REQUEST|CORRELATION|INVOCATION|TRACE|SPAN)_?ID"
    r"|HTTP_X_(?:B3|DATADOG)_\w+"
    r"|HTTP_X_\w*(?:RETRY|ATTEMPT)_COUNT"
)


# Where proxies name the client. Some add its port, which is another one at each try. Without its brackets an address of
# IPv6 may end in what looks like a port.
_ADDRESSES = ("HTTP_X_FORWARDED_FOR", "HTTP_FORWARDED", "HTTP_CLOUDFRONT_VIEWER_ADDRESS")
_PORT_OF_CLIENT = re.compile(
    r"((?<![0-9.:])[0-9]{1,3}(?:\.[0-9]{1,3}){3}|\[[0-9a-fA-F:.]{2,45}\]):[0-9]{1,5}(?![0-9.:])"
)


# The request attributes of middlewares made with webob.dec; one of them is a response to fill in.
_WEBOB = "webob.adhoc_attrs"

_DEEPEST = 20  # collections in collections


class _NotComparable(Exception):
    """A value is an object that cannot be compared with another."""


class Beginnings:
    """The shared state of the requests of one middleware that may join each other. Any thread."""

    def __init__(self, most: int = 100) -> None:
        self._most = most
        self._beginning: dict[int, threading.Lock] = {}  # by process
        self._lock = threading.Lock()  # guards what follows
        self._told: set[tuple[str, ...]] = set()

    @property
    def beginning(self) -> threading.Lock:
        """A lock, held from adding a job that others may join until the job is submitted."""
        # Made at its first use in a process. If gunicorn loads the app before it forks (--preload), it loads gevent
        # after that: waiting for an earlier lock would stop all greenlets, including the one that holds it.
        return self._beginning.setdefault(os.getpid(), threading.Lock())

    def tell(self, keys: Iterable[str]) -> None:
        """Warn, once for each set of *keys* of the environ, that they prevent joining."""
        names = tuple(sorted(keys))
        with self._lock:
            if names in self._told or len(self._told) >= self._most:
                return
            self._told.add(names)
        _log.warning(
            "requests are not joined by Idempotency-Key or single_flight, because the values of %s in the environ"
            " cannot be compared: set owner= to say who the user is",
            ", ".join(names),
        )


@dataclass(frozen=True)
class Asking:
    """Who sends a request: the *owner* of its job, and the *cookie* that makes the client the owner. If the request may
    be joined, also the *name* by which its job is found again, and the *fingerprint* of what it asks for."""

    owner: str | None
    cookie: Headers = ()
    name: str = ""
    fingerprint: str = ""
    secret: bytes = field(default=b"", repr=False)

    def token(self, salt: str) -> str:
        """Return the token of the job with this name and *salt*."""
        digest = hmac.digest(self.secret, _json("token", self.name, salt), "sha256")
        return str(uuid.UUID(bytes=digest[:16], version=4))


_NOBODY = Asking(None)


def asking(owns: Owner | None, environ: Mapping[str, Any]) -> Asking:
    """Return who sends a request that cannot be joined."""
    if owns is None:
        return _NOBODY
    owner = owns(environ)
    if owner is None and isinstance(owns, CookieOwner):
        return Asking(*owns.issue(environ))
    return Asking(owner)


def asking_again(
    owns: Owner | None, environ: Mapping[str, Any], request: RecordedRequest, secret: bytes, beginnings: Beginnings
) -> Asking:
    """Return who sends a request that may repeat an earlier one. Nobody without *secret* can make its name."""
    fingerprint = fingerprint_of(environ, request)
    key = environ.get("HTTP_IDEMPOTENCY_KEY")
    asked = ["key", key] if key is not None else ["the same", fingerprint, negotiated_in(request.environ)]

    def found_by(*whose: object) -> str:
        return hmac.digest(secret, _json(*whose, asked), "sha256").hex()

    if not isinstance(owns, CookieOwner):
        owner = None if owns is None else owns(environ)
        name = _name_of_nobody(request, beginnings, found_by) if owner is None else found_by("owner", owner)
        return Asking(owner, (), name, fingerprint, secret) if name else Asking(owner)

    proofs = owns.proofs(environ)
    request = request._replace(environ={**request.environ, "HTTP_COOKIE": owns.others(environ)})
    name = _name_of_nobody(request, beginnings, found_by)
    if name and any(proof.job == name for proof in proofs):  # it sent this request before, without a cookie
        return Asking(guest(name), (), name, fingerprint, secret)
    if proofs:
        owner = proofs[0].owner
        return Asking(owner, (), found_by("owner", owner), fingerprint, secret)
    # A client without a cookie gets one. The cookie proves who the client is from now on, and that the one job of this
    # name is its own. Other clients that look the same may share that job.
    owner, cookie = owns.issue(environ, name)
    if not name:
        return Asking(owner, cookie)
    if owner is None:  # it gets no cookie, so it could not see a job that it shared with clients that have one
        return Asking(None, (), found_by("no cookie", name), fingerprint, secret)
    return Asking(guest(name), cookie, name, fingerprint, secret)


def _name_of_nobody(request: RecordedRequest, beginnings: Beginnings, found_by: Callable[..., str]) -> str:
    """Return the name of a job whose user only the request itself identifies; empty if it does not say enough."""
    told, unknown = asker_of(request)
    if unknown:
        beginnings.tell(unknown)
        return ""
    return found_by("nobody", told)


def asker_of(request: RecordedRequest) -> tuple[list[list[Any]], list[str]]:
    """Return the values by which the app may tell users apart, for requests without an owner; and the keys of values
    that cannot be compared. If there are such keys, the user is unknown."""
    absent = object()
    # Some servers put all of os.environ into the environ.
    kept = {name: value for name, value in request.kept.items() if os.environ.get(name, absent) != value}
    seen = {**kept, **request.environ}
    for name in _ADDRESSES:
        if isinstance(value := seen.get(name), str):
            seen[name] = _PORT_OF_CLIENT.sub(r"\1", value)
    attributes = seen.get(_WEBOB)
    if isinstance(attributes, Mapping):
        seen[_WEBOB] = {name: value for name, value in attributes.items() if name != "response"}
    told, unknown = [], []
    for name in sorted(name for name in seen.keys() - _NO_SIGN if not _ID_OF_ONE_TRY.fullmatch(name)):
        try:
            told += [[name, _comparable(seen[name])]] if seen[name] != "" else []
        except _NotComparable:
            unknown.append(name)
    return told, unknown


def _json(*parts: object) -> bytes:
    return json.dumps(parts).encode()


def _comparable(value: Any, depth: int = 0) -> Any:
    """Return a value as JSON that is equal only for equal values. Raises ``_NotComparable``."""
    if value is None or isinstance(value, str | bool | int | float):
        return value if type(value) in (str, bool, int, float, type(None)) else [type(value).__name__, repr(value)]
    if isinstance(value, bytes | bytearray):
        return ["bytes", bytes(value).hex()]
    if depth == _DEEPEST:  # it may contain itself
        raise _NotComparable
    if isinstance(value, list | tuple):
        return [type(value).__name__, *(_comparable(each, depth + 1) for each in value)]
    if isinstance(value, set | frozenset):
        return ["set", *sorted((_comparable(each, depth + 1) for each in value), key=json.dumps)]
    if isinstance(value, Mapping):
        pairs = [[_comparable(each, depth + 1) for each in pair] for pair in value.items()]
        return ["mapping", *sorted(pairs, key=json.dumps)]
    raise _NotComparable


def negotiated_in(environ: Mapping[str, Any]) -> list[str]:
    """Return the headers by which the app may choose a representation: a client that asks for CSV must not join a job
    that makes a PDF. An ``Idempotency-Key`` by itself says that the request is the same."""
    return [environ.get(name) or "" for name in _NEGOTIATED]


def fingerprint_of(environ: Mapping[str, Any], request: RecordedRequest | None) -> str:
    """Return a digest of the method, the URL, the body and its type, which are the same for repeated requests. Of a
    multipart body it covers the parts, not the boundary."""
    content_type, boundary = split_boundary(environ.get("CONTENT_TYPE") or "")
    parts = digest_of_parts(request.chunks(), boundary) if boundary and request is not None else None
    if parts is None:
        content_type = environ.get("CONTENT_TYPE") or ""
    said = [environ.get(name, "") for name in ("REQUEST_METHOD", *_URL)]
    digest = hashlib.sha256(json.dumps([*said, content_type]).encode())
    if parts is not None:
        digest.update(b"parts" + parts)
    elif request is not None:
        for chunk in request.chunks():
            digest.update(chunk)
    return digest.hexdigest()
