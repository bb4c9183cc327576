"""What every registry promises, as tests: a new registry's test file subclasses ``RegistryContract``.

The subclass gives a fixture ``make``: a function of a registry's settings that returns a new, empty registry, and
closes it after the test. The registry must take ``clock=``.
"""

import importlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest

from .._jobs import (
    Channel,
    Job,
    JobState,
    NextTry,
    Priority,
    Progress,
    Question,
    RecordedResponse,
    Step,
    Steps,
    StepState,
    Tries,
    key_of,
)
from ..errors import (
    BadOffset,
    ConfigurationError,
    Fenced,
    JobExists,
    JobExpired,
    JobNotFound,
    QueueFull,
    RegistryFull,
)
from ..registries.base import END, Piece, Registry, Transition
from .clock import Clock
from .history import HistoryContract

LONG = 120.0
"""A timeout that no test may reach."""

KEY = key_of("one")
RUNNER = "the runner"
ENDS = (JobState.FINISHED, JobState.FAILED, JobState.CANCELLED, JobState.LOST)
WRITTEN = (Channel.OUTPUT, Channel.BODY)


def begun(function: Callable[..., Any], *args: Any) -> "Future[Any]":
    """Call *function* in a thread of its own."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(function(*args))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="test", daemon=True).start()
    return future


def done(future: "Future[Any]") -> Any:
    """What it returned, or raised; it must not have come to the end of a LONG wait."""
    return future.result(LONG / 2)


def added(registry: Registry, name: str = "one") -> str:
    """Return the key of a new pending job."""
    return registry.add(Job(key_of(name), name)).key


HELD = Job(KEY, "one", process="p")


def named(token: str, name: str = "n", **more: Any) -> Job:
    """Return a new job that has a name."""
    return Job(key_of(token), token, name=name, name_salt=f"salt of {token}", **more)


def running(registry: Registry, name: str = "one", *, lease: float | None = None) -> str:
    key = added(registry, name)
    assert registry.claim(key, RUNNER, lease=lease)
    return key


def ended(registry: Registry, name: str = "one", state: JobState = JobState.FINISHED, output: bytes = b"") -> str:
    key = running(registry, name)
    registry.append(key, Channel.OUTPUT, 0, output, runner=RUNNER)
    assert registry.finish(key, RUNNER, state)
    return key


def remembers_the_last_three(registry: Registry, clock: "Clock") -> None:
    """Of expired jobs, where at most three are kept, and for 60 seconds."""
    for name in "abcde":
        ended(registry, name)
        clock.advance(60.0)
        registry.evict()
    for name in "ab":
        with pytest.raises(JobNotFound):
            registry.get(key_of(name))
    for name in "cde":
        with pytest.raises(JobExpired):
            registry.get(key_of(name))


def write(registry: Registry, key: str, data: bytes, channel: Channel = Channel.OUTPUT) -> int:
    """Append at the end, wherever that is."""
    job = registry.get(key)
    end = job.output_end if channel is Channel.OUTPUT else job.body_end
    return registry.append(key, channel, end, data, runner=RUNNER)


def pieces_of(registry: Registry, key: str, channel: Channel = Channel.OUTPUT, limit: int = 1000) -> Iterator[Piece]:
    offset = 0
    while (piece := registry.read(key, channel, offset, limit)).data:
        assert len(piece.data) <= limit
        yield piece
        offset = piece.end


def all_of(registry: Registry, key: str, channel: Channel = Channel.OUTPUT, limit: int = 1000) -> bytes:
    return b"".join(piece.data for piece in pieces_of(registry, key, channel, limit))


def dropped_of(registry: Registry, key: str) -> tuple[int, int]:
    """Return the range of the output that was dropped; some was."""
    dropped = registry.get(key).output_dropped
    assert dropped is not None
    return dropped


def check_times(times: tuple[tuple[int, int], ...], told: list[tuple[int, int]], gap: int) -> None:
    """Each byte has a time that is at most *gap* milliseconds later than what was told of it, and never earlier."""
    entries = iter(times)
    end, at = next(entries)
    for byte, came in told:
        while byte > end:
            end, at = next(entries)
        assert 0 <= at - came < gap


def blocked_on(waiting: "Future[Any]", registry: Registry, key: str, offset: int) -> None:
    """Give a begun ``wait`` time to block: as long as a short wait of our own takes. It is correct without, but then
    it may find at once what it should be woken by."""
    registry.wait(key, offset, 0.02)
    assert not waiting.done()


CALLS: dict[str, Callable[[Registry, str], object]] = {
    "get": lambda registry, key: registry.get(key),
    "append": lambda registry, key: registry.append(key, Channel.OUTPUT, 0, b"x", runner=RUNNER),
    "append nothing": lambda registry, key: registry.append(key, Channel.REQUEST, 0, b""),
    "read": lambda registry, key: registry.read(key, Channel.BODY, 0),
    "times": lambda registry, key: registry.times(key),
    "wait": lambda registry, key: registry.wait(key, 0, LONG),
    "transition": lambda registry, key: registry.transition(key, {JobState.PENDING}, Transition(JobState.LOST)),
    "claim": lambda registry, key: registry.claim(key, RUNNER),
    "finish": lambda registry, key: registry.finish(key, RUNNER, JobState.FINISHED),
    "renew": lambda registry, key: registry.renew(key, RUNNER),
    "request_cancel": lambda registry, key: registry.request_cancel(key),
    "amend": lambda registry, key: registry.amend(key, lambda job: job),
    "keep": lambda registry, key: registry.keep(key),
    "position": lambda registry, key: registry.position(key),
    "take_cookies": lambda registry, key: registry.take_cookies(key),
    "page": lambda registry, key: registry.page(key, 0),
    "follow": lambda registry, key: next(registry.follow(key)),
}
each_call: pytest.MarkDecorator = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
each_end: pytest.MarkDecorator = pytest.mark.parametrize("state", ENDS)


class RegistryContract(HistoryContract):
    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def make(self, clock: Clock) -> Iterator[Callable[..., Registry]]:
        raise NotImplementedError("the subclass says how a registry is made")

    @pytest.fixture
    def registry(self, make: Callable[..., Registry]) -> Registry:
        return make(ttl=60.0, pending_ttl=20.0)

    # Adding and getting.

    def test_an_added_job_is_pending_and_has_the_registrys_times(self, registry: Registry, clock: Clock) -> None:
        stored = registry.add(Job(KEY, "POST /report", state=JobState.RUNNING, created_at=5.0, expires_at=6.0))
        assert stored.state is JobState.PENDING
        assert stored.created_at == clock.now
        assert stored.expires_at == clock.now + 20.0
        assert registry.get(KEY) == stored

    def test_what_is_in_a_job_comes_back_as_it_was(self, registry: Registry) -> None:
        request = {"PATH_INFO": "/caf\xc3\xa9\xff", "HTTP_X_Y": "", "wsgi.url_scheme": "https"}
        groups = {"owner: ann ☃": 2, "mark": 1}
        given = Job(
            KEY,
            "GET /Übergröße/€/日本/🦊",
            request=request,
            owner="ann ☃",
            fingerprint="0f",
            version="2.1",
            deadline=0.5,
            groups=groups,
        )
        registry.add(given)
        job = registry.get(KEY)
        assert (job.owner, job.fingerprint, job.version, job.deadline) == ("ann ☃", "0f", "2.1", 0.5)
        assert dict(job.groups) == groups
        assert job.title == "GET /Übergröße/€/日本/🦊"
        assert dict(job.request) == request
        assert (job.output_end, job.output_dropped, job.body_end, job.progress) == (0, None, 0, None)

    def test_a_key_that_is_taken_is_refused_and_the_job_stays(self, registry: Registry) -> None:
        registry.add(Job(KEY, "first"))
        with pytest.raises(JobExists) as refused:
            registry.add(Job(KEY, "second"))
        assert refused.value.key == KEY
        assert registry.get(KEY).title == "first"

    @each_end
    def test_the_key_of_an_ended_job_stays_taken_until_its_ttl(
        self, registry: Registry, clock: Clock, state: JobState
    ) -> None:
        ended(registry, state=state)
        clock.advance(59.99)
        with pytest.raises(JobExists):
            registry.add(Job(KEY, "second"))
        assert registry.get(KEY).state is state

    @pytest.mark.parametrize("evicted", [False, True])
    def test_a_key_is_free_again_when_its_job_has_expired(
        self, registry: Registry, clock: Clock, evicted: bool
    ) -> None:
        ended(registry, output=b"old")
        clock.advance(59.99)
        added(registry, "another")  # looks what is due: nothing is
        clock.advance(0.01)
        if evicted:
            registry.evict()
        assert registry.add(Job(KEY, "again")).state is JobState.PENDING
        assert registry.get(KEY).title == "again"
        assert registry.get(KEY).output_end == 0
        assert registry.get(KEY).title in [job.title for job in registry.jobs()]

    @each_call
    def test_an_unknown_key_is_not_found(self, registry: Registry, call: Callable[[Registry, str], object]) -> None:
        added(registry, "another")
        with pytest.raises(JobNotFound):
            call(registry, KEY)

    def test_what_is_amended_of_a_job_stays_and_nothing_else_changes(self, registry: Registry, clock: Clock) -> None:
        asked = Question("Go on?", ("yes", "no"), 7.0, "an id")
        key = running(registry)
        write(registry, key, b"text")
        before = registry.get(key)
        amended = registry.amend(key, lambda job: job.changed(question=asked, title="other", owner="eve"))
        assert registry.get(key) == before.changed(question=asked)
        assert amended is not None
        assert (amended.question, amended.title) == (asked, "one")
        assert registry.amend(key, lambda job: None) is None
        assert registry.get(key).question == asked
        assert registry.renew(key, RUNNER).ok
        assert write(registry, key, b" and more") == 13
        assert registry.finish(key, RUNNER, JobState.FINISHED)
        job = registry.get(key)
        assert job.question is None, "nobody waits for an answer any more"
        registry.amend(key, lambda job: job.changed(question=asked))
        assert registry.get(key) == job.changed(question=asked), "its TTL goes on"
        clock.advance(60.0)
        with pytest.raises(JobExpired):
            registry.amend(key, lambda job: job)

    def test_of_many_who_amend_at_once_none_is_missed(self, registry: Registry) -> None:
        key = running(registry)

        def counts(job: Job) -> Job:
            asked = job.question or Question("0")
            return job.changed(question=replace(asked, text=str(int(asked.text) + 1)))

        for future in [begun(registry.amend, key, counts) for _ in range(8)]:
            done(future)
        asked = registry.get(key).question
        assert asked is not None
        assert asked.text == "8"

    def test_discarding_an_unknown_key_does_nothing(self, registry: Registry) -> None:
        assert registry.discard(KEY) is False

    # Names.

    def test_two_jobs_do_not_hold_one_name(self, registry: Registry) -> None:
        added(registry, "unnamed")
        first = registry.add(named("first"))
        assert (first.name, first.name_salt, first.keeps_name) == ("n", "salt of first", False)
        for name in ("second", "third"):
            with pytest.raises(JobExists) as refused:
                registry.add(named(name))
            assert refused.value.key == first.key
            with pytest.raises(JobNotFound):
                registry.get(key_of(name))
        assert registry.add(named("other", name="another name")).name == "another name"
        assert len(registry.jobs()) == 3

    @pytest.mark.parametrize("frees", ["ends", "is asked to stop", "is discarded", "is lost"])
    def test_a_name_is_free_when_its_job(self, registry: Registry, clock: Clock, frees: str) -> None:
        key = registry.add(named("first")).key
        if frees == "is discarded":
            registry.discard(key)
        elif frees == "is lost":
            clock.advance(20.0)
        else:
            registry.claim(key, RUNNER)
            if frees == "ends":
                registry.finish(key, RUNNER, JobState.FAILED)
            else:
                registry.request_cancel(key)
        second = registry.add(named("second"))
        with pytest.raises(JobExists) as refused:
            registry.add(named("third"))
        assert refused.value.key == second.key
        if frees == "is asked to stop":
            assert registry.finish(key, RUNNER, JobState.CANCELLED)
            with pytest.raises(JobExists):
                registry.add(named("third"))

    @each_end
    def test_a_name_that_is_kept_is_free_when_its_job_has_expired(
        self, registry: Registry, clock: Clock, state: JobState
    ) -> None:
        first = registry.add(named("first", keeps_name=True))
        registry.claim(first.key, RUNNER)
        registry.request_cancel(first.key)
        registry.finish(first.key, RUNNER, state)
        clock.advance(59.99)
        with pytest.raises(JobExists) as refused:
            registry.add(named("second", keeps_name=True))
        assert refused.value.key == first.key
        clock.advance(0.01)
        second = registry.add(named("second", keeps_name=True))
        assert second.state is JobState.PENDING
        with pytest.raises(JobExpired):
            registry.get(first.key)
        registry.evict()
        with pytest.raises(JobExists) as refused:
            registry.add(named("third", keeps_name=True))
        assert refused.value.key == second.key

    def test_a_name_is_free_when_its_job_made_room(self, make: Callable[..., Registry]) -> None:
        registry = make(max_jobs=2)
        first = registry.add(named("first", keeps_name=True))
        registry.claim(first.key, RUNNER)
        registry.finish(first.key, RUNNER, JobState.FINISHED)
        for name in ("a", "b"):
            ended(registry, name)
        assert registry.add(named("second", keeps_name=True)).name == "n"

    def test_the_name_of_a_job_that_nobody_admitted_is_free_when_it_was_never_started(
        self, registry: Registry, clock: Clock
    ) -> None:
        first = registry.add(named("first", keeps_name=True, admitted=False), lease=5.0)
        with pytest.raises(JobExists):
            registry.add(named("second", keeps_name=True))
        assert not registry.get(first.key).admitted
        clock.advance(5.0)
        registry.add(named("second", keeps_name=True))
        assert registry.get(first.key).state is JobState.LOST

    @pytest.mark.parametrize("admits", ["renewed", "claimed"])
    def test_a_job_is_admitted_when_it_is(self, registry: Registry, clock: Clock, admits: str) -> None:
        first = registry.add(named("first", keeps_name=True, admitted=False), lease=5.0)
        if admits == "renewed":
            assert registry.renew(first.key, "", lease=10.0).ok
        else:
            assert registry.claim(first.key, RUNNER, lease=10.0)
        assert registry.get(first.key).admitted
        clock.advance(10.0)
        assert registry.get(first.key).state is JobState.LOST
        with pytest.raises(JobExists) as refused:
            registry.add(named("second", keeps_name=True))
        assert refused.value.key == first.key

    def test_of_many_that_are_given_one_name_at_once_one_has_it(self, registry: Registry) -> None:
        together = threading.Barrier(8)

        def add(name: str) -> str:
            together.wait(LONG)
            try:
                return registry.add(named(name)).key
            except JobExists as error:
                return error.key

        adding = [begun(add, f"{number}") for number in range(8)]
        assert len({done(one) for one in adding}) == 1
        assert len(registry.jobs()) == 1

    # How long a job lives.

    @each_end
    def test_an_ended_job_is_readable_until_its_ttl_after_the_end(
        self, registry: Registry, clock: Clock, state: JobState
    ) -> None:
        running(registry)
        clock.advance(1000.0)  # how long it runs does not count
        write(registry, KEY, b"output")
        registry.finish(KEY, RUNNER, state)
        clock.advance(59.99)
        assert registry.get(KEY).state is state
        assert all_of(registry, KEY) == b"output"
        clock.advance(0.01)
        with pytest.raises(JobExpired):
            registry.get(KEY)

    @each_call
    def test_an_expired_key_is_expired_for_every_call_before_and_after_its_eviction(
        self, registry: Registry, clock: Clock, call: Callable[[Registry, str], object]
    ) -> None:
        ended(registry)
        clock.advance(60.0)
        with pytest.raises(JobExpired):
            call(registry, KEY)
        assert registry.evict() == (0, 1)
        with pytest.raises(JobExpired):
            call(registry, KEY)

    def test_discarding_an_expired_job_does_nothing_before_and_after_its_eviction(
        self, registry: Registry, clock: Clock
    ) -> None:
        ended(registry)
        clock.advance(60.0)
        for _ in range(2):
            assert registry.discard(KEY) is False
            with pytest.raises(JobExpired):
                registry.get(KEY)
            registry.evict()

    def test_a_ttl_below_a_second_is_kept_exactly(self, make: Callable[..., Registry], clock: Clock) -> None:
        registry = make(ttl=0.4)
        ended(registry)
        clock.advance(0.39)
        assert registry.get(KEY).state is JobState.FINISHED
        clock.advance(0.01)
        with pytest.raises(JobExpired):
            registry.get(KEY)

    def test_a_pending_job_that_nobody_claims_is_lost_never_started(self, registry: Registry, clock: Clock) -> None:
        due = added(registry) and clock.now + 20.0
        clock.advance(19.99)
        assert registry.get(KEY).state is JobState.PENDING
        clock.advance(0.01)
        job = registry.get(KEY)
        assert (job.state, job.reason, job.ended_at) == (JobState.LOST, "never started", due)
        assert job.expires_at is None  # not before the loss is permanent
        assert registry.wait(KEY, 0, LONG).state is JobState.LOST

    def test_a_job_that_never_started_cannot_be_claimed_or_written_or_cancelled(
        self, registry: Registry, clock: Clock
    ) -> None:
        added(registry)
        clock.advance(20.0)
        assert registry.claim(KEY, RUNNER) is False
        assert registry.request_cancel(KEY) is JobState.LOST
        with pytest.raises(Fenced):
            registry.append(KEY, Channel.REQUEST, 0, b"x")
        assert registry.get(KEY).reason == "never started"

    def test_a_job_that_never_started_is_readable_for_a_ttl_from_when_its_loss_became_permanent(
        self, registry: Registry, clock: Clock
    ) -> None:
        added(registry)
        clock.advance(500.0)
        read = registry.get(KEY)
        assert registry.evict() == (1, 0)
        assert registry.evict() == (0, 0)
        assert registry.get(KEY) == read.changed(expires_at=clock.now + 60.0)
        clock.advance(59.99)
        assert registry.get(KEY).reason == "never started"
        clock.advance(0.01)
        with pytest.raises(JobExpired):
            registry.get(KEY)
        assert registry.evict() == (0, 1)

    def test_a_job_that_waits_in_a_process_that_vanished_is_lost_never_started(
        self, registry: Registry, clock: Clock
    ) -> None:
        registry.add(HELD, lease=15.0)
        clock.advance(14.99)
        assert registry.get(KEY).state is JobState.PENDING
        assert registry.evict() == (0, 0)
        clock.advance(0.01)
        assert (registry.get(KEY).state, registry.get(KEY).reason) == (JobState.LOST, "never started")
        assert [job.state for job in registry.jobs()] == [JobState.LOST]
        assert registry.position(KEY) == 0
        assert registry.claim(KEY, RUNNER) is False
        assert registry.evict() == (1, 0)
        registry.hold("p", 15.0)
        assert registry.get(KEY).state is JobState.LOST

    def test_all_jobs_of_a_process_wait_as_long_as_it_says_that_it_is_there(
        self, registry: Registry, clock: Clock
    ) -> None:
        names = [f"job {number}" for number in range(30)]
        for name in names:
            registry.add(Job(key_of(name), name, process="p"), lease=5.0)
        clock.advance(4.0)
        registry.hold("p", 5.0)
        clock.advance(4.99)
        assert {registry.get(key_of(name)).state for name in names} == {JobState.PENDING}
        assert registry.evict() == (0, 0)
        clock.advance(1.0)
        assert {job.state for job in registry.jobs()} == {JobState.LOST}
        registry.hold("p", 5.0)  # late, as of a laptop that slept
        assert {registry.get(key_of(name)).state for name in names} == {JobState.PENDING}
        assert [registry.position(key_of(name)) for name in names] == list(range(1, 31))
        assert registry.claim(key_of(names[0]), RUNNER, lease=15.0)
        clock.advance(5.0)
        assert registry.get(key_of(names[0])).state is JobState.RUNNING
        assert registry.evict(10) == (10, 0)
        assert registry.evict() == (19, 0)
        assert registry.evict() == (0, 0)

    def test_a_process_holds_its_own_jobs_only(self, registry: Registry, clock: Clock) -> None:
        for name in ("one", "one:two", "two"):
            registry.add(Job(key_of(name), name, process=name), lease=5.0)
        added(registry, "elsewhere")
        clock.advance(4.0)
        registry.hold("one:two", 15.0)
        clock.advance(4.0)
        assert {job.title for job in registry.jobs(JobState.LOST)} == {"one", "two"}
        assert registry.evict() == (2, 0)
        assert {job.title for job in registry.jobs(JobState.PENDING)} == {"one:two", "elsewhere"}

    def test_a_loss_that_is_not_permanent_yet_is_undone_as_long_as_its_process_likes(
        self, registry: Registry, clock: Clock
    ) -> None:
        registry.add(HELD, lease=5.0)
        for _ in range(3):
            clock.advance(6.0)
            assert registry.get(KEY).state is JobState.LOST
            registry.hold("p", 0.5)
            assert registry.evict() == (0, 0)
            assert registry.get(KEY).state is JobState.PENDING

    def test_a_job_that_waited_in_a_process_can_be_cancelled(self, registry: Registry, clock: Clock) -> None:
        registry.add(HELD, lease=5.0)
        assert registry.request_cancel(KEY) is JobState.CANCELLED
        clock.advance(6.0)
        assert registry.evict() == (0, 0)
        assert registry.get(KEY).state is JobState.CANCELLED

    def test_a_job_waits_no_longer_than_its_pending_ttl_whoever_is_there(
        self, registry: Registry, clock: Clock
    ) -> None:
        assert registry.add(HELD, lease=1000.0).expires_at == clock.now + 20.0
        clock.advance(19.0)
        registry.hold("p", 5.0)
        clock.advance(0.99)
        assert registry.get(KEY).state is JobState.PENDING
        clock.advance(0.01)
        assert registry.get(KEY).state is JobState.LOST

    def test_who_admits_a_job_that_waits_in_a_process_does_not_change_how_long_it_waits(
        self, registry: Registry, clock: Clock
    ) -> None:
        registry.add(HELD.changed(admitted=False), lease=5.0)
        assert registry.renew(KEY, "", lease=10.0).ok
        assert registry.get(KEY).admitted
        clock.advance(5.0)
        assert registry.get(KEY).state is JobState.LOST
        registry.hold("p", 5.0)
        clock.advance(4.0)
        assert registry.get(KEY).state is JobState.PENDING

    def test_a_job_that_was_claimed_in_time_outlives_its_pending_ttl(self, registry: Registry, clock: Clock) -> None:
        added(registry)
        clock.advance(19.99)
        assert registry.claim(KEY, RUNNER)
        clock.advance(1.0)
        assert registry.get(KEY).state is JobState.RUNNING

    def test_a_running_job_is_never_evicted_nor_discarded(self, registry: Registry, clock: Clock) -> None:
        running(registry)
        write(registry, KEY, b"still here")
        clock.advance(1e7)
        assert registry.evict() == (0, 0)
        assert registry.discard(KEY) is False
        assert registry.get(KEY).state is JobState.RUNNING
        assert registry.get(KEY).expires_at is None
        assert all_of(registry, KEY) == b"still here"

    # The bytes.

    @pytest.mark.parametrize("channel", Channel)
    def test_bytes_are_added_at_the_end_and_read_back(self, registry: Registry, channel: Channel) -> None:
        added(registry)
        if channel is not Channel.REQUEST:
            registry.claim(KEY, RUNNER)
        assert registry.append(KEY, channel, 0, b"one\xff\0", runner=RUNNER) == 5
        assert registry.append(KEY, channel, 5, b"two", runner=RUNNER) == 8
        assert registry.read(KEY, channel, 0) == (0, b"one\xff\0two")
        assert registry.read(KEY, channel, 5) == (5, b"two")

    @pytest.mark.parametrize("size", [1, 65_536])
    def test_a_short_request_is_added_with_its_job(self, registry: Registry, size: int) -> None:
        body = bytes(range(256)) * (size // 256) or b"x"
        assert registry.add_request(Job(KEY, "one"), body).state is JobState.PENDING
        assert all_of(registry, KEY, Channel.REQUEST, 100_000) == body
        assert registry.append(KEY, Channel.REQUEST, 0, body) == len(body)  # a repetition
        assert registry.append(KEY, Channel.REQUEST, len(body), b"more") == len(body) + 4
        with pytest.raises(JobExists):
            registry.add_request(Job(KEY, "again"), b"another")
        assert all_of(registry, KEY, Channel.REQUEST, 100_000) == body + b"more"
        registry.claim(KEY, RUNNER)
        registry.finish(KEY, RUNNER, JobState.FINISHED)
        assert registry.read(KEY, Channel.REQUEST, 0).data == b""

    @pytest.mark.parametrize("size", [1, 65_536])
    def test_a_job_ends_with_a_short_body(self, registry: Registry, size: int) -> None:
        body = bytes(range(256)) * (size // 256) or b"x"
        added(registry)
        registry.claim(KEY, RUNNER)
        write(registry, KEY, b"the output")
        change = Transition(JobState.FINISHED, RUNNER, response=RecordedResponse("200 OK", ()), output_end=10)
        assert registry.finish_with(KEY, body, change)
        job = registry.get(KEY)
        assert (job.state, job.body_end, job.output_end) == (JobState.FINISHED, len(body), 10)
        assert all_of(registry, KEY, Channel.BODY, 100_000) == body
        assert not registry.finish_with(KEY, body, change)  # a repetition

    def test_nobody_else_ends_a_job_with_a_body(self, registry: Registry) -> None:
        added(registry)
        assert not registry.finish_with(KEY, b"body", Transition(JobState.FINISHED, RUNNER))
        registry.claim(KEY, RUNNER)
        assert not registry.finish_with(KEY, b"body", Transition(JobState.FINISHED, "another"))
        job = registry.get(KEY)
        assert (job.state, job.body_end) == (JobState.RUNNING, 0)

    def test_a_job_whose_output_is_cut_does_not_end_with_a_body(self, registry: Registry) -> None:
        added(registry)
        registry.claim(KEY, RUNNER)
        write(registry, KEY, b"the output")
        with pytest.raises(BadOffset) as cut:
            registry.finish_with(KEY, b"body", Transition(JobState.FINISHED, RUNNER, output_end=11))
        assert cut.value.end == 10
        assert registry.get(KEY).state is JobState.RUNNING
        assert registry.finish_with(KEY, b"body", Transition(JobState.FINISHED, RUNNER, output_end=10))
        assert all_of(registry, KEY, Channel.BODY) == b"body"

    def test_the_channels_are_separate(self, registry: Registry) -> None:
        added(registry)
        registry.append(KEY, Channel.REQUEST, 0, b"request")
        registry.claim(KEY, RUNNER)
        write(registry, KEY, b"the output")
        write(registry, KEY, b"body", Channel.BODY)
        job = registry.get(KEY)
        assert (job.output_end, job.body_end) == (10, 4)
        assert [all_of(registry, KEY, channel) for channel in Channel] == [b"request", b"the output", b"body"]

    def test_the_jobs_are_separate(self, registry: Registry) -> None:
        keys = [running(registry, f"job {number}") for number in range(3)]
        for number, key in enumerate(keys):
            write(registry, key, b"%d" % number * (number + 1))
        assert [all_of(registry, key) for key in keys] == [b"0", b"11", b"222"]

    @pytest.mark.parametrize("channel", WRITTEN)
    @pytest.mark.parametrize(
        ("offset", "data"), [(9, b"x"), (9, b""), (100, b"abc"), (7, b"hi"), (7, b"h?"), (-1, b"x"), (-8, b"abcdefgh")]
    )
    def test_a_gap_or_an_overlap_is_refused_and_changes_nothing(
        self, registry: Registry, channel: Channel, offset: int, data: bytes
    ) -> None:
        running(registry)
        write(registry, KEY, b"abcdefgh", channel)
        with pytest.raises(BadOffset) as refused:
            registry.append(KEY, channel, offset, data, runner=RUNNER)
        assert refused.value.end == 8
        assert all_of(registry, KEY, channel) == b"abcdefgh"

    @pytest.mark.parametrize(("offset", "size"), [(500, 497), (3 + 70_000, 64 * 1024), (5, 8)])
    def test_an_output_of_which_bytes_are_lost_goes_on_behind_a_note(
        self, registry: Registry, offset: int, size: int
    ) -> None:
        running(registry)
        write(registry, KEY, b"abc")
        end = registry.leave_gap(KEY, offset, b"\n[lost]\n", runner=RUNNER)
        assert end >= min(offset, 3 + size)
        assert registry.leave_gap(KEY, offset, b"\n[lost]\n", runner=RUNNER) >= end
        job = registry.get(KEY)
        assert registry.append(KEY, Channel.OUTPUT, job.output_end, b"on", runner=RUNNER) == job.output_end + 2
        stored = all_of(registry, KEY)
        assert stored.startswith(b"abc\n[lost]")
        assert stored.endswith(b"\non")

    def test_only_its_runner_says_what_is_lost_of_an_output(self, registry: Registry) -> None:
        running(registry)
        with pytest.raises(Fenced):
            registry.leave_gap(KEY, 100, b"\n[lost]\n", runner="another")
        assert registry.get(KEY).output_end == 0

    @pytest.mark.parametrize(("channel", "least"), [(Channel.OUTPUT, "output_end"), (Channel.BODY, "body_end")])
    def test_a_job_of_which_less_is_there_than_its_runner_knows_does_not_end(
        self, registry: Registry, channel: Channel, least: str
    ) -> None:
        running(registry)
        write(registry, KEY, b"abc", channel)
        known: dict[str, Any] = {least: 4}
        with pytest.raises(BadOffset) as refused:
            registry.finish(KEY, RUNNER, JobState.FINISHED, **known)
        assert refused.value.end == 3
        assert registry.get(KEY).state is JobState.RUNNING
        write(registry, KEY, b"d", channel)
        assert registry.finish(KEY, RUNNER, JobState.FINISHED, **known)

    @pytest.mark.parametrize("channel", WRITTEN)
    @pytest.mark.parametrize(("offset", "data"), [(0, b"abcd"), (4, b"efgh"), (2, b"cde"), (7, b"h"), (3, b"")])
    def test_repeating_what_is_stored_is_a_no_op(
        self, registry: Registry, channel: Channel, offset: int, data: bytes
    ) -> None:
        running(registry)
        write(registry, KEY, b"abcd", channel)
        write(registry, KEY, b"efgh", channel)
        assert registry.append(KEY, channel, offset, data, runner=RUNNER) == 8
        assert all_of(registry, KEY, channel) == b"abcdefgh"

    @pytest.mark.parametrize("channel", WRITTEN)
    @pytest.mark.parametrize(("offset", "data"), [(0, b"abcD"), (4, b"Efgh"), (7, b"?")])
    def test_other_bytes_where_some_are_stored_are_refused(
        self, registry: Registry, channel: Channel, offset: int, data: bytes
    ) -> None:
        running(registry)
        write(registry, KEY, b"abcdefgh", channel)
        with pytest.raises(BadOffset):
            registry.append(KEY, channel, offset, data, runner=RUNNER)
        assert all_of(registry, KEY, channel) == b"abcdefgh"

    def test_an_empty_append_at_the_end_is_legal(self, registry: Registry) -> None:
        running(registry)
        assert registry.append(KEY, Channel.OUTPUT, 0, b"", runner=RUNNER) == 0
        write(registry, KEY, b"abc")
        assert registry.append(KEY, Channel.OUTPUT, 3, b"", runner=RUNNER) == 3

    def test_reading_at_the_end_or_behind_it_gives_nothing(self, registry: Registry) -> None:
        running(registry)
        assert registry.read(KEY, Channel.OUTPUT, 0).data == b""
        write(registry, KEY, b"abc")
        assert registry.read(KEY, Channel.OUTPUT, 2).data == b"c"
        assert registry.read(KEY, Channel.OUTPUT, 3).data == b""
        assert registry.read(KEY, Channel.OUTPUT, 4).data == b""
        assert registry.read(KEY, Channel.OUTPUT, 10**12).data == b""

    @pytest.mark.parametrize("limit", [1, 2, 3, 9, 10, 11])
    def test_a_read_gives_no_more_than_its_limit_and_none_is_missing(self, registry: Registry, limit: int) -> None:
        running(registry)
        write(registry, KEY, b"0123456789")
        assert all_of(registry, KEY, limit=limit) == b"0123456789"

    def test_a_read_may_cut_inside_a_character(self, registry: Registry) -> None:
        running(registry)
        write(registry, KEY, "é".encode())
        assert registry.read(KEY, Channel.OUTPUT, 0, 1) == (0, b"\xc3")
        assert registry.read(KEY, Channel.OUTPUT, 1, 1) == (1, b"\xa9")

    def test_a_large_body_comes_back_whole(self, registry: Registry) -> None:
        running(registry)
        data = random.Random(0).randbytes(700_001)
        for begin in range(0, len(data), 200_000):
            write(registry, KEY, data[begin : begin + 200_000], Channel.BODY)
        registry.finish(KEY, RUNNER, JobState.FINISHED)
        assert registry.get(KEY).body_end == len(data)
        assert all_of(registry, KEY, Channel.BODY, 256 * 1024) == data

    @pytest.mark.parametrize("size", [0, 10, 700_001])
    def test_a_body_that_lies_in_a_file_can_be_read_from_it_when_the_job_has_ended(
        self, registry: Registry, size: int
    ) -> None:
        running(registry)
        data = random.Random(0).randbytes(size)
        if data:
            write(registry, KEY, data, Channel.BODY)
        assert registry.open_body(KEY) is None, "it may grow"
        registry.finish(KEY, RUNNER, JobState.FINISHED)
        descriptor = registry.open_body(KEY)
        if descriptor is not None:
            with open(descriptor, "rb") as file:
                registry.discard(KEY)
                assert file.read()[:size] == data, "also where the job is forgotten meanwhile"

    # Who may write.

    @pytest.mark.parametrize("channel", WRITTEN)
    @pytest.mark.parametrize("data", [b"x", b""])
    def test_nobody_writes_before_the_claim(self, registry: Registry, channel: Channel, data: bytes) -> None:
        added(registry)
        with pytest.raises(Fenced):
            registry.append(KEY, channel, 0, data, runner=RUNNER)
        with pytest.raises(Fenced):
            registry.append(KEY, channel, 0, data)

    @pytest.mark.parametrize("channel", WRITTEN)
    def test_only_who_claimed_a_job_writes_to_it(self, registry: Registry, channel: Channel) -> None:
        running(registry)
        for other in ("another", ""):
            with pytest.raises(Fenced):
                registry.append(KEY, channel, 0, b"x", runner=other)
        assert registry.append(KEY, channel, 0, b"x", runner=RUNNER) == 1

    @each_end
    @pytest.mark.parametrize("channel", Channel)
    def test_an_ended_job_is_sealed(self, registry: Registry, channel: Channel, state: JobState) -> None:
        running(registry)
        write(registry, KEY, b"in time")
        registry.finish(KEY, RUNNER, state)
        for offset, data in ((7, b"too late"), (0, b"in time"), (7, b"")):
            with pytest.raises(Fenced):
                registry.append(KEY, channel, offset, data, runner=RUNNER)
        assert all_of(registry, KEY) == b"in time"

    def test_the_request_is_sealed_by_the_claim_and_readable_until_the_end(self, registry: Registry) -> None:
        added(registry)
        registry.append(KEY, Channel.REQUEST, 0, b"request")
        registry.claim(KEY, RUNNER)
        with pytest.raises(Fenced):
            registry.append(KEY, Channel.REQUEST, 7, b"x", runner=RUNNER)
        assert all_of(registry, KEY, Channel.REQUEST) == b"request"

    @each_end
    def test_the_request_is_forgotten_at_the_end(self, registry: Registry, state: JobState) -> None:
        registry.add(Job(KEY, "one", request={"HTTP_COOKIE": "secret"}))
        registry.append(KEY, Channel.REQUEST, 0, b"password=secret")
        registry.claim(KEY, RUNNER)
        assert registry.get(KEY).request == {"HTTP_COOKIE": "secret"}
        registry.finish(KEY, RUNNER, state)
        assert registry.get(KEY).request == {}
        assert registry.read(KEY, Channel.REQUEST, 0).data == b""

    @each_end
    @pytest.mark.parametrize("size", [0, 10, 100_000])
    def test_a_request_that_its_job_keeps_is_there_until_the_job_is_gone(
        self, registry: Registry, clock: Clock, state: JobState, size: int
    ) -> None:
        body = b"x" * size
        registry.add(Job(KEY, "one", request={"REQUEST_METHOD": "PUT"}, keeps_request=True))
        registry.append(KEY, Channel.REQUEST, 0, body)
        assert registry.claim(KEY, RUNNER)
        assert registry.finish(KEY, RUNNER, state)
        registry.amend(KEY, lambda job: job.changed(rerun_as="a link"))
        job = registry.get(KEY)
        assert (job.request, job.rerun_as) == ({"REQUEST_METHOD": "PUT"}, "a link")
        assert all_of(registry, KEY, Channel.REQUEST, limit=65536) == body
        with pytest.raises(Fenced):
            registry.append(KEY, Channel.REQUEST, size, b"more")
        clock.advance(59.99)
        registry.evict()
        assert all_of(registry, KEY, Channel.REQUEST, limit=65536) == body
        clock.advance(0.01)
        registry.evict()
        with pytest.raises(JobExpired):
            registry.read(KEY, Channel.REQUEST, 0)

    @pytest.mark.parametrize("state", [JobState.FAILED, JobState.FINISHED])
    def test_a_request_is_there_until_its_next_try_has_begun_or_none_follows(
        self, registry: Registry, state: JobState
    ) -> None:
        tries = Tries(1, 2, (NextTry("a link", "another", {}),))
        registry.add(Job(KEY, "one", request={"REQUEST_METHOD": "PUT"}, tries=tries))
        registry.append(KEY, Channel.REQUEST, 0, b"body")
        assert registry.claim(KEY, RUNNER)
        assert registry.finish(KEY, RUNNER, state)
        is_held = state is JobState.FAILED
        assert bool(registry.get(KEY).request) is is_held
        assert registry.read(KEY, Channel.REQUEST, 0).data == (b"body" if is_held else b"")
        assert registry.get(KEY).tries == tries
        registry.amend(KEY, lambda job: job.changed(rerun_as="a link"))
        assert registry.get(KEY).request == {}
        assert registry.read(KEY, Channel.REQUEST, 0).data == b""

    def test_the_ttl_of_a_job_that_was_run_again_begins_anew_when_it_is_amended(
        self, registry: Registry, clock: Clock
    ) -> None:
        for name in ("again", "kept", "other"):
            ended(registry, name)
        again, kept, other = map(key_of, ("again", "kept", "other"))
        registry.keep(kept)
        clock.advance(registry.ttl - 2)
        for key in (again, kept):
            registry.amend(key, lambda job: job.changed(rerun_as="a link"))
        registry.amend(other, lambda job: job)
        assert registry.get(again).expires_at == pytest.approx(clock() + registry.ttl, abs=1)
        assert registry.get(kept).expires_at is None
        clock.advance(4)
        registry.evict()
        assert {job.key for job in registry.jobs()} == {again, kept}
        clock.advance(registry.ttl)
        with pytest.raises(JobExpired):
            registry.get(again)

    def test_the_request_of_a_job_that_was_cancelled_before_it_began_is_sealed_and_forgotten(
        self, registry: Registry
    ) -> None:
        registry.add(Job(KEY, "one", request={"HTTP_COOKIE": "secret"}))
        registry.append(KEY, Channel.REQUEST, 0, b"password=secret")
        registry.request_cancel(KEY)
        with pytest.raises(Fenced):
            registry.append(KEY, Channel.REQUEST, 15, b"x")
        assert registry.get(KEY).request == {}
        assert registry.read(KEY, Channel.REQUEST, 0).data == b""

    # When output came.

    def test_it_is_told_when_output_came(self, registry: Registry) -> None:
        running(registry)
        registry.append(KEY, Channel.OUTPUT, 0, b"abc", runner=RUNNER, times=[(2, 0), (3, 70)])
        registry.append(KEY, Channel.OUTPUT, 3, b"defg", runner=RUNNER, times=[(7, 5000)])
        assert registry.times(KEY) == ((2, 0), (3, 70), (7, 5000))
        assert [registry.times(KEY, offset) for offset in (1, 2, 3)] == [registry.times(KEY)[n:] for n in (0, 1, 2)]
        assert registry.times(KEY, 7) == registry.times(KEY, 100) == ()
        assert registry.times(KEY, 0, 2) == ((2, 0), (3, 70))
        registry.finish(KEY, RUNNER, JobState.FINISHED)
        assert registry.times(KEY, 2) == ((3, 70), (7, 5000))

    def test_what_came_without_a_time_has_that_of_the_next(self, registry: Registry) -> None:
        running(registry)
        write(registry, KEY, b"ab")
        assert registry.times(KEY) == ()
        registry.append(KEY, Channel.OUTPUT, 2, b"c", runner=RUNNER, times=[(3, 10)])
        assert registry.times(KEY) == ((3, 10),)

    def test_output_that_is_sent_again_keeps_the_time_it_has(self, registry: Registry) -> None:
        running(registry)
        registry.append(KEY, Channel.OUTPUT, 0, b"abc", runner=RUNNER, times=[(3, 10)])
        assert registry.append(KEY, Channel.OUTPUT, 0, b"abc", runner=RUNNER, times=[(3, 900)]) == 3
        with pytest.raises(BadOffset):
            registry.append(KEY, Channel.OUTPUT, 4, b"e", runner=RUNNER, times=[(5, 900)])
        assert registry.times(KEY) == ((3, 10),)

    def test_no_time_is_before_an_earlier_one(self, registry: Registry) -> None:
        running(registry)
        registry.append(KEY, Channel.OUTPUT, 0, b"abc", runner=RUNNER, times=[(1, 500), (2, 90), (3, 600)])
        assert registry.times(KEY) == ((1, 500), (2, 500), (3, 600))

    @pytest.mark.parametrize("at_once", [1, 7, 1000])
    def test_times_within_a_twentieth_of_a_second_are_joined(self, registry: Registry, at_once: bool) -> None:
        running(registry)
        told = [(number + 1, 10 * number) for number in range(1000)]
        for begin in range(0, 1000, at_once):
            part = told[begin : begin + at_once]
            registry.append(KEY, Channel.OUTPUT, begin, b"x" * len(part), runner=RUNNER, times=part)
        times = registry.times(KEY)
        assert times[0] == told[0]
        assert times[-1] == told[-1]
        assert len(times) <= 2 * 10_000 / 50 + 2
        check_times(times, told, 50)

    def test_of_very_many_times_each_second_is_left_out(self, registry: Registry) -> None:
        running(registry)
        told = [(number + 1, 60 * number) for number in range(66_000)]
        for begin in (0, 66_000):
            part = [(end + begin, at + 60 * begin) for end, at in told]
            registry.append(KEY, Channel.OUTPUT, begin, b"x" * len(part), runner=RUNNER, times=part)
        told = [(number + 1, 60 * number) for number in range(132_000)]
        times = registry.times(KEY)
        assert times[0] == told[0]
        assert times[-1] == told[-1]
        assert 10_000 < len(times) <= 65_536
        check_times(times, told, 800)
        assert registry.times(KEY, 131_900) == tuple(time for time in times if time[0] > 131_900)

    def test_what_was_dropped_keeps_its_times(self, make: Callable[..., Registry]) -> None:
        registry = make(max_output=10)
        running(registry)
        for number in range(50):
            registry.append(KEY, Channel.OUTPUT, number, b"x", runner=RUNNER, times=[(number + 1, 1000 * number)])
        assert registry.get(KEY).output_dropped is not None
        assert registry.times(KEY) == tuple((number + 1, 1000 * number) for number in range(50))

    def test_long_ways_and_long_silences_are_told_exactly(self, registry: Registry) -> None:
        running(registry)
        day = 24 * 3600 * 1000
        told = ((1, 0), (2, 200 * day), (3, 201 * day))
        registry.append(KEY, Channel.OUTPUT, 0, b"abc", runner=RUNNER, times=told)
        assert set(told) <= set(registry.times(KEY))
        assert registry.times(KEY, 2) == told[2:]

    def test_a_key_that_is_used_again_has_no_times_of_the_job_before(self, registry: Registry, clock: Clock) -> None:
        running(registry)
        registry.append(KEY, Channel.OUTPUT, 0, b"abc", runner=RUNNER, times=[(3, 10)])
        registry.finish(KEY, RUNNER, JobState.FINISHED)
        clock.advance(60.0)
        running(registry)
        assert registry.times(KEY) == ()

    # How much is kept.

    @pytest.mark.parametrize("size", [1, 2, 3, 10, 1000])
    def test_output_is_kept_whole_up_to_max_output_and_loses_its_middle_beyond(
        self, make: Callable[..., Registry], size: int
    ) -> None:
        registry = make(max_output=size)
        running(registry)
        write(registry, KEY, b"x" * size)
        assert registry.get(KEY).output_dropped is None
        assert all_of(registry, KEY) == b"x" * size
        assert write(registry, KEY, b"y") == size + 1
        begin, end = dropped_of(registry, KEY)
        assert 0 <= begin < end <= size
        assert all_of(registry, KEY)[-1:] == b"y"

    @pytest.mark.parametrize("size", [2, 10, 11, 1000])
    def test_a_chunk_of_any_size_at_any_place_keeps_head_and_tail(
        self, make: Callable[..., Registry], size: int
    ) -> None:
        registry = make(max_output=size)
        for before in (0.0, 0.4, 0.5, 0.6, 1.0, 1.3):
            for times in (0.4, 0.6, 1.0, 1.1, 1.5, 2.0, 3.7):
                key = running(registry, f"{times} times behind {before}")
                data = random.Random(size).randbytes(int(size * before) + int(size * times))
                write(registry, key, data[: int(size * before)])
                write(registry, key, data[int(size * before) :])
                self.check_kept(registry, data, size, key)

    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("size", [1, 2, 7, 64, 1000])
    def test_the_kept_output_is_what_a_simple_model_says_whatever_the_chunks(
        self, make: Callable[..., Registry], size: int, seed: int
    ) -> None:
        registry = make(max_output=size)
        running(registry)
        chance = random.Random(seed)
        data = b""
        dropped = None
        for _ in range(40):
            chunk = chance.randbytes(chance.choice((0, 1, 2, 3, chance.randrange(size + 1), size, 2 * size + 1)))
            assert registry.append(KEY, Channel.OUTPUT, len(data), chunk, runner=RUNNER) == len(data) + len(chunk)
            data += chunk
            self.check_kept(registry, data, size)
            self.check_read(registry, data, chance)
            before, dropped = dropped, registry.get(KEY).output_dropped
            # What was dropped stays dropped, and the head stays.
            assert before is None or (before[0] == dropped[0] and before[1] <= dropped[1])
        registry.finish(KEY, RUNNER, JobState.FINISHED)
        self.check_kept(registry, data, size)
        self.check_read(registry, data, chance)

    def check_kept(self, registry: Registry, data: bytes, size: int, key: str = KEY) -> None:
        """The output says *data*, but for the range that it states; and it keeps about *size* bytes of it."""
        job = registry.get(key)
        assert job.output_end == len(data)
        begin, end = job.output_dropped or (len(data), len(data))
        assert (job.output_dropped is None) == (len(data) <= size)
        assert all_of(registry, key, limit=size + 7) == data[:begin] + data[end:], job.title
        if job.output_dropped:
            assert size / 2 <= len(data) - (end - begin) <= size
            assert end < len(data)
            assert begin > 0 or size == 1

    def check_read(self, registry: Registry, data: bytes, chance: random.Random) -> None:
        """One read at any offset: from there, or from behind the dropped range; not empty before the end."""
        begin, end = registry.get(KEY).output_dropped or (len(data), len(data))
        offset, limit = chance.randrange(len(data) + 3), chance.randrange(1, 50)
        piece = registry.read(KEY, Channel.OUTPUT, offset, limit)
        assert piece.offset == (end if begin <= offset < end else offset)
        assert len(piece.data) <= limit
        assert bool(piece.data) == (piece.offset < len(data))
        assert piece.data == data[piece.offset : piece.end]
        assert piece.end <= begin or piece.offset >= end or not piece.data

    def test_a_retry_of_a_chunk_whose_middle_was_dropped_is_a_no_op(self, make: Callable[..., Registry]) -> None:
        registry = make(max_output=10)
        running(registry)
        data = bytes(range(50))
        assert registry.append(KEY, Channel.OUTPUT, 0, data, runner=RUNNER) == 50
        assert registry.append(KEY, Channel.OUTPUT, 0, data, runner=RUNNER) == 50
        assert registry.append(KEY, Channel.OUTPUT, 20, data[20:], runner=RUNNER) == 50
        with pytest.raises(BadOffset):
            registry.append(KEY, Channel.OUTPUT, 0, data[:49] + b"?", runner=RUNNER)
        with pytest.raises(BadOffset):
            registry.append(KEY, Channel.OUTPUT, 0, b"?" + data[1:], runner=RUNNER)

    def test_a_body_that_just_fits_is_stored_and_one_more_byte_is_refused(self, make: Callable[..., Registry]) -> None:
        registry = make(max_result=10)
        running(registry)
        write(registry, KEY, b"0123456", Channel.BODY)
        with pytest.raises(RegistryFull) as refused:
            write(registry, KEY, b"789x", Channel.BODY)
        assert refused.value.limit == 10
        assert write(registry, KEY, b"789", Channel.BODY) == 10  # all or nothing: the refused one left nothing
        with pytest.raises(RegistryFull):
            write(registry, KEY, b"x", Channel.BODY)
        assert all_of(registry, KEY, Channel.BODY) == b"0123456789"
        assert write(registry, KEY, b"x" * 100) == 100  # of the body only
        assert registry.get(KEY).state is JobState.RUNNING

    def test_max_jobs_that_wait_or_run_leave_no_room_for_another(self, make: Callable[..., Registry]) -> None:
        registry = make(max_jobs=3)
        added(registry, "a")
        running(registry, "b")
        added(registry, "c")
        with pytest.raises(QueueFull) as refused:
            added(registry, "d")
        assert refused.value.retry_after > 0
        with pytest.raises(JobNotFound):
            registry.get(key_of("d"))
        assert len(registry.jobs()) == 3

    def test_ended_jobs_make_room_and_the_one_that_ended_first_goes_first(
        self, make: Callable[..., Registry], clock: Clock
    ) -> None:
        registry = make(max_jobs=3)
        for name in "abc":
            running(registry, name)
        for name in "bac":
            clock.advance(0.1)
            registry.finish(key_of(name), RUNNER, JobState.FINISHED)
        added(registry, "d")
        assert {job.title for job in registry.jobs()} == {"a", "c", "d"}
        added(registry, "e")
        assert {job.title for job in registry.jobs()} == {"c", "d", "e"}
        with pytest.raises(JobExpired):
            registry.get(key_of("a"))

    def test_a_job_that_never_started_makes_room(self, make: Callable[..., Registry], clock: Clock) -> None:
        registry = make(max_jobs=1, pending_ttl=0.5)
        added(registry, "a")
        clock.advance(0.49)
        with pytest.raises(QueueFull):
            added(registry, "b")
        clock.advance(0.01)
        added(registry, "b")

    # Keeping.

    def test_a_kept_job_outlives_its_ttl_with_all_that_is_stored_of_it(self, registry: Registry, clock: Clock) -> None:
        registry.add(Job(KEY, "one", keeps_request=True, request={"CONTENT_LENGTH": "7"}))
        registry.append(KEY, Channel.REQUEST, 0, b"request")
        registry.claim(KEY, RUNNER)
        registry.append(KEY, Channel.OUTPUT, 0, b"the output", runner=RUNNER, times=[(10, 5)])
        write(registry, KEY, b"body", Channel.BODY)
        registry.finish(KEY, RUNNER, JobState.FAILED)
        kept = registry.keep(KEY)
        assert kept is not None
        assert (kept.kept, kept.expires_at, kept.size) == (True, None, 21)
        for _ in range(3):
            clock.advance(3600.0)
            registry.evict()
        assert registry.get(KEY) == kept == registry.keep(KEY)
        assert registry.jobs() == [kept]
        assert [all_of(registry, KEY, channel) for channel in Channel] == [b"request", b"the output", b"body"]
        assert registry.times(KEY) == ((10, 5),)
        assert registry.discard(KEY)
        assert registry.jobs() == []

    def test_a_job_that_is_kept_no_more_has_a_ttl_from_then_on(self, registry: Registry, clock: Clock) -> None:
        ended(registry)
        for _ in range(2):
            registry.keep(KEY)
            clock.advance(1000.0)
            given_back = registry.keep(KEY, False)
            assert given_back is not None
            assert (given_back.kept, given_back.expires_at) == (False, clock.now + 60.0)
            clock.advance(59.99)
            registry.evict()
            assert registry.keep(KEY, False) == registry.get(KEY) == given_back
        clock.advance(0.01)
        assert registry.evict() == (0, 1)
        with pytest.raises(JobExpired):
            registry.keep(KEY)

    def test_what_has_not_ended_is_not_kept_and_what_is_lost_is(self, registry: Registry, clock: Clock) -> None:
        assert registry.keep(added(registry, "waits")) == registry.get(key_of("waits"))
        assert registry.keep(running(registry, lease=15.0)) == registry.get(KEY)
        assert not registry.get(KEY).kept
        clock.advance(15.0)
        told: list[Job] = []
        registry.tell_ends(told.append)
        kept = registry.keep(KEY)
        assert kept is not None
        assert (kept.state, kept.kept) == (JobState.LOST, True)
        assert [job.state for job in told] == [JobState.LOST]
        assert not registry.renew(KEY, RUNNER, lease=15.0).ok
        clock.advance(3600.0)
        registry.evict()
        assert registry.get(KEY) == kept

    def test_a_kept_job_does_not_make_room(self, make: Callable[..., Registry], clock: Clock) -> None:
        registry = make(max_jobs=3, max_kept=1)
        for name in "abc":
            ended(registry, name)
            clock.advance(0.1)
        registry.keep(key_of("a"))
        added(registry, "d")
        assert [job.title for job in registry.jobs()] == ["d", "c", "a"]
        added(registry, "e")
        with pytest.raises(QueueFull):
            added(registry, "f")
        assert [job.title for job in registry.jobs()] == ["e", "d", "a"]
        registry.keep(key_of("a"), False)
        added(registry, "f")
        assert [job.title for job in registry.jobs()] == ["f", "e", "d"]

    def test_so_many_jobs_are_kept_and_no_more(self, make: Callable[..., Registry], clock: Clock) -> None:
        registry = make(max_kept=2)
        for name in "abcd":
            ended(registry, name)
        assert all(registry.keep(key_of(name)) for name in "aba")
        assert registry.keep(key_of("c")) is None
        assert not registry.get(key_of("c")).kept
        registry.keep(key_of("a"), False)
        assert registry.keep(key_of("c"))
        assert registry.keep(key_of("d")) is None
        registry.discard(key_of("b"))
        assert registry.keep(key_of("d"))

    def test_so_many_bytes_are_kept_and_no_more(self, make: Callable[..., Registry]) -> None:
        registry = make(max_kept_bytes=10)
        ended(registry, "a", output=b"1234567")
        ended(registry, "b", output=b"123")
        ended(registry, "c", output=b"1")
        assert all(registry.keep(key_of(name)) for name in "ab")
        assert registry.keep(key_of("c")) is None
        registry.discard(key_of("b"))
        assert registry.keep(key_of("c"))

    def test_half_of_all_jobs_are_kept_at_most(self, make: Callable[..., Registry]) -> None:
        registry = make(max_jobs=2)
        ended(registry, "a")
        ended(registry, "b")
        assert registry.keep(key_of("a"))
        assert registry.keep(key_of("b")) is None

    def test_of_eight_threads_that_keep_jobs_as_many_do_as_there_is_room(self, make: Callable[..., Registry]) -> None:
        registry = make(max_kept=3)
        keys = [ended(registry, name) for name in "abcdefgh"]
        kept = [done(future) for future in [begun(registry.keep, key) for key in keys]]
        assert sum(job is not None for job in kept) == 3 == sum(job.kept for job in registry.jobs())

    def test_a_name_that_a_kept_job_keeps_is_not_free(self, registry: Registry, clock: Clock) -> None:
        registry.add(named("one", keeps_name=True))
        registry.claim(KEY, RUNNER)
        registry.finish(KEY, RUNNER, JobState.FINISHED)
        registry.keep(KEY)
        clock.advance(1000.0)
        with pytest.raises(JobExists):
            registry.add(named("two"))
        registry.keep(KEY, False)
        clock.advance(60.0)
        registry.add(named("two"))

    @pytest.mark.parametrize("name", ["max_kept", "max_kept_bytes"])
    @pytest.mark.parametrize("value", [-1, 0.5, "5"])
    def test_a_bad_bound_of_what_is_kept_is_refused(self, make: Callable[..., Registry], name: str, value: Any) -> None:
        with pytest.raises(ConfigurationError, match=rf"^{name} = "):
            make(**{name: value})

    @pytest.mark.parametrize("name", ["ttl", "pending_ttl", "max_jobs", "max_output", "max_result"])
    @pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "5", True])
    def test_a_bad_setting_is_refused_by_name(self, make: Callable[..., Registry], name: str, value: Any) -> None:
        with pytest.raises(ConfigurationError, match=rf"^{name} = "):
            make(**{name: value})

    # Waiting.

    def test_a_wait_returns_at_once_when_there_is_more(self, registry: Registry) -> None:
        running(registry)
        write(registry, KEY, b"abc")
        assert registry.wait(KEY, 2, LONG).output_end == 3

    @each_end
    def test_a_wait_returns_at_once_when_the_job_has_ended(self, registry: Registry, state: JobState) -> None:
        ended(registry, state=state)
        assert registry.wait(KEY, 0, LONG).state is state
        assert registry.wait(KEY, END, LONG).state is state

    def test_a_wait_for_the_end_is_not_ended_by_output(self, registry: Registry) -> None:
        running(registry)
        waiting = begun(registry.wait, KEY, END, LONG)
        write(registry, KEY, b"x" * 1000)
        blocked_on(waiting, registry, KEY, 1000)
        registry.finish(KEY, RUNNER, JobState.FINISHED)
        assert done(waiting).state is JobState.FINISHED
        assert done(waiting).output_end == 1000

    @pytest.mark.parametrize("timeout", [0.0, 0.02])
    def test_a_wait_returns_the_unchanged_job_at_its_timeout(self, registry: Registry, timeout: float) -> None:
        running(registry)
        write(registry, KEY, b"abc")
        began = time.monotonic()
        job = registry.wait(KEY, 3, timeout)
        assert time.monotonic() - began >= timeout
        assert (job.state, job.output_end) == (JobState.RUNNING, 3)

    @pytest.mark.parametrize(
        "change",
        [
            lambda registry: write(registry, KEY, b"d"),
            lambda registry: registry.finish(KEY, RUNNER, JobState.FINISHED),
            lambda registry: registry.finish(KEY, RUNNER, JobState.LOST),
        ],
        ids=["append", "finish", "lost"],
    )
    def test_a_wait_for_a_running_job_is_woken(self, registry: Registry, change: Callable[[Registry], object]) -> None:
        running(registry)
        write(registry, KEY, b"abc")
        waiting = [begun(registry.wait, KEY, 3, LONG) for _ in range(3)]
        blocked_on(waiting[0], registry, KEY, 3)
        change(registry)
        for each in waiting:
            job = done(each)
            assert job.output_end == 4 or job.state.ended

    def test_a_wait_for_a_pending_job_is_woken_by_a_cancel(self, registry: Registry) -> None:
        added(registry)
        waiting = begun(registry.wait, KEY, 0, LONG)
        blocked_on(waiting, registry, KEY, 0)
        registry.request_cancel(KEY)
        assert done(waiting).state is JobState.CANCELLED

    def test_a_wait_is_woken_when_the_job_is_discarded(self, registry: Registry) -> None:
        added(registry)
        waiting = begun(registry.wait, KEY, 0, LONG)
        blocked_on(waiting, registry, KEY, 0)
        assert registry.discard(KEY) is True
        with pytest.raises(JobNotFound):
            done(waiting)

    def test_a_wait_outlasts_the_claim(self, registry: Registry) -> None:
        added(registry)
        waiting = begun(registry.wait, KEY, 0, LONG)
        blocked_on(waiting, registry, KEY, 0)
        registry.claim(KEY, RUNNER)
        write(registry, KEY, b"x")
        assert done(waiting).output_end == 1

    def test_no_wakeup_is_lost_between_a_writer_and_a_waiter(self, registry: Registry) -> None:
        running(registry)

        def follow_each() -> None:
            for offset in range(300):
                assert registry.wait(KEY, offset, LONG).output_end > offset

        waiting = begun(follow_each)
        for offset in range(300):
            registry.append(KEY, Channel.OUTPUT, offset, b"x", runner=RUNNER)
        done(waiting)

    def test_a_wait_notices_by_itself_that_a_lease_ran_out(self, make: Callable[..., Registry]) -> None:
        registry = make(clock=time.time)
        running(registry, lease=0.05)
        assert done(begun(registry.wait, KEY, 0, LONG)).state is JobState.LOST

    def test_a_wait_notices_by_itself_that_a_job_never_started(self, make: Callable[..., Registry]) -> None:
        registry = make(clock=time.time, pending_ttl=0.05)
        added(registry)
        assert done(begun(registry.wait, KEY, 0, LONG)).reason == "never started"

    # States.

    def test_a_claim_starts_a_job(self, registry: Registry, clock: Clock) -> None:
        added(registry)
        clock.advance(3.0)
        assert registry.claim(KEY, RUNNER, lease=15.0)
        job = registry.get(KEY)
        assert (job.state, job.runner, job.started_at) == (JobState.RUNNING, RUNNER, clock.now)
        assert (job.expires_at, job.lease_expires_at) == (None, clock.now + 15.0)

    @each_end
    def test_an_end_says_when_and_why_and_what_was_answered(
        self, registry: Registry, clock: Clock, state: JobState
    ) -> None:
        headers = (("Set-Cookie", "a=1"), ("Set-Cookie", "b=\xe9"), ("X-Empty", ""))
        response = RecordedResponse("418 I'm a teapot", headers, complete=False)
        running(registry, lease=15.0)
        clock.advance(3.0)
        assert registry.finish(KEY, RUNNER, state, reason="ça alors", response=response)
        job = registry.get(KEY)
        assert (job.state, job.reason, job.response) == (state, "ça alors", response)
        assert (job.title, job.owner, job.fingerprint) == ("one", None, "")
        assert (job.ended_at, job.expires_at, job.lease_expires_at) == (clock.now, clock.now + 60.0, None)

    def test_a_claim_is_refused_to_the_second(self, registry: Registry) -> None:
        running(registry)
        assert registry.claim(KEY, "another") is False
        assert registry.claim(KEY, RUNNER) is False
        assert registry.get(KEY).runner == RUNNER

    def test_one_of_eight_threads_claims_a_job(self, registry: Registry) -> None:
        for number in range(20):
            key = added(registry, f"job {number}")
            start = threading.Barrier(8)

            def claim(runner: str, key: str = key, start: threading.Barrier = start) -> bool:
                start.wait(LONG)
                return registry.claim(key, runner)

            claims = {runner: begun(claim, runner) for runner in "abcdefgh"}
            winners = [runner for runner, won in claims.items() if done(won)]
            assert winners == [registry.get(key).runner]

    @each_end
    def test_an_ended_job_never_changes(self, registry: Registry, clock: Clock, state: JobState) -> None:
        ended(registry, state=state)
        before = registry.get(KEY)
        clock.advance(1.0)
        for to in JobState:
            assert registry.transition(KEY, set(JobState), Transition(to, RUNNER, reason="no")) is False
        assert registry.request_cancel(KEY) is state
        assert registry.renew(KEY, RUNNER, lease=15.0, progress=Progress(1)) == (False, False)
        assert registry.evict() == (0, 0)
        assert registry.get(KEY) == before

    def test_a_transition_from_another_state_is_refused(self, registry: Registry) -> None:
        added(registry)
        assert registry.transition(KEY, {JobState.RUNNING}, Transition(JobState.FINISHED, RUNNER)) is False
        assert registry.transition(KEY, (), Transition(JobState.FINISHED, RUNNER)) is False
        assert registry.get(KEY).state is JobState.PENDING
        registry.claim(KEY, RUNNER)
        assert registry.transition(KEY, {JobState.PENDING}, Transition(JobState.LOST, RUNNER)) is False
        assert registry.get(KEY).state is JobState.RUNNING

    def test_a_running_job_is_ended_by_its_runner_only(self, registry: Registry) -> None:
        running(registry)
        assert registry.finish(KEY, "another", JobState.FINISHED) is False
        assert registry.transition(KEY, {JobState.RUNNING}, Transition(JobState.LOST)) is False
        assert registry.get(KEY).state is JobState.RUNNING
        assert registry.finish(KEY, RUNNER, JobState.FINISHED) is True

    def test_a_pending_job_may_be_ended_by_anybody(self, registry: Registry) -> None:
        added(registry)
        assert registry.transition(KEY, {JobState.PENDING}, Transition(JobState.LOST, reason="server shut down"))
        assert registry.get(KEY).reason == "server shut down"
        assert registry.claim(KEY, RUNNER) is False

    def test_who_sees_the_end_sees_everything(self, registry: Registry) -> None:
        for number in range(30):
            key = running(registry, f"job {number}")
            seen = begun(self.read_when_ended, registry, key)
            for offset in range(0, 300, 3):
                registry.append(key, Channel.OUTPUT, offset, b"out", runner=RUNNER)
                registry.append(key, Channel.BODY, offset, b"bod", runner=RUNNER)
            registry.finish(key, RUNNER, JobState.FINISHED)
            assert done(seen) == (300, 300, b"out" * 100, b"bod" * 100)

    def read_when_ended(self, registry: Registry, key: str) -> tuple[int, int, bytes, bytes]:
        while not (job := registry.get(key)).state.ended:
            pass
        return job.output_end, job.body_end, all_of(registry, key), all_of(registry, key, Channel.BODY)

    # Leases.

    def test_a_lease_that_ran_out_reads_as_lost_at_once(self, registry: Registry, clock: Clock) -> None:
        running(registry, lease=15.0)
        due = clock.now + 15.0
        write(registry, KEY, b"kept")
        clock.advance(14.99)
        assert registry.get(KEY).state is JobState.RUNNING
        clock.advance(0.01)
        job = registry.get(KEY)
        assert (job.state, job.reason, job.ended_at) == (JobState.LOST, "its runner vanished", due)
        assert job.output_end == 4
        assert registry.wait(KEY, 4, LONG).state is JobState.LOST
        assert [job.state for job in registry.jobs()] == [JobState.LOST]
        assert all_of(registry, KEY) == b"kept"

    def test_each_end_is_told_once_by_who_wrote_it_down(self, registry: Registry, clock: Clock) -> None:
        told: list[Job] = []
        registry.tell_ends(told.append)
        ended(registry, "finished", output=b"kept")
        assert not registry.finish(key_of("finished"), RUNNER, JobState.FAILED)
        assert registry.request_cancel(added(registry, "cancelled")) is JobState.CANCELLED
        registry.request_cancel(key_of("cancelled"))
        registry.request_cancel(running(registry, "goes on"))
        running(registry, "vanished", lease=15.0)
        clock.advance(15.0)
        assert registry.get(key_of("vanished")).state is JobState.LOST  # which nobody has written down
        assert [(job.title, job.state) for job in told] == [
            ("finished", JobState.FINISHED),
            ("cancelled", JobState.CANCELLED),
        ]
        assert told[0].output_end == 4
        registry.evict()
        registry.evict()
        assert [(job.title, job.state) for job in told[2:]] == [("vanished", JobState.LOST)]
        assert registry.get(told[2].key) == told[2]

    def test_jobs_that_are_forgotten_are_counted(self, make: Callable[..., Registry], clock: Clock) -> None:
        with make(ttl=10.0, max_jobs=2) as registry:
            told: list[tuple[str, float]] = []
            registry.tell_numbers(lambda name, number: told.append((name, number)))
            ended(registry, "one")
            registry.discard(key_of("one"))  # by somebody's wish
            ended(registry, "two")
            ended(registry, "three")
            assert told == []
            ended(registry, "four")  # for room
            assert told == [("evicted", 1)]
            clock.advance(10.0)
            registry.evict()
            assert {name for name, _ in told} == {"evicted"}
            assert sum(number for _, number in told) == 3

    def test_an_answer_that_is_a_refusal_is_no_error_of_the_storage(self, registry: Registry) -> None:
        told: list[tuple[str, float]] = []
        registry.tell_numbers(lambda name, number: told.append((name, number)))
        added(registry)
        with pytest.raises(JobExists):
            added(registry)
        with pytest.raises(BadOffset):
            registry.append(KEY, Channel.REQUEST, 1000, b"far behind")
        with pytest.raises(JobNotFound):
            registry.get(key_of("nobody's"))
        assert told == []

    def test_an_outbox_gives_each_text_when_it_is_due_to_one_who_asks(self, registry: Registry) -> None:
        outbox = registry.outbox("a1")
        assert (outbox.take(1e9, 60.0), outbox.first(), outbox.size()) == (None, None, 0)
        assert outbox.put("later", 20.0, "l\u00e4ter")
        assert outbox.put("first", 10.0, "old")
        assert outbox.put("first", 11.0, "new")
        assert outbox.size() == 2
        assert [outbox.first() for _ in range(2)] == [("first", 11.0, "new")] * 2
        assert outbox.take(10.9, 60.0) is None
        assert outbox.take(11.0, 60.0) == ("first", "new")
        assert outbox.first() == ("later", 20.0, "l\u00e4ter")
        assert outbox.take(19.0, 60.0) is None
        assert outbox.take(20.0, 60.0) == ("later", "l\u00e4ter")
        assert outbox.take(71.0, 60.0) == ("first", "new")  # who took it did nothing with it
        outbox.remove("first")
        outbox.remove("first")
        assert outbox.size() == 1
        assert registry.outbox("b2").size() == 0
        takers = [begun(lambda: registry.outbox("a1").take(1e6, 60.0)) for _ in range(8)]
        assert [taken for taken in map(done, takers) if taken] == [("later", "l\u00e4ter")]

    def test_an_outbox_has_room_for_so_many_texts(self, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
        outbox = registry.outbox("a1")
        monkeypatch.setattr(importlib.import_module(type(outbox).__module__), "MOST", 2)
        assert [outbox.put(name, 1.0, "x") for name in "abc"] == [True, True, False]
        assert outbox.put("a", 2.0, "y")
        assert outbox.size() == 2

    def test_a_job_without_a_lease_runs_as_long_as_it_likes(self, registry: Registry, clock: Clock) -> None:
        running(registry, lease=None)
        clock.advance(1e7)
        assert registry.get(KEY).state is JobState.RUNNING

    def test_a_renewed_lease_counts_from_the_renewal(self, registry: Registry, clock: Clock) -> None:
        running(registry, lease=15.0)
        clock.advance(10.0)
        assert registry.renew(KEY, RUNNER, lease=15.0) == (True, False)
        clock.advance(14.99)
        assert registry.get(KEY).state is JobState.RUNNING
        assert registry.evict() == (0, 0)
        clock.advance(0.01)
        assert registry.get(KEY).state is JobState.LOST

    def test_nobody_renews_for_another(self, registry: Registry, clock: Clock) -> None:
        added(registry)
        assert registry.renew(KEY, RUNNER, lease=15.0) == (False, False)
        registry.claim(KEY, RUNNER, lease=15.0)
        clock.advance(10.0)
        for other in ("another", ""):
            assert registry.renew(KEY, other, lease=15.0, progress=Progress(1)).ok is False
        clock.advance(5.0)
        assert registry.get(KEY).state is JobState.LOST
        assert registry.get(KEY).progress is None

    def test_a_late_renewal_revives_a_job_that_read_as_lost(self, registry: Registry, clock: Clock) -> None:
        running(registry, lease=15.0)
        clock.advance(1000.0)
        assert registry.get(KEY).state is JobState.LOST
        assert registry.renew(KEY, RUNNER, lease=15.0) == (True, False)
        job = registry.get(KEY)
        assert (job.state, job.reason, job.ended_at) == (JobState.RUNNING, "", None)
        assert write(registry, KEY, b"awake again") == 11
        assert registry.finish(KEY, RUNNER, JobState.FINISHED)

    def test_a_late_end_is_the_truth(self, registry: Registry, clock: Clock) -> None:
        running(registry, lease=15.0)
        clock.advance(15.0)
        assert registry.append(KEY, Channel.OUTPUT, 0, b"x", runner=RUNNER) == 1
        assert registry.finish(KEY, RUNNER, JobState.FINISHED)
        assert registry.get(KEY).state is JobState.FINISHED

    def test_a_loss_is_made_permanent_exactly_once_and_fences_the_runner_off(
        self, registry: Registry, clock: Clock
    ) -> None:
        running(registry, lease=15.0)
        write(registry, KEY, b"kept")
        clock.advance(100.0)
        read = registry.get(KEY)
        assert registry.evict() == (1, 0)
        assert registry.evict() == (0, 0)
        assert registry.renew(KEY, RUNNER, lease=15.0) == (False, False)
        assert registry.finish(KEY, RUNNER, JobState.FINISHED) is False
        with pytest.raises(Fenced):
            registry.append(KEY, Channel.OUTPUT, 4, b"x", runner=RUNNER)
        job = registry.get(KEY)
        assert (job.state, job.reason, job.ended_at) == (read.state, read.reason, read.ended_at)
        assert all_of(registry, KEY) == b"kept"

    def test_a_lost_job_is_readable_for_a_ttl_from_when_its_loss_became_permanent(
        self, registry: Registry, clock: Clock
    ) -> None:
        running(registry, lease=15.0)
        clock.advance(1000.0)
        registry.evict()
        clock.advance(59.99)
        assert registry.get(KEY).state is JobState.LOST
        clock.advance(0.01)
        with pytest.raises(JobExpired):
            registry.get(KEY)

    def test_eight_threads_that_evict_at_once_lose_and_forget_each_job_once(
        self, registry: Registry, clock: Clock
    ) -> None:
        for number in range(20):
            running(registry, f"leased {number}", lease=15.0)
        for number in range(20):
            ended(registry, f"ended {number}")
        clock.advance(60.0)
        start = threading.Barrier(8)

        def evict() -> tuple[int, int]:
            start.wait(LONG)
            return registry.evict()

        counts = [done(each) for each in [begun(evict) for _ in range(8)]]
        assert (sum(lost for lost, _ in counts), sum(evicted for _, evicted in counts)) == (20, 20)

    def test_a_cancel_that_was_asked_for_and_a_dead_runner_make_a_cancelled_job(
        self, registry: Registry, clock: Clock
    ) -> None:
        running(registry, lease=15.0)
        assert registry.request_cancel(KEY) is JobState.RUNNING
        clock.advance(14.99)
        assert registry.get(KEY).state is JobState.RUNNING
        clock.advance(0.01)
        assert registry.get(KEY).state is JobState.CANCELLED
        assert registry.evict() == (1, 0)
        assert registry.get(KEY).state is JobState.CANCELLED
        assert registry.renew(KEY, RUNNER, lease=15.0) == (False, True)

    def test_a_cancel_of_a_job_that_reads_as_lost_changes_nothing(self, registry: Registry, clock: Clock) -> None:
        running(registry, lease=15.0)
        clock.advance(15.0)
        assert registry.request_cancel(KEY) is JobState.LOST
        assert registry.renew(KEY, RUNNER, lease=15.0) == (True, False)

    def test_progress_is_stored_and_stays_until_there_is_newer(self, registry: Registry) -> None:
        running(registry)
        assert registry.get(KEY).progress is None
        registry.renew(KEY, RUNNER, progress=Progress(3, 10, "Zeilen gezählt"))
        assert registry.get(KEY).progress == Progress(3, 10, "Zeilen gezählt")
        registry.renew(KEY, RUNNER, lease=15.0)
        assert registry.get(KEY).progress == Progress(3, 10, "Zeilen gezählt")
        registry.renew(KEY, RUNNER, progress=Progress(0.5))
        registry.finish(KEY, RUNNER, JobState.FINISHED)
        assert registry.get(KEY).progress == Progress(0.5)

    def test_steps_are_stored_and_stay_until_there_are_newer(self, registry: Registry) -> None:
        running(registry)
        parts = (Step("Lesen ☃", None, StepState.DONE, 0, 1500, 0, 80), Step("x", 0, begun=7, progress=Progress(1, 2)))
        assert registry.renew(KEY, RUNNER, steps=Steps(parts[:1])).ok
        assert registry.renew(KEY, RUNNER, steps=Steps(parts, 3)).ok
        assert registry.renew(KEY, RUNNER).ok
        registry.finish(KEY, RUNNER, JobState.FINISHED)
        assert registry.get(KEY).steps == Steps(parts, 3)

    def test_a_running_job_can_be_called_otherwise(self, registry: Registry) -> None:
        running(registry)
        before = registry.get(KEY)
        registry.renew(KEY, RUNNER, title="Zeilen von Ada")
        assert registry.get(KEY).title == "Zeilen von Ada"
        assert registry.get(KEY).lease_expires_at == before.lease_expires_at
        registry.renew(KEY, RUNNER, progress=Progress(1))
        registry.finish(KEY, RUNNER, JobState.FINISHED)
        assert registry.get(KEY).title == "Zeilen von Ada"
        assert not registry.renew(KEY, RUNNER, title="later").ok
        assert registry.get(KEY).title == "Zeilen von Ada"

    def test_progress_alone_does_not_touch_the_lease(self, registry: Registry, clock: Clock) -> None:
        running(registry, lease=15.0)
        clock.advance(10.0)
        registry.renew(KEY, RUNNER, progress=Progress(1))
        assert registry.get(KEY).lease_expires_at == clock.now + 5.0

    # Groups: how many of them run at a time.

    def grouped(self, registry: Registry, name: str, **groups: int) -> str:
        return registry.add(Job(key_of(name), name, groups=groups)).key

    def test_a_job_waits_while_its_group_is_full_and_stays_pending(self, registry: Registry) -> None:
        first, second = (self.grouped(registry, name, reindex=1) for name in ("first", "second"))
        other = self.grouped(registry, "other", report=1)
        assert registry.claim(first, RUNNER)
        assert not registry.claim(second, RUNNER)
        assert registry.get(second).state is JobState.PENDING
        assert registry.claim(other, RUNNER)  # of another group
        registry.finish(first, RUNNER, JobState.FINISHED)
        assert registry.claim(second, RUNNER)

    def test_each_of_its_groups_must_have_room(self, registry: Registry) -> None:
        for name in ("a", "b"):
            assert registry.claim(self.grouped(registry, name, ann=2), RUNNER)
        assert not registry.claim(self.grouped(registry, "c", report=5, ann=2), RUNNER)
        assert registry.claim(self.grouped(registry, "d", report=5, bob=2), RUNNER)

    def test_a_runner_that_vanished_takes_no_place_in_a_group(self, registry: Registry, clock: Clock) -> None:
        first, second = (self.grouped(registry, name, reindex=1) for name in ("first", "second"))
        assert registry.claim(first, RUNNER, lease=6.0)
        clock.advance(5.9)
        assert not registry.claim(second, RUNNER, lease=6.0)
        registry.renew(first, RUNNER, lease=6.0)
        clock.advance(5.9)
        assert not registry.claim(second, RUNNER, lease=6.0)
        clock.advance(0.2)
        assert registry.claim(second, RUNNER, lease=6.0)

    def test_a_group_has_room_again_however_its_job_ended(self, registry: Registry) -> None:
        for number, state in enumerate(ENDS):
            key = self.grouped(registry, f"job {number}", reindex=1)
            assert registry.claim(key, RUNNER)
            registry.finish(key, RUNNER, state)

    def test_those_that_wait_of_a_group_are_counted(self, registry: Registry, clock: Clock) -> None:
        keys = [self.grouped(registry, name, reindex=1, ann=5) for name in "abcde"]
        self.grouped(registry, "other", report=1)
        assert [registry.waiting(group) for group in ("reindex", "ann", "report", "nobody")] == [5, 5, 1, 0]
        assert registry.claim(keys[0], RUNNER)
        registry.request_cancel(keys[1])
        registry.discard(keys[2])
        assert registry.waiting("reindex") == registry.waiting("ann") == 2
        clock.advance(25.0)
        registry.evict()
        assert registry.waiting("reindex") == registry.waiting("report") == 0

    def test_groups_of_any_name_are_counted(self, registry: Registry) -> None:
        for number, name in enumerate(("owner ann ☃", "mark /x/*", "owner \udcff", "a'b\"c")):
            registry.add(Job(key_of(str(number)), "job", groups={name: 1}))
            assert registry.waiting(name) == 1

    def test_of_eight_threads_no_more_begin_than_their_group_lets(self, registry: Registry) -> None:
        keys = [self.grouped(registry, f"job {number}", reindex=3) for number in range(8)]
        barrier = threading.Barrier(8)

        def claim(key: str) -> bool:
            barrier.wait(LONG)
            return registry.claim(key, key)

        claims = [begun(claim, key) for key in keys]
        assert sum(done(claim) for claim in claims) == 3

    # The queue.

    def test_a_pending_job_knows_its_place_in_the_order_of_coming(self, registry: Registry, clock: Clock) -> None:
        keys = []
        for name in "abcd":
            clock.advance(1.0)
            keys.append(added(registry, name))
        assert [registry.position(key) for key in keys] == [1, 2, 3, 4]
        registry.claim(keys[1], RUNNER)
        assert [registry.position(key) for key in keys] == [1, 0, 2, 3]
        registry.request_cancel(keys[0])
        registry.discard(keys[2])
        assert [registry.position(key) for key in (keys[0], keys[1], keys[3])] == [0, 0, 1]

    def test_those_of_a_higher_priority_are_before_the_others(self, registry: Registry) -> None:
        names = [("a", "low"), ("b", "normal"), ("c", "high"), ("d", "normal"), ("e", "high"), ("f", "low")]
        keys = {name: registry.add(Job(key_of(name), name, priority=Priority(word))).key for name, word in names}
        assert [registry.position(key) for key in keys.values()] == [5, 3, 1, 4, 2, 6]
        assert [job.title for job in registry.jobs(JobState.PENDING)] == list("fedcba")
        assert registry.get(keys["a"]).priority is Priority.LOW
        registry.claim(keys["c"], RUNNER)
        registry.request_cancel(keys["b"])
        assert [registry.position(key) for key in keys.values()] == [3, 0, 0, 2, 1, 4]
        registry.discard(keys["e"])
        assert [registry.position(keys[name]) for name in "adf"] == [2, 1, 3]

    # The receipt.

    def test_a_receipt_is_added_to_by_the_claim_and_by_the_end(self, registry: Registry) -> None:
        added(registry)
        assert registry.claim(KEY, RUNNER, receipt={"runner": "host ☃", "cpu_time": 0.0})
        assert dict(registry.get(KEY).receipt) == {"runner": "host ☃", "cpu_time": 0.0}
        registry.finish(KEY, RUNNER, JobState.FINISHED, receipt={"cpu_time": 1.25})
        assert dict(registry.get(KEY).receipt) == {"runner": "host ☃", "cpu_time": 1.25}

    def test_who_is_refused_leaves_no_receipt(self, registry: Registry) -> None:
        running(registry)
        assert not registry.claim(KEY, "another", receipt={"runner": "another"})
        assert not registry.finish(KEY, "another", JobState.FAILED, receipt={"runner": "another"})
        assert dict(registry.get(KEY).receipt) == {}
        self.grouped(registry, "first", reindex=1)
        assert registry.claim(key_of("first"), RUNNER)
        second = self.grouped(registry, "second", reindex=1)
        assert not registry.claim(second, RUNNER, receipt={"runner": "another"})
        assert dict(registry.get(second).receipt) == {}

    # The secret.

    def test_a_secret_is_long_stays_the_same_and_is_another_for_each_registry(
        self, registry: Registry, make: Callable[..., Registry]
    ) -> None:
        assert len(registry.secret()) == 32
        assert registry.secret() == registry.secret() != make().secret()

    # Cancelling.

    def test_the_first_who_asks_says_why(self, registry: Registry, clock: Clock) -> None:
        running(registry, lease=15.0)
        registry.request_cancel(KEY, "it took too long")
        registry.request_cancel(KEY, "somebody else thinks so too")
        assert registry.get(KEY).reason == "it took too long"
        clock.advance(15.0)
        assert (registry.get(KEY).state, registry.get(KEY).reason) == (JobState.CANCELLED, "it took too long")
        registry.evict()
        assert registry.get(KEY).reason == "it took too long"

    def test_a_pending_job_is_cancelled_for_the_reason_given(self, registry: Registry) -> None:
        added(registry)
        registry.request_cancel(KEY, "it is not needed any more")
        assert registry.get(KEY).reason == "it is not needed any more"

    def test_a_pending_job_is_cancelled_at_once(self, registry: Registry, clock: Clock) -> None:
        added(registry)
        assert registry.request_cancel(KEY) is JobState.CANCELLED
        job = registry.get(KEY)
        assert (job.state, job.ended_at, job.expires_at) == (JobState.CANCELLED, clock.now, clock.now + 60.0)
        assert job.reason
        assert registry.claim(KEY, RUNNER) is False

    def test_a_running_job_is_told_and_goes_on_until_it_heeds(self, registry: Registry, clock: Clock) -> None:
        running(registry)
        asked_at = clock.advance(2.0)
        assert registry.request_cancel(KEY) is JobState.RUNNING
        clock.advance(2.0)
        assert registry.request_cancel(KEY) is JobState.RUNNING  # the second changes nothing
        assert registry.get(KEY).cancel_requested_at == asked_at
        assert registry.renew(KEY, RUNNER) == (True, True)
        assert write(registry, KEY, b"cleaning up") == 11

    @each_end
    def test_a_job_ends_as_it_ends_and_says_that_a_cancel_was_asked_for(
        self, registry: Registry, clock: Clock, state: JobState
    ) -> None:
        running(registry)
        registry.request_cancel(KEY)
        registry.finish(KEY, RUNNER, state)
        job = registry.get(KEY)
        assert (job.state, job.cancel_requested_at) == (state, clock.now)

    # The cookies of a response are delivered once.

    def test_one_of_eight_threads_takes_the_cookies(self, registry: Registry) -> None:
        ended(registry)
        ended(registry, "another")
        start = threading.Barrier(8)

        def take() -> bool:
            start.wait(LONG)
            return registry.take_cookies(KEY)

        assert sorted(done(each) for each in [begun(take) for _ in range(8)]) == [False] * 7 + [True]
        assert registry.take_cookies(KEY) is False
        assert registry.take_cookies(key_of("another")) is True

    # Forgetting and listing.

    @each_end
    def test_a_discarded_job_is_gone_and_unknown(self, registry: Registry, state: JobState) -> None:
        ended(registry, state=state, output=b"secret")
        assert registry.discard(KEY) is True
        assert registry.discard(KEY) is False
        with pytest.raises(JobNotFound):
            registry.get(KEY)
        assert registry.jobs() == []

    def test_a_pending_job_can_be_discarded(self, registry: Registry) -> None:
        added(registry)
        assert registry.discard(KEY) is True
        with pytest.raises(JobNotFound):
            registry.claim(KEY, RUNNER)

    def test_jobs_are_listed_newest_first_up_to_a_limit(self, registry: Registry, clock: Clock) -> None:
        for name in "abcde":
            clock.advance(1.0)
            added(registry, name)
        registry.claim(key_of("b"), RUNNER)  # what happens later does not change the order
        assert [job.title for job in registry.jobs()] == ["e", "d", "c", "b", "a"]
        assert [job.title for job in registry.jobs(limit=2)] == ["e", "d"]
        assert registry.jobs(limit=0) == []

    def test_a_list_of_jobs_can_be_read_in_parts(self, registry: Registry, clock: Clock) -> None:
        for name in "abcde":
            clock.advance(1.0)
            added(registry, name)
        registry.claim(key_of("d"), RUNNER)
        parts = [registry.jobs(limit=2, skip=skip) for skip in (0, 2, 4, 6)]
        assert [[job.title for job in part] for part in parts] == [["e", "d"], ["c", "b"], ["a"], []]
        # What is in another state is not counted.
        assert [job.title for job in registry.jobs(JobState.PENDING, limit=2, skip=1)] == ["c", "b"]

    def test_jobs_are_listed_by_state(self, registry: Registry, clock: Clock) -> None:
        for state in ENDS:
            clock.advance(0.1)
            ended(registry, state, state)
        running(registry, "running")
        added(registry, "pending")
        for state in JobState:
            assert [job.title for job in registry.jobs(state)] == [state]
        assert [job.title for job in registry.jobs(JobState.LOST, limit=1)] == ["lost"]

    def test_jobs_are_listed_as_they_read_and_expired_ones_are_not(self, registry: Registry, clock: Clock) -> None:
        added(registry, "never started")
        running(registry, "leased", lease=15.0)
        clock.advance(10.0)
        ended(registry, "ended")
        clock.advance(10.0)
        assert {job.title for job in registry.jobs(JobState.LOST)} == {"never started", "leased"}
        assert registry.jobs(JobState.PENDING) == registry.jobs(JobState.RUNNING) == []
        clock.advance(60.0)
        assert "ended" not in {job.title for job in registry.jobs()}

    def test_an_eviction_stops_at_its_limit(self, registry: Registry, clock: Clock) -> None:
        for name in "abcde":
            ended(registry, name)
        clock.advance(59.99)
        assert registry.evict() == (0, 0)
        clock.advance(0.01)
        assert [registry.evict(2) for _ in range(4)] == [(0, 2), (0, 2), (0, 1), (0, 0)]

    def test_an_eviction_counts_lost_and_forgotten_jobs_towards_one_limit(
        self, registry: Registry, clock: Clock
    ) -> None:
        for name in "abc":
            ended(registry, name)
            running(registry, f"{name} leased", lease=15.0)
            added(registry, f"{name} pending")
        clock.advance(60.0)
        counts = [registry.evict(4) for _ in range(4)]
        assert [sum(count) for count in counts] == [4, 4, 1, 0]
        assert sum(count.lost for count in counts) == 6
        assert sum(count.evicted for count in counts) == 3

    # What is written once above the primitives.

    @pytest.mark.parametrize("offset", [0, 1, 5000])
    def test_following_gives_each_byte_once_and_in_order_while_it_is_written(
        self, registry: Registry, offset: int
    ) -> None:
        running(registry)
        chance = random.Random(offset)
        data = chance.randbytes(40_000)

        def follow() -> bytes:
            at, parts = offset, []
            for piece in registry.follow(KEY, offset):
                assert piece.offset == at
                at = piece.end
                parts.append(piece.data)
            return b"".join(parts)

        followers = [begun(follow), begun(follow)]
        at = 0
        while at < len(data):
            chunk = data[at : at + chance.randrange(1, 700)]
            at = registry.append(KEY, Channel.OUTPUT, at, chunk, runner=RUNNER)
        registry.finish(KEY, RUNNER, JobState.FINISHED)
        assert [done(follower) for follower in followers] == [data[offset:], data[offset:]]

    def test_following_says_with_an_empty_piece_that_nothing_came(self, registry: Registry) -> None:
        running(registry)
        write(registry, KEY, b"abc")
        following = registry.follow(KEY, tick=0.01)
        assert [next(following) for _ in range(3)] == [(0, b"abc"), (3, b""), (3, b"")]
        write(registry, KEY, b"def")
        assert next(following) == (3, b"def")
        registry.finish(KEY, RUNNER, JobState.FINISHED)
        assert list(following) == []

    def test_following_goes_on_behind_what_was_dropped(self, make: Callable[..., Registry]) -> None:
        registry = make(max_output=10)
        running(registry)
        data = bytes(range(100))
        write(registry, KEY, data)
        registry.finish(KEY, RUNNER, JobState.FINISHED)
        begin, end = dropped_of(registry, KEY)
        pieces = list(registry.follow(KEY))
        assert b"".join(piece.data for piece in pieces) == data[:begin] + data[end:]
        assert end in [piece.offset for piece in pieces]

    def test_following_an_ended_job_from_its_end_gives_nothing(self, registry: Registry) -> None:
        ended(registry, output=b"abc")
        assert list(registry.follow(KEY, 3)) == []
        assert list(registry.follow(KEY, 2)) == [(2, b"c")]

    def test_a_page_is_what_there_is_from_an_offset(self, registry: Registry) -> None:
        running(registry)
        write(registry, KEY, b"0123456789")
        assert registry.page(KEY, 0).piece == (0, b"0123456789")
        assert registry.page(KEY, 4, limit=3).piece == (4, b"456")
        assert registry.page(KEY, 9).piece == (9, b"9")
        assert registry.page(KEY, 9).job.output_end == 10

    def test_a_page_of_a_job_that_was_just_read_does_not_look_at_it_again(self, registry: Registry) -> None:
        running(registry)
        write(registry, KEY, b"0123456789")
        job = registry.get(KEY)
        write(registry, KEY, b"abc")
        page = registry.page(KEY, -2, job=job)
        assert page.job is job
        assert page.piece == (8, b"89abc"), "all that there is, but its beginning is that of then"
        assert registry.page(KEY, 11, job=job).piece == (10, b"abc"), "behind the end of then is at the end of then"

    def test_a_page_at_the_end_or_behind_it_is_empty_and_at_the_end(self, registry: Registry) -> None:
        running(registry)
        write(registry, KEY, b"abc")
        assert registry.page(KEY, 3).piece == (3, b"")
        assert registry.page(KEY, 4).piece == (3, b"")
        assert registry.page(KEY, 10**12).piece == (3, b"")

    def test_a_negative_offset_is_the_tail(self, registry: Registry) -> None:
        running(registry)
        write(registry, KEY, b"0123456789")
        assert registry.page(KEY, -3).piece == (7, b"789")
        assert registry.page(KEY, -10).piece == (0, b"0123456789")
        assert registry.page(KEY, -11).piece == (0, b"0123456789")

    def test_a_tail_of_no_output_is_empty_and_does_not_wait(self, registry: Registry) -> None:
        running(registry)
        assert registry.page(KEY, -100, timeout=LONG).piece == (0, b"")

    @pytest.mark.parametrize("character", ["é", "€", "🦊"])
    def test_a_page_ends_between_characters_and_the_next_one_goes_on(self, registry: Registry, character: str) -> None:
        running(registry)
        text = f"abc{character * 5}\n"
        write(registry, KEY, text.encode())
        for limit in range(4, 12):
            offset, parts = 0, []
            while offset < len(text.encode()):
                piece = registry.page(KEY, offset, limit=limit).piece
                assert piece.offset == offset
                assert 0 < len(piece.data) <= limit
                parts.append(piece.data.decode())  # raises if it is cut
                offset = piece.end
            assert "".join(parts) == text

    @pytest.mark.parametrize("character", ["é", "€", "🦊"])
    def test_a_tail_begins_between_characters(self, registry: Registry, character: str) -> None:
        running(registry)
        write(registry, KEY, f"ab{character}c".encode())
        size = len(character.encode())
        assert registry.page(KEY, -size - 1).piece == (2, f"{character}c".encode())
        for tail in range(1, size + 1):
            assert registry.page(KEY, -tail).piece == (size + 2, b"c")

    def test_a_character_that_is_half_written_is_not_shown_before_it_is_whole(self, registry: Registry) -> None:
        running(registry)
        write(registry, KEY, b"ab\xf0\x9f")
        assert registry.page(KEY, 0).piece == (0, b"ab")
        assert registry.page(KEY, 2).piece == (2, b"")
        write(registry, KEY, b"\xa6\x8a")
        assert registry.page(KEY, 2).piece == (2, "🦊".encode())

    def test_a_character_that_will_never_be_whole_is_shown_at_the_end(self, registry: Registry) -> None:
        ended(registry, output=b"ab\xf0\x9f")
        assert registry.page(KEY, 0).piece == (0, b"ab\xf0\x9f")

    def test_bytes_that_are_no_characters_are_shown(self, registry: Registry) -> None:
        running(registry)
        write(registry, KEY, b"\x80" * 8)
        assert registry.page(KEY, 0).piece == (0, b"\x80" * 8)
        write(registry, KEY, b"\xff")
        assert registry.page(KEY, 8).piece == (8, b"\xff")

    @pytest.mark.parametrize("size", range(8, 24))
    def test_pages_get_past_what_was_dropped_wherever_it_cuts_a_character(
        self, make: Callable[..., Registry], size: int
    ) -> None:
        registry = make(max_output=size)
        running(registry)
        data = ("€" * 100).encode()
        write(registry, KEY, data)
        begin, end = dropped_of(registry, KEY)
        offset, shown = 0, b""
        for _ in range(20):
            piece = registry.page(KEY, offset, limit=7).piece
            shown += piece.data
            offset = piece.end
        assert offset == len(data)
        assert shown.startswith(data[:begin])
        assert shown.endswith(data[-(-end // 3) * 3 :])
        assert piece.data == b""

    def test_a_page_waits_for_more_and_is_woken(self, registry: Registry) -> None:
        running(registry)
        write(registry, KEY, b"abc")

        def page() -> Any:
            return registry.page(KEY, 3, timeout=LONG)

        waiting = begun(page)
        blocked_on(waiting, registry, KEY, 3)
        write(registry, KEY, b"d")
        assert done(waiting).piece == (3, b"d")

    def test_a_page_waits_no_longer_than_its_timeout(self, registry: Registry) -> None:
        running(registry)
        assert registry.page(KEY, 0, timeout=0.02).piece == (0, b"")

    # Closing.

    def test_closing_twice_is_as_closing_once(self, registry: Registry) -> None:
        ended(registry, output=b"x")
        registry.close()
        registry.close()

    def test_a_registry_closes_at_the_end_of_a_with_block(self, make: Callable[..., Registry]) -> None:
        with make() as registry:
            ended(registry)
        registry.close()
