"""Jobs in workers of Celery: the contract, and what is particular. Real workers, by Redis and by RabbitMQ."""

import base64
import contextlib
import itertools
import json
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import executor_app
import pytest
from clients import InProcess, ended, start
from engine_worker import Worker, working
from executor_app import go
from executor_contract import ProcessContract, Scene, short_lease  # noqa: F401  # a fixture
from rabbitmq_server import RabbitMQServer, rabbitmq_server  # noqa: F401  # a fixture
from redis_server import RedisServer, redis_server, redis_server_of_module  # noqa: F401  # fixtures

from bgmiddleware import BackgroundMiddleware, ConfigurationError, JobState, marks
from tests.conftest import needs

needs("celery")
needs("redis")

from celery import Celery  # noqa: E402
from redis import Redis  # noqa: E402

from bgmiddleware.executors.celery import CeleryExecutor  # noqa: E402
from bgmiddleware.registries.redis import RedisRegistry  # noqa: E402
from bgmiddleware.registries.spool import SpoolRegistry  # noqa: E402

READY = " ready."
OPTIONS = ("--loglevel", "INFO", "--without-mingle", "--without-gossip")

_numbers = itertools.count()


class TestCeleryExecutor(ProcessContract):
    kind = "bgmiddleware.executors.celery:CeleryExecutor"
    drains = False
    server: ClassVar[RedisServer]
    shared_worker: ClassVar[Worker]
    begun: Worker

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _broker(cls, redis_server_of_module: RedisServer) -> Iterator[None]:  # noqa: F811
        cls.server = redis_server_of_module
        with pytest.MonkeyPatch.context() as environ:
            environ.setenv("CELERY_BROKER_URL", redis_server_of_module.url)
            yield

    @pytest.fixture(scope="class")
    @classmethod
    def shared_site(cls, _broker: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
        """The same worker for all tests that need no other: it takes long to begin."""
        contract = cls()
        with contract.scene(tmp_path_factory.mktemp("site")) as scene:
            cls.shared_worker = contract.begun
            yield scene

    @pytest.fixture
    def site(self, shared_site: Scene) -> Scene:
        return shared_site

    def options(self, *, max_workers: int, **limits: Any) -> Mapping[str, Any]:
        return {"celery": "celery_app:app", "queue": f"test-{next(_numbers)}", **limits}

    def registry(self, tmp_path: Path) -> str:
        return f"redis://127.0.0.1:{self.server.port}/{1 + next(_numbers) % 15}"

    @contextlib.contextmanager
    def workers(self, count: int) -> Iterator[None]:
        with working(executor_app.NAME, *OPTIONS, "--concurrency", str(count), ready=READY) as (self.begun,):
            yield

    def test_where_the_app_cannot_be_imported_the_job_fails_and_says_why(self, tmp_path: Path) -> None:
        """A worker knows of no registry then: it does not begin, and the job waits for one that can."""
        error = "RuntimeError: this app cannot be imported"
        with pytest.raises(AssertionError, match=error), self.scene(tmp_path, broken=True):
            pass

    # What is particular.

    def test_a_message_that_comes_twice_runs_once(self, site: Scene) -> None:
        target = site.start("/steps")
        step = site.arrival()
        run = site.app.stored_run(site.running(target).key)
        site.app.executor.submit(run)
        taken = f"bgmiddleware.run[{run.key}]"
        self.shared_worker.until(lambda: f"{taken} succeeded" in self.shared_worker.said())
        assert site.running(target).state is JobState.RUNNING
        for _ in range(3):
            go(step)
        assert site.ended(target).state is JobState.FINISHED
        assert site.output(target) == b"line 1\nline 2\nline 3\n"

    def test_where_a_worker_and_its_processes_are_killed_the_lease_tells(self, tmp_path: Path) -> None:
        with self.scene(tmp_path, max_workers=1) as site:
            target = site.start("/steps")
            go(site.arrival())
            with site.client.stream("GET", target, accept="text/plain") as (_, _, chunks):
                assert next(chunks)  # the line is stored
            self.begun.kill_tree()
            job = site.ended(target)
            assert (job.state, job.reason) == (JobState.LOST, "its runner vanished")
            assert site.output(target) == b"line 1\n"

    def test_a_worker_that_shall_not_wait_ends_with_its_job(self, tmp_path: Path) -> None:
        with self.scene(tmp_path, max_workers=1) as site:
            target = site.start("/hogs")
            site.arrival()
            self.begun.end_by(signal.SIGQUIT)
            job = site.ended(target)
            assert job.state is JobState.LOST
            assert site.output(target) == b"taking the lock\n"

    def test_what_it_says_itself_is_not_output(self, site: Scene) -> None:
        target = site.start("/raises")
        assert "bgmiddleware.run" not in site.output(target).decode()
        assert "bgmiddleware.run" in self.shared_worker.said()


class TestCeleryByRabbitMQ:
    """A few of the same by the other broker: what differs is how messages come, and how long they wait."""

    @pytest.fixture
    def site(
        self,
        rabbitmq_server: RabbitMQServer,  # noqa: F811
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> Iterator[Scene]:
        monkeypatch.setenv("CELERY_BROKER_URL", rabbitmq_server.url)
        contract = _ByRabbitMQ()
        with contract.scene(tmp_path, limit_per_mark={"/steps": 1}) as scene:
            self.worker = contract.begun
            yield scene

    def test_jobs_run_are_killed_and_wait_for_their_place(self, site: Scene) -> None:
        demo = site.start("/demo?a=1", b"three rows")
        assert site.ended(demo).state is JobState.FINISHED
        assert site.client.request("GET", f"{demo}&_view=result").body == b"you sent three rowsa=1"
        first = site.start("/steps")
        step = site.arrival()
        second, hog = site.start("/steps"), site.start("/hogs")
        site.arrival("hogs")
        assert site.client.request("DELETE", hog).status == 202
        assert site.ended(hog).state is JobState.CANCELLED
        assert site.running(second).state is JobState.PENDING
        for _ in range(3):
            go(step)
        step = site.arrival()
        for _ in range(3):
            go(step)
        assert site.ended(first).state is site.ended(second).state is JobState.FINISHED

    def test_a_message_that_comes_twice_runs_once(self, site: Scene) -> None:
        target = site.start("/obeys")
        site.arrival()
        run = site.app.stored_run(site.running(target).key)
        site.app.executor.submit(run)
        self.worker.until(lambda: f"bgmiddleware.run[{run.key}] succeeded" in self.worker.said())
        site.client.request("DELETE", target)
        assert site.ended(target).state is JobState.CANCELLED
        assert site.output(target) == b"obedient\ncleaned up\n"


class _ByRabbitMQ(TestCeleryExecutor):
    __test__ = False

    def registry(self, tmp_path: Path) -> str:
        return f"spool:{tmp_path}/jobs"


def _unused(environ: Any, start_response: Any) -> Any:
    raise AssertionError("the app is called by workers only")


def site_at(server: RedisServer, *, broker: str = "", **options: Any) -> BackgroundMiddleware:
    """Return a site whose jobs nobody runs."""
    executor = CeleryExecutor(Celery("shop", broker=broker or server.url))
    registry = RedisRegistry(server.url, **options)
    return BackgroundMiddleware(_unused, when=marks.always, registry=registry, executor=executor)


def test_a_message_holds_the_key_of_its_job_and_nothing_else(redis_server: RedisServer) -> None:  # noqa: F811
    with site_at(redis_server) as app:
        target = start(InProcess(app), "/reports?secret=1", body=b"private")
        (job,) = app.registry.jobs()
        with Redis.from_url(redis_server.url) as client:
            (stored,) = client.lrange("bgmiddleware", 0, -1)
        message = json.loads(stored)
        assert message["content-type"] == "application/json"
        assert json.loads(base64.b64decode(message["body"]))[:2] == [[], {}]
        assert (message["headers"]["id"], message["headers"]["task"]) == (job.key, "bgmiddleware.run")
        assert message["headers"]["argsrepr"] == "()"
        for private in (b"private", b"secret", target.rpartition("=")[2].encode()):
            assert private not in stored


@pytest.mark.parametrize("broker", ["redis://127.0.0.1:1/0", "amqp://127.0.0.1:1//"])
def test_while_the_broker_is_away_a_request_is_refused_and_leaves_no_job(
    redis_server: RedisServer,  # noqa: F811
    broker: str,
) -> None:
    with site_at(redis_server, broker=broker) as app:
        reply = InProcess(app).request("POST", "/reports")
        assert reply.status == 503
        assert int(reply["Retry-After"]) > 0
        assert app.registry.jobs() == []


def test_when_the_broker_is_back_requests_are_taken_again(tmp_path: Path) -> None:
    with RedisServer() as broker, SpoolRegistry(tmp_path / "jobs") as registry:
        executor = CeleryExecutor(Celery("shop", broker=broker.url))
        app = BackgroundMiddleware(_unused, when=marks.always, registry=registry, executor=executor)
        client = InProcess(app)
        assert client.request("POST", "/reports").status == 303
        broker.kill()
        assert client.request("POST", "/reports").status == 503
        broker.start()
        assert client.request("POST", "/reports").status == 303


def test_a_job_whose_message_is_lost_never_started(redis_server: RedisServer) -> None:  # noqa: F811
    with site_at(redis_server, pending_ttl=0.1) as app:
        job = ended(app, start(InProcess(app), "/reports"))
        assert (job.state, job.reason) == (JobState.LOST, "never started")


def test_after_its_shutdown_it_takes_no_more(redis_server: RedisServer) -> None:  # noqa: F811
    with site_at(redis_server) as app:
        app.shutdown()
        assert InProcess(app).request("POST", "/reports").status == 503


# What is refused.


def test_a_celery_that_runs_its_tasks_at_once_is_refused(redis_server: RedisServer) -> None:  # noqa: F811
    with site_at(redis_server) as app:
        app.executor.celery.conf.task_always_eager = True
        with pytest.raises(ConfigurationError, match="task_always_eager: then Celery runs jobs in the web process"):
            start(InProcess(app), "/reports")
        assert app.registry.jobs() == []


@pytest.mark.parametrize(
    ("setting", "options", "reason"),
    [
        (
            "broker_transport_options = {'visibility_timeout': 3600}",
            [],
            "visibility_timeout = 3600: expected at least 86400",
        ),
        ("timezone = 'UTC'", ["--pool", "threads"], "expected prefork: threads cannot be killed"),
        ("timezone = 'UTC'", ["--no-such-option"], "celery worker: No such option"),
    ],
)
def test_a_worker_with_a_wrong_setting_does_not_begin_and_says_why(
    tmp_path: Path, setting: str, options: list[str], reason: str
) -> None:
    (tmp_path / "wrong.py").write_text(WRONG.format(setting=setting, registry=tmp_path / "jobs"))
    worker = Worker("wrong:app", *options, ready="", path=str(tmp_path))
    worker.until(lambda: False)
    said = worker.said()
    assert worker.close() == 2
    assert reason in said
    assert "Traceback" not in said


WRONG = """
from celery import Celery
from bgmiddleware import BackgroundMiddleware
from bgmiddleware.executors.celery import CeleryExecutor
from bgmiddleware.registries.spool import SpoolRegistry

celery = Celery("shop", broker="memory://")
celery.conf.{setting}
app = BackgroundMiddleware(print, registry=SpoolRegistry('{registry}'), executor=CeleryExecutor(celery))
"""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"celery": "os:path"}, "this is a module"),
        ({"celery": "no.such:app"}, "No module named"),
        ({"celery": "celery_app:app", "max_pending": 0}, "max_pending = 0: expected a number from 1"),
        ({"celery": "celery_app:app", "grace": -1}, "grace = -1: expected a number from 0"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        _ = CeleryExecutor(**options).celery


def test_a_celery_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgmiddleware.executors.celery.__version__", "5.5.3")
    with pytest.raises(ConfigurationError, match=r"needs Celery 5\.6 or newer, and this is 5\.5\.3"):
        CeleryExecutor("celery_app:app")
