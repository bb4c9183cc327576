"""My jobs: of an owner those in the registry, of a browser those that it remembers; a line each, live, with links."""

# ruff: noqa: F401  # fixtures are imported by their names

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import Job, JobState, ThreadExecutor, current_job, owners, progress
from bgmiddleware._jobs import key_of
from tests.kit.clients import OverHTTP, Reply, ended, start
from tests.kit.looking import eventually
from tests.kit.readers import Play, answering, token_of
from tests.kit.redis_server import redis_server, redis_server_of_module
from tests.kit.stores import STORES, Stores, opened_stores

HTML = {"accept": "text/html"}
JSON = {"accept": "application/json"}
FORM = {"content_type": "application/x-www-form-urlencoded"}
ADA, EVE = {"x_user": "ada"}, {"x_user": "eve"}


@pytest.fixture(params=STORES)
def opens(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    yield from opened_stores(request, tmp_path)


class Owned:
    """A site with two ended jobs of Ada's, one of Eve's and one of nobody's."""

    def __init__(self, opens: Stores) -> None:
        app = answering(output=b"printed\n")
        self.site, self.client = opens(app, owner=owners.header("X-User"), keep_requests=True)
        self.first = start(self.client, "/report?year=<1>", **ADA)
        self.second = start(self.client, "/other", **ADA)
        self.theirs = start(self.client, "/secret", **EVE)
        self.nobodys = start(self.client, "/nobodys")
        for target in (self.first, self.second, self.theirs, self.nobodys):
            ended(self.site, target)

    def mine(self, headers: dict[str, str], **more: str) -> Reply:
        return self.client.request("GET", f"{self.first}&_view=mine", **headers, **more)

    def own(self, target: str) -> str:
        return f"/report?_t=own.{key_of(token_of(target))}"


@pytest.fixture
def owned(opens: Stores) -> Owned:
    return Owned(opens)


def test_an_owner_sees_his_jobs_and_no_others_without_a_script(owned: Owned) -> None:
    reply = owned.mine({**ADA, **HTML})
    page = reply.text.partition("<script")[0]
    assert re.findall(r'<a href="([^"]*)">POST', page) == [
        f"?year=&lt;1&gt;&amp;_t=own.{key_of(token_of(owned.second))}",
        f"?year=&lt;1&gt;&amp;_t={token_of(owned.first)}",
    ]
    assert "secret" not in page
    assert "nobodys" not in page
    assert page.count("Open the result") == 2
    assert "<title>My jobs</title>" in page
    assert reply["Referrer-Policy"] == "no-referrer"
    assert "unsafe" not in reply["Content-Security-Policy"]
    assert reply["Content-Security-Policy"].startswith("default-src 'none'; ")
    rows = owned.mine({**ADA, **JSON}).json["jobs"]
    assert [row["title"] for row in rows] == ["POST /other", "POST /report?year=<1>"]
    assert owned.client.request("GET", "/report" + rows[0]["link"], **ADA).text == "printed\n"
    assert owned.mine({**EVE, **HTML}).status == 404


def test_a_link_of_an_owner_shows_his_job_in_all_views_and_to_nobody_else(owned: Owned) -> None:
    own = owned.own(owned.second)
    assert owned.client.request("GET", own, **ADA).text == "printed\n"
    status = owned.client.request("GET", f"{own}&_view=status", **ADA).json
    assert status["links"]["self"] == "?" + own.partition("?")[2]
    assert token_of(owned.second) not in str(status)
    for view in ("page", "lines", "events", "result", "share", "mine"):
        assert owned.client.request("GET", f"{own}&_view={view}", **ADA, **HTML).status == 200, view
    unknown = f"/report?_t=own.{'0' * 32}"
    for headers in (EVE, {}):
        for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
            for target in (own, owned.own(owned.nobodys)):
                theirs = owned.client.request(method, target, b"_action=discard", **FORM, **headers)
                nobodys = owned.client.request(method, unknown, b"_action=discard", **FORM, **headers)
                assert (theirs.status, theirs.body) == (404, nobodys.body)
    assert len(owned.site.registry.jobs()) == 4


def test_by_a_link_of_an_owner_a_challenge_is_shown_and_nothing_is_asked_anew(opens: Stores) -> None:
    challenge = [("WWW-Authenticate", 'Basic realm="reports"')]
    app = answering(status="401 Unauthorized", headers=challenge)
    site, client = opens(app, owner=owners.header("X-User"))
    proof = {**ADA, "authorization": "Basic YWRhOmFkYQ=="}
    reply = client.request("GET", "/report", **proof)
    target = "/report" + reply["Location"]
    key = ended(site, target).key
    own = f"/other?_t=own.{key}"
    for headers in (proof, {**proof, **HTML}):
        assert client.request("GET", own, **headers).status == client.request("GET", target, **headers).status
    assert len(site.registry.jobs()) == 1


def test_nobodys_job_is_not_read_by_its_key(owned: Owned) -> None:
    own = owned.own(owned.nobodys)
    for headers in (ADA, {}):
        assert owned.client.request("GET", own, **headers).status == 404
    assert owned.client.request("GET", owned.nobodys).status == 200


def test_without_owners_a_key_leads_nowhere(opens: Stores) -> None:
    site, client = opens(answering())
    target = start(client, "/")
    key = ended(site, target).key
    assert client.request("GET", f"/?_t=own.{key}").status == 404
    assert client.request("GET", f"{target}&_view=mine", **JSON).json == {"jobs": [], "more": False}


def test_what_is_run_again_from_a_link_of_an_owner_is_linked_both_ways(owned: Owned) -> None:
    own = owned.own(owned.second)
    reply = owned.client.request("POST", own, b"_action=rerun", **FORM, **ADA, **JSON)
    assert reply.status == 202
    again = "/report" + reply["Location"]
    ended(owned.site, again)
    place = f"?_t=own.{key_of(token_of(again))}"
    assert owned.client.request("GET", f"{own}&_view=status", **ADA).json["rerun_as"] == place
    assert owned.client.request("GET", f"{owned.second}&_view=status", **ADA).json["rerun_as"] == place
    back = owned.client.request("GET", f"{again}&_view=status", **ADA).json["rerun_of"]
    assert back == "?" + own.partition("?")[2]
    refused = owned.client.request("POST", own, b"_action=rerun", **FORM, **ADA, sec_fetch_site="cross-site")
    assert refused.status == 403


def test_the_title_counts_those_that_run_and_a_line_says_how_far(opens: Stores) -> None:
    play = Play()
    site, client = opens(play, owner=owners.header("X-User"))
    target = start(client, "/", **ADA)
    play.does(lambda: progress(1, 4))
    eventually(lambda: site.registry.get(key_of(token_of(target))).progress)
    page = client.request("GET", f"{target}&_view=mine", **ADA, **HTML).text
    assert "<title>(1) My jobs</title>" in page
    assert '<progress max="100" value="25.0"></progress>' in page
    assert "▶ running" in page
    play.answers()
    ended(site, target)
    page = client.request("GET", f"{target}&_view=mine", **ADA, accept_language="de", **HTML).text
    assert "<title>Meine Aufträge</title>" in page
    assert "✓ fertig" in page


def test_where_there_may_be_more_jobs_the_list_says_so(opens: Stores) -> None:
    site, client = opens(answering(), owner=owners.header("X-User"))
    target = start(client, "/", **ADA)
    ended(site, target)
    for count, more in ((49, False), (50, True)):
        while len(site.registry.jobs()) <= count:
            site.registry.add(Job(key_of(f"{len(site.registry.jobs())}"), "one more", owner="ada"))
        listed = client.request("GET", f"{target}&_view=mine", **ADA, **JSON).json
        assert (len(listed["jobs"]), listed["more"]) == (50, more)
        page = client.request("GET", f"{target}&_view=mine", **ADA, **HTML).text
        assert ("There may be older ones" in page) == more


def test_who_has_a_shared_link_or_is_an_operator_has_no_such_list(opens: Stores) -> None:
    options: dict[str, Any] = {"dashboard": "/_jobs", "authorize": lambda environ: "HTTP_X_USER" not in environ}
    site, client = opens(answering(), owner=owners.header("X-User"), **options)
    target = start(client, "/", **ADA)
    key = ended(site, target).key
    link = "/" + client.request("POST", target, b"_action=share", **FORM, **ADA).json["link"]
    for headers in ({}, ADA):
        assert client.request("GET", f"{link}&_view=mine", **headers).status == 403
        assert "_view=mine" not in client.request("GET", link, **headers, **HTML).text
    assert client.request("GET", f"/_jobs/{key}?_view=mine").status == 403
    assert "_view=mine" not in client.request("GET", f"/_jobs/{key}", **HTML).text
    assert "_view=mine" in client.request("GET", target, **ADA, **HTML).text
