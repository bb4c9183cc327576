"""Held connections end: with the job, else visibly before it; and what has ended holds no slot."""

import contextlib
import io
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, ThreadExecutor, marks
from bgmiddleware._serving import connections, events, log, visit
from bgmiddleware.registries.spool import SpoolRegistry
from tests.kit.clients import InProcess, environ, served, start
from tests.kit.readers import Play


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (events, log, visit):
        monkeypatch.setattr(module, "LOOK_EVERY", 0.02)


@pytest.fixture
def play() -> Iterator[Play]:
    play = Play()
    yield play
    for _ in range(20):
        play.answers()


@pytest.fixture
def site(play: Play) -> Iterator[BackgroundMiddleware]:
    with BackgroundMiddleware(
        play, when=marks.always, stream_slots=1, executor=ThreadExecutor(max_workers=20, drain=0.0)
    ) as site:
        yield site


def given(target: str, **more: Any) -> dict[str, Any]:
    return {**environ("GET", target), **more}


def head_of(site: BackgroundMiddleware, target: str) -> tuple[dict[str, str], Any]:
    """Ask without any middleware in between, as a server does; return the headers, and the iterable, not closed."""
    head: list[Any] = []
    iterable = site(given(target), lambda *said: head.extend(said))
    return dict(head[1]), iterable


# A slot comes back when its answer has ended, whoever forgets to close it.


@pytest.mark.parametrize("view", ["log", "events"])
def test_who_reads_to_the_end_and_closes_nothing_holds_no_slot(
    site: BackgroundMiddleware, play: Play, view: str
) -> None:
    kept = []
    for _ in range(3):
        target = start(InProcess(site), "/")
        play.prints("abc")
        headers, iterable = head_of(site, f"{target}&_view={view}")
        assert "Retry-After" not in headers, "it is held"
        kept.append(iterable)
        chunks = iter(iterable)
        next(chunks)
        play.answers()
        list(chunks)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("view", ["log", "events"])
def test_an_answer_that_is_dropped_holds_no_slot(
    site: BackgroundMiddleware, play: Play, view: str, begun: bool
) -> None:
    target = start(InProcess(site), "/")
    play.prints("abc")
    for _ in range(3):
        headers, iterable = head_of(site, f"{target}&_view={view}")
        assert "Retry-After" not in headers, "it is held"
        if begun:
            next(iter(iterable))
        del iterable


def test_an_answer_that_fails_holds_no_slot(site: BackgroundMiddleware, play: Play) -> None:
    target = start(InProcess(site), "/")
    play.begins()
    _, iterable = head_of(site, target)
    site.registry.follow = broken_registry  # type: ignore[method-assign]
    _, failing = head_of(site, f"{target}&_view=status")
    del failing
    iterable.close()
    _, failing = head_of(site, target)
    with pytest.raises(OSError, match="no disk"):
        next(failing)
    headers, _ = head_of(site, f"{target}&_view=events")
    assert "Retry-After" not in headers, "there is a slot"


def broken_registry(*arguments: Any, **options: Any) -> Iterator[Any]:
    raise OSError("no disk")
    yield


# Half of the threads.


@pytest.mark.parametrize(("threads", "slots"), [(1, 0), (2, 1), (5, 2), (8, 4)])
def test_half_of_the_threads_of_waitress_are_for_viewers(play: Play, threads: int, slots: int) -> None:
    with (
        BackgroundMiddleware(play, when=marks.always, executor=ThreadExecutor(drain=0.0)) as site,
        served(site, threads=threads) as client,
        contextlib.ExitStack() as stack,
    ):
        target = start(client, "/")
        play.prints("abc")
        for number in range(slots + 1):
            _, headers, chunks = stack.enter_context(client.stream("GET", target))
            assert ("Retry-After" in dict(headers)) is (number == slots)
            assert next(chunks) == b"abc"
        assert client.request("GET", f"{target}&_offset=0").text == "abc", "there is a thread left"
        play.answers()


# A bound, where the server has one.


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_BOUND", 0.1)


