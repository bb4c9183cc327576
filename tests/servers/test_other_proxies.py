"""Behind Apache and HAProxy, under a sub-path each."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.kit.ports import free_port
from tests.kit.processes import Server
from tests.servers.behind import ROWS, Behind, behind, is_up, outlives_patience
from tests.servers.lineup import LINEUP

pytestmark = pytest.mark.everything

APACHE = """
ServerRoot {directory}
DefaultRuntimeDir {directory}
PidFile {directory}/pid
Listen 127.0.0.1:{port}
ServerName localhost
ErrorLog {directory}/log
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
ProxyPass /site/ http://127.0.0.1:{upstream}/ timeout=120
ProxyPass /hasty/ http://127.0.0.1:{upstream}/ timeout=5
"""
HAPROXY = """
global
    log stderr format raw local0 notice
defaults
    mode http
    option forwardfor
    timeout connect 5s
    timeout client 120s
    timeout server 120s
frontend web
    bind 127.0.0.1:{port}
    use_backend hasty if {{ path_beg /hasty/ }}
    default_backend site
backend site
    http-request replace-path /site(/.*) \\1
    server web 127.0.0.1:{upstream}
backend hasty
    timeout server 5s
    http-request replace-path /hasty(/.*) \\1
    server web 127.0.0.1:{upstream}
"""
PROXIES = {
    "apache2": (APACHE, ("-DFOREGROUND", "-f")),
    "haproxy": (HAPROXY, ("-db", "-f")),
}


@contextlib.contextmanager
def _proxy(name: str, directory: Path, upstream: int) -> Iterator[int]:
    text, options = PROXIES[name]
    command = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if command is None or (name == "apache2" and os.geteuid()):
        pytest.skip(f"needs {name}, and root for apache2")
    directory.chmod(0o777)
    port = free_port()
    configuration = directory / "proxy.conf"
    configuration.write_text(text.format(directory=directory, port=port, upstream=upstream))
    log = directory / "log"
    with log.open("ab") as said:
        process = subprocess.Popen([command, *options, str(configuration)], stdout=said, stderr=said)
    try:
        is_up(port, process, log)
        yield port
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module", params=PROXIES)
def site(request: pytest.FixtureRequest) -> Iterator[Behind]:
    (candidate,) = [candidate for candidate in LINEUP if candidate.name == "gunicorn gthread"]
    with behind(candidate, partial(_proxy, request.param)) as (server, port):
        yield Behind(server, port, "/site")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)
def test_a_row_of_the_kit_passes_behind_it(site: Behind, row: Callable[[Server], None]) -> None:
    row(site)


def test_a_quiet_job_outlives_its_patience(site: Behind) -> None:
    outlives_patience(Behind(site, site.port, "/hasty"), "quiet", signs=30)
