"""Serve an app on waitress, set up for jobs and their viewers."""

import ipaddress
import signal
import sys
import threading
from collections.abc import Iterable
from types import FrameType
from typing import Any, Protocol

from waitress.server import create_server

__all__ = ["PROXY_HEADERS", "Served", "serve"]


class Served(Protocol):
    """What can be served: a :class:`~bgmiddleware.BackgroundMiddleware`, or several of them behind a dispatcher."""

    def __call__(self, environ: dict[str, Any], start_response: Any, /) -> Any: ...

    def shutdown(self, drain: float | None = None) -> None:
        """Take no more jobs, and give those that run time to end."""

    def close(self, drain: float | None = None) -> None:
        """The same, and let go of all resources."""


PROXY_HEADERS = ("x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto")
"""What a proxy that is trusted says of the browser's request."""


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
    """Serve *app* until Ctrl-C or SIGTERM, then let its jobs end as its executor is configured. Main thread only.

    *trusted_proxy* and the two after it are waitress' own: the address of a proxy (``*``: of anybody), how many there
    are in a row, and which of their headers are believed.

    Prints the addresses, with the real port where *port* is 0. Until the jobs have ended their viewers are served, and
    new jobs refused. A second signal does not wait for the jobs. Raises ``OSError`` where the address cannot be had,
    ``ValueError`` where there is no such address.
    """
    proxy: dict[str, Any] = {}
    if trusted_proxy is not None:
        proxy |= {"trusted_proxy": trusted_proxy, "trusted_proxy_count": trusted_proxy_count}
        proxy |= {"trusted_proxy_headers": set(trusted_proxy_headers)}
    server: Any = create_server(
        app,
        host=host,
        port=port,
        threads=threads,
        # Lets a follower of a quiet job be told that its client has gone.
        channel_request_lookahead=1,
        # By default a hundred, idle ones included: as many viewers would lock everybody else out.
        connection_limit=1000,
        # select() raises at the 1024th descriptor, which ends the server, and every job with it.
        asyncore_use_poll=True,
        # Whoever comes here from this machine may be a proxy. It changes nothing, but a cancel may be from its site.
        clear_untrusted_proxy_headers=trusted_proxy is not None or not _is_loopback(host),
        **proxy,
    )
    stop = _Stop(app)
    # By default SIGTERM ends the process at once, and every job with it.
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for address in _addresses(server):
            print(f"Serving on http://{address}/ (Ctrl-C stops)", flush=True)
        server.run()  # returns at SystemExit, when its threads have ended
    except SystemExit:
        pass  # it came before the server ran: the same wish
    finally:
        server.close()
        app.close(drain=0.0)
        for number, handler in before.items():
            signal.signal(number, handler)


class _Stop:
    """The signal handler. It stops the jobs first and the server then, so that viewers see how their jobs end."""

    def __init__(self, app: Served) -> None:
        self._app = app
        self._asked = 0
        self._stopped = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._stopped:
            raise SystemExit(0)
        self._asked += 1
        # In a thread: the main one goes on serving.
        drain = None if self._asked == 1 else 0.0
        threading.Thread(target=self._stop, args=(drain,), name="bgmiddleware-stop", daemon=True).start()

    def _stop(self, drain: float | None) -> None:
        if drain is None:
            print("Stopping: jobs get time to end …", file=sys.stderr, flush=True)
        self._app.shutdown(drain)
        self._stopped = True
        # To the main thread, which waits for connections; the handler is called there, again.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _addresses(server: Any) -> list[str]:
    """Return ``host:port`` of each socket; a name may have several."""
    pairs = getattr(server, "effective_listen", None) or [(server.effective_host, server.effective_port)]
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in pairs]
