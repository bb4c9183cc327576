"""What an app answers at once is for the client that asked: a login, a redirect, a refusal. No job is left of it."""

import base64
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, JobState, MemoryRegistry, backgrounder, marks
from bgmiddleware._jobs import RecordedResponse
from bgmiddleware._starting.early import is_early_answer
from tests.kit.apps import WAIT
from tests.kit.clients import InProcess, ended, start
from tests.kit.readers import BOTH, PLAIN, Opener, Play, answering, opened


@pytest.fixture(params=BOTH)
def opens(request: pytest.FixtureRequest) -> Iterator[Opener]:
    yield from opened(request)


PASSWORD = "Basic " + base64.b64encode(b"ann:right").decode()
WRONG = "Basic " + base64.b64encode(b"ann:wrong").decode()


class Locked:
    """An app that wants a password, and keeps what is sent with it. *waits*: for a word before it says so."""

    def __init__(self, *, waits: bool = False) -> None:
        self.kept: list[bytes] = []
        self.may_refuse = threading.Event()
        if not waits:
            self.may_refuse.set()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ.get("HTTP_AUTHORIZATION") != PASSWORD:
            assert self.may_refuse.wait(WAIT)
            start_response("401 Who Are You", [*PLAIN, ("WWW-Authenticate", 'Basic realm="site"')])
            return [b"who are you?"]
        self.kept.append(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        start_response("200 OK", list(PLAIN))
        return [b"the report"]


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        ("401 Unauthorized", [("WWW-Authenticate", 'Basic realm="site"')]),
        ("302 Found", [("Location", "/login?next=/")]),
        ("303 See Other", [("Location", "/done"), ("Set-Cookie", "a=1")]),
        ("307 Temporary Redirect", [("Location", "/there")]),
        ("308 Permanent Redirect", [("Location", "/there/")]),
        ("400 Bad Request", []),
        ("404 Nowhere", []),
        ("422 Unprocessable Content", []),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.usefixtures("patient")
def test_it_is_the_answer_itself(opens: Opener, method: str, status: str, headers: list[tuple[str, str]]) -> None:
    site, client = opens(answering(b"now", status=status, headers=[*PLAIN, *headers]))
    reply = client.request(method, "/report")
    assert (reply.status, reply.body) == (int(status[:3]), b"now")
    for name, value in headers:
        assert reply[name] == value
    assert "Job-State" not in reply
    assert "Link" not in reply
    assert site.registry.jobs() == []


def test_only_a_whole_answer_of_3xx_or_4xx_is_one() -> None:
    for code in ("300", "302", "308", "400", "401", "404", "499"):
        assert is_early_answer(RecordedResponse(f"{code} X", ()))
        assert not is_early_answer(RecordedResponse(f"{code} X", (), complete=False))
    for code in ("200", "204", "299", "304", "500", "503"):
        assert not is_early_answer(RecordedResponse(f"{code} X", ()))
    assert not is_early_answer(None)


@pytest.mark.usefixtures("patient")
def test_what_it_printed_is_where_it_would_be(opens: Opener, capsys: pytest.CaptureFixture[str]) -> None:
    _, client = opens(answering(b"no", status="403 Forbidden", output=b"refused ann\n"))
    assert client.request("GET", "/report").status == 403
    assert capsys.readouterr().out == "refused ann\n"


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("status", ["303 See Other", "403 Forbidden"])
def test_what_a_decorated_view_answers_is_a_result(opens: Opener, status: str) -> None:
    site, client = opens(backgrounder(answering(b"no", status=status)), when=marks.never)
    target = start(client, "/")
    ended(site, target)
    assert client.request("GET", f"{target}&_view=result").status == int(status[:3])


@pytest.mark.usefixtures("patient")
def test_who_answers_the_challenge_is_let_in(opens: Opener) -> None:
    app = Locked()
    site, client = opens(app)
    assert client.request("PUT", "/file", b"body")["WWW-Authenticate"] == 'Basic realm="site"'
    target = start(client, "/file", body=b"body", authorization=PASSWORD)
    ended(site, target)
    assert client.request("GET", f"{target}&_view=result").body == b"the report"
    assert app.kept == [b"body"]


@pytest.mark.parametrize("options", [{"single_flight": True}, {}])
@pytest.mark.usefixtures("patient")
def test_the_same_request_again_is_not_answered_with_the_challenge(opens: Opener, options: dict[str, Any]) -> None:
    key = {} if options else {"idempotency_key": "a"}
    app = Locked()
    site, client = opens(app, owner=lambda environ: "ann", **options)
    assert client.request("POST", "/pay", b"1", **key).status == 401
    target = start(client, "/pay", body=b"1", authorization=PASSWORD, **key)
    assert ended(site, target).state is JobState.FINISHED
    assert client.request("GET", f"{target}&_view=result").body == b"the report"


@pytest.mark.parametrize("path", ["/reports/2026", "/", "/a%20b/c:d", "/dir/?x=1&y=2"])
def test_a_late_challenge_is_no_answer_to_other_credentials(opens: Opener, path: str) -> None:
    app = Locked(waits=True)
    site, client = opens(app)
    target = start(client, path, method="GET")
    app.may_refuse.set()
    ended(site, target)
    result = f"{target}&_view=result"
    assert client.request("GET", result)["WWW-Authenticate"] == 'Basic realm="site"'
    reply = client.request("GET", result, authorization=PASSWORD)
    assert reply.status == 303
    name, mark, query = path.partition("?")
    assert reply["Location"] == "./" + name.rpartition("/")[2] + mark + query


def test_a_late_challenge_is_the_answer_to_the_same_credentials(opens: Opener) -> None:
    app = Locked(waits=True)
    site, client = opens(app)
    target = start(client, "/", method="GET", authorization=WRONG)
    app.may_refuse.set()
    ended(site, target)
    assert client.request("GET", f"{target}&_view=result", authorization=WRONG).status == 401
    assert client.request("GET", f"{target}&_view=result", authorization=PASSWORD).status == 303


def test_who_is_challenged_late_is_told_to_send_the_body_again(opens: Opener) -> None:
    app = Locked(waits=True)
    site, client = opens(app)
    target = start(client, "/file", body=b"body")
    app.may_refuse.set()
    ended(site, target)
    reply = client.request("GET", f"{target}&_view=result", authorization=PASSWORD)
    assert (reply.status, "Send it again" in reply.text) == (409, True)
    assert app.kept == []


@pytest.mark.parametrize(("method", "state"), [("POST", JobState.FAILED), ("GET", JobState.FINISHED)])
def test_a_form_that_is_redirected_late_was_not_handled(opens: Opener, method: str, state: JobState) -> None:
    play = Play()
    site, client = opens(play)
    target = start(client, "/import", method=method)
    play.answers(b"", "308 Permanent Redirect", [("Location", "/import/"), ("Content-Type", "text/plain")])
    job = ended(site, target)
    assert job.state is state
    assert ("redirects it to /import/" in job.reason) == (state is JobState.FAILED)
    assert client.request("GET", f"{target}&_view=result").status == 308


def test_the_credentials_themselves_are_not_kept() -> None:
    with BackgroundMiddleware(Locked(), when=marks.always, registry=MemoryRegistry()) as site:
        target = start(InProcess(site), "/", authorization=PASSWORD, cookie="session=secret")
        document = str(ended(site, target).to_document())
        assert "secret" not in document
        assert PASSWORD[6:] not in document


# A query that is too long for a redirect.


@pytest.mark.parametrize("length", [1000, 1001, 20_000])
def test_a_long_query_is_not_in_the_url_of_its_job(opens: Opener, length: int) -> None:
    query = "q=" + "x" * (length - 2)
    asked: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        asked.append(environ["QUERY_STRING"])
        start_response("200 OK", list(PLAIN))
        return [b"found"]

    site, client = opens(app)
    target = start(client, f"/search?{query}")
    assert (query in target) == (length <= 1000)
    ended(site, target)
    assert client.request("GET", f"{target}&_view=result").body == b"found"
    again = client.request("POST", f"{target}&_view=result", b"name=x")  # a form of the response, without an action
    assert again.status == 303
    ended(site, "/search" + again["Location"])
    assert asked == [query, query]


def test_a_hash_in_a_query_ends_it_for_nobody() -> None:
    with BackgroundMiddleware(answering(b"x"), when=marks.always) as site:
        assert start(InProcess(site), "/search?q=a#b&c=1").startswith("/search?q=a%23b&c=1&_t=")


# Cookies of the response.


def cookie_site(opens: Opener, cookie: str = "session=new; Path=/") -> tuple[Any, Any]:
    return opens(answering(b"done", headers=[*PLAIN, ("Set-Cookie", cookie)]))


@pytest.mark.parametrize(
    ("then", "now", "is_delivered"),
    [
        ("session=1", "session=1", True),
        ("session=1; theme=dark", "theme=light; session=1", True),
        ("theme=dark", "theme=dark", True),
        (None, None, True),
        (None, "visits=1", True),
        ("session=1", "session=2", False),
        ("session=1", None, False),
        ("session=1", "theme=dark", False),
        ("theme=dark", "theme=dark; session=2", False),
        ("theme=dark", "theme=light", False),
        (None, "session=2", False),
    ],
)
def test_a_cookie_is_for_the_browser_that_started_the_job_as_it_was(
    opens: Opener, then: str | None, now: str | None, is_delivered: bool
) -> None:
    site, client = cookie_site(opens)
    target = start(client, "/", **({"cookie": then} if then else {})) + "&_view=result"
    ended(site, target)
    reply = client.request("GET", target, **({"cookie": now} if now else {}))
    assert (reply.body, "Set-Cookie" in reply) == (b"done", is_delivered)
    again = client.request("GET", target, **({"cookie": then} if then else {}))
    assert ("Set-Cookie" in again) is not is_delivered, "who may not have it takes it from nobody"
