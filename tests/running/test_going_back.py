"""A registry whose storage goes back to what it was earlier, as a Redis that was restarted from a snapshot: what is
lost is said, and nothing else is lost."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import copy_context
from typing import Any

import pytest

from bgmiddleware import Channel, Job, JobState, Run
from bgmiddleware._jobs import RecordedResponse, key_of
from bgmiddleware._running import call_function
from bgmiddleware._running import keeper as _keeper
from bgmiddleware.registries._memory.logs import Log
from bgmiddleware.testing.registries import LONG, all_of, begun, done
from tests.running.test_keeper import SharedRegistry

KEY = key_of("one")


class GoingBack(SharedRegistry):
    """A registry that can be as it was earlier."""

    def keep(self) -> None:
        """Keep what there is of the job, as a snapshot does."""
        with self._lock:
            record = self._records[KEY]
            self._snapshot = record.job, {name: log.read(0, log.end).data for name, log in record.logs.items()}

    def go_back(self) -> None:
        """Be as it was when it was kept."""
        with self._lock:
            record = self._records[KEY]
            record.job, kept = self._snapshot
            for log in record.logs.values():
                log.remove()
            record.logs = {name: Log(self._spool, None) for name in kept}
            for name, data in kept.items():
                record.logs[name].append(data)
            if record.job.state is JobState.PENDING:
                self._running.pop(KEY, None)
                self._pending[KEY] = None


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[GoingBack]:
    for name in ("RENEW_EVERY", "_LOOK_EVERY", "_COLLECT_EVERY"):
        monkeypatch.setattr(_keeper, name, 0.01)
    with GoingBack() as registry:
        registry.add(Job(KEY, "one"))
        yield registry


def wait_for(registry: GoingBack, end: int) -> None:
    while registry.get(KEY).output_end < end:
        registry.wait(KEY, end - 1, 0.1)


def run(registry: GoingBack, work: Callable[..., Any]) -> Job:
    """Run a job; *work* takes what gives the head and the body of a response, or nothing."""
    done(begun(Run(KEY, "one", registry, work, copy_context())))
    return registry.get(KEY)


def output(registry: GoingBack) -> str:
    return all_of(registry, KEY, Channel.OUTPUT, 1_000_000).decode()


LOST = "\n[bytes 6 to 206 of the output are lost: its registry went back to what it was earlier]"


@pytest.mark.parametrize("more", [["after"], []], ids=["more is printed", "nothing more is printed"])
def test_the_output_goes_on_where_it_was_and_says_what_is_missing(registry: GoingBack, more: Iterable[str]) -> None:
    def work() -> None:
        print("first")
        wait_for(registry, 6)
        registry.keep()
        print("x" * 199)
        wait_for(registry, 206)
        registry.go_back()
        for line in more:
            print(line)

    job = run(registry, call_function(work))
    assert (job.state, job.reason) == (JobState.FINISHED, "")
    assert output(registry) == "first\n" + LOST.ljust(199) + "\n" + "".join(f"{line}\n" for line in more)


def test_a_reader_who_was_further_misses_nothing_that_comes_after(registry: GoingBack) -> None:
    seen: list[bytes] = []

    def work() -> None:
        print("first")
        wait_for(registry, 6)
        registry.keep()
        print("x" * 199)
        wait_for(registry, 206)
        registry.go_back()
        print("after")
        wait_for(registry, 212)
        seen.append(registry.read(KEY, Channel.OUTPUT, 206).data)

    run(registry, call_function(work))
    assert seen == [b"after\n"]


def test_what_is_lost_twice_is_said_twice(registry: GoingBack) -> None:
    def work() -> None:
        for _ in range(2):
            registry.wait(KEY, 0, 0.0)
            end = registry.get(KEY).output_end
            registry.keep()
            print("x" * 199)
            wait_for(registry, end + 200)
            registry.go_back()
            print("after")
            wait_for(registry, end + 206)

    assert run(registry, call_function(work)).state is JobState.FINISHED
    assert output(registry).count(" of the output are lost") == 2
    assert output(registry).count("after\n") == 2


@pytest.mark.parametrize("more", [b"after", b""], ids=["more is answered", "nothing more is answered"])
def test_a_response_of_which_a_part_is_lost_fails_and_says_so(registry: GoingBack, more: bytes) -> None:
    def work(head: Callable[[RecordedResponse], None], write: Callable[[bytes], None]) -> None:
        head(RecordedResponse("200 OK", ()))
        registry.keep()
        write(b"x" * 300_000)
        assert registry.get(KEY).body_end == 300_000
        registry.go_back()
        write(more)

    job = run(registry, work)
    assert job.state is JobState.FAILED
    assert job.reason == "part of its response is lost: its registry went back to what it was earlier"
    assert job.response is not None
    assert not job.response.complete


def test_a_job_whose_claim_is_lost_is_claimed_again(registry: GoingBack) -> None:
    registry.keep()
    reading = threading.Event()

    def work() -> str:
        print("x" * 199)
        wait_for(registry, 200)
        registry.go_back()
        assert registry.get(KEY).state is JobState.PENDING
        print("after")
        while registry.get(KEY).state is not JobState.RUNNING:
            assert not reading.wait(0.01)
        return "done"

    job = run(registry, call_function(work))
    assert job.state is JobState.FINISHED
    assert "[bytes 0 to 200 of the output are lost" in output(registry)
    assert output(registry).endswith("after\n")
    assert all_of(registry, KEY, Channel.BODY) == b"done"


def test_a_job_whose_claim_is_lost_at_its_end_is_claimed_again(registry: GoingBack) -> None:
    registry.keep()
    job = run(registry, call_function(registry.go_back))
    assert (job.state, job.reason) == (JobState.FINISHED, "")


def test_a_job_that_another_runner_has_by_then_is_left_to_that(registry: GoingBack) -> None:
    registry.keep()

    def work() -> None:
        print("mine")
        wait_for(registry, 5)
        registry.go_back()
        assert registry.claim(KEY, "another", lease=LONG)

    run(registry, call_function(work))
    assert (registry.get(KEY).state, registry.get(KEY).runner) == (JobState.RUNNING, "another")
