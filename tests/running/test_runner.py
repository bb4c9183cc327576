"""One job from its claim to its end: the clauses of PEP 3333, what is written down, and how a job is stopped."""

import contextlib
import gc
import io
import json
import logging
import os
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from typing import Any
from wsgiref.validate import validator

import pytest

from bgmiddleware import (
    Channel,
    Job,
    JobState,
    MemoryRegistry,
    Progress,
    QueueFull,
    RecordedResponse,
    RegistryError,
    Run,
    backgrounder,
    current_job,
    detached,
    progress,
)
from bgmiddleware._jobs import key_of
from bgmiddleware._running import call_function, replay_request
from bgmiddleware._running.recording import IN_MEMORY
from bgmiddleware.testing.registries import LONG, all_of, begun, done

KEY = key_of("one")
TEXT = [("Content-Type", "text/plain")]
STORED = {
    "REQUEST_METHOD": "POST",
    "SCRIPT_NAME": "",
    "PATH_INFO": "/report",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "80",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "wsgi.url_scheme": "http",
}


@dataclass
class Ran:
    """What is in the registry when a job has ended."""

    job: Job
    output: str
    body: bytes

    @property
    def outcome(self) -> tuple[JobState, str]:
        return self.job.state, self.job.reason


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def replay(registry: MemoryRegistry) -> Callable[..., Ran]:
    """Replay a request to an app, in this thread; what the app may not do ends in the job and nowhere else."""

    def replay(app: Callable[..., Iterable[bytes]], body: bytes = b"", **options: Any) -> Ran:
        stored = {**STORED, "CONTENT_LENGTH": str(len(body))}
        return run_in(registry, replay_request(app, registry, KEY, stored, options.pop("kept", {})), body, **options)

    return replay


@pytest.fixture
def call(registry: MemoryRegistry) -> Callable[..., Ran]:
    """Run a function as a job, in this thread."""

    def call(function: Callable[[], object], **options: Any) -> Ran:
        return run_in(registry, call_function(function), **options)

    return call


def run_in(registry: MemoryRegistry, work: Any, body: bytes = b"", **options: Any) -> Ran:
    registry.add(Job(KEY, "POST /report", request=STORED))
    for begin in range(0, len(body), 100_000):
        registry.append(KEY, Channel.REQUEST, begin, body[begin : begin + 100_000])
    Run(KEY, "POST /report", registry, work, copy_context(), **options)()
    return ran_in(registry)


def ran_in(registry: MemoryRegistry) -> Ran:
    job = registry.get(KEY)
    assert job.state.ended
    body = all_of(registry, KEY, Channel.BODY, 100_000)
    assert len(body) == job.body_end
    return Ran(job, all_of(registry, KEY, Channel.OUTPUT, 100_000).decode(), body)


class Body:
    """An app's iterable that says whether it was closed, and raises what it is given among its parts."""

    def __init__(self, *parts: Any, closing: BaseException | None = None) -> None:
        self.parts = iter(parts)
        self.closing = closing
        self.closed = 0

    def __iter__(self) -> "Body":
        return self

    def __next__(self) -> Any:
        part = next(self.parts)
        if isinstance(part, BaseException):
            raise part
        return part

    def close(self) -> None:
        self.closed += 1
        if self.closing is not None:
            raise self.closing


def answering(*parts: Any, status: str = "200 OK", headers: Any = None, closing: BaseException | None = None) -> Any:
    """Return an app that answers with these parts, and its body."""
    body = Body(*parts, closing=closing)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Body:
        start_response(status, TEXT if headers is None else headers)
        return body

    return app, body


# What an app answers.


def test_a_response_is_recorded_as_the_app_gave_it(replay):
    headers = [("Content-Type", "text/plain"), ("Set-Cookie", "a=1"), ("Set-Cookie", "b=\xe9"), ("x-Empty", "")]
    app, body = answering(b"one ", b"", b"two\xff", status="201 Made it", headers=headers)
    ran = replay(app)
    assert ran.outcome == (JobState.FINISHED, "")
    assert ran.job.response == RecordedResponse("201 Made it", tuple(headers))
    assert ran.body == b"one two\xff"
    assert ran.output == ""
    assert body.closed == 1


@pytest.mark.parametrize("status", ["200 OK", "302 Found", "404 Not Found", "499 "])
def test_a_status_below_500_is_finished(replay, status):
    ran = replay(answering(b"x", status=status)[0])
    assert ran.outcome == (JobState.FINISHED, "")
    assert ran.job.response.status == status


