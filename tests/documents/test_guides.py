"""Guides of docs/how-to that are one task each: what they show is done here, with the programs that it is for."""

import contextlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import missing, needs
from tests.kit.clients import InProcess, OverHTTP, ended, served
from tests.kit.documents import PAGES, ROOT, SHOP, blocks, get, run
from tests.kit.looking import eventually

needs("docutils")


def shown(page: str, language: str = "python", having: str = "") -> str:
    """Return the block of *page* in *language* that has *having* in it."""
    (block,) = [block for block in blocks(PAGES[page], language) if having in block.text]
    return block.text


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], dict[str, Any]]]:
    """Run an example in this process, where it may import the ``shop``; what it made is closed at the end."""
    (tmp_path / "shop.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    with contextlib.ExitStack() as to_close:

        def load(text: str) -> dict[str, Any]:
            names: dict[str, Any] = {"__name__": "example"}
            exec(text, names)
            app = names["app"]
            middleware = app if hasattr(app, "close") else app.wsgi_app
            if hasattr(middleware, "close"):
                to_close.enter_context(middleware)
            return names

        yield load
    sys.modules.pop("shop", None)


def test_a_plain_app_is_wrapped_as_shown(tmp_path: Path) -> None:
    (answer,) = run(tmp_path, shown("plain.rst"), ["/reports/2026"])
    assert (answer["log"], answer["result"]) == ("adding up 2026\n", "2026 was a good year\n")


def test_a_form_becomes_a_job_whose_result_is_a_redirect(loaded: Callable[[str], dict[str, Any]]) -> None:
    needs("flask")
    app = loaded(shown("forms.rst"))["app"]
    with served(app) as client:
        assert "<form" in client.request("GET", "/orders").text
        sent = client.request("POST", "/orders", b"year=2026", Content_Type="application/x-www-form-urlencoded")
        job = sent["Location"]
        ended(app.wsgi_app, job)
        assert client.request("GET", f"/orders{job}&_view=log").text == "recalculating 2026\n"
        result = client.request("GET", f"/orders{job}&_view=result")
        assert (result.status, result["Location"]) == (303, "/orders/done")


def test_an_upload_is_read_by_its_job(loaded: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    needs("flask")
    app = loaded(shown("uploads.rst"))["app"]
    make, follow, *lines = shown("uploads.rst", "console").splitlines()
    with served(app) as client:
        curl = follow.removeprefix("$ ").replace(":8080", f":{client.port}").replace("curl", "curl -s")
        if shutil.which("curl") is None:
            missing("curl")
        subprocess.run(make.removeprefix("$ "), shell=True, cwd=tmp_path, check=True)
        done = subprocess.run(curl, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == lines


def test_secrets_are_replaced_as_shown(
    loaded: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_PASSWORD", "correct horse")
    monkeypatch.setenv("PAYMENT_TOKEN", "battery-staple")
    app = loaded(shown("secrets.rst"))["app"]
    _, headers, _ = get(app, "/reports/correct horse/battery-staple")
    ended(app, headers["Location"])
    assert get(app, f"/{headers['Location']}&_view=log")[2] == "adding up /reports/[redacted]/[redacted]\n"


def test_metrics_are_for_the_scraper_only(
    loaded: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("prometheus_client")
    monkeypatch.setenv("METRICS_TOKEN", "for a test")
    app = loaded(shown("metrics.rst"))["app"]
    with served(app) as client:
        assert client.request("GET", "/_metrics").status == 403
        answer = client.request("GET", "/_metrics", Authorization="Bearer for a test")
    assert "bgmiddleware_registry_up 1.0" in answer.text


def test_the_dashboard_is_for_the_operator_only(
    loaded: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPERATOR", "ada")
    app = loaded(shown("dashboard.rst"))["app"]
    _, headers, _ = get(app, "/reports/2026")
    ended(app, headers["Location"])
    assert InProcess(app).request("GET", "/_jobs").status == 403
    of_ada = InProcess(lambda environ, start_response: app({**environ, "REMOTE_USER": "ada"}, start_response))
    listed = of_ada.request("GET", "/_jobs", Accept="application/json")
    assert [job["title"] for job in listed.json["jobs"]] == ["GET /reports/2026"]


def test_the_protocol_on_one_page_is_that_of_the_server(loaded: Callable[[str], dict[str, Any]]) -> None:
    app = loaded(shown("plain.rst"))["app"]
    commands, said = [], []
    for line in shown("protocol-card.rst", "console").splitlines():
        (commands if line.startswith("$ ") else said).append(line.removeprefix("$ "))
    if shutil.which("curl") is None:
        missing("curl")
    with served(app) as client:
        script = "\n".join(commands).replace(":8080", f":{client.port}")
        done = subprocess.run(["sh", "-e", "-c", script], capture_output=True, text=True)
    assert done.stdout.splitlines() == said


def test_a_webhook_is_made_sent_and_checked_as_shown(
    loaded: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs("flask")
    needs("standardwebhooks")
    command = shown("webhooks.rst", "console").removeprefix("$ python -c '").rstrip("'\n")
    exec(command, {})
    monkeypatch.setenv("WEBHOOK_SECRET", capsys.readouterr().out.strip())
    receiver = loaded(shown("webhooks.rst", having="def job_ended"))["app"]
    received: list[tuple[int, str]] = []
    arrived = threading.Event()

    def noting(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
        environ["wsgi.input"] = io.BytesIO(body)

        def start(status: str, *more: Any) -> Any:
            received.append((int(status[:3]), json.loads(body)["type"]))
            return start_response(status, *more)

        try:
            return receiver(environ, start)
        finally:
            arrived.set()

    with served(noting) as client:
        here = f'"http://127.0.0.1:{client.port}/jobs"'
        text = shown("webhooks.rst", having="hooks.webhook")
        text = text.replace('"https://example.com/jobs"', here).replace(
            '"failed"', 'allow_private=True, events={"finished"'
        )
        text = text.replace("events={allow_private=True, ", "allow_private=True, ").replace(', "lost"}', "}")
        app = loaded(text)["app"]
        _, headers, _ = get(app, "/reports/2026")
        ended(app, headers["Location"])
        assert arrived.wait(120)
    assert received == [(204, "job.finished")]


# What programs say to the files shown for them.


def _program(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/bin:/bin")
    if found is None:
        missing(name)
    return found


@pytest.mark.everything
def test_systemd_accepts_the_unit_file(tmp_path: Path) -> None:
    unit = tmp_path / "shop.service"
    text = shown("systemd.rst", "systemd")
    unit.write_text(text.replace("/srv/shop/.venv/bin/python", sys.executable).replace("/srv/shop", str(tmp_path)))
    done = subprocess.run([_program("systemd-analyze"), "verify", str(unit)], capture_output=True, text=True)
    of_ours = [line for line in done.stderr.splitlines() if "shop" in line]
    assert (done.returncode, of_ours) == (0, [])


@pytest.mark.everything
def test_the_command_of_the_unit_file_serves_jobs(tmp_path: Path) -> None:
    unit = shown("systemd.rst", "systemd").replace("\\\n", " ")
    (command,) = re.findall(r"^ExecStart=\S+ (.+)$", unit, re.M)
    (tmp_path / "shop.py").write_text(SHOP)
    arguments = command.replace("/var/lib/shop", str(tmp_path / "jobs")).split()
    server = subprocess.Popen(
        [sys.executable, "-u", *arguments, "--port", "0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert server.stdout is not None
    try:
        (port,) = re.findall(r"^Serving on http://127.0.0.1:(\d+)", server.stdout.readline())
        assert OverHTTP(int(port)).request("GET", "/reports/2026").status == 303
    finally:
        server.terminate()
        server.communicate(timeout=120)
    assert (tmp_path / "jobs").is_dir()


@pytest.mark.everything
def test_nginx_accepts_the_site_and_the_location(tmp_path: Path) -> None:
    site, location = shown("nginx.rst", "nginx", "server {"), shown("nginx.rst", "nginx", "proxy_buffering")
    site = site.replace("listen 80;", "listen 127.0.0.1:1;\n" + location)
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        f"pid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{\naccess_log off;\n{site}}}\n"
    )
    command = [_program("nginx"), "-t", "-q", "-p", str(tmp_path), "-c", str(configuration)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.everything
def test_gunicorn_accepts_the_command(tmp_path: Path) -> None:
    needs("gunicorn")
    (tmp_path / "shop.py").write_text(SHOP)
    site = shown("gunicorn.rst", "python").replace("/var/lib/shop/jobs", f"{tmp_path}/jobs")
    (tmp_path / "background.py").write_text(site)
    _, *options = shown("gunicorn.rst", "text").split()
    command = [sys.executable, "-m", "gunicorn", "--check-config", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_failed_is_tried_again_as_shown(
    loaded: Callable[[str], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bgmiddleware._jobs._PAUSES", (0.0,))
    site = loaded(shown("retries.rst"))["app"]
    client = InProcess(site)
    first = "/reports/1" + client.request("GET", "/reports/1")["Location"]
    ended(site, first)
    eventually(lambda: client.request("GET", f"{first}&_view=result").status == 303)
    second = "/reports/1" + client.request("GET", f"{first}&_view=result")["Location"]
    eventually(lambda: client.request("GET", second).text == "a good year\n")
    posted = {"REQUEST_METHOD": "POST", "PATH_INFO": "/import/1"}
    assert [most for mark, most in site._starter.rules.retries if mark(posted)] == [2]
