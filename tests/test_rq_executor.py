"""Jobs in the workers of RQ: the contract, and what is particular. Real workers, a real Redis."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import executor_app
import pytest
from engine_worker import Worker, working
from executor_contract import ExecutorContract, Scene, short_lease  # noqa: F401  # a fixture
from redis_server import RedisServer, redis_server, redis_server_of_module  # noqa: F401  # fixtures

from tests.conftest import needs

needs("rq")

READY = "Listening on"


class TestRQExecutor(ExecutorContract):
    kind = "bgmiddleware.executors.rq:RQExecutor"
    drains = False
    server: ClassVar[RedisServer]

    @pytest.fixture(autouse=True)
    def at_server(self, redis_server_of_module: RedisServer) -> None:  # noqa: F811
        type(self).server = redis_server_of_module

    @pytest.fixture(scope="class")
    def shared_site(
        self,
        redis_server_of_module: RedisServer,  # noqa: F811
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Iterator[Scene]:
        """The same workers for all tests that need no others: they take long to begin."""
        type(self).server = redis_server_of_module
        with self.scene(tmp_path_factory.mktemp("site")) as scene:
            yield scene

    @pytest.fixture
    def site(self, shared_site: Scene) -> Scene:
        return shared_site

    def options(self, *, max_workers: int, **limits: Any) -> Mapping[str, Any]:
        return {"url": self.server.url, **limits}

    def registry(self, tmp_path: Path) -> str:
        return self.server.url

    @contextlib.contextmanager
    def workers(self, count: int) -> Iterator[None]:
        with working(executor_app.NAME, ready=READY, count=count):
            yield

    def test_where_the_app_cannot_be_imported_the_job_fails_and_says_why(self, tmp_path: Path) -> None:
        """It cannot: without the app a worker knows no registry. It does not start, and the job is there for others."""
        with (
            pytest.raises(AssertionError, match="RuntimeError: this app cannot be imported"),
            self.scene(tmp_path, broken=True),
        ):
            pass
