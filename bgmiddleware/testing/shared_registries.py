"""What every registry promises that processes share, as tests with real processes, on top of ``RegistryContract``.

The subclass gives, besides ``make``, a fixture ``location``: a string that names new, empty storage, and an ``opener``
that opens it in any process; without one, an ini file's URLs can be opened. All of it goes by the real clock.
"""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import pytest

from .._ground.loading import loaded
from .._jobs import Channel, Job, JobState, key_of
from ..errors import Fenced, JobExpired, JobNotFound
from ..registries.base import END, Registry
from . import registry_children
from .registries import (
    KEY,
    LONG,
    RUNNER,
    RegistryContract,
    added,
    begun,
    blocked_on,
    done,
    ended,
    running,
)
from .registry_children import chunks_of, digest, read_all

Opened = Callable[..., Registry]


class Child:
    """A process that opened the registry; it does one function of ``registry_children`` when told to."""

    def __init__(self, opener: str, location: str, function: str, arguments: dict[str, Any]) -> None:
        command = [sys.executable, "-m", registry_children.__name__, opener, location, function, json.dumps(arguments)]
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self.process: subprocess.Popen[str] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
        )
        assert self.said() == "ready"

    def go(self) -> "Child":
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self

    def said(self) -> Any:
        """Return the next thing it says; what it returned is the last."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        return json.loads(line) if line.endswith("\n") else None

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(LONG)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class SharedRegistryContract(RegistryContract):
    opener: ClassVar[str] = "bgmiddleware.registries:open_registry"
    """``module:function``: what opens a registry, given its location and settings. Processes import it."""

    @pytest.fixture
    def location(self) -> str:
        raise NotImplementedError("the subclass says where new storage is")

    @pytest.fixture
    def opened(self, location: str) -> Iterator[Opened]:
        """Open another registry on the same storage, with the real clock; it is closed after the test."""
        with ExitStack() as stack:
            yield lambda **settings: stack.enter_context(loaded("opener", self.opener)(location, **settings))

    @pytest.fixture
    def child(self, location: str) -> Iterator[Callable[..., Child]]:
        """Start a process; ``child(function, …)`` waits to be told, ``child(function, …).go()`` begins at once."""
        children: list[Child] = []

        def start(function: str, **arguments: Any) -> Child:
            children.append(Child(self.opener, location, function, arguments))
            return children[-1]

        yield start
        for each in children:
            each.end()

    def all_at_once(self, children: list[Child]) -> list[Any]:
        return [each.said() for each in [each.go() for each in children]]

    def let_leases_run_out(self, registry: Registry, names: list[str], runner: str) -> None:
        """Wait until all these jobs read as lost; they were claimed for long, or an ``add`` would make them so."""
        for name in names:
            assert registry.renew(key_of(name), runner, lease=0.01).ok
        for name in names:
            assert registry.wait(key_of(name), END, LONG).state is JobState.LOST

    def test_it_says_that_processes_share_it(self, opened: Opened) -> None:
        assert opened().shared is True

    # The same jobs for everybody.

    def test_two_registries_on_one_storage_see_the_same_jobs(self, opened: Opened) -> None:
        one, other = opened(), opened()
        one.add(Job(KEY, "one", request={"PATH_INFO": "/caf\xc3\xa9"}))
        one.append(KEY, Channel.REQUEST, 0, b"request")
        assert other.get(KEY) == one.get(KEY)
        assert read_all(other, KEY, Channel.REQUEST) == b"request"
        assert other.claim(KEY, RUNNER, lease=LONG)
        assert other.append(KEY, Channel.OUTPUT, 0, b"by the other", runner=RUNNER) == 12
        assert one.append(KEY, Channel.OUTPUT, 12, b", by the one", runner=RUNNER) == 24
        assert other.append(KEY, Channel.BODY, 0, b"body", runner=RUNNER) == 4
        assert one.append(KEY, Channel.OUTPUT, 12, b", by the one", runner=RUNNER) == 24  # no twice
        assert one.finish(KEY, RUNNER, JobState.FINISHED)
        for offset, data in ((0, b"by"), (24, b""), (24, b"x")):
            with pytest.raises(Fenced):
                other.append(KEY, Channel.OUTPUT, offset, data, runner=RUNNER)
            assert other.get(KEY) == one.get(KEY)
        assert read_all(other, KEY) == b"by the other, by the one"
        assert read_all(one, KEY, Channel.BODY) == b"body"
        assert [job.key for job in other.jobs()] == [KEY]
        assert one.discard(KEY)
        with pytest.raises(JobNotFound):
            other.get(KEY)

    def test_what_one_closes_is_open_for_the_others(self, opened: Opened) -> None:
        one, other = opened(), opened()
        running(one)
        one.append(KEY, Channel.OUTPUT, 0, b"kept", runner=RUNNER, times=[(4, 50)])
        one.close()
        assert other.append(KEY, Channel.OUTPUT, 4, b" on", runner=RUNNER, times=[(7, 60)]) == 7
        assert other.times(KEY) == ((4, 50), (7, 60))
        assert read_all(other, KEY) == b"kept on"

    def test_the_secret_is_the_same_for_all_who_begin_at_once(
        self, opened: Opened, child: Callable[..., Child]
    ) -> None:
        secrets = self.all_at_once([child("secret") for _ in range(4)])
        assert len(set(secrets)) == 1
        assert opened().secret().hex() == opened().secret().hex() == secrets[0]

    def test_an_expired_job_is_expired_for_all(self, opened: Opened) -> None:
        one, other = opened(ttl=0.05), opened(ttl=1000.0)
        ended(one)
        for registry in (one, other):
            self.wait_until_expired(registry, KEY)
        other.evict()
        for registry in (one, other):
            with pytest.raises(JobExpired):
                registry.get(KEY)

    def wait_until_expired(self, registry: Registry, key: str) -> None:
        until = time.monotonic() + LONG
        while time.monotonic() < until:
            try:
                registry.wait(key, END, 0.01)
            except JobExpired:
                return
        raise AssertionError("it does not expire")

    # Four processes at once.

    def test_four_processes_write_and_read_at_once_and_each_reads_what_each_wrote(
        self, opened: Opened, child: Callable[..., Child]
    ) -> None:
        names = [f"job {number}" for number in range(4)]
        for name in names:
            added(opened(), name)
        children = [
            child("write_and_follow", own=name, seed=seed, others=[other for other in names if other != name])
            for seed, name in enumerate(names)
        ]
        real = {name: digest(b"".join(chunks_of(seed, 60, 3000))) for seed, name in enumerate(names)}
        assert self.all_at_once(children) == [real] * 4
        assert {job.state for job in opened().jobs()} == {JobState.FINISHED}

    def test_four_processes_add_at_once_and_none_is_lost(self, opened: Opened, child: Callable[..., Child]) -> None:
        names = [[f"job {number} of {process}" for number in range(30)] for process in range(4)]
        assert self.all_at_once([child("add", names=each) for each in names]) == [30] * 4
        assert {job.title for job in opened().jobs(limit=1000)} == {name for each in names for name in each}

    def test_one_of_four_processes_has_a_name(self, opened: Opened, child: Callable[..., Child]) -> None:
        names = [f"name {number}" for number in range(30)]
        each = self.all_at_once([child("take_each_name", names=names, runner=runner) for runner in "abcd"])
        assert each[0] == each[1] == each[2] == each[3]
        assert sorted(each[0]) == sorted(job.key for job in opened().jobs(limit=1000))

    def test_one_of_four_processes_claims_a_job(self, opened: Opened, child: Callable[..., Child]) -> None:
        registry = opened()
        names = [f"job {number}" for number in range(40)]
        for name in names:
            added(registry, name)
        won = self.all_at_once([child("claim_each", names=names, runner=runner) for runner in "abcd"])
        assert sorted(name for each in won for name in each) == sorted(names)
        for runner, each in zip("abcd", won, strict=True):
            assert {registry.get(key_of(name)).runner for name in each} <= {runner}

    def test_of_four_processes_no_more_begin_than_their_group_lets(
        self, opened: Opened, child: Callable[..., Child]
    ) -> None:
        registry = opened()
        names = [f"job {number}" for number in range(12)]
        for name in names:
            registry.add(Job(key_of(name), name, groups={"reindex": 3}))
        won = self.all_at_once([child("claim_each", names=names, runner=runner) for runner in "abcd"])
        assert sum(map(len, won)) == 3

    def test_what_is_kept_stays_so_for_who_opens_the_storage_later(self, opened: Opened) -> None:
        first = opened(max_kept=1)
        ended(first, "one", output=b"kept")
        ended(first, "two")
        kept = first.keep(KEY)
        first.close()
        second = opened(max_kept=1)
        assert second.get(KEY) == kept
        assert second.keep(key_of("two")) is None
        assert second.evict() == (0, 0)
        assert second.discard(KEY)
        assert second.keep(key_of("two")) is not None

    def test_one_of_four_processes_takes_the_cookies(self, opened: Opened, child: Callable[..., Child]) -> None:
        names = [f"job {number}" for number in range(20)]
        for name in names:
            ended(opened(), name)
        taken = self.all_at_once([child("take_cookies_of_each", names=names) for _ in range(4)])
        assert sorted(name for each in taken for name in each) == sorted(names)

    def test_four_processes_that_evict_at_once_lose_each_job_once(
        self, opened: Opened, child: Callable[..., Child]
    ) -> None:
        registry = opened()
        names = [f"job {number}" for number in range(20)]
        for name in names:
            running(registry, name, lease=LONG)
        self.let_leases_run_out(registry, names, RUNNER)
        counts = self.all_at_once([child("evict_until_nothing_is_due") for _ in range(4)])
        assert sum(lost for lost, _ in counts) == 20
        assert {job.state for job in registry.jobs()} == {JobState.LOST}

    def test_four_processes_that_evict_at_once_leave_no_expired_job(
        self, opened: Opened, child: Callable[..., Child]
    ) -> None:
        registry = opened(ttl=0.01)
        names = [f"job {number}" for number in range(20)]
        for name in names:
            ended(registry, name)
        for name in names:
            self.wait_until_expired(registry, key_of(name))
        counts = self.all_at_once([child("evict_until_nothing_is_due") for _ in range(4)])
        assert [lost for lost, _ in counts] == [0] * 4
        assert registry.jobs() == []
        assert registry.evict() == (0, 0)

    # From another process.

    def test_a_cancel_from_another_process_reaches_the_runner(
        self, opened: Opened, child: Callable[..., Child]
    ) -> None:
        registry = opened()
        running(registry, lease=LONG)
        assert child("cancel", name="one", reason="not needed").go().said() == "running"
        assert registry.renew(KEY, RUNNER, lease=LONG) == (True, True)
        assert registry.get(KEY).reason == "not needed"

    def test_a_pending_job_is_cancelled_from_another_process(self, opened: Opened, child: Callable[..., Child]) -> None:
        registry = opened()
        added(registry)
        assert child("cancel", name="one", reason="not needed").go().said() == "cancelled"
        assert registry.claim(KEY, RUNNER) is False

    def test_a_lease_is_renewed_from_another_process_by_its_runner_only(
        self, opened: Opened, child: Callable[..., Child]
    ) -> None:
        registry = opened()
        running(registry, lease=LONG)
        before = registry.get(KEY).lease_expires_at
        assert before is not None
        assert child("renew", name="one", runner="another", lease=2 * LONG).go().said() == [False, False]
        assert registry.get(KEY).lease_expires_at == before
        assert child("renew", name="one", runner=RUNNER, lease=2 * LONG).go().said() == [True, False]
        assert (registry.get(KEY).lease_expires_at or 0.0) > before

    def test_a_job_is_ended_from_another_process_by_its_runner_only(
        self, opened: Opened, child: Callable[..., Child]
    ) -> None:
        registry = opened()
        running(registry)
        assert child("finish", name="one", runner="another").go().said() is False
        assert child("finish", name="one", runner=RUNNER).go().said() is True
        assert registry.get(KEY).state is JobState.FINISHED
        with pytest.raises(Fenced):
            registry.append(KEY, Channel.OUTPUT, 0, b"x", runner=RUNNER)

    @pytest.mark.parametrize(
        ("function", "arguments", "seen"),
        [
            ("append", {"offset": 3, "text": "d", "runner": RUNNER}, 4),
            ("finish", {"runner": RUNNER}, JobState.FINISHED),
        ],
    )
    def test_a_wait_is_woken_by_another_process(
        self, opened: Opened, child: Callable[..., Child], function: str, arguments: dict[str, Any], seen: object
    ) -> None:
        registry = opened()
        running(registry)
        registry.append(KEY, Channel.OUTPUT, 0, b"abc", runner=RUNNER)
        other = child(function, name="one", **arguments)
        waiting = [begun(registry.wait, KEY, 3, LONG) for _ in range(2)]
        blocked_on(waiting[0], registry, KEY, 3)
        other.go()
        for each in waiting:
            assert seen in (done(each).output_end, done(each).state)

    @pytest.mark.parametrize("change", ["append", "finish", "its lease runs out"])
    def test_a_wait_in_another_process_is_woken(self, opened: Opened, child: Callable[..., Child], change: str) -> None:
        registry = opened()
        running(registry, lease=0.3 if change == "its lease runs out" else LONG)
        waiting = child("wait", name="one", offset=0).go()
        assert waiting.said() == "waiting"
        registry.wait(KEY, 0, 0.02)
        if change == "append":
            registry.append(KEY, Channel.OUTPUT, 0, b"abc", runner=RUNNER)
        elif change == "finish":
            registry.finish(KEY, RUNNER, JobState.FAILED)
        assert waiting.said() == {"append": ["running", 3], "finish": ["failed", 0]}.get(change, ["lost", 0])

    def test_a_wait_in_another_process_is_woken_by_a_cancel_and_by_a_discard(
        self, opened: Opened, child: Callable[..., Child]
    ) -> None:
        registry = opened()
        added(registry, "one")
        added(registry, "two")
        waiting = [child("wait", name=name, offset=0).go() for name in ("one", "two")]
        assert [each.said() for each in waiting] == ["waiting", "waiting"]
        registry.wait(KEY, 0, 0.02)
        registry.request_cancel(key_of("one"))
        registry.discard(key_of("two"))
        assert [each.said() for each in waiting] == [["cancelled", 0], ["JobNotFound"]]

    def test_a_follower_gets_each_byte_of_a_writer_in_another_process(
        self, opened: Opened, child: Callable[..., Child]
    ) -> None:
        registry = opened()
        added(registry)
        writing = child("write_and_follow", own="one", seed=7, others=[]).go()
        data = b"".join(piece.data for piece in registry.follow(KEY))
        assert digest(data) == digest(b"".join(chunks_of(7, 60, 3000)))
        assert writing.said() == {"one": digest(data)}

    # What outlives a process.

    def test_finished_jobs_of_a_process_that_is_gone_come_back_byte_for_byte(
        self, opened: Opened, child: Callable[..., Child]
    ) -> None:
        settings = {"ttl": 1000.0, "max_output": 50_000}
        before = child("run_to_the_end", seed=3, settings=settings).go()
        said = before.said()
        before.end()
        registry = opened()
        job = registry.get(key_of(registry_children.ENDED))
        assert job.output_dropped is not None
        assert json.loads(json.dumps(job.to_document())) == said["job"]
        for channel in (Channel.OUTPUT, Channel.BODY):
            assert digest(read_all(registry, job.key, channel)) == said[channel]
        assert read_all(registry, job.key, Channel.BODY) == b"".join(each[::-1] for each in chunks_of(3, 40, 5000))

    def test_an_interrupted_job_reads_as_lost_and_is_made_so_exactly_once(
        self, opened: Opened, child: Callable[..., Child]
    ) -> None:
        gone = child("leave_unfinished", name="one", text="kept", lease=0.3).go()
        assert gone.said() == 4
        gone.end()
        registry = opened()
        assert registry.get(KEY).output_end == 4
        assert registry.wait(KEY, END, LONG).state is JobState.LOST
        assert [registry.evict().lost, opened().evict().lost] == [1, 0]
        assert read_all(registry, KEY) == b"kept"

    def test_a_paused_process_that_comes_back_finds_that_it_lost_its_job(
        self, opened: Opened, child: Callable[..., Child]
    ) -> None:
        paused = child("stop_in_mid_job", name="one", lease=0.3).go()
        assert paused.said() == "stops"
        registry = opened()
        assert registry.wait(KEY, END, LONG).state is JobState.LOST
        assert registry.evict().lost == 1
        lost = registry.get(KEY)
        os.waitid(os.P_PID, paused.process.pid, os.WSTOPPED | os.WNOWAIT)
        paused.process.send_signal(signal.SIGCONT)
        assert paused.said() == [True, False, False, 6]
        assert registry.get(KEY) == lost
        assert read_all(registry, KEY) == b"before"

    # Killed in the midst of writing.

    @pytest.mark.parametrize("largest", [200, 5_000, 65_000])
    def test_a_writer_that_is_killed_loses_no_acknowledged_byte_and_tears_no_chunk(
        self, opened: Opened, child: Callable[..., Child], largest: int
    ) -> None:
        registry = opened()
        chance = random.Random(largest)
        names = [f"killed {number}" for number in range(8)]
        writers = [
            child("write_until_killed", name=name, seed=seed, largest=largest) for seed, name in enumerate(names)
        ]
        acknowledged = [self.kill(writer.go(), chance)[-1] for writer in writers]
        self.let_leases_run_out(registry, names, "the killed")
        made_permanent = []
        for _ in range(2):
            for seed, (name, end) in enumerate(zip(names, acknowledged, strict=True)):
                job = registry.get(key_of(name))
                assert (job.state, job.reason) == (JobState.LOST, "its runner vanished")
                self.check_prefix(read_all(registry, job.key), chunks_of(seed, 100, largest), end)
            made_permanent.append(registry.evict().lost + opened().evict().lost)
        assert made_permanent == [len(names), 0]
        assert registry.jobs(JobState.RUNNING) == []

    def test_processes_that_are_killed_at_any_moment_leave_each_job_in_a_true_state(
        self, opened: Opened, child: Callable[..., Child]
    ) -> None:
        chance = random.Random(1)
        names = [f"process {number}" for number in range(8)]
        processes = [child("run_jobs_until_killed", name=name, seed=3).go() for name in names]
        ended = {title for process in processes for title in self.kill(process, chance, 9)}
        registry = opened()
        # Of all jobs: one that was killed in the midst of a claim may not be listed among those that run.
        while left := [job for job in registry.jobs(limit=100_000) if job.state is JobState.RUNNING]:
            for job in left:
                assert registry.renew(job.key, job.runner, lease=0.01).ok
                assert registry.wait(job.key, END, LONG).state is JobState.LOST
        content = b"".join(chunks_of(3, 3, 5000))
        jobs = {job.title: job for job in registry.jobs(limit=100_000)}
        assert ended <= jobs.keys()
        for title, job in jobs.items():
            output, body = read_all(registry, job.key), read_all(registry, job.key, Channel.BODY)
            assert content.startswith(output)
            assert (job.output_end, job.body_end) == (len(output), len(body))
            if title in ended:
                assert job.state is JobState.FINISHED
            if job.state is JobState.FINISHED:
                assert (len(output), len(body)) == (len(content), len(content))
        unfinished = [job for job in jobs.values() if job.state is not JobState.FINISHED]
        assert len(unfinished) <= len(names)
        assert {job.state for job in unfinished} <= {JobState.LOST, JobState.PENDING}
        assert registry.evict().lost == sum(job.state is JobState.LOST for job in unfinished)
        assert registry.evict().lost == 0

    def kill(self, writer: Child, chance: random.Random, most: int = 150) -> list[Any]:
        """Kill it at a random moment, after it said at most so many things; return all that it said."""
        ends = [writer.said() for _ in range(chance.randrange(1, most))]
        at = time.perf_counter() + chance.random() * 0.002
        while time.perf_counter() < at:
            pass
        writer.process.send_signal(signal.SIGKILL)
        while (end := writer.said()) is not None:
            ends.append(end)
        return ends

    def check_prefix(self, data: bytes, chunks: list[bytes], acknowledged: int) -> None:
        """It is all that was acknowledged, and at most one chunk more, which is whole."""
        at = 0
        for chunk in itertools.cycle(chunks):
            if at >= len(data):
                break
            assert data[at : at + len(chunk)] == chunk
            last, at = len(chunk), at + len(chunk)
        assert acknowledged in (at, at - last)

    # Forks.

    def test_parent_and_children_of_a_fork_write_and_wait_at_once(self, child: Callable[..., Child]) -> None:
        said = child("fork_and_write", children=3, seed=5).go().said()
        assert said == [digest(b"".join(chunks_of(5, 60, 3000)))] * 4

    def test_a_child_that_is_forked_in_the_midst_of_a_job_writes_on_and_so_does_its_parent(
        self, child: Callable[..., Child]
    ) -> None:
        said = child("use_what_was_opened_before_the_fork").go().said()
        assert said == [0, "parent child parent"]
