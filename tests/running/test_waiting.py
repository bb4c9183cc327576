"""Jobs that wait in the memory of a process, where processes share the registry."""

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, JobState, RegistryError, ThreadExecutor, marks
from bgmiddleware._jobs import key_of
from bgmiddleware._running import Run
from bgmiddleware._running import keeper as _keeper
from bgmiddleware._running import waiting as _waiting
from bgmiddleware._starting import starter as _starting
from bgmiddleware.executors import _local
from bgmiddleware.registries.base import END
from bgmiddleware.registries.spool import SpoolRegistry
from bgmiddleware.testing.registries import LONG
from tests.kit.apps import Stage
from tests.kit.clients import InProcess, ended, start

LEASE = 30.0  # nothing takes so long
RENEW_EVERY = 0.05


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BackgroundMiddleware]:
    for module in (_starting, _waiting):
        monkeypatch.setattr(module, "LEASE", LEASE)
    monkeypatch.setattr(_waiting, "RENEW_EVERY", RENEW_EVERY)
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
        job = site.registry.wait(key(target), 0, RENEW_EVERY / 2)
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


def noted(monkeypatch: pytest.MonkeyPatch, registry: Any, name: str, before: Callable[[], object]) -> None:
    """Have *before* called before each call of a function of a registry."""
    function = getattr(registry, name)

    def call(*arguments: Any, **options: Any) -> Any:
        before()
        return function(*arguments, **options)

    monkeypatch.setattr(registry, name, call)


def test_one_call_renews_all_that_wait(site: BackgroundMiddleware, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    client = InProcess(site)
    targets = [start(client, f"/slow?{number}") for number in (1, *[0] * 20)]
    for name in ("hold", "renew"):
        noted(monkeypatch, site.registry, name, lambda name=name: calls.append(name))
    renewals(site, targets[-1], 5)
    assert 4 <= calls.count("hold") < 5 * len(targets)
    assert "renew" not in calls  # that is the one that runs, each five seconds
    site.app.go(1)  # type: ignore[attr-defined]
    assert {ended(site, target).state for target in targets} == {JobState.FINISHED}


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
    thread.join(2 * RENEW_EVERY)
    assert thread.is_alive()
    (tmp_path / "elsewhere").rename(tmp_path / "jobs")
    renewals(site, second, 2)
    site.app.go(2)  # type: ignore[attr-defined]
    assert ended(site, second).state is JobState.FINISHED


@pytest.mark.parametrize("error", [RegistryError("away"), ValueError("I/O operation on closed file")], ids=repr)
def test_a_claim_that_fails_for_long_is_tried_again(
    site: BackgroundMiddleware, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(_keeper, "_PATIENCE", 0.01)
    monkeypatch.setattr(_local, "_LOOK_EVERY", 0.01)
    failures = iter([error] * 20)

    def fail() -> None:
        for failure in failures:
            raise failure

    noted(monkeypatch, site.registry, "claim", fail)
    target = start(InProcess(site), "/slow?0")
    assert ended(site, target).state is JobState.FINISHED


class Clock:
    ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def stood_still(tmp_path: Path, **options: Any) -> tuple[BackgroundMiddleware, Clock]:
    """Return a site whose process can be as if it had stood still: its clock goes ahead."""
    clock = Clock()
    registry = SpoolRegistry(tmp_path / "jobs", clock=clock)
    executor = ThreadExecutor(max_workers=1, drain=0.0)
    return BackgroundMiddleware(Stage(), when=marks.always, registry=registry, executor=executor, **options), clock


@pytest.mark.parametrize("limits", [{}, {"limit_per_mark": {"/*": 1}}], ids=["", "limited"])
def test_what_waited_while_its_process_stood_still_is_run(tmp_path: Path, limits: dict[str, Any]) -> None:
    site, clock = stood_still(tmp_path, **limits)
    with site:
        client = InProcess(site)
        targets = [start(client, f"/slow?{number}") for number in (1, 0, 0)]
        clock.ahead += 16
        site.app.go(1)  # type: ignore[attr-defined]
        until = time.monotonic() + LONG  # what reads as lost meanwhile may be revived
        while {site.registry.get(key(target)).state for target in targets} != {JobState.FINISHED}:
            assert time.monotonic() < until
            site.registry.wait(key(targets[-1]), END, 0.05)


def test_what_was_given_up_for_good_while_its_process_stood_still_stays_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_waiting, "RENEW_EVERY", LONG)  # or the process might say in between that it is there
    site, clock = stood_still(tmp_path)
    with site:
        client = InProcess(site)
        first, second = (start(client, f"/slow?{number}") for number in (1, 0))
        site.app.entered()  # type: ignore[attr-defined]  # the first is claimed: a claim behind the clock's step would revive both
        clock.ahead += 16
        assert site.registry.evict().lost >= 1
        site.app.go(1)  # type: ignore[attr-defined]
        third = start(client, "/slow?0")
        assert ended(site, third).state is JobState.FINISHED
        assert (ended(site, second).state, ended(site, second).reason) == (JobState.LOST, "never started")
        assert ended(site, first).state in (JobState.FINISHED, JobState.LOST)


class Dropping(ThreadExecutor):
    """An executor that forgets what it has taken."""

    def submit(self, run: Run) -> None:
        pass


def test_a_job_that_its_executor_dropped_is_lost_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_waiting, "RENEW_EVERY", RENEW_EVERY)
    registry = SpoolRegistry(tmp_path / "jobs")
    with BackgroundMiddleware(Stage(), when=marks.always, registry=registry, executor=Dropping()) as site:
        target = start(InProcess(site), "/slow?0")
        gc.collect()
        job = ended(site, target)
        assert (job.state, job.reason) == (JobState.LOST, "it was dropped before it began")


def test_where_there_is_no_room_for_the_thread_that_renews_the_job_is_refused(
    site: BackgroundMiddleware, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "bgmiddleware-waiting":
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    answer = InProcess(site).request("GET", "/slow?0")
    assert answer.status == 503
    assert site.registry.jobs() == []


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
    asked: list[str] = []
    noted(monkeypatch, site.registry, "hold", lambda: asked.append("hold"))
    thread.join(30)
    assert not thread.is_alive()
    assert asked == []
    site.app.go(1)  # type: ignore[attr-defined]
    assert [ended(site, target).reason for target in (first, second)] == ["server shut down"] * 2
