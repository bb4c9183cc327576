"""A real browser for tests: Chromium, driven by playwright; it notes all that a page must never do."""

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from typing import Any

from tests.conftest import missing, needs

# What Chromium would do besides: update itself, look up its maker's hosts, use a GPU that is not there.
_ARGUMENTS = (
    "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    " --disable-sync"
).split()
_CLOSED_WITHIN = 120.0
_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

# All that is wrong with a page is kept where the page itself cannot reach it: in the log of the browser.
_WATCH = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error("violation", event.violatedDirective, event.blockedURI, event.sourceFile, event.lineNumber));
"""


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Yield a browser; without playwright or Chromium skip, or fail where they were promised."""
    api = needs("playwright.sync_api")
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        missing("Chromium")
    arguments = [*_ARGUMENTS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Tab:
    """One tab of a browser of its own (a context), and what went wrong in it."""

    def __init__(self, browser: Any, **options: Any) -> None:
        options = {"locale": "en-US", "viewport": {"width": 1200, "height": 750}, **options}
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(30_000)
        self.context.add_init_script(_WATCH)
        self.wrong: list[str] = []
        self.dialogs: list[str] = []
        self.page = self.another()

    def another(self) -> Any:
        """Return one more page of the same browser."""
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.wrong.append(f"{error}"))
        page.on("console", self._said)
        page.on("dialog", self._asked)
        return page

    def until(self, expression: str, page: Any = None) -> Any:
        """Wait until a JavaScript expression is true in the page, whose policy forbids it to wait for that itself."""
        page = page or self.page
        deadline = time.monotonic() + 120
        while not (value := page.evaluate(expression)):
            assert time.monotonic() < deadline, f"never: {expression}"
            page.wait_for_timeout(20)
        return value

    def _said(self, message: Any) -> None:
        # A server that is away, or does not know the job, is reported by the browser itself.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.wrong.append(message.text)

    def _asked(self, dialog: Any) -> None:
        self.dialogs.append(dialog.message)
        dialog.dismiss()

    def close(self) -> None:
        # On a busy machine Chromium once left this unanswered for ever. What is left then goes with the browser.
        closed = asyncio.wait_for(self.context._impl_obj.close(reason=None), _CLOSED_WITHIN)
        with contextlib.suppress(TimeoutError):
            self.context._sync(closed)