@pytest.mark.parametrize("status", ["500 Oh no", "503 Later", "599 "])
def test_a_status_from_500_is_failed_with_the_whole_response(replay, status):
    ran = replay(answering(b"sorry", status=status)[0])
    assert ran.outcome == (JobState.FAILED, f"the app answered {status}")
    assert ran.job.response.complete
    assert ran.body == b"sorry"


@pytest.mark.parametrize(
    "iterable", [[], [b""], (), iter([]), [b"", b"", b""], b""], ids=["[]", "['']", "()", "iter", "three", "bytes"]
)
def test_an_empty_body_is_a_whole_response(replay, iterable):
    def app(environ, start_response):
        start_response("204 No Content", [])
        return iterable

    ran = replay(app)
    assert ran.outcome == (JobState.FINISHED, "")
    assert ran.job.response == RecordedResponse("204 No Content", ())
    assert ran.body == b""


def test_an_iterable_without_close_is_enough(replay):
    def app(environ, start_response):
        start_response("200 OK", TEXT)
        return [b"a", b"b"]

    assert replay(app).body == b"ab"


def test_what_is_written_comes_before_what_is_returned(replay):
    def app(environ, start_response):
        write = start_response("200 OK", TEXT)
        write(b"written ")
        write(b"")
        write(b"twice ")
        return [b"and returned"]

    ran = replay(app)
    assert ran.body == b"written twice and returned"
    assert ran.outcome == (JobState.FINISHED, "")


def test_an_app_may_write_while_it_is_iterated(replay):
    def app(environ, start_response):
        write = start_response("200 OK", TEXT)
        yield b"a"
        write(b"b")
        yield b"c"

    assert replay(app).body == b"abc"


def test_a_generator_may_start_its_response_late(replay):
    def app(environ, start_response):
        yield b""
        print("not yet")
        start_response("202 Late", TEXT)
        yield b""
        yield b"body"

    ran = replay(app)
    assert ran.outcome == (JobState.FINISHED, "")
    assert (ran.job.response.status, ran.body, ran.output) == ("202 Late", b"body", "not yet\n")


def test_an_app_may_change_its_mind_before_its_body_begins(replay):
    def app(environ, start_response):
        start_response("200 OK", [("X-First", "1")])
        yield b""
        try:
            raise ValueError("oh")
        except ValueError:
            start_response("404 Not Found", TEXT, sys.exc_info())
        yield b"sorry"

    ran = replay(app)
    assert ran.outcome == (JobState.FINISHED, "")
    assert ran.job.response == RecordedResponse("404 Not Found", tuple(TEXT))
    assert ran.body == b"sorry"


def test_the_first_start_may_have_an_error(replay):
    def app(environ, start_response):
        try:
            raise ValueError("oh")
        except ValueError:
            start_response("500 Oh", TEXT, sys.exc_info())
        return [b"sorry"]

    ran = replay(app)
    assert ran.outcome == (JobState.FAILED, "the app answered 500 Oh")
    assert ran.body == b"sorry"


@pytest.mark.parametrize("begin", ["yield", "write", "write nothing"])
def test_an_error_after_the_body_began_is_raised_in_the_app(replay, begin):
    seen = []

    def app(environ, start_response):
        write = start_response("200 OK", TEXT)
        if begin == "yield":
            yield b"begun"
        else:
            write(b"begun" if begin == "write" else b"")  # the first write() sends the headers, whatever it writes
        try:
            raise LookupError("the real one")
        except LookupError:
            try:
                start_response("500 Oh", TEXT, sys.exc_info())
            except LookupError as error:
                seen.append(error)
                raise
        yield b"never"

    ran = replay(app)
    assert ran.outcome == (JobState.FAILED, "LookupError: the real one")
    assert ran.job.response == RecordedResponse("200 OK", tuple(TEXT), complete=False)
    assert ran.body == (b"" if begin == "write nothing" else b"begun")
    assert len(seen) == 1
    assert "the real one" in ran.output


def test_an_error_given_to_start_response_leaves_no_cycle(replay):
    kept = []

    def app(environ, start_response):
        start_response("200 OK", TEXT)
        try:
            raise ValueError("oh")
        except ValueError as error:
            start_response("500 Oh", TEXT, sys.exc_info())
            kept.append(sys.getrefcount(error))
            kept.append(sys.getrefcount(error))
        return []

    replay(app)
    assert kept[0] == kept[1] <= 4


def test_a_run_is_gone_when_it_has_ended_and_needs_no_collector(registry):
    gc.disable()
    try:
        registry.add(Job(KEY, "a print"))
        run = Run(KEY, "a print", registry, call_function(lambda: print("x")), copy_context())
        run()
        gone = weakref.ref(run)
        del run
        assert gone() is None
    finally:
        gc.enable()


