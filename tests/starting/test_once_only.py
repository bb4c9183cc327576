"""A request that is sent again is not run again: ``Idempotency-Key`` and ``single_flight``."""

import contextlib
import re
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from webob.dec import wsgify

from bgmiddleware import (
    BackgroundMiddleware,
    JobState,
    MemoryRegistry,
    QueueFull,
    ThreadExecutor,
    background,
    backgrounder,
    marks,
    owners,
)
from bgmiddleware._jobs import key_of
from bgmiddleware._starting import starter
from bgmiddleware._starting.multipart import digest_of_parts
from bgmiddleware.registries import open_registry
from tests.conftest import needs
from tests.kit.apps import WAIT
from tests.kit.clients import InProcess, ended, environ, start
from tests.kit.fleets import celery_fleet, rq_fleet  # noqa: F401  # fixtures
from tests.kit.readers import BOTH, ELSEWHERE, PLAIN, Clock, Opener, Play, opened, token_of
from tests.kit.redis_server import redis_server, redis_server_of_module  # noqa: F401  # fixtures


@pytest.fixture(params=BOTH)
def opens(request: pytest.FixtureRequest) -> Iterator[Opener]:
    yield from opened(request)


KEY = {"idempotency_key": "8e03978e-40d5-43e8-bc93-6894a57f9324"}


class Counting:
    """An app that counts its runs and echoes its body, when it may."""

    def __init__(self, *, blocked: bool = False) -> None:
        self.runs: list[str] = []
        self.may_end = threading.Event()
        if not blocked:
            self.may_end.set()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        self.runs.append(environ["PATH_INFO"])
        assert self.may_end.wait(WAIT)
        start_response("200 OK", [*PLAIN, ("Set-Cookie", "a=1")])
        return [b"run %d: " % len(self.runs), body]


# Idempotency-Key.


@pytest.mark.parametrize("is_over", [False, True])
def test_the_same_request_with_the_same_key_is_the_same_job(opens: Opener, is_over: bool) -> None:
    app = Counting(blocked=not is_over)
    site, client = opens(app)
    first = start(client, "/pay?to=a", body=b"10", **KEY)
    if is_over:
        ended(site, first)
    assert start(client, "/pay?to=a", body=b"10", **KEY) == first
    again = client.request("POST", "/pay?to=a", b"10", accept="application/json", **KEY)
    assert (again.status, again.json["token"]) == (202, token_of(first))
    assert again["Job-State"] == ("finished" if is_over else again["Job-State"])
    app.may_end.set()
    ended(site, first)
    assert app.runs == ["/pay"]


@pytest.mark.parametrize("is_over", [False, True])
@pytest.mark.parametrize(
    ("method", "target", "body", "headers"),
    [
        ("POST", "/pay?to=a", b"11", {}),
        ("POST", "/pay?to=b", b"10", {}),
        ("POST", "/paid?to=a", b"10", {}),
        ("PUT", "/pay?to=a", b"10", {}),
        ("POST", "/pay?to=a", b"", {}),
        ("POST", "/pay?to=a", b"10", {"host": "other.example"}),
    ],
)
def test_another_request_with_the_same_key_is_422(
    opens: Opener, is_over: bool, method: str, target: str, body: bytes, headers: dict[str, str]
) -> None:
    app = Counting(blocked=not is_over)
    site, client = opens(app)
    first = start(client, "/pay?to=a", body=b"10", **KEY)
    if is_over:
        ended(site, first)
    reply = client.request(method, target, body, accept="application/json", **KEY, **headers)
    assert (reply.status, reply.json["type"]) == (422, "urn:bgmiddleware:problem:idempotency-key-reused")
    assert "no-store" in reply["Cache-Control"]
    app.may_end.set()
    ended(site, first)
    assert app.runs == ["/pay"]
    assert len(site.registry.jobs()) == 1, "nothing is kept of what was refused"


# A body of several parts is what its parts are.


def form(boundary: str, *parts: tuple[str, bytes], kind: str = "multipart/form-data") -> dict[str, Any]:
    lines = b"".join(f"--{boundary}\r\n{head}\r\n\r\n".encode() + content + b"\r\n" for head, content in parts)
    mark = f'"{boundary}"' if " " in boundary else boundary
    return {"content_type": f"{kind}; boundary={mark}", "body": lines + f"--{boundary}--\r\n".encode()}


FILE = 'Content-Disposition: form-data; name="rows"; filename="rows.csv"\r\nContent-Type: text/csv'
FIELD = 'Content-Disposition: form-data; name="year"'
SENT = form("one", (FIELD, b"2026"), (FILE, b"a,b\r\n--one-more\r\n" * 40_000))
CONTENT = b"a,b\r\n--one-more\r\n" * 40_000


def send(client: Any, sent: dict[str, Any], **headers: str) -> Any:
    headers = {"content_type": sent["content_type"], **KEY, **headers}
    return client.request("POST", "/pay", sent["body"], accept="application/json", **headers)


