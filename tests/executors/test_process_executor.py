"""Jobs in child processes: the contract, and what is particular."""

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, ConfigurationError, Executor, JobState, Run, marks
from bgmiddleware._jobs import key_of
from bgmiddleware.executors._engines.sites import load_site
from bgmiddleware.executors.process import ProcessExecutor
from bgmiddleware.registries.base import END
from bgmiddleware.registries.spool import SpoolRegistry
from bgmiddleware.testing import executor_site
from bgmiddleware.testing.executor_site import Stage, configured, go
from bgmiddleware.testing.executors import LEASE, ProcessContract, Scene, short_lease  # noqa: F401  # a fixture
from tests.kit.clients import environ
from tests.kit.documents import ROOT

pytestmark = pytest.mark.everything


class TestProcessExecutor(ProcessContract):
    kind = "bgmiddleware.executors.process:ProcessExecutor"

    def options(self, **limits: Any) -> Mapping[str, Any]:
        return {"app": executor_site.NAME, **limits}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Callable[..., Scene]]:
    """Set up a site, with further arguments of its executor."""
    with contextlib.ExitStack() as stack:

        def make(*, max_workers: int = 1, grace: float = 1.0, **arguments: Any) -> Scene:
            contract = TestProcessExecutor()
            contract.options = lambda **limits: {"app": executor_site.NAME, **limits, **arguments}  # type: ignore[method-assign]
            return stack.enter_context(contract.scene(tmp_path, max_workers=max_workers, grace=grace))

        yield make


def pid_of(site: Scene, target: str) -> int:
    """Return the process that ran a job."""
    return int(str(site.running(target).receipt["runner"]).rpartition(":")[2])


def await_end(pid: int) -> None:
    """Wait until a process, of whomever, is no more."""
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            assert select.select([descriptor], [], [], executor_site.WAIT)[0], f"{pid} lives"
        finally:
            os.close(descriptor)


# Settings.


def test_constructing_starts_nothing() -> None:
    before = set(threading.enumerate())
    ProcessExecutor("nosuchmodule:app")
    assert set(threading.enumerate()) <= before  # those of other tests may end


@pytest.mark.parametrize(
    ("name", "least"),
    [("max_workers", 1), ("max_pending", 0), ("max_jobs_per_child", 1), ("max_memory", 1), ("grace", 0), ("drain", 0)],
)
def test_a_bad_setting_is_refused_by_name(name: str, least: int) -> None:
    ProcessExecutor("shop:app", **{name: least})
    for wrong in (least - 1, "4", float("nan"), True):
        with pytest.raises(ConfigurationError, match=rf"^{name} = {re.escape(repr(wrong))}: "):
            ProcessExecutor("shop:app", **{name: wrong})


@pytest.mark.parametrize("app", ["shop", "shop:", ":app", "shop/wsgi:app", "__main__:app", "shop:app()"])
def test_a_name_that_children_could_not_load_is_refused(app: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^app = "):
        ProcessExecutor(app)


def test_a_registry_of_one_process_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot see"):
        BackgroundMiddleware(executor_site.view, executor=ProcessExecutor(executor_site.NAME))


# The app that a child loads.


class Wrapper:
    """A middleware that somebody put around."""

    def __init__(self, app: Any) -> None:
        self.app = app


class Flask:
    """An app as Flask's: what is put around goes into an attribute."""

    def __init__(self, wsgi_app: Any) -> None:
        self.wsgi_app = wsgi_app


class Circle:
    """An app that is inside of itself."""

    def __init__(self) -> None:
        self.app = self


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    """Give an object a name that can be imported."""

    def name(found: Any) -> str:
        module = types.ModuleType("shop_wsgi")
        module.app = found  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "shop_wsgi", module)
        return "shop_wsgi:app"

    return name


