"""The list of all jobs in Chromium: it keeps itself up to date, waits for who selects, and works from the keyboard."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, ThreadExecutor, marks
from tests.conftest import needs
from tests.kit.axe import complaints
from tests.kit.browsing import Tab
from tests.kit.clients import OverHTTP, ended, served, start
from tests.kit.looking import eventually

needs("playwright.sync_api")
from playwright.sync_api import expect  # noqa: E402  # there may be none

pytestmark = pytest.mark.everything

expect.set_options(timeout=60_000)


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    if "fail" in environ["PATH_INFO"]:
        raise ValueError("no such report")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"x"]


class Scene:
    """A site, a client of it, and an operator's browser."""

    def __init__(self, site: BackgroundMiddleware, client: OverHTTP, browser: Any, **options: Any) -> None:
        self.site, self.client = site, client
        self.tab = Tab(browser, **options)
        self.page = self.tab.page
        self.url = f"http://127.0.0.1:{client.port}/_jobs"

    def runs(self, path: str) -> None:
        ended(self.site, start(self.client, path))

    def has_no_faults(self) -> None:
        assert complaints(self.page) == []
        assert self.tab.wrong == []


@contextlib.contextmanager
def opened(browser: Any, *, slots: int | None = None, **options: Any) -> Iterator[Scene]:
    given: dict[str, Any] = {"dashboard": "/_jobs", "authorize": lambda environ: True, "keep_requests": True}
    with contextlib.ExitStack() as stack:
        executor = ThreadExecutor(drain=0.0)
        site = BackgroundMiddleware(app, when=marks.path("/*"), executor=executor, stream_slots=slots, **given)
        stack.enter_context(site)
        client = stack.enter_context(served(site, patience=0.0))
        scene = Scene(site, client, browser, **options)
        stack.callback(scene.tab.close)
        yield scene


@pytest.mark.parametrize(("slots", "word"), [(None, "live"), (0, "every 5 s")])
def test_what_comes_is_shown_without_a_reload(browser: Any, slots: int | None, word: str) -> None:
    with opened(browser, slots=slots) as scene:
        scene.runs("/one")
        scene.page.goto(scene.url)
        scene.page.evaluate("() => { window.same = true; }")
        expect(scene.page.locator("#live form tbody tr").first).to_contain_text("/one")
        expect(scene.page.locator("#pace")).to_have_text(word)
        scene.runs("/two")
        expect(scene.page.locator("#live form tbody tr").first).to_contain_text("/two")
        assert scene.page.evaluate("window.same")
        scene.has_no_faults()


def test_who_selects_is_not_disturbed_and_sees_that_it_waits(browser: Any) -> None:
    with opened(browser) as scene:
        scene.runs("/one")
        scene.page.goto(scene.url)
        expect(scene.page.locator("#pace")).to_have_text("live")
        box = scene.page.get_by_label("Select POST /one")
        box.check()
        expect(scene.page.locator("#pace")).to_have_text("paused while you select")
        with scene.page.expect_event("console", lambda message: message.text == "two is told"):
            scene.page.evaluate(
                """() => { const source = new EventSource("?_view=events"); source.onmessage = (event) => {
                if (event.data.includes("/two")) { source.close(); console.log("two is told"); } }; }"""
            )
            scene.runs("/two")
        assert "/two" not in scene.page.locator("#live").inner_text()
        expect(box).to_be_checked()
        box.uncheck()
        box.blur()
        expect(scene.page.locator("#live form tbody tr").first).to_contain_text("/two")
        expect(scene.page.locator("#pace")).to_have_text("live")


def test_it_is_sorted_and_run_again_from_the_keyboard(browser: Any) -> None:
    with opened(browser) as scene:
        page = scene.page
        for path in ("/b", "/fail/1", "/fail/2", "/a"):
            scene.runs(path)
        page.goto(scene.url)
        page.get_by_role("link", name="Path", exact=True).focus()
        page.keyboard.press("Enter")
        expect(page.locator("th[aria-sort=ascending]")).to_contain_text("Path")
        assert page.locator("#live form tbody tr td:nth-child(4)").all_inner_texts() == [
            "/a",
            "/b",
            "/fail/*",
            "/fail/*",
        ]
        scene.has_no_faults()
        page.goto(f"{scene.url}?state=failed")
        links = page.locator("#live form tbody tr td a:not([href^='?'])")
        failed = links.evaluate_all("links => links.map((link) => link.href)")
        assert len(failed) == 2
        page.get_by_label("All that match").focus()
        page.keyboard.press("Space")
        while page.evaluate("document.activeElement.value") != "rerun":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading")).to_have_text("Run 2 jobs again?")
        scene.has_no_faults()
        page.get_by_role("button", name="Run 2 jobs again").press("Enter")
        expect(page.locator("#live form tbody tr")).to_have_count(4)
        new: list[str] = []

        def are_listed() -> bool:
            new[:] = set(links.evaluate_all("links => links.map((link) => link.href)")) - set(failed)
            return len(new) == 2

        eventually(are_listed)
        page.goto(new[0])
        expect(page.get_by_role("link", name="Earlier run")).to_be_visible()
        page.get_by_role("link", name="Earlier run").click()
        expect(page.get_by_role("link", name="Later run")).to_be_visible()
        scene.has_no_faults()


@pytest.mark.parametrize("look", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
def test_axe_finds_nothing_wrong_in_german(browser: Any, look: str, width: int) -> None:
    view = {"width": width, "height": 800}
    with opened(browser, color_scheme=look, viewport=view, locale="de-DE") as scene:
        for path in ("/fail", "/fine"):
            scene.runs(path)
        for query in ("", "?sort=-duration", "?state=running"):
            scene.page.goto(scene.url + query)
            expect(scene.page.locator("html")).to_have_attribute("lang", "de")
            expect(scene.page.locator("#pace")).to_have_text("live")
            scene.has_no_faults()
            wide = scene.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, "the page itself is not scrolled sideways"
