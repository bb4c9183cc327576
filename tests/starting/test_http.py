"""The protocol as clients see it, in-process under ``wsgiref.validate`` and over HTTP to waitress."""

import io
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from wsgiref.validate import validator

import pytest

from bgmiddleware import (
    BackgroundMiddleware,
    Channel,
    ConfigurationError,
    JobState,
    MemoryRegistry,
    ThreadExecutor,
    _context,
    background,
    backgrounder,
    marks,
    progress,
)
from bgmiddleware._starting import starter
from tests.kit import apps
from tests.kit.clients import UUID, InProcess, OverHTTP, Reply, ended, environ, served, start, target_of
from tests.kit.fleets import celery_fleet, rq_fleet  # noqa: F401  # fixtures
from tests.kit.readers import EVERYWHERE, executed, so_far
from tests.kit.redis_server import redis_server_of_module  # noqa: F401  # a fixture of theirs

Client = InProcess | OverHTTP
UNKNOWN = "6b9f2e1c-0000-4000-8000-000000000000"


class Clock:
    """Real time, plus what a test adds."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def stage() -> apps.Stage:
    return apps.Stage()


@pytest.fixture
def site(stage: apps.Stage, clock: Clock) -> Iterator[BackgroundMiddleware]:
    """The directed app, its slow paths marked, validators inside."""
    with BackgroundMiddleware(
        validator(stage),
        when=marks.any_of(marks.path("/slow*"), marks.prefers_async),
        registry=MemoryRegistry(ttl=100.0, clock=clock),
        executor=ThreadExecutor(max_workers=2, max_pending=1, drain=0.0),
        max_body=1000,
        stream_slots=4,
    ) as app:
        yield app
        stage.go(100)


@pytest.fixture(params=["in-process", "waitress"])
def client(site: BackgroundMiddleware, request: pytest.FixtureRequest) -> Iterator[Client]:
    with connected(site, request.param) as made:
        yield made


def connected(app: Any, how: str) -> Any:
    import contextlib

    return served(app) if how == "waitress" else contextlib.nullcontext(InProcess(app))


@pytest.fixture(params=["in-process", "waitress"])
def client_of(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A function that gives a client of a new middleware around any app, marking everything."""
    import contextlib

    with contextlib.ExitStack() as stack:

        def make(app: Any, **options: Any) -> tuple[BackgroundMiddleware, Client]:
            options.setdefault("when", marks.always)
            options |= executed(request, stack, app, **options)
            made = stack.enter_context(BackgroundMiddleware(validator(app), **options))
            return made, stack.enter_context(connected(made, request.param))

        yield make


everywhere = pytest.mark.parametrize("client_of", EVERYWHERE, indirect=True)


# What is not marked.


def test_an_unmarked_request_goes_through_untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    # Where a decorator is used, the app is watched.
    monkeypatch.setattr(_context, "declared", False)
    seen: list[Any] = []
    iterable = [b"x"]

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append((environ, start_response, dict(environ)))
        return iterable

    given = environ("GET", "/")
    before = dict(given)

    def start_response(*arguments: Any) -> None: ...

    assert BackgroundMiddleware(app, when=marks.path("/slow"))(given, start_response) is iterable
    assert seen[0][0] is given
    assert seen[0][1] is start_response
    assert seen[0][2] == before


def test_an_unmarked_request_starts_nothing(client: Client, site: BackgroundMiddleware) -> None:
    assert client.request("GET", "/").body == b"fast"
    assert site.registry.jobs() == []


@pytest.mark.parametrize(
    "query", ["_t=1690000000", "_t=", "_t", f"x_t={UNKNOWN}", f"_t={UNKNOWN.upper()}1", f"_t=%7B{UNKNOWN}%7D"]
)
def test_a_token_parameter_that_is_no_uuid_belongs_to_the_app(client: Client, stage: apps.Stage, query: str) -> None:
    assert client.request("GET", f"/?{query}").body == b"fast"
    assert stage.environs[-1]["QUERY_STRING"] == query


# The start.


def test_a_marked_request_is_redirected_to_its_own_url_with_a_token(client: Client, stage: apps.Stage) -> None:
    reply = client.request("POST", "/slow/one?a=1&b=%20", b"abc")
    assert reply.status == 303
    assert re.fullmatch(rf"\?a=1&b=%20&_t={UUID}", reply["Location"])
    assert reply["Cache-Control"] == "no-store, no-transform"
    assert reply["Vary"] == "Accept, Prefer"
    assert reply["Job-State"] == "pending"
    assert reply.text.count("\n") == 1


def test_a_cache_buster_of_the_parameters_name_is_kept_in_the_redirect(client: Client, stage: apps.Stage) -> None:
    target = start(client, "/slow?_t=169")
    assert re.fullmatch(rf"/slow\?_t=169&_t={UUID}", target)
    stage.go(3)
    assert client.request("GET", target).text == "line 1\nline 2\nline 3\n"
    assert stage.environs[0]["QUERY_STRING"] == "_t=169"


@pytest.mark.parametrize(
    ("headers", "applied"),
    [
        ({"accept": "application/json"}, False),
        ({"accept": "application/json, text/plain, */*"}, False),
        ({"prefer": "respond-async"}, True),
        ({"prefer": "respond-async", "accept": "text/html"}, True),
    ],
)
def test_a_script_gets_the_state_with_202(client: Client, headers: dict[str, str], applied: bool) -> None:
    reply = client.request("POST", "/slow", b"", **headers)
    assert reply.status == 202
    assert reply["Content-Type"] == "application/json"
    assert reply["Location"] == f"?_t={reply.json['token']}"
    assert reply["Retry-After"] == "1"
    assert reply["Vary"] == "Accept, Prefer"
    assert reply.json["state"] == "pending"
    assert ("Preference-Applied" in reply) is applied
    if applied:
        assert reply["Preference-Applied"] == "respond-async"


