"""The servers that the kit runs on: how each is started, and what it cannot do.

``python -m tests.servers.table`` makes the table in docs/how-to/deployment.rst of this and of what the kit sees.
"""

import importlib.metadata
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.kit.ports import free_port
from tests.kit.processes import Server
from tests.kit.servers import has_mod_wsgi, mod_wsgi

__all__ = ["LINEUP", "Candidate"]

NOT_LIVE = dict.fromkeys(("live", "events"), "one thread: nobody is served live")
ENDS = "ends at once"
KILLED = {"sigterm": ENDS, "watched": ENDS}

OF_SYSTEM = "libapache2-mod-wsgi-py3"

_APP = "tests.kit.served_site:app"
_EXIT = """
import signal, sys

def stop(*_):
    print("heard SIGTERM", flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
"""
_SITE = "from tests.kit.served_site import app\n"


@dataclass(frozen=True)
class Candidate:
    """One server in one configuration, with its limits: for each row that it cannot do the reason."""

    name: str
    package: str
    command: tuple[str, ...] = ()
    """With ``PORT`` for the port."""
    script: str = ""
    """The same as a program of Python."""
    modules: tuple[str, ...] = ()
    setting: str = ""
    """What a site has to say to it."""
    limits: Mapping[str, str] = field(default_factory=dict)
    of_system: bool = False
    """Whether it is one of the system, which Python's packages do not know."""

    @property
    def optional(self) -> bool:
        """Whether it may be missing where all is promised: it needs libraries of the system, or root."""
        return self.of_system or self.package == "bjoern"

    @property
    def version(self) -> str:
        """The version that is installed, empty for what the standard library has."""
        if self.of_system:
            found = subprocess.run(["dpkg-query", "-W", "-f", "${Version}", OF_SYSTEM], capture_output=True, text=True)
            return found.stdout.partition("-")[0]
        return importlib.metadata.version(self.package) if self.package else ""

    def missing(self) -> str:
        """Return what it needs and is not here; empty where it can be started."""
        if self.of_system:
            return "" if has_mod_wsgi() else f"needs root, apache2 and {OF_SYSTEM} for Python 3.11"
        for package in filter(None, (self.package, *self.modules)):
            try:
                importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                return f"needs {package}"
        return ""

    def start(self, directory: Path, **site: str) -> Server:
        """Start it in *directory*; it need not answer yet."""
        environ = {
            "SITE_REGISTRY": f"spool:{directory}/jobs",
            "SITE_DRAIN": "20",
            "SITE_SIGN": "0.2",
            "SITE_BOUND": "3",
            **site,
        }
        if self.of_system:
            return mod_wsgi(directory, embedded="embedded" in self.name, **{**environ, "SITE_DRAIN": "2"})
        port = free_port()
        argv = [part.replace("PORT", str(port)) for part in self.command]
        if argv:
            argv[0] = str(Path(sys.executable).parent / argv[0])
        else:
            argv = [sys.executable, "-c", self.script.replace("PORT", str(port))]
        said = ["sh", "-c", f'echo "the port is {port}"; exec "$@"', "sh", *argv]
        return Server(said, r"the port is (\d+)", directory, **environ)


def _gunicorn(kind: str, *options: str) -> tuple[str, ...]:
    return ("gunicorn", "-b", "127.0.0.1:PORT", "-k", kind, *options, _APP)


def _uwsgi(kind: str) -> tuple[str, ...]:
    options = ("--master", "--die-on-term", "--threads", "8", "--need-app")
    return ("uwsgi", kind, "127.0.0.1:PORT", *options, "--module", _APP)


_ASYNCIO = """
import asyncio, tornado.httpserver, tornado.wsgi
async def main():
    tornado.httpserver.HTTPServer(tornado.wsgi.WSGIContainer(app)).listen(PORT, "127.0.0.1")
    await asyncio.Event().wait()
asyncio.run(main())
"""
# It swallows a SystemExit that comes while it answers, so its loop is told to end.
_WSGIREF = """
import signal, threading
from wsgiref.simple_server import make_server

def stop(*_):
    print("heard SIGTERM", flush=True)
    threading.Thread(target=server.shutdown).start()

server = make_server("127.0.0.1", PORT, app)
signal.signal(signal.SIGTERM, stop)
server.serve_forever()
"""
# A SystemExit may come right after its loop took a lock, for which all its threads then wait.
_CHEROOT = """
import signal, threading
from cheroot.wsgi import Server

def stop(*_):
    print("heard SIGTERM", flush=True)
    threading.Thread(target=server.stop).start()

server = Server(("127.0.0.1", PORT), app, numthreads=8)
signal.signal(signal.SIGTERM, stop)
server.start()
"""
# A SystemExit may come out where the hub loses it.
_GEVENT = """
import gevent, signal
from gevent.pywsgi import WSGIServer

def stop():
    print("heard SIGTERM", flush=True)
    server.stop()

server = WSGIServer(("127.0.0.1", PORT), app)
gevent.signal_handler(signal.SIGTERM, stop)
server.serve_forever()
"""
# A SystemExit would come out in whatever green thread runs just then.
_EVENTLET = """
import signal
from eventlet import wsgi
from tests.kit.served_site import middleware

def stop(*_):
    print("heard SIGTERM", flush=True)
    eventlet.spawn(end)

def end():
    middleware.close()
    server.kill()

signal.signal(signal.SIGTERM, stop)
server = eventlet.spawn(wsgi.server, eventlet.listen(("127.0.0.1", PORT)), app)
try:
    server.wait()
except eventlet.greenlet.GreenletExit:
    pass
"""
_UVICORN = "import uvicorn\nuvicorn.run(Bridge(app), host='127.0.0.1', port=PORT)\n"
_OF_UWSGI = "``--master --die-on-term --threads 8``"
_JOINS = {"idempotency": "joined only with an ``owner``"}
_REASON = {"result": "a standard reason phrase"}
_SAYS_SEVERAL = "a spool or Redis: it says that it runs several processes"

