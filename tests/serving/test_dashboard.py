"""The list of all jobs: for those whom the site lets in, and no way into any job."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bgmiddleware import (
    BackgroundMiddleware,
    ConfigurationError,
    MemoryRegistry,
    ThreadExecutor,
    marks,
    owners,
    progress,
)
from tests.kit.apps import Stage
from tests.kit.clients import InProcess, Reply, ended, start
from tests.kit.readers import BOTH, UNKNOWN, Clock, Opener, Play, answering, opened, token_of

HTML = {"accept": "text/html,*/*;q=0.8"}


def admins_only(environ: Any) -> bool:
    return bool(environ.get("HTTP_X_ROLE") == "admin")


ADMIN = {"x_role": "admin"}
OPTIONS: dict[str, Any] = {"dashboard": "/_jobs", "authorize": admins_only}


@pytest.fixture(params=BOTH)
def opens(request: pytest.FixtureRequest) -> Iterator[Opener]:
    yield from opened(request)


@pytest.fixture
def opens_one(opens: Opener) -> Callable[..., Any]:
    """A function that gives a site with a dashboard and one ended job, and a client of it."""

    def make(app: Any = None, path: str = "/slow", **options: Any) -> Any:
        site, client = opens(app or answering(b"body", output=b"x" * 1234), **{**OPTIONS, **options})
        target = start(client, path, x_user="ada")
        ended(site, target)
        return site, client, target

    return make


# Who may.


@pytest.mark.parametrize("options", [{"dashboard": "/_jobs"}, {"authorize": admins_only}])
def test_a_list_of_all_jobs_is_refused_without_who_may_see_it(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"(dashboard|authorize) is set without"):
        BackgroundMiddleware(answering(), **options)


@pytest.mark.parametrize(
    ("options", "named"),
    [({**OPTIONS, "dashboard": "_jobs"}, "dashboard"), ({**OPTIONS, "authorize": True}, "authorize")],
)
def test_bad_options_are_named(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        BackgroundMiddleware(answering(), **options)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("headers", [{}, {"x_role": "user"}, HTML, {"accept": "application/json"}])
def test_others_are_refused_and_learn_nothing(opens_one: Any, method: str, headers: dict[str, str]) -> None:
    _, client, _ = opens_one()
    reply = client.request(method, "/_jobs", **headers)
    assert reply.status == 403
    assert "slow" not in reply.text
    assert "no-store" in reply["Cache-Control"]
    if method == "GET" and "json" in headers.get("accept", ""):
        assert reply.json["type"] == "urn:bgmiddleware:problem:forbidden"


def test_who_may_is_asked_each_time_with_the_whole_request() -> None:
    asked: list[Any] = []

    def authorize(environ: Any) -> bool:
        asked.append(environ)
        return len(asked) > 1

    with BackgroundMiddleware(answering(), when=marks.always, dashboard="/_jobs", authorize=authorize) as site:
        client = InProcess(site)
        assert [client.request("GET", "/_jobs", cookie="a=1").status for _ in range(2)] == [403, 200]
        assert [environ["HTTP_COOKIE"] for environ in asked] == ["a=1", "a=1"]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS"])
def test_it_is_read_and_posted_to(opens_one: Any, method: str) -> None:
    site, client, _ = opens_one()
    reply = client.request(method, "/_jobs", **ADMIN)
    assert (reply.status, reply["Allow"]) == (405, "GET, HEAD, POST")
    assert len(site.registry.jobs()) == 1


def test_it_starts_no_job_even_where_everything_is_marked(opens: Opener) -> None:
    app = Stage()
    site, client = opens(app, **OPTIONS)
    for method in ("GET", "HEAD"):
        assert client.request(method, "/_jobs", prefer="respond-async", **ADMIN).status == 200
    assert site.registry.jobs() == []
    assert app.calls == []


@pytest.mark.parametrize(
    "path", ["/_jobs/", "/_JOBS", "/_jobs/x", "/x/_jobs", "/_jobs%20", "/_job", "/_jobs;x", "/%5Fjobs%2F"]
)
def test_another_path_is_the_apps(opens: Opener, path: str) -> None:
    app = Stage()
    _, client = opens(app, when=marks.path("/slow*"), **OPTIONS)
    assert client.request("GET", path, **ADMIN).body == b"fast"
    assert len(app.calls) == 1


def test_the_path_may_be_escaped_as_any_other(opens: Opener) -> None:
    _, client = opens(Stage(), when=marks.path("/slow*"), **OPTIONS)
    assert client.request("GET", "/%5Fjobs").status == 403


def test_without_one_the_path_is_the_apps(opens: Opener) -> None:
    _, client = opens(Stage(), when=marks.path("/slow*"))
    assert client.request("GET", "/_jobs", **ADMIN).body == b"fast"


def test_a_token_there_is_a_token(opens_one: Any) -> None:
    _, client, target = opens_one()
    assert client.request("GET", f"/_jobs?_t={UNKNOWN}", **ADMIN).status == 404
    assert client.request("GET", f"/_jobs?_t={token_of(target)}&_view=status").json["state"] == "finished"


# What there is.


def test_it_is_json_for_programs(opens_one: Any) -> None:
    site, client, target = opens_one(owner=owners.header("X-User"))
    for accept in ("*/*", "application/json", "application/json, text/plain, */*"):
        reply = client.request("GET", "/_jobs", accept=accept, **ADMIN)
        assert (reply.status, reply["Content-Type"], reply["Vary"]) == (200, "application/json", "Accept")
        assert "no-store" in reply["Cache-Control"]
    document = reply.json
    assert document["next"] is None
    (row,) = document["jobs"]
    job = ended(site, target)
    assert row == {
        "key": job.key,
        "title": "POST /slow",
        "state": "finished",
        "reason": "",
        "kept": False,
        "owner": "ada",
        "path": "/slow",
        "version": None,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "age": row["age"],
        "elapsed": pytest.approx(job.elapsed(0.0)),
        "output": 1234,
        "percent": None,
    }
    assert row["age"] >= 0.0


def test_it_is_a_page_for_persons(opens_one: Any) -> None:
    _, client, _ = opens_one(owner=owners.header("X-User"))
    reply = client.request("GET", "/_jobs", **HTML, **ADMIN)
    assert (reply.status, reply["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert reply["Vary"] == "Accept, Accept-Language"
    assert reply["Content-Security-Policy"].startswith("default-src 'none'")
    text = re.sub(r"<style>.*</style>", "", reply.text, flags=re.DOTALL)
    for said in ("✓ finished", "POST /slow", ">ada<", "1.23 kB", "0 s ago"):
        assert said in text
    assert client.request("HEAD", "/_jobs", **HTML, **ADMIN).body == b""


def test_an_empty_list_says_so(opens: Opener) -> None:
    _, client = opens(answering(), **OPTIONS)
    assert "There are no jobs." in client.request("GET", "/_jobs", **HTML, **ADMIN).text
    assert client.request("GET", "/_jobs", **ADMIN).json == {"jobs": [], "next": None}


def test_every_state_is_shown_with_what_it_came_to(opens: Opener) -> None:
    play = Play()
    site, client = opens(play, executor=ThreadExecutor(max_workers=1, drain=0.0), **OPTIONS)
    failed = start(client, "/failed")
    play.answers(status="500 Internal Server Error")
    ended(site, failed)
    running = start(client, "/running")
    play.prints("12345")
    assert client.request("GET", f"{running}&_offset=0").text == "12345"
    cancelled = start(client, "/cancelled")
    client.request("DELETE", cancelled)
    start(client, "/pending")
    rows = {row["title"]: row for row in client.request("GET", "/_jobs", **ADMIN).json["jobs"]}
    assert {title.partition("/")[2]: row["state"] for title, row in rows.items()} == {
        name: name for name in ("pending", "cancelled", "running", "failed")
    }
    assert rows["POST /running"]["output"] == 5
    assert rows["POST /pending"]["started_at"] is None
    assert rows["POST /failed"]["reason"] == "the app answered 500 Internal Server Error"
    page = client.request("GET", "/_jobs", **HTML, **ADMIN).text
    for said in ("… waiting", "<td>–</td><td>0 B</td>", "■ cancelled", "▶ running", "✗ failed"):
        assert said in page


def test_a_running_job_says_how_far_it_is(opens: Opener) -> None:
    play = Play()
    site, client = opens(play, **OPTIONS)
    target = start(client, "/x")
    play.does(lambda: progress(3, 8, "<writing> sheets"))
    assert client.request("GET", "/_jobs", **ADMIN).json["jobs"][0]["percent"] == 37.5
    assert "38 % · &lt;writing&gt; sheets</small>" in client.request("GET", "/_jobs", **HTML, **ADMIN).text
    play.answers()
    ended(site, target)
    assert "writing" not in client.request("GET", "/_jobs", **HTML, **ADMIN).text


@pytest.mark.parametrize(
    ("seconds", "said"), [(59, "59 s"), (3599, "59 min 59 s"), (7201, "2 h"), (200_000, "2 d 7 h")]
)
def test_the_age_is_for_reading(opens: Opener, seconds: float, said: str) -> None:
    clock = Clock()
    site, client = opens(answering(), registry=MemoryRegistry(ttl=1e9, clock=clock), **OPTIONS)
    ended(site, start(client, "/"))
    clock.ahead = seconds + 0.5
    assert f">{said} ago<" in client.request("GET", "/_jobs", **HTML, **ADMIN).text
    assert client.request("GET", "/_jobs", **ADMIN).json["jobs"][0]["age"] == pytest.approx(seconds + 0.5, abs=0.9)


def paths(reply: Reply) -> list[str]:
    return [row["title"].partition(" ")[2] for row in reply.json["jobs"]]


def test_the_newest_come_first_and_the_others_page_by_page(opens: Opener) -> None:
    site, client = opens(answering(), **OPTIONS)
    for number in range(120):
        ended(site, start(client, f"/{number}"))
    wanted = [f"/{number}" for number in reversed(range(120))]
    target, found, pages = "/_jobs", [], 0
    while target:
        reply = client.request("GET", target, **ADMIN)
        found += paths(reply)
        pages += 1
        target = reply.json["next"] and "/_jobs" + reply.json["next"]
    assert (found, pages) == (wanted, 3)
    target, found = "/_jobs", []
    while target:
        page = client.request("GET", target, **HTML, **ADMIN).text
        found += re.findall(r'">POST (/\d+)</a></td>', page)
        older = re.search(r'<a href="([^"]*)">Next 50</a>', page)
        target = "/_jobs" + older.group(1) if older else ""
    assert found == wanted
    assert '<a href="?">Newest</a>' in page
    assert "Newest" not in client.request("GET", "/_jobs", **HTML, **ADMIN).text


@pytest.mark.parametrize("query", ["before=x", "before=1-2-3", "state=odd", "since=x", "since=-1", "since=\xb2"])
def test_a_bad_parameter_is_400(opens: Opener, query: str) -> None:
    from urllib.parse import quote

    _, client = opens(answering(), **OPTIONS)
    reply = client.request("GET", f"/_jobs?{quote(query, safe='=')}", **ADMIN)
    assert reply.status == 400
    assert "must be" in reply.text


def test_nothing_that_is_shown_is_more_than_text(opens_one: Any) -> None:
    _, client, _ = opens_one(path="/%3Cscript%3Ealert(1)%3C/script%3E&amp;", owner=lambda environ: "<b>'\"&")
    text = client.request("GET", "/_jobs", **HTML, **ADMIN).text
    assert text.count("<script") == 1, "ours"
    assert "<b>" not in text
    assert "POST /&lt;script&gt;alert(1)&lt;/script&gt;&amp;amp;" in text
    assert "&lt;b&gt;&#x27;&quot;&amp;" in text


def test_it_is_no_way_in(opens_one: Any) -> None:
    _, client, target = opens_one(owner=owners.header("X-User"))
    token = token_of(target)
    for headers in ({}, HTML):
        reply = client.request("GET", "/_jobs", **headers, **ADMIN)
        assert token not in reply.text
        assert not any(token in value for _, value in reply.headers)
        for found in re.findall(r"[0-9a-f-]{32,}", reply.text):  # neither is a key one
            uuid = "-".join((found[:8], found[8:12], found[12:16], found[16:20], found[20:32]))
            assert client.request("GET", f"/slow?_t={uuid}", x_user="ada").status == 404
