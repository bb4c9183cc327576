"""Jobs in threads: how many at once, in which order, and what becomes of them at the end."""

import contextlib
import gc
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextvars import ContextVar, copy_context

import pytest

from bgmiddleware import (
    Channel,
    ConfigurationError,
    Job,
    JobState,
    MemoryRegistry,
    Priority,
    QueueFull,
    Run,
    ThreadExecutor,
    current_job,
)
from bgmiddleware._jobs import key_of
from bgmiddleware._running import call_function
from bgmiddleware.testing.executors import ExecutorContract, short_lease  # noqa: F401  # a fixture
from bgmiddleware.testing.registries import LONG, all_of


class Gate:
    """Where jobs stop until they are let through. ``with gate.closed()`` never leaves one behind."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)
        self.open = threading.Event()

    def __call__(self) -> None:
        self.arrived.release()
        assert self.open.wait(LONG)

    def await_arrivals(self, count: int) -> None:
        for _ in range(count):
            assert self.arrived.acquire(timeout=LONG)


@pytest.fixture
def registry() -> Iterator[MemoryRegistry]:
    with MemoryRegistry() as registry:
        yield registry


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open.set()


@pytest.fixture
def make() -> Iterator[Callable[..., ThreadExecutor]]:
    made: list[ThreadExecutor] = []

    def make(**settings: float) -> ThreadExecutor:
        made.append(ThreadExecutor(**settings))
        return made[-1]

    yield make
    for executor in made:
        executor.shutdown(0.0)


def a_run(registry: MemoryRegistry, name: str, function: Callable[[], object]) -> Run:
    """Return a run of *function* as a new job."""
    key = registry.add(Job(key_of(name), name)).key
    return Run(key, name, registry, call_function(function), copy_context())


def ended(registry: MemoryRegistry, name: str) -> Job:
    """Return the job when it has ended."""
    job = registry.wait(key_of(name), 10**9, LONG)
    assert job.state.ended
    return job


def state_of(registry: MemoryRegistry, name: str) -> JobState:
    return registry.get(key_of(name)).state


def nothing() -> None:
    """What a job does that does nothing."""


def workers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if re.fullmatch("bgmiddleware-[0-9]+", thread.name)}


def test_constructing_starts_nothing(make):
    before = set(threading.enumerate())
    make()
    assert set(threading.enumerate()) <= before  # those of other tests may end


@pytest.mark.parametrize(("name", "least"), [("max_workers", 1), ("max_pending", 0), ("drain", 0)])
def test_a_bad_setting_is_refused_by_name(name, least):
    ThreadExecutor(**{name: least})
    for wrong in (least - 1, "4", float("nan"), True):
        with pytest.raises(ConfigurationError, match=rf"^{name} = {re.escape(repr(wrong))}: "):
            ThreadExecutor(**{name: wrong})


def test_a_submitted_job_runs_in_a_named_thread(make, registry):
    ran_in = []
    make().submit(a_run(registry, "job", lambda: ran_in.append(threading.current_thread())))
    assert ended(registry, "job").state is JobState.FINISHED
    (thread,) = ran_in
    assert thread.name == "bgmiddleware-1"
    assert thread.daemon


def test_threads_begin_when_jobs_need_them_and_no_more_than_max_workers(make, registry, gate):
    executor = make(max_workers=3)
    others = workers()
    for count, threads in ((1, 1), (2, 2), (3, 3), (4, 3), (5, 3)):
        executor.submit(a_run(registry, f"job {count}", gate))
        assert len(workers() - others) == threads
    gate.await_arrivals(3)
    assert [state_of(registry, f"job {count}") for count in range(1, 6)] == ["running"] * 3 + ["pending"] * 2
    gate.open.set()
    gate.await_arrivals(2)
    for count in range(1, 6):
        assert ended(registry, f"job {count}").state is JobState.FINISHED
    assert len(workers() - others) == 3


def test_a_thread_that_waits_takes_the_next_job(make, registry):
    executor = make()
    before = workers()
    for number in range(20):
        executor.submit(a_run(registry, f"job {number}", nothing))
        ended(registry, f"job {number}")
    # One that has written down the end may not yet wait again when the next one comes; but it is never one for each.
    assert 1 <= len(workers() - before) <= 3


@pytest.mark.parametrize(("max_workers", "max_pending"), [(1, 0), (1, 1), (2, 3)])
def test_a_queue_is_full_exactly_where_it_was_said(make, registry, gate, max_workers, max_pending):
    executor = make(max_workers=max_workers, max_pending=max_pending)
    for number in range(max_workers + max_pending):
        executor.submit(a_run(registry, f"job {number}", gate))
    one_too_many = a_run(registry, "one too many", gate)
    with pytest.raises(QueueFull) as refused:
        executor.submit(one_too_many)
    assert refused.value.retry_after > 0
    gate.open.set()
    for number in range(max_workers + max_pending):
        ended(registry, f"job {number}")
    assert state_of(registry, "one too many") is JobState.PENDING  # it was not taken


def test_a_full_queue_has_room_again_when_a_job_has_ended(make, registry, gate):
    executor = make(max_workers=1, max_pending=0)
    executor.submit(a_run(registry, "first", gate))
    gate.open.set()
    ended(registry, "first")
    executor.shutdown(LONG)  # only then it is sure that the thread has let go of it
    again = make(max_workers=1, max_pending=0)
    again.submit(a_run(registry, "second", nothing))
    assert ended(registry, "second").state is JobState.FINISHED


def test_jobs_begin_in_the_order_of_their_coming(make, registry, gate):
    executor = make(max_workers=1)
    order = []
    executor.submit(a_run(registry, "first", gate))
    for number in range(10):
        executor.submit(a_run(registry, f"job {number}", lambda number=number: order.append(number)))
    gate.open.set()
    ended(registry, "job 9")
    assert order == list(range(10))


def test_a_pending_job_that_was_stopped_gives_its_place_back_and_never_runs(make, registry, gate):
    executor = make(max_workers=1, max_pending=1)
    ran = []
    executor.submit(a_run(registry, "running", gate))
    gate.await_arrivals(1)
    executor.submit(a_run(registry, "stopped", lambda: ran.append("stopped")))
    registry.request_cancel(key_of("stopped"))
    executor.stop(key_of("stopped"))
    executor.submit(a_run(registry, "next", lambda: ran.append("next")))
    gate.open.set()
    ended(registry, "next")
    assert ran == ["next"]
    assert state_of(registry, "stopped") is JobState.CANCELLED


def test_a_job_that_was_cancelled_while_it_waited_is_not_run(make, registry, gate):
    executor = make(max_workers=1)
    ran = []
    executor.submit(a_run(registry, "running", gate))
    executor.submit(a_run(registry, "cancelled", lambda: ran.append("cancelled")))
    registry.request_cancel(key_of("cancelled"))
    executor.submit(a_run(registry, "next", nothing))
    gate.open.set()
    ended(registry, "next")
    assert ran == []


def test_stopping_what_is_not_waiting_does_nothing(make, registry, gate):
    executor = make()
    executor.stop(key_of("unknown"))
    executor.submit(a_run(registry, "running", gate))
    gate.await_arrivals(1)
    executor.stop(key_of("running"))
    gate.open.set()
    assert ended(registry, "running").state is JobState.FINISHED


@pytest.mark.parametrize(
    "error", [ValueError("oh"), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError()]
)
def test_a_job_that_raises_does_not_take_its_thread_with_it(make, registry, error):
    executor = make(max_workers=1)
    threads = []

    def fail() -> None:
        threads.append(threading.current_thread())
        raise error

    for name in ("first", "second"):
        executor.submit(a_run(registry, name, fail))
        job = ended(registry, name)
        assert job.state is JobState.FAILED
        assert job.reason.startswith(type(error).__name__)
    assert threads[0] is threads[1]


def test_a_job_that_is_gone_does_not_take_its_thread_with_it(make, registry):
    executor = make(max_workers=1)
    run = a_run(registry, "gone", nothing)
    registry.discard(run.key)
    executor.submit(run)
    executor.submit(a_run(registry, "next", nothing))
    assert ended(registry, "next").state is JobState.FINISHED


class Probe:
    """A run that notes what it sees of its surroundings."""

    key = "probe"
    priority = Priority.NORMAL
    groups: Mapping[str, int] = {}

    def __init__(self, look: Callable[[], object]) -> None:
        self.look = look
        self.seen: Future[object] = Future()

    def __call__(self) -> None:
        self.seen.set_result(self.look())


def test_a_worker_inherits_nothing_of_the_job_or_request_that_happened_to_begin_it(make, registry):
    variable: ContextVar[str] = ContextVar("variable", default="nothing")
    executor = make(max_workers=2)
    probe = Probe(lambda: (variable.get(), bool(current_job())))

    def work() -> list[object]:
        executor.submit(probe)  # begins the second thread, since this one is busy
        return [variable.get(), bool(current_job()), probe.seen.result(LONG)]

    token = variable.set("of the request")
    try:
        run = a_run(registry, "job", work)
    finally:
        variable.reset(token)
    executor.submit(run)
    ended(registry, "job")
    assert json.loads(all_of(registry, run.key, Channel.BODY)) == ["of the request", True, ["nothing", False]]


def test_a_thread_that_cannot_begin_is_a_full_queue(make, registry, monkeypatch):
    executor = make(max_workers=2)
    refused = a_run(registry, "refused", nothing)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more_threads)
        with pytest.raises(QueueFull):
            executor.submit(refused)
    executor.submit(a_run(registry, "later", nothing))
    assert ended(registry, "later").state is JobState.FINISHED
    executor.shutdown(LONG)
    assert state_of(registry, "refused") is JobState.PENDING


def test_a_second_thread_that_cannot_begin_is_no_loss(make, registry, gate, monkeypatch):
    executor = make(max_workers=2)
    executor.submit(a_run(registry, "first", gate))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", no_more_threads)
        executor.submit(a_run(registry, "second", nothing))
    gate.open.set()
    assert ended(registry, "second").state is JobState.FINISHED


def test_two_threads_that_cannot_begin_at_once_leave_nobody_waiting_for_the_other(make, registry, monkeypatch):
    executor = make(max_workers=2)
    both = threading.Barrier(2)
    begin = threading.Thread.start
    answers: list[str] = []

    def refuse(thread: threading.Thread) -> None:
        if not thread.name.startswith("bgmiddleware-"):
            return begin(thread)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)
        raise RuntimeError("can't start new thread")

    def submit(name: str) -> None:
        try:
            executor.submit(a_run(registry, name, nothing))
        except QueueFull as full:
            answers.append(str(full))

    monkeypatch.setattr(threading.Thread, "start", refuse)
    threads = [threading.Thread(target=submit, args=[name]) for name in ("first", "second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert answers == ["the system has no room for another thread"] * 2


def test_an_executor_that_nobody_holds_lets_go_of_its_threads_when_nothing_waits(registry, gate):
    before = workers()
    executor = ThreadExecutor(max_workers=1)
    executor.submit(a_run(registry, "first", gate))
    executor.submit(a_run(registry, "second", nothing))
    gate.await_arrivals(1)
    (thread,) = workers() - before
    gone = weakref.ref(executor)
    del executor
    gc.collect()
    assert gone() is not None  # jobs wait in it
    gate.open.set()
    assert [ended(registry, name).state for name in ("first", "second")] == [JobState.FINISHED] * 2
    thread.join(LONG)
    assert not thread.is_alive()
    assert gone() is None


def test_an_idle_executor_that_nobody_holds_lets_go_of_its_threads(registry):
    before = workers()
    executor = ThreadExecutor(max_workers=1)
    executor.submit(a_run(registry, "first", nothing))
    ended(registry, "first")
    (thread,) = workers() - before
    while not executor._waiting:
        threading.Event().wait(0.001)
    del executor
    gc.collect()
    thread.join(LONG)
    assert not thread.is_alive()


def no_more_threads(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


# The end.


def test_a_shutdown_waits_for_what_runs_and_for_what_waits(make, registry, gate):
    executor = make(max_workers=1)
    for name in ("running", "waiting"):
        executor.submit(a_run(registry, name, gate))
    gate.await_arrivals(1)
    gate.open.set()
    executor.shutdown(LONG)
    for name in ("running", "waiting"):
        assert state_of(registry, name) is JobState.FINISHED


def test_a_shutdown_without_drain_loses_what_runs_and_what_waits_and_keeps_the_output(make, registry, gate):
    executor = make(max_workers=1)

    def work() -> None:
        print("begun")
        gate()

    executor.submit(a_run(registry, "running", work))
    executor.submit(a_run(registry, "waiting", nothing))
    gate.await_arrivals(1)
    executor.shutdown(0.0)
    for name in ("running", "waiting"):
        job = registry.get(key_of(name))
        assert (job.state, job.reason) == (JobState.LOST, "server shut down")
    assert all_of(registry, key_of("running")) == b"begun\n"


def test_a_lost_job_that_still_runs_is_interrupted_at_its_next_print(make, registry, gate):
    executor = make(max_workers=1)
    left = threading.Event()

    def work() -> None:
        try:
            gate()
            print("too late")
        except Exception:
            pytest.fail("an interrupt is no Exception")
        finally:
            left.set()

    executor.submit(a_run(registry, "running", work))
    gate.await_arrivals(1)
    executor.shutdown(0.0)
    gate.open.set()
    assert left.wait(LONG)
    assert all_of(registry, key_of("running")) == b""


def test_the_default_drain_is_the_configured_one(make, registry, gate):
    executor = make(drain=0.0)
    executor.submit(a_run(registry, "running", gate))
    gate.await_arrivals(1)
    executor.shutdown()
    assert state_of(registry, "running") is JobState.LOST


def test_nothing_is_taken_after_a_shutdown(make, registry):
    executor = make()
    executor.submit(a_run(registry, "before", nothing))
    executor.shutdown(LONG)
    with pytest.raises(QueueFull):
        executor.submit(a_run(registry, "after", nothing))
    assert state_of(registry, "after") is JobState.PENDING


@pytest.mark.parametrize("drain", [0.0, 0.01, None])
def test_a_shutdown_of_an_executor_that_never_ran_anything_returns_at_once(make, drain):
    executor = make()
    executor.shutdown(drain)
    executor.shutdown(drain)


def test_the_threads_end_with_the_shutdown(make, registry):
    executor = make(max_workers=2)
    before = workers()
    for number in range(4):
        executor.submit(a_run(registry, f"job {number}", nothing))
    threads = workers() - before
    assert threads
    executor.shutdown(LONG)
    for thread in threads:
        thread.join(LONG)
        assert not thread.is_alive()


AT_EXIT = """
    import os, threading
    from contextvars import copy_context
    from bgmiddleware import Job, MemoryRegistry, Run, ThreadExecutor
    from bgmiddleware._running import call_function

    main_has_ended = threading.Event()
    registry, executor = MemoryRegistry(), ThreadExecutor(max_workers=1, drain={drain})

    def say(text):
        os.write(1, text.encode() + b"\\n")

    def work(name):
        say(name + " begins")
        main_has_ended.wait({last})
        say(name + " ends")

    def submit(name):
        registry.add(Job(name, name))
        executor.submit(Run(name, name, registry, call_function(lambda: work(name)), copy_context()))

    submit("first")
    submit("second")
    {end}
    say("main ends")
