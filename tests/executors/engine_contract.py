"""What an executor must do whose jobs run in workers of an engine: the contract, and what such executors share.

Real workers, a real Redis. A module with a subclass imports the fixtures of ``redis_server`` too.
"""

import contextlib
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bgmiddleware import BackgroundMiddleware, ConfigurationError, Executor, JobState, marks, owners
from bgmiddleware._ground.loading import loaded
from bgmiddleware._jobs import key_of
from bgmiddleware.registries import open_registry
from bgmiddleware.testing import executor_site
from bgmiddleware.testing.executor_site import go
from bgmiddleware.testing.executors import ProcessContract, Scene
from tests.executors.engine_worker import Worker, working
from tests.kit.clients import InProcess, ended, start
from tests.kit.redis_server import RedisServer

_numbers = itertools.count()


def new_queue() -> str:
    """Return the name of a queue that no test has used."""
    return f"test-{next(_numbers)}"


def unused(environ: Any, start_response: Any) -> Any:
    raise AssertionError("the app is called by workers only")


def site_over(
    executor: Executor, registry: str, settings: Mapping[str, Any] = {}, **options: Any
) -> BackgroundMiddleware:
    """Return a site whose jobs nobody runs."""
    return BackgroundMiddleware(
        unused, when=marks.always, registry=open_registry(registry, **options), executor=executor, **settings
    )


