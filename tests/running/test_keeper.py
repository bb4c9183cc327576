"""A job of a registry that processes share: its output is sent in batches, its lease renewed, a cancel heard of, and a
registry that is away for a while costs it nothing."""

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any

import pytest

from bgmiddleware import (
    Channel,
    Job,
    JobCancelled,
    JobNotFound,
    JobState,
    MemoryRegistry,
    Progress,
    RegistryError,
    Run,
    current_job,
    progress,
)
from bgmiddleware._jobs import key_of
from bgmiddleware._running import call_function
from bgmiddleware._running import keeper as _keeper
from bgmiddleware._running import keeping as _keeping
from bgmiddleware._running.keeping import Keeping, keeping_of
from bgmiddleware.registries.base import END, Renewal, Source, Transition
from bgmiddleware.testing.registries import LONG, RegistryContract, all_of, begun, done

KEY = key_of("one")


class SharedRegistry(MemoryRegistry):
    """A registry as if it were shared: it cannot look into the job's process, and it may be away.

    *away*: the calls that fail, by name; ``"append output"`` and ``"append body"`` are two. *after_storing*: they did
    what was asked before they failed. *error* is what they raise. *calls* counts all.
    """

    shared = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.away: frozenset[str] = frozenset()
        self.after_storing = False
        self.error: Exception = RegistryError("away")
        self.calls: list[str] = []
        self.failed = threading.Semaphore(0)

    def attach(self, key: str, source: Source) -> bool:
        return False

    def _call(self, name: str, call: Callable[[], Any]) -> Any:
        self.calls.append(name)
        if name in self.away:
            if self.after_storing:
                call()
            self.failed.release()
            raise self.error
        return call()

    def get(self, key: str) -> Job:
        return self._call("get", lambda: super(SharedRegistry, self).get(key))

    def append(self, key: str, channel: Channel, offset: int, data: bytes, **more: Any) -> int:
        append = super().append
        return self._call(f"append {channel}", lambda: append(key, channel, offset, data, **more))

    def transition(self, key: str, *arguments: Any, **options: Any) -> bool:
        transition = super().transition
        return self._call("transition", lambda: transition(key, *arguments, **options))

    def renew(self, key: str, runner: str, **options: Any) -> Renewal:
        renew = super().renew
        return self._call("renew", lambda: renew(key, runner, **options))


class TestSharedRegistry(RegistryContract):
    """The double keeps to the contract: it is one registry more."""

    @pytest.fixture
    def make(self, clock) -> Iterator[Callable[..., SharedRegistry]]:
        made = []

        def make(**settings: Any) -> SharedRegistry:
            settings = {"ttl": 60.0, "pending_ttl": 20.0, "clock": clock, **settings}
            made.append(SharedRegistry(**settings))
            return made[-1]

        yield make
        for registry in made:
            registry.close()


