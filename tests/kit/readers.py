"""What the tests of a job's readers share: a job that does as it is told, and clients of several kinds."""

import codecs
import contextlib
import json
import os
import queue
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from wsgiref.validate import validator

import pytest

from bgmiddleware import BackgroundMiddleware, MemoryRegistry, Registry, ThreadExecutor, marks
from bgmiddleware._jobs import key_of
from bgmiddleware.executors.process import ProcessExecutor
from bgmiddleware.registries import open_registry
from tests.executors.far_play import NAME, far_away
from tests.kit.apps import WAIT
from tests.kit.clients import InProcess, OverHTTP, Reply, served

Client = InProcess | OverHTTP
BOTH = ("in-process", "waitress")
# The first of those as it is, with jobs in other processes.
ELSEWHERE = tuple(pytest.param(name, marks=pytest.mark.everything) for name in ("processes", "rq", "celery"))
EVERYWHERE = (*BOTH, *ELSEWHERE)
UNKNOWN = "6b9f2e1c-0000-4000-8000-000000000000"
PLAIN = [("Content-Type", "text/plain")]


class Clock:
    """Real time, plus what a test adds."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class Play:
    """An app whose view takes one step at a time, when a test says which; a step is done when its call returns."""

    def __init__(self) -> None:
        self.calls = 0
        self.environs: list[dict[str, Any]] = []
        self._steps: queue.Queue[Any] = queue.Queue()
        self._done = threading.Semaphore(0)

    def does(self, step: Callable[[], object]) -> None:
        """Let the view do this; when it returns, the job has run for certain."""
        self._steps.put(step)
        assert self._done.acquire(timeout=WAIT), "the view is not there"

    def begins(self) -> None:
        """Wait until the job runs."""
        self.does(lambda: None)

    def prints(self, text: str) -> None:
        self.prints_bytes(text.encode())

    def prints_bytes(self, data: bytes) -> None:
        self.does(lambda: print_bytes(data))

    def answers(
        self, body: bytes = b"done", status: str = "200 OK", headers: Iterable[tuple[str, str]] = tuple(PLAIN)
    ) -> None:
        """Let the view end with this response, or with the next."""
        self._steps.put((status, list(headers), body))

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        status, headers, body = self.directs(environ, lambda step: step())
        start_response(status, headers)
        return [body] if body else []

    def directs(self, environ: dict[str, Any], do: Callable[[Any], object]) -> Any:
        """Let a view take its steps, by *do*; return its answer."""
        self.calls += 1
        self.environs.append(environ)
        while callable(step := self._steps.get(timeout=WAIT)):
            do(step)
            self._done.release()
        return step


def print_bytes(data: bytes) -> None:
    """Print, and show it at once, even if it is no whole line."""
    sys.stdout.buffer.write(data)
    sys.stdout.flush()


def answering(
    body: bytes = b"", *, output: bytes = b"", status: str = "200 OK", headers: Iterable[tuple[str, str]] = ()
) -> Any:
    """Return an app that prints *output* and gives this response at once."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        sys.stdout.buffer.write(output)
        bodyless = status.startswith(("204", "304"))
        start_response(status, [*([] if bodyless else PLAIN), *headers])
        return [body] if body else []

    return app


class Opener:
    """Makes middlewares around apps, marking everything, and clients of them; closes all of them in the end."""

    def __init__(self, stack: contextlib.ExitStack, request: pytest.FixtureRequest) -> None:
        self._stack = stack
        self._request = request
        self.how = request.param

    def __call__(self, app: Any, **options: Any) -> tuple[BackgroundMiddleware, Client]:
        site = self.site(app, **options)
        return site, self.client(site)

    def site(self, app: Any, **options: Any) -> BackgroundMiddleware:
        options = {"when": marks.always, "executor": ThreadExecutor(drain=0.0), **options}
        options |= executed(self._request, self._stack, app, **options)
        if isinstance(app, Play):  # whatever it waits for: an end
            self._stack.callback(lambda: [app.answers() for _ in range(20)])
        return self._stack.enter_context(BackgroundMiddleware(validator(app), **options))

    def lose(self, site: BackgroundMiddleware, target: str) -> None:
        """Let a job that runs be lost: with its process, where the engine lets it outlive the site."""
        if self.how in ("rq", "celery"):
            runner = site.registry.get(key_of(token_of(target))).receipt["runner"]
            os.kill(int(str(runner).rpartition(":")[2]), signal.SIGKILL)
        else:
            site.executor.shutdown(0.0)

    def client(self, app: Any, **server: Any) -> Client:
        return self._stack.enter_context(served(app, **server)) if self.how == "waitress" else InProcess(app)


