"""Jobs in workers of Celery: the contract, and what is particular. Real workers, by Redis and by RabbitMQ."""

import base64
import importlib
import json
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, ConfigurationError, JobState
from bgmiddleware.testing.executor_site import go
from bgmiddleware.testing.executors import Scene, short_lease  # noqa: F401  # a fixture
from tests.conftest import needs
from tests.executors.engine_contract import (
    EngineContract,
    StandingClock,
    new_queue,
    site_over,
    tells_of_missing_workers,
)
from tests.executors.engine_worker import Worker, working
from tests.kit.clients import InProcess, ended, start
from tests.kit.looking import eventually
from tests.kit.ports import free_port
from tests.kit.processes import LONG
from tests.kit.rabbitmq_server import RabbitMQServer, rabbitmq_server  # noqa: F401  # a fixture
from tests.kit.redis_server import RedisServer, redis_server, redis_server_of_module  # noqa: F401  # fixtures

needs("celery")
needs("redis")

from celery import Celery  # noqa: E402
from kombu import Connection, Exchange, Queue  # noqa: E402
from redis import Redis  # noqa: E402
from redis.backoff import ConstantBackoff  # noqa: E402
from redis.retry import Retry  # noqa: E402

from bgmiddleware.executors.celery import CeleryExecutor, _force  # noqa: E402

pytestmark = pytest.mark.everything

OPTIONS = ("--loglevel", "INFO", "--without-mingle", "--without-gossip")


class TestCeleryExecutor(EngineContract):
    kind = "bgmiddleware.executors.celery:CeleryExecutor"
    ready = " ready."

    def options(self, *, max_workers: int, **limits: Any) -> Mapping[str, Any]:
        return {"celery": "tests.executors.celery_app:app", "queue": new_queue(), **limits}

    def broker(self, url: str) -> Mapping[str, Any]:
        app = Celery("shop")
        app.conf.broker_write_url = url  # before what the environment says, which is for the workers
        return {"celery": app}

    def name(self) -> str:
        return "celery:tests.executors.celery_app:app"

    def workers_for(self, count: int) -> tuple[int, list[str]]:
        return 1, [*OPTIONS, "--concurrency", str(count)]

    def deliver_again(self, site: Scene, key: str) -> None:
        site.app.executor.submit(site.app.stored_run(key))
        self.said(lambda said: f"bgmiddleware.run[{key}] succeeded" in said)

    # What is particular.

    def test_a_message_is_acknowledged_when_its_job_begins(self, site: Scene) -> None:
        """Whatever a broker does with messages that are held for hours, it does not do it to those of running jobs."""
        target = site.start("/steps")
        step = site.arrival()
        with Redis.from_url(self.server.url) as client:
            self.said(lambda said: client.hlen("unacked") == 0)
        for _ in range(3):
            go(step)
        assert site.ended(target).state is JobState.FINISHED

    def test_a_worker_that_shall_not_wait_ends_with_its_job(self, tmp_path: Path) -> None:
        with self.scene(tmp_path, max_workers=1) as site:
            target = site.hog()
            self.begun[0].end_by(signal.SIGQUIT)
            job = site.ended(target)
            assert job.state is JobState.LOST
            assert site.output(target) == b"taking the lock\n"

    def test_what_it_says_itself_is_not_output(self, site: Scene) -> None:
        target = site.start("/raises")
        assert "bgmiddleware.run" not in site.output(target).decode()
        assert "bgmiddleware.run" in self.shared_workers[0].said()


