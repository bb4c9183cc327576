"""The protocol table of DESIGN §10, row by row, in-process under ``wsgiref.validate`` and over HTTP to waitress."""

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, MemoryRegistry, ThreadExecutor, marks, progress
from bgmiddleware._serving import events, log, result, visit
from bgmiddleware._starting import starter
from tests.kit.apps import WAIT
from tests.kit.clients import UUID, Reply, ended, start
from tests.kit.fleets import celery_fleet, rq_fleet  # noqa: F401  # fixtures
from tests.kit.readers import (
    BOTH,
    EVERYWHERE,
    UNKNOWN,
    Client,
    Clock,
    Opener,
    Play,
    events_of,
    opened,
    so_far,
    token_of,
)
from tests.kit.redis_server import redis_server_of_module  # noqa: F401  # a fixture of theirs

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
TEXT = "text/plain; charset=utf-8"
FORM = {"content_type": "application/x-www-form-urlencoded"}


@pytest.fixture(params=BOTH)
def opens(request: pytest.FixtureRequest) -> Iterator[Opener]:
    yield from opened(request)


everywhere = pytest.mark.parametrize("opens", EVERYWHERE, indirect=True)

pytestmark = pytest.mark.filterwarnings("ignore:Unknown REQUEST_METHOD")  # the validator does not know them all


