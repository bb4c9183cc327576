"""``python -m bgmiddleware serve``: serve any WSGI app on waitress, with its slow paths in the background."""

import argparse
import ipaddress
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any, Protocol

from waitress.server import create_server
from waitress.wasyncore import dispatcher

from .. import marks
from .._ground.loading import loaded
from .._middleware import BackgroundMiddleware
from ..errors import ConfigurationError, RegistryError
from ..executors.thread import ThreadExecutor
from ..registries import open_registry
from ..registries.base import Registry
from .jobs import count

__all__ = ["OF_OUR_OWN", "PROXY_HEADERS", "Served", "add_serve_command", "run_serve_command", "serve"]

PROXY_HEADERS = ("x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto")
"""What a trusted proxy says about the browser's request."""

OF_OUR_OWN = {"registry": "memory:", "workers": 8, "ttl": 3600.0, "drain": 10.0}
"""The options that set up a middleware, with their defaults. An app that is wrapped already has one."""


class Served(Protocol):
    """An app that can be served: a :class:`~bgmiddleware.BackgroundMiddleware`, or several behind a dispatcher."""

    def __call__(self, environ: dict[str, Any], start_response: Any, /) -> Any: ...

    def shutdown(self, drain: float | None = None) -> None:
        """Take no more jobs, and give running jobs time to end."""

    def close(self, drain: float | None = None) -> None:
        """Call :meth:`shutdown` and close all resources."""


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


def serve(
    app: Served,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    threads: int = 8,
    trusted_proxy: str | None = None,
    trusted_proxy_count: int = 1,
    trusted_proxy_headers: Iterable[str] = PROXY_HEADERS,
) -> None:
    """Serve *app* until Ctrl-C or SIGTERM, then give its jobs the executor's *drain* seconds. Main thread only.

    *trusted_proxy* and the two arguments after it are those of waitress: the address of a proxy (``*``: any), the
    number of proxies in a row, and the headers of theirs that are trusted.

    Prints the addresses, with the real port if *port* is 0. While jobs end, their viewers are served and new jobs are
    refused. A second signal does not wait for the jobs. Raises ``OSError`` if the address is not available, and
    ``ValueError`` if it is not an address.
    """
    proxy: dict[str, Any] = {}
    if trusted_proxy is not None:
        proxy |= {"trusted_proxy": trusted_proxy, "trusted_proxy_count": trusted_proxy_count}
        proxy |= {"trusted_proxy_headers": set(trusted_proxy_headers)}
    channels: dict[int, Any] = {}
    server: Any = create_server(
        app,
        map=channels,
        host=host,
        port=port,
        threads=threads,
        # So that a follower of a quiet job notices that its client has gone.
        channel_request_lookahead=1,
        # The default is 100, idle connections included: as many viewers would lock everybody else out.
        connection_limit=1000,
        # select() raises at the 1024th descriptor, which would end the server and every job.
        asyncore_use_poll=True,
        # A client on this machine may be a proxy. Its headers then say whether a cancel comes from the same site.
        clear_untrusted_proxy_headers=trusted_proxy is not None or not _is_loopback(host),
        **proxy,
    )
    end = _End(channels)
    stop = _Stop(app, end)
    # By default SIGTERM ends the process at once, and every job with it.
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for address in _addresses(server):
            print(f"Serving on http://{address}/ (Ctrl-C stops)", flush=True)
        server.run()  # returns after the end, when its threads have ended
    finally:
        server.close()
        end.close()
        app.close(drain=0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


class _End(dispatcher):
    """Ends the server's loop, which watches it beside its *channels*.

    An exception from a signal handler could come right after the loop took a lock, and all threads would wait for that
    lock for ever. This one comes where the loop calls its channels.
    """

    def __init__(self, channels: dict[int, Any]) -> None:
        heard, self._told = socket.socketpair()
        super().__init__(heard, channels)

    def come(self) -> None:
        """Make ``run()`` of the server return. Any thread may call this, also before the server runs."""
        self._told.close()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def handle_read_event(self) -> None:
        raise SystemExit(0)

    def close(self) -> None:
        self._told.close()
        super().close()


class _Stop:
    """The signal handler. It stops the jobs first, then the server, so that viewers see how their jobs end."""

    def __init__(self, app: Served, end: _End) -> None:
        self._app = app
        self._end = end
        self._asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        drain = 0.0 if self._asked else None
        self._asked = True
        # In a thread, because the main thread goes on serving.
        threading.Thread(target=self._stop, args=(drain,), name="bgmiddleware-stop", daemon=True).start()

    def _stop(self, drain: float | None) -> None:
        if drain is None:
            print("Stopping: jobs get time to end …", file=sys.stderr, flush=True)
        self._app.shutdown(drain)
        self._end.come()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _addresses(server: Any) -> list[str]:
    """Return ``host:port`` of each socket; a host name may have several addresses."""
    pairs = getattr(server, "effective_listen", None) or [(server.effective_host, server.effective_port)]
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in pairs]
