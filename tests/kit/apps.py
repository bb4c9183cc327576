"""Small WSGI apps, each with one peculiarity, and a stage on which a test directs them."""

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

WAIT = 120.0  # never reached by a test that passes


class Stage:
    """An app that a test directs: it counts its calls, and its slow view takes each step only when it is told to.

    ``/slow`` prints ``line 1`` … ``line N`` (``N`` from the query string, 3 by default), one for each :meth:`go`, and
    answers with what it was sent. Everything else answers ``fast``.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.environs: list[dict[str, Any]] = []
        self._steps = threading.Semaphore(0)
        self._entered = threading.Semaphore(0)

    def entered(self) -> None:
        """Wait until the slow view was entered, once for each call: from then on its job runs."""
        assert self._entered.acquire(timeout=WAIT), "the view was never called"

    def go(self, steps: int = 1) -> None:
        """Let the slow view take this many steps."""
        self._steps.release(steps)

    def step(self) -> None:
        assert self._steps.acquire(timeout=WAIT), "the test never let the view go on"

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.calls.append(environ["PATH_INFO"])
        self.environs.append(environ)
        if not environ["PATH_INFO"].startswith("/slow"):
            start_response("200 OK", [("Content-Type", "text/plain")])
            return [b"fast"]
        self._entered.release()
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        query = environ["QUERY_STRING"]
        for number in range(1, int(query) + 1 if query.isdigit() else 4):
            self.step()
            sys.stdout.write(f"line {number}\n")  # at once: a waiting reader may see half of what print() writes
        start_response("201 Created", [("Content-Type", "text/plain"), ("X-Made-By", "the app"), ("Set-Thing", "1")])
        return [b"you sent: ", body]


class OnLeave:
    """An iterable that notes whether it was closed."""

    def __init__(self, chunks: Callable[[], Iterator[bytes]]) -> None:
        self._chunks = chunks()
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def close(self) -> None:
        self.closed += 1


def raises_before(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    print("about to fail")
    raise ValueError("before the response")


def raises_after(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    raise ValueError("after start_response")


def raises_in_body(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    yield b"half of "
    raise ValueError("in mid-body")


def answers_500(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("500 Internal Server Error", [("Content-Type", "text/plain")])
    return [b"sorry"]


def answers_404(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("404 Not Found", [("Content-Type", "text/plain")])
    return [b"no such thing"]


def redirects(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("302 Found", [("Location", "/elsewhere"), ("Content-Type", "text/plain")])
    return [b"elsewhere"]


def empty(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("204 No Content", [])
    return []


def large(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    for number in range(100):
        yield bytes([number]) * 10_000


def prints_odd_things(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    sys.stdout.buffer.write(b"bytes \xff\xfe\n")
    print("lone \ud800 surrogate")
    print("nul \0 nul")
    print("ünïcode ☃")
    print("x" * 10_000_000)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"odd"]