@pytest.mark.parametrize("query", ["_every=soon", "_wait=-1", "_offset=x", "_view=nothing", "_every=&_every=nan"])
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_the_query_of_a_request_that_starts_a_job_is_the_apps_alone(site, method: str, query: str) -> None:
    assert InProcess(site).request(method, f"/slow?{query}", prefer="respond-async").status == 202


@pytest.mark.parametrize("accept", ["*/*", "text/html,application/xml;q=0.9,*/*;q=0.8", "text/plain", "image/png", "("])
def test_everybody_else_gets_a_redirect(client: Client, accept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "_LONGEST_WAIT", 0.0)  # a client that takes images only waits for the response itself
    assert client.request("POST", "/slow", accept=accept).status == 303


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {"sec_purpose": "prefetch"}, 503),
        ("GET", {"sec_purpose": "prefetch;prerender"}, 503),
        ("GET", {"purpose": "prefetch"}, 503),
        ("GET", {"x_moz": "prefetch"}, 503),
    ],
)
def test_what_is_no_real_request_starts_nothing(
    client: Client, site: BackgroundMiddleware, stage: apps.Stage, method: str, headers: dict[str, str], status: int
) -> None:
    reply = client.request(method, "/slow", **headers)
    assert reply.status == status
    assert "no-store" in reply["Cache-Control"]
    assert site.registry.jobs() == []
    assert stage.calls == []


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_a_head_and_an_options_request_are_the_apps(client_of: Any, method: str) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        allowed = ("Allow", "GET, POST"), ("Access-Control-Allow-Origin", "*")
        start_response("200 OK", [("Content-Type", "text/plain"), *allowed])
        return []

    site, client = client_of(app)
    reply = client.request(method, "/slow", origin="https://other.example", access_control_request_method="POST")
    assert (reply.status, reply["Allow"], reply["Access-Control-Allow-Origin"]) == (200, "GET, POST", "*")
    assert site.registry.jobs() == []


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_a_head_and_an_options_request_of_a_decorated_view_are_answered_by_it(client_of: Any, method: str) -> None:
    @backgrounder
    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("X-Seen", environ["REQUEST_METHOD"])])
        return []

    def framework(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["REQUEST_METHOD"] = "GET"  # as some do, to have a HEAD answered by what answers GET
        return view(environ, start_response)

    site, client = client_of(framework, when=marks.never)
    reply = client.request(method, "/slow")
    assert (reply.status, reply["X-Seen"]) == (200, "GET")
    assert site.registry.jobs() == []


def test_another_purpose_is_no_prefetch(client: Client) -> None:
    assert client.request("GET", "/slow", sec_purpose="navigation").status == 303


def test_a_body_that_just_fits_is_taken_and_one_byte_more_is_413(
    client: Client, site: BackgroundMiddleware, stage: apps.Stage
) -> None:
    target = start(client, "/slow?1", body=b"x" * 1000)
    reply = client.request("POST", "/slow", b"x" * 1001)
    assert reply.status == 413
    assert reply.text == "the request body is larger than 1000 bytes.\n"
    assert len(site.registry.jobs()) == 1
    stage.go()
    ended(site, target)
    assert client.request("GET", target + "&_view=result").body == b"you sent: " + b"x" * 1000


def test_a_full_queue_is_503_and_says_when_to_come_back(client: Client, site: BackgroundMiddleware) -> None:
    for _ in range(3):  # two run, one waits
        start(client, "/slow")
    reply = client.request("POST", "/slow")
    assert reply.status == 503
    assert reply["Retry-After"] == "5"
    assert "2 jobs are running and 1 are waiting" in reply.text
    assert len(site.registry.jobs()) == 3, "nothing is kept of what was refused"


def test_problems_are_json_for_who_reads_json(client: Client) -> None:
    reply = client.request("GET", f"/slow?_t={UNKNOWN}", accept="application/json")
    assert reply.status == 404
    assert reply["Content-Type"] == "application/problem+json"
    assert reply.json == {
        "type": "urn:bgmiddleware:problem:unknown-job",
        "title": "Not Found",
        "status": 404,
        "detail": "There is no such job.",
    }


def test_a_server_of_several_processes_is_refused_with_the_remedy(
    site: BackgroundMiddleware, caplog: pytest.LogCaptureFixture
) -> None:
    given = environ("POST", "/slow")
    given["wsgi.multiprocess"] = True
    head: list[Any] = []
    with caplog.at_level("ERROR", "bgmiddleware"):
        said = b"".join(site(given, lambda *arguments: head.extend(arguments))).decode()
    assert head[0] == "500 Internal Server Error"
    for remedy in (
        "a registry that all processes share",
        'SpoolRegistry("/var/lib/…")',
        "RedisRegistry",
        "one process",
    ):
        assert remedy in said
        assert remedy in caplog.text
    assert site.registry.jobs() == []


# The readers.


def test_output_is_followed_live_and_ends_with_the_job(client: Client, stage: apps.Stage) -> None:
    target = start(client, "/slow")
    stage.go()
    with client.stream("GET", target, accept="*/*") as (status, headers, chunks):
        assert status == 200
        assert ("X-Accel-Buffering", "no") in headers
        assert not any(name == "Content-Length" for name, _ in headers)
        for number in (1, 2, 3):
            assert next(chunks) == f"line {number}\n".encode()
            stage.go()  # the next line is only printed when this one was seen
        assert next(chunks, None) is None


def test_a_late_reader_sees_all_from_the_start_and_so_does_the_next(client: Client, stage: apps.Stage) -> None:
    target = start(client, "/slow")
    stage.go(2)
    with client.stream("GET", target) as (_, _, chunks):
        seen = b""
        while seen != b"line 1\nline 2\n":
            seen += next(chunks)
    # That reader left. The job does not care, nor do others.
    with client.stream("GET", target) as (_, _, first), client.stream("GET", target) as (_, _, second):
        stage.go()
        assert b"".join(first) == b"".join(second) == b"line 1\nline 2\nline 3\n"
    assert stage.calls == ["/slow"]


def test_the_output_of_an_ended_job_has_a_length(client: Client, site: BackgroundMiddleware, stage: apps.Stage) -> None:
    target = start(client, "/slow")
    stage.go(3)
    ended(site, target)
    reply = client.request("GET", target)
    assert reply.text == "line 1\nline 2\nline 3\n"
    assert reply["Content-Length"] == "21"
    assert reply["Job-State"] == "finished"


def test_dropped_output_is_named_where_it_is_missing(client_of: Any) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        for number in range(100):
            print(f"{number:03}", end="")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    site, client = client_of(app, registry=MemoryRegistry(max_output=100))
    target = start(client, "/")
    ended(site, target)
    whole = "".join(f"{number:03}" for number in range(100))
    reply = client.request("GET", target)
    assert reply.text == whole[:50] + "\n[… 200 bytes of output were dropped here: 50 to 250 …]\n" + whole[250:]
    assert int(reply["Content-Length"]) == len(reply.body)
    page = client.request("GET", target + "&_offset=60")
    assert (page["Job-Offset"], page["Job-Next-Offset"], page.text) == ("250", "300", whole[250:])
    status = client.request("GET", target + "&_view=status").json
    assert status["output"] == {"start": 0, "end": 300, "dropped": [50, 250]}


@pytest.mark.parametrize(
    ("offset", "begin", "text"),
    [
        (0, 0, "line 1\nline 2\n"),
        (7, 7, "line 2\n"),
        (14, 14, ""),
        (99, 14, ""),
        (-4, 10, "e 2\n"),
        (-99, 0, "line 1\nline 2\n"),
    ],
)
def test_a_page_of_output_begins_at_its_offset(
    client: Client, site: BackgroundMiddleware, stage: apps.Stage, offset: int, begin: int, text: str
) -> None:
    target = start(client, "/slow?2")
    stage.go(2)
    ended(site, target)
    reply = client.request("GET", f"{target}&_offset={offset}")
    assert (reply.status, reply["Job-Offset"], reply["Job-Next-Offset"]) == (200, str(begin), str(begin + len(text)))
    assert (reply.text, reply["Content-Length"]) == (text, str(len(text)))


def test_a_page_waits_for_what_is_not_printed_yet(client: Client, stage: apps.Stage) -> None:
    target = start(client, "/slow")
    stage.go()
    first = client.request("GET", f"{target}&_offset=0&_wait=30")
    assert first.text == "line 1\n"
    stage.go()
    second = client.request("GET", f"{target}&_offset={first['Job-Next-Offset']}&_wait=30")
    assert second.text == "line 2\n"
    assert second["Retry-After"] == "1"
    assert client.request("GET", f"{target}&_offset=14&_wait=0").text == ""


def test_a_page_waits_for_the_end_too(client: Client, stage: apps.Stage) -> None:
    target = start(client, "/slow?1")
    stage.go()
    client.request("GET", f"{target}&_offset=0&_wait=30")
    reply = client.request("GET", f"{target}&_offset=7&_wait=30")
    assert (reply.text, reply["Job-State"]) == ("", "finished")
    assert "Retry-After" not in reply


@pytest.mark.parametrize(
    "parameter",
    [
        "_offset=x",
        "_offset=",
        "_offset=1e3",
        "_offset=--1",
        "_offset=" + "9" * 19,
        "_wait=x",
        "_wait=-1",
        "_wait=nan",
        "_view=x",
        "_view=",
    ],
)
def test_a_bad_parameter_is_400_and_named(client: Client, parameter: str) -> None:
    target = start(client, "/slow")
    reply = client.request("GET", f"{target}&_offset=0&{parameter}" if "wait" in parameter else f"{target}&{parameter}")
    assert reply.status == 400
    assert parameter.partition("=")[0] in reply.text


def test_head_tells_lengths_and_never_waits(client: Client, stage: apps.Stage, site: BackgroundMiddleware) -> None:
    target = start(client, "/slow?1")
    reply = client.request("HEAD", target)
    assert (reply.status, reply.body, reply["Content-Length"]) == (200, b"", "0")
    for view in ("status", "page", "result", "log"):
        reply = client.request("HEAD", f"{target}&_view={view}&_wait=30")
        assert reply.status == (202 if view == "result" else 200)
        assert reply.body == b""
    stage.go()
    ended(site, target)
    assert client.request("HEAD", target)["Content-Length"] == "7"
    assert client.request("HEAD", f"{target}&_view=result")["Content-Length"] == "10"


def test_the_state_is_json(client: Client, site: BackgroundMiddleware, stage: apps.Stage) -> None:
    target = start(client, "/slow?1")
    token = target.rpartition("=")[2]
    stage.go()
    ended(site, target)
    reply = client.request("GET", target, accept="application/json")
    document = reply.json
    assert reply["Content-Type"] == "application/json"
    assert document["created_at"] <= document["started_at"] <= document["ended_at"]
    assert 0 <= document.pop("elapsed") == pytest.approx(document["ended_at"] - document["started_at"])
    receipt = document.pop("receipt")
    assert receipt.pop("runner") == f"{socket.gethostname()}:{os.getpid()}"
    assert receipt.pop("version") is None
    assert receipt.pop("run_time") == pytest.approx(document["ended_at"] - document["started_at"])
    assert receipt.pop("queue_wait") == pytest.approx(document["started_at"] - document["created_at"])
    assert receipt.pop("cpu_time") >= 0
    assert receipt.pop("steps") == []
    assert receipt == {}
    for name in ("created_at", "started_at", "ended_at"):
        assert isinstance(document.pop(name), float)
    assert document == {
        "token": token,
        "priority": "normal",
        "queue": None,
        "title": "POST /slow?1",
        "state": "finished",
        "reason": "",
        "progress": None,
        "steps": [],
        "steps_unlisted": 0,
        "cancel_requested_at": None,
        "stopping": None,
        "waiting_for": None,
        "output": {"start": 0, "end": 7, "dropped": None},
        "estimate": None,
        "status_code": 201,
        "response": {"status": "201 Created", "content_type": "text/plain", "attachment": False},
        "rerun_of": None,
        "rerun_as": None,
        "retry": None,
        "kept": False,
        "links": {
            "self": f"?1&_t={token}",
            "log": f"?1&_t={token}&_view=log",
            "lines": f"?1&_t={token}&_view=lines",
            "events": f"?1&_t={token}&_view=events",
            "status": f"?1&_t={token}&_view=status",
            "cast": f"?1&_t={token}&_view=cast",
            "result": f"?1&_t={token}&_view=result",
            "cancel": f"?1&_t={token}",
            "rerun": None,
        },
    }


def test_the_state_waits_for_news(client: Client, stage: apps.Stage) -> None:
    target = start(client, "/slow?2")
    stage.go()
    assert client.request("GET", f"{target}&_view=status&_offset=0&_wait=30").json["output"]["end"] == 7
    stage.go()
    assert client.request("GET", f"{target}&_view=status&_offset=7&_wait=30").json["output"]["end"] == 14


def test_progress_is_in_the_state_and_the_headers(client_of: Any) -> None:
    reported, go_on = threading.Event(), threading.Event()

    def app(environ: Any, start_response: Any) -> list[bytes]:
        progress(1, 4, "sorting <rows>")
        reported.set()
        go_on.wait(apps.WAIT)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    _, client = client_of(app)
    target = start(client, "/")
    assert reported.wait(apps.WAIT)
    reply = client.request("GET", f"{target}&_view=status")
    assert reply.json["progress"] == {"done": 1, "total": 4, "percent": 25.0, "message": "sorting <rows>"}
    assert reply["Job-Progress"] == "25.0"
    page = client.request("GET", target, accept="text/html").text
    assert re.search(r'<progress [^>]* value="25.0">', page)
    assert ">sorting &lt;rows&gt; 1 of 4<" in page
    go_on.set()


def test_the_result_is_the_apps_own_response_as_often_as_asked(
    client: Client, site: BackgroundMiddleware, stage: apps.Stage
) -> None:
    target = start(client, "/slow?1", body=b"abc")
    stage.entered()
    running = client.request("GET", f"{target}&_view=result")
    assert (running.status, running["Retry-After"], running.json["state"]) == (202, "1", "running")
    stage.go()
    ended(site, target)
    for _ in range(3):
        reply = client.request("GET", f"{target}&_view=result")
        assert (reply.status, reply.body) == (201, b"you sent: abc")
        assert (reply["Content-Type"], reply["X-Made-By"], reply["Set-Thing"]) == ("text/plain", "the app", "1")
        assert reply["Cache-Control"] == "private, no-cache"
        assert reply["Content-Length"] == "13"
    assert stage.calls == ["/slow"]


def test_the_result_can_be_waited_for(client: Client, stage: apps.Stage) -> None:
    target = start(client, "/slow?1")
    stage.go()
    assert client.request("GET", f"{target}&_view=result&_wait=30").status == 201


@everywhere
@pytest.mark.parametrize(
    ("app", "state", "status", "body"),
    [
        (apps.answers_500, JobState.FAILED, 500, b"sorry"),
        (apps.empty, JobState.FINISHED, 204, b""),
        (apps.large, JobState.FINISHED, 200, b"".join(bytes([number]) * 10_000 for number in range(100))),
    ],
)
def test_any_response_of_the_app_is_replayed(
    client_of: Any, app: Any, state: JobState, status: int, body: bytes
) -> None:
    site, client = client_of(app)
    target = start(client, "/")
    assert ended(site, target).state is state
    reply = client.request("GET", f"{target}&_view=result")
    assert (reply.status, reply.body) == (status, body)


@everywhere
@pytest.mark.parametrize(
    ("app", "reason"),
    [
        (apps.raises_before, "ValueError: before the response"),
        (apps.raises_after, "ValueError: after start_response"),
        (apps.raises_in_body, "ValueError: in mid-body"),
    ],
)
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # the inner validator wants close() sooner
def test_an_app_that_raises_leaves_its_traceback_and_a_500(client_of: Any, app: Any, reason: str) -> None:
    site, client = client_of(app)
    target = start(client, "/")
    job = ended(site, target)
    assert (job.state, job.reason) == (JobState.FAILED, reason)
    output = client.request("GET", target).text
    assert "Traceback (most recent call last)" in output
    assert f"in {app.__name__}" in output
    assert output.endswith(f"\n{reason}\n\n[the job failed: {reason}]\n")
    reply = client.request("GET", f"{target}&_view=result")
    assert reply.status == 500
    assert reason in reply.text


@everywhere
def test_odd_output_arrives_as_it_was(client_of: Any) -> None:
    site, client = client_of(apps.prints_odd_things)
    target = start(client, "/")
    assert ended(site, target).state is JobState.FINISHED
    reply = client.request("GET", target)
    head = b"bytes \xff\xfe\nlone \\ud800 surrogate\nnul \0 nul\n" + "ünïcode ☃\n".encode()
    assert reply.body == head + b"x" * 10_000_000 + b"\n"
    page = client.request("GET", target, accept="text/html")
    assert page.status == 200
    assert len(page.body) < 45_000 + 64 * 1024, "the page, and the end of the output"


def test_pages_are_cut_between_characters(client_of: Any) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        print("x" + "☃" * 200_000)  # 600,002 bytes: 256 KiB is within a character
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    site, client = client_of(app)
    target = start(client, "/")
    ended(site, target)
    text, offset, pages = "", 0, 0
    while offset < 600_002:
        reply = client.request("GET", f"{target}&_offset={offset}")
        text += reply.text  # would raise in mid-character
        offset = int(reply["Job-Next-Offset"])
        pages += 1
    assert (text, pages) == ("x" + "☃" * 200_000 + "\n", 3)
    assert client.request("GET", f"{target}&_offset=-6").text == "☃\n", "a tail begins at a character too"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "OPTIONS"])
