"""A client of a WSGI application in the process of the test, under ``wsgiref.validate``."""

import contextlib
import io
import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote
from wsgiref.validate import validator

from .._jobs import Job, key_of
from .._middleware import BackgroundMiddleware


@dataclass
class Reply:
    """An HTTP response, whole."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str:
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) == 1, f"{name} is there {len(values)} times in {self.headers}"
        return values[0]

    def __contains__(self, name: str) -> bool:
        return any(key.lower() == name.lower() for key, _ in self.headers)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class InProcess:
    """Calls the app directly, with a validator around it that checks every call against PEP 3333."""

    def __init__(self, app: Any) -> None:
        self._app = validator(app)

    def request(self, method: str, target: str, body: bytes = b"", **headers: str) -> Reply:
        with self.stream(method, target, body, **headers) as (status, sent, chunks):
            return Reply(status, sent, b"".join(chunks))

    @contextlib.contextmanager
    def stream(
        self, method: str, target: str, body: bytes = b"", **headers: str
    ) -> Iterator[tuple[int, list[tuple[str, str]], Iterator[bytes]]]:
        head: list[Any] = []

        def start_response(status: str, sent: list[tuple[str, str]], exc_info: Any = None) -> Any:
            head[:] = [status, sent]

        iterable: Any = self._app(environ(method, target, body, **headers), start_response)
        iterator = iter(iterable)
        if not head:  # a generator, which begins when it is asked
            iterator = itertools.chain(list(itertools.islice(iterator, 1)), iterator)
        try:
            yield int(head[0][:3]), head[1], iterator
        finally:
            iterable.close()


def environ(method: str, target: str, body: bytes = b"", **headers: str) -> dict[str, Any]:
    """Return an environ as a threaded server makes it; its input cannot be rewound."""
    path, _, query = target.partition("?")
    made: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote(path, "latin-1"),
        "QUERY_STRING": query,
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "HTTP_HOST": "localhost",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.__stderr__,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    if body or method in ("POST", "PUT", "PATCH"):
        made["CONTENT_LENGTH"] = str(len(body))
    for name, value in headers.items():
        key = name.upper()
        made[key if key in ("CONTENT_TYPE", "CONTENT_LENGTH") else f"HTTP_{key}"] = value
    return made


class Client(Protocol):
    """What requests can be made with."""

    def request(self, method: str, target: str, body: bytes = b"", **headers: str) -> Reply: ...


def target_of(reply: Reply, path: str) -> str:
    """Return where a redirect to a job leads, as a client resolves it: it keeps the path."""
    assert reply["Location"].startswith("?"), reply["Location"]
    return path + reply["Location"]


def start(client: Client, path: str, method: str = "POST", body: bytes = b"", **headers: str) -> str:
    """Start a job; return the target of its token."""
    reply = client.request(method, path, body, **headers)
    assert reply.status in (202, 303), reply
    return target_of(reply, path.partition("?")[0])


def ended(app: BackgroundMiddleware, target: str, timeout: float = 120.0) -> Job:
    """Wait until the job of *target* has ended; return it."""
    key = key_of(target.rpartition("_t=")[2].partition("&")[0])
    job = app.registry.wait(key, 2**62, timeout)
    assert job.state.ended, job
    return job
