"""A shared link: it reads what it says, until it is over or taken back, and leads nobody to the token."""

# ruff: noqa: F401  # fixtures are imported by their names

import contextlib
import http.client
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import JobState, owners
from bgmiddleware._jobs import key_of
from bgmiddleware._serving.actions import ACTIONS
from bgmiddleware._serving.negotiate import View
from bgmiddleware._serving.shared_links import Share, opened, signed
from tests.kit.clients import OverHTTP, Reply, ended, start
from tests.kit.readers import token_of
from tests.kit.redis_server import redis_server, redis_server_of_module
from tests.kit.stores import STORES, Stores, opened_stores

FORM = {"content_type": "application/x-www-form-urlencoded"}
JSON = {"accept": "application/json"}
HTML = {"accept": "text/html"}
ADA = {"x_user": "ada"}
EVE = {"x_user": "eve"}


@pytest.fixture(params=STORES)
def opens(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    yield from opened_stores(request, tmp_path)


def app(environ: Any, start_response: Any) -> list[bytes]:
    print("what it printed")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Set-Cookie", "session=ada")])
    return [b"its result"]


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


class Shown:
    """A job of Ada's that has ended."""

    def __init__(self, opens: Stores) -> None:
        self.clock = Clock()
        registry = opens.registry(ttl=1e6, clock=self.clock)
        self.site, self.client = opens(app, registry=registry, owner=owners.header("X-User"), keep_requests=True)
        self.target = start(self.client, "/report?year=2026", **ADA)
        self.token = token_of(self.target)
        ended(self.site, self.target)

    def posts(self, form: str, target: str = "", **headers: str) -> Reply:
        return self.client.request("POST", target or self.target, form.encode(), **{**FORM, **ADA, **headers})

    def shared(self, scope: str = "both", seconds: int = 3600) -> str:
        reply = self.posts(f"_action=share&_scope={scope}&_for={seconds}")
        assert reply.status == 201
        assert reply.json["link"] == reply["Location"]
        return "/report" + str(reply["Location"])

    def reads(self, link: str, view: str = "", **headers: str) -> Reply:
        return self.client.request("GET", link + view, **{**EVE, **headers})


@pytest.fixture
def shown(opens: Stores) -> Shown:
    return Shown(opens)


def test_a_link_shows_a_job_to_who_does_not_own_it(shown: Shown) -> None:
    link = shown.shared()
    assert shown.reads(shown.target).status == 404
    assert shown.reads(link).text == "what it printed\n"
    assert shown.reads(link, "&_view=result").text == "its result"
    state = shown.reads(link, **JSON).json
    assert (state["state"], state["shared_until"] > time.time()) == ("finished", True)
    assert not {"token", "key", "owner"} & state.keys()
    assert state["receipt"]["runner"] is None
    page = shown.reads(link, **HTML).text
    assert "Shared with you, only for reading, until " in page
    assert "day, 20" in page
    for missing in ('id="job-rerun', "_view=share", 'id="job-operator'):
        assert missing not in page.partition("<script")[0]
    assert 'id="job-cancel" method="post" hidden' in page


@pytest.mark.parametrize(("scope", "shows", "hides"), [("output", "log", "result"), ("result", "result", "log")])
def test_a_link_shows_nothing_but_its_scope(shown: Shown, scope: str, shows: str, hides: str) -> None:
    link = shown.shared(scope).removesuffix("&_view=result")
    assert shown.reads(link, f"&_view={shows}").status == 200
    hidden = {"log": ("log", "page", "events", "lines", "cast", "cast2"), "result": ("result",)}[hides]
    for view in hidden:
        assert shown.reads(link, f"&_view={view}").status == 403
    assert hides not in shown.reads(link, "&_view=status").json["links"]


def test_a_link_never_leads_to_the_token_and_changes_nothing(shown: Shown) -> None:
    link = shown.shared()
    number = next(iter(shown.site.registry.get(key_of(shown.token)).shares))
    before = shown.site.registry.jobs()
    bodies = [*(f"_action={name}&_share={number}" for name in ACTIONS), "_answer=yes", ""]
    for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        for view in ("", *(f"&_view={view}" for view in View), "&_view=no-such-view", "&_offset=0"):
            if method in ("POST", "PUT", "PATCH") and view == "&_view=result":
                continue  # a form of the replayed document: a request of its own
            for accept in ("*/*", "text/html", "application/json", "text/event-stream", "application/x-ndjson"):
                for body in bodies if method == "POST" and accept == "*/*" else [""]:
                    reply = shown.client.request(method, link + view, body.encode(), accept=accept, **FORM, **EVE)
                    said = f"{reply.headers}{reply.text}"
                    assert shown.token not in said, (method, view, accept)
                    assert key_of(shown.token) not in said, (method, view, accept)
                    assert "Set-Cookie" not in reply
                    if method == "DELETE" or (body.startswith("_a") and body != "_action=discard"):
                        assert reply.status == 403, (method, view, body)
    assert shown.site.registry.jobs() == before
    assert shown.client.request("GET", f"{shown.target}&_view=result", **ADA)["Set-Cookie"] == "session=ada"


def test_a_link_is_over_when_it_says_so(shown: Shown) -> None:
    link = shown.shared(seconds=100)
    shown.clock.ahead = 99.0
    assert shown.reads(link).status == 200
    shown.clock.ahead = 101.0
    assert shown.reads(link).status == 404
    assert shown.client.request("GET", shown.target, **ADA).status == 200


def test_a_link_that_was_taken_back_leads_nowhere(shown: Shown) -> None:
    one, other = shown.shared(), shown.shared("output")
    listed = shown.client.request("GET", f"{shown.target}&_view=share", **ADA, **JSON).json["shares"]
    assert {"/report" + share["link"] for share in listed} == {one, other}
    number = next(share["id"] for share in listed if share["scope"] == "both")
    assert shown.posts(f"_action=unshare&_share={number}").status == 200
    assert (shown.reads(one).status, shown.reads(other).status) == (404, 200)
    shown.posts("_action=unshare&_share=all")
    assert shown.reads(other).status == 404


@pytest.mark.parametrize("view", ["log", "lines", "events"])
@pytest.mark.everything
def test_who_follows_by_a_link_that_is_taken_back_is_cut_off(opens: Stores, view: str) -> None:
    goes_on = threading.Event()

    def chatting(environ: Any, start_response: Any) -> list[bytes]:
        print("before", flush=True)
        assert goes_on.wait(120)
        print("after", flush=True)
        return app(environ, start_response)

    site, client = opens(chatting, owner=owners.header("X-User"))
    target = start(client, "/", **ADA)
    link = client.request("POST", target, b"_action=share", **{**FORM, **ADA, **JSON}).json["link"]
    form = b"_action=unshare&_share=all"
    taken_back: threading.Thread = threading.Thread(target=lambda: client.request("POST", target, form, **FORM, **ADA))
    site.registry.wait(key_of(token_of(target)), 0, 60)
    told, begun_at = b"", time.monotonic()
    with (
        contextlib.suppress(http.client.HTTPException, ConnectionError),
        client.stream("GET", f"/{link}&_view={view}", **EVE) as (status, _, chunks),
    ):
        for chunk in chunks:
            told += chunk
            if b"before" in told and taken_back.ident is None:
                taken_back.start()
    assert status == 200
    taken_back.join()
    assert time.monotonic() - begun_at < 15.0, "events end after twenty seconds anyway"
    taken_back = threading.Timer(0.3, lambda: client.request("POST", target, form, **FORM, **ADA))
    link = client.request("POST", target, b"_action=share", **{**FORM, **ADA, **JSON}).json["link"]
    taken_back.start()
    assert client.request("GET", f"/{link}&_view=status&_wait=30", **EVE).status == 404
    goes_on.set()
    assert ended(site, target).state is JobState.FINISHED


def test_a_link_that_was_forged_or_is_of_another_registry_leads_nowhere(shown: Shown) -> None:
    link = shown.shared("output")
    text = token_of(link)
    job = shown.site.registry.get(key_of(shown.token))
    number = next(iter(job.shares))
    for at in range(len("share."), len(text), 7):
        forged = text[:at] + ("A" if text[at] != "A" else "B") + text[at + 1 :]
        assert shown.reads(link.replace(text, forged)).status == 404
    from bgmiddleware import MemoryRegistry

    with MemoryRegistry() as other:
        forged = signed(other, Share(job.key, number, "both", 1e12))
        assert opened(other, forged) is not None
        assert opened(shown.site.registry, forged) is None
        assert shown.reads(link.replace(text, forged)).status == 404
    # Who reads the registry makes no other link than those that there are.
    share = opened(shown.site.registry, text)
    assert share is not None
    for other in (share._replace(scope="both"), share._replace(until=1e12), share._replace(id="other")):
        assert shown.reads(link.replace(text, signed(shown.site.registry, other))).status == 404
    assert shown.reads(link).status == 200


def test_only_its_owner_shares_a_job_and_not_from_another_site(shown: Shown) -> None:
    for action in ("_action=share", "_action=unshare&_share=all"):
        assert shown.posts(action, **EVE).status == 404
        assert shown.posts(action, sec_fetch_site="cross-site").status == 403
    assert shown.reads(f"{shown.target}&_view=share").status == 404
    assert shown.site.registry.jobs()[0].shares == {}


@pytest.mark.parametrize("form", ["_scope=all", "_for=0", "_for=59", "_for=9999999", "_for=x", "_for=-1", "_for=1e9"])
def test_what_no_link_can_be_is_refused(shown: Shown, form: str) -> None:
    assert shown.posts(f"_action=share&{form}", **JSON).status == 400


def test_the_links_of_a_job_are_bounded(shown: Shown) -> None:
    for _ in range(20):
        shown.shared()
    refused = shown.posts("_action=share", **JSON)
    assert (refused.status, refused.json["type"]) == (409, "urn:bgmiddleware:problem:too-many-shares")
    shown.clock.ahead = 3601.0
    shown.shared()  # what is over takes no place


def test_a_person_shares_without_a_script(shown: Shown) -> None:
    page = shown.client.request("GET", shown.target, **ADA, **HTML).text
    assert f'href="?year=2026&amp;_t={shown.token}&amp;_view=share">Share</a>' in page
    reply = shown.posts("_action=share&_scope=both&_for=3600", **HTML)
    assert (reply.status, reply["Location"]) == (303, f"?year=2026&_t={shown.token}&_view=share")
    listed = shown.client.request("GET", "/report" + reply["Location"], **ADA, **HTML)
    assert "Output and result" in listed.text
    assert 'value="unshare"' in listed.text
    assert "script" not in listed["Content-Security-Policy"]
    number = next(iter(shown.site.registry.jobs()[0].shares))
    assert shown.posts(f"_action=unshare&_share={number}", **HTML).status == 303
    assert shown.site.registry.jobs()[0].shares == {}


def test_the_command_line_shares(opens: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    from bgmiddleware.__main__ import main

    site, client = opens(app)
    target = start(client, "/report")
    ended(site, target)
    url = f"http://127.0.0.1:{client.port}"
    assert main(["jobs", "share", url + target, "--scope", "output", "--for", "3600"]) == 0
    link = capsys.readouterr().out.strip().removeprefix(url)
    assert client.request("GET", link).text == "what it printed\n"
    assert main(["jobs", "unshare", url + target]) == 0
    assert client.request("GET", link).status == 404


def test_a_link_in_a_referer_is_not_recorded(opens: Stores) -> None:
    site, client = opens(app)
    target = start(client, "/")
    ended(site, target)
    reply = client.request("POST", target, b"_action=share", **FORM)
    link = "http://x/" + reply["Location"]
    cleaned = site._site.without_tokens({"HTTP_REFERER": link})
    assert "share." in link
    assert cleaned == {"HTTP_REFERER": "http://x/"}