def test_a_request_with_a_token_never_reaches_the_app(
    client: Client, site: BackgroundMiddleware, stage: apps.Stage, method: str
) -> None:
    target = start(client, "/slow?1")
    stage.go()
    ended(site, target)
    reply = client.request(method, target, b"x" * 100 if method != "GET" else b"")
    assert (reply.status, reply.text) == (200, "line 1\n"), "any other method is as GET: curl -X POST -L repeats it"
    assert client.request(method, f"/fast?_t={UNKNOWN}").status == 404
    assert stage.calls == ["/slow"]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        (None, "text/plain"),
        ("*/*", "text/plain"),
        ("text/plain", "text/plain"),
        ("text/*", "text/plain"),
        ("application/json", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        ("application/json, text/javascript, */*; q=0.01", "application/json"),
        ("application/*", "application/json"),
        ("text/html", "text/html"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8", "text/html"),
        ("text/html;q=0.5, application/json;q=0.9", "application/json"),
        ("text/html;q=0, */*", "text/plain"),
        ("nonsense//", "text/plain"),
    ],
)
def test_each_client_gets_the_view_it_names(client: Client, accept: str | None, content_type: str) -> None:
    target = start(client, "/slow")
    headers = {} if accept is None else {"accept": accept}
    reply = client.request("HEAD", target, **headers)
    assert reply["Content-Type"].partition(";")[0] == content_type
    assert reply["Vary"] == ("Accept, Accept-Language" if content_type == "text/html" else "Accept")


