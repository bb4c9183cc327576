"""A job is run again: the same request as a new job, for who may see the first one, and as who asks for it."""

# ruff: noqa: F401  # fixtures are imported by their names

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, Channel, JobState, background, marks, owners
from bgmiddleware._jobs import key_of, new_token
from bgmiddleware._serving.links import sealed, unsealed
from bgmiddleware.executors.process import ProcessExecutor
from tests.again import asking_site
from tests.kit.clients import OverHTTP, Reply, ended, start
from tests.kit.readers import UNKNOWN, token_of
from tests.kit.redis_server import redis_server, redis_server_of_module
from tests.kit.stores import STORES, Stores, opened_stores

FORM = {"content_type": "application/x-www-form-urlencoded"}
HTML = {"accept": "text/html"}
JSON = {"accept": "application/json"}
BODY = b"x" * 100_000  # more than is added with a job


class Told:
    """An app that says what it was asked, and fails the first time."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        self.asked.append({**environ, "body": body})
        status = "500 Oh" if len(self.asked) == 1 else "200 OK"
        start_response(status, [("Content-Type", "text/plain")])
        return [f"run {len(self.asked)} of {environ['REQUEST_METHOD']} {environ['QUERY_STRING']}".encode()]


@pytest.fixture(params=STORES)
def opens(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    yield from opened_stores(request, tmp_path)


def again(client: OverHTTP, target: str, **headers: str) -> Reply:
    return client.request("POST", target, b"_action=rerun", **{**FORM, **headers})


def path_of(target: str) -> str:
    return target.partition("?")[0]


def test_an_ended_job_is_run_again_as_a_new_one_and_both_know_each_other(opens: Stores) -> None:
    app = Told()
    site, client = opens(app, keep_requests=True)
    first = start(client, "/report?year=2026", method="PUT", body=BODY, content_type="text/csv")
    assert ended(site, first).state is JobState.FAILED
    state = client.request("GET", f"{first}&_view=status").json
    assert state["links"]["rerun"] == state["links"]["self"]
    reply = again(client, first, **JSON)
    assert reply.status == 202
    second = "/report" + reply["Location"]
    assert reply.json["rerun_of"] == state["links"]["self"]
    assert token_of(second) != token_of(first)
    assert ended(site, second).state is JobState.FINISHED
    assert client.request("GET", f"{second}&_view=result").text == "run 2 of PUT year=2026"
    assert [asked["body"] for asked in app.asked] == [BODY, BODY]
    assert app.asked[1]["CONTENT_TYPE"] == "text/csv"
    assert client.request("GET", f"{first}&_view=status").json["rerun_as"] == reply.json["links"]["self"]
    third = "/report" + again(client, second)["Location"]
    ended(site, third)
    assert client.request("GET", f"{third}&_view=result").text == "run 3 of PUT year=2026"
    assert "rerun" not in json.dumps(site.registry.get(key_of(token_of(first))).request)


def test_the_page_has_a_button_without_a_script_and_links_to_the_other_run(opens: Stores) -> None:
    site, client = opens(Told(), keep_requests=True)
    first = start(client, "/")
    ended(site, first)
    page = client.request("GET", first, **HTML).text
    assert '<form id="job-rerun" method="post"><button name="_action" value="rerun">Run again</button>' in page
    reply = again(client, first, **HTML)
    assert reply.status == 303
    second = "/" + reply["Location"].removeprefix("./")
    ended(site, second)
    assert f'<a href="{first.removeprefix("/")}">Earlier run</a>' in client.request("GET", second, **HTML).text
    assert f'<a href="{reply["Location"]}">Later run</a>' in client.request("GET", first, **HTML).text


def test_what_is_not_kept_or_runs_still_is_not_run_again(opens: Stores) -> None:
    app = Told()
    site, client = opens(app)
    first = start(client, "/", body=b"secret")
    ended(site, first)
    assert site.registry.get(key_of(token_of(first))).request == {}
    reply = again(client, first, **JSON)
    assert (reply.status, reply.json["type"]) == (409, "urn:bgmiddleware:problem:not-kept")
    assert client.request("GET", f"{first}&_view=status").json["links"]["rerun"] is None
    assert "job-rerun" not in client.request("GET", first, **HTML).text.partition("<script")[0]
    assert len(app.asked) == 1


def test_a_kept_request_is_gone_with_its_job(opens: Stores) -> None:
    site, client = opens(Told(), keep_requests=True)
    first = start(client, "/", body=b"secret" * 20_000)
    key = ended(site, first).key
    assert site.registry.read(key, Channel.REQUEST, 0).data.startswith(b"secret")
    assert site.registry.discard(key)
    assert again(client, first).status == 404


def test_a_job_that_runs_is_not_run_again(opens: Stores) -> None:
    site, client = opens(asking_site.view, keep_requests=True)
    first = start(client, "/")
    reply = again(client, first, **JSON)
    assert (reply.status, reply.json["type"]) == (409, "urn:bgmiddleware:problem:still-running")
    assert 'id="job-rerun" method="post" hidden' in client.request("GET", first, **HTML).text
    client.request("DELETE", first)
    ended(site, first)


def test_another_site_and_another_owner_cannot_run_it_again(opens: Stores) -> None:
    app = Told()
    site, client = opens(app, keep_requests=True, owner=owners.header("X-User"))
    first = start(client, "/", x_user="ada")
    ended(site, first)
    for headers in ({"sec_fetch_site": "cross-site"}, {"origin": "http://evil.example"}):
        assert again(client, first, x_user="ada", **headers).status == 403
    theirs, nobodys = (again(client, target, x_user="eve") for target in (first, f"/?_t={UNKNOWN}"))
    assert (theirs.status, theirs.body) == (404, nobodys.body)
    assert len(app.asked) == 1
    assert len(site.registry.jobs()) == 1


CREDENTIALS = {"cookie": "session=ada", "authorization": "Bearer ada", "x_api_key": "ada"}
CREDENTIALS["accept"] = "text/plain, */*;q=0.3"


def test_its_owner_sends_the_credentials_of_the_first_request_again(opens: Stores) -> None:
    app = Told()
    site, client = opens(app, keep_requests=True, owner=owners.header("X-User"))
    first = start(client, "/?_x=1", x_user="ada", **CREDENTIALS)
    ended(site, first)
    second = "/" + again(client, first, x_user="ada")["Location"]
    assert ended(site, second).owner == "ada"
    asked = app.asked[1]
    assert (asked["HTTP_COOKIE"], asked["HTTP_AUTHORIZATION"]) == ("session=ada", "Bearer ada")
    assert client.request("GET", second, x_user="eve").status == 404


@pytest.mark.parametrize("owner", [None, owners.header("X-User")])
def test_anybody_else_sends_his_own(opens: Stores, owner: Any) -> None:
    app = Told()
    site, client = opens(app, keep_requests=True, owner=owner)
    made_up = {"host": "evil.example", "x_requested_with": "XMLHttpRequest"}
    first = start(client, "/?year=1", body=b"row=1", **CREDENTIALS, **FORM, **made_up)  # nobody's: its token is enough
    ended(site, first)
    reply = again(client, first, cookie="session=eve", x_user="eve")
    second = "/" + reply["Location"]
    job = ended(site, second)
    assert job.owner == (None if owner is None else "eve")
    asked = app.asked[1]
    assert asked["HTTP_COOKIE"] == "session=eve"
    assert "HTTP_AUTHORIZATION" not in asked
    assert "HTTP_X_API_KEY" not in asked
    assert "HTTP_X_REQUESTED_WITH" not in asked
    assert asked["HTTP_HOST"] != "evil.example"
    assert (asked["QUERY_STRING"], asked["body"], asked["HTTP_ACCEPT"]) == ("year=1", b"row=1", "text/plain, */*;q=0.3")
    assert token_of(first) not in str({name: value for name, value in asked.items() if name != "wsgi.input"})


def test_who_has_the_first_job_only_is_not_led_to_what_another_client_ran_again(opens: Stores) -> None:
    """Without owners a token is enough to read a job: one that has another client's credentials in it, too."""
    site, client = opens(Told(), keep_requests=True)
    first = start(client, "/", cookie="session=eve")
    ended(site, first)
    reply = again(client, first, cookie="session=ada", **JSON)
    ended(site, "/" + reply["Location"])
    assert reply.json["rerun_of"] is not None
    assert client.request("GET", f"{first}&_view=status", cookie="session=eve").json["rerun_as"] is None
    again(client, first, cookie="session=eve", origin=f"http://127.0.0.1:{client.port}")
    assert client.request("GET", f"{first}&_view=status", cookie="session=eve").json["rerun_as"] is not None


