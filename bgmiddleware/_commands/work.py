"""``python -m bgmiddleware work``: run the jobs that an app's web processes hand to RQ or Celery."""

import argparse
import os
import sys
import traceback

from ..errors import ConfigurationError
from ..executors import open_executor
from ..executors._engines.engine import EngineExecutor
from ..executors._engines.sites import Site, Unloaded, load_site
from ..executors._engines.worker import print_beside_jobs
from ..executors.base import Executor
from ..registries import open_registry
from ..registries.base import Registry

__all__ = ["add_work_command", "run_work_command"]

_WAIT = "Its jobs wait. To let them fail with this traceback, give --registry, --executor and --queue."


def add_work_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``work`` to the command line."""
    parser = commands.add_parser("work", help="run the jobs of an app, for RQ or Celery", description=__doc__)
    unloaded = parser.add_argument_group(
        "where the app cannot be loaded",
        "Without these options the worker ends, and jobs wait for a worker that can load the app. With them it starts,"
        " and each job fails with the traceback as its output.",
    )
    unloaded.add_argument("--registry", metavar="URL", help="where the app keeps its jobs: spool:DIRECTORY, redis://…")
    unloaded.add_argument(
        "--executor", metavar="NAME", help="the executor of the app: rq, rq:REDIS-URL, celery:MODULE:NAME"
    )
    unloaded.add_argument("--queue", metavar="NAME", help="the queue of the executor, if the app names one")
    parser.add_argument("app", metavar="MODULE:APP", help="the app that the web processes serve, or FILE.ini")
    parser.add_argument(
        "options", metavar="...", nargs=argparse.REMAINDER, help="options of the engine's own: try --help"
    )


def run_work_command(options: argparse.Namespace) -> int:
    """Run jobs until a signal stops the worker; return the exit status."""
    sys.path.insert(0, os.getcwd())
    print_beside_jobs()
    try:
        fallback = _fallback(options)
        site, executor = _loaded(options.app, fallback)
        if not isinstance(executor, EngineExecutor):
            kind = type(executor).__name__
            raise ConfigurationError(
                f"app = {options.app!r}: its {kind} runs jobs without such workers: expected an app with an RQExecutor"
                " or a CeleryExecutor"
            )
        executor.work(site, options.options)
    except ConfigurationError as error:
        print("\n".join([f"bgmiddleware: {error}", *getattr(error, "__notes__", ())]), file=sys.stderr)
        return 2
    return 0


def _fallback(options: argparse.Namespace) -> tuple[Registry, Executor] | None:
    """Return the registry and executor that the command line names for an app that cannot be loaded, or None."""
    given = options.registry, options.executor, options.queue
    if given == (None, None, None):
        return None
    if options.registry is None or options.executor is None:
        raise ConfigurationError("--registry and --executor: give both or none of them")
    registry = open_registry(options.registry)
    if not registry.shared:
        raise ConfigurationError.of_setting("--registry", options.registry, "one that processes share")
    return registry, open_executor(options.executor, **({} if options.queue is None else {"queue": options.queue}))


def _loaded(app: str, fallback: tuple[Registry, Executor] | None) -> tuple[Site | Unloaded, object]:
    """Return the app's site and executor; or those of the command line, if the app cannot be loaded."""
    try:
        site = load_site(app)
        return site, getattr(site, "executor", None)
    except (Exception, SystemExit) as error:  # a module may exit when it is imported, too
        if fallback is None:
            error.add_note(_WAIT)
            raise
        registry, executor = fallback
        text = traceback.format_exc()
        print(f"{text}bgmiddleware: app = {app!r} cannot be loaded: its jobs will fail", file=sys.stderr)
        return Unloaded(registry, text), executor