@pytest.fixture
def registry() -> Iterator[SharedRegistry]:
    with SharedRegistry() as registry:
        yield registry


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a job does every few seconds it does all the time here."""
    for name in ("RENEW_EVERY", "_LOOK_EVERY", "_COLLECT_EVERY"):
        monkeypatch.setattr(_keeper, name, 0.01)
    monkeypatch.setattr(_keeper, "_BACK_OFF", (0.001, 0.01))


def started(registry: SharedRegistry, work: Callable[[], object], **options: Any) -> Any:
    """Run *work* as a job, in a thread of its own; return the future of the run."""
    job = registry.add(Job(KEY, "one"))
    return begun(Run(job.key, "one", registry, call_function(work), copy_context(), **options))


def output_of(registry: SharedRegistry) -> str:
    return all_of(registry, KEY, Channel.OUTPUT, 100_000).decode()


def test_a_line_is_there_while_the_job_runs_though_nobody_asked_for_it(registry):
    go = threading.Event()

    def work() -> None:
        print("line")
        assert go.wait(LONG)

    run = started(registry, work)
    assert registry.wait(KEY, 0, LONG).output_end > 0
    go.set()
    done(run)
    assert (registry.get(KEY).state, output_of(registry)) == (JobState.FINISHED, "line\n")


def test_half_a_line_is_there_too(registry):
    go = threading.Event()

    def work() -> None:
        print("half", end="")
        assert go.wait(LONG)

    run = started(registry, work)
    assert registry.wait(KEY, 3, LONG).output_end == 4
    go.set()
    done(run)


def test_a_fast_printer_costs_few_appends_and_nothing_is_missing(registry):
    def work() -> None:
        for number in range(100_000):
            print("line", number)

    done(started(registry, work))
    assert output_of(registry) == "".join(f"line {number}\n" for number in range(100_000))
    # 1.3 MB: by size it needs twenty, and by time at most one each 20 ms.
    assert registry.calls.count("append output") < 1000


def test_a_job_that_prints_faster_than_its_registry_takes_waits_for_it(registry):
    taken = threading.Semaphore(0)
    wanted = threading.Semaphore(0)
    append = registry.append

    def slow(*arguments: Any, **options: Any) -> int:
        wanted.release()
        assert taken.acquire(timeout=LONG)
        return append(*arguments, **options)

    registry.append = slow
    printed = []

    def work() -> None:
        for number in range(50):
            print("x" * 99_999)
            printed.append(number)

    run = started(registry, work)
    assert wanted.acquire(timeout=LONG)  # the first chunk is on its way, and stays there
    assert not wanted.acquire(timeout=0.2)
    assert len(printed) < 20
    taken.release(1000)
    done(run)
    assert output_of(registry) == ("x" * 99_999 + "\n") * 50


class Collected:
    """An output that went to a file: its keeper collects it at once, in pieces that have no room together."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self.store: Callable[[bytes], None]
        self.is_stored = threading.Event()

    def watch(self, watched: bool) -> None:
        pass

    def store_soon(self) -> None:
        while self._pieces:
            self.store(self._pieces.pop(0))
        self.is_stored.set()


def test_what_the_keeper_itself_collects_is_not_dropped_for_want_of_room(registry):
    registry.add(Job(KEY, "job"))
    assert registry.claim(KEY, "runner")
    pieces = [bytes([letter]) * 700_000 for letter in b"abcdefgh"]
    output = Collected([*pieces])
    keeper = _keeper.Keeper(registry, KEY, "runner")
    output.store = keeper.store
    keeper.begin(output)
    assert output.is_stored.wait(LONG)
    keeper.end()
    assert all_of(registry, KEY) == b"".join(pieces)


def is_running(registry: SharedRegistry) -> Job:
    """Return the job when it runs."""
    while (job := registry.get(KEY)).state is JobState.PENDING:
        registry.wait(KEY, END, 0.01)
    assert job.state is JobState.RUNNING
    return job


def test_a_claim_takes_a_lease(registry, monkeypatch):
    monkeypatch.setattr(_keeper, "RENEW_EVERY", LONG)
    go = threading.Event()
    run = started(registry, lambda: go.wait(LONG))
    job = is_running(registry)
    assert job.lease_expires_at - job.started_at == pytest.approx(15.0, abs=0.001)
    go.set()
    done(run)
    assert registry.get(KEY).lease_expires_at is None


def test_a_lease_is_renewed_while_the_job_runs(registry):
    go = threading.Event()
    run = started(registry, lambda: go.wait(LONG))
    job = is_running(registry)
    while (later := registry.get(KEY)).lease_expires_at == job.lease_expires_at:
        assert later.state is JobState.RUNNING
        registry.wait(KEY, END, 0.01)
    assert later.lease_expires_at > job.lease_expires_at
    go.set()
    done(run)


def test_a_claim_that_was_done_before_the_connection_broke_is_ours(registry):
    registry.after_storing = True
    registry.away = frozenset({"transition"})
    calls = []
    run = started(registry, lambda: calls.append(1))
    assert registry.failed.acquire(timeout=LONG)
    registry.away = frozenset()
    done(run)
    assert (registry.get(KEY).state, calls) == (JobState.FINISHED, [1])


def test_a_registry_of_one_process_gives_no_lease():
    with MemoryRegistry() as registry:
        leases = []
        registry.add(Job(KEY, "one"))
        work = call_function(lambda: leases.append(registry.get(KEY).lease_expires_at))
        Run(KEY, "one", registry, work, copy_context())()
        assert leases == [None]


def until_cancelled(told: list[str]) -> None:
    try:
        while True:
            current_job().check()
            threading.Event().wait(0.001)
    except JobCancelled as cancelled:
        told.append(cancelled.reason)
        raise