def test_who_takes_nothing_of_ours_gets_the_response(client: Client, stage: apps.Stage) -> None:
    target = start(client, "/slow?1")
    stage.go()
    assert client.request("GET", target, accept="image/png").status == 201


# The end of the token.


def test_an_expired_token_is_410_and_an_unknown_one_404(
    client: Client, site: BackgroundMiddleware, stage: apps.Stage, clock: Clock
) -> None:
    target = start(client, "/slow?1")
    stage.go()
    ended(site, target)
    clock.ahead = 99.0
    assert client.request("GET", target).status == 200
    clock.ahead = 101.0
    for view in ("", "&_view=log", "&_view=status", "&_view=page", "&_view=result", "&_offset=0"):
        reply = client.request("GET", target + view)
        assert (reply.status, "no-store" in reply["Cache-Control"]) == (410, True)
        reply = client.request("GET", f"/slow?_t={UNKNOWN}{view}")
        assert (reply.status, "no-store" in reply["Cache-Control"]) == (404, True)
    assert client.request("DELETE", target).status == 410
    assert client.request("DELETE", f"/slow?_t={UNKNOWN}").status == 404
    assert stage.calls == ["/slow"]


# Cancelling.


def endless(environ: Any, start_response: Any) -> list[bytes]:
    while True:
        print("still here")