@pytest.mark.usefixtures("bound")
def test_a_follower_that_must_end_breaks_off(site: BackgroundMiddleware, play: Play) -> None:
    target = start(InProcess(site), "/")
    play.prints("abc")
    chunks = site(given(target), lambda *head: None)
    assert next(chunks) == b"abc"
    with pytest.raises(ConnectionResetError):
        next(chunks)
    assert "Retry-After" not in head_of(site, target)[0], "its slot is free"


@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize(
    "server", [{"SERVER_PROTOCOL": "HTTP/1.0"}, {"SERVER_SOFTWARE": "Granian"}, {"mod_wsgi.version": (5, 0, 0)}]
)
def test_where_a_break_might_not_be_seen_it_is_said_in_words(
    site: BackgroundMiddleware, play: Play, server: dict[str, Any]
) -> None:
    target = start(InProcess(site), "/")
    play.prints("abc")
    chunks = site(given(target, **server), lambda *head: None)
    assert next(chunks) == b"abc"
    assert next(chunks).decode() == "\n[… this answer ends here, at byte 3, and the job goes on: ask again …]\n"
    with pytest.raises((ConnectionResetError, StopIteration)):
        next(chunks)


def test_the_one_thread_of_a_bridge_is_not_held_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asgiref.wsgi", types.ModuleType("asgiref.wsgi"))
    assert connections.longest({**environ("GET", "/"), "wsgi.errors": io.BytesIO()}) == 5
    assert connections.longest(environ("GET", "/")) == 25


@pytest.mark.parametrize(
    "server",
    [
        {"SERVER_SOFTWARE": "Granian"},
        {"wsgi.multithread": False, "wsgi.multiprocess": True},  # tornado
    ],
)
def test_a_server_that_hides_an_answer_that_fails_gets_one_that_is_too_short(
    site: BackgroundMiddleware, play: Play, monkeypatch: pytest.MonkeyPatch, server: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, "tornado.wsgi", types.ModuleType("tornado.wsgi"))
    target = start(InProcess(site), "/")
    play.prints("abc")
    kept = site(given(target), lambda *said: None)  # has the only slot
    head: list[Any] = []
    text = b"".join(site(given(target, **server), lambda *said: head.extend(said)))
    assert text == b"abc"
    assert int(dict(head[1])["Content-Length"]) > len(text)
    assert kept


@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize("query", ["&_view=events", "&_view=status&_wait=30", "&_view=result&_wait=30"])
def test_no_other_answer_takes_longer_than_the_bound(site: BackgroundMiddleware, play: Play, query: str) -> None:
    target = start(InProcess(site), "/")
    play.begins()
    list(site(given(target + query), lambda *head: None))  # or the test hangs for half a minute
    play.answers()


@pytest.mark.usefixtures("bound")
def test_waitress_has_no_bound(site: BackgroundMiddleware, play: Play) -> None:
    with served(site) as client:
        target = start(client, "/")
        play.prints("abc")
        with client.stream("GET", target) as (_, _, chunks):
            assert next(chunks) == b"abc"
            list(site(given(f"{target}&_view=status&_wait=1"), lambda *head: None))  # a second
            play.prints("def")
            assert next(chunks) == b"def"
            play.answers()
            assert next(chunks, None) is None


# At shutdown.


class Worker:
    """As a worker of gunicorn and a server of uvicorn: the method that handles SIGTERM says so in the object."""

    def __init__(self) -> None:
        self.alive = True
        self.should_exit = False

    def handle_exit(self, number: int, frame: object) -> None: ...