def test_who_waits_for_the_end_of_a_run_hears_of_it_once(registry):
    registry.add(Job(KEY, "nothing"))
    run = Run(KEY, "nothing", registry, call_function(lambda: None), copy_context())
    assert not run.ends_within(0.0)
    run()
    assert run.ends_within(0.0)
    assert not run.ends_within(0.0)


def test_hop_by_hop_headers_are_left_out_whatever_their_case(replay):
    dropped = """Connection keep-alive PROXY-AUTHENTICATE Proxy-Authorization TE Trailer Trailers Transfer-Encoding
    Upgrade""".split()
    kept = [("X-Connection", "1"), ("Content-Length", "1"), ("Date", "now"), ("Server", "mine")]
    app, _ = answering(b"x", headers=[*((name, "x") for name in dropped), *kept])
    assert replay(app).job.response.headers == tuple(kept)


def test_headers_that_the_app_changes_later_are_as_they_were(replay):
    headers = [("X-One", "1")]

    def app(environ, start_response):
        start_response("200 OK", headers)
        headers.append(("X-Two", "2"))
        return []

    assert replay(app).job.response.headers == (("X-One", "1"),)


# What an app may not do, and what becomes of it.


def test_an_iterable_that_raises_halfway_leaves_the_body_so_far(replay):
    app, body = answering(b"one ", b"two ", ValueError("oh"), b"three")
    ran = replay(app)
    assert ran.outcome == (JobState.FAILED, "ValueError: oh")
    assert ran.body == b"one two "
    assert ran.job.response == RecordedResponse("200 OK", tuple(TEXT), complete=False)
    assert body.closed == 1


def test_an_app_that_raises_has_no_response_and_its_traceback_in_the_output(replay):
    def app(environ, start_response):
        print("before")
        raise ZeroDivisionError("a view's own fault")

    ran = replay(app)
    assert ran.outcome == (JobState.FAILED, "ZeroDivisionError: a view's own fault")
    assert (ran.job.response, ran.body) == (None, b"")
    first, second, *_ = ran.output.splitlines()
    assert (first, second) == ("before", "Traceback (most recent call last):")
    assert ran.output.endswith("ZeroDivisionError: a view's own fault\n")
    assert "test_runner.py" in ran.output
    assert "_running/" not in ran.output  # our frames say nothing to its author


def test_a_decorated_view_that_raises_is_the_first_in_its_traceback(replay):
    @backgrounder
    def view(environ, start_response):
        raise ZeroDivisionError("a view's own fault")

    assert ", in view\n" in replay(view).output.splitlines(keepends=True)[1]


def test_a_failure_is_told_to_the_servers_log_once(replay, caplog):
    app, _ = answering(ValueError("oh"))
    with caplog.at_level(logging.DEBUG):
        ran = replay(app)
    (record,) = caplog.records
    assert record.name == "bgmiddleware"
    assert record.levelname == "ERROR"
    assert KEY[:8] in record.getMessage()
    assert KEY not in record.getMessage()
    assert ran.output.count("ValueError: oh") == 1


@pytest.mark.parametrize(
    "error", [SystemExit("out"), KeyboardInterrupt("key"), GeneratorExit("gen"), MemoryError("mem")]
)
def test_whatever_an_app_raises_is_a_failed_job_and_no_more(replay, error):
    app, body = answering(b"x", error)
    ran = replay(app)
    assert ran.job.state is JobState.FAILED
    assert ran.job.reason.startswith(type(error).__name__)
    assert body.closed == 1


def test_a_reason_is_bounded(replay):
    app, _ = answering(ValueError("x" * 10_000))
    ran = replay(app)
    assert ran.job.reason.startswith("ValueError: xxx")
    assert len(ran.job.reason) <= 500
    assert "x" * 10_000 in ran.output


def test_close_that_raises_fails_the_job_and_keeps_the_body(replay):
    app, body = answering(b"whole", closing=OSError("cannot close"))
    ran = replay(app)
    assert ran.outcome == (JobState.FAILED, "OSError: cannot close")
    assert (ran.body, ran.job.response.complete, body.closed) == (b"whole", False, 1)


def test_close_that_raises_after_an_error_shows_both(replay):
    app, _ = answering(ValueError("first"), closing=OSError("second"))
    ran = replay(app)
    assert ran.outcome == (JobState.FAILED, "OSError: second")
    assert "ValueError: first" in ran.output


def test_an_app_that_never_starts_its_response_fails(replay):
    body = Body(b"")

    ran = replay(lambda environ, start_response: body)
    assert ran.job.state is JobState.FAILED
    assert "did not call start_response()" in ran.job.reason
    assert ran.job.response is None
    assert body.closed == 1


