"""``python -m bgmiddleware work``: run the jobs that the web processes of an app hand to an engine."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from .errors import ConfigurationError
from .executors._worker import Site, load_site, print_beside_jobs

__all__ = ["add_work_command", "run_work_command"]


@runtime_checkable
class _HasWorkers(Protocol):
    """An executor whose jobs run in processes that are begun apart from the web processes."""

    def work(self, site: Site, options: Sequence[str]) -> None: ...


def add_work_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``work`` to the command line."""
    parser = commands.add_parser("work", help="run the jobs of an app, for RQ or Celery", description=__doc__)
    parser.add_argument("app", metavar="MODULE:APP", help="the app that the web processes serve, or FILE.ini")
    parser.add_argument(
        "options", metavar="...", nargs=argparse.REMAINDER, help="options of the engine's own: try --help"
    )


def run_work_command(options: argparse.Namespace) -> int:
    """Be a worker until a signal says stop; return the exit status."""
    sys.path.insert(0, os.getcwd())
    print_beside_jobs()
    try:
        site = load_site(options.app)
        executor = getattr(site, "executor", None)
        if not isinstance(executor, _HasWorkers):
            kind = type(executor).__name__
            raise ConfigurationError(f"app = {options.app!r}: jobs of its {kind} run without workers of their own")
        executor.work(site, options.options)
    except ConfigurationError as error:
        print(f"bgmiddleware: {error}", file=sys.stderr)
        return 2
    return 0
