"""Steps: what a job says of its parts, in its text and in its state."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import (
    BackgroundMiddleware,
    ConfigurationError,
    MemoryRegistry,
    Registry,
    StepState,
    current_job,
    marks,
    progress,
    step,
    track,
)
from bgmiddleware.registries.base import END
from bgmiddleware.registries.spool import SpoolRegistry
from bgmiddleware.testing.registries import LONG
from tests.kit.clients import InProcess, ended, start


class Seen:
    """A job that has run: what it printed, and what its state says."""

    def __init__(self, app: BackgroundMiddleware, target: str) -> None:
        client = InProcess(app)
        self.target = target
        self.job = ended(app, target)
        self.output = client.request("GET", target, accept="text/plain").body
        self.state = client.request("GET", target, accept="application/json").json
        self.events = client.request("GET", target, accept="text/event-stream").text
        self.steps: list[dict[str, Any]] = self.state["steps"]

    def text_of(self, number: int) -> str:
        return self.output[self.steps[number]["start"] : self.steps[number]["end"]].decode()


class Site:
    """Runs functions as jobs."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.app = BackgroundMiddleware(self._view, when=marks.always, registry=registry)
        self._works: list[Callable[[], object]] = []

    def _view(self, environ: Any, start_response: Any) -> list[bytes]:
        self._works.pop()()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    def __call__(self, work: Callable[[], object]) -> Seen:
        self._works.append(work)
        return Seen(self.app, start(InProcess(self.app), "/"))

    def seen_progress(self) -> tuple[float, str] | None:
        """Return what is known of the calling job's progress."""
        reported = self.registry.get(current_job().key).current_progress
        return None if reported is None else (reported.done, reported.message)


