"""A real Chromium to measure in."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["chromium"]

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# What it would do besides: update itself, look up its maker's hosts, use a GPU that is not there.
_ARGUMENTS = (
    "--disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update"
    " --disable-sync"
).split()


@contextmanager
def chromium() -> Iterator[Any]:
    """Yield a browser, as playwright drives it; or None where there is no playwright or no Chromium."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        yield None
        return
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        yield None
        return
    arguments = [*_ARGUMENTS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()
