"""What is due is evicted by time, whichever registry it is: in small steps, by a thread that holds no registry."""

import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import Job, JobState, MemoryRegistry, Registry
from bgmiddleware.registries import _housekeeping, open_registry, spool
from bgmiddleware.registries._housekeeping import House, house
from bgmiddleware.testing.clock import Clock
from bgmiddleware.testing.registries import KEY, LONG, added, ended
from tests.kit.redis_server import redis_server, redis_server_of_module

__all__ = ["redis_server", "redis_server_of_module"]

Make = Callable[..., Registry]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["memory", "spool", pytest.param("redis", marks=pytest.mark.everything)])
def make(request: pytest.FixtureRequest, clock: Clock, tmp_path: Path) -> Iterator[Make]:
    """Make a registry; there is one for a test."""
    location = {"memory": "memory:", "spool": f"spool:{tmp_path / 'jobs'}"}.get(request.param, "")
    if not location:
        location = request.getfixturevalue("redis_server").url
    with ExitStack() as stack:

        def make(**settings: Any) -> Registry:
            return stack.enter_context(open_registry(location, clock=clock, **settings))

        yield make


def test_what_is_due_is_forgotten_by_time_and_then_no_thread_is_left(
    make: Make, clock: Clock, housekeeping: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "_CLEAN_UP_EVERY", 0.1)  # else the last step comes ten seconds later
    registry = make(ttl=60.0)
    registry.tidy_every = 0.01
    tidied, tidy = threading.Event(), registry.tidy

    def tells() -> float | None:
        again = tidy()
        tidied.set()
        return again

    registry.tidy = tells  # type: ignore[method-assign]
    for name in "abc":
        ended(registry, name, output=b"x")
    added(registry, "waits")
    thread = house()._thread
    assert thread is not None
    clock.advance(60.0)
    while not registry.is_empty():  # what was never started is lost, and forgotten sixty seconds later
        tidied.clear()
        assert tidied.wait(LONG)
        clock.advance(60.0)
    thread.join(LONG)
    assert not thread.is_alive()
    assert registry.evict() == (0, 0)
    ended(registry, "later")  # and again
    clock.advance(60.0)
    while not registry.is_empty():
        tidied.clear()
        assert tidied.wait(LONG)


def test_of_much_that_is_due_a_few_are_forgotten_at_a_time_and_none_by_who_adds_a_job(make: Make, clock: Clock) -> None:
    registry = make(ttl=60.0)
    for number in range(230):
        ended(registry, f"job {number}")
    clock.advance(60.0)
    added(registry)
    again = []
    while (seconds := registry.tidy()) == 0.0:
        again.append(seconds)
        assert len(again) < 100
    assert len(again) >= 2
    assert 0 < seconds <= registry.tidy_every <= 60.0
    assert registry.evict() == (0, 0)
    assert [job.title for job in registry.jobs()] == ["one"]


def test_where_no_thread_could_tidy_who_adds_a_job_does(
    make: Make, clock: Clock, housekeeping: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(House, "_run", lambda house: None)
    registry = make(ttl=60.0)
    for number in range(15):
        ended(registry, f"job {number}")
    clock.advance(60.0)
    added(registry, "in time")
    monkeypatch.setattr(registry, "tidied_at", (os.getpid(), time.monotonic() - 31.0))
    added(registry, "late")
    assert registry.evict() == (0, 5)


def test_after_a_standstill_those_who_live_can_say_so_before_they_are_taken_for_lost(
    make: Make, clock: Clock, housekeeping: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = make(ttl=60.0)
    registry.tidy_every = 0.01
    tidied, go = threading.Event(), threading.Event()
    tidy = registry.tidy

    def stops() -> float | None:
        again = tidy()
        tidied.set()
        assert go.wait(LONG)
        return again

    registry.tidy = stops  # type: ignore[method-assign]
    registry.add(Job(KEY, "waits", process="p"), lease=15.0)
    assert tidied.wait(LONG)
    # The host sleeps for twenty seconds: by the clock that goes on meanwhile, the next step is that much too late.
    clock.advance(20.0)
    slept = [0.0]
    monkeypatch.setattr(_housekeeping, "_instant", lambda real=_housekeeping._instant: real() + slept[0])
    plan, planned = House._plan, threading.Event()

    def sleeps(house: House, reference: Any, each: Any, seconds: float) -> None:
        plan(house, reference, each, seconds)
        if seconds == 10.0:
            planned.set()
        slept[0] = 20.0

    monkeypatch.setattr(House, "_plan", sleeps)
    go.set()
    assert planned.wait(LONG)
    registry.hold("p", 15.0)
    assert registry.get(KEY).state is JobState.PENDING
    registry.close()


def test_making_a_registry_begins_no_thread_and_who_drops_or_closes_it_ends_it(make: Make, housekeeping: None) -> None:
    before = set(threading.enumerate())
    registry = make()
    assert set(threading.enumerate()) <= before  # those of other tests may end
    added(registry)
    thread = house()._thread
    assert thread is not None
    registry.close()
    thread.join(LONG)
    assert not thread.is_alive()


def test_a_child_of_a_fork_keeps_house_itself(make: Make, housekeeping: None) -> None:
    registry = make()
    added(registry)
    child = os.fork()
    if not child:
        try:
            house_of_parent = registry.tidied_at[0]
            registry.keep_house()
            assert registry.tidied_at[0] == os.getpid() != house_of_parent
            thread = house()._thread
            assert thread is not None
            assert thread.is_alive()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    registry.close()


LOCKED = """
    import os, signal, threading
    from bgmiddleware import Job, MemoryRegistry
    from bgmiddleware.registries._housekeeping import house
    registry, held = MemoryRegistry(), threading.Event()
    registry.add(Job("key", "title"))

    def hold():
        with house()._changed:
            held.set()
            threading.Event().wait()

    threading.Thread(target=hold, daemon=True).start()
    held.wait()
    print("held", flush=True)
"""


def said_by(script: str) -> tuple[int, str]:
    """Run a program; return its exit status and what it printed."""
    arguments = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_a_child_of_a_fork_drops_a_registry_though_the_thread_had_the_lock() -> None:
    child = f"""
    pid = os.fork()
    if not pid:
        signal.alarm({LONG:.0f})
        del registry
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os._exit(0)
    """
    assert said_by(LOCKED + child) == (0, "held\n0\n")


def test_a_process_ends_though_the_thread_had_the_lock() -> None:
    assert said_by(LOCKED + f"    signal.alarm({LONG:.0f})\n") == (0, "held\n")


def test_a_registry_that_is_dropped_while_the_lock_is_taken_is_let_go_later(housekeeping: None) -> None:
    held = [MemoryRegistry()]
    added(held[0])
    thread, changed, reference = house()._thread, house()._changed, weakref.ref(held[0])
    assert thread is not None
    other = threading.Thread(target=held.clear)
    with changed:
        other.start()
        other.join(LONG)
        assert reference() is None
    with MemoryRegistry() as another:
        house().take(another, 0.0)  # the thread looks
    thread.join(LONG)
    assert not thread.is_alive()
