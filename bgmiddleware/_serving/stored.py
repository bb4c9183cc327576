"""Bytes that are whole and will not change: conditional requests and ranges of them, and slow readers."""

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Self

from .._ground.webob import AcceptEncodingValidHeader, Request, Response, create_accept_encoding_header
from .._jobs import Channel, Job
from ..errors import RegistryError
from ..registries.base import PAGE_BYTES, Registry
from .connections import sends_files, sends_without_thread, takes_off_hands
from .problems import Answer, Headers
from .visit import Hold, Visit

__all__ = ["TOO_MANY", "Asked", "Stored", "asked_range", "compressed", "conditional", "entity_tag"]

_CONDITIONS = (
    "HTTP_RANGE",
    "HTTP_IF_RANGE",
    "HTTP_IF_MATCH",
    "HTTP_IF_NONE_MATCH",
    "HTTP_IF_MODIFIED_SINCE",
    "HTTP_IF_UNMODIFIED_SINCE",
)


TOO_MANY = "Too many clients read large answers just now: ask again."
_WORTH_A_FILE = 64 * 1024


class Missing(RegistryError, OSError):
    """Bytes that a job had are not there any more."""


class Stored:
    """The bytes *begin* to *end* of a channel, then a *tail*, in pieces: a large body is never in memory as a whole.

    They can belong to a held slot, which is given back when they are read, closed, or dropped with all their parts.
    """

    def __init__(self, registry: Registry, key: str, channel: Channel, begin: int, end: int, tail: bytes = b"") -> None:
        self._registry = registry
        self._key = key
        self._channel = channel
        self._begin = begin
        self._end = end
        self._tail = tail
        self._first = b""
        self._held: Hold | None = None
        self._file: _Part | None = None

    def begun(self, environ: Mapping[str, Any]) -> Self:
        """Read the first piece for a request, or open the file that its server sends, unless that is a HEAD; return
        self. An answer that was not sent can still say that it cannot be read."""
        if self._first or self._file is not None or self._begin >= self._end or environ["REQUEST_METHOD"] == "HEAD":
            return self
        if self._channel is Channel.BODY and self.length >= _WORTH_A_FILE and sends_files(environ) is not None:
            descriptor = self._registry.open_body(self._key)
            if descriptor is not None:
                self._file = _Part(descriptor, self._begin, self._end)
                return self
        self._first = self._read(self._begin)
        return self

    def is_held(self, visit: Visit) -> bool:
        """Whether they can be sent now, though their client may read slowly; false where too many do so already."""
        size = self.length
        if size > takes_off_hands(visit.environ) and sends_without_thread(visit.environ):
            size = 0 if self.begun(visit.environ)._file is not None else size
        self._held = visit.take_slot_for_bytes(size)
        return self._held is not None

    def handed_to(self, environ: Mapping[str, Any]) -> Iterable[bytes]:
        """Return what to give to the server: a file where it sends one better than it sends pieces."""
        wrapper = sends_files(environ)
        if self._file is None or wrapper is None:
            return self
        self._file.held, self._held = self._held, None
        wrapped: Iterable[bytes] = wrapper(self._file, PAGE_BYTES)
        return wrapped

    def close(self) -> None:
        """Give the slot back, and close the file."""
        if self._held is not None:
            self._held.give_back()
        if self._file is not None:
            self._file.close()

    def __iter__(self) -> Iterator[bytes]:
        try:
            offset = self._begin
            data, self._first = self._first, b""
            while offset < self._end:
                data = data or self._read(offset)
                offset += len(data)
                yield data
                data = b""
            if self._tail:
                yield self._tail
        finally:
            self.close()

    def _read(self, offset: int) -> bytes:
        piece = self._registry.read(self._key, self._channel, offset, min(PAGE_BYTES, self._end - offset))
        if not piece.data or piece.offset != offset:  # dropped since the answer was begun
            raise Missing("the job's bytes are not there any more")  # breaks the connection: it is not whole
        return piece.data

    @property
    def length(self) -> int:
        """How many bytes there are."""
        return self._end - self._begin + len(self._tail)

    def part(self, begin: int, end: int) -> "Stored":
        """Return the bytes *begin* to *end* of these."""
        stored = self._end - self._begin
        ends = (self._begin + min(begin, stored), self._begin + min(end, stored))
        tail = self._tail[max(0, begin - stored) : max(0, end - stored)]
        part = Stored(self._registry, self._key, self._channel, *ends, tail)
        part._held = self._held
        return part


class _Part(io.FileIO):
    """The bytes *begin* to *end* of a file, for a server's ``wsgi.file_wrapper``, with the slot that is held."""

    held: "Hold | None" = None

    def __init__(self, descriptor: int, begin: int, end: int) -> None:
        super().__init__(descriptor, "rb")
        self._end = end
        self.seek(begin)

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._end - self.tell())
        return super().read(left if size is None or size < 0 else min(size, left))

    def close(self) -> None:
        super().close()
        if self.held is not None:
            self.held.give_back()

    def __del__(self) -> None:
        self.close()  # nobody need be told: an answer of which only the head was sent has a body that nobody closes


def entity_tag(job: Job, channel: Channel) -> str:
    """Return a strong validator (RFC 9110 §8.8.3): the bytes of an ended job never change. Its beginning is in it,
    since a job that an ``Idempotency-Key`` named can be followed by another of the same name."""
    return f'"{job.key[:16]}-{job.created_at * 1e6:.0f}-{channel}"'


