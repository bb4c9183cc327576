"""``python -m bgmiddleware serve``: serve any WSGI app on waitress, with its slow paths in the background."""

import argparse
import os
import sys
from typing import Any

from .. import marks
from .._ground.loading import loaded
from .._middleware import BackgroundMiddleware
from .._server import PROXY_HEADERS, serve
from ..errors import ConfigurationError, RegistryError
from ..executors.thread import ThreadExecutor
from ..registries import open_registry
from ..registries.base import Registry
from .jobs import count

__all__ = ["OF_OUR_OWN", "add_serve_command", "run_serve_command"]

OF_OUR_OWN = {"registry": "memory:", "workers": 8, "ttl": 3600.0, "drain": 10.0}
"""The options that set up a middleware, with their defaults. An app that is wrapped already has one."""


def add_serve_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``serve`` to the command line."""
    command = commands.add_parser("serve", help="serve a WSGI app on waitress", description=__doc__)
    add = command.add_argument
    add("app", metavar="MODULE:APP", help="the app, e.g. shop.wsgi:application")
    add(
        "--background",
        metavar="GLOB",
        action="append",
        default=[],
        help="a path that goes to the background, e.g. '/reports/*'; may be given several times",
    )
    add("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    add("--port", type=_port, default=8080, help="the port, 0 for any free one (default: %(default)s)")
    add("--threads", type=count, default=8, help="threads that serve requests (default: %(default)s)")
    add(
        "--trusted-proxy",
        metavar="ADDRESS",
        help="the address of a proxy whose X-Forwarded headers are trusted; '*' for any (default: none)",
    )
    add("--trusted-proxy-count", type=count, default=1, help="proxies in a row that are trusted (default: %(default)s)")
    add(
        "--trusted-proxy-headers",
        metavar="NAMES",
        default=" ".join(PROXY_HEADERS),
        help="which headers of the proxy are trusted (default: %(default)s)",
    )
    add(
        "--foreground",
        action="store_true",
        help="start no jobs: all requests run in the foreground, where breakpoint() works (with --threads 1)",
    )
    own = command.add_argument_group("for an app without a BackgroundMiddleware of its own")

    def add_own(name: str, help: str, **options: Any) -> None:  # noqa: A002  # argparse's name
        # No default of argparse's: it would look like an option that was given.
        own.add_argument(f"--{name}", help=f"{help} (default: {OF_OUR_OWN[name]})", **options)

    add_own("workers", "jobs that run at a time", type=count)
    add_own("registry", "where jobs are kept: memory:, spool:DIRECTORY, redis://…", metavar="URL")
    add_own("ttl", "seconds to keep an ended job", type=float)
    add_own("drain", "seconds that running jobs get when the server stops", type=float)


def run_serve_command(options: argparse.Namespace) -> int:
    """Serve until a signal says stop; return the exit status."""
    if options.foreground:
        os.environ["BGMIDDLEWARE_FOREGROUND"] = "1"  # for an app with its own middleware, too
    try:
        app = _wrapped(options)
        _check_registry(app.registry)
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


def _port(text: str) -> int:
    # The system would take 99999 for another port than anyone means.
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected 0 to 65535, not {text!r}")
    return int(text)


def _wrapped(options: argparse.Namespace) -> BackgroundMiddleware:
    """Return the app in a middleware: in its own, or in one that the options set up."""
    app = _loaded_app(options.app)
    inner = getattr(app, "wsgi_app", app)  # where Flask's documentation puts middlewares
    given = {name: getattr(options, name) for name in OF_OUR_OWN if getattr(options, name) is not None}
    if isinstance(inner, BackgroundMiddleware):
        for name in ("background", *given) if options.background else given:
            raise ConfigurationError(
                f"--{name}: {options.app} has a BackgroundMiddleware of its own. Leave the option out and set this in"
                " the code that creates the middleware"
            )
        return inner
    chosen: dict[str, Any] = {**OF_OUR_OWN, **given}
    if not options.background and not options.foreground:
        print(
            "No --background: only requests with the header 'Prefer: respond-async' and views with a decorator start"
            " jobs.",
            file=sys.stderr,
        )
    return BackgroundMiddleware(
        app,
        when=marks.any_of(marks.prefers_async, *([marks.path(*options.background)] if options.background else [])),
        registry=open_registry(chosen["registry"], ttl=chosen["ttl"]),
        executor=ThreadExecutor(max_workers=chosen["workers"], drain=chosen["drain"]),
    )


def _loaded_app(name: str) -> Any:
    """Return the app that ``module:attribute`` names, looked for in the current directory too."""
    sys.path.insert(0, os.getcwd())
    found = loaded("app", name, "MODULE:APP")
    if not callable(found):
        raise ConfigurationError.of_setting("app", name, "the name of a WSGI application")
    return found


def _check_registry(registry: Registry) -> None:
    """Raise ``ConfigurationError`` if the registry cannot be used, and warn if it does not answer now."""
    registry.check()
    try:
        if registry.shared and registry.is_there():
            registry.jobs(limit=1)
    except RegistryError as error:
        print(f"The registry does not answer: {error}. Requests for jobs get 503 until it does.", file=sys.stderr)