def running_until_cancelled(registry: SharedRegistry, told: list[str]) -> Any:
    running = threading.Event()

    def work() -> None:
        running.set()
        until_cancelled(told)

    run = started(registry, work)
    assert running.wait(LONG)
    return run


def test_a_cancel_that_somebody_else_asked_for_reaches_the_job(registry):
    told: list[str] = []
    run = started(registry, lambda: until_cancelled(told))
    registry.wait(KEY, END, 0.05)
    registry.request_cancel(KEY, "the boss said so")
    done(run)
    job = registry.get(KEY)
    if told:  # else it was cancelled before it began
        assert told == ["the boss said so"]
    assert (job.state, job.reason) == (JobState.CANCELLED, "the boss said so")


def test_who_lost_the_job_stops_and_does_not_overwrite_its_state(registry):
    told: list[str] = []
    run = running_until_cancelled(registry, told)
    registry.transition(KEY, {JobState.RUNNING}, Transition(JobState.LOST, registry.get(KEY).runner, reason="gone"))
    done(run)
    assert told == ["it was given up as lost"]
    assert (registry.get(KEY).state, registry.get(KEY).reason) == (JobState.LOST, "gone")


def test_a_job_that_its_registry_has_forgotten_stops(registry):
    told: list[str] = []
    run = running_until_cancelled(registry, told)
    with registry._lock:
        registry._forget(KEY)  # as a server of which all was deleted
    done(run)
    assert told == ["its registry has forgotten it"]
    with pytest.raises(JobNotFound):
        registry.get(KEY)


def test_progress_is_told(registry):
    go = threading.Event()

    def work() -> None:
        progress(1, 3)
        progress(2, 3, "rows")
        assert go.wait(LONG)

    run = started(registry, work)
    while (told := registry.get(KEY).progress) is None or told.done < 2:
        registry.wait(KEY, 0, 0.01)
    go.set()
    done(run)
    assert told.message == "rows"


TROUBLES = [RegistryError("away"), ValueError("I/O operation on closed file"), LookupError("unknown encoding: idna")]


