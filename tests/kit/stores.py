"""Sites over real HTTP on each of our registries, for tests that hold on all of them."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, Registry, ThreadExecutor, marks
from bgmiddleware.registries import open_registry
from tests.kit.clients import OverHTTP, served

STORES = ("memory", *(pytest.param(name, marks=pytest.mark.everything) for name in ("spool", "redis")))


class Stores:
    """Opens sites that keep their jobs in one registry, and closes them in the end."""

    def __init__(self, url: str, stack: contextlib.ExitStack) -> None:
        self.url = url
        self._stack = stack

    def registry(self, **options: Any) -> Registry:
        """Return a registry that is closed in the end."""
        return self._stack.enter_context(open_registry(self.url, **options))

    def __call__(
        self, app: Any, *, registry: Registry | None = None, **options: Any
    ) -> tuple[BackgroundMiddleware, OverHTTP]:
        options = {"when": marks.always, "executor": ThreadExecutor(drain=0.0), **options}
        site = BackgroundMiddleware(app, registry=registry or self.registry(), **options)
        self._stack.enter_context(site)
        return site, self._stack.enter_context(served(site))


def opened_stores(request: pytest.FixtureRequest, tmp_path: Any) -> Iterator[Stores]:
    """The body of a fixture with ``params=STORES``."""
    urls: dict[str, Callable[[], str]] = {
        "memory": lambda: "memory:",
        "spool": lambda: f"spool:{tmp_path}/jobs",
        "redis": lambda: str(request.getfixturevalue("redis_server").url),
    }
    with contextlib.ExitStack() as stack:
        yield Stores(urls[request.param](), stack)