@pytest.fixture(autouse=True)
def _clients_that_leave_are_seen_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (events, log, visit):
        monkeypatch.setattr(module, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(starter, "_LONGEST_WAIT", 0.1)
    monkeypatch.setattr(result, "PATIENCE", 0.1)


# A row of the table: what is asked, and what must be answered. "T" stands for the token.


@dataclass(frozen=True)
class Row:
    """One cell of the table: *headers* with a value of None must not be there; a pattern must match."""

    says: str
    method: str = "GET"
    query: str = ""
    body: bytes = b""
    asks: dict[str, str] = field(default_factory=dict)
    status: int = 200
    headers: dict[str, Any] = field(default_factory=dict)
    text: str | None = None

    def __str__(self) -> str:
        return self.says

    def check(self, reply: Reply, token: str) -> None:
        assert reply.status == self.status, reply
        for name, wanted in self.headers.items():
            if wanted is None:
                assert name not in reply, (name, reply.headers)
            elif isinstance(wanted, re.Pattern):
                assert wanted.fullmatch(reply[name]), (name, reply[name])
            else:
                assert reply[name] == wanted.replace("{T}", token), (name, reply[name])
        if self.text is not None:
            assert reply.text == self.text


def rows(*made: Row) -> Any:
    return pytest.mark.parametrize("row", made, ids=str)


ALWAYS = {
    "Cache-Control": "no-store, no-transform",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "X-Robots-Tag": "noindex",
}
OF_A_JOB = {**ALWAYS, "Vary": "Accept"}
PAGE = {"Content-Type": "text/html; charset=utf-8", "Vary": "Accept, Accept-Language"}


# Start.

STARTED = {**ALWAYS, "Location": re.compile(rf"\?a=1&_t={UUID}"), "Vary": "Accept, Prefer"}
REDIRECTED = {**STARTED, "Job-State": re.compile("pending|running"), "Content-Type": TEXT, "Preference-Applied": None}
AS_JSON = {**STARTED, "Job-State": re.compile("pending|running"), "Content-Type": "application/json"}
REFUSED = {**ALWAYS, "Location": None, "Job-State": None}


@rows(
    Row("a browser is redirected", asks={"accept": BROWSER}, status=303, headers=REDIRECTED),
    Row("curl is redirected", "POST", body=b"x", asks={"accept": "*/*"}, status=303, headers=REDIRECTED),
    Row("who says nothing is redirected", "PUT", body=b"x", status=303, headers=REDIRECTED),
    Row("an event source is redirected", asks={"accept": "text/event-stream"}, status=303, headers=REDIRECTED),
    Row(
        "who names JSON gets the state",
        asks={"accept": "application/json"},
        status=202,
        headers={**AS_JSON, "Preference-Applied": None, "Retry-After": "1", "Job-Poll": "1"},
    ),
    Row(
        "who prefers not to wait gets the state",
        "POST",
        asks={"prefer": "respond-async"},
        status=202,
        headers={**AS_JSON, "Preference-Applied": "respond-async", "Retry-After": "1"},
    ),
    Row(
        "even a browser that prefers it",
        asks={"accept": BROWSER, "prefer": "respond-async"},
        status=202,
        headers={**AS_JSON, "Preference-Applied": "respond-async"},
    ),
    Row(
        "who waits too short a time is redirected",
        asks={"prefer": "wait=0"},
        status=303,
        headers={**REDIRECTED, "Preference-Applied": "wait=0"},
    ),
    Row(
        "who waits too short a time, and then gets the state",
        asks={"prefer": "wait=0, respond-async"},
        status=202,
        headers={**AS_JSON, "Preference-Applied": "respond-async, wait=0"},
    ),
)
@everywhere
def test_starting(opens: Opener, row: Row) -> None:
    play = Play()
    site, client = opens(play)
    reply = client.request(row.method, "/slow?a=1", row.body, **row.asks)
    row.check(reply, "")
    assert reply.text.count("\n") == 1, "one line, for those who read it in a terminal"
    if row.status == 202:
        assert reply.json["token"] == token_of(reply["Location"])
    play.begins()
    assert len(site.registry.jobs()) == 1


@rows(
    *(
        Row(
            f"a {name} of {value}",
            asks={name: value},
            status=503,
            headers={**REFUSED, "Retry-After": "1"},
        )
        for name, value in [
            ("sec_purpose", "prefetch"),
            ("sec_purpose", "prefetch;prerender"),
            ("sec_purpose", "prefetch;anonymous-client-ip"),
            ("purpose", "prefetch"),
            ("x_moz", "prefetch"),
        ]
    ),
    Row("too large a body", "POST", body=b"x" * 101, status=413, headers=REFUSED),
    Row("an empty Idempotency-Key", "POST", asks={"idempotency_key": ""}, status=400, headers=REFUSED),
)
def test_what_starts_nothing(opens: Opener, row: Row) -> None:
    site, client = opens(Play(), max_body=100)
    row.check(client.request(row.method, "/slow?a=1", row.body, **row.asks), "")
    assert site.registry.jobs() == []


@pytest.mark.parametrize("accept", ["*/*", "application/json"])
@everywhere
def test_a_full_queue_starts_nothing_and_says_when_to_come_back(opens: Opener, accept: str) -> None:
    play = Play()
    site, client = opens(play, executor=ThreadExecutor(max_workers=1, max_pending=0, drain=0.0))
    start(client, "/")
    reply = client.request("POST", "/", accept=accept)
    Row("full", status=503, headers={**REFUSED, "Retry-After": "5"}).check(reply, "")
    assert ("json" in reply["Content-Type"]) is ("json" in accept)
    assert len(site.registry.jobs()) == 1


@everywhere
def test_who_waits_long_enough_gets_the_response_itself(opens: Opener) -> None:
    play = Play()
    play.answers(b"made", "201 Created", [("Content-Type", "text/x"), ("X-Own", "1"), ("Location", "/made")])
    _, client = opens(play)
    reply = client.request("POST", "/slow?a=1", prefer="wait=30")
    Row(
        "in time",
        status=201,
        headers={
            "Content-Type": "text/x",
            "X-Own": "1",
            "Location": "/made",
            "Preference-Applied": "wait=30",
            "Content-Location": re.compile(rf"\?a=1&_t={UUID}&_view=result"),
            "Cache-Control": "private, no-cache",
        },
        text="made",
    ).check(reply, "")
    assert client.request("GET", "/slow" + reply["Content-Location"]).text == "made"


# With a token, while it runs: it has printed "line 1\n" and is at 1 of 4.

LIVE = {**OF_A_JOB, "Job-State": "running", "Job-Progress": "25.0"}
PACED = {**LIVE, "Retry-After": "1", "Job-Poll": "1"}
PAGED = {**PACED, "Content-Type": TEXT, "Job-Offset": "0", "Job-Next-Offset": "7", "Content-Length": "7"}


@rows(
    Row("the page", asks={"accept": BROWSER}, headers={**LIVE, **PAGE}),
    Row("a page of the log", query="&_offset=0", headers=PAGED, text="line 1\n"),
    Row("a page of the log, paced", query="&_offset=0&_every=1.5", headers=PAGED, text="line 1\n"),
    Row(
        "nothing new",
        query="&_offset=7",
        headers={**PAGED, "Job-Offset": "7", "Content-Length": "0"},
        text="",
    ),
    Row(
        "nothing new, nor soon",
        query="&_offset=7&_wait=0.01",
        headers={**PAGED, "Job-Offset": "7", "Content-Length": "0"},
        text="",
    ),
    Row("the tail of the log", query="&_offset=-3", headers={**PAGED, "Job-Offset": "4", "Content-Length": "3"}),
    Row("behind the end", query="&_offset=99", headers={**PAGED, "Job-Offset": "7", "Content-Length": "0"}, text=""),
    Row(
        "a range",
        asks={"range": "bytes=5-"},
        status=206,
        headers={**PACED, "Content-Range": "bytes 5-6/*", "Content-Length": "2"},
        text="1\n",
    ),
    Row(
        "a range of what is not there yet",
        asks={"range": "bytes=7-"},
        status=416,
        headers={**PACED, "Content-Range": "bytes */7", "Content-Length": "0"},
        text="",
    ),
    Row("HEAD of the log", "HEAD", headers={**PACED, "Content-Length": "7", "Content-Type": TEXT}, text=""),
    Row("HEAD of a page of it", "HEAD", "&_offset=0&_wait=30", headers=PAGED, text=""),
    Row("HEAD of the page", "HEAD", asks={"accept": BROWSER}, headers={**LIVE, **PAGE}, text=""),
    Row("HEAD of the state", "HEAD", "&_view=status&_wait=30", headers=PACED, text=""),
    Row("HEAD of the result", "HEAD", "&_view=result&_wait=30", status=202, headers=PACED, text=""),
    Row("HEAD of the events", "HEAD", "&_view=events", headers=LIVE, text=""),
    Row("the state", asks={"accept": "application/json"}, headers={**PACED, "Content-Type": "application/json"}),
    Row("the state, waited for", query="&_view=status&_wait=0.01", headers=PACED),
    Row("the result", query="&_view=result", status=202, headers={**PACED, "Content-Type": "application/json"}),
    Row(
        "the result, waited for",
        query="&_view=result",
        asks={"prefer": "wait=0"},
        status=202,
        headers={**PACED, "Preference-Applied": "wait=0"},
    ),
    Row("DELETE", "DELETE", status=202, headers={**PACED, "Content-Type": "application/json"}),
    Row("a program's form", "POST", body=b"_action=cancel", asks=FORM, status=202, headers=PACED),
    Row(
        "a browser's form",
        "POST",
        body=b"_action=cancel",
        asks={**FORM, "accept": BROWSER, "sec_fetch_site": "same-origin"},
        status=303,
        headers={**ALWAYS, "Location": "?_t={T}"},
    ),
    Row("DELETE from another site", "DELETE", asks={"sec_fetch_site": "cross-site"}, status=403, headers=ALWAYS),
    Row(
        "a form from another site",
        "POST",
        body=b"_action=cancel",
        asks={**FORM, "origin": "https://evil.example"},
        status=403,
        headers=ALWAYS,
    ),
    *(
        Row(f"{method} is as GET", method, "&_offset=0", body=b"x" * 9, headers=PAGED, text="line 1\n")
        for method in ("POST", "PUT", "PATCH", "OPTIONS", "PROPFIND", "QUERY")
    ),
    Row("no slot for events", query="&_view=events", status=503, headers={**ALWAYS, "Retry-After": "1"}),
)
@everywhere
def test_with_a_token_while_it_runs(opens: Opener, row: Row) -> None:
    play = Play()
    _, client = opens(play, stream_slots=0 if row.says.startswith("no slot") else 2)
    target = start(client, "/slow")
    play.does(lambda: progress(1, 4))
    play.prints("line 1\n")
    row.check(client.request(row.method, target + row.query, row.body, **row.asks), token_of(target))
    assert play.calls == 1, "the app is never called"


@pytest.mark.parametrize("method", ["GET", "POST"])
@everywhere
def test_the_log_is_followed_live_to_the_end(opens: Opener, method: str) -> None:
    play = Play()
    _, client = opens(play)
    target = start(client, "/slow")
    play.prints("line 1\n")
    with client.stream(method, target, accept="*/*") as (status, sent, chunks):
        headers = dict(sent)
        assert status == 200
        assert headers.items() >= {**OF_A_JOB, "Content-Type": TEXT, "X-Accel-Buffering": "no"}.items()
        assert "Content-Length" not in headers
        assert "Retry-After" not in headers
        assert next(chunks) == b"line 1\n"
        play.prints("line 2\n")
        assert next(chunks) == b"line 2\n"
        play.answers()
        assert next(chunks, None) is None


# With a token, when it has ended.

OVER = {**OF_A_JOB, "Job-State": "finished", "Retry-After": None, "Job-Poll": None}
OVER_PAGED = {**OVER, "Job-Offset": "0", "Job-Next-Offset": "7", "Content-Length": "7"}
REPLAYED = {
    "Content-Type": "text/x",
    "X-Own": "1",
    "Cache-Control": "private, no-cache",
    "Content-Length": "8",
    "Accept-Ranges": "bytes",
    "X-Robots-Tag": None,
}


@rows(
    Row("the page", asks={"accept": BROWSER}, headers={**OVER, **PAGE}),
    Row("the log", headers={**OVER, "Content-Type": TEXT, "Content-Length": "7"}, text="line 1\n"),
    Row("a page of the log", query="&_offset=0&_every=1", headers=OVER_PAGED, text="line 1\n"),
    Row("nothing new", query="&_offset=7&_wait=30", headers={**OVER_PAGED, "Job-Offset": "7", "Content-Length": "0"}),
    Row("the tail", query="&_offset=-3", headers={**OVER_PAGED, "Job-Offset": "4", "Content-Length": "3"}),
    Row(
        "a range",
        asks={"range": "bytes=5-"},
        status=206,
        headers={**OVER, "Content-Range": "bytes 5-6/7"},
        text="1\n",
    ),
    Row(
        "a range behind the end",
        asks={"range": "bytes=7-"},
        status=416,
        headers={**OVER, "Content-Range": "bytes */7"},
        text="",
    ),
    Row("HEAD of the log", "HEAD", headers={**OVER, "Content-Length": "7"}, text=""),
    Row("HEAD of the result", "HEAD", "&_view=result", headers=REPLAYED, text=""),
    Row("HEAD of the page", "HEAD", asks={"accept": BROWSER}, headers={**OVER, **PAGE}, text=""),
    Row("HEAD of the events", "HEAD", "&_view=events", headers=OVER, text=""),
    Row("the state", query="&_wait=30", asks={"accept": "application/json"}, headers=OVER),
    Row("no events are left", query="&_view=events", asks={"last_event_id": "7;done"}, status=204, text=""),
    Row("the result", query="&_view=result", headers=REPLAYED, text="the body"),
    Row("the result, waited for", query="&_view=result&_wait=30", headers=REPLAYED, text="the body"),
    Row(
        "the result, preferred to be waited for",
        query="&_view=result",
        asks={"prefer": "wait=100"},
        headers={**REPLAYED, "Preference-Applied": "wait=30"},
        text="the body",
    ),
    Row("DELETE", "DELETE", headers={**OVER, "Content-Type": "application/json"}),
    Row("a program's form", "POST", body=b"_action=cancel", asks=FORM, headers=OVER),
    Row("DELETE from another site", "DELETE", asks={"sec_fetch_site": "cross-site"}, status=403, headers=ALWAYS),
    *(
        Row(f"{method} is as GET", method, body=b"x" * 9, headers=OVER, text="line 1\n")
        for method in ("POST", "PUT", "PATCH", "OPTIONS", "PROPFIND", "QUERY")
    ),
)
@everywhere
def test_with_a_token_when_it_has_ended(opens: Opener, row: Row) -> None:
    play = Play()
    site, client = opens(play)
    target = start(client, "/slow")
    play.prints("line 1\n")
    play.answers(b"the body", headers=[("Content-Type", "text/x"), ("X-Own", "1")])
    before = ended(site, target)
    row.check(client.request(row.method, target + row.query, row.body, **row.asks), token_of(target))
    assert play.calls == 1
    assert site.registry.get(before.key) == before, "nothing changes"


@everywhere
def test_events_are_replayed_to_the_end(opens: Opener) -> None:
    play = Play()
    site, client = opens(play)
    target = start(client, "/slow")
    play.prints("line 1\n")
    play.answers()
    ended(site, target)
    reply = client.request("GET", target, accept="text/event-stream")
    Row("events", headers={**OVER, "X-Accel-Buffering": "no"}).check(reply, "")
    assert [event.kind for event in events_of(reply.body)] == ["message", "done"]


def fail() -> None:
    raise ValueError("as told")


@pytest.mark.parametrize(
    ("how", "status", "kind"), [("raised", 500, "failed"), ("cancelled", 410, "cancelled"), ("lost", 502, "lost")]
)
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the validator wants its iterable closed
@everywhere
def test_a_result_that_never_was(opens: Opener, how: str, status: int, kind: str) -> None:
    play = Play()
    site, client = opens(play)
    target = start(client, "/slow")
    play.begins()
    if how == "raised":
        play._steps.put(fail)
    elif how == "cancelled":
        client.request("DELETE", target)
        play._steps.put(lambda: print("interrupted here"))
    else:
        opens.lose(site, target)
    ended(site, target)
    reply = client.request("GET", f"{target}&_view=result", accept="application/json")
    assert (reply.status, reply.json["type"]) == (status, f"urn:bgmiddleware:problem:{kind}")
    assert reply["Job-State"] == {"raised": "failed"}.get(how, how)
    assert client.request("GET", f"{target}&_view=status").status == 200, "a status is of the representation"


VIEWS = ("", "&_view=log", "&_view=page", "&_view=status", "&_view=events", "&_view=result", "&_offset=0", "&_view=x")


@everywhere
def test_what_is_unknown_or_expired_is_said_in_every_view(opens: Opener) -> None:
    clock, play = Clock(), Play()
    site, client = opens(play, registry=MemoryRegistry(ttl=100.0, clock=clock))
    target = start(client, "/slow")
    play.answers()
    ended(site, target)
    clock.ahead = 101.0
    for view in VIEWS:
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
            if view == "&_view=result" and method in ("POST", "PUT"):
                continue  # from the replayed document itself: a request of its own
            unknown = client.request(method, f"/slow?_t={UNKNOWN}{view}")
            Row("unknown", status=404, headers=OF_A_JOB).check(unknown, "")
            Row("expired", status=410, headers=OF_A_JOB).check(client.request(method, target + view), "")
    assert play.calls == 1


@everywhere
def test_a_form_of_the_replayed_document_is_a_fresh_request(opens: Opener) -> None:
    play = Play()
    play.answers()
    site, client = opens(play)
    target = start(client, "/slow?a=1")
    ended(site, target)
    play.answers()
    query = target.partition("?")[2]
    again = start(client, f"/slow?{query}&_view=result&_wait=5&b=2", body=b"x=1")
    assert token_of(again) != token_of(target)
    assert re.fullmatch(rf"/slow\?a=1&b=2&_t={UUID}", again)
    ended(site, again)
    assert play.environs[-1]["QUERY_STRING"] == "a=1&b=2"


# Which representation.

ACCEPT = {
    "Chromium": (
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,"
        "application/signed-exchange;v=b3;q=0.7",
        "page",
    ),
    "Firefox": ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "page"),
    "Firefox before 128": (
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/png,image/svg+xml,*/*;q=0.8",
        "page",
    ),
    "Safari": ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "page"),
    "lynx": ("text/html, text/plain, text/sgml, text/css, application/xhtml+xml, */*;q=0.01", "page"),
    "curl": ("*/*", "log"),
    "wget": ("*/*", "log"),
    "requests": ("*/*", "log"),
    "httpx": ("*/*", "log"),
    "fetch()": ("*/*", "log"),
    "htmx": ("*/*", "log"),
    "httpie": ("*/*", "log"),
    "Go": (None, "log"),
    "urllib": (None, "log"),
    "axios": ("application/json, text/plain, */*", "status"),
    "jQuery.getJSON": ("application/json, text/javascript, */*; q=0.01", "status"),
    "jQuery.ajax(dataType: text)": ("text/plain, */*; q=0.01", "log"),
    "jQuery.ajax(dataType: html)": ("text/html, */*; q=0.01", "page"),
    "httpie --json": ("application/json, */*;q=0.5", "status"),
    "EventSource": ("text/event-stream", "events"),
    "OkHttp, Retrofit": ("application/json; charset=utf-8", "status"),
    "RestSharp": ("application/json, text/json, text/x-json, text/javascript, application/xml, text/xml", "status"),
    "Java URLConnection": ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", "log"),  # "*" is no media range
    "a Firefox image": ("image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5", None),
    "a style": ("text/css,*/*;q=0.1", None),
    "Mercurial": ("application/mercurial-0.1", None),
    "git": ("application/x-git-upload-pack-result", None),
    "pip": (
        "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html; q=0.1, text/html; q=0.01",
        None,
    ),
    "a table": ("text/csv", None),
    "a table, or whatever there is": ("text/csv, */*;q=0.1", None),
    "a table rather than a page": ("text/csv, text/html;q=0.9", None),
    "a page rather than a table": ("text/html, text/csv;q=0.9", "page"),
    "a table and a page, in this order": ("text/csv, text/html", None),
    "a table, which is refused": ("text/csv;q=0, text/html", "page"),
    "jQuery.ajax(dataType: xml)": ("text/xml, */*; q=0.01", None),
    "JSON, or what is wrong": ("application/problem+json, application/json", "status"),
    # Rules rather than clients.
    "the best q": ("text/html;q=0.5, application/json;q=0.9, text/plain;q=0.7", "status"),
    "named outright before a wildcard": ("*/*, application/json", "status"),
    "the client's order": ("text/event-stream, text/html, text/plain", "events"),
    "the client's order the other way": ("text/plain, text/html", "log"),
    "a wildcard is never the page": ("text/*", "log"),
    "nor where text is refused": ("text/plain;q=0, */*", "status"),
    "nor where nothing else is left": ("text/plain;q=0, application/json;q=0, */*", None),
    "nor are events": ("text/plain;q=0, text/*", None),
    "the page is refused": ("text/html;q=0, */*;q=0.1", "log"),
    "UTF-8 is what we speak": ('text/html;charset="UTF-8", text/plain;q=0.1', "page"),
    "another parameter is another type": ("text/html;level=1, text/plain;q=0.1", "log"),
    "empty": ("", "log"),
    "not readable": ("text//html;;;", "log"),
    "only an image": ("image/png", None),
    "nothing at all": ("*/*;q=0", None),
    "another JSON": ("application/hal+json", None),
}
TYPES = {
    "log": TEXT,
    "status": "application/json",
    "page": "text/html; charset=utf-8",
    "events": "text/event-stream; charset=utf-8",
}


@pytest.fixture(params=BOTH)
def running(request: pytest.FixtureRequest) -> Iterator[tuple[Client, str]]:
    for opens in opened(request):
        play = Play()
        _, client = opens(play)
        target = start(client, "/slow?x=1")
        play.prints("line 1\n")
        yield client, target


@pytest.mark.parametrize("name", ACCEPT)
def test_each_client_gets_what_it_means(running: tuple[Client, str], name: str) -> None:
    client, target = running
    accept, view = ACCEPT[name]
    asks = {} if accept is None else {"accept": accept}
    reply = client.request("HEAD", target, **asks)
    assert reply["Vary"] == ("Accept, Accept-Language" if view == "page" else "Accept")
    assert reply.status == (200 if view else 503)
    if view:
        assert reply["Content-Type"] == TYPES[view]
    else:  # it means the response, which is not there yet
        assert int(reply["Retry-After"]) > 0
    started = client.request("POST", "/slow", **asks)
    assert started.status == (202 if view == "status" and accept and "application/json" in accept else 303)
    assert started["Vary"] == "Accept, Prefer"


CSV = {"accept": "text/csv"}


def test_who_can_use_none_of_our_views_gets_the_response_when_it_is_there(opens: Opener) -> None:
    play = Play()
    site, client = opens(play)
    started = client.request("GET", "/slow?x=1", **CSV)
    assert started.status == 303, "it was not done in time"
    assert (reply := client.request("GET", f"/slow{started['Location']}", **CSV)).status == 503
    assert (int(reply["Retry-After"]) > 0, reply["Job-State"]) == (True, "running")
    play.answers(b"a,b", "200 Rows follow", [("Content-Type", "text/csv")])
    ended(site, f"/slow{started['Location']}")
    reply = client.request("GET", f"/slow{started['Location']}", **CSV)
    assert (reply.status, reply.body, reply["Content-Type"]) == (200, b"a,b", "text/csv")
    assert reply["Job-State"] == "finished"


def test_who_can_use_none_of_our_views_waits_for_the_response(opens: Opener, monkeypatch: Any) -> None:
    monkeypatch.setattr(starter, "_LONGEST_WAIT", WAIT)
    monkeypatch.setattr(result, "PATIENCE", WAIT)
    play = Play()
    _, client = opens(play)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.request, "GET", "/slow", **CSV)
        play.begins()
        play.answers(b"a,b", headers=[("Content-Type", "text/csv")])
        reply = waiting.result()
        assert (reply.status, reply.body) == (200, b"a,b")
        assert re.fullmatch(rf"\?_t={UUID}&_view=result", reply["Content-Location"])
        target = start(client, "/slow")
        waiting = pool.submit(client.request, "GET", target, **CSV)
        play.begins()
        play.answers(b"c,d")
        assert waiting.result().body == b"c,d"


