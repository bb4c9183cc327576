"""``python -m bgmiddleware work``: run the jobs that the web processes of an app hand to an engine."""

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

_WAIT = "Its jobs wait. To have them fail and say why, name where they are: --registry, --executor, --queue."


def add_work_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``work`` to the command line."""
    parser = commands.add_parser("work", help="run the jobs of an app, for RQ or Celery", description=__doc__)
    unloaded = parser.add_argument_group(
        "where the app cannot be loaded",
        "By itself such a worker ends, and jobs wait for one that can load it. With these it begins, and each job fails"
        " with the traceback as its output.",
    )
    unloaded.add_argument("--registry", metavar="URL", help="where the app keeps its jobs: spool:DIRECTORY, redis://…")
    unloaded.add_argument("--executor", metavar="NAME", help="where they wait: rq, rq:REDIS-URL, celery:MODULE:NAME")
    unloaded.add_argument("--queue", metavar="NAME", help="in which queue of it, if the app has named one")
    parser.add_argument("app", metavar="MODULE:APP", help="the app that the web processes serve, or FILE.ini")
    parser.add_argument(
        "options", metavar="...", nargs=argparse.REMAINDER, help="options of the engine's own: try --help"
    )


def run_work_command(options: argparse.Namespace) -> int:
    """Be a worker until a signal says stop; return the exit status."""
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
    """Return where the jobs of an app are that cannot be loaded, if the command line says so."""
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
    """Return the app's site and executor, or where it cannot be loaded, what the command line has in their place."""
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
