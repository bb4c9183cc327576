"""Serve an app on waitress, set up for jobs and their viewers."""

import signal
import sys
from types import FrameType
from typing import Any

from waitress.server import create_server

from ._middleware import BackgroundMiddleware

__all__ = ["serve"]


def serve(app: BackgroundMiddleware, *, host: str = "127.0.0.1", port: int = 8080, threads: int = 8) -> None:
    """Serve *app* until Ctrl-C or SIGTERM, then let its jobs end as its executor is configured. Main thread only.

    Prints the addresses, with the real port where *port* is 0. A second signal does not wait for the jobs. Raises
    ``OSError`` where the address cannot be had, ``ValueError`` where there is no such address.
    """
    server: Any = create_server(
        app,
        host=host,
        port=port,
        threads=threads,
        # Lets a follower of a quiet job be told that its client has gone.
        channel_request_lookahead=1,
    )
    signal.signal(signal.SIGTERM, _exit)  # by default it ends the process at once, and every job with it
    try:
        for address in _addresses(server):
            print(f"Serving on http://{address}/ (Ctrl-C stops)", flush=True)
        server.run()  # returns at KeyboardInterrupt and SystemExit
    except (KeyboardInterrupt, SystemExit):
        pass  # it came before the server ran: the same wish
    finally:
        _stop(server, app)


def _stop(server: Any, app: BackgroundMiddleware) -> None:
    try:
        server.close()
        print("Stopping: jobs get time to end …", file=sys.stderr, flush=True)
        app.close()
    except (KeyboardInterrupt, SystemExit):
        app.close(drain=0)


def _addresses(server: Any) -> list[str]:
    """Return ``host:port`` of each socket; a name may have several."""
    pairs = getattr(server, "effective_listen", None) or [(server.effective_host, server.effective_port)]
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in pairs]


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