def test_each_answer_about_a_job_says_where_its_response_and_its_output_are(opens: Opener) -> None:
    play = Play()
    site, client = opens(play)
    started = client.request("POST", "/slow?x=1")
    token = token_of(started["Location"])
    links = f'<?_t={token}&_view=result>; rel="enclosure", <?_t={token}&_view=log>; rel="monitor"'
    links += f', <?_t={token}&_view=status>; rel="status"'
    target = f"/slow{started['Location']}"
    replies = [started, client.request("DELETE", target), client.request("GET", f"{target}&_offset=0")]
    replies += [client.request("HEAD", f"{target}&_view={view}") for view in ("page", "status", "result", "events")]
    play.answers(b"done")
    ended(site, target)
    replies.append(client.request("GET", f"{target}&_view=result"))
    for reply in replies:
        assert reply["Link"] == links
        assert "Job-State" in reply
    assert "Link" not in client.request("GET", f"{target}&_view=app.js")


@pytest.mark.parametrize("view", TYPES)
@pytest.mark.parametrize("accept", ["image/png", "*/*", BROWSER, "application/json", "text/event-stream"])
def test_a_view_that_is_named_overrides_accept(running: tuple[Client, str], view: str, accept: str) -> None:
    client, target = running
    reply = client.request("HEAD", f"{target}&_view={view}", accept=accept)
    assert (reply.status, reply["Content-Type"]) == (200, TYPES[view])


