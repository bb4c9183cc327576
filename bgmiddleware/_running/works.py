"""What a job does: replay a request, or call a function."""

import contextlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from .._capture import JobOutput, current_output, error_stream
from .._frameworks import Surroundings, run_within
from .._jobs import RecordedResponse
from ..registries.base import Registry
from .channels import open_request_body
from .exchange import Exchange
from .recording import RecordedRequest, replay_environ

__all__ = ["Work", "call_function", "replay_request", "within_request"]


# Named, since the annotations of a function within a function are evaluated each time.
_Head = Callable[[RecordedResponse], None]
_Write = Callable[[bytes], None]


class Work(Protocol):
    """What a job does: it gives the body to *write* in pieces and its response's head to *head*. It may return why it
    failed, though there is a response."""

    def __call__(self, head: _Head, write: _Write) -> str | None: ...


def replay_request(
    app: Callable[..., Iterable[bytes]],
    registry: Registry,
    key: str,
    stored: Mapping[str, str],
    kept: Mapping[str, Any],
    *,
    multiprocess: bool = False,
) -> Work:
    """Return the work of calling *app* with a recorded request, whose body is in the registry. *multiprocess*: whether
    other processes may call it at the same time."""

    def work(head: _Head, write: _Write) -> str:
        responses: list[RecordedResponse] = []

        def take(response: RecordedResponse) -> None:
            responses.append(response)
            head(response)

        size = int(stored.get("CONTENT_LENGTH") or 0)
        with contextlib.closing(open_request_body(registry, key, size)) as body:
            environ = replay_environ(stored, kept, body, error_stream(), multiprocess=multiprocess)
            output = current_output()
            check = output.check if isinstance(output, JobOutput) else None
            Exchange(take, write, check).run(app, environ)
        return _unhandled(stored["REQUEST_METHOD"], responses[-1])

    return work


def _unhandled(method: str, response: RecordedResponse) -> str:
    """Return why a request was not handled though the app answered: it was sent on, with a body that is not sent
    again. Empty where it was."""
    if method in ("GET", "HEAD") or response.code not in (307, 308):
        return ""
    where = next((value for name, value in response.headers if name.lower() == "location"), "")
    return f"the app did not handle this {method} and redirects it to {where}: send it there again"


def call_function(function: Callable[[], Any]) -> Work:
    """Return the work of calling a function: what it returns becomes the response.

    ``None`` is 204, ``str`` plain text, ``bytes`` octets, all else JSON; what is no JSON is 204 too.
    """

    def work(head: _Head, write: _Write) -> None:
        response, body = _response_of(function())
        head(response)
        write(body)

    return work


def within_request(
    function: Callable[[], Any],
    around: tuple[Surroundings, ...],
    registry: Registry,
    key: str,
    request: RecordedRequest,
) -> Callable[[], Any]:
    """Return *function* so that it is called within what is *around* the view that asked for it.

    *request*: the one that the view answered; its body is in the registry.
    """

    def call() -> Any:
        with contextlib.closing(open_request_body(registry, key, request.size)) as body:
            errors = error_stream()
            environ = replay_environ(request.environ, request.kept, body, errors, multiprocess=registry.shared)
            return run_within(around, environ, function)

    return call


def _response_of(value: Any) -> tuple[RecordedResponse, bytes]:
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], RecordedResponse):
        return value  # a framework's
    if isinstance(value, str):
        kind, body = "text/plain; charset=utf-8", value.encode("utf-8", "backslashreplace")
    elif isinstance(value, bytes):
        kind, body = "application/octet-stream", value
    else:
        try:
            kind, body = "application/json", b"" if value is None else json.dumps(value).encode()
        except (TypeError, ValueError):
            body = b""
        if not body:
            return RecordedResponse("204 No Content", ()), b""
    return RecordedResponse("200 OK", (("Content-Type", kind), ("Content-Length", str(len(body))))), body
