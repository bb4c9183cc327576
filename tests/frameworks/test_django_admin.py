"""Django's admin in a real browser: its own login, its own CSRF check, and actions on fifty thousand rows."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import needs
from tests.kit.browsing import Tab, chromium
from tests.kit.processes import Server, running

needs("django")
needs("playwright.sync_api")
from playwright.sync_api import expect  # noqa: E402  # there may be none

pytestmark = pytest.mark.everything


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    command = [sys.executable, "-m", "bgmiddleware", "serve", "tests.kit.admin_site:application", "--port", "0"]
    root = str(Path(__file__).parents[2])
    directory = tmp_path_factory.mktemp("admin")
    with running(Server(command, r"Serving on http://127\.0\.0\.1:(\d+)", directory, PYTHONPATH=root)) as server:
        yield server


@pytest.fixture
def tab() -> Iterator[Tab]:
    with chromium() as browser:
        tab = Tab(browser)
        yield tab
        tab.close()


def test_actions_on_all_rows_are_jobs_of_who_signed_in(admin: Server, tab: Tab) -> None:
    page = tab.page
    page.goto(f"http://127.0.0.1:{admin.port}/admin/auth/order/")
    page.get_by_label("Username").fill("ann")
    page.get_by_label("Password").fill("right")
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#result_list tbody tr")).to_have_count(100)
    choose(page, "export")
    with page.expect_download() as download:
        page.locator("button[name=index]").click()
    lines = download.value.path().read_text("utf-8").splitlines()
    assert download.value.suggested_filename == "orders.csv"
    assert (lines[0], len(lines), lines[-1]) == ("id,customer", 50_001, "50000,customer 149")
    expect(page.locator("#job-badge")).to_have_text("✓ finished")
    page.goto(f"http://127.0.0.1:{admin.port}/admin/auth/order/")
    choose(page, "pay")
    page.locator("button[name=index]").click()
    expect(page.locator(".messagelist")).to_have_text(re.compile("50000 orders are paid now."), timeout=60_000)
    assert page.url == f"http://127.0.0.1:{admin.port}/admin/auth/order/"
    expect(page.locator("#result_list img[alt=True]")).to_have_count(100)
    # The site of this test serves no styles and scripts of the admin.
    assert [what for what in tab.wrong if "/static/" not in what] == []


def test_who_has_not_signed_in_or_sends_no_token_exports_nothing(admin: Server) -> None:
    body = b"action=export&select_across=1&index=0&_selected_action=1"
    # On a busy machine the refusal comes too late for an early answer: then it is the response of a job.
    reply = admin.request("POST", "/admin/auth/order/", body, Prefer="wait=30")
    assert (reply.status, "CSRF" in reply.text) == (403, True)


def choose(page: Any, action: str) -> None:
    """Choose an action for all rows, also those of other pages."""
    page.locator("select[name=action]").select_option(action)
    # The script of the admin does this, when one clicks "Select all 50000 orders".
    page.evaluate(
        "document.querySelector('input[name=select_across]').value = 1;"
        "document.querySelector('input[name=_selected_action]').checked = true"
    )
