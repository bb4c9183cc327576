"""Jobs that wait in the memory of a process, where processes share the registry."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, JobState, ThreadExecutor, marks
from bgmiddleware._jobs import key_of
from bgmiddleware._running import waiting as _waiting
from bgmiddleware._starting import starter as _starting
from bgmiddleware.registries.base import Renewal
from bgmiddleware.registries.spool import SpoolRegistry
from tests.kit.apps import Stage
from tests.kit.clients import InProcess, ended, start

LEASE = 0.5


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BackgroundMiddleware]:
    for module in (_starting, _waiting):
        monkeypatch.setattr(module, "LEASE", LEASE)
    monkeypatch.setattr(_waiting, "RENEW_EVERY", LEASE / 10)
    registry = SpoolRegistry(tmp_path / "jobs")
    with BackgroundMiddleware(
        Stage(), when=marks.always, registry=registry, executor=ThreadExecutor(max_workers=1)
    ) as site:
        yield site


def key(target: str) -> str:
    return key_of(target.rpartition("_t=")[2])


def renewals(site: BackgroundMiddleware, target: str, number: int) -> None:
    """Wait until the wait of a job was renewed so many times."""
    seen = set()
    while len(seen) <= number:
        job = site.registry.wait(key(target), 0, LEASE / 20)
        assert job.state is JobState.PENDING
        seen.add(job.expires_at)


def renewing(site: BackgroundMiddleware) -> threading.Thread:
    """Return the thread that renews waits; those of other tests may end yet."""
    held = site._starter.waiting._held[os.getpid()]
    (thread,) = [thread for thread in threading.enumerate() if getattr(thread, "_target", None) == held._renew]
    return thread


def test_a_job_may_wait_for_many_leases(site: BackgroundMiddleware) -> None:
    client = InProcess(site)
    first, second = (start(client, f"/slow?{number}") for number in (1, 2))
    renewals(site, second, 20)
    site.app.go(3)  # type: ignore[attr-defined]
    assert [ended(site, target).state for target in (first, second)] == [JobState.FINISHED] * 2


def test_nobody_is_renewed_when_nobody_waits(site: BackgroundMiddleware) -> None:
    client = InProcess(site)
    for _ in range(2):
        first, second = (start(client, f"/slow?{number}") for number in (1, 1))
        renewals(site, second, 2)
        thread = renewing(site)
        site.app.go(2)  # type: ignore[attr-defined]
        for target in (first, second):
            assert ended(site, target).state is JobState.FINISHED
        thread.join(30)
        assert not thread.is_alive()


def test_a_registry_that_is_away_is_asked_again(site: BackgroundMiddleware, tmp_path: Path) -> None:
    client = InProcess(site)
    _, second = (start(client, "/slow?1") for _ in range(2))
    renewals(site, second, 1)
    (tmp_path / "jobs").rename(tmp_path / "elsewhere")
    thread = renewing(site)
    thread.join(LEASE / 5)
    assert thread.is_alive()
    (tmp_path / "elsewhere").rename(tmp_path / "jobs")
    renewals(site, second, 2)
    site.app.go(2)  # type: ignore[attr-defined]
    assert ended(site, second).state is JobState.FINISHED


def test_a_job_that_nobody_claims_and_nobody_holds_any_more_is_let_go(site: BackgroundMiddleware) -> None:
    client = InProcess(site)
    first, second = (start(client, "/slow?1") for _ in range(2))
    renewals(site, second, 1)
    thread = renewing(site)
    site.registry.request_cancel(key(second))
    site.registry.discard(key(second))
    site.app.go(1)  # type: ignore[attr-defined]
    ended(site, first)
    thread.join(30)
    assert not thread.is_alive()


def test_at_the_end_nobody_is_renewed_any_more(site: BackgroundMiddleware, monkeypatch: pytest.MonkeyPatch) -> None:
    client = InProcess(site)
    first, second = (start(client, "/slow?1") for _ in range(2))
    renewals(site, second, 1)
    thread = renewing(site)
    site.shutdown(0.0)
    renew, asked = site.registry.renew, []

    def noting(key: str, runner: str, **more: Any) -> Renewal:
        asked.append(runner)
        return renew(key, runner, **more)

    monkeypatch.setattr(site.registry, "renew", noting)
    thread.join(30)
    assert not thread.is_alive()
    assert "" not in asked
    site.app.go(1)  # type: ignore[attr-defined]
    assert [ended(site, target).reason for target in (first, second)] == ["server shut down"] * 2