def test_a_job_that_never_ends_is_cancelled_at_its_next_print(client_of: Any) -> None:
    site, client = client_of(endless, executor=ThreadExecutor(drain=0.0))
    target = start(client, "/")
    client.request("GET", f"{target}&_offset=0&_wait=30")  # it runs
    reply = client.request("DELETE", target)
    assert reply.status == 202
    assert reply.json["cancel_requested_at"] is not None
    job = ended(site, target)
    assert (job.state, job.reason) == (JobState.CANCELLED, "cancelled on request")
    assert client.request("GET", f"{target}&_view=result").status == 410
    assert client.request("DELETE", target).status == 200
    assert "still here" in client.request("GET", f"{target}&_offset=0").text


def test_a_form_cancels_and_goes_back_to_the_page(
    client: Client, stage: apps.Stage, site: BackgroundMiddleware
) -> None:
    target = start(client, "/slow")
    form = {"content_type": "application/x-www-form-urlencoded", "accept": "text/html,*/*;q=0.8"}
    reply = client.request("POST", target, b"_action=cancel", **form)
    assert reply.status == 303
    assert target_of(reply, "/slow") == target
    stage.go()
    assert ended(site, target).state is JobState.CANCELLED


def test_a_form_without_the_action_cancels_nothing(
    client: Client, stage: apps.Stage, site: BackgroundMiddleware
) -> None:
    target = start(client, "/slow?1")
    form = {"content_type": "application/x-www-form-urlencoded"}
    for body in (b"_action=other", b"x=cancel", b"\xff%ff=&&", b"a" * 100_000):
        assert client.request("POST", f"{target}&_offset=0", body, **form).status == 200
    stage.go()
    assert ended(site, target).state is JobState.FINISHED


