"""Make a value of a live request, and a request of that value again."""

import io
import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, NamedTuple, Protocol
from urllib.parse import unquote_plus

from ..errors import BadRequestBody, BodyTooLarge

__all__ = [
    "IN_MEMORY",
    "MAX_BODY",
    "Dropped",
    "RecordedRequest",
    "RememberingInput",
    "as_it_came",
    "can_rewind",
    "forget_body",
    "length_of",
    "plain_title",
    "record_request",
    "remember_body",
    "replay_environ",
    "rewound",
    "title_of",
    "without_traces",
]

_log = logging.getLogger("bgmiddleware")

MAX_BODY = 64 * 1024 * 1024
IN_MEMORY = 256 * 1024
_CHUNK = 64 * 1024
_LONGEST_TITLE = 1000

_STORED = frozenset(
    """AUTH_TYPE CONTENT_LENGTH CONTENT_TYPE GATEWAY_INTERFACE HTTPS PATH_INFO QUERY_STRING REMOTE_ADDR REMOTE_HOST
    REMOTE_IDENT REMOTE_PORT REMOTE_USER REQUEST_METHOD REQUEST_SCHEME REQUEST_URI RAW_URI SCRIPT_NAME SERVER_NAME
    SERVER_PORT SERVER_PROTOCOL SERVER_SOFTWARE wsgi.url_scheme""".split()
)
# What the response is for the client that asked first, and not for all who read it later.
_OF_ONE_READER = ("HTTP_ACCEPT_ENCODING", "HTTP_TE", "HTTP_EXPECT")
# What one client has already. In other requests than GET it guards what they would change.
_CONDITIONS = ("HTTP_IF_NONE_MATCH", "HTTP_IF_MODIFIED_SINCE", "HTTP_IF_MATCH", "HTTP_IF_UNMODIFIED_SINCE")
# What belongs to the server: its objects are of the connection, or of this process. The replay has its own of "wsgi.".
_OF_THE_SERVER = (
    "wsgi.",
    "apache.",
    "cheroot.",
    "eventlet.",
    "gevent.",
    "granian.",
    "gunicorn.",
    "mod_wsgi.",
    "uwsgi.",
    "waitress.",
    "werkzeug.server.",
    "werkzeug.socket",
)
# What a framework keeps of the body that it read, or of the request as a whole: the replay has another one.
_OF_THE_REQUEST = ("webob._", "werkzeug.request", "bottle.")
_ATTRIBUTES = "bottle.request.ext."
# What frameworks keep of a request while they answer it.
_FRAMEWORKS = ("webob.", "werkzeug.", "bottle.", "flask.")


class Input(Protocol):
    """What PEP 3333 wants of ``wsgi.input``, as far as it is used here."""

    def read(self, size: int = ..., /) -> bytes: ...


class RecordedRequest(NamedTuple):
    """A request that no longer needs its connection.

    *environ* is what may be stored and sent: CGI and ``HTTP_*`` keys and the URL scheme, all ``str`` (latin-1 text, as
    PEP 3333 has it). *kept* is what else middlewares outside of us put in, for runners of this process. *body* is
    *size* bytes long and to be closed by who recorded it.
    """

    environ: Mapping[str, str]
    kept: Mapping[str, Any]
    body: IO[bytes]
    size: int

    def chunks(self) -> Iterator[bytes]:
        """Yield the body in pieces, from its beginning."""
        self.body.seek(0)
        while chunk := self.body.read(IN_MEMORY):
            yield chunk


def record_request(environ: Mapping[str, Any], max_body: int = MAX_BODY) -> RecordedRequest:
    """Read the whole body of a live request and copy what is worth copying of its environ.

    Raises ``BodyTooLarge`` beyond *max_body* bytes, and ``BadRequestBody`` where the length is no number, where the
    client sent less than it announced, or where a chunked body cannot be read from this server.
    """
    body, size = _read_body(environ, max_body)
    stored: dict[str, str] = {}
    kept: dict[str, Any] = {}
    for key, value in environ.items():
        if isinstance(value, str) and (key in _STORED or key.startswith("HTTP_")):
            stored[key] = value
        elif _outlives(key):
            kept[key] = value
    for name in _OF_ONE_READER:
        stored.pop(name, None)
    if stored.get("REQUEST_METHOD") == "GET":
        for name in _CONDITIONS:
            stored.pop(name, None)
    if stored.get("HTTP_RANGE", "").lower().lstrip().startswith("bytes"):  # another unit is the app's own matter
        stored.pop("HTTP_RANGE")
        stored.pop("HTTP_IF_RANGE", None)
    stored.pop("HTTP_TRANSFER_ENCODING", None)  # that was the way it came; the length is known now
    if size or stored.get("CONTENT_LENGTH"):
        stored["CONTENT_LENGTH"] = str(size)
    return RecordedRequest(stored, kept, body, size)


def _outlives(key: str) -> bool:
    """Whether what somebody put into the environ by this name means the same when the request is over."""
    if key.startswith(_OF_THE_SERVER):
        return False
    return not key.startswith(_OF_THE_REQUEST) or key.startswith(_ATTRIBUTES)


