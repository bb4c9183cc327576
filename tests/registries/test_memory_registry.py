"""The registry in memory: the contract, and its own: files for what is large, a bound on all bytes, live output."""

import gc
import os
import platform
import shutil
import stat
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bgmiddleware import (
    Channel,
    ConfigurationError,
    JobExpired,
    JobNotFound,
    JobState,
    MemoryRegistry,
    QueueFull,
    RegistryError,
    RegistryFull,
)
from bgmiddleware._jobs import key_of
from bgmiddleware.testing.registries import (
    KEY,
    LONG,
    RUNNER,
    Clock,
    RegistryContract,
    added,
    all_of,
    begun,
    blocked_on,
    done,
    ended,
    remembers_the_last_three,
    running,
    write,
)
from tests.kit.documents import ROOT

Make = Callable[..., MemoryRegistry]

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")


def making(clock: Clock, **own_settings: int) -> Iterator[Make]:
    made: list[MemoryRegistry] = []

    def make(**settings: object) -> MemoryRegistry:
        made.append(MemoryRegistry(**{"clock": clock, **own_settings, **settings}))
        return made[-1]

    yield make
    for registry in made:
        registry.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock) -> Iterator[Make]:
    yield from making(clock)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory in which temporary directories are made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def files_in(temporary: Path) -> list[Path]:
    return [path for path in temporary.rglob("*") if path.is_file()]


class TestMemoryRegistry(RegistryContract):
    @pytest.fixture
    def make(self, clock: Clock) -> Iterator[Make]:
        yield from making(clock)


class TestMemoryRegistryInFiles(RegistryContract):
    """All that is longer than one byte lies in a file."""

    @pytest.fixture
    def make(self, clock: Clock) -> Iterator[Make]:
        yield from making(clock, spool_threshold=1)


# Nothing begins before it is needed.


def test_constructing_starts_nothing(temporary):
    threads = set(threading.enumerate())
    with MemoryRegistry() as registry:
        ended(registry, output=b"x" * 1000)
        assert list(temporary.iterdir()) == []
        assert set(threading.enumerate()) <= threads  # those of other tests may end


