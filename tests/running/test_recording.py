"""What is copied of a request, what is not, and how its body is read."""

import gc
import io
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest

from bgmiddleware import BadRequestBody, BodyTooLarge
from bgmiddleware._running.recording import (
    IN_MEMORY,
    MAX_BODY,
    RecordedRequest,
    RememberingInput,
    as_it_came,
    length_of,
    plain_title,
    record_request,
    replay_environ,
    title_of,
    without_traces,
)

SIZES = (0, 1, 65535, 65536, 65537, IN_MEMORY - 1, IN_MEMORY, IN_MEMORY + 1, 3 * IN_MEMORY)


class Input:
    """A server's ``wsgi.input``: gives at most *piece* bytes at a time, and fails who reads behind *end* of it, as a
    connection that stays open would block."""

    def __init__(self, data: bytes, piece: int = 10**9, *, ends: bool = True) -> None:
        self.data = io.BytesIO(data)
        self.piece = piece
        self.ends = ends
        self.asked = 0

    def read(self, size: int = -1, /) -> bytes:
        assert size >= 0, "nobody may read to an end that there may not be"
        if not self.ends:
            assert self.data.tell() + size <= len(self.data.getvalue()), "this would wait for ever"
        self.asked += size
        return self.data.read(min(size, self.piece))


def environ_of(body: Any = b"", /, **more: Any) -> dict[str, Any]:
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ["wsgi.input"] = io.BytesIO(body) if isinstance(body, bytes) else body
    return {**environ, **more}


def whole_of(body: RememberingInput) -> bytes:
    rewound = body.rewind()
    data = b"".join(rewound.read(1) for _ in range(12))
    body.forget()
    return data


def whole(request: RecordedRequest) -> bytes:
    """Return the body, and close it."""
    with request.body:
        return b"".join(request.chunks())


# The environ.


def test_what_is_cgi_or_a_header_may_be_stored():
    environ = environ_of(
        REQUEST_METHOD="POST",
        PATH_INFO="/caf\xc3\xa9",
        QUERY_STRING="a=1",
        REMOTE_ADDR="10.0.0.1",
        REMOTE_USER="ann",
        AUTH_TYPE="Basic",
        CONTENT_TYPE="text/plain",
        HTTP_COOKIE="session=1",
        HTTP_X_ANYTHING="",
        HTTPS="on",
    )
    stored = record_request(environ).environ
    for key in environ:
        assert (key in stored) == (key.isupper() or key == "wsgi.url_scheme"), key
        assert key not in stored or stored[key] == environ[key]


def test_what_else_middlewares_put_in_is_kept_for_this_process_only():
    session = object()
    environ = environ_of(
        **{"beaker.session": session, "myapp.user": "ann", "HOME": "/root", "SECRET_KEY": "x", "REMOTE_PORT": 80}
    )
    request = record_request(environ)
    assert request.kept["beaker.session"] is session
    assert request.kept["myapp.user"] == "ann"
    assert request.kept["HOME"] == "/root"  # some servers put their own environment in: never to be stored
    assert request.kept["REMOTE_PORT"] == 80  # a key that may be stored with what is no str may not
    assert not {"beaker.session", "myapp.user", "HOME", "SECRET_KEY", "REMOTE_PORT"} & set(request.environ)


@pytest.mark.parametrize(
    "key",
    """wsgi.input wsgi.errors wsgi.file_wrapper wsgi.early_hints waitress.client_disconnected gunicorn.socket
    werkzeug.socket werkzeug.request uwsgi.node mod_wsgi.version apache.version granian.x gevent.x cheroot.x
    bottle.app bottle.request.body webob._parsed_post_vars werkzeug.server.shutdown eventlet.posthooks""".split(),
)
def test_objects_of_the_server_and_caches_of_frameworks_are_dropped(key):
    environ = environ_of()
    environ.setdefault(key, socket.socket)
    request = record_request(environ)
    assert key not in request.kept
    assert key not in request.environ


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("webob.adhoc_attrs", {"user": "ann"}),
        ("webob.client.timeout", 5),
        ("werkzeug.debug.preserve_context", [].append),
        ("werkzeug.proxy_fix.orig", {"REMOTE_ADDR": "10.0.0.1"}),
        ("flask._preserve_context", True),
        ("bottle.request.ext.user", "ann"),
        ("paste.testing_variables", {}),
    ],
)
def test_what_middlewares_and_test_clients_put_in_is_kept(key, value):
    assert record_request(environ_of(**{key: value})).kept[key] is value


