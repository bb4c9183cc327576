"""Behind nginx: under a sub-path, over HTTP/1.0 and kept connections, compressed, and over HTTP/2."""

import contextlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import PROMISED
from tests.kit.ports import free_port
from tests.kit.processes import LONG, Server
from tests.servers.behind import ROWS, Behind, behind, is_up, outlives_patience
from tests.servers.lineup import LINEUP

pytestmark = pytest.mark.everything

BEHIND = [candidate for candidate in LINEUP if candidate.name in ("python -m bgmiddleware serve", "gunicorn gthread")]
NGINX = """
daemon off;
worker_processes 1;
pid {directory}/pid;
error_log {directory}/error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_max_body_size 8m;
    upstream site {{ server 127.0.0.1:{upstream}; keepalive 4; }}
    server {{ listen 127.0.0.1:{port}; {locations} }}
    server {{ listen 127.0.0.1:{port_of_http_2} http2; {locations} }}
}}
"""
KINDS = {
    "plain": "",
    "kept": 'proxy_http_version 1.1; proxy_set_header Connection "";',
    "zipped": "gzip on; gzip_types text/plain; gzip_proxied any;",
}
LOCATIONS = "".join(
    f"location /{prefix}{kind}/ {{ proxy_pass http://site/; proxy_read_timeout {seconds}s; {settings} }}\n"
    for kind, settings in KINDS.items()
    for prefix, seconds in (("", 120), ("hasty-", 2))
)


@contextlib.contextmanager
def _nginx(directory: Path, upstream: int) -> Iterator[tuple[int, int]]:
    command = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if command is None:
        assert not PROMISED, "CI=true promises nginx"
        pytest.skip("needs nginx")
    directory.chmod(0o777)
    port, port_of_http_2 = free_port(), free_port()
    configuration = directory / "nginx.conf"
    given = {"directory": directory, "upstream": upstream, "port": port, "port_of_http_2": port_of_http_2}
    configuration.write_text(NGINX.format(locations=LOCATIONS, **given))
    process = subprocess.Popen([command, "-c", str(configuration), "-e", str(directory / "error.log")])
    try:
        is_up(port_of_http_2, process, directory / "error.log")
        yield port, port_of_http_2
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module", params=BEHIND, ids=lambda candidate: candidate.name)
def proxied(request: pytest.FixtureRequest) -> Iterator[tuple[Server, tuple[int, int]]]:
    with behind(request.param, _nginx) as server_and_ports:
        yield server_and_ports


@pytest.fixture(params=KINDS)
def site(request: pytest.FixtureRequest, proxied: tuple[Server, tuple[int, int]]) -> Behind:
    server, (port, port_of_http_2) = proxied
    return Behind(server, port, f"/{request.param}", port_of_http_2)


@pytest.fixture
def hasty(site: Behind) -> Behind:
    """The same, with a proxy that waits for two seconds only."""
    return Behind(site, site.port, f"/hasty-{site.prefix[1:]}", site.port_of_http_2)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.__name__)
def test_a_row_of_the_kit_passes_behind_nginx(site: Behind, row: Callable[[Server], None]) -> None:
    row(site)


def test_a_quiet_job_outlives_the_patience_of_the_proxy(hasty: Behind) -> None:
    outlives_patience(hasty, f"quiet{hasty.prefix[1:]}")


def _curl(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    curl = shutil.which("curl")
    assert curl, "needs curl"
    return subprocess.run([curl, "-sS", *arguments], capture_output=True, timeout=LONG)


@pytest.mark.parametrize("options", [("--http2-prior-knowledge",), ("--http2-prior-knowledge", "--compressed")])
def test_it_is_served_over_http_2_and_compressed(site: Behind, options: tuple[str, ...]) -> None:
    if b"HTTP2" not in _curl("--version").stdout:
        pytest.skip("this curl has no HTTP/2")
    url = f"http://127.0.0.1:{site.port_of_http_2}{site.prefix}/x/count?300"
    head = _curl("-i", *options, url).stdout.decode()
    location = re.search(r"(?mi)^location: (\S+)", head)
    assert location, head
    job = url.partition("?")[0] + location[1]  # asked by itself: some versions of curl cannot go on to it in HTTP/2
    followed = _curl(*options, job)
    lines = "".join(f"line {number}\n" for number in range(300))
    assert (followed.returncode, followed.stdout.decode().replace("\r", "")) == (0, lines)
    result = _curl(*options, f"{job}&_view=result&_wait=30")
    assert result.stdout == b"300 lines\n"