@pytest.mark.parametrize(
    "again",
    [
        form("two", (FIELD, b"2026"), (FILE, CONTENT)),
        form("with space", (FIELD, b"2026"), (FILE, CONTENT)),
        form("one-more-time", (FIELD, b"2026"), (FILE, CONTENT)),
        form("two", (FIELD.replace("Content-Disposition:", "content-disposition: "), b"2026"), (FILE, CONTENT)),
        form("two", (FIELD, b"2026"), ("\r\n".join(reversed(FILE.split("\r\n"))), CONTENT)),
    ],
)
def test_a_form_that_is_sent_again_with_another_boundary_is_the_same_request(
    opens: Opener, again: dict[str, Any]
) -> None:
    site, client = opens(Counting())
    first = send(client, SENT)
    assert first.status == 202
    ended(site, "/pay" + first["Location"])
    assert (reply := send(client, again)).status == 202
    assert reply.json["token"] == first.json["token"]


@pytest.mark.parametrize(
    "other",
    [
        form("one", (FIELD, b"2027"), (FILE, CONTENT)),
        form("two", (FIELD, b"2026"), (FILE, CONTENT + b"x")),
        form("two", (FIELD, b"2026"), (FILE.replace("rows.csv", "more.csv"), CONTENT)),
        form("two", (FIELD, b"2026"), (FILE.replace("text/csv", "text/plain"), CONTENT)),
        form("two", (FIELD.replace("year", "month"), b"2026"), (FILE, CONTENT)),
        form("two", (FILE, CONTENT), (FIELD, b"2026")),
        form("two", (FIELD, b"2026"), (FILE, CONTENT), (FIELD, b"")),
        form("two", (FIELD, b"2026")),
        form("two"),
        form("two", (FIELD, b"2026"), (FILE, CONTENT), kind="multipart/mixed"),
        {**SENT, "body": SENT["body"][:-8]},
        {**SENT, "body": SENT["body"].replace(b"--one\r\n", b"--one x\r\n")},
        {**SENT, "content_type": "multipart/form-data"},
        {"content_type": "application/octet-stream; boundary=one", "body": SENT["body"]},
    ],
)
def test_a_form_with_other_parts_is_another_request(opens: Opener, other: dict[str, Any]) -> None:
    site, client = opens(Counting())
    first = send(client, SENT)
    ended(site, "/pay" + first["Location"])
    assert send(client, other).status == 422


def test_parts_are_told_apart_wherever_a_piece_of_the_body_ends() -> None:
    sent = form("b", (FIELD, b""), (FILE, b"\r\n--\r\n--b2\r\n-"))["body"]
    whole = digest_of_parts(iter([sent]), b"b")
    assert whole is not None
    for size in range(1, 40):
        assert digest_of_parts((sent[at : at + size] for at in range(0, len(sent), size)), b"b") == whole


def test_a_head_without_an_end_is_no_part() -> None:
    assert digest_of_parts(iter([b"--b\r\n", *[b"x" * 65536] * 3]), b"b") is None


def test_parts_are_read_without_the_whole_body_in_memory() -> None:
    def chunks() -> Iterator[bytes]:
        yield f"--b\r\n{FILE}\r\n\r\n".encode()
        for _ in range(200):
            yield bytes(256 * 1024)
        yield b"\r\n--b--"

    tracemalloc.start()
    assert digest_of_parts(chunks(), b"b") is not None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 1024 * 1024


def test_a_job_that_was_asked_to_stop_is_not_joined(opens: Opener) -> None:
    app = Counting(blocked=True)
    site, client = opens(app, single_flight=True)
    first = start(client, "/r")
    assert start(client, "/r") == first
    client.request("DELETE", first)
    again = start(client, "/r")
    assert again != first
    assert start(client, "/r") == again, "but the next one is"
    app.may_end.set()
    assert ended(site, again).state is JobState.FINISHED


def test_other_keys_and_no_key_are_other_jobs(opens: Opener) -> None:
    app = Counting()
    site, client = opens(app)
    targets = [
        start(client, "/", body=b"10", **({"idempotency_key": key} if key else {})) for key in ("a", "b", "", "")
    ]
    for target in targets:
        ended(site, target)
    assert len({*targets}) == len(app.runs) == 4


def test_a_key_is_good_until_its_job_is_forgotten(opens: Opener) -> None:
    clock, app = Clock(), Counting()
    site, client = opens(app, registry=MemoryRegistry(ttl=100.0, clock=clock))
    first = start(client, "/", body=b"10", **KEY)
    ended(site, first)
    clock.ahead = 99.0
    start(client, "/", body=b"10", **KEY)
    assert len(app.runs) == 1
    clock.ahead = 101.0
    assert client.request("GET", first).status == 410
    other = start(client, "/", body=b"another request", **KEY)
    ended(site, other)
    assert len(app.runs) == 2
    assert client.request("GET", f"{other}&_view=result").body == b"run 2: another request"


