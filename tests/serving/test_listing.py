"""The list of all jobs: filters, pages that leave out nothing, what failed, and what is done with several at once."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from bgmiddleware import Job, JobState, MemoryRegistry, Registry, owners
from bgmiddleware._jobs import key_of
from bgmiddleware._serving.listing import Cursor, Filters, _count, _oldest_first, look_for
from bgmiddleware.testing import Clock
from tests.kit.clients import ended, start
from tests.kit.redis_server import redis_server, redis_server_of_module
from tests.kit.stores import STORES, Stores, opened_stores

__all__ = ["redis_server", "redis_server_of_module"]  # fixtures

HTML = {"accept": "text/html"}
RUNNER = "r"
OPTIONS: dict[str, Any] = {
    "dashboard": "/_jobs",
    "authorize": lambda environ: set(environ.get("HTTP_X_RIGHTS", "list,output,cancel,discard").split(",")),
    "owner": owners.header("X-User"),
}


@pytest.fixture(params=STORES)
def opens(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Stores]:
    yield from opened_stores(request, tmp_path)


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    if "fail" in environ["PATH_INFO"]:
        print("Traceback (most recent call last):\n  in view\nKeyError: 'rows'")
        start_response("500 Oops", [("Content-Type", "text/plain")])
        return [b"x"]
    if "raise" in environ["PATH_INFO"]:
        raise ValueError("<no> such report")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"x"]


def titles(reply: Any) -> list[str]:
    return [row["title"].partition(" ")[2] for row in reply.json["jobs"]]


def posts(client: Any, query: str, fields: list[tuple[str, str]], **headers: str) -> Any:
    form = {"content_type": "application/x-www-form-urlencoded", **HTML, **headers}
    return client.request("POST", f"/_jobs{query}", urlencode(fields).encode(), **form)


def test_filters_leave_out_what_is_not_asked_for(opens: Stores) -> None:
    site, client = opens(app, version="7", **OPTIONS)
    for path, user in (("/a/1", "ada"), ("/a/2", "bob"), ("/fail/1", "ada"), ("/raise", "bob")):
        ended(site, start(client, path, x_user=user))

    def asks(**query: str) -> list[str]:
        return titles(client.request("GET", f"/_jobs?{urlencode(query)}"))

    assert asks() == ["/raise", "/fail/1", "/a/2", "/a/1"]
    assert asks(state="failed") == ["/raise", "/fail/1"]
    assert asks(state="running") == asks(state="lost") == asks(version="8") == asks(path="/a") == []
    assert asks(path="/a/*") == ["/a/2", "/a/1"]
    assert asks(owner="ada", path="/a/*") == ["/a/1"]
    assert asks(text="SUCH rep") == ["/raise"]
    assert asks(text="/A/") == ["/a/2", "/a/1"]
    assert len(asks(version="7", since="900")) == 4


def test_filters_are_links_that_keep_the_others(opens: Stores) -> None:
    site, client = opens(app, version="7", **OPTIONS)
    ended(site, start(client, "/a/1", x_user="<ada>"))
    page = client.request("GET", "/_jobs?state=finished", **HTML).text
    for link in (
        "?state=finished&amp;path=%2Fa%2F%2A",
        "?state=finished&amp;owner=%3Cada%3E",
        "?state=finished&amp;version=7",
    ):
        assert f'<a href="{link}">' in page
    assert '<a href="?state=finished" aria-current="page">finished</a>' in page
    assert "<ada>" not in page


def test_what_failed_is_first_with_its_reason_and_the_last_line_of_its_traceback(opens: Stores) -> None:
    site, client = opens(app, **OPTIONS)
    for path in ("/fail", "/raise", "/fine"):
        ended(site, start(client, path, x_user="ada"))
    page = client.request("GET", "/_jobs", **HTML).text
    box = page.partition("Failed lately")[2].partition("</section>")[0]
    assert re.findall(r">POST (/\w+)<", box) == ["/raise", "/fail"]
    assert "the app answered 500 Oops · KeyError: &#x27;rows&#x27;" in box
    assert box.count("ValueError: &lt;no&gt; such report") == 1
    assert "Failed lately" not in client.request("GET", "/_jobs?state=failed", **HTML).text
    assert "KeyError" not in client.request("GET", "/_jobs", x_rights="list", **HTML).text


# Pages.


def many(registry: Registry, clock: Clock, count: int, *, apart: float = 1.0) -> list[str]:
    for number in range(count):
        registry.add(Job(key_of(str(number)), str(number)))
        clock.advance(apart)
    return [str(number) for number in reversed(range(count))]


@pytest.mark.parametrize("apart", [0.0, 1.0])
def test_pages_show_each_job_though_others_come_and_go(apart: float) -> None:
    clock = Clock()
    registry = MemoryRegistry(clock=clock)
    wanted = many(registry, clock, 300, apart=apart)
    shown: list[str] = []
    after: Cursor | None = None
    for round_ in range(100):
        found = look_for(registry, Filters(), after, 20)
        shown += [job.title for job in found.jobs]
        after = found.next
        if after is None:
            break
        for new in range(7):
            registry.add(Job(key_of(f"new {round_} {new}"), "new"))
        if round_ == 3:
            for gone in wanted[:40]:
                registry.discard(key_of(gone))
    assert [title for title in shown if title != "new"] == wanted
    assert len(shown) == len(set(shown))


def test_a_look_that_takes_long_says_how_far_it_came() -> None:
    clock = Clock()
    registry = MemoryRegistry(clock=clock)
    wanted = many(registry, clock, 1000)
    ticks = iter(range(10**6))
    found = look_for(registry, Filters(text="37"), None, clock=lambda: float(next(ticks)), budget=1.5)
    assert not found.whole
    assert 0 < found.looked < 1000
    shown = [job.title for job in found.jobs]
    while found.next is not None:
        found = look_for(registry, Filters(text="37"), found.next)
        shown += [job.title for job in found.jobs]
    assert shown == [title for title in wanted if "37" in title]


def test_a_time_ends_the_look() -> None:
    clock = Clock()
    registry = MemoryRegistry(clock=clock)
    many(registry, clock, 100)
    assert [job.title for job in look_for(registry, Filters(since=3), None).jobs] == ["99", "98", "97"]


# Several at once.


def waiting(site: Any) -> list[str]:
    return [site.registry.add(Job(key_of(name), name, owner="ada")).key for name in ("one", "two", "three")]


def test_selected_jobs_are_cancelled_once_that_is_confirmed(opens: Stores) -> None:
    site, client = opens(app, **OPTIONS)
    keys = waiting(site)
    fields = [("_action", "cancel"), ("key", keys[0]), ("key", keys[1]), ("key", "0" * 32)]
    page = posts(client, "?owner=ada", fields)
    assert page.status == 200
    assert "<h1>Cancel 2 jobs?</h1>" in page.text
    assert {job.state for job in site.registry.jobs()} == {JobState.PENDING}
    sent = re.findall(r'name="(_?\w+)" value="([^"]*)"', page.text)
    reply = posts(client, "?owner=ada", sent)
    assert (reply.status, reply["Location"]) == (303, "?owner=ada")
    assert [site.registry.get(key).state for key in keys] == ["cancelled", "cancelled", "pending"]


def test_all_that_match_are_discarded(opens: Stores) -> None:
    site, client = opens(app, **OPTIONS)
    for path in ("/a/1", "/a/2", "/b"):
        ended(site, start(client, path, x_user="ada"))
    query = f"?path={quote('/a/*', safe='')}"
    fields = [("_action", "discard"), ("_all", "yes")]
    page = posts(client, query, fields)
    assert "<h1>Discard 2 jobs?</h1>" in page.text
    assert posts(client, query, re.findall(r'name="(_?\w+)" value="([^"]*)"', page.text)).status == 303
    assert titles(client.request("GET", "/_jobs")) == ["/b"]


@pytest.mark.parametrize(
    ("fields", "headers", "status"),
    [
        ([("_action", "cancel")], {"sec_fetch_site": "cross-site"}, 403),
        ([("_action", "cancel")], {"origin": "https://evil.test"}, 403),
        ([("_action", "cancel")], {"x_rights": "list,discard"}, 403),
        ([("_action", "discard")], {"x_rights": "list,cancel"}, 403),
        ([("_action", "cancel")], {"x_rights": "cancel"}, 403),
        ([("_action", "explode")], {}, 400),
        ([], {}, 400),
    ],
)
def test_what_may_not_be_done_is_not_done(
    opens: Stores, fields: list[tuple[str, str]], headers: dict[str, str], status: int
) -> None:
    site, client = opens(app, **OPTIONS)
    waiting(site)
    assert posts(client, "", [*fields, ("_all", "yes"), ("_sure", "yes")], **headers).status == status
    assert {job.state for job in site.registry.jobs()} == {JobState.PENDING}


def test_who_may_only_look_is_offered_nothing_else(opens: Stores) -> None:
    site, client = opens(app, **OPTIONS)
    waiting(site)
    page = client.request("GET", "/_jobs", x_rights="list", **HTML).text
    assert "_action" not in page
    assert 'type="checkbox" name' not in page


def test_the_policy_lets_nothing_run_but_the_list_itself(opens: Stores) -> None:
    _, client = opens(app, **OPTIONS)
    policy = client.request("GET", "/_jobs", **HTML)["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "script-src 'sha256-" in policy


# Sorted.


def sorts(client: Any, by: str, **query: str) -> list[str]:
    reply = client.request("GET", f"/_jobs?{urlencode({'sort': by, **query})}")
    assert (reply.status, reply.json["next"]) == (200, None)
    return titles(reply)


def test_each_column_sorts_both_ways(opens: Stores) -> None:
    def printing(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        print("x" * len(environ["PATH_INFO"]), end="")
        return app(environ, start_response)

    site, client = opens(printing, **OPTIONS)
    for path, user in (("/b", "bob"), ("/raise", "Ada"), ("/a/1", "cy"), ("/A/22", "dan")):
        ended(site, start(client, path, x_user=user))
    wanted = {
        "title": ["/a/1", "/A/22", "/b", "/raise"],
        "path": ["/A/22", "/a/1", "/b", "/raise"],
        "owner": ["/raise", "/b", "/a/1", "/A/22"],
        "created": ["/b", "/raise", "/a/1", "/A/22"],
        "output": ["/b", "/a/1", "/A/22", "/raise"],
    }
    for by, order in wanted.items():
        assert sorts(client, by) == order, by
        if by == "created":
            assert titles(client.request("GET", "/_jobs?sort=-created")) == order[::-1]
        else:
            assert sorts(client, f"-{by}") == order[::-1], by
    assert sorts(client, "-state")[0] == "/raise"
    assert sorts(client, "-path", state="finished") == ["/b", "/a/1", "/A/22"]
    jobs = sorted(site.registry.jobs(), key=lambda job: job.elapsed(0.0))
    took = client.request("GET", "/_jobs?sort=duration").json["jobs"]
    assert [row["elapsed"] for row in took] == pytest.approx([job.elapsed(0.0) for job in jobs])
    for bad in ("x", "--path", "before"):
        assert client.request("GET", f"/_jobs?sort={bad}").status == 400


def test_heads_of_columns_are_links_that_say_how_it_is_sorted(opens: Stores) -> None:
    site, client = opens(app, **OPTIONS)
    ended(site, start(client, "/a"))
    heads = client.request("GET", "/_jobs?owner=ada", **HTML).text.partition("<thead>")[2].partition("</thead>")[0]
    assert '<th scope="col" aria-sort="descending"><a href="?owner=ada&amp;sort=created">Created</a> ↓</th>' in heads
    assert '<th scope="col"><a href="?owner=ada&amp;sort=-duration">Duration</a></th>' in heads
    assert '<th scope="col"><a href="?owner=ada&amp;sort=path">Path</a></th>' in heads
    page = client.request("GET", "/_jobs?sort=-duration&owner=ada", **HTML).text
    heads = page.partition("<thead>")[2].partition("</thead>")[0]
    assert heads.count("aria-sort") == 1
    assert '<th scope="col" aria-sort="descending"><a href="?owner=ada&amp;sort=duration">Duration</a> ↓</th>' in heads
    assert '<th scope="col"><a href="?owner=ada">Created</a></th>' in heads
    assert '<input type="hidden" name="sort" value="-duration">' in page


def test_a_sorted_list_looks_at_so_many_and_says_so() -> None:
    clock = Clock()
    registry = MemoryRegistry(clock=clock)
    newest_first = many(registry, clock, 1100)
    found = look_for(registry, Filters(sort="title"), None, budget=float("inf"))
    assert ([job.title for job in found.jobs], found.next) == (sorted(newest_first[:1000])[:50], None)
    assert (found.looked, found.whole) == (1000, False)
    oldest = look_for(registry, Filters(sort="created"), None, budget=float("inf"))
    assert [job.title for job in oldest.jobs] == newest_first[::-1][:50]
    odd = look_for(registry, Filters(sort="created", text="9"), None, budget=float("inf"))
    assert [job.title for job in odd.jobs] == [title for title in newest_first[::-1] if "9" in title][:50]
    few = look_for(registry, Filters(sort="-title", text="109"), None, budget=float("inf"))
    assert ([job.title for job in few.jobs][:2], few.whole) == (["1099", "1098"], True)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 199, 200, 201, 512])
def test_the_oldest_are_found_whatever_their_number(count: int) -> None:
    clock = Clock()
    registry = MemoryRegistry(clock=clock)
    newest_first = many(registry, clock, count)
    found = look_for(registry, Filters(sort="created"), None, 1000, budget=float("inf"))
    assert [job.title for job in found.jobs] == newest_first[::-1][:50]
    assert _count(registry, None) == count
    shown = [job.title for _, job in _oldest_first(registry, Filters())]
    assert shown == newest_first[::-1]


def test_none_of_the_oldest_is_left_out_though_others_come() -> None:
    clock = Clock()
    registry = MemoryRegistry(clock=clock)
    newest_first = many(registry, clock, 500)
    shown = []
    for number, (_, job) in enumerate(_oldest_first(registry, Filters())):
        shown.append(job.title)
        if number % 100 == 0:
            registry.add(Job(key_of(f"new {number}"), "new"))
    assert [title for title in shown if title != "new"] == newest_first[::-1]


# Languages.


def test_it_speaks_german_to_those_who_ask_for_it(opens: Stores) -> None:
    site, client = opens(app, **{**OPTIONS, "keep_requests": True})
    for path in ("/fail", "/fine"):
        ended(site, start(client, path, x_user="ada"))
    rights = {"x_rights": "list,output,cancel,discard,rerun"}
    asked = {**HTML, **rights, "accept_language": "de-CH, en;q=0.5"}
    reply = client.request("GET", "/_jobs", **asked)
    assert reply["Vary"] == "Accept, Accept-Language"
    text = re.sub(r"<style>.*?</style>|<script.*?</script>", "", reply.text, flags=re.DOTALL)
    for said in ('lang="de"', "<h1>Aufträge</h1>", "Zuletzt gescheitert", "Die letzte Stunde", "2 Aufträge"):
        assert said in text, said
    seen = re.sub(r"<[^>]*>", " ", text)
    for word in ("Jobs", "Failed", "Created", "ago", "Cancel", "Discard", "Within", "median", "waiting", "finished"):
        assert not re.search(rf"\b{word}\b", seen), word
    page = posts(client, "", [("_action", "rerun"), ("_all", "yes")], **asked)
    assert "<h1>1 Auftrag noch einmal ausführen?</h1>" in page.text
    assert "Failed lately" in client.request("GET", "/_jobs", **{**asked, "accept_language": "fr"}).text
