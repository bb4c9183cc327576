"""Looks again and again: for what no event tells of."""

import time
from collections.abc import Callable

from tests.kit.apps import WAIT

__all__ = ["eventually"]


def eventually(is_so: Callable[[], object]) -> None:
    """Wait until *is_so* is; fail where it never is."""
    until = time.monotonic() + WAIT
    while not is_so():
        assert time.monotonic() < until
        time.sleep(0.01)
