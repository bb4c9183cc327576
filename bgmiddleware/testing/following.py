"""Follow a job with the test client of a framework."""

import json
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

__all__ = ["Followed", "follow"]

_WAIT = 10.0
_PAUSE = 0.02  # where the server must not let a client wait


@dataclass(frozen=True)
class Followed:
    """What became of a request.

    *state*: how its job ended, such as ``finished``; empty if the request was answered directly. *reason*: why it did
    not finish. *output*: all that it printed. *response*: the final response, as the client's own kind of object.
    *document*: the state as JSON, see the protocol.
    """

    state: str
    reason: str
    output: str
    response: Any
    document: dict[str, Any]


def follow(client: Any, response: Any, *, timeout: float = 30.0) -> Followed:
    """Follow the job that *response* of *client* leads to, until it ends.

    *client* is a test client of Werkzeug, Flask or WebTest (for Bottle, Pyramid and others), or of
    :func:`~bgmiddleware.testing.django.django_client`. Cookies are the client's own. If no job started, the outcome has
    *response* itself. Raises ``TimeoutError`` if the job runs for longer than *timeout* seconds.
    """
    location = response.headers.get("Location", "")
    if "Job-State" not in response.headers or not location:
        return Followed("", "", "", response, {})
    job = urljoin(_url_of(response), location)
    until = time.monotonic() + timeout
    while True:
        document = json.loads(_body_of(_get(client, f"{job}&_view=status&_wait={_WAIT}", "application/json")))
        if document["ended_at"] is not None:
            break
        if time.monotonic() > until:
            raise TimeoutError(f"the job {document['title']} did not end within {timeout} seconds")
        time.sleep(_PAUSE)
    final = _get(client, f"{job}&_view=result", "*/*")
    return Followed(document["state"], document["reason"], _output_of(client, job), final, document)


def _output_of(client: Any, job: str) -> str:
    """Return the output of a job that has ended, piece by piece: so it has no line of ours at its end."""
    output, offset = b"", 0
    while True:
        piece = _get(client, f"{job}&_view=log&_offset={offset}", "text/plain")
        if not (data := _body_of(piece)):
            return output.decode(errors="replace")
        output += data
        offset = int(piece.headers["Job-Next-Offset"])


def _get(client: Any, url: str, accept: str) -> Any:
    """Send a GET request, which may be answered by an error of the app."""
    if hasattr(client, "do_request"):  # WebTest raises at an error, if it is not told
        return client.get(url, headers={"Accept": accept}, status="*")
    if hasattr(client, "generic"):  # Django takes a path
        parts = urlsplit(url)
        return client.get(f"{parts.path}?{parts.query}", headers={"accept": accept})
    return client.get(url, headers={"Accept": accept})


def _url_of(response: Any) -> str:
    """Return the URL that a response answers."""
    request = response.request
    if isinstance(request, dict):  # Django keeps an environ
        return str(request["PATH_INFO"])
    return str(request.url)


def _body_of(response: Any) -> bytes:
    for name in ("body", "data", "content"):  # of WebTest, Werkzeug, Django
        body = getattr(response, name, None)
        if isinstance(body, bytes):
            return body
    raise TypeError(f"a {type(response).__name__} is not a response that can be read here")