class Asked(NamedTuple):
    """The one range of bytes that a client asks for: from *begin* to *end* (None: the end), or the last ``-begin``."""

    begin: int
    end: int | None

    def within(self, length: int) -> tuple[int, int]:
        """Return where it begins and ends in *length* bytes; it is empty if they do not satisfy it."""
        if self.begin < 0:
            return max(0, length + self.begin), length  # all of them, if there are fewer
        return self.begin, length if self.end is None else min(self.end, length)


_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,18})-([0-9]{0,18})[ \t]*", re.IGNORECASE)
_NONE = Asked(0, 0)


def asked_range(environ: Mapping[str, Any]) -> Asked | None:
    """Return what range a request asks for. None, to be answered with the whole: 1. without one; 2. where it cannot be
    read; 3. where it asks for several, which nobody does for a log; 4. for other methods than GET (RFC 9110 §14.2)."""
    header = environ.get("HTTP_RANGE")
    match = _RANGE.fullmatch(header) if header and environ["REQUEST_METHOD"] == "GET" else None
    if match is None:
        return None
    first, last = match.groups()
    if not first:
        return (Asked(-int(last), None) if int(last) else _NONE) if last else None
    if last and int(last) < int(first):
        return None
    return Asked(int(first), int(last) + 1 if last else None)


def conditional(environ: Mapping[str, Any], headers: Headers, content: Stored, status: str = "200 OK") -> Answer:
    """Answer a GET or HEAD with 200, 206, 304, 412 or 416, as its conditions and its range ask.

    *status* and *headers* are those of the 200, with ``Content-Length`` and a validator. The order is that of RFC 9110
    §13.2.2.
    """
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD") or not any(name in environ for name in _CONDITIONS):
        return Answer(status, headers, content.begun(environ))
    request = Request(dict(environ))
    response = Response(headerlist=list(headers))
    etag, modified = response.etag, _date(lambda: response.last_modified)
    if "HTTP_IF_MATCH" in environ:
        if response.etag_strong not in request.if_match:
            return _without_body("412 Precondition Failed", headers)
    elif _later(modified, _date(lambda: request.if_unmodified_since)):
        return _without_body("412 Precondition Failed", headers)
    if "HTTP_IF_NONE_MATCH" in environ:
        if etag in request.if_none_match:  # "*" is true of an answer without a tag, too
            return _without_body("304 Not Modified", headers)
    elif modified is not None and (since := _date(lambda: request.if_modified_since)) is not None and modified <= since:
        return _without_body("304 Not Modified", headers)
    asked = asked_range(environ)
    if asked is None or not _is_still(environ.get("HTTP_IF_RANGE"), headers):
        return Answer(status, headers, content.begun(environ))
    if asked.begin < 0 and not content.length:
        return Answer(status, headers)  # the last bytes of nothing are all that there is
    return _partial(environ, asked, headers, content)


def compressed(environ: Mapping[str, Any], answer: Answer) -> Answer:
    """Return an answer as its app would have compressed it: one that says that it varies by what the client accepts.

    A job's app is not told what its client accepts: its answer may be for other readers, too.
    """
    response = Response(status=answer.status, headerlist=list(answer.headers), app_iter=answer.body)
    if "HTTP_ACCEPT_ENCODING" not in environ or response.status_int != 200 or response.content_encoding:
        return answer
    varies = "accept-encoding" in {name.lower() for name in response.vary or ()}
    if not varies or response.cache_control.no_transform:
        return answer
    accepted = create_accept_encoding_header(environ["HTTP_ACCEPT_ENCODING"])
    if not isinstance(accepted, AcceptEncodingValidHeader) or not accepted.acceptable_offers(["gzip"]):
        return answer
    response.encode_content(lazy=True)
    if response.etag:
        response.etag = response.etag, False  # the bytes differ now
    return Answer(answer.status, tuple(response.headerlist), response.app_iter)


def _later(one: Any, other: Any) -> bool:
    return one is not None and other is not None and bool(one > other)


def _date(read: Callable[[], Any]) -> Any:
    """Return a date as WebOb reads it; None, as for all that is no date, where that is beyond what Python has."""
    try:
        return read()
    except (ValueError, OverflowError):
        return None


def _is_still(validator: str | None, headers: Headers) -> bool:
    """Whether an ``If-Range`` holds: a strong tag or a date that is exactly the answer's (RFC 9110 §13.1.5)."""
    if validator is None:
        return True
    name = "etag" if validator.endswith('"') else "last-modified"
    return not validator.startswith("W/") and any(key.lower() == name and value == validator for key, value in headers)


def _partial(environ: Mapping[str, Any], asked: Asked, headers: Headers, content: "Stored") -> Answer:
    length = content.length
    begin, end = asked.within(length)
    if begin >= end:
        unsatisfied = ("Content-Range", f"bytes */{length}")
        return _without_body("416 Range Not Satisfiable", headers, unsatisfied)
    kept = tuple((name, value) for name, value in headers if name.lower() != "content-length")
    placed = (("Content-Length", str(end - begin)), ("Content-Range", f"bytes {begin}-{end - 1}/{length}"))
    return Answer("206 Partial Content", (*kept, *placed), content.part(begin, end).begun(environ))


def _without_body(status: str, headers: Headers, *added: tuple[str, str]) -> Answer:
    """Answer without what describes a body, but with where it would be: a 304 must say that (RFC 9110 §15.4.5).

    All but a 304 have a type, as PEP 3333's validator wants it, and no bytes: whoever resumes a download would add them
    to it.
    """
    wanted = ["content-location"] if status.startswith("304") else ["content-location", "content-type"]
    kept = ((name, value) for name, value in headers if name.lower() in wanted or not _describes_body(name))
    length = () if status.startswith("304") else (("Content-Length", "0"),)
    return Answer(status, (*kept, *length, *added))


def _describes_body(name: str) -> bool:
    return name.lower().startswith("content-")