@pytest.mark.parametrize("wrapped", [lambda app: app, Flask, Wrapper, lambda app: Wrapper(Flask(Wrapper(app)))])
def test_the_middleware_is_found_in_what_is_around_it(named: Callable[[Any], str], wrapped: Any) -> None:
    middleware = BackgroundMiddleware(executor_site.view)
    assert load_site(named(wrapped(middleware))) is middleware


@pytest.mark.parametrize("app", [executor_site.view, Wrapper(executor_site.view), Circle(), BackgroundMiddleware, None])
def test_an_app_without_a_middleware_is_refused(named: Callable[[Any], str], app: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^app = 'shop_wsgi:app': there is no BackgroundMiddleware in this "):
        load_site(named(app))


def test_an_app_that_is_not_there_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"^app = 'nosuchmodule:app': "):
        load_site("nosuchmodule:app")


def test_an_ini_file_needs_pastedeploy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paste.deploy", None)
    with pytest.raises(ConfigurationError, match="an ini file needs PasteDeploy"):
        load_site("site.ini#main")


def test_the_name_of_an_ini_file_is_its_path_from_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    executor = ProcessExecutor("site.ini#main")
    monkeypatch.undo()
    assert executor.app == f"{tmp_path}/site.ini#main"


# What does not cross to it.


class Elsewhere(Executor):
    """Gives runs to nobody."""

    def __init__(self) -> None:
        self.runs: list[Run] = []

    def submit(self, run: Run) -> None:
        self.runs.append(run)

    def stop(self, key: str) -> None:
        """Do nothing."""

    def shutdown(self, drain: float | None = None) -> None:
        """Do nothing."""


@pytest.fixture
def far(tmp_path: Path) -> Iterator[BackgroundMiddleware]:
    with BackgroundMiddleware(
        executor_site.view, when=marks.always, registry=SpoolRegistry(tmp_path / "jobs"), executor=Elsewhere()
    ) as app:
        yield app


def called(app: BackgroundMiddleware, **more: Any) -> None:
    """Send a request with these in its environ, too."""
    assert list(app({**environ("POST", "/demo"), **more}, lambda *_: None))


def dropped(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "not seen by jobs" in record.getMessage()]


def test_what_a_middleware_outside_put_into_the_environ_is_named_once(
    far: BackgroundMiddleware, caplog: pytest.LogCaptureFixture
) -> None:
    session = {"beaker.session": object(), "shop.user": "ada"}
    for _ in range(2):
        called(far, **session)
    called(far, **session, eppn="ada@example.org")
    first, second = dropped(caplog)
    assert "not seen by jobs, which run in other processes: beaker.session, shop.user;" in first
    assert "beaker.session, eppn, shop.user;" in second


def test_what_servers_put_there_is_not_worth_a_word(
    far: BackgroundMiddleware, caplog: pytest.LogCaptureFixture
) -> None:
    called(far, **os.environ, DOCUMENT_ROOT="/srv", REMOTE_USER="ada", **{"waitress.client_disconnected": None})
    assert dropped(caplog) == []