def test_a_body_before_the_start_of_the_response_fails(replay):
    def app(environ, start_response):
        yield b"too early"
        start_response("200 OK", TEXT)

    ran = replay(app)
    assert ran.job.state is JobState.FAILED
    assert "before it called start_response()" in ran.job.reason
    assert (ran.body, ran.job.response) == (b"", None)


def test_a_response_that_is_started_twice_without_an_error_fails(replay):
    def app(environ, start_response):
        start_response("200 OK", TEXT)
        start_response("404 Not Found", TEXT)
        return []

    ran = replay(app)
    assert ran.job.state is JobState.FAILED
    assert "a second time" in ran.job.reason


@pytest.mark.parametrize("part", ["text", bytearray(b"x"), memoryview(b"x"), 7, ["x"]])
@pytest.mark.parametrize("way", ["yield", "write"])
def test_a_body_that_is_no_bytes_fails(replay, part, way):
    def app(environ, start_response):
        write = start_response("200 OK", TEXT)
        if way == "write":
            write(part)
        return Body(b"so far ", part)

    ran = replay(app)
    assert ran.job.state is JobState.FAILED
    assert f"must be bytes, not {type(part).__name__}" in ran.job.reason
    assert ran.body == (b"" if way == "write" else b"so far ")


def test_an_app_that_returns_no_iterable_fails(replay):
    def app(environ, start_response):
        start_response("200 OK", TEXT)

    ran = replay(app)
    assert ran.job.state is JobState.FAILED
    assert ran.job.reason.startswith("TypeError")


@pytest.mark.parametrize(
    "status",
    ["20 OK", "200OK", "OK", "", "two hundred", "2000 OK", "²00 OK", 200, b"OK", b"200 OK\n", None, "101 Later"],
)
def test_a_status_that_is_none_fails(replay, status):
    ran = replay(answering(b"x", status=status)[0])
    assert ran.job.state is JobState.FAILED
    assert "status" in ran.job.reason
    assert ran.job.response is None


@pytest.mark.parametrize("status", ["200 OK\r\nSet-Cookie: stolen=1", "200 OK\n", "200 \0"])
def test_a_status_with_line_breaks_fails(replay, status):
    ran = replay(answering(b"x", status=status)[0])
    assert ran.job.state is JobState.FAILED


@pytest.mark.parametrize(("status", "headers"), [("200 €", TEXT), ("200 OK", [("X", "€")])])
def test_what_is_not_latin_1_fails_in_the_job_and_not_at_each_reader(replay, status, headers):
    ran = replay(answering(b"x", status=status, headers=headers)[0])
    assert ran.job.state is JobState.FAILED


@pytest.mark.parametrize(
    "headers",
    [
        {"X": "1"},
        {"XY": "1"},
        "X1",
        [("X Y", "1")],
        [("", "1")],
        [("X", 1)],
        [(b"X", "1")],
        [("X", b"1")],
        [("X", None)],
        [("X",)],
        [("X", "1", "2")],
        [("X", "1\r\nSet-Cookie: stolen=1")],
        [("X", "1\n2")],
        [("X", "1\r")],
        [("X\nY", "1")],
        [("X", "\0")],
    ],
)
def test_headers_that_are_none_fail(replay, headers):
    ran = replay(answering(b"x", headers=headers)[0])
    assert ran.job.state is JobState.FAILED
    assert ran.job.reason.startswith(("TypeError", "ValueError"))
    assert ran.job.response is None


class Marked(str):
    """A text of a template: a str that is none by its type."""


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ("200", "200 "),
        ("200 Okay", "200 Okay"),
        ("200 Script output follows", "200 Script output follows"),
        (b"404 Nowhere", "404 Nowhere"),
        (" 200 OK ", "200 OK"),
        (Marked("200 OK"), "200 OK"),
    ],
)
def test_a_status_that_servers_take_is_taken(replay, given, recorded):
    ran = replay(answering(b"x", status=given)[0])
    assert (ran.job.state, ran.body) == (JobState.FINISHED, b"x")
    assert ran.job.response.status == recorded
    assert type(ran.job.response.status) is str


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ((("X", "1"), ("Y", "2")), (("X", "1"), ("Y", "2"))),
        (iter([("X", "1")]), (("X", "1"),)),
        ([["X", "1"]], (("X", "1"),)),
        ([("X ", " 1\t"), (" Y", "a  b")], (("X", "1"), ("Y", "a  b"))),
        ([(Marked("X"), Marked("1"))], (("X", "1"),)),
        ((("Connection", "close"), ("X", "")), (("X", ""),)),
    ],
)
def test_headers_that_servers_take_are_taken(replay, given, recorded):
    ran = replay(answering(b"x", headers=given)[0])
    assert (ran.job.state, ran.body) == (JobState.FINISHED, b"x")
    assert ran.job.response.headers == recorded
    assert {type(text) for header in ran.job.response.headers for text in header} == {str}


