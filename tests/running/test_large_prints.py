"""A job that prints much: what waits to be stored has bounds, what is stored is copied once, and nobody else waits."""

import sys
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

import pytest

from bgmiddleware import Channel, Job, JobCancelled, JobState, MemoryRegistry, Run
from bgmiddleware._capture import _output
from bgmiddleware._jobs import key_of
from bgmiddleware._running import call_function
from bgmiddleware._running import keeper as _keeper
from bgmiddleware.testing.registries import LONG, begun, done
from tests.kit.capturing import Kept, in_thread
from tests.running.test_keeper import SharedRegistry

KEY = key_of("one")
MIB = 1024 * 1024


def peak(function: Callable[[], object]) -> float:
    """Return how many MiB of memory *function* takes at most."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("large", ["x" * 40 * MIB, b"x" * 40 * MIB, "ä" * 20 * MIB], ids=["text", "bytes", "wide"])
def test_a_large_print_is_not_copied_as_a_whole(large: str | bytes) -> None:
    sizes: list[int] = []
    kept = Kept(lambda data: sizes.append(len(data)))

    def write() -> None:
        print("before")
        sys.stdout.write(large) if isinstance(large, str) else sys.stdout.buffer.write(large)
        print("after")

    assert peak(lambda: kept.run(write)) < 5
    kept.output.end()
    assert sum(sizes) == 40 * MIB + len("before\nafter\n")


@pytest.mark.parametrize("registry", [MemoryRegistry, SharedRegistry])
def test_a_large_print_takes_little_memory_on_its_way(registry: type[MemoryRegistry]) -> None:
    large = "x" * 40 * MIB
    with registry(max_output=100_000) as jobs:
        jobs.add(Job(KEY, "one"))
        run = Run(KEY, "one", jobs, call_function(lambda: print(large)), copy_context())
        assert peak(run) < 10
        assert (jobs.get(KEY).state, jobs.get(KEY).output_end) == (JobState.FINISHED, len(large) + 1)


class Stuck:
    """A store that is at work until it is let go."""

    def __init__(self) -> None:
        self.is_at_work = threading.Event()
        self.go = threading.Event()
        self.chunks: list[bytes] = []

    def __call__(self, data: bytes) -> None:
        self.is_at_work.set()
        assert self.go.wait(LONG)
        self.chunks.append(data)


@pytest.mark.parametrize(("size", "most"), [(1, 50_000), (3000, 16 * MIB), (100_000, 16 * MIB), (5 * MIB, 16 * MIB)])
def test_who_writes_while_somebody_else_stores_waits_when_the_backlog_is_long(
    size: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_output, "_LONGEST_WAIT", LONG)
    store = Stuck()
    kept = Kept(store)
    kept.output.out("first")
    drain = threading.Thread(target=lambda: kept.output.drain())
    drain.start()
    assert store.is_at_work.wait(LONG)
    written = [0]

    def write() -> None:
        while written[0] < most:
            sys.stdout.write("x" * size)
            written[0] += size

    writer = threading.Thread(target=lambda: kept.run(write))
    writer.start()
    writer.join(0.3)
    assert writer.is_alive()
    assert written[0] < most / 2
    store.go.set()
    writer.join(LONG)
    drain.join(LONG)
    kept.output.end()
    assert sum(map(len, store.chunks)) == len("first") + written[0]


def test_who_writes_does_not_wait_for_ever_for_who_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be a ``__del__`` in a thread that has a lock which who stores needs."""
    monkeypatch.setattr(_output, "_LONGEST_WAIT", 0.01)
    store = Stuck()
    kept = Kept(store)
    kept.output.out("first")
    drain = threading.Thread(target=lambda: kept.output.drain())
    drain.start()
    assert store.is_at_work.wait(LONG)
    in_thread(lambda: kept.run(lambda: [print("x" * MIB) for _ in range(8)]))
    store.go.set()
    drain.join(LONG)
    kept.output.end()
    assert sum(map(len, store.chunks)) == len("first") + 8 * (MIB + 1)


def test_a_status_does_not_wait_while_somebody_else_stores() -> None:
    store = Stuck()
    kept = Kept(store)
    with MemoryRegistry() as registry:
        registry.add(Job(KEY, "one"))
        registry.claim(KEY, "runner")
        registry.attach(KEY, kept.output)
        kept.output.out("first")
        drain = threading.Thread(target=lambda: kept.output.drain())
        drain.start()
        assert store.is_at_work.wait(LONG)
        in_thread(lambda: registry.get(KEY))
        in_thread(lambda: registry.wait(KEY, 0, 0.01))
        store.go.set()
        drain.join(LONG)


class SlowRegistry(SharedRegistry):
    """A registry that takes output more slowly than a job prints it."""

    def append(self, key: str, channel: Channel, offset: int, data: bytes, **more: Any) -> int:
        time.sleep(0.001)
        return super().append(key, channel, offset, data, **more)


def flood(registry: SharedRegistry, is_enough: Callable[[], object]) -> Any:
    """Run a job that prints without pause until it *is_enough*, or is cancelled; return what says how it ended."""

    def work() -> None:
        until = time.monotonic() + LONG
        while not is_enough() and time.monotonic() < until:
            print("x" * 10_000)

    registry.add(Job(KEY, "one"))
    return begun(Run(KEY, "one", registry, call_function(work), copy_context()))


def test_a_lease_is_renewed_while_a_job_prints_without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_keeper, "RENEW_EVERY", 0.01)
    with SlowRegistry() as registry:
        done(flood(registry, lambda: registry.calls.count("renew") > 5))
        assert registry.calls.count("renew") > 5
        assert registry.get(KEY).state is JobState.FINISHED


def test_a_cancel_is_heard_while_a_job_prints_without_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_keeper, "_LOOK_EVERY", 0.01)
    with SlowRegistry() as registry:
        run = flood(registry, lambda: False)
        while registry.get(KEY).output_end < MIB:
            registry.wait(KEY, MIB - 1, 0.1)
        registry.request_cancel(KEY)
        done(run)
        assert registry.get(KEY).state is JobState.CANCELLED


def test_a_shutdown_ends_a_job_that_prints_without_pause() -> None:
    with SlowRegistry() as registry:
        over = threading.Event()

        def work() -> None:
            try:
                while True:
                    print("x" * 10_000)
            except JobCancelled:
                over.set()
                raise

        registry.add(Job(KEY, "one"))
        run = Run(KEY, "one", registry, call_function(work), copy_context())
        running = begun(run)
        while registry.get(KEY).output_end < MIB:
            registry.wait(KEY, MIB - 1, 0.1)
        in_thread(lambda: run.abandon("server shut down"))
        assert over.wait(LONG)
        done(running)
        assert registry.get(KEY).reason == "server shut down"
