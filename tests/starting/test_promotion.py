"""What is done in time is answered as if nothing were between; what is not becomes a job, whole from its first byte."""

import gzip
import io
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from webob import Response

from bgmiddleware import (
    BackgroundMiddleware,
    MemoryRegistry,
    ThreadExecutor,
    background,
    backgrounder,
    marks,
    owners,
)
from tests.kit.apps import WAIT, OnLeave
from tests.kit.clients import UUID, InProcess, Reply, ended, environ, served, start
from tests.kit.readers import BOTH, PLAIN, Opener, Play, answering, exchanged, opened, sent


@pytest.fixture(params=BOTH)
def opens(request: pytest.FixtureRequest) -> Iterator[Opener]:
    yield from opened(request)


def log_of(path: str, reply: Reply) -> str:
    """Return where the output of the job is whose result *reply* is."""
    where = reply["Content-Location"]
    assert where.endswith("&_view=result")
    return path + where.replace("_view=result", "_view=log")


# In time: the same bytes on the wire.


def with_length(body: bytes, status: str = "200 OK", *headers: tuple[str, str]) -> Callable[..., list[bytes]]:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *headers])
        return [body]

    return app


def without_length(body: bytes) -> Callable[..., list[bytes]]:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", list(PLAIN))
        return [body]

    return app