@pytest.mark.parametrize("error", TROUBLES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("after_storing", [False, True])
@pytest.mark.parametrize("call", ["append output", "append body", "transition", "renew", "get"])
def test_a_registry_that_is_away_for_a_while_costs_nothing(registry, call, after_storing, error, monkeypatch):
    """Whatever is asked of it meanwhile, whatever it raises, and whether or not it was done before that."""
    registry.error = error
    if call == "get":  # between two renewals a job is looked at, to hear of a cancel
        monkeypatch.setattr(_keeper, "RENEW_EVERY", LONG)
    registry.after_storing = after_storing
    back = threading.Event()

    def work() -> str:
        print("before")
        registry.away = frozenset({call})
        progress(1, 2)
        print("meanwhile")
        threading.Thread(target=come_back, name="test", daemon=True).start()
        return "the result"

    def come_back() -> None:
        registry.failed.acquire(timeout=LONG)
        registry.failed.acquire(timeout=LONG)
        registry.away = frozenset()
        back.set()

    if call in ("get", "renew"):  # these are not asked for at the end, so they must be met before it
        inner = work

        def work() -> str:
            result = inner()
            assert back.wait(LONG)
            return result

    done(started(registry, work, takes_logging=False))
    job = registry.get(KEY)
    assert (job.state, job.reason) == (JobState.FINISHED, "")
    assert output_of(registry) == "before\nmeanwhile\n"
    assert all_of(registry, KEY, Channel.BODY) == b"the result"
    assert job.progress == Progress(1, 2)


def test_a_print_does_not_wait_for_a_registry_that_is_away_and_what_is_dropped_is_stated(registry):
    def work() -> None:
        registry.away = frozenset({"append output"})
        print("first")
        assert registry.failed.acquire(timeout=LONG)
        for _ in range(30):
            print("x" * 99_999)
        registry.away = frozenset()
        print("back")

    done(started(registry, work, takes_logging=False))
    text = output_of(registry)
    note = r"\n\[bytes (\d+) to (\d+) of the output could not be stored\]\n"
    ranges = [(int(begin), int(end)) for begin, end in re.findall(note, text)]
    assert ranges
    dropped = sum(end - begin for begin, end in ranges)
    assert len(re.sub(note, "", text)) + dropped == len("first\n") + 3_000_000 + len("back\n")
    # What was there before the gap is what the range says.
    begin = ranges[0][0]
    assert text[:begin] == ("first\n" + ("x" * 99_999 + "\n") * 30)[:begin]
    assert re.match(note, text[begin:])


def test_a_registry_that_is_back_is_waited_for_again(registry):
    def work() -> None:
        registry.away = frozenset({"append output"})
        print("first")
        assert registry.failed.acquire(timeout=LONG)
        registry.away = frozenset()
        registry.wait(KEY, 0, LONG)
        for _ in range(50):
            print("x" * 99_999)

    done(started(registry, work, takes_logging=False))
    assert output_of(registry) == "first\n" + ("x" * 99_999 + "\n") * 50


def test_a_registry_that_never_comes_back_is_given_up_in_the_end(registry, monkeypatch, caplog):
    monkeypatch.setattr(_keeper, "_PATIENCE", 0.05)

    def work() -> None:
        registry.away = frozenset({"append output", "append body", "transition", "renew", "get"})
        print("lost for ever")

    done(started(registry, work))
    registry.away = frozenset()
    assert registry.get(KEY).state is JobState.RUNNING  # and lost when its lease runs out
    assert "could not be run or recorded" in caplog.text


def test_what_a_log_handler_raises_does_not_end_a_keeper(registry):
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise ValueError("no log today")

    def work() -> None:
        registry.away = frozenset({"append output"})
        print("line")
        assert registry.failed.acquire(timeout=LONG)
        assert registry.failed.acquire(timeout=LONG)
        registry.away = frozenset()

    handler = Broken()
    logging.getLogger("bgmiddleware").addHandler(handler)
    try:
        done(started(registry, work, takes_logging=False))
    finally:
        logging.getLogger("bgmiddleware").removeHandler(handler)
    assert (registry.get(KEY).state, output_of(registry)) == (JobState.FINISHED, "line\n")


def test_what_a_note_stands_for_is_missing_as_long_as_the_note_is(registry, monkeypatch):
    monkeypatch.setattr(_keeper, "_PATIENCE", 0.01)
    registry.add(Job(KEY, "title"))
    registry.claim(KEY, "runner")
    keeper = _keeper.Keeper(registry, KEY, "runner")
    registry.away = frozenset({"append output"})
    keeper.store(b"a" * 1_000_000)
    keeper.store(b"b" * 500_000)  # for which there is no room
    registry.away = frozenset()
    keeper.flush()
    registry.away = frozenset({"append output"})
    keeper.store(b"c" * 10)  # behind a note
    keeper.end()
    assert keeper.missing == "the last 500010 bytes of its output could not be stored"
    registry.away = frozenset()
    keeper.flush()
    assert keeper.missing == ""


@pytest.mark.parametrize(
    ("room", "kept"),
    [
        pytest.param(13, "one\ntwo\n", id="in mid-line"),
        pytest.param(8, "one\ntwo\n", id="for two lines exactly"),
        pytest.param(7, "one\n", id="a byte too small for two"),
        pytest.param(3, "", id="for no line"),
        pytest.param(0, "", id="none"),
    ],
)
def test_a_piece_that_has_room_in_part_is_kept_to_the_last_whole_line(registry, room, kept):
    registry.add(Job(KEY, "title"))
    registry.claim(KEY, "runner")
    keeper = _keeper.Keeper(registry, KEY, "runner")
    registry.away = frozenset({"append output"})
    before = 1024 * 1024 - room
    keeper.store(b"x" * before)
    keeper.store(b"one\ntwo\n\x1b[31mthree\n")
    registry.away = frozenset()
    keeper.flush()
    keeper.end()
    first, end = before + len(kept), before + 19
    note = f"\n[bytes {first} to {end} of the output could not be stored]\n"
    assert output_of(registry) == "x" * before + kept + note
    assert keeper.missing == ""


def test_a_print_does_not_wait_for_a_keeper_that_is_no_more(registry, monkeypatch):
    monkeypatch.setattr(Keeping, "_run", lambda self: None)

    def work() -> None:
        for _ in range(30):
            print("x" * 99_999)

    done(started(registry, work))
    assert registry.get(KEY).state is JobState.FINISHED
    assert "of the output could not be stored" in output_of(registry)


@pytest.mark.parametrize(("name", "options"), [("keeper", {}), ("deadline", {"deadline": 60.0})])
def test_a_thread_of_the_runner_that_cannot_begin_is_why_the_job_failed(registry, monkeypatch, name, options):
    begin = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(f"bgmiddleware-{name}"):
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done(started(registry, lambda: None, **options))
    job = registry.get(KEY)
    assert (job.state, job.reason) == (JobState.FAILED, "its runner failed: RuntimeError: can't start new thread")


def test_one_thread_keeps_all_jobs_of_a_registry_and_ends_when_none_runs(registry, monkeypatch):
    monkeypatch.setattr(_keeping, "_IDLE", 0.01)
    go = threading.Event()

    def work() -> None:
        print("line")
        assert go.wait(LONG)

    before = threading.enumerate()
    keys = [key_of(name) for name in "abc"]
    runs = []
    for key in keys:
        registry.add(Job(key, key))
        runs.append(begun(Run(key, key, registry, call_function(work), copy_context())))
    for key in keys:
        assert registry.wait(key, 0, LONG).output_end
    thread = keeping_of(registry)._thread
    begun_since = [each for each in threading.enumerate() if each not in before]
    assert [each for each in begun_since if each.name == "bgmiddleware-keeper"] == [thread]
    go.set()
    for run in runs:
        done(run)
    thread.join(LONG)
    assert not thread.is_alive()
    done(started(registry, lambda: print("line")))  # one more begins with the next job
    assert output_of(registry) == "line\n"


def test_a_job_that_ends_at_once_is_over_before_its_keeper_looks(registry, monkeypatch):
    monkeypatch.setattr(_keeper, "_GATHER", LONG)
    monkeypatch.setattr(_keeper, "_LOOK_EVERY", LONG)
    monkeypatch.setattr(_keeper, "RENEW_EVERY", LONG)
    done(started(registry, lambda: print("line")))
    assert output_of(registry) == "line\n"
    assert registry.calls.count("append output") == 1
    assert "renew" not in registry.calls


def test_what_a_keeper_says_is_not_in_the_output(registry, caplog):
    def work() -> None:
        registry.away = frozenset({"append output"})
        print("line")
        for _ in range(3):
            assert registry.failed.acquire(timeout=LONG)
        registry.away = frozenset()

    done(started(registry, work))
    assert output_of(registry) == "line\n"
    assert caplog.text.count("output waits for its registry") == 1


def test_a_shutdown_keeps_what_was_printed_so_far(registry):
    printed, go = threading.Event(), threading.Event()

    def work() -> None:
        print("half of the work", end="")
        printed.set()
        assert go.wait(LONG)

    job = registry.add(Job(KEY, "one"))
    run = Run(job.key, "one", registry, call_function(work), copy_context())
    running = begun(run)
    assert printed.wait(LONG)
    run.abandon("server shut down")
    assert (registry.get(KEY).state, output_of(registry)) == (JobState.LOST, "half of the work")
    go.set()
    done(running)
    assert (registry.get(KEY).state, registry.get(KEY).reason) == (JobState.LOST, "server shut down")


@pytest.mark.parametrize("kind", [MemoryRegistry, SharedRegistry])
def test_a_job_that_runs_longer_than_its_deadline_is_cancelled_and_says_why(kind):
    told: list[str] = []
    with kind() as registry:
        registry.add(Job(KEY, "one"))
        done(
            begun(
                Run(KEY, "one", registry, call_function(lambda: until_cancelled(told)), copy_context(), deadline=0.05)
            )
        )
        job = registry.get(KEY)
    assert (job.state, job.reason) == (JobState.CANCELLED, "it ran longer than its deadline of 0.05 s")
    assert told == [job.reason]
    assert job.cancel_requested_at is not None


def test_a_job_that_ends_in_time_leaves_no_timer():
    with MemoryRegistry() as registry:
        registry.add(Job(KEY, "one"))
        Run(KEY, "one", registry, call_function(lambda: None), copy_context(), deadline=LONG)()
        assert registry.get(KEY).state is JobState.FINISHED
    timers = [thread for thread in threading.enumerate() if thread.name.startswith("bgmiddleware-deadline")]
    for timer in timers:
        timer.join(LONG)  # a cancelled one ends by itself
    assert not any(timer.is_alive() for timer in timers)