def test_a_browser_with_a_cookie_of_ours_keeps_what_it_runs_again(opens: Stores) -> None:
    site, client = opens(Told(), keep_requests=True, owner=owners.cookie("sixteen letters!"))
    begun = client.request("POST", "/")
    cookie = begun["Set-Cookie"].partition(";")[0]
    first = "/" + begun["Location"]
    ended(site, first)
    assert again(client, first).status == 404
    reply = again(client, first, cookie=cookie)
    second = "/" + reply["Location"]
    assert ended(site, second).owner == ended(site, first).owner
    assert client.request("GET", second, cookie=cookie).status == 200
    assert client.request("GET", second).status == 404


def test_an_idempotency_key_of_the_first_does_not_lead_back_to_it(opens: Stores) -> None:
    app = Told()
    site, client = opens(app, keep_requests=True, owner=owners.header("X-User"))
    first = start(client, "/", x_user="ada", idempotency_key="once")
    ended(site, first)
    second = "/" + again(client, first, x_user="ada")["Location"]
    assert second != first
    ended(site, second)
    assert len(app.asked) == 2


def test_the_same_limits_and_priorities_apply(opens: Stores) -> None:
    site, client = opens(
        Told(), keep_requests=True, limit_per_mark={"/report": 1}, priority_per_mark={"/report": "low"}, deadline=60.0
    )
    first = start(client, "/report")
    before = ended(site, first)
    second = ended(site, "/report" + again(client, first)["Location"])
    for name in ("title", "groups", "priority", "deadline", "asked"):
        assert getattr(second, name) == getattr(before, name)
    assert before.groups


