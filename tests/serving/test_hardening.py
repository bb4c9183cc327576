"""What is odd, hostile or unlucky, each once seen to do harm."""

import decimal
import fractions
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, JobState, MemoryRegistry, ThreadExecutor, background, marks, progress
from bgmiddleware._serving.negotiate import _remembered as remembered_accepts
from bgmiddleware._serving.negotiate import choose
from bgmiddleware._serving.visit import Visit
from bgmiddleware.registries.spool import SpoolRegistry
from tests.kit import apps
from tests.kit.clients import InProcess, ended, environ, start


@pytest.fixture
def raising_handler() -> Iterator[None]:
    """A log handler of the app that raises."""

    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise RuntimeError("the log is full")

    handler = Raising()
    logging.getLogger("bgmiddleware").addHandler(handler)
    yield
    logging.getLogger("bgmiddleware").removeHandler(handler)


@pytest.mark.parametrize("option", ["Idempotency-Key", "single_flight"])
def test_nobody_is_given_what_is_for_another_cookie(option: str, stage: apps.Stage) -> None:
    headers = {"idempotency_key": "1"} if option == "Idempotency-Key" else {}
    with BackgroundMiddleware(stage, when=marks.always, single_flight=option == "single_flight") as site:
        client = InProcess(site)
        mine = start(client, "/slow", cookie="session=alice", **headers)
        assert start(client, "/slow", cookie="session=alice", **headers) == mine
        assert start(client, "/slow", cookie="session=bob", **headers) != mine
        assert start(client, "/slow", authorization="Basic eA==", **headers) != mine
        stage.go(100)


@pytest.fixture
def stage() -> apps.Stage:
    return apps.Stage()


@pytest.mark.usefixtures("raising_handler")
def test_a_log_handler_that_raises_ends_neither_the_job_nor_its_worker() -> None:
    with BackgroundMiddleware(apps.raises_in_body, when=marks.always, executor=ThreadExecutor(max_workers=1)) as site:
        client = InProcess(site)
        for _ in range(3):  # three times: the one worker lives on
            target = start(client, "/")
            job = ended(site, target)
            assert (job.state, job.reason) == (JobState.FAILED, "ValueError: in mid-body")
            assert client.request("GET", f"{target}&_view=result").status == 500


@pytest.mark.parametrize(
    "values",
    [
        (decimal.Decimal(1), decimal.Decimal(3)),
        (fractions.Fraction(1, 3), 1),
        (True, 2),
        (1, 2, Path("/x")),
        (1, 2, "\udcff"),
        (1, 2, "\u202e\x1b[2J"),
        (2, 1),
        (-1, -2),
        (0, 0),
    ],
)
def test_what_a_job_says_of_its_progress_can_always_be_shown(values: tuple[Any, ...]) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        progress(*values)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    with BackgroundMiddleware(app, when=marks.always) as site:
        client = InProcess(site)
        target = start(client, "/")
        assert ended(site, target).state is JobState.FINISHED
        for view in ("log", "status", "events", "page", "result"):
            reply = client.request("GET", f"{target}&_view={view}")
            assert reply.status == 200
            assert b"\x1b" not in reply.body
            assert "\u202e".encode() not in reply.body


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_progress_that_is_no_number_is_refused_where_it_is_said(number: float) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        progress(number)
        return []

    with BackgroundMiddleware(app, when=marks.always) as site:
        target = start(InProcess(site), "/")
        assert ended(site, target).reason.startswith("ValueError: progress takes finite numbers")


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded; charset=iso-8859-1",
        "application/x-www-form-urlencoded; charset=no-such",
        "multipart/form-data",
        "multipart/form-data; boundary=x",
        "multipart/form-data; boundary=",
    ],
)
def test_a_form_that_cannot_be_read_cancels_nothing(content_type: str, stage: apps.Stage) -> None:
    with BackgroundMiddleware(stage, when=marks.always) as site:
        client = InProcess(site)
        target = start(client, "/slow?1")
        body = (
            b"--x\r\nContent-Disposition: form-data; name=_action\r\nContent-Type: text/plain; charset=no\r\n\r\n\xff"
        )
        reply = client.request("POST", f"{target}&_view=status", body, content_type=content_type)
        assert (reply.status, reply.json["cancel_requested_at"]) == (200, None)
        stage.go()


