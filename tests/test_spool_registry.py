"""The registry in a directory: the contract, that of shared registries, and its own."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from registry_contract import Clock
from shared_registry_contract import SharedRegistryContract

from bgmiddleware.registries.spool import SpoolRegistry

Make = Callable[..., SpoolRegistry]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock, tmp_path: Path) -> Iterator[Make]:
    """Make a registry, of a new directory each unless one is named."""
    with ExitStack() as stack:
        count = iter(range(1000))

        def make(directory: Path | None = None, **settings: object) -> SpoolRegistry:
            directory = directory or tmp_path / f"jobs {next(count)}"
            return stack.enter_context(SpoolRegistry(directory, **{"clock": clock, **settings}))

        yield make


class TestSpoolRegistry(SharedRegistryContract):
    @pytest.fixture
    def location(self, tmp_path: Path) -> str:
        return f"spool:{tmp_path / 'shared'}"

    @pytest.fixture
    def make(self, make: Make) -> Make:
        return make