def test_a_body_larger_than_the_registry_takes_fails_and_says_so():
    with MemoryRegistry(max_result=300_000) as registry:
        app, body = answering(*[b"x" * 100_000] * 4)
        ran = run_in(registry, replay_request(app, registry, KEY, STORED, {}))
    assert ran.job.state is JobState.FAILED
    assert "300000 bytes" in ran.job.reason
    assert not ran.job.response.complete
    assert body.closed == 1


def test_a_body_that_just_fits_is_whole():
    with MemoryRegistry(max_result=300_000) as registry:
        app, _ = answering(*[b"x" * 100_000] * 3)
        ran = run_in(registry, replay_request(app, registry, KEY, STORED, {}))
    assert ran.outcome == (JobState.FINISHED, "")
    assert len(ran.body) == 300_000


def test_a_large_body_is_stored_whole_and_in_order(replay):
    parts = [os.urandom(size) for size in (1, 200_000, 100_000, 0, 700_000, 5)]
    assert replay(answering(*parts)[0]).body == b"".join(parts)


def test_a_body_that_ends_before_its_length_is_a_failure(replay):
    app, _ = answering(b"half", b"", b"of", headers=[("content-length", "7")])
    assert replay(app).outcome == (
        JobState.FAILED,
        "RuntimeError: the application sent 6 of the 7 bytes of its Content-Length",
    )


@pytest.mark.parametrize(("body", "length"), [(b"whole", "5"), (b"more", "3"), (b"", "5"), (b"any", "so many")])
def test_a_body_that_is_whole_or_anothers_to_send_is_none(replay, body, length):
    """An empty one of some length is what X-Sendfile and X-Accel-Redirect ask a proxy to fill."""
    ran = replay(answering(body, headers=[("Content-Length", length)])[0])
    assert ran.outcome == (JobState.FINISHED, "")
    assert ran.body == body


# What an app is given.


def test_the_replay_is_as_pep_3333_asks(replay):
    @validator
    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
        environ["wsgi.errors"].write("to the errors\n")
        environ["wsgi.errors"].writelines(["and ", "more\n"])
        environ["wsgi.errors"].flush()
        return [environ["wsgi.input"].read(4)]

    ran = replay(app, b"body")
    assert ran.outcome == (JobState.FINISHED, "")
    assert ran.body == b"body"
    assert ran.output == "to the errors\nand more\n"


def test_what_was_recorded_and_kept_is_in_the_environ(replay):
    session = object()

    def app(environ, start_response):
        assert environ["my.session"] is session
        assert {key: environ[key] for key in STORED} == STORED
        assert environ["wsgi.multithread"] is True
        assert environ["wsgi.multiprocess"] is False
        return answering(b"ok")[0](environ, start_response)

    assert replay(app, kept={"my.session": session}).outcome == (JobState.FINISHED, "")