def as_it_came(environ: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of the environ of a request that the app has not seen yet, which what it does leaves as it is."""
    copied = dict(environ)
    attributes = copied.get("webob.adhoc_attrs")  # of the request, to which the app may add its own
    if type(attributes) is dict:
        copied["webob.adhoc_attrs"] = attributes.copy()
    return copied


def without_traces(environ: Mapping[str, Any]) -> dict[str, Any]:
    """Return an environ that the app has seen already without what its framework may have kept in it."""
    return {key: value for key, value in environ.items() if not key.startswith(_FRAMEWORKS)}


def replay_environ(
    stored: Mapping[str, str], kept: Mapping[str, Any], body: IO[bytes], errors: Any, *, multiprocess: bool
) -> dict[str, Any]:
    """Return an environ to call an app with, in any thread and at any time after the request."""
    environ: dict[str, Any] = {**kept, **stored}
    environ.setdefault("QUERY_STRING", "")  # some servers leave out what is empty
    environ["wsgi.version"] = (1, 0)
    environ["wsgi.input"] = body
    environ["wsgi.input_terminated"] = True
    environ["wsgi.errors"] = errors
    environ["wsgi.multithread"] = True
    environ["wsgi.multiprocess"] = multiprocess
    environ["wsgi.run_once"] = False
    return environ


def _read_body(environ: Mapping[str, Any], max_body: int) -> tuple[IO[bytes], int]:
    source: Input | None = environ.get("wsgi.input")
    length = environ.get("CONTENT_LENGTH") or ""
    if source is None:  # a test's, or a program's
        return io.BytesIO(), 0
    is_terminated = bool(environ.get("wsgi.input_terminated"))
    if is_terminated and environ.get("HTTP_TRANSFER_ENCODING"):
        length = ""  # of a body in chunks it says nothing (RFC 9112 §6.3)
    if length and not (length.isascii() and length.isdigit()):
        raise BadRequestBody("Content-Length is not a number")
    if length:
        digits = length.lstrip("0") or "0"
        # They are counted first: int() refuses thousands of them.
        if len(digits) > len(str(max_body)) or int(digits) > max_body:
            raise BodyTooLarge(max_body)
        return _spool(source.read, int(digits), exact=True)
    if is_terminated:
        return _spool(source.read, max_body, exact=False)
    if environ.get("HTTP_TRANSFER_ENCODING"):
        # Without a promise that the input ends, reading on may wait for ever.
        raise BadRequestBody("a Content-Length is required", status=411)
    return io.BytesIO(), 0


def _spool(read: Callable[[int], bytes], limit: int, *, exact: bool) -> tuple[IO[bytes], int]:
    """Copy *limit* bytes (*exact*), or all there are up to *limit*."""
    # One byte more than fits may be asked for: it tells a body that just fits from one that is too large.
    left = limit if exact else limit + 1
    data = read(min(_CHUNK, left)) if left else b""
    if exact and len(data) == limit:
        return io.BytesIO(data), limit
    target: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  # lives as long as the recording
    size = 0
    try:
        while data:
            size += len(data)
            if size > limit:
                raise BodyTooLarge(limit)
            try:
                target.write(data)
            except OSError as error:
                raise BadRequestBody("the request cannot be stored now", status=503) from error
            left -= len(data)
            data = read(min(_CHUNK, left)) if left else b""
        if exact and size < limit:
            raise BadRequestBody(f"the request body ended after {size} of {limit} bytes")
    except BaseException:
        target.close()
        raise
    target.seek(0)
    return target, size


class RememberingInput:
    """A ``wsgi.input`` that can be read a second time, for requests that may yet go to the background.

    What the app reads is remembered, up to *limit* bytes. :meth:`rewind` gives the body from its first byte on.
    *length*: of the body, where the client said it; None: the input has an end of its own.
    """

    def __init__(self, source: Any, limit: int, length: int | None = None) -> None:
        self._source = source
        self._limit = limit
        self._length = length
        self._remembered: IO[bytes] = tempfile.SpooledTemporaryFile(IN_MEMORY)  # noqa: SIM115  # closed by rewind's user
        self._size = 0
        self._has_room = True

    def read(self, size: int = -1, /) -> bytes:
        if size is not None and size >= 0:
            return self._remember(self._source.read(size))
        if self._length is None:
            return self._remember(self._source.read())
        # All that there is: who asks a connection that stays open for more waits for ever.
        pieces = []
        while self._size < self._length and (piece := self._source.read(self._length - self._size)):
            pieces.append(self._remember(piece))
        return b"".join(pieces)

    def readline(self, size: int = -1, /) -> bytes:
        return self._remember(self._source.readline() if size is None or size < 0 else self._source.readline(size))

    def readlines(self, hint: int = -1, /) -> list[bytes]:
        return list(self)

    def __iter__(self) -> Iterator[bytes]:
        while line := self.readline():
            yield line

    def _remember(self, data: bytes) -> bytes:
        self._size += len(data)
        if self._size <= self._limit and self._has_room and not self._remembered.closed:
            try:
                self._remembered.write(data)
            except OSError:  # no disk: no matter to the many requests that never go to the background
                self._has_room = False
        return data

    def forget(self) -> None:
        """Remember no more and let go of what was remembered. The input can be read on."""
        self._remembered.close()

    def rewind(self) -> "Input":
        """Return an input that begins where this one began. Raises ``BodyTooLarge`` if that much was not remembered,
        and ``BadRequestBody`` where there was no room to."""
        if self._size > self._limit:
            raise BodyTooLarge(self._limit)
        if not self._has_room:
            raise BadRequestBody("the request cannot be stored now", status=503)
        self._remembered.seek(0)
        return _Chained(self._remembered, self._source)


def length_of(environ: Mapping[str, Any]) -> int | None:
    """Return how long the body is by its ``Content-Length``; None where that says nothing, or is no number."""
    length = environ.get("CONTENT_LENGTH") or ""
    if "HTTP_TRANSFER_ENCODING" in environ or not (length.isascii() and length.isdigit() and len(length) <= 18):
        return None
    return int(length)


def can_rewind(body: Any) -> bool:
    """Whether a ``wsgi.input`` can be read a second time: some servers have the whole body before they call the app."""
    # Only where it says so: that of uWSGI has seek, and dies of it.
    return hasattr(body, "seek") and hasattr(body, "seekable") and bool(body.seekable())


def rewound(body: Any) -> "Input":
    """Return the input of a watched request from its first byte on. Raises ``BadRequestBody`` where that is not kept:
    too much was read, or there was no room."""
    if isinstance(body, RememberingInput):
        return body.rewind()
    if can_rewind(body):
        body.seek(0)
    return body  # type: ignore[no-any-return]


def remember_body(environ: dict[str, Any], limit: int) -> None:
    """Let the body of a request be read a second time, where it cannot be already."""
    body = environ.get("wsgi.input")
    if body is not None and not can_rewind(body):
        environ["wsgi.input"] = RememberingInput(body, limit, length_of(environ))


def forget_body(environ: Mapping[str, Any]) -> None:
    """Remember no more of the body of a request than was read."""
    body = environ.get("wsgi.input")
    if type(body) is RememberingInput:
        body.forget()


class _Chained:
    """The first input, then the second."""

    def __init__(self, first: Input, second: Input) -> None:
        self._first = first
        self._second = second

    def read(self, size: int = -1, /) -> bytes:
        if size is None or size < 0:
            return self._first.read() + self._second.read()
        return self._first.read(size) or self._second.read(size)


def title_of(environ: Mapping[str, Any]) -> str:
    """Return what a person calls a request: its method, path and query, with what is no UTF-8 replaced, and without
    values that look like secrets: titles are shown to others than the request's sender. For :func:`plain_title`."""
    path: str = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    title = f"{environ['REQUEST_METHOD']} {path.encode('latin-1', 'replace').decode('utf-8', 'replace') or '/'}"
    query = environ.get("QUERY_STRING")
    return f"{title}?{unquote_plus(_SECRET.sub(_HIDDEN, query), errors='replace')}" if query else title


_HIDDEN = r"\1…"
_SECRET = re.compile(
    r"((?:^|(?<=[&;]))(?:[^=&;]*(?:token|secret|passw\w*|api_?key|signature)|code"
    r"|(?:[^=&;]*[_.-])?(?:key|pass|pwd|auth|sig|session|sid|otp|pin))=)[^&;]+",
    re.IGNORECASE,
)


def plain_title(title: str) -> str:
    """Return a title that can be stored and shown: one line of at most 1,000 characters."""
    title = " ".join(title[: 2 * _LONGEST_TITLE].encode("utf-8", "backslashreplace").decode().split())
    return title if len(title) <= _LONGEST_TITLE else f"{title[: _LONGEST_TITLE - 1]}…"


# What servers tell of themselves, beside what crosses.
_OF_SERVERS = frozenset(
    """CONTEXT_DOCUMENT_ROOT CONTEXT_PREFIX DOCUMENT_ROOT PATH_TRANSLATED SCRIPT_FILENAME SCRIPT_URI SCRIPT_URL
    SERVER_ADDR SERVER_ADMIN SERVER_SIGNATURE UNIQUE_ID""".split()
)


class Dropped:
    """What was said already of values in environs that do not reach jobs in other processes. Any thread."""

    def __init__(self, most: int = 100) -> None:
        self._most = most
        self._lock = threading.Lock()  # guards what follows
        self._told: set[tuple[str, ...]] = set()

    def tell(self, kept: Mapping[str, Any]) -> None:
        """Warn of the keys of *kept*, once for each set of them."""
        # Some servers put all of os.environ in: the other processes have that by themselves.
        keys = tuple(sorted(key for key in kept.keys() - _OF_SERVERS if kept[key] != os.environ.get(key)))
        with self._lock:
            if not keys or keys in self._told or len(self._told) >= self._most:
                return
            self._told.add(keys)
        _log.warning(
            "not seen by jobs, which run in other processes: %s; put there by the server or a middleware outside of the"
            " BackgroundMiddleware",
            ", ".join(keys),
        )
