"""Pages of a site's own show a job: those of docs/how-to/progress.rst, in a real browser, with real htmx and React."""

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware._serving import assets
from tests.conftest import needs
from tests.kit.browsing import Tab
from tests.kit.clients import served, start
from tests.kit.documents import PAGES, blocks
from tests.kit.readers import UNKNOWN, Opener, answering
from tests.page.test_page import opens_here  # noqa: F401  # a fixture

needs("docutils")

PRINTED = "".join(f"adding up month {month}\n" for month in range(1, 13))
MADE = "2026 was a good year\n"


@pytest.fixture
def tab(browser: Any) -> Iterator[Tab]:
    tab = Tab(browser)
    yield tab
    tab.close()


def scripts() -> dict[str, Callable[[], bytes]]:
    """Return what the pages load, from the packages that carry it."""

    def packaged(package: str, pattern: str) -> bytes:
        (path,) = Path(str(resources.files(needs(package).__name__))).rglob(pattern)
        return path.read_bytes()

    return {
        "client.js": lambda: assets.static("client.js").encode(),
        "htmx.js": lambda: packaged("django_htmx", "htmx-2.min.js"),
        "react.js": lambda: packaged("dash", "react@18.3.1.min.js"),
        "react-dom.js": lambda: packaged("dash", "react-dom@18.3.1.min.js"),
    }


class Shown:
    """A page of the guide, on its app, whose job does not end until it may."""

    def __init__(self, stack: contextlib.ExitStack, tab: Tab, section: str, settings: str = "") -> None:
        (example,) = blocks(PAGES["progress.rst"], "python")
        (page,) = [block.text for block in blocks(PAGES["progress.rst"], "html") if block.section == section]
        self.may_end = threading.Event()
        stack.callback(self.may_end.set)
        names: dict[str, Any] = {"__name__": "example", "may_end": self.may_end}
        code = example.text.replace("(app.wsgi_app)", f"(app.wsgi_app, {settings})")
        exec(code.replace("    return f", "    assert may_end.wait(120)\n    return f"), names)
        self.app = names["app"]
        self.app.add_url_rule("/", "page", lambda: page)
        self.app.view_functions["static"] = lambda filename: (
            scripts()[filename](),
            {"Content-Type": "text/javascript"},
        )
        stack.enter_context(self.app.wsgi_app)
        self.client = stack.enter_context(served(self.app, patience=0.0))
        self._tab = tab
        self.page = tab.page
        self.page.goto(f"http://127.0.0.1:{self.client.port}/")

    def reads(self, selector: str, text: str) -> None:
        self._tab.until(f"document.querySelector({json.dumps(selector)}).textContent === {json.dumps(text)}")


@pytest.fixture
def shown(tab: Tab) -> Iterator[Callable[..., Shown]]:
    needs("flask")
    with contextlib.ExitStack() as stack:
        yield lambda *arguments: Shown(stack, tab, *arguments)


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        ("fetch and EventSource", ""),
        ("client.js", ""),
        ("client.js", "stream_slots=0"),  # it polls
        ("React", ""),
        ("React", "stream_slots=0"),
    ],
)
def test_a_page_of_the_guide_shows_the_output_as_it_comes(
    shown: Callable[..., Shown], tab: Tab, section: str, settings: str
) -> None:
    it = shown(section, settings)
    it.page.click("button")
    it.reads("pre", PRINTED)
    it.reads("p", "")
    if section != "fetch and EventSource":
        tab.until("document.querySelector('progress').value === 100")
    it.may_end.set()
    it.reads("p", MADE)
    it.reads("pre", PRINTED)
    assert tab.wrong == []


def test_htmx_puts_the_response_where_it_belongs(shown: Callable[..., Shown], tab: Tab) -> None:
    it = shown("htmx")
    it.page.click("button")
    tab.until("document.querySelector('#report a') !== null")
    it.may_end.set()
    tab.until(f"document.querySelector('#report').textContent.trim() === {json.dumps(MADE.strip())}")
    assert tab.wrong == []


FOLLOW = "const { follow } = await import('/static/client.js');"


def test_a_job_that_is_unknown_rejects_the_promise(shown: Callable[..., Shown], tab: Tab) -> None:
    it = shown("client.js")
    job = f"/reports/2026?_t={UNKNOWN}"
    said = it.page.evaluate(f"(async () => {{ {FOLLOW} await follow('{job}') }})().catch((error) => error.message)")
    assert said == "no job: 404"


@pytest.mark.parametrize("settings", ["", "stream_slots=0"])
def test_an_aborted_follower_is_told_nothing_more(shown: Callable[..., Shown], tab: Tab, settings: str) -> None:
    it = shown("client.js", settings)
    job = start(it.client, "/reports/2026", "GET")
    it.page.evaluate(
        f"(async () => {{ {FOLLOW} window.said = []; window.stop = new AbortController();"
        f" const tell = (name) => () => {{ said.push(name); if (name === 'output') stop.abort(); }};"
        f" window.end = await follow('{job}', {{ signal: stop.signal, onOutput: tell('output'), onEnd: tell('end') }});"
        " window.over = true; }})() && null".replace("}}", "}")
    )
    it.may_end.set()
    tab.until("window.over")
    assert it.page.evaluate("[said, end]") == [["output"], None]


def test_every_job_serves_the_script_as_it_is_and_it_is_small(opens_here: Opener) -> None:  # noqa: F811
    _, client = opens_here(answering())
    reply = client.request("GET", f"{start(client, '/')}&_view=client.js")
    assert (reply.status, reply["Content-Type"]) == (200, "text/javascript; charset=utf-8")
    assert reply.text == assets.static("client.js")
    assert len(reply.body) < 3000
