"""Jobs in the workers of RQ: the contract, and what is particular. Real workers, a real Redis."""

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, ConfigurationError, JobState, Priority, marks
from bgmiddleware._jobs import key_of
from bgmiddleware.testing import executor_site
from bgmiddleware.testing.executors import Scene, short_lease  # noqa: F401  # a fixture
from tests.conftest import needs
from tests.executors.engine_contract import (
    EngineContract,
    StandingClock,
    site_over,
    tells_of_missing_workers,
    unused,
)
from tests.executors.engine_worker import Worker, working
from tests.kit.clients import InProcess, ended, start
from tests.kit.redis_server import RedisServer, redis_server, redis_server_of_module  # noqa: F401  # fixtures

needs("rq")

from redis import Redis  # noqa: E402
from rq import Callback, Queue  # noqa: E402
from rq.job import Job as Message  # noqa: E402

from bgmiddleware.executors.rq import RQExecutor  # noqa: E402
from bgmiddleware.registries.redis import RedisRegistry  # noqa: E402

pytestmark = pytest.mark.everything

READY = "Listening on"


class TestRQExecutor(EngineContract):
    kind = "bgmiddleware.executors.rq:RQExecutor"
    ready = READY

    def broker(self, url: str) -> Mapping[str, Any]:
        return {"url": url}

    def name(self) -> str:
        return f"rq:{self.server.url}"

    def workers_for(self, count: int) -> tuple[int, list[str]]:
        return count, []

    def deliver_again(self, site: Scene, key: str) -> None:
        name = site.app.executor.queue
        with Redis.from_url(self.server.url) as client:
            client.rpush(f"rq:queue:{name}", key)
        self.said(lambda said: said.count(f"{name}: {key}") == 2)

    # What is particular.

    def test_a_second_signal_ends_a_worker_and_its_job(self, tmp_path: Path) -> None:
        with self.scene(tmp_path, max_workers=1) as site:
            target = site.start("/sleeps")
            site.arrival()
            (worker,) = self.begun
            worker.process.send_signal(signal.SIGTERM)
            worker.until(lambda: "warm shut down" in worker.said())
            worker.end_by(signal.SIGTERM)  # RQ takes no notice of one that comes within a second
            job = site.ended(target)
            assert (job.state, job.reason) == (JobState.LOST, "its worker was shut down")
            assert site.output(target) == b"falling asleep\n"

    def test_the_app_is_imported_once_for_all_jobs_of_a_worker(self, tmp_path: Path) -> None:
        (tmp_path / "counted.py").write_text(COUNTED)
        with (
            executor_site.configured(url=self.server.url),
            working("counted:app", ready=READY, path=str(tmp_path)) as (worker,),
        ):
            app = counting(self.server.url)
            seen = [result(app, start(InProcess(app), "/count")).split() for _ in range(2)]
        assert [importer for importer, _ in seen] == [str(worker.pid)] * 2
        assert len({runner for _, runner in seen} | {str(worker.pid)}) == 3


COUNTED = """
import json, os
from bgmiddleware import BackgroundMiddleware, marks
from bgmiddleware.executors.rq import RQExecutor
from bgmiddleware.registries.redis import RedisRegistry

importer = os.getpid()
url = json.loads(os.environ["BGMIDDLEWARE_TEST_APP"])["url"]

def view(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{importer} {os.getpid()}".encode()]

def called(*arguments):
    open(os.path.join(os.path.dirname(__file__), "called"), "w").close()

app = BackgroundMiddleware(view, when=marks.always, registry=RedisRegistry(url), executor=RQExecutor(url))
"""


def counting(url: str) -> BackgroundMiddleware:
    return BackgroundMiddleware(unused, when=marks.always, registry=RedisRegistry(url), executor=RQExecutor(url))


def site_at(server: RedisServer, **limits: Any) -> BackgroundMiddleware:
    """Return a site whose jobs nobody runs."""
    return site_over(RQExecutor(server.url, **limits), server.url)


def result(app: BackgroundMiddleware, target: str) -> str:
    assert ended(app, target).state is JobState.FINISHED
    return InProcess(app).request("GET", f"{target}&_view=result").text


def test_a_message_holds_the_key_of_its_job_and_nothing_else(redis_server: RedisServer) -> None:  # noqa: F811
    with site_at(redis_server) as app:
        target = start(InProcess(app), "/reports?secret=1", body=b"private")
        (job,) = app.registry.jobs()
        with Redis.from_url(redis_server.url) as client:
            assert client.lrange("rq:queue:bgmiddleware", 0, -1) == [job.key.encode()]
            message = Message.fetch(job.key, client, "json")
            assert (message.args, message.kwargs, message.description) == ([], {}, "bgmiddleware")
            assert (message.timeout, message.result_ttl, message.failure_ttl) == (-1, 0, 3600)
            stored = repr([client.dump(name) for name in client.keys("rq:*")])
        assert "private" not in stored
        assert "secret" not in stored
        assert target.rpartition("=")[2] not in stored


