"""Whether a process can take jobs, as load balancers and Kubernetes ask."""

import json
import threading
from typing import Any

import pytest

from bgmiddleware import (
    BackgroundMiddleware,
    ConfigurationError,
    Job,
    MemoryRegistry,
    RegistryError,
    ThreadExecutor,
    marks,
)
from bgmiddleware._jobs import key_of
from bgmiddleware._serving import health
from bgmiddleware.registries.base import History
from bgmiddleware.testing.clock import Clock
from tests.kit.clients import InProcess, start


class Registry(MemoryRegistry):
    """Counts how often it is looked at, and is away if told so."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.looks = 0
        self.is_away = False

    def history(self, since: float) -> History:
        self.looks += 1
        if self.is_away:
            raise RegistryError("away")
        return super().history(since)


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"of the app"]


def asked(site: BackgroundMiddleware) -> tuple[int, dict[str, Any]]:
    reply = InProcess(site).request("GET", "/_health")
    return reply.status, json.loads(reply.body)


def test_a_process_that_can_take_jobs_is_well() -> None:
    clock = Clock()
    registry = Registry(clock=clock)
    with BackgroundMiddleware(app, registry=registry, health="/_health") as site:
        registry.add(Job(key_of("one"), "one"))
        registry.add(Job(key_of("two"), "two"))
        registry.add(Job(key_of("three"), "three"))
        assert registry.claim(key_of("one"), "runner")
        clock.advance(12.5)
        queue = {"waiting": 2, "running": 1, "oldest": 12.5}
        told = {"status": "ok", "executor": True, "registry": True, "workers": None, "queue": queue}
        assert asked(site) == (200, told)
        reply = InProcess(site).request("HEAD", "/_health")
        assert (reply.status, dict(reply.headers)["Cache-Control"]) == (200, "no-store, no-transform")
        assert InProcess(site).request("POST", "/_health").status == 405
        assert InProcess(site).request("GET", "/_health/x").body == b"of the app"


def test_a_process_whose_registry_is_away_is_not_well_and_then_well_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_FRESH", 0.0)
    monkeypatch.setattr(health, "_TIMES", 0)
    registry = Registry()
    with BackgroundMiddleware(app, registry=registry, health="/_health") as site:
        registry.is_away = True
        told = {"status": "unavailable", "executor": True, "registry": False, "workers": None, "queue": None}
        assert asked(site) == (503, told)
        registry.is_away = False
        assert asked(site)[0] == 200


def test_a_process_that_shuts_down_is_not_well_while_its_jobs_end() -> None:
    going = threading.Event()

    def waiting(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        going.wait()
        return app(environ, start_response)

    executor = ThreadExecutor()
    site = BackgroundMiddleware(waiting, when=marks.path("/x"), executor=executor, health="/_health")
    start(InProcess(site), "/x")
    assert asked(site)[0] == 200
    ending = threading.Thread(target=site.shutdown, args=(60.0,))
    ending.start()
    while executor.takes_jobs:
        ending.join(0.01)
    status, told = asked(site)
    going.set()
    ending.join()
    assert (status, told["executor"], told["registry"]) == (503, False, True)
    site.close()


def test_health_is_looked_at_once_a_second_however_many_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "_FRESH", 3600.0)
    registry = Registry()
    with BackgroundMiddleware(app, registry=registry, health="/_health") as site:
        for _ in range(20):
            assert asked(site)[0] == 200
    assert registry.looks == 1


def test_health_is_answered_where_all_requests_stay_in_the_foreground() -> None:
    with BackgroundMiddleware(app, health="/_health", foreground=True) as site:
        assert asked(site)[0] == 200


def test_a_path_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"^health = 'x': "):
        BackgroundMiddleware(app, health="x")
