"""Bytes that are whole and will not change: conditional requests and ranges of them."""

from collections.abc import Iterator, Mapping
from typing import Any

from webob import Request, Response
from webob.byterange import Range

from .._jobs import Channel
from ..registries.base import PAGE_BYTES, Registry
from .problems import Answer, Headers

__all__ = ["Stored", "bounds", "conditional", "entity_tag"]

_CONDITIONS = (
    "HTTP_RANGE",
    "HTTP_IF_RANGE",
    "HTTP_IF_MATCH",
    "HTTP_IF_NONE_MATCH",
    "HTTP_IF_MODIFIED_SINCE",
    "HTTP_IF_UNMODIFIED_SINCE",
)


class Stored:
    """The bytes *begin* to *end* of a channel, read in pieces: a large body is never in memory as a whole."""

    def __init__(self, registry: Registry, key: str, channel: Channel, begin: int, end: int) -> None:
        self._registry = registry
        self._key = key
        self._channel = channel
        self._begin = begin
        self._end = end

    def __iter__(self) -> Iterator[bytes]:
        offset = self._begin
        while offset < self._end:
            limit = min(PAGE_BYTES, self._end - offset)
            data = self._registry.read(self._key, self._channel, offset, limit).data
            if not data:
                raise OSError("the job's bytes end too early")  # breaks the connection: it is not whole
            yield data
            offset += len(data)

    @property
    def length(self) -> int:
        """How many bytes there are."""
        return self._end - self._begin

    def part(self, begin: int, end: int) -> "Stored":
        """Return the bytes *begin* to *end* of these."""
        return Stored(self._registry, self._key, self._channel, self._begin + begin, self._begin + end)


def entity_tag(key: str, channel: Channel) -> str:
    """Return a strong validator (RFC 9110 §8.8.3): the bytes of an ended job never change."""
    return f'"{key[:16]}-{channel}"'


def conditional(environ: Mapping[str, Any], headers: Headers, content: Stored) -> Answer:
    """Answer a GET or HEAD with 200, 206, 304, 412 or 416, as its conditions and its range ask.

    *headers* are those of the 200, with ``Content-Length`` and a validator. The order is that of RFC 9110 §13.2.2.
    """
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD") or not any(name in environ for name in _CONDITIONS):
        return Answer("200 OK", headers, content)
    request = Request(dict(environ))
    response = Response(headerlist=list(headers))
    etag, modified = response.etag, response.last_modified
    if "HTTP_IF_MATCH" in environ:
        if response.etag_strong not in request.if_match:
            return _without_body("412 Precondition Failed", headers)
    elif modified is not None and request.if_unmodified_since is not None and modified > request.if_unmodified_since:
        return _without_body("412 Precondition Failed", headers)
    if "HTTP_IF_NONE_MATCH" in environ:
        if etag is not None and etag in request.if_none_match:
            return _without_body("304 Not Modified", headers)
    elif modified is not None and request.if_modified_since is not None and modified <= request.if_modified_since:
        return _without_body("304 Not Modified", headers)
    asked = Range.parse(environ.get("HTTP_RANGE"))
    if asked is None or response not in request.if_range:
        return Answer("200 OK", headers, content)
    return _partial(asked, headers, content)


def bounds(asked: Range, length: int) -> tuple[int, int]:
    """Return where a range begins and ends in *length* bytes; it is empty if they do not satisfy it."""
    begin = asked.start or 0
    if begin < 0:
        begin = max(0, length + begin)  # the last so many bytes: all of them, if there are fewer
    return begin, length if asked.end is None else min(asked.end, length)


def _partial(asked: Range, headers: Headers, content: "Stored") -> Answer:
    length = content.length
    begin, end = bounds(asked, length)
    if begin >= end:
        unsatisfied = ("Content-Range", f"bytes */{length}")
        return Answer("416 Range Not Satisfiable", (*_about_none(headers), ("Content-Length", "0"), unsatisfied))
    kept = tuple((name, value) for name, value in headers if name.lower() != "content-length")
    placed = (("Content-Length", str(end - begin)), ("Content-Range", f"bytes {begin}-{end - 1}/{length}"))
    return Answer("206 Partial Content", (*kept, *placed), content.part(begin, end))


def _without_body(status: str, headers: Headers) -> Answer:
    length = () if status.startswith("304") else (("Content-Length", "0"),)
    return Answer(status, (*_about_none(headers), *length))


def _about_none(headers: Headers) -> Headers:
    """Leave out what describes a body."""
    return tuple((name, value) for name, value in headers if not name.lower().startswith("content-"))