@everywhere
def test_a_view_can_be_named_before_the_start(opens: Opener) -> None:
    play = Play()
    site, client = opens(play)
    target = start(client, "/slow?_view=result")
    assert re.fullmatch(rf"/slow\?_view=result&_t={UUID}", target)
    play.answers(b"at once")
    ended(site, target)
    assert client.request("GET", target).body == b"at once"


# Preferences are read as RFC 7240 says, and quickly.


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait=0", "wait=0"),
        ("WAIT=0", "wait=0"),
        ('wait="0"', "wait=0"),
        ("wait = 0 ; x=y, foo", "wait=0"),
        ("wait=0, wait=7", "wait=0"),
        ("handling=lenient; a=b, wait=0", "wait=0"),
        ("wait=00", "wait=0"),
        ("wait=0.5", None),
        ("wait=-1", None),
        ("wait", None),
        ('wait=""', None),
        ("wait=soon", None),
        ('foo="wait=0"', None),
    ],
)
def test_the_preference_that_was_applied_is_said_exactly(opens: Opener, prefer: str, applied: str | None) -> None:
    _, client = opens(Play())
    reply = client.request("POST", "/", prefer=prefer)
    assert reply.status == 303
    Row("applied", status=303, headers={"Preference-Applied": applied}).check(reply, "")


