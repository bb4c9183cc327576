"""Failures are seen: one error in the server's log for each job that failed, whoever made a failure of it; and with
``tee`` the server's output has what jobs print."""

import io
import logging
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, JobState, MemoryRegistry, ThreadExecutor, marks
from bgmiddleware._running.failures import one_line, raised_in
from bgmiddleware.registries.spool import SpoolRegistry
from tests.conftest import needs
from tests.kit.apps import WAIT
from tests.kit.clients import InProcess, ended, start
from tests.kit.readers import Play

PLAIN = [("Content-Type", "text/plain")]


def raising(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    raise ValueError("of the app")


def answering_500(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("500 Oh No", list(PLAIN))
    return [b"sorry"]


def flask_app() -> Any:
    flask = needs("flask")
    app = flask.Flask("failing")

    @app.route("/fail", methods=["POST"])
    def fail() -> str:
        raise LookupError("of a view")

    return app


def bottle_app() -> Any:
    bottle = needs("bottle")
    app = bottle.Bottle()

    @app.post("/fail")  # type: ignore[untyped-decorator, unused-ignore]
    def fail() -> str:
        raise LookupError("of a view")

    return app


def errors(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.levelno >= logging.ERROR and record.name == "bgmiddleware"]


@pytest.mark.parametrize(
    ("make", "last"),
    [
        (lambda: raising, "ValueError: of the app"),
        (lambda: answering_500, "the app answered 500 Oh No"),
        (flask_app, "the app answered 500 INTERNAL SERVER ERROR: LookupError: of a view"),
        (bottle_app, "the app answered 500 Internal Server Error: LookupError: of a view"),
    ],
    ids=["raises", "500", "flask", "bottle"],
)
def test_each_job_that_failed_is_one_error_in_the_log(make: Any, last: str, caplog: pytest.LogCaptureFixture) -> None:
    with BackgroundMiddleware(make(), when=marks.always) as site:
        job = ended(site, start(InProcess(site), "/fail"))
        assert job.state is JobState.FAILED
        (record,) = errors(caplog)
        assert record.getMessage() == f"job {job.key[:8]} failed: POST /fail: {last}"


def test_a_job_that_did_not_fail_is_none(caplog: pytest.LogCaptureFixture) -> None:
    cancelled = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if "stopped" in environ["PATH_INFO"]:
            assert cancelled.wait(WAIT)
            print("here it ends")
        start_response("200 OK", list(PLAIN))
        return [b"none"]

    with BackgroundMiddleware(app, when=marks.always) as site:
        client = InProcess(site)
        assert ended(site, start(client, "/")).state is JobState.FINISHED
        target = start(client, "/stopped")
        while site.registry.jobs()[0].state is not JobState.RUNNING:
            pass
        client.request("DELETE", target)
        cancelled.set()
        assert ended(site, target).state is JobState.CANCELLED
    assert errors(caplog) == []


def test_where_a_registry_lost_a_job_the_log_says_so_and_does_not_blame_the_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    play, registry = Play(), SpoolRegistry(tmp_path / "jobs")
    with BackgroundMiddleware(play, when=marks.always, registry=registry) as site:
        start(InProcess(site), "/report")
        play.begins()
        shutil.rmtree(tmp_path / "jobs")
        (tmp_path / "jobs").mkdir(0o700)
        play.answers(b"x" * 300_000)
        site.executor.shutdown(WAIT)
    (record,) = errors(caplog)
    assert re.fullmatch(r"job \w{8} ran, but its registry has lost its record: POST /report", record.getMessage())


def test_where_a_job_was_given_up_while_it_ran_the_log_says_so_and_does_not_blame_the_job(
    caplog: pytest.LogCaptureFixture,
) -> None:
    play = Play()
    with BackgroundMiddleware(play, when=marks.always, registry=MemoryRegistry()) as site:
        start(InProcess(site), "/report")
        play.begins()
        (job,) = site.registry.jobs()
        site.registry.finish(job.key, job.runner, JobState.LOST, reason="its runner vanished")
        play.answers(b"x" * 300_000)
        site.executor.shutdown(WAIT)
        assert site.registry.get(job.key).state is JobState.LOST
    (record,) = errors(caplog)
    assert record.getMessage() == f"job {job.key[:8]} was given up as lost while it ran: POST /report"


def test_no_client_writes_lines_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with BackgroundMiddleware(raising, when=marks.always) as site:
        ended(site, start(InProcess(site), "/a%0Ajob%20x%20failed%1b[31m"))
    (record,) = errors(caplog)
    assert "\n" not in record.getMessage()
    assert "\x1b" not in record.getMessage()
    assert "/a job x failed\\x1b[31m" in record.getMessage()


@pytest.mark.parametrize(
    ("output", "last"),
    [
        ("", ""),
        ("ValueError: no traceback\n", ""),
        ("Traceback (most recent call last):\n  File 'x'\n    y\nValueError: x\nmore\n", "ValueError: x"),
        ("Traceback (most recent call last):\n  File 'x'\nKeyError\n", "KeyError"),
        (
            "a\nTraceback (most recent call last):\n  F\nA: 1\n\nDuring:\n\n"
            "Traceback (most recent call last):\n  F\nB: 2\n",
            "B: 2",
        ),
        ("Traceback (most recent call last):\r\n  File 'x'\r\na.b.Error: x\r\n", "a.b.Error: x"),
        ("\x1b[31mTraceback (most recent call last):\x1b[0m\n  File\n\x1b[1mValueError: x\x1b[0m\n", "ValueError: x"),
        (
            "  + Exception Group Traceback (most recent call last):\n  |   File 'x'\n  | ExceptionGroup: two (2)\n"
            "  +-+---------------- 1 ----------------\n    | ValueError: 1\n    +------------\n",
            "ExceptionGroup: two (2)",
        ),
        ("Traceback (most recent call last):\n  File 'x'\n", ""),
        ("Traceback (most recent call last):\n  File 'x'\nSyntaxError: é\nnext", "SyntaxError: é"),
    ],
)
def test_the_last_line_of_a_traceback_is_found(output: str, last: str) -> None:
    assert raised_in(output) == last


def test_what_is_not_printable_is_written_out() -> None:
    assert one_line("é\t\u202e\0 x") == "é\\t\\u202e\\x00 x"


# Details.


@pytest.mark.parametrize("details", [True, False])
def test_what_a_job_raised_is_told_to_who_may_see_it_or_to_the_log_only(
    details: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with BackgroundMiddleware(raising, when=marks.always, details=details) as site:
        client = InProcess(site)
        target = start(client, "/")
        job = ended(site, target)
        for view in ("page", "log", "status", "result", "events"):
            text = client.request("GET", f"{target}&_view={view}").text
            assert ("of the app" in text) is (details and view != "x"), view
            assert ("Traceback (most recent" in text) is (details and view in ("page", "log", "events"))
        receipt = client.request("GET", f"{target}&_view=status").json["receipt"]
        assert (receipt["runner"] is not None) is details
        assert job.reason == (
            "ValueError: of the app" if details else f"it raised an exception, see {job.key[:8]} in the server's log"
        )
    (record,) = errors(caplog)
    assert record.getMessage().endswith("ValueError: of the app")
    assert record.exc_info is not None


@pytest.mark.parametrize("site_says", [True, False])
@pytest.mark.parametrize("fetch_site", ["cross-site", "same-site", "same-origin", "none", ""])
def test_a_site_may_refuse_what_another_site_caused(site_says: bool, fetch_site: str) -> None:
    headers = {"sec_fetch_site": fetch_site} if fetch_site else {}
    with BackgroundMiddleware(answering_500, when=marks.always, refuse_cross_site=site_says) as site:
        for method in ("GET", "POST"):
            reply = InProcess(site).request(method, "/", **headers)
            assert reply.status == (403 if site_says and fetch_site == "cross-site" else 303)
        assert bool(site.registry.jobs()) is (reply.status == 303)


# In other processes, and to the server's own streams.

SITE = """
import sys, time
from bgmiddleware import BackgroundMiddleware, ThreadExecutor, marks
from bgmiddleware.executors.process import ProcessExecutor
from bgmiddleware.registries import open_registry

def failing(environ, start_response):
    print("printed é in the job")
    print("said aloud", file=sys.stderr)
    if "500" in environ["PATH_INFO"]:
        environ["wsgi.errors"].write("Traceback (most recent call last):\\n  File\\nKeyError: 1\\n")
        start_response("500 Oh No", [("Content-Type", "text/plain")])
        return [b"sorry"]
    raise ValueError("of the app")

def make():
    executor = ThreadExecutor() if KIND == "threads" else ProcessExecutor("failing_site:app", max_workers=1)
    registry = open_registry(REGISTRY)
    return BackgroundMiddleware(failing, when=marks.always, registry=registry, executor=executor, tee=TEE)

app = make()
"""

RUN = """
import sys
sys.path[:0] = ["", ROOT]
from failing_site import app
from tests.kit.clients import InProcess, start, ended
client = InProcess(app)
for path in ("/raises", "/500"):
    print("before", flush=True)
    job = ended(app, start(client, path))
    assert job.state == "failed", job
app.close()
"""


@pytest.mark.parametrize("tee", [False, True])
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_failures_and_what_is_teed_reach_the_streams_of_the_server(tmp_path: Path, kind: str, tee: bool) -> None:
    registry = "memory:" if kind == "threads" else f"spool:{tmp_path}/jobs"
    site = SITE.replace("KIND", repr(kind)).replace("REGISTRY", repr(registry))
    (tmp_path / "failing_site.py").write_text(site.replace("tee=TEE", f"tee={tee}"), "utf-8")
    root = str(Path(__file__).parent.parent.parent)
    code = RUN.replace("ROOT", repr(root))
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stderr
    for path, why in (("raises", "ValueError: of the app"), ("500", "the app answered 500 Oh No: KeyError: 1")):
        (line,) = [line for line in ran.stderr.splitlines() if f"failed: POST /{path}:" in line]
        assert line.endswith(why)
    assert ran.stdout.count("printed é in the job\n") == (2 if tee else 0)
    assert ran.stdout.count("said aloud\n") == (2 if tee else 0)
    assert ran.stdout.count("before\n") == 2


def test_a_console_that_nobody_reads_is_no_matter_of_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError("nobody reads")

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        for number in range(3000):
            print(number)
        start_response("200 OK", list(PLAIN))
        return [b"done"]

    monkeypatch.setattr(sys, "stdout", Closed())
    with BackgroundMiddleware(app, when=marks.always, tee=True) as site:
        client = InProcess(site)
        target = start(client, "/")
        assert ended(site, target).state is JobState.FINISHED
        assert client.request("GET", f"{target}&_view=log").text == "".join(f"{number}\n" for number in range(3000))


def test_what_is_teed_comes_while_the_job_runs(capsys: pytest.CaptureFixture[str]) -> None:
    play = Play()
    with BackgroundMiddleware(play, when=marks.always, tee=True, executor=ThreadExecutor(drain=0.0)) as site:
        target = start(InProcess(site), "/")
        play.prints("one line\n")
        assert "one line\n" in capsys.readouterr().out
        play.prints_bytes("é".encode()[:1])
        play.prints_bytes("é".encode()[1:] + b"\n")
        assert "é\n" in capsys.readouterr().out
        play.answers()
        ended(site, target)
        assert capsys.readouterr().out == "", "nothing comes twice"