def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def by_write(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    write = start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
    write(b"abc")
    return [b"def"]


def without_body(status: str, *headers: tuple[str, str]) -> Callable[..., list[bytes]]:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(status, list(headers))
        return []

    return app


LARGE = bytes(range(256)) * 8192  # 2 MiB
COOKIES = [
    ("Set-Cookie", "a=1; Path=/"),
    ("Set-Cookie", "b=2"),
    ("X-Odd", "\xfcber"),
    ("x-lower", "1"),
]
APPS: dict[str, Any] = {
    "short": with_length(b"short"),
    "one piece without a length": without_length(b"short"),
    "empty with a length": with_length(b""),
    "cookies and odd headers": with_length(b"x", "200 OK", *COOKIES),
    "cached": with_length(b"x", "200 OK", ("Cache-Control", "max-age=60"), ("Vary", "Cookie")),
    "created": with_length(b"made", "201 Created", ("Location", "/made")),
    "redirect": with_length(b"", "302 Found", ("Location", "/there?x=1")),
    "not found": with_length(b"no", "404 Not Found"),
    "own reason": with_length(b"tea", "418 I'm a teapot, short and stout"),
    "error of its own": with_length(b"sorry", "503 Busy", ("Retry-After", "7")),
    "no content": without_body("204 No Content", ("X-A", "1")),
    "not modified": without_body("304 Not Modified", ("ETag", '"e"')),
    "partial": with_length(b"x", "206 Partial Content", ("Content-Range", "bytes 0-0/9")),
    "echo": echo,
    "write()": by_write,
    "large": with_length(LARGE),
    "large, one piece without a length": without_length(LARGE),
}
REQUESTS = {
    "GET": b"GET /a%20b?c=1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    "GET, HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "POST": b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello",
    "GET, a range and a condition": (
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nRange: bytes=0-1\r\nIf-None-Match: *\r\n\r\n"
    ),
}


def without_date(response: bytes) -> bytes:
    return re.sub(rb"\r\nDate: [^\r]*", b"", response, count=1)


@pytest.mark.parametrize("name", APPS)
def test_in_time_the_response_is_the_apps_byte_for_byte(name: str) -> None:
    app = APPS[name]
    with (
        BackgroundMiddleware(app, when=marks.always, promote_after=WAIT, owner=owners.cookie("s" * 16)) as site,
        served(app) as bare,
        served(site) as ours,
    ):
        for request in REQUESTS.values():
            expected = without_date(exchanged(bare.port, request))
            assert without_date(exchanged(ours.port, request)) == expected
        assert site.registry.jobs() == [], "and no job is left"


def with_conditions(size: int) -> Callable[..., Any]:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        response = Response(body=LARGE[:size], content_type="text/plain", conditional_response=True, etag="tag")
        response.accept_ranges = "bytes"
        return response(environ, start_response)

    return app


@pytest.mark.parametrize("size", [1000, len(LARGE)])
@pytest.mark.parametrize(
    "asks",
    [
        {"range": "bytes=10-19"},
        {"range": "bytes=-5", "if_range": '"tag"'},
        {"range": "bytes=-5", "if_range": '"other"'},
        {"range": "bytes=99999999-"},
        {"if_none_match": '"tag"'},
        {"if_none_match": '"other"'},
    ],
)
def test_in_time_the_conditions_and_the_range_of_the_client_hold(
    opens: Opener, asks: dict[str, str], size: int
) -> None:
    app = with_conditions(size)
    site, client = opens(app, promote_after=WAIT)
    reply, expected = client.request("GET", "/", **asks), InProcess(app).request("GET", "/", **asks)
    assert (reply.status, reply.body) == (expected.status, expected.body if expected.status != 416 else b"")
    if expected.status != 416:
        assert reply["ETag"] == expected["ETag"]
    assert ("Content-Range" in reply) is ("Content-Range" in expected)
    deadline = time.monotonic() + WAIT
    while jobs := site.registry.jobs():  # until the server has closed the response
        assert time.monotonic() < deadline, jobs


def test_in_time_an_app_that_knows_no_ranges_is_not_cut_into_parts(opens: Opener) -> None:
    _, client = opens(answering(b"0123456789"), promote_after=WAIT)
    reply = client.request("GET", "/", range="bytes=0-1", if_none_match="*")
    assert (reply.status, reply.body) == (200, b"0123456789")


def test_in_time_a_stream_of_pieces_is_the_same_but_for_the_servers_framing() -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", list(PLAIN))
        yield b"first "
        yield b""
        yield b"second"

    with BackgroundMiddleware(app, when=marks.always, promote_after=WAIT) as site, served(site) as ours:
        reply = ours.request("GET", "/")
        assert (reply.status, reply.body) == (200, b"first second")
        assert {name for name, _ in reply.headers} == {"Content-Type", "Content-Length", "Date", "Server"}


def test_in_time_the_prints_are_where_they_would_be(opens: Opener, capsys: pytest.CaptureFixture[str]) -> None:
    printed = "ü" + "☃" * 200_000 + "\n"  # 600,003 bytes: no piece of 256 KiB ends between characters
    site, client = opens(answering(b"body", output=printed.encode()), promote_after=WAIT)
    assert client.request("GET", "/").body == b"body"
    assert capsys.readouterr().out == printed
    assert site.registry.jobs() == []


def test_in_time_each_stream_is_where_it_would_be(opens: Opener, capsys: pytest.CaptureFixture[str]) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        print("one é")
        print("two ☃", file=sys.stderr)
        environ["wsgi.errors"].write("three\n")
        sys.stdout.buffer.write("é".encode()[:1])  # which the next write ends
        sys.stderr.write("four\n")
        sys.stdout.buffer.write("é".encode()[1:])
        start_response("200 OK", list(PLAIN))
        return [b"body"]

    _, client = opens(app, promote_after=WAIT)
    assert client.request("GET", "/").body == b"body"
    assert capsys.readouterr() == ("one é\né", "two ☃\nthree\nfour\n")


@pytest.mark.parametrize("size", [200, 3_000_000])
def test_in_time_an_answer_that_varies_by_it_is_compressed(opens: Opener, size: int) -> None:
    headers = ("Vary", "Cookie, Accept-Encoding"), ("ETag", '"as it is"')
    _, client = opens(with_length(b"x" * size, "200 OK", *headers), promote_after=WAIT)
    reply = client.request("GET", "/", accept_encoding="deflate, gzip;q=0.5")
    assert (reply.status, reply["Content-Encoding"], reply["ETag"]) == (200, "gzip", 'W/"as it is"')
    assert gzip.decompress(reply.body) == b"x" * size
    again = client.request("GET", "/", accept_encoding="gzip", if_none_match=reply["ETag"])
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize(
    ("accepted", "size", "headers"),
    [
        ("", 200, {"Vary": "Accept-Encoding"}),
        ("br", 200, {"Vary": "Accept-Encoding"}),
        ("gzip;q=0", 200, {"Vary": "Accept-Encoding"}),
        ("no; token", 200, {"Vary": "Accept-Encoding"}),
        ("gzip", 199, {"Vary": "Accept-Encoding"}),
        ("gzip", 200, {"Vary": "Cookie"}),
        ("gzip", 200, {}),
        ("gzip", 200, {"Vary": "Accept-Encoding", "Content-Encoding": "br"}),
        ("gzip", 200, {"Vary": "Accept-Encoding", "Cache-Control": "no-transform"}),
        ("gzip", 200, {"Vary": "Accept-Encoding", "X-Accel-Redirect": "/file"}),
    ],
)
def test_in_time_any_other_answer_is_not_compressed(accepted: str, size: int, headers: dict[str, str]) -> None:
    app = with_length(b"x" * size, "200 OK", *headers.items())
    with BackgroundMiddleware(app, when=marks.always, promote_after=WAIT) as site:
        reply = InProcess(site).request("GET", "/", **({"accept_encoding": accepted} if accepted else {}))
        assert (reply.body, reply.headers[2:]) == (b"x" * size, list(headers.items()))


def test_in_time_a_part_is_not_compressed() -> None:
    headers = ("Vary", "Accept-Encoding"), ("Accept-Ranges", "bytes")
    with BackgroundMiddleware(
        with_length(b"x" * 500, "200 OK", *headers), when=marks.always, promote_after=WAIT
    ) as site:
        reply = InProcess(site).request("GET", "/", accept_encoding="gzip", range="bytes=0-299")
        assert (reply.status, reply.body, reply.headers[-1][0]) == (206, b"x" * 300, "Content-Range")


def test_in_time_bytes_that_are_no_text_are_shown_as_such(opens: Opener, capsys: pytest.CaptureFixture[str]) -> None:
    _, client = opens(answering(b"body", output=b"a\xffb\xe2\x98"), promote_after=WAIT)
    client.request("GET", "/")
    assert capsys.readouterr().out == "a\\xffb\\xe2\\x98"


@pytest.mark.parametrize("how", ["promoted", "preferred"])
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the validator wants its iterable closed
def test_who_raises_in_time_is_answered_500(opens: Opener, capsys: pytest.CaptureFixture[str], how: str) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        print("about to fail")
        raise ValueError("secret detail")

    site, client = opens(app, promote_after=WAIT if how == "promoted" else 0.0)
    headers = {"prefer": "wait=30"} if how == "preferred" else {}
    reply = client.request("GET", "/", accept="application/json", **headers)
    assert (reply.status, reply.json["type"]) == (500, "urn:bgmiddleware:problem:failed")
    if how == "promoted":
        assert "secret" not in reply.text
        printed = capsys.readouterr()
        assert printed.out == "about to fail\n"
        assert printed.err.startswith("Traceback")
        assert site.registry.jobs() == []
    else:
        assert reply["Preference-Applied"] == "wait=30"
        output = client.request("GET", log_of("/", reply)).text
        assert output.startswith("about to fail\nTraceback")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_half_a_body_is_no_answer(opens: Opener) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", list(PLAIN))
        yield b"half of "
        raise ValueError("in mid-body")

    _, client = opens(app, promote_after=WAIT)
    assert client.request("GET", "/").status == 500


def test_in_time_nothing_is_closed_twice_and_the_job_is_forgotten_even_if_nobody_reads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leaving = OnLeave(lambda: iter([LARGE]))

    def app(environ: dict[str, Any], start_response: Any) -> OnLeave:
        start_response("200 OK", list(PLAIN))
        return leaving

    with BackgroundMiddleware(app, when=marks.always, promote_after=WAIT) as site:
        body: Any = site(environ("GET", "/"), lambda *head: None)
        assert leaving.closed == 1
        next(iter(body))
        body.close()
        assert site.registry.jobs() == []


def test_a_large_answer_in_time_is_not_held_in_memory() -> None:
    import tracemalloc

    def app(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", list(PLAIN))
        for _ in range(30):
            yield b"x" * (1 << 20)

    with BackgroundMiddleware(app, when=marks.always, promote_after=WAIT) as site:
        tracemalloc.start()
        try:
            body: Any = site(environ("GET", "/"), lambda *head: None)
            assert sum(map(len, body)) == 30 << 20
            body.close()
            assert tracemalloc.get_traced_memory()[1] < 6 << 20
        finally:
            tracemalloc.stop()


# Not in time.

LATE = 0.02


@pytest.mark.parametrize(
    ("headers", "status"), [({}, 303), ({"accept": "application/json"}, 202), ({"prefer": "respond-async"}, 202)]
)
def test_what_is_late_is_promoted_and_whole_from_its_first_byte(
    opens: Opener, headers: dict[str, str], status: int
) -> None:
    play = Play()
    site, client = opens(play, promote_after=LATE)
    with ThreadPoolExecutor() as pool:
        late = pool.submit(client.request, "POST", "/slow?a=1", b"abc", **headers)
        play.prints("printed before\n")
        reply = late.result(WAIT)
    assert reply.status == status
    assert re.fullmatch(rf"\?a=1&_t={UUID}", reply["Location"])
    assert ("Preference-Applied" in reply) is ("prefer" in headers)
    target = "/slow" + reply["Location"]
    play.prints("and after\n")
    play.answers(b"the body")
    ended(site, target)
    assert client.request("GET", target).text == "printed before\nand after\n"
    assert client.request("GET", f"{target}&_view=result").body == b"the body"
    assert play.calls == 1


@pytest.mark.parametrize(
    ("prefer", "accept", "status", "applied"),
    [
        ("wait=0", "*/*", 303, "wait=0"),
        ("wait=0", "application/json", 202, "wait=0"),
        ("respond-async, wait=0", "*/*", 202, "respond-async, wait=0"),
        ("wait=0, respond-async", "*/*", 202, "respond-async, wait=0"),
    ],
)
def test_who_prefers_to_wait_in_vain_gets_what_others_get(
    opens: Opener, prefer: str, accept: str, status: int, applied: str
) -> None:
    play = Play()
    _, client = opens(play)
    reply = client.request("POST", "/", prefer=prefer, accept=accept)
    assert (reply.status, reply["Preference-Applied"]) == (status, applied)
    assert "Content-Location" not in reply
    play.prints("x")
    assert client.request("GET", "/" + reply["Location"], range="bytes=0-").text == "x"


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait=30", "wait=30"),
        ("wait=99", "wait=30"),
        ("respond-async, wait=20", "wait=20"),
        ("wait=" + "9" * 400, "wait=30"),
    ],
)
def test_who_prefers_to_wait_gets_the_response_and_where_the_job_is(opens: Opener, prefer: str, applied: str) -> None:
    headers = [("X-Own", "1"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("Cache-Control", "max-age=5")]
    _, client = opens(answering(b"body", output=b"printed", status="201 Created", headers=headers))
    reply = client.request("POST", "/a?b=c", prefer=prefer)
    assert (reply.status, reply.body) == (201, b"body")
    assert (reply["Preference-Applied"], reply["X-Own"], reply["Cache-Control"]) == (applied, "1", "max-age=5")
    assert [value for name, value in reply.headers if name == "Set-Cookie"] == ["a=1", "b=2"]
    assert re.fullmatch(rf"\?b=c&_t={UUID}&_view=result", reply["Content-Location"])
    assert "Location" not in reply
    assert client.request("GET", log_of("/a", reply)).text == "printed"
    again = client.request("GET", "/a" + reply["Content-Location"])
    assert (again.status, again.body) == (201, b"body")
    assert "Set-Cookie" not in again, "the first reader had them"


def test_a_preference_of_the_client_goes_before_the_setting(opens: Opener) -> None:
    site, client = opens(answering(b"body"), promote_after=WAIT)
    assert "Content-Location" in client.request("POST", "/", prefer="wait=30")
    assert len(site.registry.jobs()) == 1


def test_where_nobody_may_be_held_the_client_is_redirected_at_once(opens: Opener) -> None:
    play = Play()
    _, client = opens(play, promote_after=WAIT, stream_slots=0)
    reply = client.request("POST", "/")  # or it would wait for thirty seconds
    assert (reply.status, reply["Job-State"] in ("pending", "running")) == (303, True)
    play.answers()


def test_viewers_take_no_place_of_those_who_wait_for_promotion(opens: Opener) -> None:
    play, quick = Play(), answering(b"quick")

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        return (play if environ["PATH_INFO"] == "/long" else quick)(environ, start_response)

    _, client = opens(app, promote_after=WAIT, stream_slots=1)
    target = start(client, "/long", prefer="wait=0")
    play.prints("the head of a response comes with its first bytes")
    with client.stream("GET", target):
        assert client.request("GET", "/quick").body == b"quick"
        play.answers()


@pytest.mark.parametrize("is_threaded", [True, False])
def test_six_at_once_are_answered_in_time_by_two_workers_and_one_by_one(is_threaded: bool) -> None:
    app = answering(b"in time")
    executor = ThreadExecutor(max_workers=2, drain=0.0)
    with BackgroundMiddleware(app, when=marks.always, promote_after=WAIT, executor=executor) as site:

        def ask(number: int) -> tuple[int, bytes]:
            asked = {**environ("GET", f"/{number}"), "wsgi.multithread": is_threaded}
            status = []
            body = site(asked, lambda line, *_: status.append(int(line[:3])))
            return status[0], b"".join(body)

        with ThreadPoolExecutor(6 if is_threaded else 1) as pool:
            assert list(pool.map(ask, range(6))) == [(200, b"in time")] * 6


def test_a_client_that_leaves_while_it_waits_ends_nothing() -> None:
    play = Play()
    with BackgroundMiddleware(play, when=marks.always, promote_after=WAIT) as site, served(site) as client:
        connection = sent(client.port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        play.begins()
        connection.close()
        for _ in range(3):
            play.prints("alone\n")  # would fail, were the view not there
        play.answers()
        site.executor.shutdown(WAIT)
        # If that was in time, nobody got the answer, and no job is left; else there is one, and it is whole.
        assert [job.state for job in site.registry.jobs()] in ([], ["finished"])


def test_a_full_queue_is_said_at_once(opens: Opener) -> None:
    play = Play()
    executor = ThreadExecutor(max_workers=1, max_pending=0, drain=0.0)
    _, client = opens(play, promote_after=LATE, executor=executor)
    start(client, "/")
    assert client.request("POST", "/").status == 503


# Decorated views.


def test_a_decorated_view_in_time_is_untouched_too(opens: Opener, capsys: pytest.CaptureFixture[str]) -> None:
    went: list[str] = []

    @backgrounder
    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        went.append(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode())
        print("in the view")
        start_response("201 Created", [*PLAIN, ("X-Own", "1")])
        return [b"viewed"]

    site, client = opens(view, when=marks.path("/never"), promote_after=WAIT)
    reply = client.request("POST", "/", b"abc")
    assert (reply.status, reply.body, reply["X-Own"]) == (201, b"viewed", "1")
    assert "Cache-Control" not in reply
    assert site.registry.jobs() == []
    assert went == ["abc"]
    assert capsys.readouterr().out == "in the view\n"


def test_a_decorated_view_that_is_late_is_promoted(opens: Opener) -> None:
    play = Play()
    site, client = opens(backgrounder(play), when=marks.path("/never"), promote_after=LATE)
    target = start(client, "/")
    play.prints("all of it")
    play.answers(b"viewed")
    ended(site, target)
    assert client.request("GET", target).text == "all of it"
    waited = client.request("GET", f"{target}&_view=result", prefer="wait=30")
    assert (waited.body, waited["Preference-Applied"]) == (b"viewed", "wait=30")


def test_a_decorated_function_can_be_preferred_to_be_waited_for(opens: Opener) -> None:
    @background
    def report() -> dict[str, int]:
        print("reporting")
        return {"rows": 3}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        print("before")
        start_response("200 OK", list(PLAIN))
        return [json.dumps(report()).encode()]

    _, client = opens(app, when=marks.path("/never"), promote_after=LATE)
    reply = client.request("GET", "/", prefer="wait=30")
    assert (reply.status, reply.json) == (200, {"rows": 3})
    assert client.request("GET", log_of("/", reply)).text == "before\nreporting\n"


def test_many_at_once_are_all_answered_with_their_own(opens: Opener) -> None:
    together = threading.Barrier(8)

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        together.wait(WAIT)
        print(environ["PATH_INFO"])
        start_response("200 OK", list(PLAIN))
        return [environ["PATH_INFO"].encode()]

    site, client = opens(app, promote_after=WAIT, stream_slots=8)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda number: client.request("GET", f"/{number}"), range(8)))
    assert [reply.body for reply in replies] == [f"/{number}".encode() for number in range(8)]
    assert site.registry.jobs() == []


def test_a_closed_server_output_does_not_spoil_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with BackgroundMiddleware(answering(b"body", output=b"x"), when=marks.always, promote_after=WAIT) as site:
        client = InProcess(site)
        client.request("GET", "/")
        monkeypatch.setattr(sys, "stdout", None)
        assert client.request("GET", "/").body == b"body"
        broken = io.StringIO()
        broken.close()
        monkeypatch.setattr(sys, "stdout", broken)
        assert client.request("GET", "/").body == b"body"
        assert site.registry.jobs() == []


def test_the_response_outlives_a_registry_that_is_short_of_room(opens: Opener) -> None:
    site, client = opens(answering(b"x" * 1000), promote_after=WAIT, registry=MemoryRegistry(max_jobs=1))
    for _ in range(5):
        assert client.request("GET", "/").body == b"x" * 1000
    assert site.registry.jobs() == []
