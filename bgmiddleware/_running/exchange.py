"""The server's side of a call of a WSGI application (PEP 3333), which records instead of sending."""

import re
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from .._jobs import RecordedResponse

__all__ = ["Exchange"]

# What concerns one connection only (RFC 9110 §7.6.1, RFC 2616 §13.5.1): servers refuse it from an app.
_HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization te trailer trailers transfer-encoding upgrade".split()
)

ExcInfo = tuple[type[BaseException], BaseException, TracebackType]


class Exchange:
    """One call of an application. *head* is given the response's head, again if the app changes its mind; *write* the
    pieces of its body. *check* is called between two pieces: it raises where the app is to stop."""

    def __init__(
        self,
        head: Callable[[RecordedResponse], None],
        write: Callable[[bytes], None],
        check: Callable[[], None] | None = None,
    ) -> None:
        self._head = head
        self._check = check
        self._write = write
        self._response: RecordedResponse | None = None
        self._body_begun = False
        self._sent = 0

    def run(self, app: Callable[..., Iterable[bytes]], environ: dict[str, Any]) -> None:
        iterable = app(environ, self._start_response)
        try:
            for number, data in enumerate(iterable):
                # Not at the first piece: what is answered as a whole is done.
                if number and self._check is not None:
                    self._check()
                # "The start_response callable must not actually transmit the response headers" before the first
                # non-empty string: until then an app may still change its mind, or not have called it yet.
                if data:
                    self._send(data)
            if self._response is None:
                raise RuntimeError("the application did not call start_response()")
            self._check_length(self._response)
        finally:
            close = getattr(iterable, "close", None)
            if close is not None:
                close()

    def _start_response(self, status: object, headers: object, exc_info: ExcInfo | None = None) -> Callable[..., None]:
        if exc_info is not None:
            try:
                if self._body_begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # as PEP 3333 asks: no circular reference
        elif self._response is not None:
            raise AssertionError("start_response() was called a second time without exc_info")
        self._response = RecordedResponse(_checked_status(status), _checked_headers(headers))
        self._head(self._response)
        return self._send

    def _send(self, data: object) -> None:
        if self._response is None:
            raise AssertionError("the application sent a body before it called start_response()")
        if not isinstance(data, bytes):
            raise TypeError(f"the application's body must be bytes, not {type(data).__name__}")
        self._body_begun = True
        self._sent += len(data)
        self._write(data)

    def _check_length(self, response: RecordedResponse) -> None:
        """Raise if the body is a part of what its head names: a server would break the connection off, but a recorded
        response that is sent again looks whole."""
        lengths = [value for name, value in response.headers if name.lower() == "content-length" and value.isdecimal()]
        # Without any body it may be another's to send: X-Sendfile, X-Accel-Redirect, HEAD.
        if lengths and 0 < self._sent < int(lengths[0]):
            raise RuntimeError(f"the application sent {self._sent} of the {lengths[0]} bytes of its Content-Length")


# As lenient as the servers are, of which some take what PEP 3333 does not allow: an app that runs without us runs in a
# job. What none of them takes is refused here, with the reason in the job's output.

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.1
_STATUS = re.compile(r"[2-9][0-9]{2}(?: .*)?")


def _text(what: str, text: object) -> str:
    """Return a text of a head as a plain str."""
    if not isinstance(text, str):
        raise TypeError(f"a {what} must be str, not {type(text).__name__}: {text!r}")
    if not (text.isascii() and text.isprintable()):  # as nearly all are
        if any(character in text for character in "\r\n\0"):
            raise ValueError(f"a {what} may not contain line breaks: {text!r}")
        text.encode("latin-1")  # a server would fail at that for each reader
    return str.__str__(text).strip(" \t")


def _checked_status(status: object) -> str:
    text = _text("status", status.decode("latin-1") if isinstance(status, bytes) else status)
    if not _STATUS.fullmatch(text):
        raise ValueError(f"{status!r} is no final status: expected three digits from 200, a space and a reason")
    return text if len(text) > 3 else f"{text} "


def _checked_headers(headers: Any) -> tuple[tuple[str, str], ...]:
    if isinstance(headers, str | Mapping):  # the pieces of which might look like pairs
        raise TypeError(f"headers must be a list, not {type(headers).__name__}")
    checked = []
    for header in headers:
        name, value = header
        name, value = _text("header", name), _text("header", value)
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a header")
        if name.lower() not in _HOP_BY_HOP:
            checked.append((name, value))
    return tuple(checked)
