"""The servers that sites use, each with ``tests.kit.served_site`` and several processes where it has them."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import webob

import bgmiddleware
from tests.conftest import PROMISED, needs
from tests.kit.documents import ROOT
from tests.kit.ports import free_port
from tests.kit.processes import Server, gunicorn


@contextlib.contextmanager
def open_directory() -> Iterator[Path]:
    """Give a directory that all users can see: Apache serves as another one."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def sync(directory: Path, *options: str, **site: str) -> Server:
    needs("gunicorn")
    return gunicorn(directory, "-k", "sync", *options, **site)


def gthread(directory: Path, *options: str, **site: str) -> Server:
    needs("gunicorn")
    return gunicorn(directory, "-k", "gthread", "--threads", "4", *options, **site)


def gevent(directory: Path, *options: str, **site: str) -> Server:
    needs("gunicorn")
    needs("gevent")
    return gunicorn(directory, "-k", "gevent", *options, **site)


def uwsgi(directory: Path, **site: str) -> Server:
    command = Path(sys.executable).parent / "uwsgi"
    if not command.exists():
        assert not PROMISED, "CI=true promises pyuwsgi"
        pytest.skip("needs pyuwsgi")
    options = ["--http-socket", "127.0.0.1:0", "--master", "--processes", "4", "--threads", "4", "--die-on-term"]
    server = Server(
        [str(command), *options, "--need-app", "--module", "tests.kit.served_site:app"],
        r"bound to TCP address 127\.0\.0\.1:(\d+)",
        directory,
        **site,
    )
    server.said("spawned uWSGI worker 4")
    return server


WAITRESS = """
import signal, sys
from tests.kit.served_site import app
from waitress.server import create_server

def stop(*_):
    print("SIGTERM", flush=True)
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
server = create_server(app, listen="127.0.0.1:0", threads=8)
print("port", server.effective_port, flush=True)
server.run()
"""


def waitress(directory: Path, **site: str) -> Server:
    return Server([sys.executable, "-c", WAITRESS], r"port (\d+)", directory, **site)


APACHE = """
ServerRoot {directory}
DefaultRuntimeDir {directory}
PidFile {directory}/pid
ServerName localhost
Listen 127.0.0.1:{port}
User www-data
Group www-data
ErrorLog /dev/stderr
LogLevel info
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule wsgi_module {modules}/mod_wsgi.so
{wsgi}
WSGICallableObject app
<Directory />
Require all granted
</Directory>
"""
SCRIPT = "WSGIScriptAlias / {directory}/python/tests/kit/served_site.py application-group=%{{GLOBAL}}"
DAEMON = f"WSGIDaemonProcess site processes=2 threads=8 python-path={{directory}}/python\n{SCRIPT} process-group=site"
# In the processes of Apache itself.
_TWO = "StartServers 2\nServerLimit 2\nThreadsPerChild 8\nMaxRequestWorkers 16"
EMBEDDED = f"{_TWO}\nWSGIPythonPath {{directory}}/python\n{SCRIPT}"
MODULES = Path("/usr/lib/apache2/modules")


def _apache() -> str | None:
    return shutil.which("apache2") or shutil.which("apache2", path="/usr/sbin")


def has_mod_wsgi() -> bool:
    """Whether Apache and its module for this Python are there, and who runs this may serve as another user."""
    return _apache() is not None and (MODULES / "mod_wsgi.so-3.11").exists() and not os.geteuid()


def mod_wsgi(directory: Path, *, embedded: bool = False, **site: str) -> Server:
    command = _apache()
    if command is None or not has_mod_wsgi():
        pytest.skip("needs root, and apache2 with libapache2-mod-wsgi-py3 for Python 3.11, as Debian 12 has it")
    # Apache serves as another user, who cannot read everything that we can.
    directory.chmod(0o777)
    python = directory / "python"
    if not python.exists():
        for package in (bgmiddleware, webob):
            source = Path(package.__path__[0])
            shutil.copytree(source, python / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        (python / "tests" / "kit").mkdir(parents=True)
        shutil.copy(ROOT / "tests" / "kit" / "served_site.py", python / "tests" / "kit")
    port = free_port()
    configuration = directory / f"apache-{port}.conf"
    wsgi = (EMBEDDED if embedded else DAEMON).format(directory=directory)
    configuration.write_text(APACHE.format(directory=directory, port=port, modules=MODULES, wsgi=wsgi))
    command_line = [command, "-f", str(configuration), "-DFOREGROUND"]
    return Server(command_line, r"Command line: .*apache-(\d+)\.conf", directory, **site)