def test_the_attributes_of_a_request_that_the_app_adds_are_not_the_requests_as_it_came():
    environ = environ_of(**{"webob.adhoc_attrs": {"user": "ann"}})
    recorded = as_it_came(environ)
    environ["webob.adhoc_attrs"]["session"] = object()
    assert record_request(recorded).kept["webob.adhoc_attrs"] == {"user": "ann"}


def test_what_the_app_kept_of_a_request_that_it_saw_is_left_out():
    keys = ("webob.adhoc_attrs", "bottle.request.ext.user", "werkzeug.url_adapter", "flask.request")
    environ = without_traces(environ_of(**{"my.own": 1}, **dict.fromkeys(keys, object())))
    assert environ.keys() == environ_of(**{"my.own": 1}).keys()


READER = {
    "HTTP_ACCEPT_ENCODING": "gzip, br",
    "HTTP_TE": "trailers",
    "HTTP_EXPECT": "100-continue",
    "HTTP_RANGE": "bytes=0-9",
    "HTTP_IF_RANGE": '"e"',
}
CONDITIONS = {
    "HTTP_IF_NONE_MATCH": '"e"',
    "HTTP_IF_MATCH": '"e"',
    "HTTP_IF_MODIFIED_SINCE": "Thu, 01 Jan 2026 00:00:00 GMT",
    "HTTP_IF_UNMODIFIED_SINCE": "Thu, 01 Jan 2026 00:00:00 GMT",
}


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
def test_what_concerns_the_first_reader_only_is_not_recorded(method):
    stored = record_request(environ_of(REQUEST_METHOD=method, **READER, **CONDITIONS, HTTP_IF="(<urn:lock>)")).environ
    assert not READER.keys() & stored.keys()
    assert stored["HTTP_IF"] == "(<urn:lock>)"
    for name, value in CONDITIONS.items():
        assert stored.get(name) == (None if method == "GET" else value), "what guards a change is the app's"


def test_a_range_in_a_unit_of_the_app_is_recorded():
    stored = record_request(environ_of(HTTP_RANGE="items=0-9", HTTP_IF_RANGE='"e"')).environ
    assert (stored["HTTP_RANGE"], stored["HTTP_IF_RANGE"]) == ("items=0-9", '"e"')


def test_of_a_body_in_chunks_a_length_says_nothing():
    chunked = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}
    for length in ("2", "99", "x"):
        request = record_request(environ_of(b"body", CONTENT_LENGTH=length, **chunked))
        assert whole(request) == b"body"
        assert request.environ["CONTENT_LENGTH"] == "4"


def test_an_environ_without_an_input_has_no_body():
    environ = environ_of(CONTENT_LENGTH="4")
    del environ["wsgi.input"]
    request = record_request(environ)
    assert whole(request) == b""
    assert request.environ["CONTENT_LENGTH"] == "0"


@pytest.mark.parametrize("size", [-1, None])
@pytest.mark.parametrize("piece", [3, 100])
def test_a_watched_body_that_is_read_as_a_whole_is_not_read_beyond_its_length(size, piece):
    body = RememberingInput(Input(b"first second", piece, ends=False), 100, 12)
    assert body.read(5)[:3] == b"fir"
    rest = body.read(size)
    assert body.read(size) == b""
    assert b"first second".endswith(rest)
    assert whole_of(body) == b"first second"


@pytest.mark.parametrize(
    ("environ", "length"),
    [
        ({"CONTENT_LENGTH": "12"}, 12),
        ({"CONTENT_LENGTH": "12", "HTTP_TRANSFER_ENCODING": "chunked"}, None),
        ({"CONTENT_LENGTH": ""}, None),
        ({"CONTENT_LENGTH": "x"}, None),
        ({"CONTENT_LENGTH": "9" * 5000}, None),
        ({}, None),
    ],
)
def test_the_length_of_a_body_is_what_the_client_said(environ, length):
    assert length_of(environ) == length


@pytest.mark.parametrize("size", [-1, None])
def test_a_body_that_was_read_in_part_is_whole_again_however_it_is_read(size):
    body = RememberingInput(io.BytesIO(b"first second"), 100)
    assert body.read(5) == b"first"
    assert body.rewind().read(size) == b"first second"
    body.forget()


