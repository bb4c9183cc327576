"""Jobs in workers of Celery: the contract, and what is particular. Real workers, by Redis and by RabbitMQ."""

import base64
import contextlib
import itertools
import json
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