def test_a_cancelled_job_leaves_the_queue(redis_server: RedisServer) -> None:  # noqa: F811
    with site_at(redis_server) as app:
        target = start(InProcess(app), "/reports")
        assert InProcess(app).request("DELETE", target).status in (200, 202)
        with Redis.from_url(redis_server.url) as client:
            assert client.llen("rq:queue:bgmiddleware") == 0


def test_a_message_that_is_one_too_many_is_taken_back(redis_server: RedisServer) -> None:  # noqa: F811
    paths = {"/high": "high", "/low": "low"}
    executor = RQExecutor(redis_server.url, max_pending=2)
    with BackgroundMiddleware(
        unused, when=marks.always, registry=RedisRegistry(redis_server.url), executor=executor, priority_per_mark=paths
    ) as app:
        client = InProcess(app)
        for path, status in (("/low", 303), ("/", 303), ("/high", 503), ("/", 503)):
            assert client.request("POST", path).status == status
        jobs = {job.title: job.key for job in app.registry.jobs()}
        with Redis.from_url(redis_server.url) as redis:
            queues = {name: redis.lrange(f"rq:queue:bgmiddleware{name}", 0, -1) for name in (":high", "", ":low")}
            assert len(redis.keys("rq:job:*")) == 2
    assert queues == {":high": [], "": [jobs["POST /"].encode()], ":low": [jobs["POST /low"].encode()]}


def test_one_that_a_worker_has_already_is_not_taken_back(redis_server: RedisServer) -> None:  # noqa: F811
    """It may run by now: to refuse its request would be a lie."""
    with Redis.from_url(redis_server.url) as client:
        executor = RQExecutor(redis_server.url, max_pending=1)
        assert not executor._take_back(executor._queues[Priority.NORMAL], "0" * 32)
        client.rpush("rq:queue:bgmiddleware", "0" * 32)
        assert executor._take_back(executor._queues[Priority.NORMAL], "0" * 32)
        assert client.llen("rq:queue:bgmiddleware") == 0
        executor.shutdown()


def test_what_else_a_message_names_is_not_called(redis_server: RedisServer, tmp_path: Path) -> None:  # noqa: F811
    """Who can write to Redis can have requests run; that shall be all."""
    (tmp_path / "counted.py").write_text(COUNTED)
    with Redis.from_url(redis_server.url) as client:
        queue = Queue("bgmiddleware", connection=client, serializer="json")
        callback = Callback("counted.called")
        queue.enqueue("counted.called", job_id="0" * 32, on_success=callback, on_failure=callback)
        with executor_site.configured(url=redis_server.url):
            worker = Worker("counted:app", "--burst", ready="", path=str(tmp_path))
            worker.until(lambda: False)
            said = worker.said()
            worker.close()
        assert client.llen(queue.key) == 0
    assert f"Job OK ({'0' * 32})" in said
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--registry", "spool:jobs"], "--registry and --executor: give both or none of them"),
        (["--executor", "rq"], "--registry and --executor: give both or none of them"),
        (["--queue", "other"], "--registry and --executor: give both or none of them"),
        (["--registry", "memory:", "--executor", "rq"], "--registry = 'memory:': expected one that processes share"),
        (["--registry", "spool:jobs", "--executor", "fibre"], "executor = 'fibre': expected "),
        (["--registry", "spool:jobs", "--executor", "thread"], "its ThreadExecutor runs jobs without such workers"),
    ],
)
def test_a_worker_for_an_app_that_cannot_be_loaded_must_be_told_where_its_jobs_are(
    tmp_path: Path, options: list[str], reason: str
) -> None:
    (tmp_path / "broken.py").write_text("raise SystemExit")
    worker = Worker("broken:app", ready="", path=str(tmp_path), before=options)
    worker.until(lambda: False)
    said = worker.said()
    assert worker.close() == 2
    assert reason in said
    assert "Traceback" not in said.rpartition("its jobs will fail")[2]


def test_the_url_of_something_else_is_refused_and_not_shown_with_its_password() -> None:
    with pytest.raises(ConfigurationError, match="redis://") as raised:
        RQExecutor("http://me:secret@localhost")
    assert "secret" not in str(raised.value)