@pytest.mark.parametrize("name", ["max_bytes", "spool_threshold"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_bad_setting_is_refused_by_name(name, value):
    with pytest.raises(ConfigurationError, match=rf"^{name} = {value}: "):
        MemoryRegistry(**{name: value})


@pytest.mark.parametrize("name", ["max_bytes", "spool_threshold", "max_jobs", "max_output", "max_result"])
def test_the_least_setting_is_one(name):
    MemoryRegistry(**{name: 1}).close()


# What is large lies in files.


@pytest.mark.parametrize("channel", Channel)
def test_a_channel_moves_to_a_file_when_it_grows_beyond_the_threshold(make, temporary, channel):
    registry = make(spool_threshold=10)
    added(registry)
    if channel is not Channel.REQUEST:
        registry.claim(KEY, RUNNER)
    registry.append(KEY, channel, 0, b"0123456789", runner=RUNNER)
    assert files_in(temporary) == []
    registry.append(KEY, channel, 10, b"x", runner=RUNNER)
    (file,) = files_in(temporary)
    assert file.read_bytes() == all_of(registry, KEY, channel) == b"0123456789x"


def test_the_files_are_their_users_alone(make, temporary):
    registry = make(spool_threshold=10)
    running(registry)
    write(registry, KEY, b"x" * 11)
    (directory,) = temporary.iterdir()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [stat.S_IMODE(file.stat().st_mode) for file in directory.iterdir()] == [0o600]


def test_what_two_ended_jobs_left_in_files_is_read_back_from_any_offset(make, temporary):
    registry = make(spool_threshold=10, max_output=100)
    keys = [ended(registry, name, output=name.encode() * 300) for name in "ab"]
    assert len(files_in(temporary)) == 2
    for key, name in zip(keys, (b"a", b"b"), strict=True):
        assert registry.get(key).output_dropped == (50, 250)
        assert all_of(registry, key, limit=7) == name * 100
        assert registry.read(key, Channel.OUTPUT, 270, 1000) == (270, name * 30)


def test_output_that_is_bounded_below_the_threshold_never_makes_a_file(make, temporary):
    registry = make(spool_threshold=10, max_output=10)
    running(registry)
    for _ in range(5):
        write(registry, KEY, b"0123456789abcdef")
    assert files_in(temporary) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
def test_an_ended_job_keeps_no_file_open(make, temporary):
    registry = make(spool_threshold=10)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        key = running(registry, f"job {number}")
        write(registry, key, b"x" * 11)
        write(registry, key, b"x" * 11, Channel.BODY)
        assert len(os.listdir("/proc/self/fd")) == before + 2
        registry.finish(key, RUNNER, JobState.FINISHED)
        assert all_of(registry, key) == b"x" * 11
    assert len(files_in(temporary)) == 40
    assert len(os.listdir("/proc/self/fd")) == before


def test_files_are_removed_with_their_jobs(make, temporary, clock):
    registry = make(spool_threshold=10, ttl=60.0)
    discarded, *_ = (ended(registry, name, output=b"x" * 11) for name in "abc")
    assert len(files_in(temporary)) == 3
    registry.discard(discarded)
    assert len(files_in(temporary)) == 2
    clock.advance(30.0)
    ended(registry, "d", output=b"x" * 11)
    clock.advance(30.0)
    registry.evict()
    assert len(files_in(temporary)) == 1
    registry.close()
    assert list(temporary.iterdir()) == []


def test_the_file_of_a_request_is_removed_when_the_job_ends(make, temporary):
    registry = make(spool_threshold=10)
    added(registry)
    registry.append(KEY, Channel.REQUEST, 0, b"x" * 11)
    registry.claim(KEY, RUNNER)
    assert len(files_in(temporary)) == 1
    registry.finish(KEY, RUNNER, JobState.FINISHED)
    assert files_in(temporary) == []


def test_the_directory_is_removed_with_a_registry_that_was_never_closed(temporary):
    registry = MemoryRegistry(spool_threshold=10)
    ended(registry, output=b"x" * 11)
    assert len(list(temporary.iterdir())) == 1
    del registry
    gc.collect()
    assert list(temporary.iterdir()) == []


def test_files_that_somebody_else_removed_or_cut_are_an_error_and_not_an_end(make, temporary):
    registry = make(spool_threshold=10)
    removed, cut, whole = (ended(registry, name, output=name.encode() * 11) for name in ("a", "b", "c"))
    for file in files_in(temporary):
        if file.read_bytes().startswith(b"a"):
            file.unlink()
        elif file.read_bytes().startswith(b"b"):
            os.truncate(file, 5)
    with pytest.raises(RegistryError, match="removed by somebody else"):
        registry.read(removed, Channel.OUTPUT, 0)
    with pytest.raises(RegistryError, match="cut by somebody else"):
        registry.read(cut, Channel.OUTPUT, 5)
    assert all_of(registry, whole) == b"c" * 11
    registry.discard(removed)


def test_a_directory_that_somebody_else_removed_is_made_again_for_later_jobs(make, temporary):
    registry = make(spool_threshold=10)
    ended(registry, "before", output=b"x" * 11)
    still = running(registry, "still running")
    write(registry, still, b"y" * 11)
    shutil.rmtree(next(temporary.iterdir()))
    with pytest.raises(RegistryError):
        registry.read(key_of("before"), Channel.OUTPUT, 0)
    assert all_of(registry, still) == b"y" * 11  # its file is open, and that is enough
    ended(registry, "after", output=b"z" * 11)
    assert all_of(registry, key_of("after")) == b"z" * 11
    registry.close()
    assert list(temporary.iterdir()) == []


def test_a_directory_that_cannot_be_made_is_an_error_that_leaves_all_as_it_was(make, tmp_path, monkeypatch):
    registry = make(spool_threshold=10)
    running(registry)
    write(registry, KEY, b"kept")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(RegistryError, match="cannot write"):
        write(registry, KEY, b"x" * 11)
    assert all_of(registry, KEY) == b"kept"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert registry.append(KEY, Channel.OUTPUT, 4, b"x" * 11, runner=RUNNER) == 15


@forks
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("with_own", [False, True])
def test_a_forked_child_that_closes_its_copy_leaves_the_parents_files(make, temporary, with_own):
    registry = make(spool_threshold=10)
    ended(registry, output=b"x" * 11)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            if with_own:
                own = running(registry, "the child's own")
                write(registry, own, b"y" * 11)
                assert all_of(registry, own) == b"y" * 11
                assert len(files_in(temporary)) == 2
            registry.discard(KEY)
            registry.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert all_of(registry, KEY) == b"x" * 11
    assert len(list(temporary.iterdir())) == 1  # and the child removed its own


@forks
def test_a_forked_child_that_ends_leaves_the_parents_files(tmp_path):
    script = """
        import os, sys
        from bgmiddleware import Channel, Job, JobState, MemoryRegistry
        registry = MemoryRegistry(spool_threshold=10)
        registry.add(Job("key", "title"))
        registry.claim("key", "runner")
        registry.append("key", Channel.OUTPUT, 0, b"x" * 11, runner="runner")
        registry.finish("key", "runner", JobState.FINISHED)
        pid = os.fork()
        if not pid:
            sys.exit(0)
        os.waitpid(pid, 0)
        print(registry.read("key", Channel.OUTPUT, 0).data.decode())
    """
    child = subprocess.run(
        # Python 3.12 and newer warn of a fork beside threads, such as the one that evicts.
        [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", textwrap.dedent(script)],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
    )
    assert (child.stdout, child.stderr) == ("xxxxxxxxxxx\n", "")
    assert list(tmp_path.iterdir()) == []


# All jobs together.


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library cannot be asked to give memory back")
@pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="the memory is not the C library's there")
def test_what_forgotten_jobs_took_is_given_back_to_the_system():
    program = """
        import time
        from bgmiddleware import Channel, Job, JobState, MemoryRegistry

        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096

        later, pins, size = 0.0, [], 40_000
        registry = MemoryRegistry(clock=lambda: time.time() + later, ttl=1000.0)
        before = resident()
        for number in range(1000):
            key = registry.add(Job(f"{number:032}", "x")).key
            registry.claim(key, "runner")
            registry.append(key, Channel.OUTPUT, 0, bytes(size), runner="runner")
            registry.finish(key, "runner", JobState.FINISHED)
            pins.append(bytes(600))  # which keeps the C library from giving back what lies below
        kept = resident() - before
        later = 2000.0
        assert registry.evict(2000).evicted == 1000
        print((resident() - before) / kept)
    """
    left = subprocess.check_output([sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, text=True)
    assert float(left) < 0.5


def test_ended_jobs_make_room_for_bytes_and_the_one_that_ended_first_goes_first(make):
    registry = make(max_bytes=100)
    for name in "abc":
        ended(registry, name, output=b"x" * 30)
    key = running(registry, "d")
    write(registry, key, b"x" * 10)
    assert len(registry.jobs()) == 4  # 100 bytes just fit
    write(registry, key, b"x")
    assert {job.title for job in registry.jobs()} == {"b", "c", "d"}
    with pytest.raises(JobExpired):
        registry.get(key_of("a"))


def test_output_that_replaces_older_output_takes_no_room_from_ended_jobs(make):
    registry = make(max_bytes=100, max_output=10)
    for number in range(9):
        ended(registry, f"job {number}", output=b"x" * 10)
    key = running(registry, "endless")
    for _ in range(50):
        write(registry, key, b"0123456789abc")
    assert len(registry.jobs(JobState.FINISHED)) == 9


def test_new_jobs_are_refused_where_the_running_ones_hold_all_bytes(make):
    registry = make(max_bytes=100)
    key = running(registry)
    write(registry, key, b"x" * 99)
    added(registry, "there is one byte of room")
    write(registry, key, b"x")
    with pytest.raises(QueueFull):
        added(registry, "there is none")
    ended_too = key_of("there is one byte of room")
    registry.request_cancel(ended_too)
    with pytest.raises(QueueFull):  # it ended, but it held nothing
        added(registry, "there is none")
    registry.finish(key, RUNNER, JobState.FINISHED)
    added(registry, "there is room")


def test_a_running_job_drops_the_middle_of_its_output_where_there_is_no_room(make):
    registry = make(max_bytes=10_000)
    key = running(registry)
    data = bytes(range(256)) * 100
    for begin in range(0, len(data), 999):
        registry.append(key, Channel.OUTPUT, begin, data[begin : begin + 999], runner=RUNNER)
    job = registry.get(key)
    begin, end = job.output_dropped
    assert job.output_end == len(data)
    assert all_of(registry, key) == data[:begin] + data[end:]
    assert begin > 0
    assert len(data) - end >= 4096  # a tail that is worth reading
    assert begin + len(data) - end <= 10_000 + 4096
    assert job.state is JobState.RUNNING


@pytest.mark.parametrize("max_output", [1, 10, 5000])
def test_output_without_room_keeps_its_tail_and_no_more_than_max_output(make, max_output):
    registry = make(max_bytes=1, max_output=max_output)
    key = running(registry)
    data = b"0123456789" * 2000
    for begin in range(0, len(data), 1000):
        registry.append(key, Channel.OUTPUT, begin, data[begin : begin + 1000], runner=RUNNER)
    begin, end = registry.get(key).output_dropped
    kept = all_of(registry, key)
    assert kept == data[:begin] + data[end:]
    assert min(max_output, 4096) <= len(kept) <= max_output


@pytest.mark.parametrize("channel", [Channel.REQUEST, Channel.BODY])
def test_a_body_without_room_is_refused_whole(make, channel):
    registry = make(max_bytes=100)
    added(registry)
    if channel is Channel.BODY:
        registry.claim(KEY, RUNNER)
    registry.append(KEY, channel, 0, b"x" * 100, runner=RUNNER)
    with pytest.raises(RegistryFull):
        registry.append(KEY, channel, 100, b"x", runner=RUNNER)
    assert all_of(registry, KEY, channel) == b"x" * 100


def test_the_bytes_of_jobs_that_are_gone_are_free_again(make, clock):
    registry = make(max_bytes=100, ttl=60.0)
    for number in range(10):
        key = added(registry, f"job {number}")
        registry.append(key, Channel.REQUEST, 0, b"x" * 40)
        registry.claim(key, RUNNER)
        write(registry, key, b"x" * 40)
        registry.finish(key, RUNNER, JobState.FINISHED)
        if number % 2:
            registry.discard(key)
        clock.advance(60.0)
        registry.evict()
    assert registry._bytes == 0


def test_what_is_remembered_of_expired_jobs_is_bounded(make, clock):
    remembers_the_last_three(make(max_jobs=3, ttl=60.0), clock)


def test_an_ended_job_with_10_kb_costs_little_more_than_that_and_nothing_after_its_ttl(make, clock):
    registry = make(ttl=60.0)
    count = 60
    lines = [b"%0127d\n" % number for number in range(80)]

    def run(number: int) -> None:
        key = running(registry, f"job {number}")
        for at, line in enumerate(lines):
            registry.append(key, Channel.OUTPUT, at * 128, line, runner=RUNNER)
        registry.finish(key, RUNNER, JobState.FINISHED)

    run(-1)  # what is made once is not counted
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            run(number)
        kept = tracemalloc.get_traced_memory()[0] - before
        clock.advance(60.0)
        registry.evict()
        after = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert kept / count <= 12 * 1024
    assert after / count <= 400  # the remembered keys


def held_by_us() -> int:
    """Bytes that were allocated by the package or by the test: other threads of the process have their own."""
    ours = [tracemalloc.Filter(True, f"{ROOT}/{part}/*", all_frames=True) for part in ("bgmiddleware", "tests")]
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(ours).traces)


def test_jobs_that_made_room_leave_nothing_behind(make):
    registry = make(max_jobs=5)
    tracemalloc.start(10)
    try:
        for number in range(400):
            ended(registry, f"warm {number}")
        gc.collect()
        before = held_by_us()
        for number in range(400):
            ended(registry, f"job {number}")
        gc.collect()
        assert held_by_us() - before < 8000
    finally:
        tracemalloc.stop()


def test_when_the_wall_clock_is_set_jobs_expire_in_their_time_all_the_same(monkeypatch):
    with MemoryRegistry(ttl=0.001) as registry:
        before = registry.clock()
        assert abs(before - time.time()) < 60.0
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert before <= registry.clock() < before + 60.0
        ended(registry)
        while registry.evict() != (0, 1):
            assert registry.clock() < before + LONG


@pytest.mark.parametrize("how", ["adding", "evicting"])
def test_when_a_clock_goes_back_nothing_is_kept_for_longer_than_its_ttl_from_then(make, clock, how):
    registry = make(ttl=60.0, pending_ttl=60.0)
    ended(registry, "before")
    added(registry, "waits")
    registry.evict()
    clock.advance(-3600.0)
    ended(registry, "after")
    for _ in range(2):
        added(registry, f"looks {clock()}") if how == "adding" else registry.evict()
        clock.advance(60.0)
    for name in ("before", "after"):
        with pytest.raises(JobExpired):
            registry.get(key_of(name))
    registry.tidy() if how == "adding" else registry.evict()
    assert {"before", "after"}.isdisjoint(registry._records[key].job.title for key in registry._records)


def test_closing_wakes_who_waits(make):
    registry = make()
    running(registry)
    waiting = begun(registry.wait, KEY, 0, LONG)
    blocked_on(waiting, registry, KEY, 0)
    registry.close()
    with pytest.raises(JobNotFound):
        done(waiting)


# Live output.


class Source:
    """A job's output in this process: what is in *unread* is appended when the registry asks."""

    def __init__(self, registry: MemoryRegistry, unread: bytes = b"") -> None:
        self.registry = registry
        self.unread = unread
        self.at = 0
        self.watched: list[bool] = []
        self.reasons: list[str] = []

    def drain(self) -> None:
        data, self.unread = self.unread, b""
        if data:
            self.at = self.registry.append(KEY, Channel.OUTPUT, self.at, data, runner=RUNNER)

    def watch(self, watched: bool) -> None:
        self.watched.append(watched)

    def interrupt(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.fixture
def registry(make: Make) -> MemoryRegistry:
    return make()


@pytest.fixture
def source(registry: MemoryRegistry) -> Source:
    running(registry)
    source = Source(registry, b"unread")
    assert registry.attach(KEY, source) is True
    return source


def test_who_asks_for_a_job_sees_what_it_printed_a_moment_ago(registry, source):
    assert registry.get(KEY).output_end == 6
    assert all_of(registry, KEY) == b"unread"


def test_who_waits_for_a_job_sees_what_it_printed_a_moment_ago(registry, source):
    assert registry.wait(KEY, 0, LONG).output_end == 6


def test_a_job_appends_each_write_only_while_somebody_waits(registry, source):
    registry.get(KEY)
    assert source.watched == []
    waiting = begun(registry.wait, KEY, 6, LONG)
    blocked_on(waiting, registry, KEY, 6)
    assert source.watched[-1] is True
    source.unread = b"!"
    source.drain()
    done(waiting)
    assert source.watched[-1] is False


def test_a_wait_that_times_out_leaves_the_job_unwatched(registry, source):
    registry.get(KEY)
    registry.wait(KEY, 6, 0.01)
    assert source.watched[0] is True
    assert source.watched[-1] is False


def test_an_output_that_comes_to_a_waiting_reader_is_watched_at_once(registry):
    running(registry)
    waiting = begun(registry.wait, KEY, 0, LONG)
    blocked_on(waiting, registry, KEY, 0)
    source = Source(registry)
    registry.attach(KEY, source)
    assert source.watched == [True]
    source.unread = b"x"
    source.drain()
    done(waiting)


def test_a_cancel_interrupts_the_output_once(registry, source):
    registry.request_cancel(KEY)
    registry.request_cancel(KEY)
    assert source.reasons == ["cancelled on request"]


def test_an_output_that_comes_after_the_cancel_is_interrupted_at_once(registry):
    running(registry)
    registry.request_cancel(KEY)
    source = Source(registry)
    registry.attach(KEY, source)
    assert source.reasons == ["cancelled on request"]


def test_an_ended_job_lets_go_of_its_output(registry, source):
    registry.get(KEY)
    registry.finish(KEY, RUNNER, JobState.FINISHED)
    source.unread = b"too late"
    assert registry.get(KEY).output_end == 6
    registry.request_cancel(KEY)
    assert source.reasons == []
    assert source.unread == b"too late"


@pytest.mark.parametrize("key", ["unknown", key_of("expired")])
def test_an_output_is_taken_of_jobs_there_are_only(make, clock, key):
    registry = make(ttl=60.0)
    ended(registry, "expired")
    clock.advance(60.0)
    with pytest.raises((JobNotFound, JobExpired)):
        registry.attach(key, Source(registry))
