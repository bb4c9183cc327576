"""The charts of the list: what the registry counted, drawn by the server, with the numbers beside them."""

import re
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pytest

from bgmiddleware import Job, JobState, MemoryRegistry
from bgmiddleware._jobs import key_of
from bgmiddleware._serving.charts import Charts
from bgmiddleware.registries.base import BOUNDS, Spread
from bgmiddleware.testing import Clock
from tests.kit.clients import ended, start
from tests.kit.redis_server import redis_server, redis_server_of_module
from tests.kit.stores import STORES, Stores, opened_stores

__all__ = ["redis_server", "redis_server_of_module"]  # fixtures

HTML = {"accept": "text/html"}
OPTIONS: dict[str, Any] = {"dashboard": "/_jobs", "authorize": lambda environ: "HTTP_X_NOT" not in environ}


@pytest.fixture(params=STORES)
def opens(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Stores]:
    yield from opened_stores(request, tmp_path)


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    status = "500 Oops" if "fail" in environ["PATH_INFO"] else "200 OK"
    start_response(status, [("Content-Type", "text/plain")])
    return [b"x"]


def link(path: str) -> str:
    return f"?path={path}"


def ran(registry: MemoryRegistry, clock: Clock, path: str, seconds: float, state: JobState) -> None:
    key = registry.add(Job(key_of(f"{clock()} {path}".encode().hex()), "x", asked={"path": path})).key
    assert registry.claim(key, "r")
    clock.advance(seconds)
    assert registry.finish(key, "r", state)


def test_what_happened_is_seen_and_can_be_read(opens: Stores) -> None:
    site, client = opens(app, **OPTIONS)
    for path in ("/a/1", "/a/2", "/fail/3"):
        ended(site, start(client, path))
    page = client.request("GET", "/_jobs", **HTML).text
    assert 'aria-label="Jobs that ended: 2 finished, 1 failed, 0 cancelled, 0 lost; at most' in page
    assert 'aria-label="Waiting and running: now 0 waiting, 0 running; at most' in page
    rows = re.findall(r'<tr><td><a href="([^"]*)">([^<]*)</a></td><td>(\d)</td><td>(\d)</td>', page)
    assert sorted(rows) == [("?path=%2Fa%2F%2A", "/a/*", "2", "0"), ("?path=%2Ffail%2F%2A", "/fail/*", "1", "1")]
    for query in ("?state=failed", "?before=1-" + "0" * 32 + "-1"):
        assert "job-charts" not in client.request("GET", f"/_jobs{query}", **HTML).text.partition("<main>")[2]


def test_programs_get_the_numbers(opens: Stores) -> None:
    site, client = opens(app, **OPTIONS)
    ended(site, start(client, "/a/1"))
    for span in ("hour", "day"):
        document = client.request("GET", f"/_jobs?_view=history&span={span}").json
        assert document["bounds"] == list(BOUNDS)
        assert sum(minute["finished"] for minute in document["minutes"] if minute["path"] == "/a/*") == 1
        assert document["levels"][-1]["running"] == 0
    assert client.request("GET", "/_jobs?_view=history", x_not="1").status == 403
    assert client.request("GET", "/_jobs?span=week").status == 400


@pytest.mark.parametrize("span", ["hour", "day"])
def test_the_charts_are_well_formed_and_show_nothing_as_markup(span: str) -> None:
    clock = Clock()
    registry = MemoryRegistry(clock=clock)
    for number, state in enumerate((JobState.FINISHED, JobState.FAILED, JobState.CANCELLED, JobState.LOST)):
        ran(registry, clock, f"/<script>{number}&\"'", 40.0, state)
    registry.add(Job(key_of("waits"), "waits"))
    drawn = Charts().of(registry, span, "en", link)
    root = ElementTree.fromstring(drawn)  # we made it
    assert len(root.findall(".//rect[@class='job-lost']")) == 1
    assert len(root.findall(".//path")) == 2
    assert root.find(".//script") is None
    assert not any("style" in element.attrib for element in root.iter()), "the policy lets none of these be"
    numbers = [int(cell.text or "x") for cell in root.findall("./div/figure[2]//tbody/tr[last()]/td")[1:]]
    assert numbers == [1, 0]


def test_they_are_drawn_once_for_all_who_look() -> None:
    clock, now = Clock(), [0.0]
    registry, charts = MemoryRegistry(clock=clock), Charts(lambda: now[0])
    first = charts.of(registry, "hour", "en", link)
    ran(registry, clock, "/new", 1.0, JobState.FINISHED)
    assert charts.of(registry, "hour", "en", link) is first
    assert "/new" in charts.of(registry, "day", "en", link)
    now[0] = 5.0
    assert "/new" in charts.of(registry, "hour", "en", link)


def test_a_quantile_is_where_the_buckets_say() -> None:
    def spread(*seconds: float) -> Spread:
        clock = Clock()
        registry = MemoryRegistry(clock=clock)
        for each in seconds:
            ran(registry, clock, "/x", each, JobState.FINISHED)
        spreads = [minute.run_time for minute in registry.history(0.0).minutes]
        return sum(spreads[1:], spreads[0])

    assert Spread().quantile(0.5) is None
    assert spread(7.0).quantile(1.0) == pytest.approx(7.0)
    of_many = spread(*[0.05] * 90, *[45.0] * 9, 5000.0)
    assert (of_many.quantile(0.5) or 9.0) <= 0.1
    assert 30.0 <= (of_many.quantile(0.95) or 0.0) <= 60.0
    assert of_many.quantile(1.0) == of_many.longest == pytest.approx(5000.0)
