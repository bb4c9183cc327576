"""What every executor must do: a class of tests, of which each kind of executor has a subclass."""

import contextlib
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from .._jobs import Job, JobState, key_of
from .._middleware import BackgroundMiddleware
from . import executor_site
from .clients import InProcess, ended, start
from .executor_site import Stage, go

LEASE = 6.0
GRACE = 1.0


class Scene:
    """A site, a client of it, and the stage on which its jobs are directed."""

    def __init__(self, app: BackgroundMiddleware, stage: Stage) -> None:
        self.app = app
        self.stage = stage
        self.client: InProcess = InProcess(app)

    def start(self, path: str, body: bytes = b"") -> str:
        """Start a job; return the target of its token."""
        return start(self.client, path, body=body)

    def arrival(self, named: str = "") -> socket.socket:
        """Wait until a job is at its stage; return the connection to it."""
        name, connection = self.stage.arrival()
        assert named in name
        return connection

    def sleeper(self) -> str:
        """Start a job that is in one long call; return its target when that is so."""
        target = self.start("/sleeps")
        self.arrival("sleeps")
        return target

    def hog(self) -> str:
        """Start a job that lets nothing else of Python run in its process; return its target when that is so. Its first
        line is stored by then: nobody in its process could store it later."""
        target = self.start("/hogs?when=told")
        connection = self.arrival("about to hog")
        printed = len(b"taking the lock\n")
        job = self.app.registry.wait(key_of(target.rpartition("_t=")[2]), printed - 1, executor_site.WAIT)
        assert job.output_end == printed, "its first line was not stored"
        go(connection)
        self.arrival("hogs")
        return target

    def ended(self, target: str) -> Job:
        job: Job = ended(self.app, target)
        return job

    def output(self, target: str) -> bytes:
        """Return all that it printed, when it has ended."""
        whole = self.client.request("GET", target, accept="text/plain").body
        return re.sub(rb"\n?\[the job [^\n]*\]\n\Z", b"", whole)  # how it ended

    def state(self, target: str) -> dict[str, Any]:
        """Return what scripts are told of it."""
        document: dict[str, Any] = self.client.request("GET", target, accept="application/json").json
        return document

    def running(self, target: str) -> Job:
        return self.app.registry.get(key_of(target.rpartition("_t=")[2]))


def await_threads() -> None:
    """Wait for the threads that run jobs: what they still do needs the registry."""
    for thread in threading.enumerate():
        if re.fullmatch(r"bgmiddleware-[0-9]+", thread.name):
            thread.join(executor_site.WAIT)
            assert not thread.is_alive(), thread