LINEUP: tuple[Candidate, ...] = (
    Candidate(
        "python -m bgmiddleware serve",
        "waitress",
        ("python", "-m", "bgmiddleware", "serve", "tests.kit.served_site:middleware", "--port", "PORT"),
        setting="nothing",
    ),
    Candidate(
        "waitress",
        "waitress",
        script=_EXIT + _SITE + "from waitress import serve\n"
        "serve(app, listen='127.0.0.1:PORT', threads=8, channel_request_lookahead=1)\n",
        setting="the lines below",
    ),
    Candidate(
        "waitress-serve",
        "waitress",
        ("waitress-serve", "--listen=127.0.0.1:PORT", "--threads=8", "--channel-request-lookahead=1", _APP),
        setting="``--threads=8 --channel-request-lookahead=1``",
        limits=KILLED,
    ),
    Candidate("gunicorn sync", "gunicorn", _gunicorn("sync"), setting="``-w 4``", limits=NOT_LIVE),
    Candidate(
        "gunicorn gthread", "gunicorn", _gunicorn("gthread", "--threads", "8"), setting="``-k gthread --threads 8``"
    ),
    Candidate(
        "gunicorn gthread --preload",
        "gunicorn",
        _gunicorn("gthread", "--threads", "8", "--preload"),
        setting="``-k gthread --threads 8 --preload``",
    ),
    Candidate("gunicorn gevent", "gunicorn", _gunicorn("gevent"), modules=("gevent",), setting="``-k gevent``"),
    Candidate("uWSGI http", "pyuwsgi", _uwsgi("--http"), setting=_OF_UWSGI),
    Candidate("uWSGI http-socket", "pyuwsgi", _uwsgi("--http-socket"), setting=_OF_UWSGI),
    Candidate("mod_wsgi daemon", "mod_wsgi", of_system=True, setting="``threads=8``, ``drain = 2``"),
    Candidate(
        "mod_wsgi embedded",
        "mod_wsgi",
        of_system=True,
        setting="``application-group=%{GLOBAL}``, ``drain = 2``",
    ),
    Candidate(
        "cheroot",
        "cheroot",
        script=_SITE + _CHEROOT,
        setting="SIGTERM as below",
    ),
    Candidate(
        "granian",
        "granian",
        ("granian", "--interface", "wsgi", "--port", "PORT", "--blocking-threads", "8", _APP),
        setting="``--interface wsgi --blocking-threads 8``",
        limits=_REASON,
    ),
    Candidate(
        "Werkzeug",
        "Werkzeug",
        script=_EXIT + _SITE + "from werkzeug.serving import run_simple\n"
        "run_simple('127.0.0.1', PORT, app, threaded=True)\n",
        setting="``threaded=True``, SIGTERM as below",
    ),
    Candidate("wsgiref", "", script=_SITE + _WSGIREF, setting="SIGTERM as below", limits=NOT_LIVE),
    Candidate(
        "gevent.pywsgi",
        "gevent",
        script="from gevent import monkey\nmonkey.patch_all()\n" + _SITE + _GEVENT,
        setting="``monkey.patch_all()``, SIGTERM as below",
        limits=NOT_LIVE,
    ),
    Candidate(
        "bjoern",
        "bjoern",
        script=_SITE + "import bjoern\nbjoern.run(app, '127.0.0.1', PORT)\n",
        setting=_SAYS_SEVERAL,
        limits=NOT_LIVE | KILLED,
    ),
    Candidate(
        "eventlet",
        "eventlet",
        script="import eventlet\neventlet.monkey_patch()\n" + _SITE + _EVENTLET,
        setting="``monkey_patch()``, SIGTERM as below",
    ),
    Candidate(
        "uvicorn + a2wsgi",
        "uvicorn",
        script=_SITE + "from a2wsgi import WSGIMiddleware as Bridge\n" + _UVICORN,
        modules=("a2wsgi",),
        setting=_SAYS_SEVERAL,
        limits=_REASON | _JOINS,
    ),
    Candidate(
        "hypercorn",
        "hypercorn",
        ("hypercorn", "-b", "127.0.0.1:PORT", f"wsgi:{_APP}"),
        setting=_SAYS_SEVERAL,
        limits=_REASON,
    ),
    Candidate("tornado", "tornado", script=_SITE + _ASYNCIO, setting=_SAYS_SEVERAL, limits=NOT_LIVE | KILLED),
)