@pytest.mark.parametrize(("size", "status"), [(1, 303), (255, 303), (256, 400), (5000, 400)])
def test_a_key_that_is_too_long_is_400(opens: Opener, size: int, status: int) -> None:
    site, client = opens(Counting())
    reply = client.request("POST", "/", b"x", idempotency_key="k" * size)
    assert reply.status == status
    assert len(site.registry.jobs()) == (status == 303)
    if status == 400:
        assert reply.text == "An Idempotency-Key has 1 to 255 characters.\n"


def test_an_empty_key_is_none_that_many_requests_share_by_mistake() -> None:
    with BackgroundMiddleware(Counting(), when=marks.always) as site:
        client = InProcess(site)
        assert [client.request("POST", "/", body, idempotency_key="").status for body in (b"a", b"b")] == [400, 400]


def test_a_key_is_its_owners_own(opens: Opener) -> None:
    app = Counting()
    site, client = opens(app, owner=owners.header("X-User"))
    first = {user: start(client, "/", body=b"10", x_user=user, **KEY) for user in ("ada", "bob")}
    assert first["ada"] != first["bob"]
    for user, target in first.items():
        ended(site, target)
        assert start(client, "/", body=b"10", x_user=user, **KEY) == target
    assert client.request("POST", "/", b"11", x_user="ada", **KEY).status == 422
    assert start(client, "/", body=b"11", x_user="eve", **KEY) not in first.values()
    assert len(app.runs) >= 2


# Who asks, where there are no owners?


def asked(site: BackgroundMiddleware, **added: Any) -> str:
    """Start a job by a request with this *added* to its environ; return the token."""
    heads: list[Any] = []
    given = environ("POST", "/report", b"10") | added
    b"".join(site(given, lambda status, headers, exc_info=None: heads.append((status, dict(headers)))))
    assert heads[0][0] == "303 See Other", heads
    return token_of(heads[0][1]["Location"])


JOINS = [({}, {"HTTP_IDEMPOTENCY_KEY": "1"}), ({"single_flight": True}, {})]

SIGNS: list[tuple[str, Any, Any]] = [
    ("HTTP_COOKIE", "ada=1", "bob=2"),
    ("HTTP_AUTHORIZATION", "Bearer ada", "Bearer bob"),
    ("HTTP_X_API_KEY", "ada", "bob"),
    ("HTTP_X_FORWARDED_USER", "ada", "bob"),
    ("HTTP_X_FORWARDED_FOR", "192.0.2.1", "192.0.2.2"),
    ("HTTP_X_SSL_CLIENT_CERT", "ada", "bob"),
    ("HTTP_USER_AGENT", "ada", "bob"),
    ("HTTP_ORIGIN", "https://ada.example", "https://bob.example"),
    ("HTTP_WHATEVER", "ada", "bob"),
    ("REMOTE_USER", "ada", "bob"),
    ("REMOTE_ADDR", "192.0.2.1", "192.0.2.2"),
    ("REMOTE_IDENT", "ada", "bob"),
    ("AUTH_TYPE", "ada", "bob"),
    ("SSL_CLIENT_S_DN", "CN=ada", "CN=bob"),
    ("SERVER_PORT", "443", "8443"),
    ("HTTP_X_TRACE_IDENTITY", "ada", "bob"),
    ("HTTP_X_CLIENT_ID", "ada", "bob"),
    ("a.middleware", "ada", "bob"),
    ("a.middleware", b"ada", b"bob"),
    ("a.middleware", {"user": {"id": 1}, "roles": {"a"}}, {"user": {"id": 2}, "roles": {"a"}}),
    ("a.middleware", ("ada", [1]), ("ada", [2])),
    ("a.middleware", 1, "1"),
    ("a.middleware", None, "None"),
    ("a.middleware", {"a", "b"}, {"a", "c"}),
]


@pytest.mark.parametrize(("options", "added"), JOINS)
@pytest.mark.parametrize(("name", "one", "other"), SIGNS)
def test_who_differs_in_anything_that_the_app_can_see_gets_a_job_of_his_own(
    options: dict[str, Any], added: dict[str, Any], name: str, one: Any, other: Any
) -> None:
    app = Counting(blocked=True)
    with BackgroundMiddleware(app, when=marks.always, executor=ThreadExecutor(drain=0.0), **options) as site:
        ada, bob = asked(site, **added, **{name: one}), asked(site, **added, **{name: other})
        assert len({ada, bob, asked(site, **added)}) == 3
        assert asked(site, **added, **{name: one}) == ada
        assert asked(site, **added, **{name: other}) == bob
        app.may_end.set()