def test_how_many_such_warnings_there_are_is_bounded(
    far: BackgroundMiddleware, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(150):
        called(far, **{f"shop.{number}": 1})
    assert len(dropped(caplog)) == 100


def test_in_a_thread_of_the_same_process_all_of_it_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(environ["shop.user"])
        start_response("204 No Content", [])
        return []

    user = object()
    with BackgroundMiddleware(app, when=marks.always) as site:
        called(site, **{"shop.user": user})
        site.shutdown()
    assert seen == [user]
    assert dropped(caplog) == []


# The children.


def test_a_child_runs_one_job_after_the_other(scene: Callable[..., Scene]) -> None:
    site = scene()
    targets = [site.start("/demo") for _ in range(3)]
    assert {site.ended(target).state for target in targets} == {JobState.FINISHED}
    assert len({pid_of(site, target) for target in targets}) == 1


def test_a_child_that_ran_enough_jobs_is_replaced(scene: Callable[..., Scene]) -> None:
    site = scene(max_jobs_per_child=2)
    targets = [site.start("/demo") for _ in range(5)]
    assert {site.ended(target).state for target in targets} == {JobState.FINISHED}
    first, second, third, fourth, fifth = (pid_of(site, target) for target in targets)
    assert first == second != third == fourth != fifth
    await_end(first)


def test_a_child_that_was_killed_between_two_jobs_is_replaced(scene: Callable[..., Scene]) -> None:
    site = scene()
    first = site.start("/demo")
    site.ended(first)
    os.kill(pid_of(site, first), signal.SIGKILL)
    second = site.start("/demo")
    assert site.ended(second).state is JobState.FINISHED
    assert pid_of(site, second) != pid_of(site, first)


def test_at_the_end_no_process_is_left(scene: Callable[..., Scene]) -> None:
    site = scene(max_workers=2)
    targets = [site.start("/steps"), site.start("/steps")]
    for step in (site.arrival(), site.arrival()):
        for _ in range(3):
            go(step)
    pids = {pid_of(site, target) for target in targets if site.ended(target)}
    assert len(pids) == 2
    site.app.shutdown()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_job_of_a_child_that_cannot_begin_is_lost_and_says_why(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = scene()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    job = site.ended(site.start("/demo"))
    assert (job.state, job.reason.partition(": ")[0]) == (JobState.LOST, "it could not be run")
    monkeypatch.undo()
    assert site.ended(site.start("/demo")).state is JobState.FINISHED


def test_a_python_that_is_built_into_a_server_is_found_beside_its_libraries(
    scene: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch
) -> None:
    site = scene()
    monkeypatch.setattr(sys, "executable", "/usr/sbin/uwsgi")
    assert site.ended(site.start("/demo")).state is JobState.FINISHED


# How jobs end that do not end well.


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("segv", "its process was killed by SIGSEGV"),
        ("exit", "its process exited with status 3"),
        ("hangs-up", "its process does not answer any more"),
    ],
)
@pytest.mark.parametrize("lines", [1, 300_000])
def test_a_job_whose_process_crashes_is_lost_and_says_how_and_no_byte_is_missing(
    scene: Callable[..., Scene], way: str, reason: str, lines: int
) -> None:
    site = scene()
    target = site.start(f"/crashes?{way}.{lines}")
    job = site.ended(target)
    assert (job.state, job.reason) == (JobState.LOST, reason)
    printed = b"".join(b"line %d\n" % number for number in range(lines)) + b"the last words"
    assert site.output(target) == printed
    assert site.ended(site.start("/demo")).state is JobState.FINISHED


def test_a_job_that_exits_fails_and_its_process_lives_on(scene: Callable[..., Scene]) -> None:
    site = scene()
    first, second = site.start("/crashes?sys-exit"), site.start("/demo")
    assert (site.ended(first).state, site.ended(first).reason) == (JobState.FAILED, "SystemExit: no more")
    assert site.ended(second).state is JobState.FINISHED
    assert pid_of(site, first) == pid_of(site, second)


def test_a_job_that_wants_too_much_memory_fails_and_the_next_one_runs(scene: Callable[..., Scene]) -> None:
    site = scene(max_memory=512 * 1024**2)
    assert site.ended(site.start(f"/eats?{64 * 1024**2}")).state is JobState.FINISHED
    target = site.start(f"/eats?{1024**3}")
    job = site.ended(target)
    assert (job.state, job.reason) == (JobState.FAILED, "MemoryError")
    assert site.output(target).startswith(b"hungry\nTraceback")
    assert site.ended(site.start("/demo")).state is JobState.FINISHED


def test_a_job_that_takes_no_notice_of_a_cancel_is_killed(scene: Callable[..., Scene]) -> None:
    site = scene(grace=0.5)
    target = site.start("/defies")
    site.arrival()
    site.client.request("DELETE", target)
    job = site.ended(target)
    assert (job.state, job.reason) == (JobState.CANCELLED, "cancelled on request")
    assert site.output(target) == b"defiant\n"