def test_a_pending_job_is_cancelled_before_it_begins(
    client: Client, site: BackgroundMiddleware, stage: apps.Stage
) -> None:
    running = [start(client, "/slow"), start(client, "/slow")]
    pending = start(client, "/slow/pending")
    assert client.request("DELETE", pending).json["state"] == "cancelled"
    start(client, "/slow/next")  # its place in the queue is free
    stage.go(100)
    for target in running:
        ended(site, target)
    assert "/slow/pending" not in stage.calls


def test_a_job_that_finishes_anyway_says_that_a_cancel_was_asked_for(
    client: Client, site: BackgroundMiddleware, stage: apps.Stage
) -> None:
    target = start(client, "/slow?0")
    job = ended(site, target)
    assert client.request("DELETE", target).json["cancel_requested_at"] is None
    assert site.registry.get(job.key).state is JobState.FINISHED


def test_a_delete_is_not_redirected_since_a_client_that_repeats_it_there_would_cancel_the_job(
    client: Client, stage: apps.Stage
) -> None:
    reply = client.request("DELETE", "/slow")
    assert (reply.status, reply.json["state"] in ("pending", "running")) == (202, True)
    assert reply["Location"].startswith("?_t=")
    stage.go(1)


def test_what_is_wrong_with_the_site_is_told_to_its_log_where_clients_get_no_details() -> None:
    inner = BackgroundMiddleware(apps.Stage(), when=marks.always, details=False)
    with inner, BackgroundMiddleware(lambda environ, start: inner(environ, start), when=marks.prefers_async) as outer:
        reply = InProcess(outer).request("GET", "/slow")
    assert reply.status == 500
    assert "registry" not in reply.text


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"sec_fetch_site": "same-origin"}, True),
        ({"sec_fetch_site": "none"}, True),
        ({"sec_fetch_site": "same-site"}, False),
        ({"sec_fetch_site": "cross-site"}, False),
        ({"sec_fetch_site": "cross-site", "origin": "http://own.example", "host": "own.example"}, False),
        ({"origin": "http://own.example", "host": "own.example"}, True),
        ({"origin": "http://own.example:8080", "host": "own.example:8080"}, True),
        ({"origin": "http://own.example", "host": "own.example:80"}, True),
        ({"origin": "http://own.example:80", "host": "OWN.example"}, True),
        ({"origin": "https://own.example", "host": "own.example:443"}, True),
        ({"origin": "http://own.example", "host": "own.example:443"}, False),
        ({"origin": "https://own.example", "host": "own.example:80"}, False),
        ({"origin": "http://own.example", "host": "own.example:8080"}, False),
        ({"origin": "http://own.example:8080", "host": "own.example"}, False),
        ({"origin": "http://[::1]", "host": "[::1]:80"}, True),
        ({"origin": "http://own.example", "host": "inner:8000", "x_forwarded_host": "own.example"}, True),
        ({"origin": "http://own.example", "host": "inner:8000", "x_forwarded_host": "own.example:80"}, True),
        ({"origin": "http://own.example", "host": "inner", "x_forwarded_host": "cache, own.example"}, True),
        ({"origin": "http://evil.example", "host": "inner", "x_forwarded_host": "own.example"}, False),
        ({"origin": "http://own.example:81", "host": "own.example", "x_forwarded_port": "81"}, True),
        ({"origin": "http://own.example:81", "host": "own.example:80", "x_forwarded_port": "81"}, False),
        ({"origin": "https://own.example", "host": "inner", "forwarded": "for=1.2.3.4;host=own.example"}, True),
        ({"origin": "https://own.example", "host": "inner", "forwarded": 'proto=https; Host="own.example:443"'}, True),
        ({"origin": "https://own.example", "host": "inner", "forwarded": "for=own.example"}, False),
        ({"origin": "http://evil.example", "host": "own.example"}, False),
        ({"origin": "http://own.example.evil.example", "host": "own.example"}, False),
        ({"origin": "null", "host": "own.example"}, False),
        ({"origin": "http://[", "host": "own.example"}, False),
    ],
)
def test_another_site_cannot_cancel(client: Client, stage: apps.Stage, headers: dict[str, str], allowed: bool) -> None:
    target = start(client, "/slow")
    stage.entered()
    form = {"content_type": "application/x-www-form-urlencoded", **headers}
    assert client.request("POST", target, b"_action=cancel", **form).status == (202 if allowed else 403)
    asked = client.request("GET", f"{target}&_view=status").json["cancel_requested_at"] is not None
    assert asked is allowed
    assert client.request("DELETE", target, **headers).status == (202 if allowed else 403)


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"host": "127.0.0.1:8080", "x_forwarded_host": "own.example"}, True),
        ({"host": "127.0.0.1:8080", "x_forwarded_host": "Own.example, inner.example"}, True),
        ({"host": "127.0.0.1:8080", "x_forwarded_host": "evil.example"}, False),
        ({"host": "127.0.0.1:8080", "x_forwarded_host": ""}, False),
        ({"origin": "null", "host": "", "x_forwarded_host": ""}, False),
    ],
)
def test_behind_a_proxy_that_renames_the_host_the_page_can_cancel(
    site: BackgroundMiddleware, stage: apps.Stage, headers: dict[str, str], allowed: bool
) -> None:
    client = InProcess(site)  # waitress takes these headers from trusted proxies only
    target = start(client, "/slow")
    stage.entered()
    asked = {"origin": "http://own.example", **headers}
    assert client.request("DELETE", target, **asked).status == (202 if allowed else 403)