@pytest.mark.parametrize(("options", "added"), JOINS)
@pytest.mark.parametrize(
    "name",
    """HTTP_CACHE_CONTROL HTTP_PRAGMA HTTP_REFERER HTTP_SEC_FETCH_SITE HTTP_SEC_FETCH_USER HTTP_SEC_FETCH_MODE
    HTTP_SEC_FETCH_DEST HTTP_DATE HTTP_PREFER REMOTE_PORT UNIQUE_ID SSL_SESSION_ID HTTP_TRACEPARENT HTTP_X_REQUEST_ID
    HTTP_X_AMZN_TRACE_ID HTTP_CF_RAY HTTP_X_REQUEST_START HTTP_X_AMZ_CF_ID HTTP_X_ENVOY_ATTEMPT_COUNT HTTP_X_RETRY_COUNT
    HTTP_X_DATADOG_PARENT_ID HTTP_X_MS_CLIENT_REQUEST_ID HTTP_UBER_TRACE_ID HTTP_X_TRACE_ID wsgi.own
    gunicorn.own""".split(),
)
def test_what_changes_from_one_try_to_the_next_is_no_sign_of_who_asks(
    options: dict[str, Any], added: dict[str, Any], name: str
) -> None:
    app = Counting(blocked=True)
    with BackgroundMiddleware(app, when=marks.always, executor=ThreadExecutor(drain=0.0), **options) as site:
        assert asked(site, **added, **{name: "one"}) == asked(site, **added, **{name: "other"}) == asked(site, **added)
        app.may_end.set()


@pytest.mark.parametrize(
    ("name", "one", "other", "same"),
    [
        ("HTTP_X_FORWARDED_FOR", "192.0.2.1:4711", "192.0.2.1:4712", True),
        ("HTTP_X_FORWARDED_FOR", "192.0.2.1:4711, 10.0.0.1:80", "192.0.2.1:4712, 10.0.0.1:81", True),
        ("HTTP_X_FORWARDED_FOR", "192.0.2.1:4711, 10.0.0.1", "192.0.2.2:4711, 10.0.0.1", False),
        ("HTTP_X_FORWARDED_FOR", "[2001:db8::1]:4711", "[2001:db8::1]:4712", True),
        ("HTTP_X_FORWARDED_FOR", "2001:db8::1:4711", "2001:db8::1:4712", False),
        ("HTTP_X_FORWARDED_FOR", "::ffff:192.0.2.1:1", "::ffff:192.0.2.1:2", False),
        ("HTTP_FORWARDED", 'for="192.0.2.1:4711";host=a', 'for="192.0.2.1:4712";host=a', True),
        ("HTTP_FORWARDED", 'for="[2001:db8::1]:4711"', 'for="[2001:db8::2]:4711"', False),
        ("HTTP_CLOUDFRONT_VIEWER_ADDRESS", "192.0.2.1:4711", "192.0.2.1:4712", True),
        ("HTTP_X_USER", "192.0.2.1:4711", "192.0.2.1:4712", False),
    ],
)
def test_the_port_of_a_client_is_no_sign_of_who_asks_and_its_address_is(
    name: str, one: str, other: str, same: bool
) -> None:
    with BackgroundMiddleware(Counting(), when=marks.always) as site:
        tokens = [asked(site, HTTP_IDEMPOTENCY_KEY="k", **{name: value}) for value in (one, other)]
        assert (tokens[0] == tokens[1]) is same


@pytest.mark.parametrize(("options", "added"), JOINS)
def test_where_something_cannot_be_compared_nobody_is_joined_and_the_log_says_why(
    options: dict[str, Any], added: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    looped: list[Any] = []
    looped.append(looped)
    app = Counting()
    with BackgroundMiddleware(app, when=marks.always, **options) as site:
        for unknown in (object(), {"user": object()}, looped):
            assert asked(site, **added, **{"a.user": unknown}) != asked(site, **added, **{"a.user": unknown})
    (record,) = caplog.records
    assert "a.user" in record.getMessage()
    assert "owner=" in record.getMessage()
    with BackgroundMiddleware(app, when=marks.always, owner=owners.remote_user, **options) as site:
        tokens = [asked(site, **added, **{"a.user": object(), "REMOTE_USER": "ada"}) for _ in range(2)]
        assert tokens[0] == tokens[1] or not added, "an owner says who asks"


@pytest.mark.parametrize("wrap", [lambda inner: [inner], lambda inner: {"a": inner}, lambda inner: ("a", inner)])
@pytest.mark.parametrize(("depth", "same"), [(20, True), (21, False), (5000, False)])
def test_values_are_compared_down_to_twenty_collections_in_each_other(
    wrap: Callable[[Any], Any], depth: int, same: bool
) -> None:
    value: Any = "ada"
    for _ in range(depth):
        value = wrap(value)
    with BackgroundMiddleware(Counting(), when=marks.always) as site:
        tokens = [asked(site, HTTP_IDEMPOTENCY_KEY="k", **{"a.user": value}) for _ in range(2)]
        assert (tokens[0] == tokens[1]) is same


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"a": 1, "b": [2]}, {"b": [2], "a": 1}, True),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 2, "b": 1}}, True),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": 1}, [["a", 1]], False),
        ({1, 2, "3"}, {"3", 2, 1}, True),
        ({1, 2}, {1, 3}, False),
        (frozenset({(1, 2)}), frozenset({(2, 1)}), False),
        ([1, 2], (1, 2), False),
        (b"1", "1", False),
    ],
)
def test_values_are_the_same_whatever_the_order_of_their_keys(one: Any, other: Any, same: bool) -> None:
    with BackgroundMiddleware(Counting(), when=marks.always) as site:
        tokens = [asked(site, HTTP_IDEMPOTENCY_KEY="k", **{"a.user": value}) for value in (one, other)]
        assert (tokens[0] == tokens[1]) is same