def test_a_function_is_not_run_again_since_it_is_no_request(opens: Stores) -> None:
    @background
    def count() -> str:
        return "counted"

    def app(environ: Any, start_response: Any) -> list[bytes]:
        count()
        raise AssertionError("unreachable")

    site, client = opens(app, when=marks.never, keep_requests=True)
    first = start(client, "/")
    ended(site, first)
    assert again(client, first).status == 409


@pytest.mark.everything
@pytest.mark.parametrize("opens", ["spool", "redis"], indirect=True)
def test_a_job_of_another_process_is_run_again_too(opens: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(asking_site.VARIABLE, opens.url)
    executor = ProcessExecutor("tests.again.asking_site:app", max_workers=1, drain=0.0)
    site, client = opens(asking_site.view, executor=executor, keep_requests=True)
    first = start(client, "/echo", body=BODY)
    ended(site, first)
    second = "/echo" + again(client, first)["Location"]
    assert ended(site, second).state is JobState.FINISHED
    assert client.request("GET", f"{second}&_view=result").body == BODY


def test_a_link_opens_with_its_own_token_only() -> None:
    one, other, third = (new_token() for _ in range(3))
    link = sealed(other, one)
    assert unsealed(link, one) == other
    assert unsealed(link, third) is None
    assert other not in link
    assert unsealed("", one) is None
    assert unsealed("a:xyz", one) is None
    assert sealed("share.abc", one) == sealed(one, "share.abc") == ""


def test_the_command_line_runs_it_again(opens: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    from bgmiddleware.__main__ import main

    site, client = opens(Told(), keep_requests=True)
    first = start(client, "/report?year=1")
    ended(site, first)
    url = f"http://127.0.0.1:{client.port}"
    assert main(["jobs", "rerun", url + first]) == 0
    printed = capsys.readouterr().out.strip()
    assert printed.startswith(f"{url}/report?year=1&_t=")
    ended(site, printed.removeprefix(url))
    assert main(["jobs", "rerun", f"{url}/?_t={UNKNOWN}"]) == 2
    assert "no such job" in capsys.readouterr().err
