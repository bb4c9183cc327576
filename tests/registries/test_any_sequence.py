"""Any sequence of calls, by any of the processes that share a registry: a simple model says what each of them gives."""

# ruff: noqa: F401, F811  # fixtures are imported by their names

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from bgmiddleware import (
    BadOffset,
    Channel,
    Fenced,
    Job,
    JobExists,
    JobExpired,
    JobNotFound,
    JobState,
    MemoryRegistry,
    Registry,
)
from bgmiddleware._jobs import key_of
from bgmiddleware.registries.spool import SpoolRegistry
from tests.kit.redis_server import RedisServer, redis_server, redis_server_of_module

NAMES = "abcde"
RUNNERS = ("one", "two")
TTL = 60.0
KEPT = 20
HEAD = KEPT // 2
MOST_KEPT = 2

names = st.sampled_from(NAMES)
runners = st.sampled_from(RUNNERS)
handles = st.integers(0, 1)
ends = st.sampled_from([state for state in JobState if state.ended])
leases = st.sampled_from([None, 5.0, 15.0])
channels = st.sampled_from(Channel)
from_the_end = st.sampled_from([0, 0, 0, 1, 7, -1])
chunks = st.integers(0, 45).flatmap(lambda size: st.binary(min_size=size, max_size=size))
PENDING, RUNNING, CANCELLED, LOST = JobState.PENDING, JobState.RUNNING, JobState.CANCELLED, JobState.LOST


@dataclass
class Model:
    """What is known of one job, as it is stored."""

    until: float | None
    number: int
    state: JobState = PENDING
    runner: str = ""
    lease: float | None = None
    asked_to_stop: bool = False
    cookies_taken: bool = False
    kept: bool = False
    bytes: dict[Channel, bytes] = field(default_factory=lambda: dict.fromkeys(Channel, b""))

    def seen(self, now: float) -> JobState:
        if self.state is RUNNING and self.lease is not None and now >= self.lease:
            return CANCELLED if self.asked_to_stop else LOST
        if self.state is PENDING and self.until is not None and now >= self.until:
            return LOST
        return self.state

    def has_expired(self, now: float) -> bool:
        return self.state.ended and self.until is not None and now >= self.until

    def end(self, state: JobState, now: float) -> None:
        self.state, self.until, self.lease = state, now + TTL, None
        self.bytes[Channel.REQUEST] = b""

    @property
    def dropped(self) -> tuple[int, int] | None:
        end = len(self.bytes[Channel.OUTPUT])
        return (HEAD, end - (KEPT - HEAD)) if end > KEPT else None


