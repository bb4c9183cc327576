"""An operator opens any job by its key, and may do what ``authorize`` says: nothing else, and never by a token."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, marks, owners
from bgmiddleware._jobs import key_of
from tests.kit.clients import InProcess, ended, start
from tests.kit.readers import BOTH, UNKNOWN, Opener, Play, answering, opened, token_of

ALL = ("list", "output", "result", "cancel", "keep", "discard", "rerun")
HTML = {"accept": "text/html"}
# What is asked for, and the right to it.
WAYS = [
    ("GET", "", HTML, "output"),
    ("HEAD", "", HTML, "output"),
    ("GET", "", {"accept": "text/event-stream"}, "output"),
    ("GET", "", {"accept": "application/x-ndjson"}, "output"),
    ("GET", "", {}, "output"),
    ("GET", "?_view=cast", {}, "output"),
    ("GET", "?_view=cast2", {}, "output"),
    ("GET", "?_offset=0", {}, "output"),
    ("GET", "?_view=app.css", {}, "output"),
    ("GET", "", {"accept": "application/json"}, "list"),
    ("GET", "?_view=status", {}, "list"),
    ("GET", "?_view=result", {}, "result"),
    ("GET", "?_view=status&_view=result", {}, "result"),
    ("GET", "", {"accept": "image/png"}, "result"),
    ("GET", "", {**HTML, "sec_fetch_mode": "navigate", "sec_fetch_dest": "empty"}, "result"),
    ("DELETE", "", {}, "cancel"),
    ("POST", "", {"_action": "cancel"}, "cancel"),
    ("POST", "", {"_action": "discard"}, "discard"),
    ("POST", "", {"_action": "rerun"}, "rerun"),
    ("POST", "", {"_action": "keep"}, "keep"),
    ("POST", "", {"_action": "unkeep"}, "keep"),
]


def by_header(environ: Any) -> Any:
    told = environ.get("HTTP_X_RIGHTS", "")
    return True if told == "all" else {right for right in told.split(",") if right}


OPTIONS: dict[str, Any] = {"dashboard": "/_jobs", "authorize": by_header, "owner": owners.header("X-User")}


@pytest.fixture(params=BOTH)
def opens(request: pytest.FixtureRequest) -> Iterator[Opener]:
    yield from opened(request)


@pytest.fixture
def opens_one(opens: Opener) -> Callable[..., Any]:
    """A function that gives a site, a client, and the token of an ended job of somebody else."""

    def make(app: Any = None, **options: Any) -> Any:
        headers = [("Set-Cookie", "s=1"), ("Clear-Site-Data", '"*"')]
        app = app or answering(b"the body", output=b"the output", headers=headers)
        site, client = opens(app, **{**OPTIONS, "keep_requests": True, **options})
        target = start(client, "/slow", x_user="ada")
        ended(site, target)
        return site, client, token_of(target)

    return make


def asks(client: Any, path: str, method: str = "GET", **headers: str) -> Any:
    action = headers.pop("_action", "")
    if not action:
        return client.request(method, path, **headers)
    return client.request(
        method, path, f"_action={action}".encode(), content_type="application/x-www-form-urlencoded", **headers
    )


@pytest.mark.parametrize(("method", "query", "headers", "right"), WAYS)
def test_each_way_needs_its_right(opens_one: Any, method: str, query: str, headers: Any, right: str) -> None:
    _, client, token = opens_one()
    path = f"/_jobs/{key_of(token)}{query}"
    others = ",".join(other for other in ALL if other != right)
    for rights in ("", others, "nonsense"):
        reply = asks(client, path, method, x_rights=rights, **headers)
        assert reply.status == 403
        assert b"the output" not in reply.body
        assert b"the body" not in reply.body
    assert asks(client, path, method, x_rights=right, **headers).status in (200, 303)
    assert asks(client, path, method, x_rights="all", **headers).status in (200, 303, 404)


def test_who_may_not_look_at_a_job_is_told_nothing_of_it_when_he_cancels_it(opens_one: Any) -> None:
    _, client, token = opens_one()
    key = key_of(token)
    reply = client.request("DELETE", f"/_jobs/{key}", x_rights="cancel", accept="application/json")
    assert (reply.status, reply.json) == (200, {"key": key, "state": "finished"})


@pytest.mark.parametrize("told", [1, "list", "all", [["list"]], {"list", "everything"}, 1.0, object()])
def test_what_is_no_right_is_none_and_is_logged(told: Any, caplog: pytest.LogCaptureFixture) -> None:
    app = answering()
    with BackgroundMiddleware(app, when=marks.always, dashboard="/_jobs", authorize=lambda environ: told) as site:
        client = InProcess(site)
        assert client.request("GET", "/_jobs").status == 403
        assert client.request("GET", f"/_jobs/{'0' * 32}").status == 403
    assert "expected True, False, or a set of cancel, discard, keep, list, output, rerun, result" in caplog.text


def test_an_operator_sees_the_page_that_its_owner_sees(opens_one: Any) -> None:
    _, client, _ = opens_one()
    row = client.request("GET", "/_jobs", x_rights="all").json["jobs"][0]
    reply = client.request("GET", f"/_jobs/{row['key']}", **HTML, x_rights="all")
    assert reply.status == 200
    for said in ("POST /slow", "the output", "✓ finished", 'href="?&amp;_view=result"', 'href="../_jobs"'):
        assert said in reply.text
    assert reply["Content-Security-Policy"].startswith("default-src 'none'")
    page = client.request("GET", "/_jobs", **HTML, x_rights="all").text
    assert f'<a href="_jobs/{row["key"]}">POST /slow</a>' in page
    assert f"_jobs/{row['key']}" not in client.request("GET", "/_jobs", **HTML, x_rights="list").text


@pytest.mark.parametrize("path", ["/", "/a/b", "/x/"])
def test_the_list_and_its_jobs_find_each_other_wherever_they_are(opens: Opener, path: str) -> None:
    from urllib.parse import urljoin

    site, client = opens(answering(), **{**OPTIONS, "dashboard": path})
    ended(site, start(client, "/slow"))
    found = re.search(r'<a href="([^"?]*[0-9a-f]{32})">', client.request("GET", path, **HTML, x_rights="all").text)
    assert found is not None
    job = urljoin(path, found[1])
    page = client.request("GET", job, **HTML, x_rights="all")
    assert page.status == 200
    back = re.search(r'<a href="([^"]*)">←', page.text)
    assert back is not None
    assert urljoin(job, back[1]) == path


def test_the_page_offers_only_what_may_be_done(opens_one: Any) -> None:
    _, client, token = opens_one()
    path = f"/_jobs/{key_of(token)}"
    page = client.request("GET", path, **HTML, x_rights="output").text
    assert 'data-denied="answer cancel result"' in page
    assert 'value="discard"' not in page
    assert "_view=result" not in page
    links = client.request("GET", path, accept="application/json", x_rights="list").json["links"]
    assert links == {"self": "?", "status": "?&_view=status"}
    assert client.request("GET", path, accept="application/json", x_rights="list")["Link"].count("rel=") == 1


def test_the_token_is_nowhere(opens_one: Any) -> None:
    _, client, token = opens_one()
    path = f"/_jobs/{key_of(token)}"
    replies = [client.request("GET", "/_jobs", **accept, x_rights="all") for accept in ({}, HTML)]
    for method, query, headers, right in WAYS:
        if right != "discard":
            replies.append(asks(client, path + query, method, x_rights="all", **headers))
    for reply in replies:
        assert token not in json.dumps(reply.headers)
        assert token.encode() not in reply.body
    assert "token" not in client.request("GET", f"{path}?_view=status", x_rights="all").json


def test_a_key_is_no_way_in_for_others_nor_a_token_for_an_operator(opens_one: Any) -> None:
    _, client, token = opens_one()
    assert client.request("GET", f"/_jobs/{key_of(token)}", x_user="ada").status == 403
    assert client.request("GET", f"/slow?_t={token}", x_rights="all").status == 404
    assert client.request("GET", f"/_jobs/{key_of(UNKNOWN)}", x_rights="all").status == 404
    assert client.request("GET", f"/_jobs/{key_of(UNKNOWN)}", x_rights="").status == 403


def test_the_result_is_that_of_its_owner_but_for_what_was_meant_for_his_browser(opens_one: Any) -> None:
    _, client, token = opens_one()
    reply = client.request("GET", f"/_jobs/{key_of(token)}?_view=result", x_rights="result")
    assert (reply.status, reply.body) == (200, b"the body")
    names = {name.lower() for name, _ in reply.headers}
    assert names.isdisjoint({"set-cookie", "clear-site-data"})
    assert reply["Content-Security-Policy"] == "sandbox"
    own = client.request("GET", f"/slow?_t={token}&_view=result", x_user="ada")
    assert own["Set-Cookie"] == "s=1", "the operator took nothing away"


def test_an_operator_is_not_asked_for_the_credentials_of_others(opens: Opener) -> None:
    app = answering(status="401 Unauthorized", headers=[("WWW-Authenticate", "Basic")])
    site, client = opens(app, **OPTIONS)
    target = start(client, "/slow")
    ended(site, target)
    path = f"/_jobs/{key_of(token_of(target))}?_view=result"
    reply = client.request("GET", path, x_rights="all", authorization="Basic eDp5")
    assert reply.status == 401
    assert "www-authenticate" not in {name.lower() for name, _ in reply.headers}


def test_an_operator_cancels_a_job(opens: Opener) -> None:
    play = Play()
    site, client = opens(play, **OPTIONS)
    target = start(client, "/slow", x_user="ada")
    play.begins()
    path = f"/_jobs/{key_of(token_of(target))}"
    assert asks(client, path, "POST", _action="discard", x_rights="all").status == 409
    refused = asks(client, path, "POST", _action="cancel", x_rights="all", sec_fetch_site="cross-site")
    assert (refused.status, site.registry.jobs()[0].cancel_requested_at) == (403, None)
    reply = asks(client, path, "POST", _action="cancel", x_rights="all", **HTML)
    assert (reply.status, reply["Location"]) == (303, "?")
    play._steps.put(lambda: print("never"))
    assert ended(site, target).state == "cancelled"


def test_an_operator_discards_a_job_that_has_ended(opens_one: Any) -> None:
    site, client, token = opens_one()
    path = f"/_jobs/{key_of(token)}"
    assert asks(client, path, "POST", _action="discard", x_rights="all", origin="https://evil.test").status == 403
    assert asks(client, f"/slow?_t={token}", "POST", _action="discard", x_user="ada").status == 200
    assert len(site.registry.jobs()) == 1, "an owner cannot"
    reply = asks(client, path, "POST", _action="discard", x_rights="discard")
    assert (reply.status, reply["Location"]) == (303, "../_jobs")
    assert site.registry.jobs() == []
    assert client.request("GET", path, x_rights="all").status == 404


def test_events_follow_a_job_by_its_key(opens: Opener) -> None:
    play = Play()
    site, client = opens(play, **OPTIONS)
    target = start(client, "/slow", x_user="ada")
    play.prints("hello\n")
    path = f"/_jobs/{key_of(token_of(target))}"
    assert client.request("GET", f"{path}?_offset=0", x_rights="output").text == "hello\n"
    play.answers()
    ended(site, target)
    text = client.request("GET", f"{path}?_view=events", x_rights="output").text
    assert "hello" in text
    assert token_of(target) not in text


def test_a_jobs_question_is_for_who_started_it(opens_one: Any) -> None:
    _, client, token = opens_one()
    for rights in ("all", "output,cancel"):
        assert asks(client, f"/_jobs/{key_of(token)}", "POST", _action="answer", x_rights=rights).status == 403
