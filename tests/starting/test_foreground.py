"""With ``foreground=True`` or its environment variable nothing becomes a job, so that a debugger can be used; a job
that meets a breakpoint says so."""

import logging
import os
import pdb
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from bgmiddleware import BackgroundMiddleware, ConfigurationError, background, backgrounder, current_job, marks
from tests.conftest import needs
from tests.kit.clients import InProcess, ended, start
from tests.kit.documents import ROOT

VARIABLE = "BGMIDDLEWARE_FOREGROUND"
PLAIN = [("Content-Type", "text/plain")]


@backgrounder
def report(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", PLAIN)
    return [b"in a job" if current_job() else b"in the foreground"]


@background
def work() -> str:
    return "in a job" if current_job() else "in the foreground"


def plain(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", PLAIN)
    return [b"in a job" if current_job() else b"in the foreground"]


def calling(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    said = work()
    start_response("200 OK", PLAIN)
    return [said.encode()]


def lazily(environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    yield from report(environ, start_response)


APPS = {"marked": plain, "backgrounder": report, "background": calling, "generator": lazily}
every_app = pytest.mark.parametrize("name", APPS)


@every_app
def test_nothing_starts_a_job(name: str) -> None:
    with BackgroundMiddleware(APPS[name], when=marks.always, foreground=True) as app:
        reply = InProcess(app).request("GET", "/", prefer="respond-async")
        assert (reply.status, reply.text) == (200, "in the foreground")
        assert list(app.registry.jobs()) == []


@every_app
def test_without_it_each_of_them_starts_one(name: str) -> None:
    with BackgroundMiddleware(APPS[name], when=marks.always if name == "marked" else marks.never) as app:
        assert InProcess(app).request("GET", "/").status == 303


@pytest.mark.parametrize(("value", "is_foreground"), [("1", True), ("on", True), ("0", False), ("", False)])
def test_the_environment_asks_for_it(value: str, is_foreground: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with BackgroundMiddleware(plain, when=marks.always) as app:
        assert InProcess(app).request("GET", "/").status == (200 if is_foreground else 303)


def test_the_environment_says_so_in_the_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    BackgroundMiddleware(plain)
    assert caplog.messages == [f"{VARIABLE} is set: all requests run in the foreground, and none starts a job"]


def test_another_value_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "perhaps")
    with pytest.raises(ConfigurationError, match=f"{VARIABLE} = 'perhaps': expected 1 or 0, in the environment"):
        BackgroundMiddleware(plain)


def test_jobs_that_are_there_can_be_read_and_listed() -> None:
    with BackgroundMiddleware(plain, when=marks.always) as before:
        target = start(InProcess(before), "/")
        ended(before, target)
        with BackgroundMiddleware(
            plain, registry=before.registry, foreground=True, dashboard="/jobs", authorize=lambda environ: True
        ) as app:
            assert InProcess(app).request("GET", f"{target}&_view=result").text == "in a job"
            assert InProcess(app).request("GET", "/jobs").text != "in the foreground"


def set_trace() -> None:
    """Do what the function in ``pdb`` does, where pytest has put its own."""
    pdb.Pdb().set_trace(sys._getframe().f_back)


@pytest.mark.parametrize("stop", [breakpoint, set_trace])
def test_a_breakpoint_in_a_job_says_how_to_debug_and_the_job_goes_on(
    stop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "breakpointhook", sys.__breakpointhook__)
    monkeypatch.setattr(pdb, "set_trace", set_trace)
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)

    def stopping(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        stop()
        return plain(environ, start_response)

    with BackgroundMiddleware(stopping, when=marks.always) as app:
        client = InProcess(app)
        target = start(client, "/")
        assert ended(app, target).state == "finished"
        log = client.request("GET", f"{target}&_view=log").text
    assert log.startswith(f"breakpoint at {__file__}:")
    assert "in stopping: a job has no terminal" in log
    assert f"{VARIABLE}=1" in log


DEBUGGED = """
from bgmiddleware import BackgroundMiddleware, backgrounder


@backgrounder
def app(environ, start_response):
    answer = 6 * 7
    breakpoint()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(answer).encode()]


app = BackgroundMiddleware(app)
"""


@pytest.mark.everything
def test_a_debugger_stops_in_the_view_of_a_server_that_runs_in_the_foreground(tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(DEBUGGED)
    terminal, theirs = pty.openpty()
    command = [sys.executable, "-m", "bgmiddleware", "serve", "shop:app", "--foreground", "--threads", "1", "--port"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    with subprocess.Popen(
        [*command, "0"], cwd=tmp_path, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        try:
            said = _read_until(terminal, b"Ctrl-C stops")
            address = said.rpartition(b"Serving on ")[2].split()[0].decode()
            os.write(terminal, b"answer += 1\ncontinue\n")
            with urlopen(f"{address}reports") as response:
                assert response.read() == b"43"
            assert b"-> start_response(" in _read_until(terminal, b"(Pdb)")
        finally:
            process.terminate()
            process.wait(timeout=120)
    os.close(theirs)
    os.close(terminal)


def _read_until(terminal: int, words: bytes) -> bytes:
    said = b""
    while words not in said:
        said += os.read(terminal, 1024)
    return said


# Decorators that do nothing say so.


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr("bgmiddleware._context._warned", set())
    caplog.set_level(logging.WARNING, "bgmiddleware")
    return caplog


@pytest.mark.parametrize(
    ("app", "name"), [(report, "@backgrounder tests.starting.test_foreground.report"), (calling, "@background ")]
)
def test_a_request_without_a_middleware_is_named_once(app: Any, name: str, warnings: pytest.LogCaptureFixture) -> None:
    def site(environ: dict[str, Any], start_response: Any) -> Any:
        return app(environ, start_response)

    for _ in range(2):
        assert InProcess(site).request("GET", "/").text == "in the foreground"
    (message,) = warnings.messages
    assert message.startswith(name)
    assert "no BackgroundMiddleware is around the app. Wrap it: BackgroundMiddleware(app)" in message


def test_a_call_that_is_no_request_is_nothing_to_warn_of(warnings: pytest.LogCaptureFixture) -> None:
    assert work() == "in the foreground"
    with BackgroundMiddleware(report, foreground=True) as app:
        InProcess(app).request("GET", "/")
    assert warnings.messages == []


@pytest.mark.parametrize("framework", ["flask", "bottle"])
def test_a_decorator_above_the_route_is_named_once(framework: str, warnings: pytest.LogCaptureFixture) -> None:
    library = needs(framework)
    site = library.Flask(__name__) if framework == "flask" else library.Bottle()

    @backgrounder
    @site.route("/report")
    def misplaced() -> str:
        return "in a job" if current_job() else "in the foreground"

    @site.route("/other")
    @backgrounder
    def well_placed() -> str:
        return "in a job" if current_job() else "in the foreground"

    inner = site.wsgi_app if framework == "flask" else site
    with BackgroundMiddleware(inner) as app:
        for _ in range(2):
            assert InProcess(app).request("GET", "/report").text == "in the foreground"
        assert InProcess(app).request("GET", "/other").status == 303
    (message,) = warnings.messages
    assert message.startswith("@backgrounder tests.starting.test_foreground.")
    assert ".misplaced has no effect: the route was registered without it." in message