class Calls(RuleBasedStateMachine):
    """Two handles of one registry, and the model of both."""

    def __init__(self, opened: Callable[[Callable[[], float]], Callable[[], Registry]]) -> None:
        super().__init__()
        self.now = 1_700_000_000.0
        self.open = opened(lambda: self.now)
        self.registries = [self.open(), self.open()]
        self.jobs: dict[str, Model] = {}
        self.expired: set[str] = set()
        self.latest = self.now
        self.numbers = itertools.count()

    def teardown(self) -> None:
        for registry in self.registries:
            registry.close()

    def expects(self, name: str, call: Callable[[], Any], says: Callable[[Model], Any]) -> Any:
        """Call, and compare what it gives or raises with what the model says, or raises."""
        job = self.jobs.get(name)
        try:
            if job is None:
                raise JobExpired(name) if name in self.expired else JobNotFound(name)
            if job.has_expired(self.now):
                raise JobExpired(name)
            expected = says(job)
        except (JobNotFound, JobExpired, Fenced, BadOffset) as error:
            with pytest.raises(type(error)):
                call()
            return None
        given = call()
        assert given == expected
        return given

    @rule(by=handles, name=names)
    def adds(self, by: int, name: str) -> None:
        self.evicts(by)  # else it might do so, or not, by itself
        registry = self.registries[by]
        if name in self.jobs:
            with pytest.raises(JobExists):
                registry.add(Job(key_of(name), name))
            return
        registry.add(Job(key_of(name), name))
        self.expired.discard(name)
        self.jobs[name] = Model(self.now + TTL, next(self.numbers))

    @rule(by=handles, name=names, runner=runners, lease=leases)
    def claims(self, by: int, name: str, runner: str, lease: float | None) -> None:
        def says(job: Model) -> bool:
            self.notices_the_time()
            if job.seen(self.now) is not PENDING:
                return False
            job.state, job.runner, job.until = RUNNING, runner, None
            job.lease = None if lease is None else self.now + lease
            return True

        self.expects(name, lambda: self.registries[by].claim(key_of(name), runner, lease=lease), says)

    @rule(by=handles, name=names, runner=runners, channel=channels, data=chunks, back=from_the_end)
    def appends(self, by: int, name: str, runner: str, channel: Channel, data: bytes, back: int) -> None:
        offset = len(self.jobs[name].bytes[channel]) - back if name in self.jobs else 0

        def says(job: Model) -> int:
            stored = job.bytes[channel]
            if channel is Channel.REQUEST:
                if job.seen(self.now) is not PENDING:
                    raise Fenced(name)
            elif job.state is not RUNNING or job.runner != runner:
                raise Fenced(name)
            if offset == len(stored):
                job.bytes[channel] = stored + data
            elif not self.repeats(job, channel, offset, data):
                raise BadOffset(len(stored))
            return len(job.bytes[channel])

        self.expects(name, lambda: self.registries[by].append(key_of(name), channel, offset, data, runner=runner), says)

    @rule(by=handles, name=names, runner=runners, channel=channels, size=st.integers(1, 30))
    def repeats_an_append(self, by: int, name: str, runner: str, channel: Channel, size: int) -> None:
        stored = self.jobs[name].bytes[channel] if name in self.jobs else b""
        if len(stored) >= size:
            self.appends(by, name, runner, channel, stored[-size:], size)

    def repeats(self, job: Model, channel: Channel, offset: int, data: bytes) -> bool:
        """Whether *data* is what is stored there, as far as it is kept."""
        stored = job.bytes[channel]
        if offset < 0 or offset + len(data) > len(stored):
            return False
        begin, end = (job.dropped if channel is Channel.OUTPUT else None) or (0, 0)
        at = range(offset, offset + len(data))
        return all(begin <= place < end or stored[place] == data[place - offset] for place in at)

    @rule(by=handles, name=names, channel=channels, offset=st.integers(0, 60), limit=st.integers(1, 40))
    def reads(self, by: int, name: str, channel: Channel, offset: int, limit: int) -> None:
        def says(job: Model) -> bool:
            stored = job.bytes[channel]
            begin, end = (job.dropped if channel is Channel.OUTPUT else None) or (0, 0)
            first = end if begin <= offset < end else offset
            until = min(len(stored), first + limit, begin if first < begin else len(stored))
            piece = self.registries[by].read(key_of(name), channel, offset, limit)
            assert piece.offset == first
            assert stored[first:until].startswith(piece.data)
            assert bool(piece.data) == (first < until)
            return True

        self.expects(name, lambda: bool(self.registries[by].read(key_of(name), channel, offset, limit)), says)

    @rule(by=handles, name=names, runner=runners, lease=leases)
    def renews(self, by: int, name: str, runner: str, lease: float | None) -> None:
        def says(job: Model) -> bool:
            if job.state is not RUNNING or job.runner != runner:
                return False
            job.lease = job.lease if lease is None else self.now + lease
            return True

        self.expects(name, lambda: self.registries[by].renew(key_of(name), runner, lease=lease).ok, says)

    @rule(by=handles, name=names)
    def asks_to_stop(self, by: int, name: str) -> None:
        def says(job: Model) -> JobState:
            self.notices_the_time()
            state = job.seen(self.now)
            if state is PENDING:
                job.end(CANCELLED, self.now)
                return CANCELLED
            job.asked_to_stop |= state is RUNNING
            return state

        self.expects(name, lambda: self.registries[by].request_cancel(key_of(name)), says)

    @rule(by=handles, name=names, runner=runners, state=ends)
    def finishes(self, by: int, name: str, runner: str, state: JobState) -> None:
        def says(job: Model) -> bool:
            self.notices_the_time()
            if job.state is not RUNNING or job.runner != runner:
                return False
            job.end(state, self.now)
            return True

        self.expects(name, lambda: self.registries[by].finish(key_of(name), runner, state), says)

    def notices_the_time(self) -> None:
        """As MemoryRegistry does, which keeps what is there in the order of its times."""
        if self.now < self.latest and isinstance(self.registries[0], MemoryRegistry):
            for job in self.jobs.values():
                job.until = None if job.until is None else min(job.until, self.now + TTL)
        self.latest = self.now

    @rule(by=handles, name=names)
    def takes_cookies(self, by: int, name: str) -> None:
        def says(job: Model) -> bool:
            taken, job.cookies_taken = job.cookies_taken, True
            return not taken

        self.expects(name, lambda: self.registries[by].take_cookies(key_of(name)), says)

    @rule(by=handles, name=names, keep=st.booleans())
    def keeps(self, by: int, name: str, keep: bool) -> None:
        def says(job: Model) -> tuple[JobState, bool, float | None] | None:
            self.notices_the_time()
            if job.seen(self.now) is not job.state:
                job.end(job.seen(self.now), self.now)
            if job.state.ended and job.kept is not keep:
                if keep and sum(other.kept for other in self.jobs.values()) >= MOST_KEPT:
                    return None
                job.kept, job.until = keep, None if keep else self.now + TTL
            return job.state, job.kept, job.until

        def call() -> tuple[JobState, bool, float | None] | None:
            job = self.registries[by].keep(key_of(name), keep)
            return None if job is None else (job.state, job.kept, job.expires_at)

        self.expects(name, call, says)

    @rule(by=handles, name=names)
    def discards(self, by: int, name: str) -> None:
        job = self.jobs.get(name)
        there = job is not None and job.state is not RUNNING and not job.has_expired(self.now)
        assert self.registries[by].discard(key_of(name)) == there
        if there:
            del self.jobs[name]

    @rule(by=handles)
    def evicts(self, by: int) -> None:
        self.notices_the_time()
        lost = evicted = 0
        for name, job in list(self.jobs.items()):
            if job.has_expired(self.now):
                del self.jobs[name]
                self.expired.add(name)
                evicted += 1
            elif job.seen(self.now) is not job.state:
                job.end(job.seen(self.now), self.now)
                lost += 1
        assert self.registries[by].evict() == (lost, evicted)

    @rule(seconds=st.sampled_from([0.5, 5.0, 14.0, 60.0, 61.0, 3600.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    # What a Redis server forgets by itself goes by its own clock, which is not the one here.
    @precondition(lambda self: type(self.registries[0]) in (MemoryRegistry, SpoolRegistry))
    @rule(seconds=st.sampled_from([1.0, 100.0]))
    def somebody_sets_the_clock_back(self, seconds: float) -> None:
        self.now -= seconds

    @precondition(lambda self: self.registries[0].shared)
    @rule(by=handles)
    def restarts(self, by: int) -> None:
        self.registries[by].close()
        self.registries[by] = self.open()

    @invariant()
    def all_see_the_same(self) -> None:
        for registry in self.registries:
            there = {name: job for name, job in self.jobs.items() if not job.has_expired(self.now)}
            newest_first = sorted(there, key=lambda name: -there[name].number)
            assert [job.title for job in registry.jobs()] == newest_first
            for name in NAMES:
                self.expects(name, partial(self.told, registry, name), self.said)

    def told(self, registry: Registry, name: str) -> tuple[Any, ...]:
        job = registry.get(key_of(name))
        return job.state, job.output_end, job.output_dropped, job.body_end, job.cancel_requested_at is not None

    def said(self, job: Model) -> tuple[Any, ...]:
        sizes = {channel: len(data) for channel, data in job.bytes.items()}
        end, body = sizes[Channel.OUTPUT], sizes[Channel.BODY]
        return job.seen(self.now), end, job.dropped, body, job.asked_to_stop


def holds(request: pytest.FixtureRequest, opened: Callable[[Callable[[], float]], Callable[[], Registry]]) -> None:
    run_state_machine_as_test(
        lambda: Calls(opened),
        settings=settings(
            max_examples=100 if request.config.getoption("--everything") else 25,
            stateful_step_count=60,
            deadline=None,
            database=None,
            # The same each time, so that a run of all tests says something of the change, not of its luck.
            derandomize=True,
            # A short sequence is easier to read; but to find one takes minutes, and on a spool hours.
            phases=set(Phase) - {Phase.shrink},
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_in_memory(request: pytest.FixtureRequest) -> None:
    def opened(clock: Callable[[], float]) -> Callable[[], Registry]:
        registry = MemoryRegistry(ttl=TTL, pending_ttl=TTL, max_output=KEPT, max_kept=MOST_KEPT, clock=clock)
        return lambda: registry

    holds(request, opened)


@pytest.mark.everything
def test_in_a_directory(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    def opened(clock: Callable[[], float]) -> Callable[[], Registry]:
        directory = Path(tempfile.mkdtemp(dir=tmp_path)) / "jobs"
        return lambda: SpoolRegistry(
            directory, ttl=TTL, pending_ttl=TTL, max_output=KEPT, max_kept=MOST_KEPT, clock=clock
        )

    holds(request, opened)


def test_in_redis(request: pytest.FixtureRequest, redis_server: RedisServer) -> None:
    from bgmiddleware.registries.redis import RedisRegistry

    prefixes = (f"sequence-{number}" for number in itertools.count())

    def opened(clock: Callable[[], float]) -> Callable[[], Registry]:
        settings: dict[str, Any] = {"prefix": next(prefixes), "ttl": TTL, "pending_ttl": TTL, "max_output": KEPT}
        settings |= {"max_kept": MOST_KEPT}
        return lambda: RedisRegistry(redis_server.url, clock=clock, **settings)

    holds(request, opened)