@pytest.mark.parametrize("size", [0, 1, IN_MEMORY - 1, IN_MEMORY, IN_MEMORY + 1, 3 * IN_MEMORY + 7])
def test_the_recorded_body_can_be_read_and_sought_like_a_file(replay, size):
    data = (b"0123456789abcde\n" * (size // 16 + 1))[:size]

    def app(environ, start_response):
        source, plain = environ["wsgi.input"], io.BytesIO(data)
        for name, *args in (
            ("read",),
            ("read", 1),
            ("seek", 0),
            ("read", 5),
            ("tell",),
            ("readline",),
            ("readline", 3),
            ("seek", size // 2),
            ("read", 1000),
            ("seek", -3 if size > 3 else 0, io.SEEK_END),
            ("read",),
            ("tell",),
            ("seek", 0, io.SEEK_END),
            ("seek", size + 10),
            ("read",),
            ("seek", 1),
            ("readlines",),
            ("seek", 0),
            ("__iter__",),
        ):
            got, expected = (getattr(file, name)(*args) for file in (source, plain))
            if name == "__iter__":
                got, expected = list(got), list(expected)
            assert got == expected, (name, args)
        with contextlib.suppress(ValueError, OSError):
            source.seek(-1)
            pytest.fail("there is nothing before the beginning")
        return answering(b"same")[0](environ, start_response)

    ran = replay(app, data)
    assert ran.outcome == (JobState.FINISHED, ""), ran.output


def test_a_job_runs_in_the_context_it_was_given(call):
    variable: ContextVar[str] = ContextVar("variable", default="unset")
    token = variable.set("of the request")

    def function() -> str:
        before = variable.get()
        variable.set("of the job")
        return before

    try:
        assert call(function).body == b"of the request"
        assert variable.get() == "of the request"
    finally:
        variable.reset(token)


# What a function returns.


@pytest.mark.parametrize(
    ("value", "kind", "body"),
    [
        ("text: é\udcff", "text/plain; charset=utf-8", b"text: \xc3\xa9\\udcff"),
        ("", "text/plain; charset=utf-8", b""),
        (b"bytes\xff", "application/octet-stream", b"bytes\xff"),
        (b"", "application/octet-stream", b""),
        ({"a": [1, None]}, "application/json", b'{"a": [1, null]}'),
        (0, "application/json", b"0"),
        (False, "application/json", b"false"),
        ([], "application/json", b"[]"),
    ],
)
def test_what_a_function_returns_is_the_response(call, value, kind, body):
    ran = call(lambda: value)
    assert ran.outcome == (JobState.FINISHED, "")
    assert ran.body == body
    headers = (("Content-Type", kind), ("Content-Length", str(len(body))))
    assert ran.job.response == RecordedResponse("200 OK", headers)
    if kind == "application/json":
        assert json.loads(ran.body) == value


@pytest.mark.parametrize("value", [None, object(), {1, 2}, {"a": object()}])
def test_a_function_that_returns_nothing_that_can_be_sent_answers_204(call, value):
    ran = call(lambda: value)
    assert ran.outcome == (JobState.FINISHED, "")
    assert (ran.job.response, ran.body) == (RecordedResponse("204 No Content", ()), b"")


def test_the_output_begins_with_what_was_printed_before(call):
    assert call(lambda: print("after"), preface="before\n").output == "before\nafter\n"


# Who runs a job, and when it is over.


def test_a_job_runs_once_however_often_it_is_delivered(registry):
    calls = []
    registry.add(Job(KEY, "one"))
    runs = [Run(KEY, "one", registry, call_function(lambda: calls.append(1)), copy_context()) for _ in range(3)]
    for run in (*runs, runs[0]):
        run()
    assert calls == [1]


@pytest.mark.parametrize("before", ["cancel", "discard", "lose"])
def test_a_job_that_ended_before_it_began_is_not_run(registry, caplog, before):
    registry.add(Job(KEY, "one"))
    run = Run(KEY, "one", registry, call_function(lambda: pytest.fail("it ran")), copy_context())
    if before == "cancel":
        registry.request_cancel(KEY)
    elif before == "discard":
        registry.discard(KEY)
    else:
        run.abandon("server shut down")
        assert registry.get(KEY).reason == "server shut down"
    run()
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_who_sees_the_end_sees_the_whole_output_and_body(registry):
    def work() -> str:
        for number in range(1000):
            print(number)
        return "x" * 1000

    for _ in range(20):
        registry.add(Job(KEY, "one"))
        ended = begun(registry.wait, KEY, 10**9, LONG)
        Run(KEY, "one", registry, call_function(work), copy_context())()
        assert done(ended).state is JobState.FINISHED
        assert done(ended).output_end == 3890
        assert done(ended).body_end == 1000
        registry.discard(KEY)


def test_a_job_that_is_abandoned_keeps_its_output_and_is_lost(registry):
    registry.add(Job(KEY, "one"))

    def work() -> None:
        print("kept")
        run.abandon("server shut down")
        print("not kept, and not reached")
        pytest.fail("it went on")

    run = Run(KEY, "one", registry, call_function(work), copy_context())
    run()
    ran = ran_in(registry)
    assert ran.outcome == (JobState.LOST, "server shut down")
    assert ran.output == "kept\n"
    run.abandon("again")
    assert registry.get(KEY).reason == "server shut down"


class Away(MemoryRegistry):
    """A registry whose storage is not there now and then, and which may have stored before it failed."""

    away: tuple[Channel, ...] = ()
    after_storing = False

    def append(self, key: str, channel: Channel, offset: int, data: bytes, **more: Any) -> int:
        if channel in self.away and not self.after_storing:
            raise RegistryError("away")
        end = super().append(key, channel, offset, data, **more)
        if channel in self.away:
            raise RegistryError("away, after all was stored")
        return end


@pytest.mark.parametrize("after_storing", [False, True])
def test_output_that_could_not_be_stored_is_sent_again_and_stored_once(after_storing):
    registry = Away()
    registry.after_storing = after_storing

    def work() -> None:
        registry.away = (Channel.OUTPUT,)
        for number in range(5):
            print(number)
            registry.get(KEY)  # somebody looks
        registry.away = ()
        print("back")

    with registry:
        ran = run_in(registry, call_function(work), takes_logging=False)
    assert ran.outcome == (JobState.FINISHED, "")
    assert ran.output == "0\n1\n2\n3\n4\nback\n"


def test_output_that_could_never_be_stored_is_dropped_within_a_bound_and_stated():
    registry = Away()

    def work() -> None:
        registry.away = (Channel.OUTPUT,)
        for _ in range(30):
            print("x" * 99_999)
            registry.get(KEY)
        registry.away = ()
        print("back")

    with registry:
        ran = run_in(registry, call_function(work), takes_logging=False)
    assert ran.outcome == (JobState.FINISHED, "")
    note = r"\n\[bytes (\d+) to (\d+) of the output could not be stored\]\n"
    dropped = sum(int(end) - int(begin) for begin, end in re.findall(note, ran.output))
    kept = re.sub(note, "", ran.output).removesuffix("back\n")
    assert ran.output.endswith("back\n")
    assert dropped > 0
    assert len(kept) + dropped == 3_000_000
    assert 500_000 < len(kept) <= 1_100_000


def test_what_we_log_about_a_job_is_not_in_its_output():
    registry = Away()

    def work() -> None:
        registry.away = (Channel.OUTPUT,)
        print("kept")
        registry.get(KEY)
        current_job().check()
        sys.stdout.write("x" * 5000)  # stored by the job's own thread
        registry.away = ()
        print("back")

    with registry:
        ran = run_in(registry, call_function(work))
    assert ran.output == "kept\n" + "x" * 5000 + "back\n"


def test_output_that_waits_for_its_registry_is_sent_at_the_end_of_a_job_that_prints_no_more():
    registry = Away()

    def work() -> None:
        registry.away = (Channel.OUTPUT,)
        print("kept")
        registry.get(KEY)
        registry.away = ()

    with registry:
        ran = run_in(registry, call_function(work), takes_logging=False)
    assert ran.output == "kept\n"


def test_a_body_that_cannot_be_stored_fails_the_job():
    registry = Away()
    registry.away = (Channel.BODY,)
    with registry:
        ran = run_in(registry, call_function(lambda: "body"))
    assert ran.outcome == (JobState.FAILED, "bgmiddleware.errors.RegistryError: away")
    assert (ran.body, ran.job.response.complete) == (b"", False)


# Progress and cancelling.


def test_progress_is_written_down_at_once(call, registry):
    def work() -> None:
        progress(3, 10, "rows")
        assert registry.get(KEY).progress == Progress(3, 10, "rows")
        current_job().progress(4)
        assert registry.get(KEY).progress == Progress(4)

    ran = call(work)
    assert ran.outcome == (JobState.FINISHED, ""), ran.output
    assert ran.job.progress == Progress(4)


def test_a_job_knows_its_key_and_title(call):
    ran = call(lambda: [current_job().key, current_job().title])
    assert json.loads(ran.body) == [KEY, "POST /report"]
    assert not current_job()


POINTS = {
    "print": lambda: print("not reached"),
    "write": lambda: sys.stdout.write("not reached"),
    "write to stderr": lambda: sys.stderr.write("not reached"),
    "write bytes": lambda: sys.stdout.buffer.write(b"not reached"),
    "progress": lambda: progress(1, 2),
    "check": lambda: current_job().check(),
}
each_point = pytest.mark.parametrize("point", POINTS.values(), ids=POINTS.keys())


@each_point
def test_a_cancelled_job_is_stopped_at_its_next(call, registry, point):
    def work() -> None:
        print("before")
        assert registry.request_cancel(KEY) is JobState.RUNNING
        try:
            point()
        except Exception:
            pytest.fail("a cancel is no Exception")
        finally:
            print("cleaned up")
        pytest.fail("it went on")

    ran = call(work)
    assert ran.outcome == (JobState.CANCELLED, "cancelled on request")
    assert ran.output == "before\ncleaned up\n"
    assert ran.job.cancel_requested_at is not None
    assert ran.job.progress is None


@each_point
def test_nothing_is_stopped_that_was_not_cancelled(call, point):
    assert call(lambda: point()).outcome == (JobState.FINISHED, "")


def test_a_cancelled_app_is_closed_and_its_body_so_far_is_kept(replay, registry):
    def parts() -> Iterator[bytes]:
        try:
            yield b"so far"
            registry.request_cancel(KEY)
            print("not reached")
            yield b"never"
        finally:
            print("cleaned up")

    class Closing(Body):
        def close(self) -> None:
            print("closed")
            super().close()

    body = Closing()
    body.parts = parts()

    def app(environ, start_response):
        start_response("200 OK", TEXT)
        return body

    ran = replay(app)
    assert ran.outcome == (JobState.CANCELLED, "cancelled on request")
    assert (ran.body, ran.output, body.closed) == (b"so far", "cleaned up\nclosed\n", 1)


@pytest.mark.parametrize("point", [lambda: print("not reached"), lambda: current_job().check()], ids=["print", "check"])
def test_who_swallows_a_cancel_and_goes_on_is_told_again_and_again(call, registry, point):
    told: list[str] = []

    def work() -> str:
        registry.request_cancel(KEY)
        while len(told) < 3:
            try:
                point()
            except BaseException as error:
                print("handled")
                told.append(repr(error))
        return "result"

    ran = call(work)
    assert told == ["JobCancelled('cancelled on request')"] * 3
    assert ran.outcome == (JobState.FINISHED, "")
    assert ran.job.cancel_requested_at is not None
    assert (ran.output, ran.body) == ("handled\n" * 3, b"result")


def test_who_stops_for_a_cancel_may_print_whatever_is_raised_meanwhile(call, registry):
    @contextlib.contextmanager
    def cleaning_up() -> Iterator[None]:
        try:
            yield
        finally:
            print("first")

    def work() -> None:
        registry.request_cancel(KEY)
        with cleaning_up():
            try:
                print("not reached")
            finally:
                try:
                    int("x")
                except ValueError:
                    print("second")
                    current_job().check()

    ran = call(work)
    assert ran.outcome == (JobState.CANCELLED, "cancelled on request")
    assert ran.output == "second\nfirst\n"


@pytest.mark.parametrize("piece", [b"x", b""])
def test_a_view_that_yields_and_does_not_print_hears_a_cancel(registry, piece):
    closed: list[bool] = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [])
        try:
            yield piece
            registry.request_cancel(KEY)
            for _ in range(1000):
                yield piece
        finally:
            closed.append(True)

    registry.add(Job(KEY, "one"))
    Run(KEY, "one", registry, replay_request(app, registry, KEY, {}, {}), copy_context())()
    ran = ran_in(registry)
    assert ran.outcome == (JobState.CANCELLED, "cancelled on request")
    assert (ran.body, closed) == (piece, [True])


def test_a_job_that_does_not_print_any_more_finishes_although_it_was_cancelled(call, registry):
    def work() -> str:
        registry.request_cancel(KEY)
        return "result"

    ran = call(work)
    assert ran.outcome == (JobState.FINISHED, "")
    assert ran.job.cancel_requested_at is not None


def test_a_cancel_from_another_thread_reaches_the_job(call, registry):
    printed, cancelled = threading.Event(), threading.Event()

    def cancel() -> None:
        assert printed.wait(LONG)
        assert registry.request_cancel(KEY) is JobState.RUNNING
        cancelled.set()

    registry.add(Job(KEY, "one"))
    asking = begun(cancel)

    def work() -> None:
        print("begun")
        printed.set()
        assert cancelled.wait(LONG)
        print("not reached")

    Run(KEY, "one", registry, call_function(work), copy_context())()
    done(asking)
    ran = ran_in(registry)
    assert ran.job.state is JobState.CANCELLED
    assert ran.output == "begun\n"


def test_a_helper_thread_of_a_cancelled_job_is_not_interrupted(call, registry):
    def help_out() -> None:
        for point in POINTS.values():
            point()
        print("helped")

    def work() -> None:
        registry.request_cancel(KEY)
        # A Future is what tells whether the thread ended well; the helper belongs to the job, because the job began it.
        done(begun(help_out))
        print("not reached: this is the job's own thread")

    ran = call(work)
    assert ran.outcome == (JobState.CANCELLED, "cancelled on request")
    assert ran.output.count("not reached") == 4
    assert ran.output.endswith("helped\n")


def test_a_cancel_terminates_the_children_that_were_given_our_stream(call, registry):
    def work() -> int:
        with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=sys.stdout) as child:
            registry.request_cancel(KEY)
            return child.wait(LONG)

    ran = call(work)
    assert ran.outcome == (JobState.FINISHED, "")
    assert int(ran.body) < 0


def test_what_a_detached_block_prints_is_not_the_jobs(call, capsys):
    def work() -> None:
        print("the job's")
        with detached():
            print("the server's")

    assert call(work).output == "the job's\n"
    assert capsys.readouterr().out == "the server's\n"


def test_a_queue_that_is_full_for_a_job_in_a_job_is_the_jobs_own_failure(call):
    def work() -> None:
        raise QueueFull("no room")

    assert call(work).outcome == (JobState.FAILED, "bgmiddleware.errors.QueueFull: no room")
