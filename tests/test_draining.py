"""SIGTERM: what runs gets time to end under each server that gives it; what does not end is lost, and says so."""

import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import webob

import bgmiddleware
from tests.conftest import needs
from tests.documents import ROOT
from tests.processes import Server, gunicorn, running

Serve = Callable[..., Server]


def sync(directory: Path, **site: str) -> Server:
    needs("gunicorn")
    return gunicorn(directory, "-k", "sync", **site)


def gthread(directory: Path, **site: str) -> Server:
    needs("gunicorn")
    return gunicorn(directory, "-k", "gthread", "--threads", "4", **site)


def gevent(directory: Path, **site: str) -> Server:
    needs("gunicorn")
    needs("gevent")
    return gunicorn(directory, "-k", "gevent", **site)


def uwsgi(directory: Path, **site: str) -> Server:
    command = Path(sys.executable).parent / "uwsgi"
    if not command.exists():
        pytest.skip("needs pyuwsgi")
    options = ["--http-socket", "127.0.0.1:0", "--master", "--processes", "4", "--threads", "4", "--die-on-term"]
    server = Server(
        [str(command), *options, "--need-app", "--module", "tests.served_site:app"],
        r"bound to TCP address 127\.0\.0\.1:(\d+)",
        directory,
        **site,
    )
    server.said("spawned uWSGI worker 4")
    return server


WAITRESS = """
import signal, sys
from tests.served_site import app
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
WSGIDaemonProcess site processes=2 threads=8 python-path={directory}/python
WSGIScriptAlias / {directory}/python/tests/served_site.py process-group=site application-group=%{{GLOBAL}}
WSGICallableObject app
<Directory />
Require all granted
</Directory>
"""
MODULES = Path("/usr/lib/apache2/modules")


def mod_wsgi(directory: Path, **site: str) -> Server:
    command = shutil.which("apache2") or shutil.which("apache2", path="/usr/sbin")
    if command is None or not (MODULES / "mod_wsgi.so-3.11").exists() or os.geteuid():
        pytest.skip("needs root, and apache2 with libapache2-mod-wsgi-py3 for Python 3.11, as Debian 12 has it")
    # Apache serves as another user, who cannot read everything that we can.
    directory.chmod(0o777)
    python = directory / "python"
    if not python.exists():
        for package in (bgmiddleware, webob):
            source = Path(package.__path__[0])
            shutil.copytree(source, python / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        (python / "tests").mkdir()
        shutil.copy(ROOT / "tests" / "served_site.py", python / "tests")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    configuration = directory / f"apache-{port}.conf"
    configuration.write_text(APACHE.format(directory=directory, port=port, modules=MODULES))
    command_line = [command, "-f", str(configuration), "-DFOREGROUND"]
    return Server(command_line, r"Command line: .*apache-(\d+)\.conf", directory, **site)


SERVERS = {
    sync: "Handling signal: term",
    gthread: "Handling signal: term",
    gevent: "Handling signal: term",
    uwsgi: "SIGINT/SIGTERM received",
    waitress: "SIGTERM",
    mod_wsgi: "Stopping process 'site'",
}


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that all users can see."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(params=SERVERS)
def serve(request: pytest.FixtureRequest) -> Serve:
    return request.param  # type: ignore[no-any-return]


def end_of(serve: Serve, directory: Path, target: str) -> tuple[str, str, str]:
    """Start the server again; return state, reason and output of a job."""
    with running(serve(directory, SITE_REGISTRY=f"spool:{directory}/jobs")) as server:
        state = server.ended(target)
        return state["state"], state["reason"], server.request("GET", f"{target}&_view=log").text


def test_a_running_job_gets_time_to_end(serve: Serve, directory: Path) -> None:
    drain = "2" if serve is mod_wsgi else "20"
    with running(serve(directory, SITE_REGISTRY=f"spool:{directory}/jobs", SITE_DRAIN=drain)) as server:
        target = server.started("/x/wait?gate")
        server.begun(target)
        server.send(signal.SIGTERM)
        server.said(SERVERS[serve])
        (directory / "gate").touch()
        assert server.wait() == 0
    assert end_of(serve, directory, target) == ("finished", "", "begun\nended\n")


def test_a_job_that_does_not_end_in_time_is_lost_and_what_it_printed_is_kept(serve: Serve, directory: Path) -> None:
    with running(serve(directory, SITE_REGISTRY=f"spool:{directory}/jobs", SITE_DRAIN="0.1")) as server:
        target = server.started("/x/wait?never")
        server.begun(target)
        assert server.end() == 0
    assert end_of(serve, directory, target) == ("lost", "server shut down", "begun\n")
