"""In Chromium: the page of a try that failed goes on to the next one by itself."""

from collections.abc import Iterator
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, ThreadExecutor, marks
from bgmiddleware import _jobs as jobs
from tests.conftest import needs
from tests.kit.axe import complaints
from tests.kit.browsing import Tab
from tests.kit.clients import served

needs("playwright.sync_api")
from playwright.sync_api import expect  # noqa: E402  # there may be none

pytestmark = pytest.mark.everything

expect.set_options(timeout=30_000)


class Failing:
    """An app that fails the first time."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        self.runs += 1
        print("this is run", self.runs)
        start_response("503 Later" if self.runs == 1 else "200 OK", [("Content-Type", "text/html")])
        return [b"<p>a good year</p>"]


@pytest.fixture
def opened(browser: Any) -> Iterator[tuple[Tab, str, BackgroundMiddleware]]:
    options: dict[str, Any] = {"retries_per_mark": {"/*": 2}, "executor": ThreadExecutor(drain=0.0)}
    with BackgroundMiddleware(Failing(), when=marks.always, **options) as site, served(site, patience=0.0) as client:
        tab = Tab(browser)
        try:
            yield tab, f"http://127.0.0.1:{client.port}/rows", site
        finally:
            tab.close()


def test_the_page_goes_on_to_the_next_try_by_itself(
    opened: tuple[Tab, str, BackgroundMiddleware], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_PAUSES", (1000.0,))
    tab, url, site = opened
    page = tab.page
    page.goto(url)
    expect(page.locator("#job-badge")).to_contain_text("failed")
    expect(page.locator("#job-note")).to_contain_text("Try 2 of 3 begins in ")
    expect(page.get_by_role("button", name="Cancel")).to_be_visible()
    assert complaints(page) == []
    first = page.url
    site._try_again(site.registry.jobs()[0])
    expect(page.locator("body")).to_contain_text("a good year")  # the result, which opens by itself
    assert page.url.partition("&")[0] != first.partition("&")[0]
    page.goto(page.url.replace("&_view=result", ""))
    expect(page.locator("#job-text")).to_contain_text("this is run 2")
    page.get_by_role("link", name="Earlier run").click()
    expect(page.locator("#job-badge")).to_contain_text("failed")
    expect(page.locator("#job-text")).to_contain_text("this is run 1")
    assert page.url.endswith("&_follow=no")


def test_a_cancel_while_the_next_try_waits_ends_it(
    opened: tuple[Tab, str, BackgroundMiddleware], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_PAUSES", (1000.0,))
    tab, url, site = opened
    page = tab.page
    page.goto(url)
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator("#job-note")).not_to_contain_text("Try 2")
    expect(page.locator("#job-cancel")).to_be_hidden()
    assert not site.registry.jobs()[0].awaits_try
