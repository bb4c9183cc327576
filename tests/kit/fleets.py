"""Real workers of RQ and of Celery for the tests of what clients see: once for a module, as to begin them takes long.
They run the app of the test at hand.

``from fleets import celery_fleet, rq_fleet`` gives a module the fixtures; it needs those of ``redis_server`` too.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import JobState, Registry, ThreadExecutor
from bgmiddleware.executors import open_executor
from bgmiddleware.registries import open_registry
from bgmiddleware.registries.base import END
from bgmiddleware.testing.executor_site import WAIT
from tests.conftest import needs
from tests.executors.engine_contract import new_queue
from tests.executors.engine_worker import working
from tests.executors.far_play import NAME, VARIABLE, far_away
from tests.kit.redis_server import RedisServer

JOBS_AT_A_TIME = 2


class Fleet:
    """The workers of an *executor*, which take jobs from its usual queue; their app is what the file *told* says."""

    def __init__(self, executor: str, registry: str, told: Path) -> None:
        self.executor = executor
        self.registry = registry
        self.told = told

    def run(self, stack: contextlib.ExitStack, app: Any, threads: ThreadExecutor, like: Registry) -> dict[str, Any]:
        """Let the workers run *app* until the end of the *stack*; return the executor and the registry for that."""
        stack.callback(self._settle)
        stack.enter_context(far_away(app, like, self.registry, self.told))
        limits: dict[str, Any] = {"max_pending": threads.max_pending}
        if not threads.max_pending:
            limits = {"max_pending": 1, "queue": new_queue()}  # so the first one leaves no place for another
        return {
            "registry": open_registry(self.registry, ttl=like.ttl, clock=like.clock),
            "executor": open_executor(self.executor, **limits),
        }

    def _settle(self) -> None:
        """Wait for the jobs of a test, and forget them."""
        with open_registry(self.registry) as registry:
            for job in registry.jobs():
                if registry.request_cancel(job.key) is JobState.RUNNING:
                    assert registry.wait(job.key, END, WAIT).state.ended
                registry.discard(job.key)


@pytest.fixture(scope="module")
def rq_fleet(redis_server_of_module: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    needs("rq")
    told = tmp_path_factory.mktemp("rq") / "told"
    fleet = Fleet(f"rq:{redis_server_of_module.url}", _registry(redis_server_of_module, 1), told)
    with _working(fleet, ready="Listening on", count=JOBS_AT_A_TIME):
        yield fleet


@pytest.fixture(scope="module")
def celery_fleet(redis_server_of_module: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    needs("celery")
    told = tmp_path_factory.mktemp("celery") / "told"
    options = ("--loglevel", "INFO", "--without-mingle", "--without-gossip", "--concurrency", str(JOBS_AT_A_TIME))
    fleet = Fleet("celery:tests.executors.celery_app:app", _registry(redis_server_of_module, 2), told)
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("CELERY_BROKER_URL", redis_server_of_module.url)
        with _working(fleet, *options, ready=" ready.", count=1):
            yield fleet


def _registry(server: RedisServer, number: int) -> str:
    return f"redis://127.0.0.1:{server.port}/{number}"


@contextlib.contextmanager
def _working(fleet: Fleet, *options: str, ready: str, count: int) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        environ = stack.enter_context(pytest.MonkeyPatch.context())
        told = {"url": fleet.registry, "executor": fleet.executor, "file": str(fleet.told)}
        environ.setenv(VARIABLE, json.dumps(told))
        stack.enter_context(working(NAME, *options, ready=ready, count=count))
        environ.undo()  # it is for them only
        yield