def executed(
    request: pytest.FixtureRequest,
    stack: contextlib.ExitStack,
    app: Any,
    executor: ThreadExecutor | None = None,
    registry: Registry | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Return the executor and the registry with which jobs of *app* run as the fixture's parameter says, in numbers
    like those given; nothing where that is in this process."""
    threads, like = executor or ThreadExecutor(drain=0.0), registry or MemoryRegistry()
    if request.param in ("rq", "celery"):
        run: Callable[..., dict[str, Any]] = request.getfixturevalue(f"{request.param}_fleet").run
        return run(stack, app, threads, like)
    return _in_processes(stack, app, threads, like) if request.param == "processes" else {}


def _in_processes(stack: contextlib.ExitStack, app: Any, threads: ThreadExecutor, like: Registry) -> dict[str, Any]:
    url = f"spool:{stack.enter_context(tempfile.TemporaryDirectory())}/jobs"
    stack.enter_context(far_away(app, like, url))
    numbers = {"max_workers": threads.max_workers, "max_pending": threads.max_pending, "drain": threads.drain}
    return {
        "registry": open_registry(url, ttl=like.ttl, clock=like.clock),
        "executor": ProcessExecutor(NAME, **numbers),
    }


def opened(request: pytest.FixtureRequest) -> Iterator[Opener]:
    """The body of a fixture with ``params=BOTH``."""
    with contextlib.ExitStack() as stack:
        yield Opener(stack, request)


def token_of(target: str) -> str:
    return target.rpartition("_t=")[2].partition("&")[0]


def so_far(client: Client, target: str, **headers: str) -> Reply:
    """Read a log that is not followed, and see that nobody takes it for whole."""
    text = b""
    with client.stream("GET", target, **headers) as (status, sent, chunks):
        with contextlib.suppress(ConnectionResetError):
            for chunk in chunks:
                text += chunk
            assert not isinstance(client, InProcess), "it ended as if it were whole"
        assert int(dict(sent)["Content-Length"]) > len(text)
    return Reply(status, sent, text)


# Over a socket of our own.


def sent(port: int, request: bytes) -> socket.socket:
    """Return a connection over which *request* was sent."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=WAIT)
    connection.sendall(request)
    return connection


def exchanged(port: int, request: bytes) -> bytes:
    """Return all that the server sends until it closes the connection."""
    with sent(port, request) as connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


# Events.


@dataclass(frozen=True)
class Event:
    """One that was dispatched, with the last event ID as it was then."""

    kind: str
    data: str
    id: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class EventSource:
    """Understands an event stream as WHATWG HTML §9.2.6 says."""

    def __init__(self) -> None:
        self.last_id = ""
        self.retry: int | None = None
        self.comments = 0
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._rest = ""
        self._kind = self._data = ""

    def feed(self, data: bytes) -> list[Event]:
        """Return the events that *data* completes."""
        found = []
        text = self._rest + self._decode(data)
        # A carriage return at the end may be half of a line's end: it waits for what follows.
        *lines, self._rest = re.split(r"\r\n|\n|\r(?!$)", text)
        for line in lines:
            if line:
                self._field(line)
            elif self._data:
                found.append(Event(self._kind or "message", self._data.removesuffix("\n"), self.last_id))
            if not line:
                self._kind = self._data = ""
        return found

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not name:
            self.comments += 1
        elif name == "event":
            self._kind = value
        elif name == "data":
            self._data += value + "\n"
        elif name == "id" and "\0" not in value:
            self.last_id = value
        elif name == "retry" and value.isdigit():
            self.retry = int(value)


def events_of(data: bytes) -> list[Event]:
    return EventSource().feed(data)
