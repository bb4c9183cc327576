"""A job's output with its times: as JSON lines, and as a recording of a terminal."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import (
    BackgroundMiddleware,
    Channel,
    Job,
    JobState,
    MemoryRegistry,
    Registry,
    Step,
    Steps,
    StepState,
    marks,
)
from bgmiddleware._jobs import key_of, new_token
from bgmiddleware._serving import log
from bgmiddleware.testing import InlineExecutor
from tests.kit.clients import InProcess, start

RUNNER = "the runner"
Print = Callable[..., None]


class Told:
    """A job that runs, which prints what it is told to, when it is told."""

    def __init__(self, registry: Registry, app: BackgroundMiddleware) -> None:
        token = new_token()
        self.registry = registry
        self.key = registry.add(Job(key_of(token), "GET /reports/2026")).key
        registry.claim(self.key, RUNNER)
        self.client = InProcess(app)
        self.target = f"/reports/2026?_t={token}"
        self.end = 0

    def prints(self, text: str | bytes, at: int) -> None:
        data = text.encode() if isinstance(text, str) else text
        end = self.end + len(data)
        self.end = self.registry.append(self.key, Channel.OUTPUT, self.end, data, runner=RUNNER, times=[(end, at)])

    def ends(self, state: JobState = JobState.FINISHED) -> None:
        self.registry.finish(self.key, RUNNER, state, reason="" if state is JobState.FINISHED else "it raised")

    def read(self, view: str, method: str = "GET") -> Any:
        return self.client.request(method, f"{self.target}&_view={view}")

    def lines(self, view: str = "lines") -> list[Any]:
        return [json.loads(line) for line in self.read(view).text.splitlines() if line]


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry(max_output=1000, clock=lambda: 1_700_000_000.0) as registry:
        yield registry


@pytest.fixture
def job(registry: MemoryRegistry) -> Iterator[Told]:
    with BackgroundMiddleware(lambda environ, start_response: [], registry=registry) as app:
        yield Told(registry, app)


# Lines.


def test_each_line_has_its_place_its_time_and_its_step(job: Told) -> None:
    job.prints("before\n", 0)
    job.prints("▸ Reading\nrow ", 1500)
    job.prints("1\r\nrow 2\x1b[31m red\x1b[0m\n", 2750)
    job.prints("behind", 3000)
    end = job.end - len("behind")
    job.registry.renew(job.key, RUNNER, steps=Steps((Step("Reading", None, StepState.DONE, 1500, 2800, 7, end),)))
    job.ends()
    reply = job.read("lines")
    assert reply["Content-Type"] == "application/x-ndjson"
    begun = 1_700_000_000.0
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert [line.pop("stream") for line in lines[:-1]] == [None] * 5, "nobody has told"
    assert lines == [
        {"offset": 0, "next": 7, "time": 0.0, "at": begun, "step": None, "text": "before"},
        {"offset": 7, "next": 19, "time": 1.5, "at": begun + 1.5, "step": "Reading", "text": "▸ Reading"},
        {"offset": 19, "next": 26, "time": 2.75, "at": begun + 2.75, "step": "Reading", "text": "row 1"},
        {"offset": 26, "next": 45, "time": 2.75, "at": begun + 2.75, "step": "Reading", "text": "row 2 red"},
        {"offset": 45, "next": 51, "time": 3.0, "at": begun + 3.0, "step": None, "text": "behind"},
        {"offset": 51, "time": 0.0, "state": "finished", "reason": ""},
    ]


def test_in_the_end_each_line_has_the_stream_of_its_first_byte(job: Told) -> None:
    job.prints("out\nerror\nou", 0)
    assert [line["stream"] for line in job.lines("lines&_offset=0")] == [None, None], "it runs"
    job.prints("t and error\nerror and out\n", 0)
    job.registry.finish(job.key, RUNNER, JobState.FINISHED, receipt={"stderr": "4-10,18-29"})
    told = [(line["text"], line["stream"]) for line in job.lines()[:-1]]
    assert told == [
        ("out", "stdout"),
        ("error", "stderr"),
        ("out and error", "stdout"),
        ("error and out", "stderr"),
    ]
    assert [line["stream"] for line in job.lines("lines&_offset=4")[:-1]] == ["stderr", "stdout", "stderr"]


def test_the_stream_is_not_made_up_where_nobody_knows_it() -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        for number in range(501):
            print(f"error {number}", file=sys.stderr)
            print(f"out {number}")
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    def streams(**options: Any) -> list[str | None]:
        with BackgroundMiddleware(app, when=marks.always, executor=InlineExecutor(), **options) as site:
            client = InProcess(site)
            reply = client.request("GET", f"{start(client, '/')}&_view=lines")
        return [json.loads(line)["stream"] for line in reply.text.splitlines()[:-1]]

    told = streams()
    assert told[:999] == ["stderr", "stdout"] * 499 + ["stderr"]
    assert told[999:] == [None] * 3, "only the first 500 ranges are kept"
    assert set(streams(redact=["secret"])) == {None}, "what is replaced has another length"


def test_of_steps_within_each_other_a_line_is_in_the_innermost(job: Told) -> None:
    for text in ("a\n", "b\n", "c\n", "d\n", "e\n"):
        job.prints(text, 0)
    done = StepState.DONE
    steps = (Step("outer", None, done, 0, 0, 2, 8), Step("inner", 0, done, 0, 0, 4, 6), Step("runs", None, start=8))
    job.registry.renew(job.key, RUNNER, steps=Steps(steps))
    job.ends()
    assert [line.get("step") for line in job.lines()[:-1]] == [None, "outer", "inner", "outer", "runs"]


def test_lines_are_negotiated_by_name_only(job: Told) -> None:
    job.prints("x\n", 0)
    job.ends()
    for accept, kind in {
        "application/x-ndjson": "application/x-ndjson",
        "application/x-ndjson, text/plain;q=0.5": "application/x-ndjson",
        "application/*": "application/json",
        "*/*": "text/plain; charset=utf-8",
    }.items():
        assert job.client.request("GET", job.target, accept=accept)["Content-Type"] == kind


def test_lines_are_followed_until_the_job_has_ended(job: Told) -> None:
    job.prints("one\ntw", 0)
    with job.client.stream("GET", f"{job.target}&_view=lines") as (status, headers, chunks):
        assert (status, dict(headers)["X-Accel-Buffering"]) == (200, "no")
        assert json.loads(next(chunks))["text"] == "one"
        job.prints("o\n", 700)
        assert json.loads(next(chunks)) == {
            "offset": 4, "next": 8, "time": 0.7, "at": 1_700_000_000.7, "step": None, "stream": None, "text": "two"
        }  # fmt: skip
        job.prints("three", 900)
        job.ends(JobState.FAILED)
        rest = [json.loads(line) for line in b"".join(chunks).splitlines()]
    assert [line.get("text") for line in rest] == ["three", None]
    assert (rest[-1]["state"], rest[-1]["reason"]) == ("failed", "it raised")


def test_a_follower_of_a_quiet_job_gets_empty_lines(job: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    from bgmiddleware._serving import lines

    monkeypatch.setattr(lines, "SIGN_EVERY", 0.0)
    monkeypatch.setattr(lines, "LOOK_EVERY", 0.01)
    with job.client.stream("GET", f"{job.target}&_view=lines") as (_, _, chunks):
        assert next(chunks) == b"\n"
    assert log.SIGN_EVERY > 1


def test_from_an_offset_there_are_the_whole_lines_and_where_to_read_on(job: Told) -> None:
    job.prints("one\ntwo\nthr", 0)
    reply = job.read("lines&_offset=4")
    assert [json.loads(line)["text"] for line in reply.text.splitlines()] == ["two"]
    assert (reply["Job-Next-Offset"], reply["Job-State"]) == ("8", "running")
    assert "Job-Poll" in reply
    reply = job.read("lines&_offset=8")
    assert (reply.body, reply["Job-Next-Offset"]) == (b"", "8")
    job.prints("ee", 0)
    job.ends()
    reply = job.read("lines&_offset=8")
    assert [json.loads(line).get("text") for line in reply.text.splitlines()] == ["three", None]
    assert reply["Job-Next-Offset"] == "13"


def test_lines_say_what_was_dropped(job: Told) -> None:
    for number in range(200):
        job.prints(f"line {number:4}\n", 100 * number)
    job.ends()
    lines = job.lines()
    (gap,) = [line for line in lines if "dropped" in line]
    dropped = job.registry.get(job.key).output_dropped
    assert dropped == (gap["offset"], gap["next"])
    assert gap["dropped"] == dropped[1] - dropped[0]
    assert lines[-2]["text"] == "line  199"
    assert lines[-2]["time"] == 19.9
    for one, other in itertools.pairwise(lines):
        assert one["next"] == other["offset"]


def test_a_line_without_an_end_is_given_in_parts(registry: MemoryRegistry) -> None:
    with MemoryRegistry() as registry, BackgroundMiddleware(lambda *_: [], registry=registry) as app:
        job = Told(registry, app)
        job.prints("x" * 600_000, 0)
        job.ends()
        lines = job.lines()
    assert "".join(line["text"] for line in lines[:-1]) == "x" * 600_000
    assert len(lines) > 2


def test_a_head_of_each_has_no_body(job: Told) -> None:
    job.prints("x\n", 0)
    for view in ("lines", "lines&_offset=0", "cast", "cast2"):
        reply = job.read(view, "HEAD")
        assert (reply.status, reply.body) == (200, b"")


def test_where_no_slot_is_free_a_follower_is_told_to_poll(registry: MemoryRegistry) -> None:
    with BackgroundMiddleware(lambda *_: [], registry=registry, stream_slots=0) as app:
        job = Told(registry, app)
        reply = job.read("lines")
        assert reply.status == 503
        assert "_offset" in reply.text


# Recordings.


def test_a_recording_has_what_was_printed_when_and_the_steps_and_the_end(job: Told) -> None:
    job.prints("before\n", 100)
    job.prints("▸ Reading\n", 1500)
    job.prints("é".encode()[:1], 1700)
    job.prints("é".encode()[1:] + b"\r\n", 1900)
    job.registry.renew(job.key, RUNNER, steps=Steps((Step("Reading", None, StepState.DONE, 1500, 1900, 7, 20),)))
    reply = job.read("cast")
    assert reply["Content-Disposition"] == 'attachment; filename="reports-2026.cast"'
    header, *events = [json.loads(line) for line in reply.text.splitlines()]
    assert header == {
        "version": 3,
        "term": {"cols": 120, "rows": 32},
        "title": "GET /reports/2026",
        "timestamp": 1_700_000_000,
    }
    printed = [[0.1, "o", "before\r\n"], [1.4, "m", "Reading"], [0.0, "o", "▸ Reading\r\n"], [0.4, "o", "é\r\n"]]
    assert events == printed  # it runs
    job.ends(JobState.FAILED)
    assert job.lines("cast")[1:] == [*printed, [0.0, "x", "1"]]
    old, *events = job.lines("cast2")
    assert (old["version"], old["width"], old["height"]) == (2, 120, 32)
    assert [event[0] for event in events] == [0.1, 1.5, 1.5, 1.9, 1.9]


@pytest.mark.parametrize(("state", "status"), [("finished", "0"), ("failed", "1"), ("cancelled", "3"), ("lost", "4")])
def test_a_recording_ends_by_a_status(job: Told, state: str, status: str) -> None:
    job.ends(JobState(state))
    assert job.lines("cast")[-1][1:] == ["x", status]


def test_a_recording_says_what_was_dropped(job: Told) -> None:
    for number in range(200):
        job.prints(f"line {number:4}\n", 100 * number)
    job.ends()
    text = "".join(data for _, kind, data in job.lines("cast")[1:] if kind == "o")
    assert "bytes of output were dropped here" in text
    assert text.endswith("line  199\r\n")


@pytest.mark.everything
def test_asciinema_plays_a_recording(job: Told, tmp_path: Path) -> None:
    program = shutil.which("asciinema", path=os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"])))
    if program is None:
        pytest.skip("asciinema is not installed")
    job.prints("one\ntwo ☃\n", 100)
    job.ends()
    path = tmp_path / "job.cast"
    path.write_bytes(job.read("cast2").body)
    played = subprocess.run([program, "cat", str(path)], capture_output=True, timeout=60.0, check=True)
    assert played.stdout == "one\r\ntwo ☃\r\n".encode()


def test_many_read_lines_at_once(job: Told) -> None:
    job.prints("x\n" * 400, 0)
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(len(job.lines("lines&_offset=0")))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [400] * 4