def test_a_job_in_a_sleep_may_clean_up_when_it_is_cancelled(scene: Callable[..., Scene]) -> None:
    site = scene(grace=executor_site.WAIT)
    target = site.start("/sleeps")
    site.arrival()
    site.client.request("DELETE", target)
    assert site.ended(target).state is JobState.CANCELLED
    assert site.output(target) == b"falling asleep\nwoken up\n"


def test_a_cancel_by_another_process_of_the_host_is_heard(scene: Callable[..., Scene], tmp_path: Path) -> None:
    site = scene()
    target = site.start("/hogs")
    site.arrival()
    with SpoolRegistry(tmp_path / "jobs") as other:
        other.request_cancel(key_of(target.rpartition("_t=")[2]), "the operator wants it")
        assert other.wait(key_of(target.rpartition("_t=")[2]), END, executor_site.WAIT).state is JobState.CANCELLED
    assert site.ended(target).reason == "the operator wants it"


def test_a_job_that_holds_the_lock_of_python_for_longer_than_a_lease_is_not_lost(scene: Callable[..., Scene]) -> None:
    site = scene()
    target = site.start("/hogs")
    site.arrival()
    key = key_of(target.rpartition("_t=")[2])
    assert site.app.registry.wait(key, END, 1.5 * LEASE).state is JobState.RUNNING
    site.client.request("DELETE", target)
    assert site.ended(target).state is JobState.CANCELLED


def test_sigterm_to_all_processes_of_a_service_does_not_end_a_job_that_may_be_drained(
    scene: Callable[..., Scene],
) -> None:
    site = scene()
    target = site.start("/steps")
    step = site.arrival()
    os.kill(pid_of(site, target), signal.SIGTERM)
    for _ in range(3):
        go(step)
    assert site.ended(target).state is JobState.FINISHED


def test_a_child_whose_registry_is_another_one_says_so(scene: Callable[..., Scene], tmp_path: Path) -> None:
    site = scene()
    config = json.loads(os.environ[executor_site.VARIABLE])
    with configured(**{**config, "registry": f"spool:{tmp_path}/others"}):
        job = site.ended(site.start("/demo"))
    assert (job.state, job.reason.partition(": ")[0]) == (JobState.LOST, "its process could not run it")
    assert "there is no job" in job.reason


# What is output.


def test_the_children_of_a_job_print_to_it_whatever_kind_they_are(scene: Callable[..., Scene]) -> None:
    site = scene()
    target = site.start("/forks")
    assert site.ended(target).state is JobState.FINISHED
    assert site.output(target) == b"in the job\nin a fork\nin a process by fork\nin a process by spawn\n"


def test_what_is_printed_below_python_is_in_order_with_what_is_printed_in_it(scene: Callable[..., Scene]) -> None:
    site = scene()
    target = site.start("/alternates")
    site.ended(target)  # else a follower is held for so long only
    numbers = int(site.client.request("GET", f"{target}&_view=result").text)
    assert site.output(target) == b"".join(b"%d\n" % number for number in range(numbers))
    assert numbers


def test_c_code_that_holds_the_lock_of_python_prints_more_than_a_pipe_holds(scene: Callable[..., Scene]) -> None:
    site = scene()
    target = site.start("/floods")
    assert site.ended(target).state is JobState.FINISHED
    assert site.output(target) == b"begin\n" + b"flood\n" * 500_000 + b"end\n"


def test_a_pool_of_a_job_can_end_its_processes(scene: Callable[..., Scene]) -> None:
    site = scene()
    target = site.start("/pools")
    assert site.ended(target).state is JobState.FINISHED
    assert site.output(target) == b"in a pool\nin the job\n"


def test_a_file_that_was_given_descriptor_1_is_nobody_elses(scene: Callable[..., Scene], tmp_path: Path) -> None:
    site = scene()
    first = site.start(f"/gives_away?{tmp_path}/file")
    assert site.ended(first).state is JobState.FINISHED
    assert site.output(first) == b"before\nafter [1]\n"
    second = site.start("/demo")
    assert site.ended(second).state is JobState.FINISHED
    assert pid_of(site, first) == pid_of(site, second)
    assert (tmp_path / "file").read_bytes() == b""