def test_dates_beyond_all_calendars_are_no_condition() -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        modified = ("Last-Modified", "Sat, 29 Oct 1994 19:43:31 GMT")
        start_response("200 OK", [("Content-Type", "text/plain"), modified])
        return [b"dated"]

    with BackgroundMiddleware(app, when=marks.always) as site:
        client = InProcess(site)
        target = start(client, "/")
        ended(site, target)
        for date in ("Sat, 29 Oct 99999 19:43:31 GMT", "x"):
            reply = client.request("GET", f"{target}&_view=result", if_modified_since=date)
            assert (reply.status, reply.body) == (200, b"dated")


def test_stored_output_that_somebody_removed_is_a_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def app(environ: Any, start_response: Any) -> list[bytes]:
        print("x" * 1000)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    with BackgroundMiddleware(app, when=marks.always, registry=MemoryRegistry(spool_threshold=1)) as site:
        client = InProcess(site)
        target = start(client, "/")
        ended(site, target)
        for directory in tmp_path.glob("bgmiddleware-*"):
            for file in directory.iterdir():
                file.unlink()
        reply = client.request("GET", f"{target}&_offset=0")
        assert (reply.status, reply["Retry-After"]) == (503, "5")


def test_the_conditions_of_who_starts_a_job_are_not_those_of_its_readers() -> None:
    seen: list[set[str]] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.append({name for name in environ if name.startswith(("HTTP_IF_", "HTTP_RANGE"))})
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"whole"]

    with BackgroundMiddleware(app, when=marks.always) as site:
        client = InProcess(site)
        target = start(client, "/", "GET", if_none_match='"x"', range="bytes=0-1", if_modified_since="x", if_range="x")
        ended(site, target)
    assert seen == [set()]


def test_a_middleware_within_a_job_leaves_its_prints_to_the_job() -> None:
    @background
    def declared() -> None: ...  # from here on requests are watched

    def view(environ: Any, start_response: Any) -> list[bytes]:
        print("from within")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b""]

    inner = BackgroundMiddleware(view, when=marks.path("/never"))

    def app(environ: Any, start_response: Any) -> Any:
        return inner(environ, start_response)

    with BackgroundMiddleware(app, when=marks.always) as site:
        client = InProcess(site)
        target = start(client, "/")
        ended(site, target)
        assert client.request("GET", target).text == "from within\n"


def test_a_dashboard_at_any_path_is_a_dashboard_and_starts_nothing() -> None:
    with BackgroundMiddleware(apps.empty, dashboard="/jöbs", authorize=lambda environ: False) as site:
        assert InProcess(site).request("GET", "/j%C3%B6bs").status == 403
        assert site.registry.jobs() == []


def test_a_slot_is_given_back_where_the_server_refuses_the_head(stage: apps.Stage) -> None:
    with BackgroundMiddleware(stage, when=marks.always, stream_slots=1) as site:
        client = InProcess(site)
        target = start(client, "/slow?1")

        def refuse(*arguments: Any) -> None:
            raise OSError("the client is gone")

        for _ in range(3):
            with pytest.raises(OSError, match="the client is gone"):
                site(environ("GET", target), refuse)
        stage.go()
        assert client.request("GET", target).text == "line 1\n"


def test_long_headers_are_not_remembered() -> None:
    remembered_accepts.cache_clear()
    choose("text/plain" + ";x=y" * 1000)
    assert remembered_accepts.cache_info().currsize == 0
    choose("text/plain;q=0.4321")
    assert remembered_accepts.cache_info().currsize == 1


