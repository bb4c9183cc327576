"""The same in Chromium: a person answers, runs again, compares and shares; and axe finds nothing wrong."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, ThreadExecutor, ask, marks
from tests.conftest import needs
from tests.kit.axe import complaints
from tests.kit.browsing import Tab
from tests.kit.clients import served

needs("playwright.sync_api")
from playwright.sync_api import expect  # noqa: E402  # there may be none

pytestmark = pytest.mark.everything

expect.set_options(timeout=20_000)


class Scripted(Tab):
    """A tab of a browser with scripts, or without."""

    has_scripts = True


def app(environ: Any, start_response: Any) -> list[bytes]:
    print("looking")
    if ask("Delete 14 rows?", ("yes", "no")) == "no":
        raise ValueError("nobody wanted it")
    said = input("Why? ")
    start_response("200 OK", [("Content-Type", "text/html")])
    return [f"deleted: {said}".encode()]


@pytest.fixture(params=[True, False], ids=["with a script", "without"])
def opened(request: pytest.FixtureRequest, browser: Any) -> Iterator[tuple[Scripted, str]]:
    options: dict[str, Any] = {"keep_requests": True, "answers": True, "executor": ThreadExecutor(drain=0.0)}
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(BackgroundMiddleware(app, when=marks.always, **options))
        client = stack.enter_context(served(site, patience=0.0))
        tab = Scripted(browser, java_script_enabled=request.param)
        tab.has_scripts = request.param
        stack.callback(tab.close)
        yield tab, f"http://127.0.0.1:{client.port}/rows"


def has_no_faults(tab: Scripted) -> None:
    if tab.has_scripts:  # of which axe is one
        assert complaints(tab.page) == []


def test_a_person_answers_runs_it_again_compares_and_shares(opened: tuple[Scripted, str]) -> None:
    tab, url = opened
    page = tab.page
    page.goto(url)
    expect(page.get_by_text("Delete 14 rows?").first).to_be_visible()
    has_no_faults(tab)
    page.get_by_role("button", name="no", exact=True).click()
    expect(page.locator("#job-badge")).to_contain_text("failed")
    first = page.url
    page.get_by_role("button", name="Run again").click()
    expect(page.get_by_role("button", name="yes", exact=True)).to_be_visible()
    assert page.url != first
    page.get_by_role("button", name="yes", exact=True).click()
    field = page.locator("#job-question input[name=_answer]")
    expect(field).to_be_visible()
    has_no_faults(tab)
    field.fill("too <old>")
    page.get_by_role("button", name="Answer").click()
    # With a script the result opens by itself.
    expect(page.locator("body")).to_contain_text(re.compile("finished|deleted: too"))
    second = page.url.replace("&_view=result", "")
    page.goto(second)
    expect(page.locator("#job-badge")).to_contain_text("finished")
    expect(page.get_by_role("link", name="Earlier run")).to_be_visible()
    has_no_faults(tab)
    page.get_by_role("link", name="Compare").click()
    expect(page.get_by_role("rowheader", name="State")).to_be_visible()
    expect(page.locator("ins").first).to_be_visible()
    has_no_faults(tab)
    page.goto(second)
    page.get_by_role("link", name="Share").click()
    page.get_by_role("combobox", name="What").select_option("output")
    page.get_by_role("button", name="Make a link").click()
    has_no_faults(tab)
    link = page.get_by_role("link", name="Output only")
    expect(link).to_be_visible()
    link.click()
    expect(page.locator("#job-shared")).to_contain_text("Shared with you, only for reading, until")
    expect(page.locator("#job-text")).to_contain_text("looking")
    has_no_faults(tab)
    page.go_back()
    page.get_by_role("button", name="Take back").click()
    expect(page.get_by_role("link", name="Output only")).to_have_count(0)