def test_attributes_that_a_middleware_gives_a_request_of_webob_say_who_asks() -> None:
    @wsgify.middleware  # type: ignore[untyped-decorator, unused-ignore]
    def outside(request: Any, app: Any) -> Any:
        request.user = request.headers["X-User"]
        del request.headers["X-User"]
        return request.get_response(app)

    with BackgroundMiddleware(Counting(), when=marks.always) as site:
        client = InProcess(outside(site))
        ada, bob, again = (
            token_of(client.request("POST", "/", b"10", **KEY, x_user=user)["Location"])
            for user in ("ada", "bob", "ada")
        )
        assert ada == again != bob


def test_of_an_app_that_takes_all_of_the_processs_environment_along_that_is_no_sign(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOSTNAME", "one")
    with BackgroundMiddleware(Counting(), when=marks.always) as site:
        first = asked(site, HTTP_IDEMPOTENCY_KEY="1", HOSTNAME="one")
        monkeypatch.setenv("HOSTNAME", "other")
        assert asked(site, HTTP_IDEMPOTENCY_KEY="1", HOSTNAME="other") == first
        assert asked(site, HTTP_IDEMPOTENCY_KEY="1", HOSTNAME="third") != first


def test_a_key_tells_nobody_the_token(opens: Opener) -> None:
    _, client = opens(Counting())
    _, other = opens(Counting())
    first, second = (start(client, "/", body=b"10", **KEY) for client in (client, other))
    assert first != second, "it is made with a secret of the site"


@pytest.mark.parametrize("options", [{}, {"single_flight": True}])
def test_of_many_at_once_exactly_one_runs(opens: Opener, options: dict[str, Any]) -> None:
    app = Counting(blocked=True)
    site, client = opens(app, executor=ThreadExecutor(max_workers=16, drain=0.0), **options)
    headers = {} if options else KEY
    for number in range(5):
        together = threading.Barrier(8)

        def send(
            path: str = f"/{number}", together: threading.Barrier = together, headers: dict[str, str] = headers
        ) -> str:
            headers = {"idempotency_key": headers["idempotency_key"] + path} if headers else {}
            together.wait(WAIT)
            return start(client, path, body=b"10", **headers)

        with ThreadPoolExecutor(8) as pool:
            targets = {pending.result(WAIT) for pending in [pool.submit(send) for _ in range(8)]}
        assert len(targets) == 1
    app.may_end.set()
    for job in site.registry.jobs():
        site.registry.wait(job.key, 2**62, WAIT)
    assert sorted(app.runs) == [f"/{number}" for number in range(5)]


def test_of_many_other_requests_at_once_one_runs_and_the_others_are_refused(opens: Opener) -> None:
    app = Counting()
    site, client = opens(app)
    together = threading.Barrier(8)

    def send(number: int) -> int:
        together.wait(WAIT)
        return client.request("POST", "/", b"%d" % number, **KEY).status

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(send, range(8)))
    assert statuses == [303] + [422] * 7
    (job,) = site.registry.jobs()
    site.registry.wait(job.key, 2**62, WAIT)
    assert len(app.runs) == 1


def test_a_refused_request_does_not_use_up_its_key(opens: Opener) -> None:
    play = Play()
    site, client = opens(play, executor=ThreadExecutor(max_workers=1, max_pending=0, drain=0.0))
    running = start(client, "/")
    assert client.request("POST", "/", b"10", **KEY).status == 503
    play.answers()
    ended(site, running)
    while (reply := client.request("POST", "/", b"10", **KEY)).status == 503:
        pass  # its thread is free a moment after its end is told
    assert reply.status == 303


