"""Applications of others, with their own clients, behind a middleware of two lines."""

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, marks
from tests.conftest import needs
from tests.kit.apps import WAIT
from tests.kit.clients import OverHTTP, ended, served, start

pytestmark = [pytest.mark.everything, pytest.mark.usefixtures("patient")]


@pytest.fixture
def hg(tmp_path: Path) -> Any:
    needs("mercurial")
    environment = {"HGRCPATH": "", "HGUSER": "ann", "PATH": "", "HOME": str(tmp_path)}

    def run(*arguments: str) -> str:
        command = [sys.executable, "-c", "from mercurial import dispatch; dispatch.run()", *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # Mercurial leaves files to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_repository_is_cloned_from_and_pushed_to_by_mercurial(hg: Any, tmp_path: Path) -> None:
    hgweb = needs("mercurial.hgweb")
    hg("init", "there")
    (tmp_path / "there" / "a.txt").write_text("a\n")
    (tmp_path / "there" / ".hg" / "hgrc").write_text("[web]\npush_ssl = no\nallow_push = *\nallow-archive = gz\n")
    hg("-R", "there", "commit", "-A", "-m", "first")
    app = hgweb.hgweb(str(tmp_path / "there").encode())
    with BackgroundMiddleware(app, when=marks.path("/*")) as site, served(site) as client:
        url = f"http://127.0.0.1:{client.port}/"
        hg("clone", url, "here")
        assert (tmp_path / "here" / "a.txt").read_text() == "a\n"
        (tmp_path / "here" / "b.txt").write_text("b\n")
        hg("-R", "here", "commit", "-A", "-m", "second")
        hg("-R", "here", "push", url)
        assert hg("-R", "there", "log", "-T", "{desc} ").split() == ["second", "first"]
        target = start(client, "/archive/tip.tar.gz", method="GET")
        ended(site, target)
        assert client.request("GET", f"{target}&_view=result").body[:2] == b"\x1f\x8b"


@pytest.fixture(params=["basic", "digest"])
def dav(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[BackgroundMiddleware, OverHTTP, str]]:
    wsgidav = needs("wsgidav.wsgidav_app")
    (tmp_path / "files").mkdir()
    app = wsgidav.WsgiDAVApp(
        {
            "provider_mapping": {"/": str(tmp_path / "files")},
            "simple_dc": {"user_mapping": {"*": {"ann": {"password": "right"}}}},
            "http_authenticator": {
                "accept_basic": request.param == "basic",
                "accept_digest": request.param == "digest",
                "default_to_digest": request.param == "digest",
            },
            "logging": {"enable": False},
            "verbose": 0,
        }
    )
    with BackgroundMiddleware(app, when=marks.path("/*")) as site, served(site) as client:
        yield site, client, request.param


def opener(client: OverHTTP, kind: str, password: str = "right") -> urllib.request.OpenerDirector:
    passwords = urllib.request.HTTPPasswordMgrWithDefaultRealm()
    passwords.add_password(None, f"http://127.0.0.1:{client.port}/", "ann", password)
    handler = {"basic": urllib.request.HTTPBasicAuthHandler, "digest": urllib.request.HTTPDigestAuthHandler}[kind]
    return urllib.request.build_opener(handler(passwords))


def test_a_file_is_stored_by_who_answers_the_challenge(
    dav: tuple[BackgroundMiddleware, OverHTTP, str], tmp_path: Path
) -> None:
    _, client, kind = dav
    request = urllib.request.Request(f"http://127.0.0.1:{client.port}/a.txt", data=b"stored", method="PUT")
    request.add_header("Accept", "application/octet-stream")
    with opener(client, kind).open(request, timeout=WAIT) as response:
        assert response.status == 201
    assert (tmp_path / "files" / "a.txt").read_bytes() == b"stored"
    request = urllib.request.Request(f"http://127.0.0.1:{client.port}/a.txt")
    request.add_header("Accept", "application/octet-stream")  # a busy machine has more than a moment to refuse it
    with pytest.raises(urllib.request.HTTPError, match="401"):
        opener(client, kind, "wrong").open(request, timeout=WAIT)


def test_what_a_webdav_client_asks_beside_is_the_apps(dav: tuple[BackgroundMiddleware, OverHTTP, str]) -> None:
    site, client, kind = dav
    request = urllib.request.Request(f"http://127.0.0.1:{client.port}/", method="PROPFIND", headers={"Depth": "0"})
    with opener(client, kind).open(request, timeout=WAIT) as response:
        assert response.status == 207
    assert site.registry.jobs() == []
