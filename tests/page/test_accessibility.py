"""Each page in each of its states, light and dark, on a wide and on a narrow screen: axe finds nothing wrong."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, MemoryRegistry, ThreadExecutor, marks, progress, step
from tests.kit.axe import complaints
from tests.kit.browsing import Tab
from tests.kit.clients import OverHTTP, ended, served, start
from tests.kit.readers import UNKNOWN, Clock, Play

pytestmark = pytest.mark.everything

LOUD = "\x1b[31mred\x1b[0m \x1b[2mdim\x1b[0m \x1b[93mbright\x1b[0m see https://example.com/\n" + "a line\n" * 200


class Scene:
    """A site with a job that goes on when it is told, and what becomes of others."""

    def __init__(self, site: BackgroundMiddleware, client: OverHTTP, play: Play, clock: Clock) -> None:
        self.site, self.client, self.play, self.clock = site, client, play, clock

    def begun(self) -> str:
        target = start(self.client, "/report?year=2026", "GET")
        self.play.prints(LOUD)
        return target

    def running(self) -> str:
        target = self.begun()
        self.play.does(lambda: progress(1, 4, "adding up"))
        return target

    def answered(self, status: str = "200 OK") -> str:
        target = self.begun()
        self.play.answers(status=status)
        ended(self.site, target)
        return target

    def refused(self) -> str:
        return self.answered("403 Forbidden")

    def failed(self) -> str:
        return self.answered("500 Oops")

    def stepped(self) -> str:
        target = start(self.client, "/report?year=2026", "GET")
        self.play.begins()

        def work() -> None:
            with step("Install"):
                print("a line\n" * 60)
            with contextlib.suppress(ValueError), step("Test"):
                print("\x1b[32ma test\x1b[0m\n" * 20)
                raise ValueError

        self.play.does(work)
        self.play.prints("a line\n" * 3)
        self.play.answers(status="500 Oops")
        ended(self.site, target)
        return f"{target}&_view=page#L62-L64"

    def spoken(self) -> str:
        target = start(self.client, "/report?year=2026", "GET")

        def work() -> None:
            with step("Install"):
                print("a line\n" * 60)
                print("\x1b[33ma warning\x1b[0m\nand more of it", file=sys.stderr)
            print("an error", file=sys.stderr)

        self.play.does(work)
        self.play.answers()
        ended(self.site, target)
        return f"{target}&_view=page"

    def waiting(self) -> str:
        self.begun()
        return start(self.client, "/second", "GET")

    def cancelled(self) -> str:
        target = self.begun()
        self.client.request("DELETE", target)
        self.play._steps.put(lambda: print("never"))
        ended(self.site, target)
        return target

    def without_result(self) -> str:
        return f"{self.cancelled()}&_view=result"

    def expired(self) -> str:
        target = self.answered()
        self.clock.ahead = 7200.0
        return target

    def unknown(self) -> str:
        return f"/report?_t={UNKNOWN}"

    def busy(self) -> str:
        self.waiting()
        return "/third"

    def dashboard(self) -> str:
        for make in (self.answered, self.refused, self.failed, self.cancelled, self.waiting):
            make()
        return "/_jobs"

    def empty_dashboard(self) -> str:
        return "/_jobs"

    def operated(self) -> str:
        self.answered()
        return f"/_jobs/{self.site.registry.jobs()[0].key}"

    def filtered(self) -> str:
        self.dashboard()
        return "/_jobs?state=failed&text=report&since=900"


SCENES: list[Callable[[Scene], str]] = [
    Scene.running,
    Scene.waiting,
    Scene.answered,
    Scene.refused,
    Scene.failed,
    Scene.stepped,
    Scene.spoken,
    Scene.cancelled,
    Scene.without_result,
    Scene.expired,
    Scene.unknown,
    Scene.busy,
    Scene.dashboard,
    Scene.empty_dashboard,
    Scene.operated,
    Scene.filtered,
]


@pytest.fixture
def scene() -> Iterator[Scene]:
    play, clock = Play(), Clock()
    executor = ThreadExecutor(max_workers=1, max_pending=1, drain=0.0)
    options: dict[str, Any] = {"dashboard": "/_jobs", "authorize": lambda environ: True}
    registry = MemoryRegistry(clock=clock)
    made = BackgroundMiddleware(play, when=marks.always, executor=executor, registry=registry, **options)
    with made as site, served(site, patience=0.0) as client:
        yield Scene(site, client, play, clock)
        for _ in range(20):
            play.answers()


@pytest.mark.parametrize("make", SCENES, ids=lambda make: make.__name__)
def test_axe_has_nothing_to_complain_of(browser: Any, scene: Scene, make: Callable[[Scene], str]) -> None:
    target = make(scene)
    for scheme in ("light", "dark"):
        for width in (1200, 390):
            # The policy of the page allows no script but its own.
            options = {"bypass_csp": True, "color_scheme": scheme, "viewport": {"width": width, "height": 700}}
            tab = Tab(browser, **options)
            try:
                tab.page.goto(f"http://127.0.0.1:{scene.client.port}{target}", wait_until="load")
                if tab.page.locator("#job").count():
                    tab.until("document.getElementById('job').classList.contains('job-scripted')")
                assert complaints(tab.page) == [], (scheme, width)
                if tab.page.locator("#job-menu").count():
                    tab.page.evaluate("for (const it of document.querySelectorAll('details')) it.open = true")
                    tab.page.evaluate("for (const it of document.querySelectorAll('.job-head')) it.click()")
                    assert complaints(tab.page) == [], (scheme, width, "with all panels open")
                if tab.page.get_by_label("Only stderr").is_visible():
                    tab.page.get_by_label("Only stderr").check()
                    assert complaints(tab.page) == [], (scheme, width, "with what came on stderr")
            finally:
                tab.close()


@pytest.mark.parametrize("make", [Scene.running, Scene.stepped, Scene.spoken], ids=lambda make: make.__name__)
def test_axe_has_nothing_to_complain_of_without_a_script(
    browser: Any, scene: Scene, make: Callable[[Scene], str]
) -> None:
    page = scene.client.request("GET", make(scene).partition("#")[0], accept="text/html").text
    page = re.sub("<noscript>.*?</noscript>|<script.*?</script>", "", page, flags=re.DOTALL)
    for scheme in ("light", "dark"):
        for width in (1200, 390):
            tab = Tab(browser, color_scheme=scheme, viewport={"width": width, "height": 700})
            tab.page.set_content(page)
            assert complaints(tab.page) == [], (scheme, width)
            tab.page.evaluate("for (const it of document.querySelectorAll('details')) it.open = true")
            assert complaints(tab.page) == [], (scheme, width, "with all of it open")
            tab.close()


def test_axe_complains_where_there_is_reason_to(browser: Any) -> None:
    tab = Tab(browser)
    tab.page.set_content("<img src='data:,'><p style='color: #aaa; background: #fff'>pale</p>")
    assert {complaint.partition("\n")[0] for complaint in complaints(tab.page)} >= {"image-alt", "color-contrast"}
    tab.close()
