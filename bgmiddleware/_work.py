"""``python -m bgmiddleware work``: a worker that runs the jobs of an app whose executor has them run elsewhere."""

import os
import sys
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from .errors import ConfigurationError
from .executors._worker import Site, load_site, print_beside_jobs

__all__ = ["work"]


@runtime_checkable
class _HasWorkers(Protocol):
    def work(self, site: Site, options: Sequence[str]) -> None:
        """Be a worker until a signal says stop."""


def work(name: str, options: Sequence[str]) -> None:
    """Be a worker for the app that *name* names, of the kind that its executor needs, with that one's own *options*.

    Raises ``ConfigurationError`` where the executor needs none.
    """
    sys.path.insert(0, os.getcwd())
    print_beside_jobs()
    site = load_site(name)
    executor = getattr(site, "executor", None)
    if not isinstance(executor, _HasWorkers):
        raise ConfigurationError(
            f"app = {name!r}: its {type(executor).__name__} needs no workers: it runs the jobs of its own process"
        )
    executor.work(site, options)
