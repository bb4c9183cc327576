"""The pictures of the documents: what a browser shows of a site that this module serves.

``python -m tests.kit.pictures`` makes them anew, and notes beside them what each shows: texts, and how they look.
Pixels differ from one machine to the next, so the test compares these notes with what the page shows today.
"""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bgmiddleware import BackgroundMiddleware, ThreadExecutor, marks, progress, step
from tests.kit.browsing import Tab, chromium
from tests.kit.clients import OverHTTP, ended, served, start
from tests.kit.documents import DOCS

DIRECTORY = DOCS / "pictures"
LOOKS = DIRECTORY / "looks.json"
LARGEST = 100_000
"""Bytes that a picture may have."""


# A module of its own, so that a traceback names the same file on each machine.
_SHOP = """
def report(year):
    with step("Reading orders"):
        for name in ("January", "February", "March"):
            print(f"\\x1b[32m✓\\x1b[0m {name} {year}: 1204 orders")
    print("adding up")
    progress(3, 12, "months")
    if year < 2000:
        raise ValueError(f"no such year: {year}")
    print("\\x1b[33mno orders in April\\x1b[0m")
    return f"{year} was a good year\\n"


def view(environ, start_response):
    text = report(int(environ["PATH_INFO"].rpartition("/")[2]))
    printed(environ)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]
"""


@dataclass(frozen=True)
class Picture:
    """One of them: its name, the size of the window, and what is in it when *shown* is true in the page."""

    name: str
    height: int
    open: Callable[["Site"], str]
    shown: str

    @property
    def path(self) -> Any:
        return DIRECTORY / f"{self.name}.png"


class Site:
    """The site that is shown: reports, one of which goes on until the pictures are made."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.waits = threading.Event()
        names: dict[str, Any] = {"step": step, "progress": progress, "printed": self._printed}
        exec(compile(_SHOP, "shop.py", "exec"), names)
        self.middleware = BackgroundMiddleware(
            names["view"],
            when=marks.path("/reports/*"),
            dashboard="/_jobs",
            authorize=lambda environ: True,
            executor=ThreadExecutor(drain=0.0),
        )
        self.client: OverHTTP

    def _printed(self, environ: dict[str, Any]) -> None:
        if environ["PATH_INFO"].endswith("2026"):
            self.waits.set()
            self.go_on.wait()

    def job(self, year: int) -> str:
        """Start the report of a year, and wait for it, unless it is the one that goes on."""
        target = start(self.client, f"/reports/{year}", "GET")
        if year != 2026:
            ended(self.middleware, target)
        else:
            assert self.waits.wait(120)
        return target

    def all_jobs(self) -> str:
        for year in (2023, 2024, 1999, 2025):
            self.job(year)
        self.job(2026)
        return "/_jobs"


def _has(*lines: str) -> str:
    """Return what is true in a page whose script has made lines of the output that begin so."""
    some = "[...document.querySelectorAll('body *')].some((one) => !one.children.length && {})"
    return " && ".join(some.format(f"one.textContent.startsWith({line!r})") for line in lines)


def _says(text: str) -> str:
    return f"document.body.innerText.includes({text!r})"


PICTURES = [
    Picture("running", 340, lambda site: site.job(2026), f"{_has('no orders in April')} && {_says(' left')}"),
    Picture("failed", 400, lambda site: site.job(1999), _has("ValueError: no such year: 1999", "  File")),
    Picture("dashboard", 660, Site.all_jobs, f"{_says('live')} && {_says('months')}"),
]

# Texts with the colours and the weight that they have, in their order; numbers are left out, since many are times.
_LOOK = """() => {
  const seen = []
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), inside = walker.currentNode.parentElement
    if (!text || !inside.checkVisibility() || inside.closest("svg, script, style")) continue
    const box = inside.getBoundingClientRect()
    if (box.width < 2 || box.height < 2) continue
    const style = getComputedStyle(inside)
    seen.push([text, style.color, style.fontWeight])
  }
  return [["window", getComputedStyle(document.body).backgroundColor, ""], ...seen]
}"""


@contextlib.contextmanager
def _in_a_browser(picture: Picture, browser: Any) -> Iterator[Any]:
    site = Site()
    with contextlib.ExitStack() as stack:
        stack.enter_context(site.middleware)
        site.client = stack.enter_context(served(site.middleware))
        stack.callback(site.go_on.set)
        tab = Tab(browser, viewport={"width": 960, "height": picture.height}, color_scheme="light")
        stack.callback(tab.close)
        tab.page.goto(f"http://127.0.0.1:{site.client.port}{picture.open(site)}")
        tab.until(picture.shown)
        yield tab.page


def _look(page: Any) -> list[str]:
    seen = [" | ".join(part for part in parts if part) for parts in page.evaluate(_LOOK)]
    return [_NUMBERS.sub("0", line.partition(" | ")[0]) + "".join(line.partition(" | ")[1:]) for line in seen]


# A time, of one or two units, is a number as well: a slow machine takes longer.
_NUMBERS = re.compile(r"\d+(?:[.,:]\d+)*(?: ?(?:ms|s|min|h)\b(?: \d+ ?(?:s|min)\b)?)?")


def looks(browser: Any) -> dict[str, list[str]]:
    """Return what each picture would show now."""
    found = {}
    for picture in PICTURES:
        with _in_a_browser(picture, browser) as page:
            found[picture.name] = _look(page)
    return found


def main() -> None:
    """Make all of them anew."""
    found = {}
    with chromium() as browser:
        for picture in PICTURES:
            with _in_a_browser(picture, browser) as page:
                found[picture.name] = _look(page)
                page.screenshot(path=picture.path)
    LOOKS.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
