"""Whose job it is, as a real Chromium keeps cookies: two first requests at once, and a form of another site."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, ThreadExecutor, marks, owners
from tests.kit.apps import WAIT
from tests.kit.browsing import Tab
from tests.kit.clients import served

pytestmark = pytest.mark.everything

SECRET = "sixteen letters!"
PLAIN = [("Content-Type", "text/html; charset=utf-8")]


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    print("at work")
    start_response("200 OK", list(PLAIN))
    return [b"<h1>home</h1>"]


class BothAtOnce:
    """Answers nobody before two who begin have both come: neither has a cookie then."""

    def __init__(self, site: Any) -> None:
        self.site = site
        self.both = threading.Barrier(2)
        self.without_cookies = 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"].startswith("/report/") and "_t=" not in environ["QUERY_STRING"]:
            self.without_cookies += "HTTP_COOKIE" not in environ
            self.both.wait(WAIT)
        return self.site(environ, start_response)


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


def site_of(stack: contextlib.ExitStack, **options: Any) -> BackgroundMiddleware:
    return stack.enter_context(
        BackgroundMiddleware(
            app,
            when=marks.path("/report/*"),
            owner=owners.cookie(SECRET),
            executor=ThreadExecutor(drain=0.0),
            **options,
        )
    )


def test_of_two_first_tabs_at_once_each_keeps_its_job(browser: Any, stack: contextlib.ExitStack) -> None:
    around = BothAtOnce(site_of(stack))
    client = stack.enter_context(served(around, patience=0.0))
    tab = Tab(browser)
    stack.callback(tab.close)
    pages = [tab.page, tab.another()]
    home = f"http://127.0.0.1:{client.port}/"
    for page in pages:
        page.goto(home)
    for page, name in zip(pages, "ab", strict=True):
        page.evaluate(f"setTimeout(() => location.href = '/report/{name}')")
    for page, name in zip(pages, "ab", strict=True):
        page.wait_for_url(f"**/report/{name}?_t=*")
    assert around.without_cookies == 2
    assert len(tab.context.cookies()) == 2
    for page in pages:
        assert "_t=" in page.url
        assert tab.context.request.get(page.url.partition("&")[0]).status == 200, "the jobs of both are its own"
    stranger = Tab(browser)
    stack.callback(stranger.close)
    for page in pages:
        assert stranger.context.request.get(page.url.partition("&")[0]).status == 404


def test_a_form_of_another_site_leaves_a_browser_its_jobs(browser: Any, stack: contextlib.ExitStack) -> None:
    client = stack.enter_context(served(site_of(stack), patience=0.0))
    here = f"http://127.0.0.1:{client.port}"

    def another_site(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("200 OK", list(PLAIN))
        return [f"<form method=post action='{here}/report/theirs'><button>go</button></form>".encode()]

    other = stack.enter_context(served(another_site, patience=0.0))
    tab = Tab(browser)
    stack.callback(tab.close)
    tab.page.goto(f"{here}/report/mine")
    mine = tab.page.url.partition("&")[0]
    before = tab.context.cookies()
    assert len(before) == 1
    page = tab.another()
    page.goto(f"http://localhost:{other.port}/")  # to a browser that is another site than 127.0.0.1
    page.click("button")
    page.wait_for_url("**/report/theirs?_t=*")
    assert tab.context.cookies() == before
    assert tab.context.request.get(mine).status == 200
    assert tab.context.request.get(page.url.partition("&")[0]).status == 200