def test_who_repeats_a_request_and_waits_gets_its_response(opens: Opener) -> None:
    app = Counting(blocked=True)
    site, client = opens(app)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(client.request, "POST", "/", b"10", prefer="wait=30", **KEY)
        while not app.runs:
            pass
        second = pool.submit(client.request, "POST", "/", b"10", prefer="wait=30", **KEY)
        app.may_end.set()
        replies = [first.result(WAIT), second.result(WAIT)]
    third = client.request("POST", "/", b"10", prefer="wait=30", **KEY)
    for reply in (*replies, third):
        assert (reply.status, reply.body) == (200, b"run 1: 10")
        assert reply["Preference-Applied"] == "wait=30"
    assert len({reply["Content-Location"] for reply in (*replies, third)}) == 1
    cookies = [value for reply in (*replies, third) for name, value in reply.headers if name == "Set-Cookie"]
    assert cookies == ["a=1"], "to one of them"
    assert app.runs == ["/"]
    assert len(site.registry.jobs()) == 1


def test_a_repetition_of_what_failed_fails_without_a_run(opens: Opener) -> None:
    runs: list[int] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ["wsgi.input"].read(2)
        runs.append(1)
        start_response("500 Internal Server Error", list(PLAIN))
        return [b"sorry"]

    _, client = opens(app)
    for _ in range(2):
        reply = client.request("POST", "/", b"10", prefer="wait=30", **KEY)
        assert (reply.status, reply.body) == (500, b"sorry")
    assert runs == [1]


def test_a_key_keeps_its_job_even_if_it_was_done_in_time(opens: Opener) -> None:
    app = Counting()
    site, client = opens(app, promote_after=WAIT)
    first = start(client, "/", body=b"10", **KEY)
    ended(site, first)
    assert start(client, "/", body=b"10", **KEY) == first
    assert len(app.runs) == 1


# single_flight.


def test_a_request_joins_an_identical_one_while_that_runs(opens: Opener) -> None:
    app = Counting(blocked=True)
    site, client = opens(app, single_flight=True)
    first = start(client, "/report?q=1", body=b"10")
    assert start(client, "/report?q=1", body=b"10") == first
    others = {
        start(client, "/report?q=2", body=b"10"),
        start(client, "/reports?q=1", body=b"10"),
        start(client, "/report?q=1", body=b"11"),
        start(client, "/report?q=1", method="PUT", body=b"10"),
    }
    assert len(others | {first}) == 5
    app.may_end.set()
    for target in others | {first}:
        ended(site, target)
    again = start(client, "/report?q=1", body=b"10")
    assert again not in others | {first}, "it has ended: this is another run"
    ended(site, again)
    assert len(app.runs) == 6
    assert client.request("GET", first).status == 200, "and the former is still there"


def test_without_it_nobody_joins(opens: Opener) -> None:
    app = Counting(blocked=True)
    _, client = opens(app)
    assert start(client, "/") != start(client, "/")
    app.may_end.set()


def test_nobody_joins_the_job_of_another_owner(opens: Opener) -> None:
    app = Counting(blocked=True)
    _, client = opens(app, single_flight=True, owner=owners.header("X-User"))
    targets = {user: start(client, "/", x_user=user) for user in ("ada", "bob")}
    assert targets["ada"] != targets["bob"]
    assert start(client, "/", x_user="ada") == targets["ada"]
    app.may_end.set()


def test_a_key_goes_before_joining(opens: Opener) -> None:
    app = Counting(blocked=True)
    _, client = opens(app, single_flight=True)
    assert start(client, "/", idempotency_key="a") != start(client, "/", idempotency_key="b")
    assert start(client, "/") == start(client, "/")
    app.may_end.set()


def test_a_long_run_is_joined_though_the_ones_before_it_are_forgotten() -> None:
    clock, app = Clock(), Counting()
    with BackgroundMiddleware(
        app, when=marks.always, single_flight=True, registry=MemoryRegistry(ttl=100.0, clock=clock)
    ) as site:
        client = InProcess(site)
        ended(site, start(client, "/"))
        app.may_end.clear()
        running = start(client, "/")
        clock.ahead = 200.0  # the first is forgotten, the second runs on
        assert start(client, "/") == running
        app.may_end.set()
        assert ended(site, running).state is JobState.FINISHED


def test_the_thousandth_run_is_found_as_quickly_as_the_first() -> None:
    added: list[str] = []

    class Noting(MemoryRegistry):
        def add(self, job: Any) -> Any:
            added.append(job.key)
            return super().add(job)

    with BackgroundMiddleware(Counting(), when=marks.always, single_flight=True, registry=Noting()) as site:
        client = InProcess(site)
        for _ in range(100):
            ended(site, start(client, "/"))
    assert len(added) <= 200, "it is not searched for among all those before"


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("headers", [{}, KEY])
def test_a_token_names_one_job_once(forgotten: bool, headers: dict[str, str]) -> None:
    clock, app = Clock(), Counting()
    with BackgroundMiddleware(
        app, when=marks.always, single_flight=True, registry=MemoryRegistry(ttl=100.0, max_jobs=3, clock=clock)
    ) as site:
        client = InProcess(site)
        first = start(client, "/", body=b"10", **headers)
        ended(site, first)
        clock.ahead = 101.0
        if forgotten:  # also that it has expired
            for number in range(9):
                ended(site, start(client, f"/{number}"))
        second = start(client, "/", body=b"10", **headers)
        ended(site, second)
        assert second != first
        assert client.request("GET", first).status == (404 if forgotten else 410)
        assert client.request("GET", second).status == 200