@pytest.fixture(params=["memory", "spool"])
def ran(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    with MemoryRegistry() if request.param == "memory" else SpoolRegistry(tmp_path / "jobs") as registry:
        site = Site(registry)
        with site.app:
            yield site


def test_steps_are_lines_of_the_text_and_places_in_it(ran):
    def work() -> None:
        print("before")
        with step("Reading  \n rows"):
            print("row")
            with step("Ünder"):
                print("below")
            print("no end", end="")
        print()
        with step("Writing"):
            pass

    seen = ran(work)
    text = "before\n▸ Reading rows\nrow\n  ▸ Ünder\nbelow\nno end\n▸ Writing\n"
    assert seen.output.decode() == text
    assert [(one["title"], one["parent"], one["state"]) for one in seen.steps] == [
        ("Reading rows", None, "done"),
        ("Ünder", 0, "done"),
        ("Writing", None, "done"),
    ]
    assert seen.text_of(0) == "▸ Reading rows\nrow\n  ▸ Ünder\nbelow\nno end"
    assert seen.text_of(1) == "  ▸ Ünder\nbelow\n"
    assert seen.text_of(2) == "▸ Writing\n"
    times = [time for one in seen.steps for time in (one["begun"], one["ended"])]
    assert times[0] <= times[2] <= times[3] <= times[1] <= times[4] <= times[5] <= seen.state["elapsed"] + 1.0
    assert seen.state["steps_unlisted"] == 0
    assert '"title": "Writing"' in seen.events


def test_a_title_begins_a_line_of_its_own(ran):
    def work() -> None:
        print("no end", end="")
        with step("New"):
            print("x")

    seen = ran(work)
    assert seen.output.decode() == "no end\n▸ New\nx\n"
    assert seen.text_of(0) == "▸ New\nx\n"


def test_a_step_that_is_left_by_an_exception_has_failed(ran):
    def work() -> None:
        with step("whole"), step("part"):
            raise ValueError("no")

    seen = ran(work)
    assert [one["state"] for one in seen.steps] == ["failed", "failed"]
    assert all(one["ended"] is not None for one in seen.steps)


def test_a_step_in_which_the_job_is_cancelled_is_cancelled(ran):
    def work() -> None:
        with step("whole"):
            ran.registry.request_cancel(current_job().key)
            while True:
                with step("part"):
                    pass

    seen = ran(work)
    assert seen.state["state"] == "cancelled"
    assert seen.steps[0]["state"] == "cancelled"


def test_threads_of_a_job_are_within_the_step_in_which_it_is(ran):
    def work() -> None:
        def help_it() -> None:
            with step("helper"):
                progress(1, 4)

        with step("whole"):
            thread = threading.Thread(target=help_it)
            thread.start()
            thread.join(LONG)
            with ThreadPoolExecutor(1) as pool:
                pool.submit(help_it).result(LONG)

    seen = ran(work)
    assert [(one["title"], one["parent"]) for one in seen.steps] == [("whole", None), ("helper", 0), ("helper", 0)]
    assert [one["progress"] and one["progress"]["percent"] for one in seen.steps] == [None, 25.0, 25.0]


def test_progress_belongs_to_the_innermost_step(ran):
    def await_progress(*expected: Any) -> None:
        for _ in range(int(LONG / 0.01)):
            if ran.seen_progress() == expected:  # a shared registry is told soon
                return
            ran.registry.wait(current_job().key, END, 0.01)
        raise AssertionError(expected, ran.seen_progress())

    def work() -> None:
        progress(1, 9, "job")
        with step("whole"):
            await_progress(1, "job")
            progress(2, 9, "whole")
            with step("part"):
                await_progress(2, "whole")
                for _ in track([1], "part"):
                    pass
                await_progress(1, "part")
            await_progress(2, "whole")
        await_progress(1, "job")

    seen = ran(work)
    assert seen.state["state"] == "finished"
    assert [one["progress"]["message"] for one in seen.steps] == ["whole", "part"]
    assert seen.state["progress"]["message"] == "job"


def test_each_call_of_a_decorated_function_is_a_step(ran):
    @step
    def read_rows(count: int) -> int:
        "Read."
        return count + 1

    @step("Write them")
    def write(count: int) -> int:
        return count + 2

    results = []

    def work() -> None:
        results.extend((read_rows(1), read_rows(2), write(3)))

    seen = ran(work)
    assert results == [2, 3, 5]
    assert [one["title"] for one in seen.steps] == ["Read rows", "Read rows", "Write them"]
    assert (read_rows.__name__, read_rows.__doc__) == ("read_rows", "Read.")


def test_what_returns_before_it_has_run_cannot_be_decorated():
    async def coroutine() -> None: ...
    def generator() -> Iterator[None]:
        yield

    for function in (coroutine, generator):
        with pytest.raises(ConfigurationError, match="use with step"):
            step(function)


def test_outside_of_a_job_a_step_does_nothing(capsys):
    @step
    def inner() -> int:
        return 1

    with step("Reading"):
        assert inner() == 1
    with pytest.raises(ZeroDivisionError), step("Failing"):
        _ = 1 / 0
    assert capsys.readouterr() == ("", "")


def test_five_hundred_steps_are_listed_and_the_others_counted(ran):
    def work() -> None:
        for number in range(503):
            with step(f"step {number}"):
                pass

    seen = ran(work)
    assert len(seen.steps) == 500
    assert seen.state["steps_unlisted"] == 3
    assert seen.output.decode().splitlines()[-1] == "▸ step 502"


def test_a_step_that_still_runs_when_the_job_has_ended_is_cancelled(ran):
    go, begun = threading.Event(), threading.Event()

    def linger() -> None:
        with step("lingers"):
            begun.set()
            go.wait(LONG)

    def work() -> None:
        threads.append(threading.Thread(target=linger))
        threads[0].start()
        assert begun.wait(LONG)

    threads: list[threading.Thread] = []
    seen = ran(work)
    go.set()
    threads[0].join(LONG)
    (left,) = seen.steps
    assert left["state"] == "cancelled"
    assert left["ended"] == pytest.approx(seen.state["elapsed"], abs=0.001)
    assert seen.job.steps.listed[0].state is StepState.RUNNING


def test_a_long_title_is_cut(ran):
    def work() -> None:
        with step("x" * 5000):
            pass

    assert len(ran(work).steps[0]["title"]) == 200
