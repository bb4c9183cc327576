"""What servers let us know of a request's connection, and of themselves: each says other things, and none says all."""

import errno
import functools
import importlib
import io
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from typing import Any

from .._ground.polling import is_readable

__all__ = [
    "broken_off",
    "disconnection_of",
    "is_behind_proxy",
    "is_stopping",
    "longest",
    "makes_ends_visible",
    "sends_files",
    "sends_without_thread",
    "stream_live",
    "takes_off_hands",
    "threads_of",
]

Environ = Mapping[str, Any]

_BOUND = 25.0
_BOUND_OF_ONE_THREAD = 5.0
_OF_PROXIES = ("HTTP_VIA", "HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_HOST")
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)
_MANY = 64
_BUFFERED = 1024 * 1024
_BUFFERED_BY_WAITRESS = 8 * 1024 * 1024  # half of what it does take: events are longer than their text


# Has the client gone?


def disconnection_of(environ: Environ) -> Callable[[], bool]:
    """Return a function that tells whether the client of a request has gone, as well as its server lets us know.

    Servers do not say so until a write fails, so where one gives the socket away we look whether it is at its end.
    """
    asked = environ.get("waitress.client_disconnected")
    connection = _socket_of(environ)

    def gone() -> bool:
        if asked is not None and asked():
            return True
        return connection is not None and _at_end(connection)

    return gone


def _socket_of(environ: Environ) -> socket.socket | None:
    """Return the socket of the client, or of the proxy; None where the server keeps it to itself."""
    found = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    if found is None and "waitress.client_disconnected" in environ:
        found = getattr(getattr(environ["waitress.client_disconnected"], "__self__", None), "socket", None)
    if found is None and environ.get("SERVER_SOFTWARE", "").startswith(("Cheroot", "gevent", "WSGIServer")):
        found = environ.get("wsgi.input")
        for name in ("rfile", "raw", "_sock"):  # a reader of a reader of it
            found = getattr(found, name, found)
    return found if isinstance(found, socket.socket) else None


def _at_end(connection: socket.socket) -> bool:
    number = connection.fileno()
    if number < 0:  # closed by the server
        return True
    try:
        # Not read at once: gevent's sockets wait for something to read, whatever the flags.
        return is_readable(number, 0.0) and not connection.recv(1, socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0))
    except (BlockingIOError, ValueError):  # TLS, say, lets nobody look
        return False
    except OSError:  # reset
        return True


# An end that is not the end.


def broken_off(environ: Environ) -> Exception:
    """Return what to raise so that the client sees an answer break off, and does not take it for whole.

    Where the answer has no length and no chunks, as for clients and proxies of HTTP/1.0, only a reset connection says
    so. Servers write errors of connections into no log, or into one line.
    """
    if not environ.get("SERVER_PROTOCOL", "").startswith("HTTP/1"):
        return ConnectionAbortedError(errno.ECONNABORTED, "the answer ends before the job")  # others share it
    if "waitress.client_disconnected" in environ:
        _reset_when_closed(_socket_of(environ))
        return importlib.import_module("waitress.channel").ClientDisconnected()  # type: ignore[no-any-return]
    uwsgi = _uwsgi(environ)
    if uwsgi is not None:
        with socket.socket(fileno=os.dup(uwsgi.connection_fd())) as connection:
            _reset_when_closed(connection)
        return StopIteration()  # any other would be a traceback in the log, and do no more
    if _is_granian(environ) or _is_tornado(environ):
        # What is raised there is an answer that nobody sees, or none at all; what is shorter than it says is closed.
        return StopIteration()
    given = _socket_of(environ)
    _reset_when_closed(given)
    if given is not None and ("gunicorn.socket" in environ or "werkzeug.socket" in environ):
        given.close()  # these say by a FIN that all is well, before they close it
    return ConnectionResetError(errno.ECONNRESET, "the answer ends before the job")


def makes_ends_visible(environ: Environ) -> bool:
    """Whether a client certainly sees that an answer without a length broke off."""
    hides = environ.get("SERVER_PROTOCOL") == "HTTP/1.0" or _is_granian(environ) or _is_mod_wsgi(environ)
    return not hides and _uwsgi(environ) is None


def _reset_when_closed(connection: socket.socket | None) -> None:
    if connection is not None and connection.family in (socket.AF_INET, getattr(socket, "AF_INET6", None)):
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        except OSError:  # it is closed already
            return


# How long, and how many.