def test_a_job_without_any_worker_says_so(
    redis_server: RedisServer,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = StandingClock()
    with site_over(RQExecutor(redis_server.url), redis_server.url, clock=clock) as app:
        tells_of_missing_workers(app, clock, caplog)


OUTSIDE = """
import os
from pathlib import Path
from bgmiddleware import BackgroundMiddleware, marks
from bgmiddleware.executors.rq import RQExecutor
from bgmiddleware.registries.spool import SpoolRegistry

def view(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getppid()).encode()]

here = os.path.dirname(__file__)
url = Path(here, "url").read_text()
app = BackgroundMiddleware(
    view, when=marks.always, registry=SpoolRegistry(os.path.join(here, "jobs")), executor=RQExecutor(url)
)
"""


def test_a_worker_and_a_site_outlive_a_fail_over_that_keeps_connections(tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text(OUTSIDE)
    with RedisServer() as server, RedisServer() as other, Redis.from_url(server.url) as control:
        (tmp_path / "url").write_text(server.url)
        with working("outside:app", ready=READY, path=str(tmp_path)) as (worker,):
            executor = RQExecutor(server.url)
            with site_over(executor, f"spool:{tmp_path}/jobs") as app:
                assert result(app, start(InProcess(app), "/")) == str(worker.pid)
                control.execute_command("REPLICAOF", "127.0.0.1", str(other.port))
                refused = InProcess(app).request("POST", "/")
                assert (refused.status, "read only replica" in refused.text) == (503, True)
                control.execute_command("REPLICAOF", "NO", "ONE")
                assert result(app, start(InProcess(app), "/")) == str(worker.pid)
                assert worker.process.poll() is None


MOMENTS = """
import os
from pathlib import Path
from redis import Redis
from bgmiddleware.executors import rq
from outside import app, here, url

name, other = Path(here, "moment").read_text().split()
before = getattr(rq._Worker, name)

def meanwhile(self, *arguments, **named):
    if not os.path.exists(os.path.join(here, "switched")):
        with Redis.from_url(url) as control:
            control.execute_command("REPLICAOF", "127.0.0.1", other)
        Path(here, "switched").touch()
    return before(self, *arguments, **named)

setattr(rq._Worker, name, meanwhile)
"""


@pytest.mark.parametrize(
    "moment",
    [
        "get_redis_server_version",  # it has taken the message
        "prepare_execution",
        "prepare_job_execution",  # the job's process has begun
        "wait_for_horse",
    ],
)
def test_a_fail_over_at_any_moment_loses_neither_a_job_nor_the_worker(tmp_path: Path, moment: str) -> None:
    (tmp_path / "outside.py").write_text(OUTSIDE)
    (tmp_path / "moments.py").write_text(MOMENTS)
    with RedisServer() as server, RedisServer() as other, Redis.from_url(server.url) as control:
        (tmp_path / "url").write_text(server.url)
        (tmp_path / "moment").write_text(f"{moment} {other.port}")
        with (
            working("moments:app", ready=READY, path=str(tmp_path)) as (worker,),
            site_over(RQExecutor(server.url), f"spool:{tmp_path}/jobs") as app,
        ):
            target = start(InProcess(app), "/")
            worker.until(lambda: (tmp_path / "switched").exists())
            worker.until(lambda: "Redis does not answer" in worker.said())
            control.execute_command("REPLICAOF", "NO", "ONE")
            assert result(app, target) == str(worker.pid)
            assert result(app, start(InProcess(app), "/")) == str(worker.pid)
            assert worker.process.poll() is None


def test_a_worker_outlives_a_redis_without_memory_and_then_runs_what_waits(tmp_path: Path) -> None:
    (tmp_path / "outside.py").write_text(OUTSIDE)
    with RedisServer() as server, Redis.from_url(server.url) as control:
        (tmp_path / "url").write_text(server.url)
        with (
            working("outside:app", ready=READY, path=str(tmp_path)) as (worker,),
            site_over(RQExecutor(server.url), f"spool:{tmp_path}/jobs") as app,
        ):
            control.config_set("maxmemory", 1)
            worker.until(lambda: "Redis does not answer" in worker.said())
            refused = InProcess(app).request("POST", "/")
            assert (refused.status, "maxmemory" in refused.text) == (503, True)
            control.config_set("maxmemory", 0)
            assert result(app, start(InProcess(app), "/")) == str(worker.pid)


def test_a_worker_without_redis_ends_at_a_signal_when_its_job_has_ended(tmp_path: Path) -> None:
    waits = "while not os.path.exists(os.path.join(here, 'go')): print('waits', flush=True); time.sleep(0.05)"
    (tmp_path / "outside.py").write_text(
        OUTSIDE.replace("import os\n", "import os, time\n").replace(
            "    start_response", f"    {waits}\n    start_response"
        )
    )
    with RedisServer() as server:
        (tmp_path / "url").write_text(server.url)
        with (
            working("outside:app", ready=READY, path=str(tmp_path)) as (worker,),
            site_over(RQExecutor(server.url), f"spool:{tmp_path}/jobs") as app,
        ):
            target = start(InProcess(app), "/")
            app.registry.wait(key_of(target.rpartition("=")[2]), 0, 120.0)
            server.kill()
            worker.process.send_signal(signal.SIGTERM)
            worker.until(lambda: "warm shut down" in worker.said())
            (tmp_path / "go").touch()
            assert ended(app, target).state is JobState.FINISHED
            worker.process.wait(120)


def test_a_url_of_sentinels_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigurationError, match="sentinel") as caught:
        RQExecutor("redis+sentinel://127.0.0.1/jobs")
    assert "expected a URL that begins with one of redis://, rediss://, unix://" in str(caught.value)