def test_the_copy_is_not_touched_when_the_server_empties_its_environ():
    environ = environ_of(b"body", CONTENT_LENGTH="4", HTTP_X="1", **{"my.own": 1})
    request = record_request(environ)
    environ.clear()
    assert request.environ["HTTP_X"] == "1"
    assert request.kept["my.own"] == 1
    assert whole(request) == b"body"


def test_recording_does_not_change_the_environ():
    environ = environ_of(b"body", CONTENT_LENGTH="4", HTTP_TRANSFER_ENCODING="gzip")
    before = dict(environ)
    record_request(environ)
    assert environ == before


def test_a_replayed_environ_is_what_pep_3333_asks_for():
    request = record_request(environ_of(b"body", CONTENT_LENGTH="4", REQUEST_METHOD="POST"))
    body = io.BytesIO(whole(request))
    environ = replay_environ(request.environ, request.kept, body, io.StringIO(), multiprocess=False)

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["wsgi.input"].read(4)]

    answer = validator(app)(environ, lambda status, headers, exc_info=None: lambda data: None)
    assert list(answer) == [b"body"]
    answer.close()


def test_a_replayed_environ_says_what_a_replay_is():
    request = record_request(environ_of())
    body, errors = io.BytesIO(), io.StringIO()
    environ = replay_environ(request.environ, request.kept, body, errors, multiprocess=True)
    assert environ["wsgi.input"] is body
    assert environ["wsgi.version"] == (1, 0)
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["wsgi.errors"] is errors
    assert environ["wsgi.input_terminated"] is True
    assert environ["wsgi.multithread"] is True
    assert environ["wsgi.multiprocess"] is True
    assert environ["wsgi.run_once"] is False


def test_a_query_string_that_the_server_left_out_is_empty_in_the_replay():
    environ = environ_of()
    environ.pop("QUERY_STRING", None)
    stored = record_request(environ).environ
    assert replay_environ(stored, {}, io.BytesIO(), None, multiprocess=False)["QUERY_STRING"] == ""


def test_what_was_stored_wins_over_what_was_kept():
    replayed = replay_environ({"REMOTE_USER": "ann"}, {"REMOTE_USER": 1}, io.BytesIO(), None, multiprocess=False)
    assert replayed["REMOTE_USER"] == "ann"


@pytest.mark.parametrize(
    ("script_name", "path_info", "title"),
    [
        ("", "/report", "POST /report"),
        ("/app", "/report", "POST /app/report"),
        ("", "", "POST /"),
        ("/app", "", "POST /app"),
        ("", "/caf\xc3\xa9/\xe6\x97\xa5", "POST /café/日"),
        ("", "/\xff", "POST /�"),
        ("", "/no latin-1: 日", "POST /no latin-1: ?"),
    ],
)
def test_a_title_is_what_a_person_reads_in_the_url(script_name, path_info, title):
    assert title_of({"REQUEST_METHOD": "POST", "SCRIPT_NAME": script_name, "PATH_INFO": path_info}) == title