def test_a_child_that_a_job_forks_and_forgets_does_not_come_back_as_a_worker() -> None:
    code = """
import os, sys, threading
from bgmiddleware import BackgroundMiddleware, marks
from tests.kit.clients import InProcess, ended, start

def app(environ, start_response):
    child = os.fork()
    if child == 0:
        print("child", flush=True)
        raise SystemExit(3)
    print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b""]

site = BackgroundMiddleware(app, when=marks.always)
target = start(InProcess(site), "/")
ended(site, target)
sys.__stdout__.write(InProcess(site).request("GET", target).text)
site.close()
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=Path(__file__).parent.parent.parent,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stdout, done.stderr) == ("child\nstatus 1\n", "")


def test_no_view_reads_a_job_but_by_the_one_door() -> None:
    # Visit.job() decides who may know of a job; the views are given what it returned.
    serving = Path(sys.modules[Visit.__module__].__file__ or "").parent
    readers = {path.name for path in serving.glob("*.py") if "registry.get(" in path.read_text()}
    # Three look again after they have acted; an operator's batch has asked authorize.
    assert readers == {"visit.py", "cancel.py", "question.py", "sharing.py", "batch.py"}


def test_jobs_of_many_threads_at_once_begin_and_join_without_loss(stage: apps.Stage) -> None:
    together = threading.Barrier(8)
    targets: list[str] = []
    with BackgroundMiddleware(stage, when=marks.always, single_flight=True) as site:

        def ask() -> None:
            together.wait(apps.WAIT)
            targets.append(start(InProcess(site), "/slow"))

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        stage.go(100)
        ended(site, targets[0])
    assert len(set(targets)) == 1
    assert stage.calls == ["/slow"]


def test_who_reads_a_registry_finds_no_token_in_it(stage: apps.Stage, tmp_path: Path) -> None:
    # A form of the replayed document of one job starts another one, behind a proxy that tells where it was sent to.
    with BackgroundMiddleware(stage, when=marks.path("/slow"), registry=SpoolRegistry(tmp_path / "jobs")) as site:
        client = InProcess(site)
        seen = f"{start(client, '/slow?1')}&_view=result"
        token = seen.partition("_t=")[2].partition("&")[0]
        request = environ("POST", seen, b"a form")
        request |= {
            "REQUEST_URI": seen,
            "RAW_URI": seen,
            "HTTP_X_ORIGINAL_URI": seen,
            "HTTP_COOKIE": f"_t={token[::-1]}",
        }
        request |= {"HTTP_REFERER": f"http://localhost{seen}", "HTTP_X_OF_THE_APP": "/slow?_view=own&_t=own"}
        head: list[Any] = []
        for _ in site(request, lambda *arguments: head.extend(arguments)):
            pass
        stage.entered()
        stage.entered()
        other = dict(head[1])["Location"].partition("_t=")[2]
        kept = b"".join(file.read_bytes() for file in (tmp_path / "jobs").rglob("*") if file.is_file())
        assert b"/slow?_view=own&_t=own" in kept  # it is where it is looked for
        assert token.encode() not in kept
        assert other.encode() not in kept
        (replayed,) = [each for each in stage.environs if "HTTP_REFERER" in each]  # whichever began first
        assert replayed["HTTP_REFERER"] == "http://localhost/slow?1"
        for name in ("REQUEST_URI", "RAW_URI", "HTTP_X_ORIGINAL_URI"):
            assert replayed[name] == "/slow?1"
        assert replayed["HTTP_COOKIE"] == f"_t={token[::-1]}"
        stage.go(2)


@pytest.mark.parametrize("query", ["q=\u2603", "q=\ud800", "q=\r\nSet-Cookie: a=b", "q=\0", "\x7f", "q=\t"])
@pytest.mark.parametrize(
    "headers", [{}, {"accept": "application/json"}, {"prefer": "wait=5"}, {"idempotency_key": "k"}]
)
def test_a_query_that_no_header_can_repeat_is_400_and_starts_nothing(query: str, headers: dict[str, str]) -> None:
    with BackgroundMiddleware(apps.raises_in_body, when=marks.always) as site:
        client = InProcess(site)
        assert client.request("POST", f"/?{query}", **headers).status == 400
        assert site.registry.jobs() == []
        for method in ("GET", "HEAD", "POST", "DELETE"):
            for view in ("", "&_view=page", "&_view=result"):
                token = "6b9f2e1c-0000-4000-8000-000000000000"  # of no job
                reply = client.request(method, f"/?{query}&_t={token}{view}", **headers)
                assert reply.status == 400


@pytest.mark.parametrize("query", ["q=\xe9\xff", "q=a b", "q=%E2%98%83", "%", "q='\"<>"])
def test_a_query_of_latin_1_is_repeated_as_it_is(query: str) -> None:
    with BackgroundMiddleware(apps.raises_in_body, when=marks.always) as site:
        assert start(InProcess(site), f"/?{query}").startswith(f"/?{query}&_t=")
