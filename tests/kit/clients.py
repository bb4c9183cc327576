"""Two ways to talk to an app: in-process under ``wsgiref.validate``, and over HTTP to a real waitress."""

import contextlib
import http.client
import io
import itertools
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote
from wsgiref.validate import validator

from waitress import wasyncore
from waitress.server import create_server

from bgmiddleware import BackgroundMiddleware

UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


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

        iterable = self._app(environ(method, target, body, **headers), start_response)
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


class OverHTTP:
    """Talks to a server on this machine, a connection for each request."""

    def __init__(self, port: int) -> None:
        self.port = port

    def request(self, method: str, target: str, body: bytes = b"", **headers: str) -> Reply:
        with self.stream(method, target, body, **headers) as (status, sent, chunks):
            return Reply(status, sent, b"".join(chunks))

    @contextlib.contextmanager
    def stream(
        self, method: str, target: str, body: bytes = b"", **headers: str
    ) -> Iterator[tuple[int, list[tuple[str, str]], Iterator[bytes]]]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            if body or method in ("POST", "PUT", "PATCH"):
                names.setdefault("Content-Length", str(len(body)))
            connection.request(method, target, body or None, names)
            response = connection.getresponse()
            try:
                yield response.status, response.getheaders(), iter(lambda: response.read1(65536), b"")
            finally:
                response.close()
        finally:
            connection.close()


@contextlib.contextmanager
def served(app: Any, *, patience: float = 10.0, **options: Any) -> Iterator[OverHTTP]:
    """Serve *app* on waitress, on a free port if none is given; in the end wait up to *patience* seconds for what is
    still being answered."""
    options = {
        "port": 0,
        "threads": 8,
        "channel_request_lookahead": 1,
        "clear_untrusted_proxy_headers": False,
        **options,
    }
    sockets: dict[int, Any] = {}
    server: Any = create_server(app, sockets, host="127.0.0.1", **options)
    stopping = threading.Event()

    def run() -> None:
        while not stopping.is_set():
            wasyncore.loop(timeout=120, map=sockets, count=1)
        server.task_dispatcher.shutdown(cancel_pending=True, timeout=patience)
        wasyncore.close_all(sockets)

    thread = threading.Thread(target=run, name="waitress")
    thread.start()
    try:
        yield OverHTTP(server.effective_port)
    finally:
        stopping.set()
        with contextlib.suppress(OSError):  # the loop ended before it was told to
            server.pull_trigger()
        thread.join()


def target_of(reply: Reply, path: str) -> str:
    """Return where a redirect to a job leads, as a client resolves it: it keeps the path."""
    assert reply["Location"].startswith("?"), reply["Location"]
    return path + reply["Location"]


def start(client: InProcess | OverHTTP, path: str, method: str = "POST", body: bytes = b"", **headers: str) -> str:
    """Start a job; return the target of its token."""
    reply = client.request(method, path, body, **headers)
    assert reply.status in (202, 303), reply
    return target_of(reply, path.partition("?")[0])


def ended(app: BackgroundMiddleware, target: str, timeout: float = 30.0) -> Any:
    """Wait until the job of *target* has ended; return it."""
    from bgmiddleware._jobs import key_of

    key = key_of(target.rpartition("_t=")[2].partition("&")[0])
    job = app.registry.wait(key, 2**62, timeout)
    assert job.state.ended, job
    return job