def test_nobody_joins_a_job_that_was_asked_to_stop(opens: Opener) -> None:
    app = Counting(blocked=True)
    site, client = opens(app, single_flight=True)
    first = start(client, "/")
    while not app.runs:
        pass
    assert client.request("DELETE", first).status == 202
    second = start(client, "/")
    assert second != first
    assert start(client, "/") == second
    app.may_end.set()
    ended(site, second)


@pytest.mark.parametrize("header", ["accept", "accept_language", "content_type"])
def test_nobody_joins_who_wants_it_in_another_form(opens: Opener, header: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "_LONGEST_WAIT", 0.0)  # no client waits for the response itself
    app = Counting(blocked=True)
    _, client = opens(app, single_flight=True)
    one, other, again = (
        token_of(client.request("POST", "/", b"[1]", **{header: value})["Location"])
        for value in ("text/csv", "application/pdf", "text/csv")
    )
    app.may_end.set()
    assert one != other
    assert one == again


@pytest.mark.parametrize(
    ("method", "header", "one", "other", "differs"),
    [
        ("GET", "range", "items=0-9", "items=10-19", True),
        ("GET", "range", "bytes=0-9", "bytes=10-19", False),
        ("PUT", "if_match", '"1"', '"2"', True),
        ("GET", "if_none_match", '"1"', '"2"', False),
        ("PUT", "if_unmodified_since", "yesterday", "today", True),
        ("GET", "accept_encoding", "gzip", "br", False),
    ],
)
def test_what_of_a_condition_reaches_the_job_tells_requests_apart(
    opens: Opener, method: str, header: str, one: str, other: str, differs: bool
) -> None:
    app = Counting(blocked=True)
    _, client = opens(app, single_flight=True)
    tokens = [start(client, "/", method=method, **{header: value}) for value in (one, other, one)]
    app.may_end.set()
    assert (tokens[0] != tokens[1]) is differs
    assert tokens[0] == tokens[2]


def test_a_key_with_a_body_of_another_type_is_422(opens: Opener) -> None:
    _, client = opens(Counting())
    assert client.request("POST", "/", b"[1]", content_type="text/csv", **KEY).status == 303
    assert client.request("POST", "/", b"[1]", content_type="application/json", **KEY).status == 422
    assert client.request("POST", "/", b"[1]", content_type="text/csv", accept="application/json", **KEY).status == 202


def test_nothing_of_who_asks_can_be_read_in_the_registry() -> None:
    with BackgroundMiddleware(Counting(), when=marks.always, single_flight=True) as site:
        InProcess(site).request("POST", "/", x_api_key="from 1 to 9999", idempotency_key="k")
        (job,) = site.registry.jobs()
        assert re.fullmatch("[0-9a-f]{64}", job.name)
        with BackgroundMiddleware(Counting(), when=marks.always, single_flight=True) as other:
            InProcess(other).request("POST", "/", x_api_key="from 1 to 9999", idempotency_key="k")
            assert other.registry.jobs()[0].name != job.name, "nor be found out by trying: it is made with a secret"


def test_who_joins_can_wait_too(opens: Opener) -> None:
    app = Counting(blocked=True)
    _, client = opens(app, single_flight=True)
    start(client, "/", body=b"10")
    with ThreadPoolExecutor() as pool:
        joined = pool.submit(client.request, "POST", "/", b"10", prefer="wait=30")
        app.may_end.set()
        reply = joined.result(WAIT)
    assert (reply.status, reply.body[-2:]) == (200, b"10")


# Decorated ones.


@pytest.mark.parametrize("options", [{}, {"single_flight": True}])
def test_a_decorated_function_is_told_apart_by_the_body_of_its_request(opens: Opener, options: dict[str, Any]) -> None:
    go_on = threading.Event()
    ran: list[str] = []

    @background
    def report(name: str) -> str:
        ran.append(name)
        go_on.wait(WAIT)
        return name

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        name = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode()
        start_response("200 OK", list(PLAIN))
        return [report(name).encode()]

    headers = {} if options else KEY
    site, client = opens(app, when=marks.path("/never"), **options)
    first = start(client, "/", body=b"ada", **headers)
    assert start(client, "/", body=b"ada", **headers) == first
    other = client.request("POST", "/", b"bob", **headers)
    assert other.status == (303 if options else 422)
    go_on.set()
    assert ended(site, first).state is JobState.FINISHED
    if options:
        assert ended(site, "/" + other["Location"]).state is JobState.FINISHED
    assert sorted(ran) == (["ada", "bob"] if options else ["ada"])
    assert client.request("GET", f"{first}&_view=result").text == "ada"