class StandingClock:
    """A clock that stands still, but for what a test adds."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self._begun = time.time()

    def __call__(self) -> float:
        return self._begun + self.ahead


def tells_of_missing_workers(site: BackgroundMiddleware, clock: StandingClock, log: pytest.LogCaptureFixture) -> None:
    """Check what clients and the log are told of a job of *site*, which nobody runs."""
    client = InProcess(site)
    waits, other = (start(client, "/report") for _ in range(2))

    def queue() -> Any:
        return client.request("GET", waits, accept="application/json").json["queue"]

    clock.ahead = 29.0
    assert queue() == {"position": 1}
    assert log.messages == []

    clock.ahead = 31.0
    assert queue() == {"position": 1, "no_worker_for": 31.0}
    page = client.request("GET", waits, accept="text/html").text
    assert "No worker has been seen for 31 s" in page
    events = _first_status(client, waits)
    assert events["queue"] == {"position": 1, "no_worker_for": 31.0}
    (message,) = log.messages
    assert re.match(r"no worker has been seen for 31 s, so jobs of the \w+Executor wait\. Start one: ", message)

    # One comes, and takes the other job.
    assert site.registry.claim(key_of(other.rpartition("=")[2]), "a worker", lease=600.0)
    clock.ahead = 40.0
    assert queue() == {"position": 1}
    assert site.registry.finish(key_of(other.rpartition("=")[2]), "a worker", JobState.FINISHED)
    clock.ahead = 65.0
    assert queue() == {"position": 1}
    clock.ahead = 75.0
    assert queue() == {"position": 1, "no_worker_for": 35.0}


def _first_status(client: InProcess, target: str) -> Any:
    with client.stream("GET", target, accept="text/event-stream") as (_, _, chunks):
        for chunk in chunks:
            found = re.search(rb"event: status\r?\ndata: (.*)", chunk)
            if found:
                return json.loads(found[1])
    raise AssertionError("no event says a status")


class EngineContract(ProcessContract):
    """Subclasses say besides what a worker says when it is ready, and how it is begun."""

    drains = False
    ready: ClassVar[str]
    server: ClassVar[RedisServer]
    shared_workers: ClassVar[list[Worker]]
    begun: list[Worker]
    """Those of the current scene."""

    def broker(self, url: str) -> Mapping[str, Any]:
        """Return the arguments of an executor with the broker at a URL."""
        raise NotImplementedError

    def name(self) -> str:
        """Return what ``--executor`` is told."""
        raise NotImplementedError

    def workers_for(self, count: int) -> tuple[int, list[str]]:
        """Return how many workers run *count* jobs at a time, and their options."""
        raise NotImplementedError

    def deliver_again(self, site: Scene, key: str) -> None:
        """Let the message of a running job come once more; return when a worker has had it."""
        raise NotImplementedError

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _at_server(cls, redis_server_of_module: RedisServer) -> Iterator[None]:
        cls.server = redis_server_of_module
        with pytest.MonkeyPatch.context() as environ:
            environ.setenv("CELERY_BROKER_URL", redis_server_of_module.url)
            yield

    @pytest.fixture(scope="class")
    @classmethod
    def shared_site(cls, _at_server: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
        """The same workers for all tests that need no others: they take long to begin."""
        contract = cls()
        with contract.scene(tmp_path_factory.mktemp("site")) as scene:
            cls.shared_workers = contract.begun
            yield scene

    @pytest.fixture
    def site(self, shared_site: Scene) -> Scene:
        return shared_site

    def options(self, *, max_workers: int, **limits: Any) -> Mapping[str, Any]:
        return {**self.broker(self.server.url), "queue": new_queue(), **limits}

    def registry(self, tmp_path: Path) -> str:
        return f"redis://127.0.0.1:{self.server.port}/{1 + next(_numbers)}"

    @contextlib.contextmanager
    def workers(self, count: int) -> Iterator[None]:
        number, options = self.workers_for(count)
        config = executor_site.config()
        fallback = ["--registry", config["registry"], "--executor", self.name()]
        fallback += ["--queue", config["executor_options"]["queue"]]
        with working(executor_site.NAME, *options, ready=self.ready, count=number, before=fallback) as self.begun:
            yield

    def said(self, is_so: Callable[[str], bool]) -> None:
        """Wait until something is so of what the shared workers said."""
        self.shared_workers[0].until(lambda: is_so("".join(worker.said() for worker in self.shared_workers)))

    def executor(self, url: str = "", **options: Any) -> Executor:
        """Return one in this process, whose queue nobody takes from."""
        kind: Callable[..., Executor] = loaded("executor", self.kind)
        return kind(**self.broker(url or self.server.url), queue=new_queue(), **options)

    # What is particular.

    def test_a_message_that_comes_twice_runs_once(self, site: Scene) -> None:
        target = site.start("/steps")
        step = site.arrival()
        self.deliver_again(site, site.running(target).key)
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
            (worker,) = self.begun
            worker.kill_tree()
            job = site.ended(target)
            assert (job.state, job.reason) == (JobState.LOST, "its runner vanished")
            assert site.output(target) == b"line 1\n"

    def test_those_that_wait_for_their_own_limit_leave_places_for_others(self, tmp_path: Path) -> None:
        limits = {"limit_per_owner": 1, "owner": owners.header("X-User")}
        with site_over(self.executor(max_pending=20), self.registry(tmp_path), limits) as app:
            client = InProcess(app)
            hers = [start(client, "/reports", x_user="ann") for _ in range(1 + 2)]
            refused = client.request("POST", "/reports", x_user="ann")
            assert (refused.status, refused["Retry-After"]) == (503, "5")
            assert refused.text == "Too busy: of one owner 1 may run at a time, and 3 are waiting.\n"
            assert len(app.registry.jobs()) == len(hers)
            for number in range(10):
                start(client, "/reports", x_user=f"bob {number}")
            client.request("DELETE", hers[0], x_user="ann")
            start(client, "/reports", x_user="ann")
            assert client.request("POST", "/reports", x_user="ann").status == 503

    def test_while_the_broker_is_away_a_request_is_refused_and_leaves_no_job(self, tmp_path: Path) -> None:
        with site_over(self.executor("redis://127.0.0.1:1/0"), self.registry(tmp_path)) as app:
            reply = InProcess(app).request("POST", "/reports")
            assert reply.status == 503
            assert int(reply["Retry-After"]) > 0
            assert app.registry.jobs() == []

    def test_when_the_broker_is_back_requests_are_taken_again(self, tmp_path: Path) -> None:
        with RedisServer() as broker, site_over(self.executor(broker.url), f"spool:{tmp_path}/jobs") as app:
            client = InProcess(app)
            assert client.request("POST", "/reports").status == 303
            broker.kill()
            assert client.request("POST", "/reports").status == 503
            broker.start()
            assert client.request("POST", "/reports").status == 303
            assert len(app.registry.jobs()) == 2

    def test_a_job_whose_message_is_lost_never_started(self, tmp_path: Path) -> None:
        with site_over(self.executor(), self.registry(tmp_path), pending_ttl=0.1) as app:
            job = ended(app, start(InProcess(app), "/reports"))
            assert (job.state, job.reason) == (JobState.LOST, "never started")

    def test_after_its_shutdown_it_takes_no_more(self, tmp_path: Path) -> None:
        with site_over(self.executor(), self.registry(tmp_path)) as app:
            app.shutdown()
            assert InProcess(app).request("POST", "/reports").status == 503

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"max_pending": 0}, "max_pending = 0: expected a whole number from 1"),
            ({"max_pending": 1.5}, "max_pending = 1.5: expected a whole number from 1"),
            ({"grace": -1}, "grace = -1: expected a number from 0"),
        ],
    )
    def test_a_number_that_cannot_be_is_refused(self, options: dict[str, Any], message: str) -> None:
        kind: Callable[..., Executor] = loaded("executor", self.kind)
        with pytest.raises(ConfigurationError, match=message):
            kind(**self.broker(self.server.url), **options)

    def test_a_worker_whose_app_cannot_be_imported_ends_and_says_how_it_would_not(self, tmp_path: Path) -> None:
        (tmp_path / "broken.py").write_text("raise RuntimeError('it is broken')")
        worker = Worker("broken:app", ready="", path=str(tmp_path))
        worker.until(lambda: False)
        said = worker.said()
        assert worker.close() == 1
        assert "Traceback (most recent call last):" in said
        assert said.endswith(
            "RuntimeError: it is broken\n"
            "Its jobs wait. To let them fail with this traceback, give --registry, --executor and --queue.\n"
        )