# Trouble.


def test_a_client_that_leaves_in_mid_follow_frees_its_thread(site: BackgroundMiddleware, stage: apps.Stage) -> None:
    with served(site, threads=1) as client:
        target = start(client, "/slow?3")
        stage.go()
        with client.stream("GET", target) as (_, _, chunks):
            assert next(chunks) == b"line 1\n"
        # The only thread of the server is free again, though the job prints nothing more.
        assert client.request("GET", "/").body == b"fast"
        stage.go(2)
        assert ended(site, target).state is JobState.FINISHED
        assert client.request("GET", target).text == "line 1\nline 2\nline 3\n"


def test_the_outputs_of_a_hundred_jobs_at_once_never_mix(client_of: Any) -> None:
    together = threading.Barrier(100)

    def app(environ: Any, start_response: Any) -> list[bytes]:
        together.wait(apps.WAIT)
        for _ in range(200):
            print(environ["PATH_INFO"])
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode()]

    site, client = client_of(app, executor=ThreadExecutor(max_workers=100))
    targets = {f"/{number}": start(client, f"/{number}") for number in range(100)}
    for path, target in targets.items():
        ended(site, target)
        assert client.request("GET", target).text == f"{path}\n" * 200
        assert client.request("GET", f"{target}&_view=result").text == path


def test_followers_beyond_the_slots_get_what_there_is(stage: apps.Stage) -> None:
    site = BackgroundMiddleware(stage, when=marks.always, stream_slots=2)
    client = InProcess(site)
    target = start(client, "/slow")
    stage.go()
    client.request("GET", f"{target}&_offset=0&_wait=30")
    with client.stream("GET", target) as (_, _, first), client.stream("GET", target):
        third = so_far(client, target)
        assert (third.text, third["Retry-After"], third["Job-State"]) == ("line 1\n", "1", "running")
        assert client.request("GET", f"{target}&_offset=7&_wait=30").text == "", "nor may it wait"
        assert next(first) == b"line 1\n"
    with client.stream("GET", target) as (_, headers, _):
        assert not any(name == "Retry-After" for name, _ in headers), "the slots were given back"
    stage.go(2)
    site.close()


def test_the_only_thread_of_a_server_is_never_held(site: BackgroundMiddleware, stage: apps.Stage) -> None:
    target = start(InProcess(site), "/slow")
    given = environ("GET", target)
    given["wsgi.multithread"] = False
    heads: list[Any] = []
    with pytest.raises(ConnectionResetError):
        next(iter(site(given, lambda *head: heads.append(head))))
    assert ("Retry-After", "1") in heads[0][1]


def test_what_runs_when_the_server_shuts_down_is_lost_with_its_output_kept(
    client: Client, site: BackgroundMiddleware, stage: apps.Stage
) -> None:
    iterating = threading.Event()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        print("begun")
        yield b"first"
        iterating.set()
        stage.step()
        yield b"second"

    site.app = app
    target = start(client, "/slow")
    assert iterating.wait(apps.WAIT)
    site.executor.shutdown(0.0)
    job = site.registry.jobs()[0]
    assert (job.state, job.reason) == (JobState.LOST, "server shut down")
    assert client.request("GET", target).text == "begun\n\n[the job was lost: server shut down]\n"
    reply = client.request("GET", f"{target}&_view=result")
    assert (reply.status, reply.text) == (502, "The job was lost: server shut down.\n")
    assert client.request("POST", "/slow").status == 503


def test_a_mark_by_a_decorator_replays_the_request_as_it_came(client_of: Any) -> None:
    seen: list[bytes] = []

    @backgrounder
    def view(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(environ["wsgi.input"].read(100))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode()]

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(environ["wsgi.input"].read(2))  # as a framework's CSRF check does
        environ["SCRIPT_NAME"], environ["PATH_INFO"] = "/mounted", "/there"
        return view(environ, start_response)

    site, client = client_of(app, when=marks.path("/never"))
    target = start(client, "/mounted/there", body=b"abcdef")
    ended(site, target)
    assert seen == [b"ab", b"ab", b"cdef"]
    assert client.request("GET", f"{target}&_view=result").text == "/there"


def test_a_decorated_function_may_be_called_after_start_response(client_of: Any) -> None:
    @background
    def report() -> str:
        print("reporting")
        return "reported"

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        print("before the call")
        return [report().encode()]

    site, client = client_of(app, when=marks.path("/never"))
    target = start(client, "/")
    ended(site, target)
    assert client.request("GET", target).text == "before the call\nreporting\n"
    assert client.request("GET", f"{target}&_view=result").text == "reported"