@pytest.mark.parametrize("options", [{}, {"single_flight": True}])
def test_a_decorated_view_runs_once(opens: Opener, options: dict[str, Any]) -> None:
    app = Counting(blocked=True)
    site, client = opens(backgrounder(app), when=marks.path("/never"), **options)
    headers = {} if options else KEY
    first = start(client, "/", body=b"10", **headers)
    assert start(client, "/", body=b"10", **headers) == first
    app.may_end.set()
    ended(site, first)
    assert app.runs == ["/"]


# Between processes.


@pytest.fixture(params=["spool", "redis"])
def two_sites(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Make sites that are as in processes of their own: they have nothing in common but what is stored."""
    if request.param == "redis":
        needs("redis")
        url = request.getfixturevalue("redis_server").url
    else:
        url = f"spool:{tmp_path}/jobs"
    with contextlib.ExitStack() as stack:

        def make(app: Any, executor: Any = None, **options: Any) -> BackgroundMiddleware:
            return stack.enter_context(
                BackgroundMiddleware(
                    app,
                    when=marks.always,
                    registry=open_registry(url, ttl=options.pop("ttl", 60.0)),
                    executor=executor or ThreadExecutor(drain=0.0),
                    **options,
                )
            )

        yield make


@pytest.mark.parametrize(("options", "added"), JOINS)
def test_a_request_joins_one_of_another_process(
    two_sites: Callable[..., Any], options: dict[str, Any], added: dict[str, str]
) -> None:
    app = Counting(blocked=True)
    one, other = (two_sites(app, **options) for _ in range(2))
    first = asked(one, **added)
    assert asked(other, **added) == first
    assert asked(other, **added, HTTP_X_API_KEY="bob") != first
    app.may_end.set()
    ended(one, f"?_t={first}")
    third = two_sites(app, **options)
    assert (asked(third, **added) == first) is bool(added), "after a restart too"


@pytest.mark.parametrize("opens", ELSEWHERE, indirect=True)
def test_where_jobs_run_elsewhere_a_repetition_is_the_same_job_too(opens: Opener) -> None:
    play = Play()
    site, client = opens(play)
    first = start(client, "/", body=b"10", **KEY)
    assert start(client, "/", body=b"10", **KEY) == first
    assert start(client, "/", body=b"10", x_api_key="bob", **KEY) != first
    assert client.request("POST", "/", b"11", **KEY).status == 422
    assert site.registry.get(key_of(token_of(first))).admitted
    play.answers()
    play.answers()
    assert ended(site, first).state is JobState.FINISHED
    assert start(client, "/", body=b"10", **KEY) == first


class Slow(ThreadExecutor):
    """Takes a job when it is told whether it has room."""

    def __init__(self) -> None:
        super().__init__(drain=0.0)
        self.asked = threading.Event()
        self.may_answer = threading.Event()
        self.is_full = False

    def submit(self, run: Any) -> None:
        self.asked.set()
        assert self.may_answer.wait(WAIT)
        if self.is_full:
            raise QueueFull("this one is full")
        super().submit(run)


@pytest.mark.parametrize(("options", "added"), JOINS)
@pytest.mark.parametrize("is_full", [False, True])
def test_nobody_is_told_of_a_job_before_a_process_has_taken_it(
    two_sites: Callable[..., Any], is_full: bool, options: dict[str, Any], added: dict[str, str]
) -> None:
    app, slow = Counting(), Slow()
    slow.is_full = is_full
    one, other = two_sites(app, slow, **options), two_sites(app, **options)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(InProcess(one).request, "POST", "/report", b"10", **headers_of(added))
        assert slow.asked.wait(WAIT)
        second = pool.submit(asked, other, **added)
        (stored,) = other.registry.jobs()
        other.registry.wait(stored.key, 2**62, 0.1)
        assert not second.done(), "there is one, but nobody can say yet whether it stays"
        slow.may_answer.set()
        assert first.result(WAIT).status == (503 if is_full else 303)
        token = second.result(WAIT)
    assert InProcess(other).request("GET", f"/report?_t={token}").status == 200
    if not is_full:
        assert token_of(first.result()["Location"]) == token
    ended(other, f"?_t={token}")
    assert app.runs == ["/report"]


def test_who_waits_too_long_for_another_process_is_told_to_come_again(
    two_sites: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starter, "_PATIENCE", 0.05)
    app, slow = Counting(), Slow()
    one, other = two_sites(app, slow), two_sites(app)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(InProcess(one).request, "POST", "/report", b"10", **KEY)
        assert slow.asked.wait(WAIT)
        reply = InProcess(other).request("POST", "/report", b"10", **KEY)
        assert (reply.status, reply["Retry-After"]) == (503, "5")
        assert "is being stored" in reply.text
        slow.may_answer.set()
        assert first.result(WAIT).status == 303


def headers_of(added: dict[str, str]) -> dict[str, str]:
    return {name.removeprefix("HTTP_").lower(): value for name, value in added.items()}
