"""Jobs in the workers of RQ: the contract, and what is particular. Real workers, a real Redis."""

import contextlib
import itertools
import os
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
from redis_server import RedisServer, redis_server, redis_server_of_module  # noqa: F401  # fixtures

from bgmiddleware import BackgroundMiddleware, ConfigurationError, JobState, marks
from tests.conftest import needs

needs("rq")

from redis import Redis  # noqa: E402
from rq import Callback, Queue  # noqa: E402
from rq.job import Job as Message  # noqa: E402

from bgmiddleware.executors.rq import RQExecutor  # noqa: E402
from bgmiddleware.registries.redis import RedisRegistry  # noqa: E402

READY = "Listening on"

_numbers = itertools.count()


class TestRQExecutor(ProcessContract):
    kind = "bgmiddleware.executors.rq:RQExecutor"
    drains = False
    server: ClassVar[RedisServer]
    shared_workers: ClassVar[list[Worker]]
    begun: list[Worker]

    @pytest.fixture(autouse=True)
    def _at_server(self, redis_server_of_module: RedisServer) -> None:  # noqa: F811
        type(self).server = redis_server_of_module

    @pytest.fixture(scope="class")
    @classmethod
    def shared_site(
        cls,
        redis_server_of_module: RedisServer,  # noqa: F811
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Iterator[Scene]:
        """The same workers for all tests that need no others: they take long to begin."""
        cls.server = redis_server_of_module
        contract = cls()
        with contract.scene(tmp_path_factory.mktemp("site")) as scene:
            cls.shared_workers = contract.begun
            yield scene

    @pytest.fixture
    def site(self, shared_site: Scene) -> Scene:
        return shared_site

    def options(self, *, max_workers: int, **limits: Any) -> Mapping[str, Any]:
        return {"url": self.server.url, "queue": f"test-{next(_numbers)}", **limits}

    def registry(self, tmp_path: Path) -> str:
        return f"redis://127.0.0.1:{self.server.port}/{1 + next(_numbers) % 15}"

    @contextlib.contextmanager
    def workers(self, count: int) -> Iterator[None]:
        with working(executor_app.NAME, ready=READY, count=count) as self.begun:
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
        queue = site.app.executor._queue
        taken = f"{queue.name}: {site.running(target).key}"
        with Redis.from_url(self.server.url) as client:
            client.rpush(queue.key, site.running(target).key)
        workers = self.shared_workers
        workers[0].until(lambda: sum(worker.said().count(taken) for worker in workers) == 2)
        assert site.running(target).state is JobState.RUNNING
        for _ in range(3):
            go(step)
        assert site.ended(target).state is JobState.FINISHED
        assert site.output(target) == b"line 1\nline 2\nline 3\n"

    def test_where_a_worker_and_its_process_are_killed_the_lease_tells(self, tmp_path: Path) -> None:
        with self.scene(tmp_path, max_workers=1) as site:
            target = site.start("/steps")
            go(site.arrival())
            with site.client.stream("GET", target, accept="text/plain") as (_, _, chunks):
                assert next(chunks)  # the line is stored
            (worker,) = self.begun
            worker.kill_tree()
            job = site.ended(target)
            assert (job.state, job.reason) == (JobState.LOST, "its runner vanished")
            assert site.output(target) == b"line 1\n"

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
            executor_app.configured(url=self.server.url),
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

app = BackgroundMiddleware(view, when=marks.always, registry=RedisRegistry(url), executor=RQExecutor(url))
"""


def counting(url: str) -> BackgroundMiddleware:
    return BackgroundMiddleware(_unused, when=marks.always, registry=RedisRegistry(url), executor=RQExecutor(url))


def site_at(server: RedisServer, *, url: str = "", **options: Any) -> BackgroundMiddleware:
    """Return a site whose jobs nobody runs."""
    registry = RedisRegistry(server.url, **options)
    return BackgroundMiddleware(_unused, when=marks.always, registry=registry, executor=RQExecutor(url or server.url))


def _unused(environ: Any, start_response: Any) -> Any:
    raise AssertionError("the app is called by workers only")


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


def test_while_the_broker_is_away_a_request_is_refused_and_leaves_no_job(redis_server: RedisServer) -> None:  # noqa: F811
    with site_at(redis_server, url="redis://127.0.0.1:1/0") as app:
        reply = InProcess(app).request("POST", "/reports")
        assert reply.status == 503
        assert int(reply["Retry-After"]) > 0
        assert app.registry.jobs() == []


def test_a_job_whose_message_is_lost_never_started(redis_server: RedisServer) -> None:  # noqa: F811
    with site_at(redis_server, pending_ttl=0.1) as app:
        target = start(InProcess(app), "/reports")
        job = ended(app, target)
        assert (job.state, job.reason) == (JobState.LOST, "never started")


def test_a_cancelled_job_leaves_the_queue(redis_server: RedisServer) -> None:  # noqa: F811
    with site_at(redis_server) as app:
        target = start(InProcess(app), "/reports")
        assert InProcess(app).request("DELETE", target).status in (200, 202)
        with Redis.from_url(redis_server.url) as client:
            assert client.llen("rq:queue:bgmiddleware") == 0


def test_after_its_shutdown_it_takes_no_more(redis_server: RedisServer) -> None:  # noqa: F811
    with site_at(redis_server) as app:
        app.shutdown()
        assert InProcess(app).request("POST", "/reports").status == 503


def test_what_else_a_message_names_is_not_called(redis_server: RedisServer, tmp_path: Path) -> None:  # noqa: F811
    """Who can write to Redis can have requests run; that shall be all."""
    with Redis.from_url(redis_server.url) as client:
        queue = Queue("bgmiddleware", connection=client, serializer="json")
        made = [str(tmp_path / name) for name in ("function", "success", "failure")]
        callback = Callback("os.mkdir")
        queue.enqueue("os.mkdir", made[0], job_id="0" * 32, on_success=callback, on_failure=callback)
        with executor_app.configured(url=redis_server.url):
            (tmp_path / "counted.py").write_text(COUNTED)
            worker = Worker("counted:app", "--burst", ready="", path=str(tmp_path))
            worker.until(lambda: False)
            said = worker.said()
            worker.close()
        assert client.llen(queue.key) == 0
    assert "0" * 32 in said
    assert not any(os.path.exists(path) for path in made)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "http://localhost"}, "redis://"),
        ({"max_pending": 0}, "max_pending = 0: expected a number from 1"),
        ({"grace": -1}, "grace = -1: expected a number from 0"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RQExecutor(**options)


def test_the_url_is_not_shown_with_its_password() -> None:
    with pytest.raises(ConfigurationError) as raised:
        RQExecutor("http://me:secret@localhost")
    assert "secret" not in str(raised.value)
