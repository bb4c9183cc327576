"""A plugin of pytest: ``pytest_plugins = ["bgmiddleware.testing.plugin"]`` in a ``conftest.py`` loads it."""

import contextlib
from collections.abc import Callable, Iterator

import pytest

from .._middleware import BackgroundMiddleware
from .inline import InlineExecutor, inline

__all__ = ["run_inline"]

# The contracts' assertions say as much as those of a test file.
pytest.register_assert_rewrite("bgmiddleware.testing.executors", "bgmiddleware.testing.registries")
pytest.register_assert_rewrite("bgmiddleware.testing.shared_registries")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "everything: a test of a contract that takes real time or many processes")


@pytest.fixture
def run_inline() -> Iterator[Callable[[BackgroundMiddleware], InlineExecutor]]:
    """Give a function that lets the jobs of a middleware run within their requests, until the test ends."""
    with contextlib.ExitStack() as stack:
        yield lambda middleware: stack.enter_context(inline(middleware))
