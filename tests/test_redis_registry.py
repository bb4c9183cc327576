"""The registry in Redis: the contract, and its own: a server that is slow, full, gone, or not as it should be."""

import itertools
from collections.abc import Callable, Iterator

import pytest
from redis_server import RedisServer, redis_server, redis_server_of_module  # noqa: F401  # fixtures
from registry_contract import Clock
from shared_registry_contract import SharedRegistryContract

from tests.conftest import needs

needs("redis")

from bgmiddleware.registries.redis import RedisRegistry  # noqa: E402

Make = Callable[..., RedisRegistry]

_numbers = itertools.count()


def making(server: RedisServer, **own_settings: object) -> Iterator[Make]:
    made: list[RedisRegistry] = []

    def make(**settings: object) -> RedisRegistry:
        chosen = {"url": server.url, "prefix": f"test-{next(_numbers)}", **own_settings, **settings}
        made.append(RedisRegistry(**chosen))
        return made[-1]

    yield make
    for registry in made:
        registry.close()


class TestRedisRegistry(SharedRegistryContract):
    @pytest.fixture
    def location(self, redis_server: RedisServer) -> str:  # noqa: F811
        return redis_server.url

    @pytest.fixture
    def make(self, redis_server: RedisServer, clock: Clock) -> Iterator[Make]:  # noqa: F811
        yield from making(redis_server, clock=clock)
