"""``python -m bgmiddleware``: serve any WSGI app with its slow paths in the background."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from . import marks
from ._commands.jobs import add_jobs_command, count, run_jobs_command
from ._commands.serve import PROXY_HEADERS, serve
from ._commands.work import add_work_command, run_work_command
from ._ground.loading import loaded
from ._middleware import BackgroundMiddleware
from .errors import ConfigurationError
from .executors.thread import ThreadExecutor
from .registries import open_registry

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    options = _parser().parse_args(arguments)
    if options.command == "jobs":
        return run_jobs_command(options)
    if options.command == "work":
        return run_work_command(options)
    try:
        app = _wrapped(options)
    except ConfigurationError as error:
        print(f"bgmiddleware: {error}", file=sys.stderr)
        return 2
    try:
        serve(
            app,
            host=options.host,
            port=options.port,
            threads=options.threads,
            trusted_proxy=options.trusted_proxy,
            trusted_proxy_count=options.trusted_proxy_count,
            trusted_proxy_headers=options.trusted_proxy_headers.replace(",", " ").split(),
        )
    except (OSError, ValueError) as error:
        print(f"bgmiddleware: cannot serve on {options.host}:{options.port}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bgmiddleware", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    command = commands.add_parser("serve", help="serve a WSGI app on waitress", description="Serve a WSGI app.")
    command.add_argument("app", metavar="MODULE:APP", help="the app, e.g. shop.wsgi:application")
    command.add_argument(
        "--background",
        metavar="GLOB",
        action="append",
        default=[],
        help="a path that goes to the background, e.g. '/reports/*'; may be given several times",
    )
    command.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    command.add_argument("--port", type=_port, default=8080, help="the port, 0 for any free one (default: %(default)s)")
    command.add_argument("--threads", type=count, default=8, help="threads that serve requests (default: %(default)s)")
    command.add_argument(
        "--trusted-proxy",
        metavar="ADDRESS",
        help="the address of a proxy whose X-Forwarded headers are believed; '*' for any (default: none)",
    )
    command.add_argument(
        "--trusted-proxy-count", type=count, default=1, help="proxies in a row that are trusted (default: %(default)s)"
    )
    command.add_argument(
        "--trusted-proxy-headers",
        metavar="NAMES",
        default=" ".join(PROXY_HEADERS),
        help="which headers of the proxy are believed (default: %(default)s)",
    )
    command.add_argument("--workers", type=count, default=8, help="jobs that run at a time (default: %(default)s)")
    command.add_argument(
        "--registry",
        metavar="URL",
        default="memory:",
        help="where jobs are kept: memory:, spool:DIRECTORY, redis://… (default: %(default)s)",
    )
    command.add_argument(
        "--ttl", type=float, default=3600.0, help="seconds to keep an ended job (default: %(default)s)"
    )
    command.add_argument(
        "--drain", type=float, default=10.0, help="seconds that jobs get to end at the end (default: %(default)s)"
    )
    add_work_command(commands)
    add_jobs_command(commands)
    return parser


def _port(text: str) -> int:
    # The system would take 99999 for another port than anyone means.
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected 0 to 65535, not {text!r}")
    return int(text)


def _wrapped(options: argparse.Namespace) -> BackgroundMiddleware:
    app = _loaded_app(options.app)
    inner = getattr(app, "wsgi_app", app)  # where Flask's documentation puts middlewares
    if isinstance(inner, BackgroundMiddleware):
        if options.background:
            raise ConfigurationError(
                f"--background: {options.app} is in a BackgroundMiddleware already, with its own marks"
            )
        return inner
    marked: list[marks.Mark] = [marks.prefers_async]
    if options.background:
        marked.append(marks.path(*options.background))
    return BackgroundMiddleware(
        app,
        when=marks.any_of(*marked),
        registry=open_registry(options.registry, ttl=options.ttl),
        executor=ThreadExecutor(max_workers=options.workers, drain=options.drain),
    )


def _loaded_app(name: str) -> Any:
    """Return the app that ``module:attribute`` names, looked for in the current directory too."""
    sys.path.insert(0, os.getcwd())
    found = loaded("app", name, "MODULE:APP")
    if not callable(found):
        raise ConfigurationError.of_setting("app", name, "the name of a WSGI application")
    return found


if __name__ == "__main__":
    sys.exit(main())