def test_there_is_nothing_to_read_from_stdin(scene: Callable[..., Scene]) -> None:
    site = scene()
    target = site.start("/stdin")
    site.ended(target)
    assert site.client.request("GET", f"{target}&_view=result").body == b"'' b''"


# A web process of its own.

WEB = """
import sys
from bgmiddleware.testing import executor_site
from tests.kit.clients import InProcess, ended, start

for line in sys.stdin:
    kind, path = line.split()
    if kind == "start":
        target = start(InProcess(executor_site.app), path)
    elif kind == "end":
        ended(executor_site.app, path)
    elif kind == "fork":
        import os
        if not os.fork():
            os.read(0, 1)
            os._exit(0)
    print("said:", target, flush=True)
"""


class Web:
    """A process that serves the app, and does as it is told."""

    def __init__(self, tmp_path: Path, stage: Stage) -> None:
        self.registry = SpoolRegistry(tmp_path / "jobs")
        self.printed: list[str] = []  # by the server, not by us
        config = {
            "registry": f"spool:{tmp_path}/jobs",
            "executor": TestProcessExecutor.kind,
            "executor_options": {"app": executor_site.NAME, "max_workers": 1},
            "options": {},
            "broken": False,
            "lease": LEASE,
        }
        with configured(stage=stage.port, **config):
            self.process = subprocess.Popen(
                [sys.executable, "-c", WEB],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

    def told(self, kind: str, path: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(kind, path, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("said: "):
                return line.split()[1]
            self.printed.append(line)
        raise AssertionError("it ended")

    def pid_of(self, target: str) -> int:
        job = self.registry.get(key_of(target.rpartition("_t=")[2]))
        return int(str(job.receipt["runner"]).rpartition(":")[2])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def stage() -> Iterator[Stage]:
    with contextlib.closing(Stage()) as stage:
        yield stage


@pytest.fixture
def web(tmp_path: Path, stage: Stage) -> Iterator[Web]:
    web = Web(tmp_path, stage)
    with web.process, web.registry:
        yield web
        web.process.kill()


def test_an_idle_child_ends_with_its_parent_that_is_killed(web: Web) -> None:
    target = web.told("start", "/demo")
    web.told("end", target)
    pid = web.pid_of(target)
    os.kill(pid, 0)
    web.kill()
    await_end(pid)


def test_it_does_so_too_where_a_fork_of_its_parent_lives_on(web: Web) -> None:
    target = web.told("start", "/demo")
    web.told("end", target)
    web.told("fork", target)
    pid = web.pid_of(target)
    web.kill()
    await_end(pid)
    assert web.process.stdin is not None
    web.process.stdin.close()  # the fork waits for that


def test_a_job_whose_web_process_is_killed_is_run_to_its_end(web: Web, stage: Stage) -> None:
    target = web.told("start", "/steps")
    _, step = stage.arrival()
    pid = web.pid_of(target)
    web.kill()
    for _ in range(3):
        go(step)
    job = web.registry.wait(key_of(target.rpartition("_t=")[2]), END, executor_site.WAIT)
    assert (job.state, job.output_end) == (JobState.FINISHED, len("line 1\n") * 3)
    await_end(pid)


def test_what_is_printed_after_a_job_or_beside_it_goes_where_the_server_prints(web: Web, stage: Stage) -> None:
    target = web.told("start", "/lingers")
    _, late = stage.arrival()
    web.told("end", target)
    go(late)
    assert late.recv(4) == b"done"
    assert web.process.stdin is not None
    assert web.process.stdout is not None
    web.process.stdin.close()
    assert [*web.printed, *web.process.stdout] == ["printed beside\n", "printed late\n", "written late\n"]
    key = key_of(target.rpartition("_t=")[2])
    assert web.registry.page(key, 0).piece.data == b"printed in time\n"