class TestCeleryByRabbitMQ:
    """A few of the same by the other broker: what differs is how messages come, and how long they wait."""

    @pytest.fixture(autouse=True)
    def _broker(self, rabbitmq_server: RabbitMQServer, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
        self.url = rabbitmq_server.url
        monkeypatch.setenv("CELERY_BROKER_URL", self.url)

    @pytest.fixture
    def site(self, _broker: None, tmp_path: Path) -> Iterator[Scene]:
        contract = _ByRabbitMQ()
        with contract.scene(tmp_path, limit_per_mark={"/steps": 1}) as scene:
            (self.worker,) = contract.begun
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

    def test_of_those_that_wait_the_one_of_the_highest_priority_is_run_first(self, tmp_path: Path) -> None:
        priorities = {"/demo/low": "low", "/demo/high": "high"}
        with _ByRabbitMQ().scene(tmp_path, max_workers=1, priority_per_mark=priorities) as site:
            first = site.start("/steps")
            step = site.arrival()
            held = site.start("/demo/normal/1")  # the worker has it already
            low, normal, high = (site.start(f"/demo/{name}") for name in ("low", "normal/2", "high"))
            for _ in range(3):
                go(step)
            began = [site.ended(target).started_at for target in (first, high, normal, low)]
            assert began == sorted(began)
            assert site.ended(held).state is JobState.FINISHED

    def test_a_queue_of_another_kind_is_refused_with_the_remedy(self, tmp_path: Path) -> None:
        name = new_queue()
        with Connection(self.url) as connection:
            Queue(name, Exchange(name), routing_key=name)(connection.default_channel).declare()
        message = f"queue = '{name}': the broker has a queue of this name with other properties. Delete it there"
        executor = CeleryExecutor(Celery("shop", broker=self.url), queue=name)
        with site_over(executor, f"spool:{tmp_path}/jobs") as app:
            said = InProcess(app).request("POST", "/reports")
            assert said.status == 500
            assert message in said.text
            assert app.registry.jobs() == []
        fallback = [
            "--registry",
            f"spool:{tmp_path}/jobs",
            "--executor",
            "celery:tests.executors.celery_app:app",
            "--queue",
            name,
        ]
        worker = Worker("no_such_module:app", *OPTIONS, ready="", before=fallback)
        worker.until(lambda: False)
        said = worker.said()
        assert worker.close() == 2
        assert message in said


class _ByRabbitMQ(TestCeleryExecutor):
    __test__ = False

    def registry(self, tmp_path: Path) -> str:
        return f"spool:{tmp_path}/jobs"


def site_at(server: RedisServer) -> BackgroundMiddleware:
    """Return a site whose jobs nobody runs."""
    return site_over(CeleryExecutor(Celery("shop", broker=server.url)), server.url)


def test_a_message_holds_the_key_of_its_job_and_nothing_else(redis_server: RedisServer) -> None:  # noqa: F811
    with site_at(redis_server) as app:
        target = start(InProcess(app), "/reports?secret=1", body=b"private")
        (job,) = app.registry.jobs()
        with Redis.from_url(redis_server.url) as client:
            (stored,) = client.lrange("bgmiddleware\x06\x163", 0, -1)  # as kombu calls the queue of a priority
        message = json.loads(stored)
        assert message["content-type"] == "application/json"
        assert json.loads(base64.b64decode(message["body"]))[:2] == [[], {}]
        assert (message["headers"]["id"], message["headers"]["task"]) == (job.key, "bgmiddleware.run")
        assert message["headers"]["argsrepr"] == "()"
        for private in (b"private", b"secret", target.rpartition("=")[2].encode()):
            assert private not in stored


def test_while_a_broker_of_amqp_is_away_a_request_is_refused_and_leaves_no_job(tmp_path: Path) -> None:
    executor = CeleryExecutor(Celery("shop", broker="amqp://127.0.0.1:1//"))
    with site_over(executor, f"spool:{tmp_path}/jobs") as app:
        assert InProcess(app).request("POST", "/reports").status == 503
        assert app.registry.jobs() == []


# What is forced, and what is refused.


def test_a_worker_sets_what_jobs_need_whatever_was_set_before() -> None:
    conf = Celery("shop").conf  # of its own: other tests send by the other one
    conf.update(importlib.import_module("tests.executors.celery_app").app.conf.changes)
    queue = object()
    _force(conf, queue)
    assert {name: conf[name] for name in FORCED} == FORCED
    assert conf.task_queues == [queue]
    assert conf.broker_transport_options["visibility_timeout"] == 86_400


FORCED = {
    "accept_content": ["json"],
    "worker_pool": "prefork",
    "worker_disable_prefetch": True,
    "worker_prefetch_multiplier": 1,
    "worker_redirect_stdouts": False,
    "task_time_limit": None,
    "task_soft_time_limit": None,
}


def test_a_celery_that_runs_its_tasks_at_once_is_refused(redis_server: RedisServer) -> None:  # noqa: F811
    with site_at(redis_server) as app:
        app.executor.celery.conf.task_always_eager = True
        said = InProcess(app).request("POST", "/reports")
        assert said.status == 500
        assert "task_always_eager = True: expected False, since Celery would run jobs in the web process" in said.text
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
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        _ = CeleryExecutor(**options).celery


def test_a_celery_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgmiddleware.executors.celery.__version__", "5.6.3")
    with pytest.raises(ConfigurationError, match=r"Celery 5\.6\.3: expected 5\.7 or newer"):
        CeleryExecutor("tests.executors.celery_app:app")


def test_a_job_without_any_worker_says_so(
    redis_server: RedisServer,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = StandingClock()
    with site_over(CeleryExecutor(Celery("shop", broker=redis_server.url)), redis_server.url, clock=clock) as app:
        tells_of_missing_workers(app, clock, caplog)


BY_SENTINEL = """
import os
from pathlib import Path
from bgmiddleware import BackgroundMiddleware, marks
from bgmiddleware.executors.celery import CeleryExecutor
from bgmiddleware.registries.spool import SpoolRegistry
from celery import Celery

def view(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]

here = os.path.dirname(__file__)
celery = Celery("shop", broker=Path(here, "url").read_text())
celery.conf.broker_transport_options = {"master_name": "jobs"}
registry = SpoolRegistry(os.path.join(here, "jobs"))
app = BackgroundMiddleware(view, when=marks.always, registry=registry, executor=CeleryExecutor(celery))
"""


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[tuple[int, RedisServer]]:
    """The port of a sentinel, and the primary that it watches, which has a replica."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs the redis-server of the system: it is a sentinel too")
    port = free_port()
    with RedisServer() as first, RedisServer("--replicaof", "127.0.0.1", str(first.port)):
        with Redis.from_url(first.url) as client:
            eventually(lambda: client.info("replication")["connected_slaves"] == 1)
        (tmp_path / "sentinel.conf").write_text(
            f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor jobs 127.0.0.1 {first.port} 1\n"
            "sentinel down-after-milliseconds jobs 1000\nsentinel failover-timeout jobs 3000\n"
        )
        command = [program, str(tmp_path / "sentinel.conf"), "--sentinel"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            with Redis(port=port, retry=Retry(ConstantBackoff(0.05), 200)) as client:
                eventually(lambda: client.execute_command("SENTINEL", "REPLICAS", "jobs"))
            yield port, first
        finally:
            process.kill()
            process.wait()


def test_a_worker_and_a_site_follow_sentinels_to_another_server(
    sentinel: tuple[int, RedisServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, first = sentinel
    (tmp_path / "watched.py").write_text(BY_SENTINEL)
    (tmp_path / "url").write_text(f"sentinel://127.0.0.1:{port}/0")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("CELERY_BROKER_URL", raising=False)
    with (
        working("watched:app", *OPTIONS, ready=TestCeleryExecutor.ready, path=str(tmp_path)),
        importlib.import_module("watched").app as app,
    ):
        site = InProcess(app)
        assert ended(app, start(site, "/")).state is JobState.FINISHED
        first.kill()
        eventually(lambda: site.request("POST", "/").status == 303)
        assert ended(app, start(site, "/"), LONG).state is JobState.FINISHED
