"""An operator runs jobs of others again, one or many at once: in nobody's name, and each of them once."""

# ruff: noqa: F401  # fixtures are imported by their names

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from bgmiddleware import (
    BackgroundMiddleware,
    Channel,
    JobState,
    MemoryRegistry,
    RegistryError,
    ThreadExecutor,
    marks,
    owners,
)
from bgmiddleware._jobs import key_of
from tests.kit.clients import InProcess, OverHTTP, Reply, ended, start
from tests.kit.readers import token_of
from tests.kit.redis_server import redis_server, redis_server_of_module
from tests.kit.stores import STORES, Stores, opened_stores

HTML = {"accept": "text/html"}
JSON = {"accept": "application/json"}
FORM = {"content_type": "application/x-www-form-urlencoded"}
ADMIN = {"cookie": "session=root", "authorization": "Bearer root", "x_user": "root", "x_api_key": "root"}
OPTIONS: dict[str, Any] = {
    "dashboard": "/_jobs",
    "authorize": lambda environ: set(
        environ.get("HTTP_X_RIGHTS", "list,output,result,cancel,discard,rerun").split(",")
    ),
    "owner": owners.header("X-User"),
    "keep_requests": True,
}


class Failing:
    """An app that fails each path the first time, and says by whom it was asked for what."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        environ = {**environ, "body": environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))}
        is_first = environ["PATH_INFO"] not in {asked["PATH_INFO"] for asked in self.asked}
        self.asked.append(environ)
        start_response("500 Oh" if is_first else "200 OK", [("Content-Type", "text/plain")])
        return [b"again"]


@pytest.fixture(params=STORES)
def opens(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    yield from opened_stores(request, tmp_path)


def failed(site: Any, client: OverHTTP, path: str, **headers: str) -> str:
    """Have a job fail, and return its key."""
    target = start(client, path, **{"x_user": "ada", "cookie": "session=ada", **headers})
    assert ended(site, target).state is JobState.FAILED
    return key_of(token_of(target))


def posts(client: OverHTTP, fields: list[tuple[str, str]], query: str = "", **headers: str) -> Reply:
    return client.request("POST", f"/_jobs{query}", urlencode(fields).encode(), **{**FORM, **HTML, **headers})


def confirmed(client: OverHTTP, page: Reply, query: str = "", **headers: str) -> Reply:
    return posts(client, re.findall(r'name="(_?\w+)" value="([^"]*)"', page.text), query, **headers)


def all_ended(site: Any) -> None:
    for job in site.registry.jobs():
        for _ in site.registry.follow(job.key):
            pass


def test_an_operator_runs_a_job_again_by_its_key_and_both_know_each_other(opens: Stores) -> None:
    app = Failing()
    site, client = opens(app, **OPTIONS)
    first = failed(site, client, "/report?year=2026", body=b"rows")
    page = client.request("GET", f"/_jobs/{first}", **HTML).text
    assert '<form id="job-rerun" method="post"><button name="_action" value="rerun">Run again</button>' in page
    reply = client.request("POST", f"/_jobs/{first}", b"_action=rerun", **FORM, **HTML)
    second = reply["Location"]
    assert (reply.status, len(second)) == (303, 32)
    all_ended(site)
    state = client.request("GET", f"/_jobs/{second}", **JSON).json
    assert (state["state"], state["rerun_of"], state["rerun_as"]) == ("finished", first, None)
    assert client.request("GET", f"/_jobs/{first}", **JSON).json["rerun_as"] == second
    assert f'<a href="{first}">Earlier run</a>' in client.request("GET", f"/_jobs/{second}", **HTML).text
    assert f'<a href="{second}">Later run</a>' in client.request("GET", f"/_jobs/{first}", **HTML).text
    asked = app.asked[1]
    assert (asked["QUERY_STRING"], asked["body"]) == ("year=2026", b"rows")
    assert site.registry.get(second).owner == "ada", "her limits apply, and nobody else's"


def test_it_is_sent_in_nobodys_name(opens: Stores) -> None:
    app = Failing()
    site, client = opens(app, **OPTIONS)
    first = failed(site, client, "/", authorization="Bearer ada", x_api_key="ada", accept_language="de")
    assert client.request("POST", f"/_jobs/{first}", b"_action=rerun", **FORM, **ADMIN).status == 303
    all_ended(site)
    before, now = app.asked
    assert now["HTTP_ACCEPT_LANGUAGE"] == "de"
    assert now["HTTP_HOST"] == before["HTTP_HOST"]
    told = {name for name in now if name.startswith(("HTTP_", "REMOTE_", "SSL_"))}
    assert told == {"HTTP_HOST", "HTTP_ACCEPT_LANGUAGE"}
    for name, value in now.items():
        assert "root" not in str(value), name
        assert "ada" not in str(value), name


def test_the_owner_is_led_to_the_new_job_and_nobody_to_its_token(opens: Stores) -> None:
    site, client = opens(Failing(), **OPTIONS)
    target = start(client, "/", x_user="ada")
    ended(site, target)
    key = key_of(token_of(target))
    second = client.request("POST", f"/_jobs/{key}", b"_action=rerun", **FORM)["Location"]
    all_ended(site)
    state = client.request("GET", f"{target}&_view=status", x_user="ada").json
    assert state["rerun_as"] == f"?_t=own.{second}"
    assert client.request("GET", "/" + state["rerun_as"], x_user="ada", **JSON).json["state"] == "finished"
    assert client.request("GET", "/" + state["rerun_as"], x_user="eve", **JSON).status == 404


def test_where_nobody_owns_a_job_its_token_leads_to_no_new_one(opens: Stores) -> None:
    site, client = opens(Failing(), **{**OPTIONS, "owner": None})
    target = start(client, "/")
    ended(site, target)
    key = key_of(token_of(target))
    second = client.request("POST", f"/_jobs/{key}", b"_action=rerun", **FORM)["Location"]
    all_ended(site)
    assert client.request("GET", f"{target}&_view=status").json["rerun_as"] is None
    assert second not in client.request("GET", target, **HTML).text


def test_where_nobody_owns_a_job_a_user_who_has_its_token_is_led_to_no_new_one_either(opens: Stores) -> None:
    site, client = opens(Failing(), **OPTIONS)
    target = start(client, "/")
    key = ended(site, target).key
    assert client.request("POST", f"/_jobs/{key}", b"_action=rerun", **FORM).status == 303
    all_ended(site)
    assert client.request("GET", f"{target}&_view=status", x_user="ada").json["rerun_as"] is None


def test_all_that_match_are_run_again_once_that_is_confirmed_and_only_once(opens: Stores) -> None:
    app = Failing()
    site, client = opens(app, **OPTIONS)
    for path in ("/a/1", "/a/2", "/b"):
        failed(site, client, path)
    ended(site, start(client, "/b", x_user="ada"))  # this one is fine
    assert ">Run again …</button>" in client.request("GET", "/_jobs", **HTML).text
    query, fields = "?path=%2Fa%2F%2A", [("_action", "rerun"), ("_all", "yes")]
    page = posts(client, fields, query)
    assert "<h1>Run 2 jobs again?</h1>" in page.text
    assert "without anybody&#x27;s cookies and credentials" in page.text
    assert len(app.asked) == 4
    for _ in range(2):
        reply = confirmed(client, page, query, **ADMIN)
        assert (reply.status, reply["Location"]) == (303, query)
        all_ended(site)
    jobs = site.registry.jobs()
    assert len(jobs) == len(app.asked) == 6
    assert sorted(job.state for job in jobs) == ["failed"] * 3 + ["finished"] * 3
    by_key = {job.key: job for job in jobs}
    pairs = [(job, by_key[job.rerun_as.partition(":")[0]]) for job in jobs if job.rerun_as]
    assert len(pairs) == 2
    for earlier, later in pairs:
        assert later.rerun_of.partition(":")[0] == earlier.key
    assert "<h1>Run 0 jobs again?</h1>" in posts(client, fields, query).text


def test_of_the_selected_those_are_left_out_that_cannot_be_run_again(opens: Stores) -> None:
    site, client = opens(Failing(), **OPTIONS)
    keys = [failed(site, client, "/x"), key_of(token_of(start(client, "/x", x_user="ada"))), "0" * 32]
    all_ended(site)
    page = posts(client, [("_action", "rerun"), *(("key", key) for key in keys)])
    assert "<h1>Run 1 job again?</h1>" in page.text
    assert "1 job left out: only jobs that failed or were lost" in page.text
    assert confirmed(client, page).status == 303
    assert len(site.registry.jobs()) == 3


def test_what_a_site_does_not_keep_it_does_not_offer(opens: Stores) -> None:
    app = Failing()
    site, client = opens(app, **{**OPTIONS, "keep_requests": False})
    key = failed(site, client, "/")
    assert ">Run again" not in client.request("GET", "/_jobs", **HTML).text
    assert posts(client, [("_action", "rerun"), ("_all", "yes"), ("_sure", "yes")]).status == 303
    reply = client.request("POST", f"/_jobs/{key}", b"_action=rerun", **FORM, **JSON)
    assert (reply.status, reply.json["type"]) == (409, "urn:bgmiddleware:problem:not-kept")
    assert len(app.asked) == 1
    assert site.registry.get(key).rerun_as == ""


@pytest.mark.parametrize(
    "headers",
    [
        {"sec_fetch_site": "cross-site"},
        {"origin": "https://evil.test"},
        {"x_rights": "list,output,cancel,discard"},
        {"x_rights": "rerun"},
    ],
)
def test_others_and_other_sites_run_nothing_again(opens: Stores, headers: dict[str, str]) -> None:
    app = Failing()
    site, client = opens(app, **OPTIONS)
    key = failed(site, client, "/")
    assert posts(client, [("_action", "rerun"), ("_all", "yes"), ("_sure", "yes")], **headers).status == 403
    if headers != {"x_rights": "rerun"}:  # which is enough for a job that he knows
        assert client.request("POST", f"/_jobs/{key}", b"_action=rerun", **FORM, **headers).status == 403
    assert len(app.asked) == 1
    if "x_rights" in headers:
        assert ">Run again" not in client.request("GET", "/_jobs", **HTML, **headers).text


def test_where_the_queue_is_full_it_is_said_how_many_are_run_again(opens: Stores) -> None:
    executor = ThreadExecutor(max_workers=1, max_pending=1, drain=0.0)
    go_on, asked = threading.Event(), []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        asked.append(environ["PATH_INFO"])
        if asked.count(environ["PATH_INFO"]) > 1:
            go_on.wait(60)
        start_response("500 Oh", [("Content-Type", "text/plain")])
        return [b""]

    site, client = opens(app, executor=executor, **OPTIONS)
    keys = [failed(site, client, f"/{number}") for number in range(4)]
    try:
        fields = [("_action", "rerun"), ("_all", "yes"), ("_sure", "yes")]
        reply = posts(client, fields, **JSON)
        assert reply.status == 503
        assert re.match(r"[12] of 4 jobs are run again", reply.json["detail"])
        again = [key for key in keys if site.registry.get(key).rerun_as]
        assert len(again) == int(reply.json["detail"][0])
        assert len(site.registry.jobs()) == 4 + len(again)
    finally:
        go_on.set()
    all_ended(site)


def test_a_lost_job_is_run_again_too_and_no_more_than_a_hundred_at_a_time(
    opens: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bgmiddleware._serving import batch

    monkeypatch.setitem(batch._MOST, "rerun", 2)
    app = Failing()
    site, client = opens(app, **OPTIONS)
    keys = [failed(site, client, f"/{number}") for number in range(3)]
    page = posts(client, [("_action", "rerun"), ("_all", "yes")])
    assert "<h1>Run 2 jobs again?</h1>" in page.text
    assert "At most 2 at a time" in page.text
    confirmed(client, page)
    all_ended(site)
    assert [bool(site.registry.get(key).rerun_as) for key in keys] == [False, True, True], "the newest first"
    lost = site.registry.get(keys[0]).changed(state=JobState.LOST)
    assert batch._runs_again(lost)
    assert not batch._runs_again(lost.changed(state=JobState.CANCELLED))
    assert not batch._runs_again(lost.changed(request={}))


def test_what_could_not_be_run_again_for_the_registry_can_be_when_that_is_back() -> None:
    class Away(MemoryRegistry):
        is_away = False

        def read(self, key: str, channel: Channel, *given: Any, **named: Any) -> Any:
            if self.is_away and channel is Channel.REQUEST:
                raise RegistryError("it is away")
            return super().read(key, channel, *given, **named)

    with Away() as registry, BackgroundMiddleware(Failing(), when=marks.always, registry=registry, **OPTIONS) as site:
        client = InProcess(site)
        target = start(client, "/", body=b"rows", x_user="ada")
        key = ended(site, target).key
        registry.is_away = True
        assert client.request("POST", f"/_jobs/{key}", b"_action=rerun", **FORM).status == 503
        assert registry.get(key).rerun_as == ""
        registry.is_away = False
        assert client.request("POST", f"/_jobs/{key}", b"_action=rerun", **FORM).status == 303
        all_ended(site)
