"""Waitress as ``python -m bgmiddleware serve`` and the demo use it: a thousand connections, and an end that waits for
jobs."""

import ipaddress
import signal
import socket
import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any, Protocol

from waitress.server import create_server
from waitress.wasyncore import dispatcher

__all__ = ["PROXY_HEADERS", "Served", "serve"]

PROXY_HEADERS = ("x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto")
"""What a trusted proxy says about the browser's request."""


class Served(Protocol):
    """An app that can be served: a :class:`~bgmiddleware.BackgroundMiddleware`, or several behind a dispatcher."""

    def __call__(self, environ: dict[str, Any], start_response: Any, /) -> Any: ...

    def shutdown(self, drain: float | None = None) -> None:
        """Take no more jobs, and give running jobs time to end."""

    def close(self, drain: float | None = None) -> None:
        """Call :meth:`shutdown` and close all resources."""


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