class ExecutorContract:
    """Subclasses say how the executor is made. Its workers load ``bgmiddleware.testing.executor_site:app``,
    as the environment says, and begin in :meth:`workers`, if it does not begin them itself."""

    kind: ClassVar[str]
    """``module:class``"""

    drains: ClassVar[bool] = True
    """Whether its own ``shutdown`` ends jobs; else its workers' is what does."""

    def options(self, *, max_workers: int, max_pending: int, grace: float) -> Mapping[str, Any]:
        """Return the arguments of the executor."""
        raise NotImplementedError

    def registry(self, tmp_path: Path) -> str:
        """Return the URL of a registry for one test."""
        return f"spool:{tmp_path}/jobs"

    def workers(self, count: int) -> AbstractContextManager[None]:
        """Run *count* workers, where the executor does not begin them itself; each runs one job at a time."""
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def scene(
        self,
        tmp_path: Path,
        *,
        max_workers: int = 2,
        max_pending: int = 100,
        grace: float = GRACE,
        broken: bool = False,
        **options: Any,
    ) -> Iterator[Scene]:
        limits = self.options(max_workers=max_workers, max_pending=max_pending, grace=grace)
        config = {
            "registry": self.registry(tmp_path),
            "executor": self.kind,
            "executor_options": dict(limits),
            "options": options,
            "broken": broken,
            "lease": LEASE,
        }
        with (
            contextlib.closing(Stage()) as stage,
            executor_site.configured(stage=stage.port, **config),
            self.workers(max_workers),
            executor_site.make() as app,
        ):
            try:
                yield Scene(app, stage)
            finally:
                stage.close()  # whatever still waits there goes on
                app.shutdown(0.0)
                await_threads()

    @pytest.fixture
    def site(self, tmp_path: Path) -> Iterator[Scene]:
        with self.scene(tmp_path) as scene:
            yield scene

    # A job that nothing happens to.

    def test_output_and_result_are_those_of_the_view(self, site: Scene) -> None:
        target = site.start("/demo?a=1", b"three rows")
        job = site.ended(target)
        assert (job.state, job.reason) == (JobState.FINISHED, "")
        assert site.output(target) == DEMO_OUTPUT
        result = site.client.request("GET", f"{target}&_view=result")
        assert (result.status, result.body) == (201, b"you sent three rowsa=1")
        assert result["X-Made-By"] == "the app"
        assert job.progress is not None
        assert job.progress.percent == 100.0

    def test_output_is_seen_while_the_job_runs(self, site: Scene) -> None:
        target = site.start("/steps")
        step = site.arrival("steps")
        with site.client.stream("GET", target, accept="text/plain") as (_, _, chunks):
            for number in range(1, 4):
                go(step)
                line = b""
                while not line.endswith(b"\n"):
                    line += next(chunks)
                assert line == b"line %d\n" % number
            assert b"".join(chunks) == b""
        assert site.ended(target).state is JobState.FINISHED

    @pytest.mark.everything
    def test_it_is_known_when_each_line_was_printed(self, site: Scene) -> None:
        target = site.start("/stamps")
        job = site.ended(target)
        assert job.started_at is not None
        times = iter(site.app.registry.times(job.key))
        end, at = 0, 0
        late = []
        offset = 0
        for line in site.output(target).splitlines(keepends=True):
            offset += len(line)
            while end < offset:
                end, at = next(times)
            late.append(job.started_at + at / 1000 - float(line))
        late.sort()  # a machine that is busy may hold some up, and the claim's answer, which is when our clock begins
        assert late[len(late) * 3 // 4] < 0.15
        assert late[len(late) // 4] > -0.15

    def test_jobs_run_beside_each_other_and_are_not_mixed(self, site: Scene) -> None:
        targets = [site.start("/steps/a"), site.start("/steps/b")]
        steps = [site.arrival(), site.arrival()]
        for _ in range(3):
            for step in steps:
                go(step)
        for target in targets:
            assert site.ended(target).state is JobState.FINISHED
            assert site.output(target) == b"line 1\nline 2\nline 3\n"

    def test_many_jobs_run_one_after_the_other(self, site: Scene) -> None:
        targets = [site.start("/demo?", b"%d" % number) for number in range(12)]
        for number, target in enumerate(targets):
            assert site.ended(target).state is JobState.FINISHED
            assert site.client.request("GET", f"{target}&_view=result").body == b"you sent %d" % number
            assert site.output(target) == DEMO_OUTPUT

    def test_the_receipt_says_who_ran_it_and_what_it_took(self, site: Scene) -> None:
        target = site.start("/demo")
        job = site.ended(target)
        receipt = site.client.request("GET", target, accept="application/json").json["receipt"]
        assert receipt["version"] == "2026.11"
        assert re.fullmatch(rf"{re.escape(socket.gethostname())}:[0-9]+", receipt["runner"])
        assert receipt["queue_wait"] >= 0
        assert receipt["run_time"] >= 0
        assert receipt["cpu_time"] >= 0
        errors = [DEMO_OUTPUT[begin:end] for begin, end in job.error_ranges or ()]
        assert errors[0].startswith(b"a warning\n")
        assert errors[-1].endswith(b"an error\n")
        assert b"".join(errors).count(b"\n") in (2, 3)  # the log's handler is an executor's own
        in_process = job.receipt["runner"] == f"{socket.gethostname()}:{os.getpid()}"
        assert in_process is site.app.executor.in_process

    def test_the_view_sees_the_request_as_it_was(self, site: Scene) -> None:
        target = site.start("/surroundings/for%20all?a=1", b"x")
        site.ended(target)
        seen = site.client.request("GET", f"{target}&_view=result").json
        assert (seen["PATH_INFO"], seen["QUERY_STRING"]) == ("/surroundings/for all", "a=1")
        assert (seen["wsgi.url_scheme"], seen["HTTP_HOST"], seen["SCRIPT_NAME"]) == ("http", "localhost", "")
        assert (seen["REQUEST_METHOD"], seen["CONTENT_LENGTH"]) == ("POST", "1")

    # One that fails.

    def test_a_job_that_raises_fails_with_its_traceback(self, site: Scene) -> None:
        target = site.start("/raises")
        job = site.ended(target)
        assert (job.state, job.reason) == (JobState.FAILED, "ValueError: no such report")
        output = site.output(target).decode()
        assert output.startswith("about to fail\nTraceback (most recent call last):\n")
        assert output.count("ValueError: no such report") == 1

    def test_a_job_that_needs_a_module_that_is_not_there_fails_with_its_traceback(self, site: Scene) -> None:
        target = site.start("/imports")
        job = site.ended(target)
        assert job.state is JobState.FAILED
        assert job.reason == "ModuleNotFoundError: No module named 'no_such_module_of_the_shop'"
        assert site.output(target).startswith(b"about to import\nTraceback (most recent call last):\n")

    # One that is asked to stop.

    def test_a_pending_job_is_cancelled_at_once_and_never_runs(self, tmp_path: Path) -> None:
        with self.scene(tmp_path, max_workers=1) as site:
            first = site.start("/steps")
            step = site.arrival()
            second = site.start("/obeys")
            assert site.client.request("DELETE", second).status in (200, 202)
            job = site.ended(second)
            assert (job.state, job.started_at) == (JobState.CANCELLED, None)
            for _ in range(3):
                go(step)
            assert site.ended(first).state is JobState.FINISHED
            third = site.start("/demo")
            assert site.ended(third).state is JobState.FINISHED
            assert site.output(second) == b""

    def test_a_running_job_that_looks_is_cancelled_and_cleans_up(self, site: Scene) -> None:
        target = site.start("/obeys")
        site.arrival()
        assert site.client.request("DELETE", target).status == 202
        job = site.ended(target)
        assert (job.state, job.reason) == (JobState.CANCELLED, "cancelled on request")
        assert site.output(target) == b"obedient\ncleaned up\n"

    def test_a_job_that_is_over_its_deadline_is_cancelled(self, tmp_path: Path) -> None:
        with self.scene(tmp_path, deadline=0.5) as site:
            target = site.start("/obeys")
            site.arrival()
            job = site.ended(target)
            assert (job.state, job.reason) == (JobState.CANCELLED, "it ran longer than its deadline of 0.5 s")

    def test_after_a_cancelled_job_the_next_one_runs(self, tmp_path: Path) -> None:
        with self.scene(tmp_path, max_workers=1) as site:
            first = site.start("/obeys")
            site.arrival()
            site.client.request("DELETE", first)
            second = site.start("/demo")
            assert site.ended(first).state is JobState.CANCELLED
            assert site.ended(second).state is JobState.FINISHED

    # Many of them.

    def test_where_the_queue_is_full_a_request_is_refused_and_leaves_no_job(self, tmp_path: Path) -> None:
        with self.scene(tmp_path, max_workers=1, max_pending=1) as site:
            first = site.start("/steps")
            step = site.arrival()
            second = site.start("/demo")
            reply = site.client.request("POST", "/demo")
            assert reply.status == 503
            assert int(reply["Retry-After"]) > 0
            assert len(site.app.registry.jobs()) == 2
            for _ in range(3):
                go(step)
            assert site.ended(first).state is site.ended(second).state is JobState.FINISHED

    def test_of_a_limited_path_one_job_runs_and_the_second_waits_for_it(self, tmp_path: Path) -> None:
        with self.scene(tmp_path, max_workers=2, limit_per_mark={"/steps": 1}) as site:
            first = site.start("/steps")
            step = site.arrival()
            second, other = site.start("/steps"), site.start("/demo")
            assert site.ended(other).state is JobState.FINISHED
            assert site.running(second).state is JobState.PENDING
            for _ in range(3):
                go(step)
            assert site.ended(first).state is JobState.FINISHED
            step = site.arrival()
            for _ in range(3):
                go(step)
            assert site.ended(second).state is JobState.FINISHED
            began, over = site.running(second).started_at, site.running(first).ended_at
            assert began is not None
            assert over is not None
            assert began >= over

    def test_of_those_that_wait_the_one_of_the_highest_priority_is_run_first(self, tmp_path: Path) -> None:
        priorities = {"/demo/low": "low", "/demo/high": "high"}
        with self.scene(tmp_path, max_workers=1, priority_per_mark=priorities) as site:
            first = site.start("/steps")
            step = site.arrival()
            low, normal, high = (site.start(f"/demo/{name}") for name in ("low", "normal", "high"))
            states = [site.state(target) for target in (high, normal, low)]
            assert [state["queue"] for state in states] == [{"position": place} for place in (1, 2, 3)]
            assert [state["priority"] for state in states] == ["high", "normal", "low"]
            for _ in range(3):
                go(step)
            began = [site.ended(target).started_at for target in (first, high, normal, low)]
            assert None not in began
            assert began == sorted(moment or 0.0 for moment in began)

    # The end of the server.

    def test_a_drained_executor_takes_no_more_and_lets_jobs_end(self, site: Scene) -> None:
        self._needs_drain()
        target = site.start("/steps")
        step = site.arrival()
        closing = threading.Thread(target=site.app.shutdown, args=(executor_site.WAIT,))
        closing.start()
        while site.client.request("POST", "/demo").status != 503:
            pass  # it was not told yet
        for _ in range(3):
            go(step)
        closing.join()
        assert site.ended(target).state is JobState.FINISHED

    def test_what_runs_and_waits_at_the_end_is_lost_and_its_output_kept(self, tmp_path: Path) -> None:
        self._needs_drain()
        with self.scene(tmp_path, max_workers=1) as site:
            first = site.start("/obeys")
            site.arrival()
            second = site.start("/demo")
            site.app.shutdown(0.0)
            for target in (first, second):
                job = site.ended(target)
                assert (job.state, job.reason) == (JobState.LOST, "server shut down")
            assert site.output(first) == b"obedient\n"

    def _needs_drain(self) -> None:
        if not self.drains:
            pytest.skip("its workers drain by themselves")


class ProcessContract(ExecutorContract):
    """What is asked besides of those that have a process for each job that runs."""

    def test_where_the_app_cannot_be_imported_the_job_fails_and_says_why(self, tmp_path: Path) -> None:
        with self.scene(tmp_path, broken=True) as site:
            target = site.start("/demo")
            job = site.ended(target)
            assert job.state is JobState.FAILED
            assert job.reason == "the app could not be loaded: RuntimeError: this app cannot be imported"
            assert "Traceback (most recent call last):" in site.output(target).decode()

    def test_where_its_process_is_killed_the_job_is_lost_and_its_output_kept(self, site: Scene) -> None:
        target = site.start("/dies")
        go(site.arrival())
        job = site.ended(target)
        assert (job.state, job.reason) == (JobState.LOST, "its process was killed by SIGKILL")
        assert site.output(target) == b"the first words\nthe last words"
        target = site.start("/demo")
        assert site.ended(target).state is JobState.FINISHED

    @pytest.mark.parametrize(
        ("begin", "printed"),
        [(Scene.sleeper, b"falling asleep\n"), (Scene.hog, b"taking the lock\n")],
        ids=["sleeps", "hogs"],
    )
    def test_a_running_job_that_does_not_look_is_killed(
        self, site: Scene, begin: Callable[[Scene], str], printed: bytes
    ) -> None:
        target = begin(site)
        assert site.client.request("DELETE", target).status == 202
        job = site.ended(target)
        assert (job.state, job.reason) == (JobState.CANCELLED, "cancelled on request")
        assert site.output(target).startswith(printed)

    @pytest.mark.parametrize("path", ["/children", "/leaves"])
    def test_what_a_cancelled_job_began_is_killed_with_it(self, site: Scene, path: str) -> None:
        target = site.start(path)
        children = site.arrival("children")
        assert site.client.request("DELETE", target).status == 202
        assert site.ended(target).state is JobState.CANCELLED
        assert children.recv(1) == b""  # the last of them is gone

    def test_what_a_job_began_is_killed_when_its_process_dies(self, site: Scene) -> None:
        target = site.start("/children")
        children = site.arrival("children")
        runner = str(site.running(target).receipt["runner"])
        os.kill(int(runner.rpartition(":")[2]), signal.SIGKILL)
        assert site.ended(target).state is JobState.LOST
        assert children.recv(1) == b""  # the last of them is gone

    def test_a_job_that_is_over_its_deadline_and_does_not_look_is_killed(self, tmp_path: Path) -> None:
        with self.scene(tmp_path, deadline=0.5) as site:
            target = site.start("/hogs")
            site.arrival()
            job = site.ended(target)
            assert (job.state, job.reason) == (JobState.CANCELLED, "it ran longer than its deadline of 0.5 s")

    def test_what_c_code_and_children_print_is_output_in_order(self, site: Scene) -> None:
        target = site.start("/descriptors")
        assert site.ended(target).state is JobState.FINISHED
        assert site.output(target) == b"".join(b"%d\n" % number for number in range(1, 11))


DEMO_OUTPUT = (
    """reading what was sent
row 0 …
row 1
row 2
no end of line, ünïcode ☃
a warning
""".encode()
    + b"bytes \xff\nWARNING shop: logged 1\nfrom a child\nan error\n"
)


@pytest.fixture(autouse=True)
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process think as the workers do of how long a claim lasts."""
    for module, name, seconds in executor_site.lease_of(LEASE):
        monkeypatch.setattr(module, name, seconds)