def longest(environ: Environ) -> float:
    """Return for how many seconds a connection may be held.

    Servers with a bound kill the process, with every job in it, over an answer that takes longer; others wait for it
    when they are stopped, or never say that a client has gone. Only where none of this is so there is no bound.
    """
    uwsgi = _uwsgi(environ)
    if uwsgi is not None:
        harakiri = float(uwsgi.opt.get("harakiri", b"0") or 0)
        return min(_BOUND, max(1.0, harakiri - 5)) if harakiri else float("inf")
    if _is_asgiref(environ):
        return min(_BOUND, _BOUND_OF_ONE_THREAD)
    software = environ.get("SERVER_SOFTWARE", "")
    tells = ("waitress.client_disconnected", "gunicorn.socket", "werkzeug.socket")
    unbounded = any(name in environ for name in tells) or software.startswith(("waitress", "gevent"))
    return float("inf") if unbounded else _BOUND


def is_stopping() -> bool:
    """Whether the server of this process was told to stop, if it lets us know: it waits for its connections now."""
    server = _stopper()
    return getattr(server, "alive", True) is False or getattr(server, "should_exit", False) is True


def _stopper() -> object:
    """Return whose method handles SIGTERM: a worker of gunicorn, a server of uvicorn."""
    return getattr(signal.getsignal(signal.SIGTERM), "__self__", None)


def threads_of(environ: Environ) -> int | None:
    """Return how many requests this process answers at a time, where its server says so."""
    channel: Any = getattr(environ.get("waitress.client_disconnected"), "__self__", None)
    if channel is not None:
        return _number(channel, "server", "adj", "threads")
    if "gunicorn.socket" in environ:
        return _number(_stopper(), "cfg", "worker_connections" if _has_greenlets() else "threads")
    uwsgi = _uwsgi(environ)
    if uwsgi is not None:
        return int(uwsgi.opt.get("threads", b"1"))
    if _is_mod_wsgi(environ):
        return _number(sys.modules.get("mod_wsgi"), "threads_per_process")
    return _MANY if "werkzeug.socket" in environ else None  # a thread for each connection


def _has_greenlets() -> bool:
    return type(_stopper()).__module__.endswith(("ggevent", "geventlet"))


def _number(found: Any, *names: str) -> int | None:
    for name in names:
        found = getattr(found, name, None)
    return found if isinstance(found, int) else None


def takes_off_hands(environ: Environ) -> int:
    """Return how many bytes of an answer the server takes at once, though its client reads none of them."""
    return _BUFFERED_BY_WAITRESS if "waitress.client_disconnected" in environ else _BUFFERED


def sends_files(environ: Environ) -> Callable[..., Any] | None:
    """Return the server's ``wsgi.file_wrapper`` where it is worth using: waitress sends a file without a thread, and
    gunicorn by one call of the system. Others are not faster by it, or send all of a file, whatever the range."""
    of_gunicorn = "gunicorn.socket" in environ and not _has_greenlets() and "HTTP_VERSION" not in environ
    wrapper = environ.get("wsgi.file_wrapper")
    return wrapper if wrapper is not None and (of_gunicorn or sends_without_thread(environ)) else None


def sends_without_thread(environ: Environ) -> bool:
    """Whether no thread is held while a file is sent to a client that reads slowly."""
    return "waitress.client_disconnected" in environ and "wsgi.file_wrapper" in environ


def is_behind_proxy(environ: Environ) -> bool:
    """Whether there is a sign of a proxy, which cuts off who says nothing for long."""
    # eventlet says HTTP/1.0 to all.
    is_old = environ.get("SERVER_PROTOCOL") == "HTTP/1.0" and "eventlet.posthooks" not in environ
    return is_old or any(name in environ for name in _OF_PROXIES)


def stream_live(environ: Environ) -> None:
    """Let a server that collects small pieces pass each on at once."""
    if "eventlet.posthooks" in environ and isinstance(environ, dict):
        environ["eventlet.minimum_write_chunk_size"] = 0


def _is_granian(environ: Environ) -> bool:
    return str(environ.get("SERVER_SOFTWARE", "")).lower().startswith("granian")


def _is_tornado(environ: Environ) -> bool:
    # It does not say so; and it has no threads, where others have none it has no file_wrapper either.
    is_like_it = environ.get("wsgi.multiprocess") and not environ.get("wsgi.multithread")
    return bool(is_like_it) and "wsgi.file_wrapper" not in environ and "tornado.wsgi" in sys.modules


def _is_asgiref(environ: Environ) -> bool:
    """Whether this is its bridge, which says that it has threads and calls every app in the same one."""
    return isinstance(environ.get("wsgi.errors"), io.BytesIO) and "asgiref.wsgi" in sys.modules


def _is_mod_wsgi(environ: Environ) -> bool:
    return "mod_wsgi.version" in environ


def _uwsgi(environ: Environ) -> Any:
    return _uwsgi_module() if "uwsgi.version" in environ else None


@functools.cache
def _uwsgi_module() -> Any:
    """Return the module that uWSGI has in its own processes, with its options by name; None elsewhere."""
    try:
        return importlib.import_module("uwsgi")
    except ImportError:
        return None