def test_a_middleware_within_a_job_starts_no_second_one(client_of: Any) -> None:
    inner = BackgroundMiddleware(apps.answers_500, when=marks.always)
    site, client = client_of(inner)
    target = start(client, "/")
    ended(site, target)
    assert client.request("GET", f"{target}&_view=result").body == b"sorry"
    assert inner.registry.jobs() == []


def test_a_middleware_around_another_is_refused_where_a_token_would_be_lost() -> None:
    inner = BackgroundMiddleware(apps.answers_500, when=marks.always)
    with pytest.raises(ConfigurationError, match="already"):
        BackgroundMiddleware(inner)
    hidden = BackgroundMiddleware(lambda environ, start_response: inner(environ, start_response))
    said = InProcess(hidden).request("POST", "/")
    assert said.status == 500
    assert "inside another one" in said.text
    assert inner.registry.jobs() == []
    shared = BackgroundMiddleware(
        lambda environ, start_response: inner(environ, start_response), registry=inner.registry
    )
    client = InProcess(shared)
    target = start(client, "/")
    ended(inner, target)
    assert client.request("GET", f"{target}&_view=result").body == b"sorry", "the app's own: the registry is the same"
    inner.close()


class _SeekableInName:
    """A ``wsgi.input`` like that of uWSGI: it has ``seek``, and dies of it."""

    def __init__(self, body: bytes) -> None:
        self.read = io.BytesIO(body).read

    def seek(self, offset: int) -> None:
        raise OSError("seeking wsgi.input without post_buffering is IMPOSSIBLE")


def test_an_input_that_only_claims_to_seek_is_remembered() -> None:
    @backgrounder
    def view(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["wsgi.input"].read(10)]

    def app(environ: Any, start_response: Any) -> Any:
        assert environ["wsgi.input"].read(2) == b"ab"
        if environ["wsgi.input"].__class__.__name__ == "BytesIO":  # in the job
            environ["wsgi.input"].seek(0)
        return view(environ, start_response)

    with BackgroundMiddleware(app) as site:
        given = environ("POST", "/", b"abcdef")
        given["wsgi.input"] = _SeekableInName(b"abcdef")
        heads: list[Any] = []
        site(given, lambda *head: heads.append(head))
        assert heads[0][0] == "303 See Other"
        job = ended(site, dict(heads[0][1])["Location"])
        assert site.registry.read(job.key, Channel.BODY, 0).data == b"abcdef"


def test_a_slot_is_free_at_once_when_its_client_has_left(stage: apps.Stage) -> None:
    with (
        BackgroundMiddleware(stage, when=marks.path("/slow"), stream_slots=1) as site,
        served(site, channel_request_lookahead=0) as client,
    ):
        target = start(client, "/slow")
        stage.go()
        with client.stream("GET", target) as (_, _, chunks):
            assert next(chunks) == b"line 1\n"
        with client.stream("GET", target) as (_, headers, chunks):
            assert not any(name == "Retry-After" for name, _ in headers)
            stage.go(2)
            assert b"".join(chunks) == b"line 1\nline 2\nline 3\n"


def test_bad_options_are_refused_by_name() -> None:
    for options, name in [
        ({"max_body": -1}, "max_body"),
        ({"max_body": "64"}, "max_body"),
        ({"max_body": float("inf")}, "max_body"),
        ({"stream_slots": -1}, "stream_slots"),
        ({"stream_slots": 1.5}, "stream_slots"),
        ({"stream_slots": True}, "stream_slots"),
        ({"promote_after": -0.1}, "promote_after"),
        ({"promote_after": "2"}, "promote_after"),
        ({"promote_after": None}, "promote_after"),
        ({"promote_after": float("inf")}, "promote_after"),
        ({"deadline": "60"}, "deadline"),
        ({"deadline": float("inf")}, "deadline"),
        ({"when": "/slow"}, "when"),
        ({"token_name": "a=b"}, "token_name"),
        ({"token_name": None}, "token_name"),
        ({"token_name": "_view"}, "token_name"),
        ({"registry": "memory:"}, "registry"),
        ({"registry": MemoryRegistry}, "registry"),
        ({"executor": "thread"}, "executor"),
        ({"executor": ThreadExecutor}, "executor"),
        ({"single_flight": "no"}, "single_flight"),
        ({"capture_logging": "false"}, "capture_logging"),
        ({"capture_children": 0}, "capture_children"),
        ({"dashboard": 5, "authorize": bool}, "dashboard"),
        ({"assets": None}, "assets"),
        ({"version": None}, "version"),
        ({"secret": b"a secret of 20 bytes"}, "secret"),
        ({"limit_per_owner": "2"}, "limit_per_owner"),
        ({"limit_per_owner": 1.5}, "limit_per_owner"),
        ({"limit_per_mark": ["/slow"]}, "limit_per_mark"),
        ({"limit_per_mark": {"/slow": "1"}}, "limit_per_mark"),
        ({"limit_per_mark": {5: 1}}, "limit_per_mark"),
    ]:
        with pytest.raises(ConfigurationError, match=f"^{name} = ") as refused:
            BackgroundMiddleware(apps.empty, **options)  # type: ignore[arg-type]
        assert "a secret of" not in str(refused.value)


def test_what_is_no_app_is_refused_at_once() -> None:
    with pytest.raises(ConfigurationError, match=r"^app = None: expected a WSGI application$"):
        BackgroundMiddleware(None)  # type: ignore[arg-type]


def test_a_reply_can_be_told_apart() -> None:
    with pytest.raises(AssertionError):
        Reply(200, [("A", "1"), ("a", "2")], b"")["A"]
