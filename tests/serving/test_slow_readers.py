"""Clients that read a large answer slowly, or not at all: they keep no thread from the app."""

import contextlib
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.util import FileWrapper

import pytest

from bgmiddleware import BackgroundMiddleware, MemoryRegistry, Registry, marks
from bgmiddleware.registries.spool import SpoolRegistry
from tests.kit.clients import InProcess, OverHTTP, ended, environ, served, start
from tests.kit.readers import PLAIN, print_bytes, sent

LARGE = 24 * 1024 * 1024  # more than waitress takes off a thread's hands
SIZES = {"/body": (LARGE, 0), "/output": (0, LARGE), "/gap": (0, 2 * LARGE), "/middling": (2 * 1024 * 1024, 0)}


def bytes_of(size: int) -> bytes:
    return (random.Random(size).randbytes(65536) * (size // 65536 + 1))[:size]


def app(asked: dict[str, Any], start_response: Any) -> list[bytes]:
    body, output = SIZES.get(asked["PATH_INFO"], (0, 0))
    for _ in range(output // 65536):
        print_bytes(b"x" * 65535 + b"\n")
    start_response("200 OK", [*PLAIN, ("Set-Cookie", "a=b")])
    return [bytes_of(body) if body else b"pong"]


@pytest.fixture(params=["memory", pytest.param("spool", marks=pytest.mark.everything)])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    sizes = {"max_output": LARGE + 1024, "max_result": 2 * LARGE}
    return MemoryRegistry(**sizes) if request.param == "memory" else SpoolRegistry(tmp_path / "jobs", **sizes)


@pytest.fixture
def site(registry: Registry) -> Iterator[BackgroundMiddleware]:
    with BackgroundMiddleware(app, when=marks.path(*SIZES), registry=registry) as site:
        yield site


def done(site: BackgroundMiddleware, client: InProcess | OverHTTP, path: str) -> str:
    target = start(client, path)
    ended(site, target)
    return target


# Each view that can be large: what is asked of which job, and with what.
VIEWS = {
    "the result": ("/body", "&_view=result", ""),
    "a range of the result": ("/body", "&_view=result", "Range: bytes=5-\r\n"),
    "the log": ("/output", "&_view=log", ""),
    "a range of the log": ("/output", "&_view=log", "Range: bytes=5-\r\n"),
    "a log with a gap": ("/gap", "&_view=log", ""),
    "events": ("/output", "&_view=events", ""),
    "a page of the log": ("/output", "&_offset=5", ""),
    "the page": ("/output", "&_view=page", ""),
    "the state": ("/output", "&_view=status", ""),
}


@pytest.mark.parametrize("view", VIEWS)
def test_clients_that_do_not_read_keep_no_thread_of_waitress(site: BackgroundMiddleware, view: str) -> None:
    path, query, header = VIEWS[view]
    with served(site, patience=0.2, threads=2, outbuf_overflow=1 << 30) as client, contextlib.ExitStack() as stack:
        target = done(site, client, path)
        request = f"GET {target}{query} HTTP/1.1\r\nHost: x\r\n{header}\r\n".encode()
        slow = [stack.enter_context(sent(client.port, request)) for _ in range(8)]
        heads = [connection.recv(1) for connection in slow]  # all have been taken
        assert heads == [b"H"] * 8
        assert client.request("GET", "/ping").text == "pong"
        for connection in slow:  # one byte more, as who reads one a second
            assert connection.recv(1) == b"T"
        assert client.request("GET", f"{target}&_view=status").status == 200


def read_all(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(1 << 20), b""))


@pytest.mark.parametrize("asked", ["", "bytes=0-9", "bytes=70000-", "bytes=-70000", "bytes=1000000-20000000"])
def test_waitress_sends_a_file_byte_for_byte(site: BackgroundMiddleware, asked: str) -> None:
    body = bytes_of(LARGE)
    with served(site) as client:
        target = done(site, client, "/body")
        reply = client.request("GET", f"{target}&_view=result", **({"range": asked} if asked else {}))
        first, _, last = asked.removeprefix("bytes=").partition("-")
        begin = int(first) if first else -int(last) if last else 0
        end = int(last) + 1 if first and last else None
        assert reply.status == (206 if asked else 200)
        assert reply.body == body[begin:end]
        assert reply["Content-Length"] == str(len(reply.body))


# Counted as held, where the server sends no files.


def ask(site: BackgroundMiddleware, target: str, **more: Any) -> tuple[str, dict[str, str], Any]:
    head: list[Any] = []
    iterable = site({**environ("GET", target), **more}, lambda *said: head.extend(said))
    return head[0], dict(head[1]), iterable


COUNTED = {view: asked for view, asked in VIEWS.items() if view not in ("a page of the log", "the page", "the state")}


@pytest.mark.parametrize("view", COUNTED)
def test_large_answers_are_counted_as_held_until_they_are_read_closed_or_dropped(
    site: BackgroundMiddleware, view: str
) -> None:
    path, query, header = COUNTED[view]
    target = done(site, InProcess(site), path) + query
    more = {"HTTP_RANGE": header.strip().partition(": ")[2]} if header else {}
    held = [ask(site, target, **more) for _ in range(2)]
    assert [status[0] for status, _, _ in held] == ["2", "2"]
    status, headers, iterable = ask(site, target, **more)
    assert status == "503 Service Unavailable"
    assert headers["Retry-After"] == "1"
    assert b"Too many" in b"".join(iterable)
    assert ask(site, done(site, InProcess(site), "/body") + "&_view=status")[0] == "200 OK"
    closed, dropped = (held.pop()[2] for _ in range(2))
    next(iter(closed))
    closed.close()
    assert ask(site, target, **more)[0][0] == "2"
    del dropped
    for _ in range(4):
        status, _, iterable = ask(site, target, **more)
        assert status[0] == "2"
        for _ in iterable:  # read to its end, and not closed
            pass


def test_a_refused_reader_takes_no_cookies_along(site: BackgroundMiddleware) -> None:
    client = InProcess(site)
    others = done(site, client, "/body")
    target = done(site, client, "/body") + "&_view=result"
    held = [ask(site, others + "&_view=result") for _ in range(2)]
    assert ask(site, target)[0] == "503 Service Unavailable"
    held.pop()
    assert ask(site, target)[1]["Set-Cookie"] == "a=b"


def test_what_is_short_and_what_has_no_body_is_not_counted(site: BackgroundMiddleware) -> None:
    target = done(site, InProcess(site), "/body") + "&_view=result"
    _, headers, first = ask(site, target)
    kept = [first, ask(site, target)]
    assert kept
    for more in ({"HTTP_RANGE": "bytes=0-9"}, {"HTTP_IF_NONE_MATCH": headers["ETag"]}):
        assert ask(site, target, **more)[0] == "503 Service Unavailable", "not known before it is looked at"
    assert ask(site, target, REQUEST_METHOD="HEAD")[0] == "200 OK"
    kept.clear()
    del first
    for more in ({"HTTP_RANGE": "bytes=0-9"}, {"HTTP_IF_NONE_MATCH": headers["ETag"]}, {"REQUEST_METHOD": "HEAD"}):
        for _ in range(3):
            assert ask(site, target, **more)[0][0] in "23"


@pytest.mark.parametrize("slots", [0, 1])
def test_there_is_always_a_slot_for_a_result(registry: Registry, slots: int) -> None:
    with BackgroundMiddleware(app, when=marks.path(*SIZES), registry=registry, stream_slots=slots) as site:
        target = done(site, InProcess(site), "/body") + "&_view=result"
        held = ask(site, target)
        assert held[0] == "200 OK"
        assert ask(site, target)[0] == "503 Service Unavailable"


def test_the_only_thread_of_a_server_sends_what_it_has_to(site: BackgroundMiddleware) -> None:
    target = done(site, InProcess(site), "/body") + "&_view=result"
    kept = [ask(site, target, **{"wsgi.multithread": False}) for _ in range(5)]
    assert {status for status, _, _ in kept} == {"200 OK"}


def test_other_servers_are_given_pieces(site: BackgroundMiddleware) -> None:
    target = done(site, InProcess(site), "/middling") + "&_view=result"
    for server in ({}, {"uwsgi.version": b"2"}, {"mod_wsgi.version": (5, 0, 0)}):
        _, _, iterable = ask(site, target, **{"wsgi.file_wrapper": FileWrapper, **server})
        assert not isinstance(iterable, FileWrapper)
        assert b"".join(iterable) == bytes_of(2 * 1024 * 1024)


def test_gunicorn_is_given_a_file_that_ends_where_its_range_does(site: BackgroundMiddleware) -> None:
    target = done(site, InProcess(site), "/body") + "&_view=result"
    gunicorn = {"wsgi.file_wrapper": FileWrapper, "gunicorn.socket": object()}
    status, _, iterable = ask(site, target, HTTP_RANGE="bytes=5-2000004", **gunicorn)
    assert status == "206 Partial Content"
    assert isinstance(iterable, FileWrapper)
    assert b"".join(iterable) == bytes_of(LARGE)[5:2_000_005], "also where somebody in between reads it"
    iterable.close()
    kept = [ask(site, target, **gunicorn) for _ in range(2)]
    assert ask(site, target, **gunicorn)[0] == "503 Service Unavailable"
    kept.pop()[2].close()
    assert ask(site, target, **gunicorn)[0] == "200 OK"
