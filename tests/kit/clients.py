"""Two ways to talk to an app: in-process under ``wsgiref.validate``, and over HTTP to a real waitress."""

import contextlib
import http.client
import threading
from collections.abc import Iterator
from typing import Any

from waitress import wasyncore
from waitress.server import create_server

from bgmiddleware.testing.clients import InProcess, Reply, ended, environ, start, target_of

__all__ = ["UUID", "InProcess", "OverHTTP", "Reply", "ended", "environ", "served", "start", "target_of"]

UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


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