"""


def at_exit(drain: float, end: str) -> list[str]:
    """Run a process that submits two jobs and falls off its end; return what was said in it."""
    script = textwrap.dedent(AT_EXIT).format(drain=drain, last=2 * LONG, end=end)
    child = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=LONG / 2, check=False
    )
    assert (child.returncode, child.stderr) == (0, "")
    return child.stdout.splitlines()


def test_jobs_that_run_and_wait_when_the_process_ends_get_their_time():
    # What is registered last is called first: then the main thread has nothing left to do.
    said = at_exit(LONG, "threading._register_atexit(main_has_ended.set)")
    assert said.index("main ends") < said.index("first ends")
    assert [line for line in said if line != "main ends"] == [
        "first begins",
        "first ends",
        "second begins",
        "second ends",
    ]


def test_jobs_that_do_not_end_do_not_keep_the_process_from_ending():
    said = at_exit(0.0, "pass")
    assert "main ends" in said
    assert "first ends" not in said


# Forks, and many at once.


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_an_executor_works_in_a_forked_child_which_has_none_of_the_parents_runs(make, registry, gate):
    executor = make(max_workers=1)
    ran_in = []
    executor.submit(a_run(registry, "the parent's", lambda: ran_in.append(os.getpid())))
    ended(registry, "the parent's")
    executor.submit(a_run(registry, "still running", gate))
    executor.submit(a_run(registry, "still waiting", lambda: ran_in.append(os.getpid())))
    gate.await_arrivals(1)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            executor.stop(key_of("still waiting"))
            executor.shutdown(0.0)  # has nothing to end: those are the parent's
            own = MemoryRegistry()
            executor.submit(a_run(own, "the child's", lambda: ran_in.append(os.getpid())))
            finished = ended(own, "the child's").state is JobState.FINISHED
            executor.shutdown(LONG)
            if finished and ran_in == [os.getppid(), os.getpid()]:
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert state_of(registry, "still running") is JobState.RUNNING
    gate.open.set()
    assert ended(registry, "still waiting").state is JobState.FINISHED
    assert ran_in == [os.getpid()] * 2


def test_the_output_of_100_jobs_at_once_is_never_mixed(make, registry):
    executor = make(max_workers=100)
    together = threading.Barrier(100)

    def work(number: int) -> None:
        together.wait(LONG)
        for line in range(50):
            print(number, line)

    for number in range(100):
        executor.submit(a_run(registry, f"job {number}", lambda number=number: work(number)))
    for number in range(100):
        assert ended(registry, f"job {number}").state is JobState.FINISHED
        lines = [f"{number} {line}" for line in range(50)]
        assert all_of(registry, key_of(f"job {number}")).decode().splitlines() == lines


# Groups: what must wait though there is a thread for it.


def a_grouped_run(registry: MemoryRegistry, name: str, function: Callable[[], object], most: int = 1) -> Run:
    key = registry.add(Job(key_of(name), name, groups={"reindex": most})).key
    return Run(key, name, registry, call_function(function), copy_context())


def test_a_job_whose_group_is_full_waits_for_its_turn_and_holds_up_nobody(make, registry, gate):
    executor = make(max_workers=2)
    order: list[str] = []
    executor.submit(a_grouped_run(registry, "first", gate))
    gate.await_arrivals(1)
    executor.submit(a_grouped_run(registry, "second", lambda: order.append("second")))
    executor.submit(a_run(registry, "other", lambda: order.append("other")))
    assert ended(registry, "other").state is JobState.FINISHED
    assert (state_of(registry, "second"), order) == (JobState.PENDING, ["other"])
    gate.open.set()
    assert ended(registry, "second").state is JobState.FINISHED


def test_jobs_of_a_full_group_begin_in_the_order_of_their_coming(make, registry, gate):
    there = registry.add(Job(key_of("elsewhere"), "elsewhere", groups={"reindex": 1})).key
    assert registry.claim(there, "a runner elsewhere")
    executor = make(max_workers=1)
    order: list[int] = []
    for number in range(5):
        executor.submit(a_grouped_run(registry, f"job {number}", lambda number=number: order.append(number)))
    executor.submit(a_run(registry, "other", gate))
    gate.await_arrivals(1)  # all before it were tried, and the only thread is here
    registry.finish(there, "a runner elsewhere", JobState.FINISHED)
    gate.open.set()
    for number in range(5):
        assert ended(registry, f"job {number}").state is JobState.FINISHED
    assert order == [0, 1, 2, 3, 4]


def test_a_job_of_another_process_that_ends_makes_room_without_a_word(make, registry):
    there = registry.add(Job(key_of("elsewhere"), "elsewhere", groups={"reindex": 1})).key
    assert registry.claim(there, "a runner elsewhere")
    make(max_workers=1).submit(a_grouped_run(registry, "here", nothing))
    registry.wait(key_of("here"), 0, 0.05)
    assert state_of(registry, "here") is JobState.PENDING
    registry.finish(there, "a runner elsewhere", JobState.FINISHED)
    assert ended(registry, "here").state is JobState.FINISHED


def test_a_job_that_waits_for_its_group_counts_as_waiting(make, registry, gate):
    executor = make(max_workers=2, max_pending=0)
    executor.submit(a_grouped_run(registry, "first", gate))
    gate.await_arrivals(1)
    executor.submit(a_grouped_run(registry, "second", nothing))
    with pytest.raises(QueueFull):
        executor.submit(a_run(registry, "third", nothing))
    gate.open.set()
    ended(registry, "second")


def test_a_job_that_waits_for_its_group_can_be_stopped(make, registry, gate):
    executor = make(max_workers=2)
    executor.submit(a_grouped_run(registry, "first", gate))
    gate.await_arrivals(1)
    executor.submit(a_grouped_run(registry, "second", nothing))
    executor.submit(a_run(registry, "other", nothing))
    ended(registry, "other")
    registry.request_cancel(key_of("second"))
    executor.stop(key_of("second"))
    gate.open.set()
    executor.shutdown(LONG)
    assert state_of(registry, "second") is JobState.CANCELLED


@pytest.mark.parametrize("drain", [0.0, LONG])
def test_a_shutdown_waits_for_jobs_of_a_full_group_too_or_loses_them(make, registry, gate, drain):
    executor = make(max_workers=2)
    executor.submit(a_grouped_run(registry, "first", gate))
    gate.await_arrivals(1)
    executor.submit(a_grouped_run(registry, "second", nothing))
    executor.submit(a_run(registry, "other", nothing))
    ended(registry, "other")
    if drain:
        gate.open.set()
    executor.shutdown(drain)
    assert state_of(registry, "second") is (JobState.FINISHED if drain else JobState.LOST)
    gate.open.set()


class TestThreadExecutor(ExecutorContract):
    kind = "bgmiddleware:ThreadExecutor"

    def options(self, *, max_workers: int, max_pending: int, grace: float) -> dict[str, int]:
        return {"max_workers": max_workers, "max_pending": max_pending}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_child_of_a_fork_drops_an_executor_though_a_thread_had_its_lock() -> None:
    script = """
    import os, signal, threading
    from bgmiddleware import ThreadExecutor
    executor, held = ThreadExecutor(), threading.Event()

    def hold(lock):
        with lock:
            held.set()
            threading.Event().wait()

    threading.Thread(target=hold, args=(executor._lock,), daemon=True).start()
    held.wait()
    pid = os.fork()
    if not pid:
        signal.alarm(120)
        del executor
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
    os._exit(0)
    """
    arguments = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    assert subprocess.run(arguments, capture_output=True, text=True, check=False).stdout == "0\n"