# The body.


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", [1000, 10**9])
def test_a_body_of_an_announced_length_is_read_exactly(size, piece):
    data = bytes(range(256)) * (size // 256 + 1)
    source = Input(data[:size], piece, ends=False)
    request = record_request(environ_of(source, CONTENT_LENGTH=str(size)))
    assert request.size == size
    assert request.environ["CONTENT_LENGTH"] == str(size)
    assert whole(request) == data[:size]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("piece", [1000, 10**9])
def test_a_body_without_a_length_is_read_to_its_end_where_the_server_promises_one(size, piece):
    data = bytes(range(256)) * (size // 256 + 1)
    environ = environ_of(Input(data[:size], piece), HTTP_TRANSFER_ENCODING="chunked", **{"wsgi.input_terminated": True})
    request = record_request(environ)
    assert request.size == size
    assert request.environ.get("CONTENT_LENGTH", "0") == str(size)
    assert "HTTP_TRANSFER_ENCODING" not in request.environ
    assert whole(request) == data[:size]


def test_bytes_behind_the_announced_length_are_left_for_the_next_request():
    source = io.BytesIO(b"bodyGET / HTTP/1.1")
    assert whole(record_request(environ_of(source, CONTENT_LENGTH="4"))) == b"body"
    assert source.read() == b"GET / HTTP/1.1"


@pytest.mark.parametrize("more", [{}, {"CONTENT_LENGTH": ""}, {"CONTENT_LENGTH": "0"}])
def test_without_a_length_and_a_promise_nothing_is_read(more):
    request = record_request(environ_of(Input(b"", ends=False), **more))
    assert (request.size, whole(request)) == (0, b"")
    assert request.environ.get("CONTENT_LENGTH", "0") in ("", "0")


def test_a_chunked_body_without_the_promise_of_an_end_is_refused_unread():
    with pytest.raises(BadRequestBody) as refused:
        record_request(environ_of(Input(b"", ends=False), HTTP_TRANSFER_ENCODING="chunked"))
    assert refused.value.status == 411


@pytest.mark.parametrize("length", ["abc", "-1", "+1", "1.0", "1 ", " 1", "0x10", "1,1", "١", "²"])
def test_a_length_that_is_no_number_is_refused(length):
    with pytest.raises(BadRequestBody) as refused:
        record_request(environ_of(Input(b"", ends=False), CONTENT_LENGTH=length))
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("announced", "sent"), [(1, 0), (10, 9), (65537, 65536), (IN_MEMORY + 1, IN_MEMORY), (10**7, 1)]
)
@pytest.mark.parametrize("piece", [1000, 10**9])
def test_a_body_that_ends_before_its_announced_length_is_refused(announced, sent, piece):
    with pytest.raises(BadRequestBody, match=f"after {sent} of {announced} bytes") as refused:
        record_request(environ_of(Input(b"x" * sent, piece), CONTENT_LENGTH=str(announced)))
    assert refused.value.status == 400


@pytest.mark.parametrize("limit", [0, 1, 100, 65536, IN_MEMORY + 5])
def test_an_announced_body_that_just_fits_is_taken_and_a_larger_one_refused_unread(limit):
    assert whole(record_request(environ_of(b"x" * limit, CONTENT_LENGTH=str(limit)), limit)) == b"x" * limit
    source = Input(b"x" * (limit + 1))
    with pytest.raises(BodyTooLarge) as refused:
        record_request(environ_of(source, CONTENT_LENGTH=str(limit + 1)), limit)
    assert (refused.value.status, refused.value.limit) == (413, limit)
    assert source.asked == 0


@pytest.mark.parametrize("length", ["9" * 30, "1" + "0" * 5000, "9" * 100_000])
def test_an_absurd_length_is_too_large_and_no_crash(length):
    with pytest.raises(BodyTooLarge):
        record_request(environ_of(Input(b""), CONTENT_LENGTH=length))


def test_leading_zeros_do_not_make_a_body_larger():
    request = record_request(environ_of(b"body", CONTENT_LENGTH="0" * 5000 + "4"), 4)
    assert (request.size, request.environ["CONTENT_LENGTH"], whole(request)) == (4, "4", b"body")


@pytest.mark.parametrize("limit", [0, 1, 100, 65536, IN_MEMORY + 5])
@pytest.mark.parametrize("piece", [1000, 10**9])
def test_a_body_without_a_length_that_just_fits_is_taken_and_a_larger_one_refused(limit, piece):
    terminated = {"wsgi.input_terminated": True}
    assert whole(record_request(environ_of(Input(b"x" * limit, piece), **terminated), limit)) == b"x" * limit
    source = Input(b"x" * (10 * limit + 1), piece)
    with pytest.raises(BodyTooLarge):
        record_request(environ_of(source, **terminated), limit)
    assert source.data.tell() <= limit + 1  # no more is read than needed to know


def test_the_default_limit_is_64_mib():
    with pytest.raises(BodyTooLarge) as refused:
        record_request(environ_of(Input(b""), CONTENT_LENGTH=str(MAX_BODY + 1)))
    assert refused.value.limit == MAX_BODY == 64 * 1024 * 1024


class Endless:
    """A client that never stops sending."""

    def __init__(self) -> None:
        self.sent = 0

    def read(self, size: int, /) -> bytes:
        self.sent += size
        return b"x" * size


def test_a_large_body_is_not_in_memory_as_a_whole():
    size = 4 * 1024 * 1024
    tracemalloc.start()
    try:
        with record_request(environ_of(Endless(), CONTENT_LENGTH=str(size))).body:
            assert tracemalloc.get_traced_memory()[1] < 3 * IN_MEMORY
    finally:
        tracemalloc.stop()


def test_no_temporary_file_is_left_open():
    large = IN_MEMORY + 1
    whole(record_request(environ_of(b"x" * large, CONTENT_LENGTH=str(large))))
    for body, more in (
        (Input(b"x" * large), {"CONTENT_LENGTH": str(large + 1)}),
        (Input(b"x" * 2 * large), {"wsgi.input_terminated": True}),
    ):
        with pytest.raises(BadRequestBody):
            record_request(environ_of(body, **more), large + 1)
    gc.collect()  # an unclosed file would warn


def test_the_chunks_of_a_body_can_be_read_twice():
    data = bytes(range(256)) * 4096
    request = record_request(environ_of(data, CONTENT_LENGTH=str(len(data))))
    next(request.chunks())
    assert b"".join(request.chunks()) == data
    assert whole(request) == data


# An input that is read twice.


@pytest.fixture
def remembering() -> Iterator[Callable[..., RememberingInput]]:
    made: list[RememberingInput] = []

    def remembering(source: Any, limit: int = 100) -> RememberingInput:
        made.append(RememberingInput(io.BytesIO(source) if isinstance(source, bytes) else source, limit))
        return made[-1]

    yield remembering
    for each in made:
        each.forget()


@pytest.mark.parametrize("read", [0, 1, 5, 10, -1, None])
def test_what_an_app_read_can_be_read_again_and_then_the_rest(remembering, read):
    source = remembering(b"0123456789")
    first = source.read() if read is None else source.read(read)
    assert first == b"0123456789"[: 10 if read in (None, -1) else read]
    assert whole(record_request(environ_of(source.rewind(), CONTENT_LENGTH="10"))) == b"0123456789"


@pytest.mark.parametrize(
    "read",
    [
        lambda source: source.read(),
        lambda source: source.read(-1),
        lambda source: source.read(None),
        lambda source: [source.read(3), source.read(3)],
        lambda source: source.readline(),
        lambda source: source.readline(2),
        lambda source: source.readline(-1),
        lambda source: source.readlines(),
        lambda source: source.readlines(4),
        lambda source: list(source),
        lambda source: next(iter(source)),
        lambda source: [source.read(2), source.readline(), source.read()],
    ],
)
def test_each_way_to_read_gives_what_the_source_has_and_is_remembered(remembering, read):
    data = b"first\nsecond\nno newline"
    source = remembering(data)
    first, plain = read(source), read(io.BytesIO(data))
    assert first == plain or b"".join(first) == data  # a hint of readlines may be ignored
    again = source.rewind()
    assert whole(record_request(environ_of(again, CONTENT_LENGTH=str(len(data))))) == data


def test_what_is_larger_than_the_limit_cannot_be_read_again_but_can_be_read(remembering):
    exact = remembering(b"0123456789", 10)
    exact.read()
    assert exact.rewind().read(10) == b"0123456789"
    larger = remembering(b"0123456789", 9)
    assert larger.read(9) == b"012345678"
    assert larger.read() == b"9"
    with pytest.raises(BodyTooLarge) as refused:
        larger.rewind()
    assert refused.value.limit == 9


def test_nothing_is_read_from_the_client_that_the_app_did_not_ask_for(remembering):
    source = Input(b"0123456789", ends=False)
    twice = remembering(source)
    twice.read(4)
    assert source.asked == 4
    again = twice.rewind()
    assert source.asked == 4
    assert again.read(4) == b"0123"
    assert source.asked == 4


def test_an_input_that_forgot_can_be_read_on(remembering):
    source = remembering(b"0123456789")
    assert source.read(4) == b"0123"
    source.forget()
    assert source.read() == b"456789"
    source.forget()


def test_an_input_for_which_there_is_no_room_can_be_read_all_the_same(remembering, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    data = b"x" * (IN_MEMORY + 1)
    source = remembering(data + b"more", limit=len(data) + 4)
    assert source.read(len(data)) == data
    assert source.read() == b"more"
    with pytest.raises(BadRequestBody, match="cannot be stored now") as refused:
        source.rewind()
    assert refused.value.status == 503


@pytest.mark.parametrize(("length", "end"), [(994, "a" * 10), (995, "a" * 9 + "…"), (10**6, "a" * 9 + "…")])
def test_a_title_is_bounded(length, end):
    title = plain_title(title_of({"REQUEST_METHOD": "GET", "PATH_INFO": "/" + "a" * (length + 1)}))
    assert len(title) == 1000
    assert title.endswith(end)