@pytest.mark.parametrize(("attribute", "stopping"), [("alive", False), ("should_exit", True)])
def test_a_server_that_is_stopping_holds_nobody(
    site: BackgroundMiddleware, play: Play, attribute: str, stopping: bool
) -> None:
    worker = Worker()
    before = signal.signal(signal.SIGTERM, worker.handle_exit)
    try:
        target = start(InProcess(site), "/")
        play.prints("abc")
        chunks = site(given(target), lambda *head: None)
        assert next(chunks) == b"abc"
        setattr(worker, attribute, stopping)
        with pytest.raises(ConnectionResetError):
            next(chunks)
        for query in ("&_view=events", "&_view=status&_wait=30"):
            list(site(given(target + query), lambda *head: None))
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_site_that_was_shut_down_holds_nobody(play: Play, tmp_path: Path) -> None:
    options: dict[str, Any] = {"when": marks.always, "executor": ThreadExecutor(drain=0.0)}
    with BackgroundMiddleware(play, registry=SpoolRegistry(tmp_path / "jobs"), **options) as running:
        other = BackgroundMiddleware(play, registry=SpoolRegistry(tmp_path / "jobs"), when=marks.always)
        target = start(InProcess(running), "/")
        play.prints("abc")
        chunks = other(given(target), lambda *head: None)
        assert next(chunks) == b"abc"
        other.shutdown()
        with pytest.raises(ConnectionResetError):
            next(chunks)
        assert "Retry-After" in head_of(other, target)[0], "nor anybody new"
        other.close()
        play.answers()


# Signs of life.


@pytest.mark.parametrize(
    "proxy",
    [
        {"SERVER_PROTOCOL": "HTTP/1.0"},
        {"HTTP_X_FORWARDED_FOR": "10.0.0.1"},
        {"HTTP_VIA": "1.1 cache"},
        {"HTTP_FORWARDED": "for=10.0.0.1"},
        {"HTTP_X_REAL_IP": "10.0.0.1"},
    ],
)
@pytest.mark.parametrize(
    ("printed", "sign"),
    [("", "\r"), ("a line\n", "\r"), ("half a line", "\u200b"), ("\r 50 %", "\u200b"), ("a\r", "\r")],
)
def test_a_proxy_hears_of_a_quiet_job(
    site: BackgroundMiddleware,
    play: Play,
    monkeypatch: pytest.MonkeyPatch,
    proxy: dict[str, str],
    printed: str,
    sign: str,
) -> None:
    monkeypatch.setattr(log, "SIGN_EVERY_TO_PROXY", 0.0)
    target = start(InProcess(site), "/")
    play.prints(printed)
    chunks = site(given(target, **proxy), lambda *head: None)
    if printed:
        assert next(chunks).decode() == printed
    assert [next(chunks).decode() for _ in range(3)] == [sign] * 3
    play.prints("more")
    text = "".join(chunk.decode() for chunk in until(chunks, "more"))
    assert text.lstrip(sign) == "more"
    play.answers()
    assert set(b"".join(chunks).decode()) <= {"\u200b"}, "and the end is the end"


def until(chunks: Iterator[bytes], text: str) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        if text in chunk.decode():
            return


def test_without_a_proxy_a_quiet_job_is_quiet_for_long(
    site: BackgroundMiddleware, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "SIGN_EVERY_TO_PROXY", 0.0)
    looked: list[object] = []
    follow: Callable[..., Iterator[Any]] = site.registry.follow

    def watched(*arguments: Any, **options: Any) -> Iterator[Any]:
        for piece in follow(*arguments, **options):
            looked.append(piece)
            if len(looked) == 3:
                play.answers(b"done")
            yield piece

    site.registry.follow = watched  # type: ignore[assignment,method-assign]
    target = start(InProcess(site), "/")
    play.begins()
    assert b"".join(site(given(target), lambda *head: None)) == b""
    assert len(looked) >= 3


def test_what_is_read_by_offset_has_no_signs(
    site: BackgroundMiddleware, play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "SIGN_EVERY_TO_PROXY", 0.0)
    client = InProcess(site)
    target = start(client, "/")
    play.prints("abc")
    assert client.request("GET", f"{target}&_offset=0&_wait=1", via="1.1 cache").text == "abc"
    play.answers()


def test_eventlet_is_told_to_pass_on_each_piece(site: BackgroundMiddleware, play: Play) -> None:
    target = start(InProcess(site), "/")
    play.begins()
    asked = given(target, **{"eventlet.posthooks": []})
    site(asked, lambda *head: None)
    assert asked["eventlet.minimum_write_chunk_size"] == 0
    asked = given(f"{target}&_offset=0", **{"eventlet.posthooks": []})
    site(asked, lambda *head: None)
    assert "eventlet.minimum_write_chunk_size" not in asked, "what is not live may be collected"