@pytest.mark.parametrize(
    "prefer",
    ["a=" + " " * 20_000 + '"', ',a;\\"' * 5_000, "a" + " " * 20_000 + "b", 'a;""' * 5_000 + '"', "=," * 10_000],
)
def test_an_odd_preference_is_read_once_from_end_to_end(prefer: str) -> None:
    # It took the regular expression of before seconds to minutes, with each request of the site.
    assert not marks.prefers_async({"HTTP_PREFER": prefer})


# Where nothing can be held, nothing is.


@everywhere
def test_a_server_with_one_thread_is_never_held(opens: Opener) -> None:
    play = Play()
    site = opens.site(play)

    def single_threaded(environ: dict[str, Any], start_response: Any) -> Any:
        return site({**environ, "wsgi.multithread": False}, start_response)

    client = opens.client(single_threaded)
    reply = client.request("POST", "/", prefer="wait=30")
    assert reply.status == 303
    assert "Preference-Applied" not in reply
    target = "/" + reply["Location"]
    play.prints("abc")
    assert so_far(client, target).text == "abc"
    assert client.request("GET", target, accept="text/event-stream").status == 503
    assert client.request("GET", f"{target}&_offset=3&_wait=30").text == ""
    assert client.request("GET", f"{target}&_view=status&_wait=30").json["state"] == "running"
    result = client.request("GET", f"{target}&_view=result", prefer="wait=30")
    assert result.status == 202
    assert "Preference-Applied" not in result, "it was not"
    assert isinstance(site, BackgroundMiddleware)
