"""My jobs in Chromium: the list of a browser, which it keeps by itself, and that of an owner. Both are live."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, MemoryRegistry, ThreadExecutor, marks, owners, progress
from tests.conftest import needs
from tests.kit.axe import complaints
from tests.kit.browsing import Tab
from tests.kit.clients import ended, served, start
from tests.kit.readers import Clock, Play

needs("playwright.sync_api")
from playwright.sync_api import expect  # noqa: E402  # there may be none

pytestmark = pytest.mark.everything

HOSTILE = "/%3Cimg%20src=x%20onerror=alert(1)%3E"


class Stage:
    def __init__(self, browser: Any, stack: contextlib.ExitStack, **options: Any) -> None:
        self.play, self.clock = Play(), Clock()
        registry = MemoryRegistry(ttl=100.0, clock=self.clock)
        options = {"registry": registry, "executor": ThreadExecutor(drain=0.0), **options}
        self.site = stack.enter_context(BackgroundMiddleware(self.play, when=marks.always, **options))
        self.client = stack.enter_context(served(self.site))
        self.tab = Tab(browser)
        stack.callback(self.tab.close)
        self.page = self.tab.page

    def shows(self, target: str) -> None:
        self.page.goto(f"http://127.0.0.1:{self.client.port}{target}")

    def has_no_faults(self) -> None:
        assert complaints(self.page) == []
        assert (self.tab.wrong, self.tab.dialogs) == ([], [])


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def test_the_jobs_of_a_browser_are_listed_live_until_they_expired(browser: Any, stack: contextlib.ExitStack) -> None:
    stage = Stage(browser, stack)
    page, rows = stage.page, stage.page.locator("#mine li")
    stage.play.answers()
    done = start(stage.client, HOSTILE)
    ended(stage.site, done)
    stage.shows(done)
    expect(page.locator("#job-badge")).to_contain_text("finished")
    runs = start(stage.client, "/runs")
    stage.play.does(lambda: progress(1, 4))
    stage.shows(runs)
    expect(page.locator("#job-badge")).to_contain_text("running")
    page.locator("#job-menu").get_by_role("link", name="My jobs").click()
    expect(rows.locator("a").first).to_have_text("POST /runs")
    expect(rows).to_contain_text(["▶ running POST /runs", "✓ finished POST /<img src=x onerror=alert(1)>"])
    expect(rows.locator("progress")).to_have_attribute("value", "25")
    expect(page).to_have_title("(1) My jobs")
    expect(rows.get_by_role("link", name="Open the result")).to_have_count(1)
    stage.has_no_faults()
    stage.play.answers()
    expect(rows).to_contain_text(["✓ finished", "✓ finished"])
    expect(page).to_have_title("My jobs")
    assert page.locator("img").count() == 0
    stage.clock.ahead = 200.0
    fresh = start(stage.client, "/fresh")
    stage.shows(f"{fresh}&_view=mine")
    expect(rows).to_contain_text(["– expired", "– expired"])
    page.wait_for_function("JSON.parse(localStorage['bgmiddleware-jobs']).length === 0")
    page.reload()
    expect(page.get_by_text("No jobs.")).to_be_visible()
    stage.play.answers()


def test_what_a_browser_remembers_leads_to_this_site_only(browser: Any, stack: contextlib.ExitStack) -> None:
    stage = Stage(browser, stack)
    target = start(stage.client, "/")
    stage.shows(f"{target}&_view=mine")
    stage.page.evaluate(
        """localStorage["bgmiddleware-jobs"] = JSON.stringify([
            ["https://evil.example/", {title: "evil", at: 1, state: "finished"}],
            ["/\\\\evil.example/", {title: "evil", at: 1, state: "finished"}],
            ["//evil.example/", {title: "evil", at: 1, state: "finished"}],
            ["javascript:alert(1)", {title: "evil", at: 1, state: "finished"}],
            ["/gone?_t=00000000-0000-4000-8000-000000000000", {title: "gone \\u202egpj.exe", at: 1, state: "running"}],
        ])"""
    )
    stage.page.reload()
    expect(stage.page.locator("#mine li")).to_contain_text(["– expired gone [U+202E]gpj.exe"])
    expect(stage.page.locator("#mine li")).to_have_count(1)
    stage.page.evaluate("localStorage['bgmiddleware-jobs'] = '{nonsense'")
    stage.page.reload()
    expect(stage.page.get_by_text("No jobs.")).to_be_visible()
    assert stage.tab.dialogs == []
    stage.play.answers()


def test_the_jobs_of_an_owner_come_from_the_registry(browser: Any, stack: contextlib.ExitStack) -> None:
    stage = Stage(browser, stack, owner=owners.cookie("sixteen letters!"))
    page, rows = stage.page, stage.page.locator("#live li")
    stage.shows("/first")
    # It has an icon, else the browser asked for one.
    body = b"<link rel=icon href=data:,>the answer"
    stage.play.answers(body, headers=[("Content-Type", "text/html")])
    expect(page.locator("body")).to_have_text("the answer")
    stage.shows("/second")
    expect(page.locator("#job-badge")).to_contain_text("running")
    page.evaluate("localStorage.clear()")
    page.locator("#job-menu").get_by_role("link", name="My jobs").click()
    expect(rows).to_contain_text(["▶ running GET /second", "✓ finished GET /first"])
    expect(page).to_have_title("(1) My jobs")
    stage.has_no_faults()
    page.mouse.click(5, 5)
    stage.play.answers()
    expect(rows).to_contain_text(["✓ finished GET /second", "✓ finished GET /first"])
    expect(page).to_have_title("My jobs")
    rows.nth(1).get_by_role("link", name="GET /first").click()
    expect(page.locator("h1")).to_have_text("GET /first")
    assert "_t=own." in page.url
    page.get_by_role("button", name="Keep", exact=True).click()
    expect(page.locator("#job-kept")).to_have_text("Kept")
    stage.clock.ahead = 200.0
    page.reload()
    expect(page.locator("#job-kept")).to_have_text("Kept")
    page.get_by_role("button", name="Let it expire").click()
    expect(page.locator("#job-kept")).to_have_count(0)
