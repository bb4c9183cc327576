"""The registry in a directory: the contract, that of shared registries, and its own: modes, disks, locks, crashes."""

import contextlib
import errno
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from bgmiddleware import (
    BadOffset,
    Channel,
    ConfigurationError,
    Fenced,
    Job,
    JobExpired,
    JobNotFound,
    JobState,
    Progress,
    QueueFull,
    RegistryError,
)
from bgmiddleware._jobs import NextTry, Tries, key_of
from bgmiddleware.registries import spool
from bgmiddleware.registries._bounds import Bounds
from bgmiddleware.registries._spool import directory as _directory
from bgmiddleware.registries._spool import index as _index
from bgmiddleware.registries._spool import jobfiles as _jobfiles
from bgmiddleware.registries._spool import layout as _layout
from bgmiddleware.registries._spool import room as _room
from bgmiddleware.registries._spool import waking as _waking
from bgmiddleware.registries._spool import writer as _writer
from bgmiddleware.registries.base import END, Transition
from bgmiddleware.registries.spool import SpoolRegistry
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
from bgmiddleware.testing.shared_registries import SharedRegistryContract
from tests.kit.disks import mounted

Make = Callable[..., SpoolRegistry]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(clock: Clock, tmp_path: Path) -> Iterator[Make]:
    """Make a registry, of a new directory each unless one is named."""
    with ExitStack() as stack:
        count = iter(range(1000))

        def make(directory: Path | None = None, **settings: object) -> SpoolRegistry:
            directory = directory or tmp_path / f"jobs {next(count)}"
            return stack.enter_context(SpoolRegistry(directory, **{"clock": clock, **settings}))

        yield make


@pytest.fixture(autouse=True)
def waits_are_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits would look by himself now and then: not in here."""
    monkeypatch.setattr(spool, "_LOOK_EVERY", 1000.0)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where there is no directory yet."""
    return tmp_path / "jobs"


def files_in(directory: Path) -> list[Path]:
    """The files of jobs."""
    return sorted(path for path in directory.glob("??/*") if path.is_file())


def everything_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


@contextmanager
def process(script: str, *arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """Run a script that says a line when it is ready, and ends at a line, or when it is killed."""
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline()
            yield running
        finally:
            running.kill()


class TestSpoolRegistry(SharedRegistryContract):
    @pytest.fixture
    def location(self, tmp_path: Path) -> str:
        return f"spool:{tmp_path / 'shared'}"

    @pytest.fixture
    def make(self, make: Make) -> Make:
        return make


@pytest.mark.everything
class TestSpoolRegistryWithoutInotify(RegistryContract):
    @pytest.fixture
    def make(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> Make:
        monkeypatch.setattr(_waking, "_inotify", lambda: None)
        return make


# Nothing begins before it is needed.


def test_constructing_and_closing_makes_nothing(tmp_path):
    threads = set(threading.enumerate())
    numbers = os.listdir("/proc/self/fd")
    with SpoolRegistry(tmp_path / "not there" / "jobs") as registry:
        assert registry.directory == str(tmp_path / "not there" / "jobs")
    assert list(tmp_path.iterdir()) == []
    assert set(threading.enumerate()) <= threads  # those of other tests may end
    assert os.listdir("/proc/self/fd") == numbers


def test_all_that_is_made_is_its_users_alone_whatever_the_umask(make, directory):
    registry = make(directory)
    before = os.umask(0)
    try:
        key = added(registry)
        registry.append(key, Channel.REQUEST, 0, b"request")
        registry.claim(key, RUNNER)
        write(registry, key, b"output")
        write(registry, key, b"body", Channel.BODY)
        registry.secret()
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in [directory, *directory.rglob("*")]}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert len(files_in(directory)) == 3


def test_no_thread_is_begun_and_no_file_stays_open(make, directory):
    threads = set(threading.enumerate())
    numbers = len(os.listdir("/proc/self/fd"))
    registry = make(directory)
    for number in range(20):
        key = running(registry, f"job {number}")
        write(registry, key, b"output")
        write(registry, key, b"body", Channel.BODY)
        registry.wait(key, 6, 0.001)
        registry.finish(key, RUNNER, JobState.FINISHED)
    assert set(threading.enumerate()) <= threads  # those of other tests may end
    assert len(os.listdir("/proc/self/fd")) < numbers + 10
    registry.close()
    assert len(os.listdir("/proc/self/fd")) == numbers


@pytest.mark.parametrize("name", ["max_bytes", "busy_timeout"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_a_bad_setting_is_refused_by_name(make, name, value):
    with pytest.raises(ConfigurationError, match=rf"^{name} = "):
        make(**{name: value})


@pytest.mark.parametrize("path", ["", " ", "a\0b", b"bytes"])
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(ConfigurationError, match=r"^directory = "):
        SpoolRegistry(path)


def test_a_relative_path_is_that_of_when_it_was_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with SpoolRegistry("jobs") as registry:
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir("elsewhere")
        added(registry)
    assert (tmp_path / "jobs" / "index.db").exists()


@pytest.mark.parametrize("name", ["?mode=memory#x", "100%20", "é ☃", "\udcff", "a'b"])
def test_a_directory_may_have_any_name(make, tmp_path, name):
    registry = make(tmp_path / name)
    registry.check()
    ended(registry, output=b"output")
    assert all_of(registry, KEY) == b"output"
    assert (tmp_path / name / "index.db").exists()


@pytest.mark.parametrize(
    "key", ["", "..", "../../../../tmp/x", "A" * 32, "0" * 31, "0" * 33, "0" * 32 + "\n", "é" * 32]
)
def test_a_key_that_could_name_another_file_is_refused(make, directory, key):
    registry = make(directory)
    added(registry)
    before = everything_in(directory)
    with pytest.raises(RegistryError):
        registry.add(Job(key, "title"))
    with pytest.raises(JobNotFound):
        registry.read(key, Channel.OUTPUT, 0)
    assert everything_in(directory) == before


# Directories that cannot be used. First in check(), for who loads a configuration; then by the first use.


def refused(registry: SpoolRegistry, match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        registry.check()
    for use in (lambda: registry.get(KEY), lambda: added(registry), registry.secret, registry.jobs, registry.evict):
        with pytest.raises(ConfigurationError, match=match):
            use()


def test_a_directory_that_can_be_made_passes_the_check_and_is_not_made_by_it(make, tmp_path, directory):
    registry = make(directory)
    registry.check()
    assert list(tmp_path.iterdir()) == []
    added(registry)
    registry.check()
    assert registry.get(KEY).title == "one"


def test_a_directory_without_a_parent_is_refused(make, tmp_path):
    registry = make(tmp_path / "missing" / "jobs")
    refused(registry, r"^directory = '.*/missing/jobs': .*(no .*/missing|No such file)")
    (tmp_path / "missing").mkdir()
    registry.check()
    added(registry)


def test_a_file_is_no_directory(make, directory):
    directory.write_text("")
    refused(make(directory), "it is no directory")


def test_a_broken_link_is_refused(make, directory, tmp_path):
    directory.symlink_to(tmp_path / "nowhere")
    refused(make(directory), "No such file")


def test_a_link_leads_to_a_directory_that_is_checked(make, directory, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    other.chmod(0o777)
    directory.symlink_to(other)
    refused(make(directory), "others may write to it")
    other.chmod(0o755)
    added(make(directory))
    assert (other / "index.db").exists()


def test_a_directory_of_somebody_else_is_refused(make, directory):
    if os.geteuid():
        directory = Path("/usr")
    else:
        directory.mkdir(0o700)
        os.chown(directory, 65534, 65534)
    refused(
        make(directory), f"it belongs to user {directory.stat().st_uid}, and this process runs as user {os.geteuid()}"
    )


def test_a_directory_that_somebody_else_makes_just_now_is_looked_at_too(make, directory, monkeypatch):
    def lose_the_race(path, mode):
        make_directory(path)
        change_mode(path, 0o777)
        raise FileExistsError

    make_directory, change_mode = os.mkdir, os.chmod
    monkeypatch.setattr("os.mkdir", lose_the_race)
    with pytest.raises(ConfigurationError, match="others may write to it; chmod 700 "):
        added(make(directory))


@pytest.mark.parametrize("mode", [0o702, 0o777, 0o2777])
def test_a_directory_that_everybody_may_write_to_is_refused(make, directory, mode):
    directory.mkdir()
    directory.chmod(mode)
    refused(make(directory), f"others may write to it; chmod 700 {directory}$")
    assert stat.S_IMODE(directory.stat().st_mode) == mode
    directory.chmod(0o755)
    added(make(directory))


def test_nobody_is_told_to_close_off_a_directory_that_is_meant_for_all(make, directory):
    directory.mkdir()
    directory.chmod(0o1777)
    refused(make(directory), f"others may write to it; name one of its own, such as {directory}/jobs$")
    added(make(directory / "jobs"))


@pytest.mark.parametrize("mode", [0o720, 0o775, 0o2770])
@pytest.mark.parametrize("used", [True, False])
def test_what_the_group_of_a_volume_may_do_in_the_directory_is_taken_back(make, directory, mode, used):
    if used:
        ended(make(directory), output=b"kept")
    else:
        directory.mkdir()
    for path in [directory, *directory.rglob("*")]:  # as the kubelet does at each mount
        path.chmod(stat.S_IMODE(path.stat().st_mode) | mode if path.is_dir() else 0o660)
    before = stat.S_IMODE(directory.stat().st_mode)
    registry = make(directory)
    registry.check()
    assert stat.S_IMODE(directory.stat().st_mode) == before
    added(registry, "another")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    if used:
        assert all_of(registry, KEY) == b"kept"


def test_a_file_system_whose_modes_cannot_be_changed_is_refused_where_the_group_may_write(make, directory, monkeypatch):
    def refuse(path, mode):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), path)

    directory.mkdir()
    directory.chmod(0o770)
    monkeypatch.setattr("os.chmod", refuse)
    with pytest.raises(ConfigurationError, match="its group may write to it, and its file system"):
        added(make(directory))


@pytest.mark.parametrize(
    "name", ["clock.py", "app.ini", "static", "index", "clock.yesterday", "3", "3fa", "secret.txt"]
)
def test_a_directory_that_has_another_use_is_refused_and_nothing_in_it_is_touched(make, directory, name):
    directory.mkdir(0o775)
    directory.chmod(0o775)
    (directory / name).write_text("the work of a week")
    registry = make(directory)
    refused(registry, f"it has another use: there is '{name}' in it; name one of its own, such as {directory}/jobs$")
    registry.clock()
    assert everything_in(directory) == [name]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o775
    added(make(directory / "jobs"))


@pytest.mark.parametrize("name", ["lost+found", ".gitignore", "3f", "index.lock", "secret.0123456789abcdef"])
def test_what_a_new_file_system_has_or_a_killed_process_left_is_no_other_use(make, directory, name):
    directory.mkdir(0o700)
    (directory / name).mkdir() if name in ("lost+found", "3f") else (directory / name).touch()
    registry = make(directory)
    registry.check()
    added(registry)
    assert (directory / name).exists()


def test_a_directory_that_got_another_use_later_is_used_on_and_not_closed_off(make, directory):
    added(make(directory))
    (directory / "notes.txt").touch()
    directory.chmod(0o755)
    added(make(directory), "two")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    directory.chmod(0o775)
    refused(make(directory), "others may write to it, and there is 'notes.txt' in it; name one of its own")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o775


def test_where_the_root_of_a_volume_is_somebody_elses_a_directory_in_it_is_named(make, directory, monkeypatch):
    directory.mkdir()
    directory.chmod(0o2770)
    monkeypatch.setattr("os.geteuid", lambda: directory.stat().st_uid + 1)
    refused(make(directory), f"name one in it that is not there yet, such as {directory}/jobs$")


def test_to_look_whether_it_was_used_makes_nothing(make, directory):
    registry = make(directory)
    assert not registry.is_there()
    assert not directory.exists()
    added(registry)
    assert make(directory).is_there()


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "9p", "fuse.sshfs"])
@pytest.mark.parametrize("point", ["jobs", ""])
def test_a_network_file_system_is_refused(make, tmp_path, directory, monkeypatch, kind, point):
    mounts = tmp_path / "mounts"
    (tmp_path / point).mkdir(0o700, exist_ok=True)
    escaped = str(tmp_path / point).rstrip("/").replace(" ", "\\040")
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nhost:/export {escaped} {kind} rw,vers=4.2 0 0\n")
    monkeypatch.setattr(_directory, "_MOUNTS", str(mounts))
    refused(make(directory), rf"on a network file system \({kind}\).*RedisRegistry")


def test_a_local_file_system_below_a_network_one_is_fine_and_so_is_not_to_know(make, tmp_path, directory, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"host:/ / nfs4 rw 0 0\n/dev/vdb {tmp_path} nfs rw 0 0\n/dev/vda {tmp_path} xfs rw 0 0\n")
    monkeypatch.setattr(_directory, "_MOUNTS", str(mounts))
    added(make(directory))
    monkeypatch.setattr(_directory, "_MOUNTS", str(tmp_path / "missing"))
    added(make(), "two")


def test_a_network_file_system_is_found_through_links_and_from_far_below(make, tmp_path, monkeypatch):
    deep = tmp_path / "share" / "a" / "b"
    deep.mkdir(0o700, parents=True)
    (tmp_path / "link").symlink_to(deep)
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nhost:/ {tmp_path / 'share'} nfs4 rw 0 0\n")
    monkeypatch.setattr(_directory, "_MOUNTS", str(mounts))
    refused(make(deep), r"on a network file system \(nfs4\)")
    refused(make(tmp_path / "link"), r"on a network file system \(nfs4\)")


def test_a_directory_that_is_read_only_is_refused_and_one_that_becomes_so_is_an_error(make, tmp_path):
    disk = tmp_path / "disk"
    with mounted(disk, "size=3m"):
        registry = make(disk / "jobs")
        running(registry)
        write(registry, KEY, b"kept")
        registry.close()
        remount = ["mount", "-o", "remount,{}", str(disk)]
        subprocess.run([word.format("ro") for word in remount], check=True)
        refused(make(disk / "jobs"), "it is not writable for this process")
        refused(make(disk / "others"), "it cannot be made: .*/disk is not writable")
        for use in (lambda: write(registry, KEY, b"x"), lambda: added(registry, "two"), registry.evict):
            with pytest.raises(RegistryError):
                use()
        subprocess.run([word.format("rw") for word in remount], check=True)
        assert write(registry, KEY, b" on") == 7
        registry.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_user_who_is_not_root_has_a_directory_and_is_refused_those_of_others():
    if os.geteuid():
        pytest.skip("needs root, to become somebody else")
    with tempfile.TemporaryDirectory() as name:  # tmp_path is below a directory of mode 0700
        place = Path(name)
        place.chmod(0o755)
        (own := place / "own").mkdir()
        os.chown(own, 65534, 65534)
        (closed := place / "closed").mkdir(0o700)
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                os.write(writer, "\n".join(said_of(own / "jobs", closed / "jobs", closed)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        os.waitpid(pid, 0)
    with open(reader) as pipe:
        lines = pipe.read().splitlines()
    assert [line for line in lines if line == "works"] == ["works", "works"]
    remedy = "make it by hand, with mode 700, or name another"
    assert [line.partition(": ")[2] for line in lines if line != "works"] == [
        *2 * [f"it cannot be made: {closed} is not writable for this process; {remedy}"],
        *2 * ["it belongs to user 0, and this process runs as user 65534"],
    ]


def said_of(*directories: Path) -> Iterator[str]:
    for directory in directories:
        for use in (SpoolRegistry.check, added):
            try:
                with SpoolRegistry(directory) as registry:
                    use(registry)
                yield "works"
            except ConfigurationError as error:
                yield str(error)


# Directories that are lost in use.


def test_a_directory_that_vanishes_is_an_error_until_it_is_there_again_and_is_not_made_again(make, directory):
    registry = make(directory)
    running(registry)
    write(registry, KEY, b"output")
    away = directory.with_name("away")
    directory.rename(away)
    uses = (
        lambda: registry.get(KEY),
        lambda: registry.read(KEY, Channel.OUTPUT, 0),
        lambda: registry.wait(KEY, 6, LONG),
        lambda: registry.renew(KEY, RUNNER, lease=1.0),
        lambda: registry.finish(KEY, RUNNER, JobState.FINISHED),
        lambda: added(registry, "two"),
        registry.secret,
        registry.jobs,
        registry.evict,
    )
    for use in uses:
        with pytest.raises(RegistryError, match=r"jobs.*: No such file or directory"):
            use()
    assert not directory.exists()
    away.rename(directory)
    assert registry.get(KEY).output_end == 6
    assert write(registry, KEY, b"!") == 7
    assert registry.finish(KEY, RUNNER, JobState.FINISHED)


def test_a_directory_that_was_emptied_is_used_anew_and_who_still_runs_is_told(make, directory):
    registry = make(directory)
    running(registry)
    assert registry.append(KEY, Channel.OUTPUT, 0, b"output", runner=RUNNER) == 6
    shutil.rmtree(directory)
    with pytest.raises(RegistryError, match="No such file"):
        registry.get(KEY)
    directory.mkdir(0o700)
    with pytest.raises(RegistryError, match="removed by somebody else"):
        registry.append(KEY, Channel.OUTPUT, 6, b"x", runner=RUNNER)
    with pytest.raises(JobNotFound):
        registry.get(KEY)
    added(registry)
    with pytest.raises(RegistryError, match="removed by somebody else"):
        registry.append(KEY, Channel.OUTPUT, 6, b"x", runner=RUNNER)
    assert registry.claim(KEY, RUNNER)
    assert registry.finish(KEY, RUNNER, JobState.FINISHED)
    assert registry.get(KEY).output_end == 0


def test_files_that_somebody_removed_or_cut_or_spoiled_are_an_error_and_not_an_end(make, directory):
    registry = make(directory)
    removed, cut, whole = (ended(registry, name, output=name.encode() * 11) for name in ("a", "b", "c"))
    for file in files_in(directory):
        if file.name.startswith(removed):
            file.unlink()
        elif file.name.startswith(cut):
            os.truncate(file, 128 + 5)
    with pytest.raises(RegistryError, match=f"{removed}.* was removed by somebody else"):
        registry.read(removed, Channel.OUTPUT, 0)
    with pytest.raises(RegistryError, match="cut by somebody else"):
        registry.read(cut, Channel.OUTPUT, 5)
    assert all_of(registry, whole) == b"c" * 11
    assert registry.get(removed).output_end == 11  # what the index says is still true
    assert registry.discard(removed)
    spoiled = running(registry, "d")
    (file,) = [file for file in files_in(directory) if file.name.startswith(spoiled)]
    for damage in (b"", b"\0" * 200, file.read_bytes().replace(b"bgm-job", b"another")):
        file.write_bytes(damage)
        with pytest.raises(RegistryError, match="damaged by somebody else"):
            registry.get(spoiled)


def test_a_running_job_whose_file_was_removed_ends_all_the_same(make, directory, clock):
    registry = make(directory)
    for name in "ab":
        running(registry, name, lease=1.0)
        write(registry, key_of(name), b"output")
    for file in files_in(directory):
        file.unlink()
    with pytest.raises(RegistryError, match="removed by somebody else"):
        registry.get(key_of("a"))
    assert registry.finish(key_of("a"), RUNNER, JobState.FINISHED)
    clock.advance(1.0)
    assert registry.evict() == (1, 0)
    assert [(job.state, job.output_end) for job in registry.jobs()] == [(JobState.LOST, 0), (JobState.FINISHED, 0)]
    assert all_of(registry, key_of("a")) == b""


def test_a_job_whose_file_was_removed_does_not_end_without_its_short_response(make, directory):
    registry = make(directory)
    running(registry)
    for file in files_in(directory):
        file.unlink()
    with pytest.raises(RegistryError, match="removed by somebody else"):
        registry.finish_with(KEY, b"body", Transition(JobState.FINISHED, RUNNER))
    assert registry.finish(KEY, RUNNER, JobState.FAILED)
    assert (registry.get(KEY).state, registry.get(KEY).body_end) == (JobState.FAILED, 0)


def test_a_short_response_is_there_when_the_index_says_so_and_not_before(make, directory):
    registry = make(directory)
    running(registry)
    cut = Transition(JobState.FINISHED, RUNNER, output_end=1)
    with pytest.raises(BadOffset):  # the body was stored by then, as by who is killed before he writes down the end
        registry.finish_with(KEY, b"a longer body", cut)
    assert (registry.get(KEY).body_end, registry.read(KEY, Channel.BODY, 0).data) == (0, b"")
    assert registry.finish_with(KEY, b"body", cut._replace(output_end=0))
    assert all_of(registry, KEY, Channel.BODY) == b"body"
    assert sum(file.stat().st_size for file in files_in(directory) if file.suffix == ".body") == 4


def test_a_list_leaves_out_a_job_whose_files_are_gone(make, directory):
    registry = make(directory)
    running(registry, "a")
    running(registry, "b")
    (file,) = [file for file in files_in(directory) if file.name.startswith(key_of("a"))]
    file.unlink()
    assert [job.title for job in registry.jobs()] == ["b"]


# The disk.


@pytest.mark.parametrize("channel", [Channel.OUTPUT, Channel.BODY, Channel.REQUEST])
def test_on_a_full_disk_an_append_leaves_nothing_and_the_job_ends_truthfully(make, tmp_path, channel):
    with mounted(tmp_path / "disk", "size=3m"):
        registry = make(tmp_path / "disk" / "jobs")
        key = added(registry)
        other = added(registry, "another")
        if channel is not Channel.REQUEST:
            registry.claim(key, RUNNER, lease=LONG)
        end = 0
        for size in (400_000, 5_000):  # the first one too large is stored in part, and taken back
            end, error = filled(registry, key, channel, end, os.urandom(size))
            assert os.strerror(errno.ENOSPC) in str(error)
        assert end > 1_000_000
        (file,) = [file for file in files_in(tmp_path / "disk" / "jobs") if file.stat().st_size > 128]
        assert file.stat().st_size - (128 if channel is Channel.OUTPUT else 0) == end
        assert len(all_of(registry, key, channel, 100_000)) == end
        if channel is Channel.REQUEST:
            registry.claim(key, RUNNER, lease=LONG)
        assert registry.renew(key, RUNNER, lease=LONG, progress=Progress(1)).ok
        with pytest.raises(RegistryError, match=os.strerror(errno.ENOSPC)):
            added(registry, "a third")
        assert registry.claim(other, RUNNER)
        assert registry.finish(other, RUNNER, JobState.FAILED, reason="the disk is full")
        assert registry.finish(key, RUNNER, JobState.FINISHED)
        assert registry.get(key).state is JobState.FINISHED
        assert registry.discard(key)
        registry.claim(added(registry), RUNNER)
        assert write(registry, KEY, b"there is room again") == 19
        registry.close()


@pytest.mark.parametrize("by", ["its own jobs", "others"])
@pytest.mark.parametrize("who", ["the same process", "a new one"])
def test_when_its_jobs_expire_a_full_disk_has_room_again(make, tmp_path, clock, by, who):
    disk = tmp_path / "disk"
    with mounted(disk, "size=4m"):
        registry = make(disk / "jobs", ttl=60.0)
        names = [f"job {number}" for number in range(8)]
        for name in names:
            running(registry, name, lease=600.0)
        for name in names:
            filled(registry, key_of(name), Channel.OUTPUT, 0, os.urandom(50_000))
        with pytest.raises(RegistryError, match=os.strerror(errno.ENOSPC)):
            added(registry, "too many")
        if by == "others":
            fill(disk / "filler")
            assert free_of(disk) == 0
        for name in names:  # half of the reserve is there for them
            assert registry.finish(key_of(name), RUNNER, JobState.FINISHED)
            assert registry.get(key_of(name)).state is JobState.FINISHED
        if by == "others":
            fill(disk / "more")
            assert free_of(disk) == 0
        if who == "a new one":
            registry.close()
            registry = make(disk / "jobs", ttl=60.0)
        clock.advance(60.0)
        assert sum(registry.evict(3)) == 3
        added(registry, "there is room again")
        assert registry.claim(key_of("there is room again"), RUNNER)
        assert registry.append(key_of("there is room again"), Channel.OUTPUT, 0, b"x" * 1000, runner=RUNNER) == 1000
        registry.evict()
        assert (disk / "jobs" / "reserve").stat().st_size > 0
        registry.close()


@pytest.mark.parametrize("channel", [Channel.OUTPUT, Channel.BODY])
def test_bytes_that_find_no_room_take_that_of_jobs_that_have_expired(make, tmp_path, clock, channel):
    with mounted(tmp_path / "disk", "size=3m"):
        registry = make(tmp_path / "disk" / "jobs", ttl=60.0)
        running(registry)
        old = running(registry, "old")
        filled(registry, old, Channel.OUTPUT, 0, os.urandom(50_000))
        registry.finish(old, RUNNER, JobState.FINISHED)
        with pytest.raises(RegistryError):
            registry.append(KEY, channel, 0, b"x" * 500_000, runner=RUNNER)
        clock.advance(60.0)
        assert registry.append(KEY, channel, 0, b"x" * 500_000, runner=RUNNER) == 500_000
        registry.close()


def test_a_disk_on_which_others_left_nothing_free_is_not_full_for_ever(make, tmp_path, clock):
    disk = tmp_path / "disk"
    with mounted(disk, "size=4m"):
        registry = make(disk / "jobs", ttl=60.0)
        ended(registry, output=b"kept")
        fill(disk / "filler")
        for _ in range(3):
            with pytest.raises(RegistryError, match=os.strerror(errno.ENOSPC)):
                added(registry, "two")
        assert all_of(registry, KEY) == b"kept"
        (disk / "filler").unlink()
        added(registry, "two")
        registry.close()


def test_what_is_kept_in_reserve_is_made_by_the_first_use_and_given_back_when_it_is_needed(tmp_path):
    disk = tmp_path / "disk"
    with mounted(disk, "size=4m"):
        room = _room.Room(str(disk))
        assert not room.is_low()
        room.keep()
        size = (disk / "reserve").stat().st_size
        assert size == 4 * 1024 * 1024 // 8 // 2
        assert stat.S_IMODE((disk / "reserve").stat().st_mode) == 0o600
        room.spare()
        assert (disk / "reserve").exists()
        fill(disk / "filler")
        assert room.is_low()
        room.spare()
        assert free_of(disk) >= size
        room.keep()  # there is not enough for it and the index
        assert free_of(disk) >= size
        (disk / "filler").unlink()
        room.keep()
        assert (disk / "reserve").stat().st_size == size


def test_where_no_large_file_may_be_written_there_is_no_reserve_and_all_else_works(directory):
    script = """
        import resource, sys
        from bgmiddleware import Job
        from bgmiddleware.registries.spool import SpoolRegistry
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024 * 1024, resource.RLIM_INFINITY))
        with SpoolRegistry(sys.argv[1]) as registry:
            print(registry.add(Job("0" * 32, "title")).title)
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(directory)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=False)
    assert (said.stdout, said.stderr) == ("title\n", "")
    assert not (directory / "reserve").exists()


def fill(file: Path) -> None:
    """Take all that is free on the disk of a file."""
    with file.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(b"x" * 4096)


def free_of(disk: Path) -> int:
    system = os.statvfs(disk)
    return system.f_bavail * system.f_frsize


def filled(registry: SpoolRegistry, key: str, channel: Channel, end: int, chunk: bytes) -> tuple[int, RegistryError]:
    """Append until there is no room; return the end that was reached, and the error."""
    while True:
        try:
            end = registry.append(key, channel, end, chunk, runner=RUNNER)
        except RegistryError as error:
            return end, error


def test_what_was_written_after_a_full_disk_is_whole(make, tmp_path):
    with mounted(tmp_path / "disk", "size=3m"):
        registry = make(tmp_path / "disk" / "jobs")
        running(registry)
        filler = tmp_path / "disk" / "filler"
        filler.write_bytes(b"x" * 2_500_000)
        data = os.urandom(1_000_000)
        with pytest.raises(RegistryError):
            registry.append(KEY, Channel.OUTPUT, 0, data, runner=RUNNER)
        assert registry.get(KEY).output_end == 0
        assert [file.stat().st_size for file in files_in(tmp_path / "disk" / "jobs")] == [128]  # a part was written
        filler.unlink()
        assert registry.append(KEY, Channel.OUTPUT, 0, data, runner=RUNNER) == 1_000_000
        assert all_of(registry, KEY, limit=100_000) == data
        registry.close()


def test_short_writes_are_continued(make, monkeypatch):
    registry = make()
    running(registry)
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda number, data, at: whole(number, data[: max(1, len(data) // 2)], at))
    monkeypatch.setattr(_writer, "packed_ends", lambda ends, packed=_layout.packed_ends: _Whole(packed(ends)))
    write(registry, KEY, b"0123456789")
    monkeypatch.undo()
    assert all_of(registry, KEY) == b"0123456789"


class _Whole(bytes):
    """Bytes that a slice gives whole: the header is written at once."""

    def __getitem__(self, index: object) -> bytes:  # type: ignore[override]
        return bytes(self)


def test_max_bytes_counts_what_is_kept_and_ended_jobs_make_room(make, clock):
    registry = make(max_bytes=100)
    for name in "abc":
        ended(registry, name, output=b"x" * 30)
    key = running(registry, "d")
    write(registry, key, b"x" * 10)
    assert registry.renew(key, RUNNER, lease=LONG).ok
    assert len(registry.jobs()) == 4  # 100 bytes just fit
    write(registry, key, b"x")
    assert registry.renew(key, RUNNER, lease=LONG).ok
    assert {job.title for job in registry.jobs()} == {"b", "c", "d"}
    write(registry, key, b"x" * 40, Channel.BODY)
    registry.finish(key, RUNNER, JobState.FINISHED)
    assert {job.title for job in registry.jobs()} == {"c", "d"}
    for name in "ab":
        with pytest.raises(JobExpired):
            registry.get(key_of(name))


def test_a_job_that_ends_with_more_than_max_bytes_is_shown_and_makes_room_for_the_next(make):
    registry = make(max_bytes=100)
    ended(registry, "large", output=b"x" * 1000)
    assert registry.get(key_of("large")).output_end == 1000
    added(registry, "next")
    assert [job.title for job in registry.jobs()] == ["next"]


def test_new_jobs_are_refused_where_the_running_ones_hold_all_bytes(make):
    registry = make(max_bytes=100)
    key = running(registry)
    write(registry, key, b"x" * 99)
    registry.renew(key, RUNNER, lease=LONG)
    added(registry, "there is one byte of room")
    write(registry, key, b"x")
    registry.renew(key, RUNNER, lease=LONG)
    with pytest.raises(QueueFull, match="hold 100 bytes"):
        added(registry, "there is none")
    registry.finish(key, RUNNER, JobState.FINISHED)
    added(registry, "there is room")


def test_dropped_output_and_forgotten_requests_take_no_room(make):
    registry = make(max_bytes=140, max_output=10)
    for number in range(9):
        key = added(registry, f"job {number}")
        registry.append(key, Channel.REQUEST, 0, b"x" * 50)
        registry.claim(key, RUNNER)
        for _ in range(50):
            write(registry, key, b"0123456789abc")
        registry.renew(key, RUNNER, lease=LONG)
        registry.finish(key, RUNNER, JobState.FINISHED)
    assert len(registry.jobs()) == 9
    assert _index_total(registry) == (9, 90)


def _index_total(registry: SpoolRegistry) -> tuple[int, int]:
    with sqlite3.connect(f"{registry.directory}/index.db") as database:
        row: tuple[int, int] = database.execute("SELECT jobs, bytes FROM totals").fetchone()
    database.close()
    return row


def test_what_is_kept_of_an_endless_output_on_disk_is_bounded(make, directory):
    registry = make(directory, max_output=1000)
    running(registry)
    for _ in range(300):
        write(registry, KEY, b"x" * 77)
    (file,) = files_in(directory)
    assert file.stat().st_size == 128 + 1000


def test_files_are_removed_with_their_jobs(make, directory, clock):
    registry = make(directory, ttl=60.0)
    discarded, *_ = (ended(registry, name, output=b"x") for name in "abc")
    assert len(files_in(directory)) == 3
    registry.discard(discarded)
    assert len(files_in(directory)) == 2
    clock.advance(30.0)
    key = running(registry, "d")
    write(registry, key, b"body", Channel.BODY)
    assert len(files_in(directory)) == 4
    registry.finish(key, RUNNER, JobState.FINISHED)
    clock.advance(30.0)
    registry.evict()
    assert len(files_in(directory)) == 2
    clock.advance(30.0)
    registry.evict()
    assert files_in(directory) == []


def test_the_file_of_a_request_is_removed_when_the_job_ends(make, directory):
    registry = make(directory)
    added(registry)
    registry.append(KEY, Channel.REQUEST, 0, b"password")
    registry.claim(KEY, RUNNER)
    assert len(files_in(directory)) == 2
    registry.finish(KEY, RUNNER, JobState.FINISHED)
    assert [file.suffix for file in files_in(directory)] == [".1"]


def test_the_file_of_a_request_is_removed_when_its_next_try_has_begun(make, directory):
    registry = make(directory)
    tries = Tries(1, 2, (NextTry("a link", "another", {}),))
    registry.add(Job(KEY, "one", request={"REQUEST_METHOD": "PUT"}, tries=tries))
    registry.append(KEY, Channel.REQUEST, 0, b"the password")
    registry.claim(KEY, RUNNER)
    registry.finish(KEY, RUNNER, JobState.FAILED)
    assert len(files_in(directory)) == 2
    registry.amend(KEY, lambda job: job.changed(rerun_as="a link"))
    assert [file.suffix for file in files_in(directory)] == [".1"]
    assert _index_total(registry)[1] == 0


# Locks.


@contextmanager
def locked_index(directory: Path) -> Iterator[None]:
    """Another process holds the database, until the block ends."""
    script = """
        import sqlite3, sys
        database = sqlite3.connect(sys.argv[1], isolation_level=None)
        database.execute("BEGIN EXCLUSIVE")
        print("locked", flush=True)
        sys.stdin.readline()
    """
    with process(script, directory / "index.db"):
        yield


@contextmanager
def stuck_writer(directory: Path) -> Iterator[None]:
    """Another process is in the midst of a change, until the block ends."""
    script = """
        import fcntl, sys
        file = open(sys.argv[1], "r+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        print("locked", flush=True)
        sys.stdin.readline()
    """
    with process(script, directory / "index.lock"):
        yield


@pytest.mark.parametrize("held", [locked_index, stuck_writer])
def test_a_locked_index_is_an_error_after_the_busy_timeout_and_then_works(make, directory, held):
    registry = make(directory, busy_timeout=0.05)
    running(registry, lease=LONG)
    write(registry, KEY, b"before ")
    with held(directory):
        for change in (
            lambda: added(registry, "two"),
            lambda: registry.finish(KEY, RUNNER, JobState.FINISHED),
            lambda: registry.renew(KEY, RUNNER, lease=LONG),
            lambda: registry.request_cancel(KEY),
            lambda: registry.take_cookies(KEY),
            lambda: registry.discard(KEY),
            registry.evict,
        ):
            began = time.monotonic()
            with pytest.raises(RegistryError, match=r"index\.db: "):
                change()
            assert time.monotonic() - began >= 0.05
        # Readers do not wait, and neither does who appends.
        assert write(registry, KEY, b"meanwhile") == 16
        assert registry.get(KEY).state is JobState.RUNNING
        assert all_of(registry, KEY) == b"before meanwhile"
        assert [job.key for job in registry.jobs()] == [KEY]
    assert files_in(directory) == files_in(directory)[:1]
    added(registry, "two")
    assert registry.finish(KEY, RUNNER, JobState.FINISHED)


def test_a_reader_that_is_stuck_keeps_nobody_from_writing(make, directory):
    registry = make(directory, busy_timeout=0.05)
    running(registry)
    script = """
        import sqlite3, sys
        database = sqlite3.connect(sys.argv[1], isolation_level=None)
        database.execute("BEGIN")
        database.execute("SELECT * FROM jobs").fetchone()
        print("reads", flush=True)
        sys.stdin.readline()
    """
    with process(script, directory / "index.db"):
        for number in range(50):
            ended(registry, f"job {number}", output=b"x")
        assert len(registry.jobs(limit=1000)) == 51


def test_an_append_waits_no_longer_than_the_busy_timeout_for_another_one(make, directory):
    registry = make(directory, busy_timeout=0.05)
    running(registry)
    write(registry, KEY, b"x")
    (file,) = files_in(directory)
    script = """
        import fcntl, sys
        file = open(sys.argv[1], "r+b")
        fcntl.flock(file, fcntl.LOCK_EX)
        print("locked", flush=True)
        sys.stdin.readline()
    """
    with process(script, file):
        with pytest.raises(RegistryError, match="stuck in an append"):
            write(registry, KEY, b"y")
        assert all_of(registry, KEY) == b"x"
        assert registry.renew(KEY, RUNNER, lease=0.0).ok  # and nobody waits for it to end the job
        assert registry.evict() == (1, 0)
    with pytest.raises(Fenced):
        registry.append(KEY, Channel.OUTPUT, 1, b"y", runner=RUNNER)


# Crashes.


def test_a_seal_whose_setter_was_killed_before_the_end_was_written_down_is_taken_away(make, directory):
    registry, other = make(directory), make(directory)
    running(registry)
    write(registry, KEY, b"before")
    files = _jobfiles.JobFiles(registry.directory, KEY, 1)
    files.seal()
    assert registry.append(KEY, Channel.OUTPUT, 6, b" and after", runner=RUNNER) == 16
    files.seal()
    with pytest.raises(Fenced):
        registry.append(KEY, Channel.OUTPUT, 16, b"x", runner="another")
    assert registry.append(KEY, Channel.BODY, 0, b"body", runner=RUNNER) == 4
    assert other.finish(KEY, RUNNER, JobState.FINISHED)
    with pytest.raises(Fenced):
        registry.append(KEY, Channel.OUTPUT, 16, b"x", runner=RUNNER)


def test_bytes_of_an_append_that_was_killed_are_none_and_the_next_one_takes_their_place(make, directory):
    registry = make(directory)
    running(registry)
    write(registry, KEY, b"kept")
    write(registry, KEY, b"body", Channel.BODY)
    for file in files_in(directory):
        with file.open("ab") as torn:
            torn.write(b"torn" * 1000)
    assert (registry.get(KEY).output_end, all_of(registry, KEY)) == (4, b"kept")
    assert (registry.get(KEY).body_end, all_of(registry, KEY, Channel.BODY)) == (4, b"body")
    assert write(registry, KEY, b" on") == 7
    assert write(registry, KEY, b" on", Channel.BODY) == 7
    registry.finish(KEY, RUNNER, JobState.FINISHED)
    assert all_of(registry, KEY) == b"kept on"
    assert all_of(registry, KEY, Channel.BODY) == b"body on"


def test_a_writer_that_was_killed_when_it_had_dropped_what_it_would_overwrite_leaves_readers_an_end(
    make, directory, clock
):
    registry = make(directory, max_output=10)
    running(registry, lease=1.0)
    write(registry, KEY, bytes(range(100)))
    registry.close()
    (file,) = files_in(directory)
    with open(file, "r+b") as job:
        ends = _layout.read_header(job.fileno()).ends._replace(floor=150)
        os.pwrite(job.fileno(), _layout.packed_ends(ends), _layout.ENDS_AT)
    for lost in (False, True):
        assert registry.get(KEY).output_dropped == (5, 100)
        assert registry.read(KEY, Channel.OUTPUT, 97) == (100, b"")
        following = registry.follow(KEY, tick=0.001)
        assert [next(following), next(following)] == [(0, bytes(range(5))), (100, b"")]
        assert registry.page(KEY, 5).piece == (100, b"")
        if lost:
            assert list(following) == []
        clock.advance(1.0)
        registry.evict()


def test_what_comes_after_the_end_was_written_down_is_not_shown(make, directory):
    registry = make(directory, max_output=10)
    running(registry)
    write(registry, KEY, b"0123456789ab")
    registry.finish(KEY, RUNNER, JobState.FINISHED)
    before = registry.get(KEY)
    files = _jobfiles.JobFiles(registry.directory, KEY, 1)
    files.unseal()  # a writer that was stopped before it looked at the seal
    writer = _writer.Writer(files, RUNNER, 1.0)
    writer.append(Channel.BODY, 0, b"late")
    writer.close()
    assert registry.get(KEY) == before
    assert all_of(registry, KEY) == b"01234789ab"
    assert all_of(registry, KEY, Channel.BODY) == b""


@pytest.mark.parametrize("data", [b"x", b"0123456789abcdef"])
def test_an_append_that_is_stopped_before_it_looks_at_the_seal_is_refused_and_spoils_nothing(
    make, directory, monkeypatch, data
):
    """The job is ended by somebody else at the last moment: between what is written and the look."""
    registry, other = make(directory, max_output=10), make(directory)
    running(registry)
    write(registry, KEY, b"0123456789abc")
    look = _writer.is_sealed

    def ended_just_before(number: int) -> bool:
        monkeypatch.setattr(_writer, "is_sealed", look)
        assert other.finish(KEY, RUNNER, JobState.LOST)
        return look(number)

    monkeypatch.setattr(_writer, "is_sealed", ended_just_before)
    with pytest.raises(Fenced):
        registry.append(KEY, Channel.OUTPUT, 13, data, runner=RUNNER)
    job = other.get(KEY)
    assert job.output_end == 13
    begin, end = job.output_dropped
    assert all_of(other, KEY) == b"0123456789abc"[:begin] + b"0123456789abc"[end:]


def test_an_append_that_was_written_before_the_seal_is_found_by_who_ends_the_job(make, directory, monkeypatch):
    registry, other = make(directory), make(directory)
    running(registry)
    look = _writer.is_sealed

    def ended_just_after(number: int) -> bool:
        monkeypatch.setattr(_writer, "is_sealed", look)
        sealed = look(number)
        assert other.finish(KEY, RUNNER, JobState.LOST)
        return sealed

    monkeypatch.setattr(_writer, "is_sealed", ended_just_after)
    assert registry.append(KEY, Channel.OUTPUT, 0, b"acknowledged", runner=RUNNER) == 12
    assert all_of(other, KEY) == b"acknowledged"


def test_a_request_that_comes_while_its_job_is_claimed_is_refused(make, directory, monkeypatch):
    registry, other = make(directory), make(directory)
    added(registry)
    look = _writer.is_sealed

    def claimed_just_before(number: int) -> bool:
        assert other.claim(KEY, RUNNER)
        return look(number)

    monkeypatch.setattr(_writer, "is_sealed", claimed_just_before)
    with pytest.raises(Fenced):
        registry.append(KEY, Channel.REQUEST, 0, b"request")


def test_bytes_that_are_overwritten_just_before_they_are_read_are_dropped_and_not_wrong(make, directory, monkeypatch):
    registry = make(directory, max_output=10)
    running(registry)
    write(registry, KEY, b"0123456789")
    read = _jobfiles.read_at

    def overwritten_just_before(number: int, position: int, size: int) -> bytes:
        monkeypatch.setattr(_jobfiles, "read_at", read)
        registry.append(KEY, Channel.OUTPUT, 10, b"abc", runner=RUNNER)
        return read(number, position, size)

    monkeypatch.setattr(_jobfiles, "read_at", overwritten_just_before)
    assert registry.read(KEY, Channel.OUTPUT, 6) == (8, b"89abc")


def test_a_ring_that_is_overwritten_while_it_is_read_gives_no_wrong_byte(make, directory):
    registry = make(directory, max_output=5000)
    running(registry)
    stop = threading.Event()

    def write_all() -> int:
        end = 0
        while not stop.is_set():
            chunk = b"".join(b"%08d" % number for number in range(end // 8, end // 8 + 50))
            end = registry.append(KEY, Channel.OUTPUT, end, chunk, runner=RUNNER)
        return end

    writing = begun(write_all)
    offset = 0
    for _ in range(2000):
        piece = registry.read(KEY, Channel.OUTPUT, offset)
        assert piece.offset >= offset
        first = piece.offset // 8
        expected = b"".join(b"%08d" % number for number in range(first, piece.end // 8 + 1))
        assert expected[piece.offset % 8 :].startswith(piece.data)
        offset = piece.end
    stop.set()
    assert done(writing) > 5000
    assert offset > 5000


def test_a_child_that_was_forked_by_c_code_opens_connections_of_its_own(directory):
    """As uWSGI does: nothing of Python is told before it."""
    script = """
        import ctypes, os, sys
        from bgmiddleware import Channel, Job, JobState
        from bgmiddleware.registries.spool import SpoolRegistry
        sys.setswitchinterval(1000)  # no thread may ask for its turn at the fork: in the child there is none to take it
        key = "0" * 32
        registry = SpoolRegistry(sys.argv[1])
        registry.add(Job(key, "title"))
        registry.claim(key, "runner")
        registry.append(key, Channel.OUTPUT, 0, b"parent ", runner="runner")
        pid = ctypes.PyDLL(None).fork()
        if not pid:
            registry.append(key, Channel.OUTPUT, 7, b"child ", runner="runner")
            os._exit(0 if registry._store._index._pid == os.getpid() else 1)
        code = os.waitpid(pid, 0)[1]
        registry.append(key, Channel.OUTPUT, 13, b"parent", runner="runner")
        registry.finish(key, "runner", JobState.FINISHED)
        print(code, registry.read(key, Channel.OUTPUT, 0).data.decode())
        registry.close()
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(directory)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=LONG, check=False)
    assert (said.stdout, said.stderr) == ("0 parent child parent\n", "")


@pytest.mark.parametrize("then", ["claimed", "cancelled"])
def test_a_job_whose_claimer_was_killed_before_it_wrote_into_its_file_still_waits(make, directory, monkeypatch, then):
    class Killed(BaseException):
        pass

    def write_at(*_: object) -> None:
        raise Killed

    registry = make(directory)
    key = added(registry, "title")
    with monkeypatch.context() as patched:
        patched.setattr(_jobfiles, "write_at", write_at)
        with pytest.raises(Killed):
            registry.claim(key, "runner")
    assert [file.stat().st_size for file in directory.glob(f"{key[:2]}/{key}.*")] == [0]
    assert registry.get(key).state is JobState.PENDING
    assert registry.read(key, Channel.OUTPUT, 0).data == b""
    if then == "cancelled":
        assert registry.request_cancel(key)
        assert registry.get(key).state is JobState.CANCELLED
    else:
        assert registry.claim(key, "runner")
        registry.append(key, Channel.OUTPUT, 0, b"printed", runner="runner")
        assert registry.finish(key, "runner", JobState.FINISHED)
    assert registry.read(key, Channel.OUTPUT, 0).data == (b"printed" if then == "claimed" else b"")


@pytest.mark.parametrize("by", ["evicting", "tidying"])
def test_files_that_a_killed_process_left_are_cleaned_up_and_no_others(make, directory, monkeypatch, by):
    registry = make(directory)
    kept = [added(registry, f"job {number}") for number in range(5)]
    registry.append(kept[0], Channel.REQUEST, 0, b"request")
    ended(registry, "ended", output=b"x")
    before = set(files_in(directory))
    orphans = [
        directory / key_of("ended")[:2] / f"{key_of('ended')}.99",
        directory / key_of("ended")[:2] / f"{key_of('ended')}.99.body",
        next(file for file in before if file.name.startswith(key_of("ended"))).with_suffix(".6.request"),
    ]
    for orphan in orphans:
        orphan.write_bytes(b"left")
    shard = directory / key_of("ended")[:2]
    strangers = {shard / name for name in ("notes.txt", f"{key_of('ended')}.99.txt", f"{'0' * 32}.1")}
    for stranger in strangers:
        stranger.write_bytes(b"not ours")
    (shard / f"{key_of('ended')}.98").mkdir()
    instant = time.monotonic()
    for _ in range(256):  # a part of the directory each
        if by == "evicting":
            registry.evict()
        else:
            instant += 10.0
            monkeypatch.setattr("bgmiddleware.registries.spool.time.monotonic", lambda instant=instant: instant)
            assert registry.tidy() == 10.0
    assert before | strangers <= set(files_in(directory))
    assert (shard / f"{key_of('ended')}.98").is_dir()
    assert not set(orphans) & set(files_in(directory))


def test_a_job_that_could_not_be_added_leaves_no_file(make, directory, monkeypatch):
    registry = make(directory, max_jobs=1)
    running(registry)
    with pytest.raises(QueueFull):
        added(registry, "two")
    with pytest.raises(RegistryError):
        registry.add(Job("x", "two"))
    assert len(files_in(directory)) == 1


def test_a_job_has_a_file_from_the_first_byte_of_its_request_or_its_claim_on(make, directory):
    registry = make(directory)
    added(registry)
    assert (files_in(directory), all_of(registry, KEY, Channel.REQUEST), all_of(registry, KEY)) == ([], b"", b"")
    assert registry.renew(KEY, "", lease=LONG).ok
    registry.append(added(registry, "two"), Channel.REQUEST, 0, b"request")
    assert {file.name[:32] for file in files_in(directory)} == {key_of("two")}
    for name in ("one", "two"):
        assert registry.claim(key_of(name), RUNNER)
    assert all_of(registry, key_of("two"), Channel.REQUEST) == b"request"
    assert len(files_in(directory)) == 3
    assert registry.request_cancel(added(registry, "three")) is JobState.CANCELLED
    assert registry.discard(added(registry, "four"))
    assert len(files_in(directory)) == 3


def test_what_a_claim_left_that_was_killed_is_taken_by_the_next(make, directory):
    registry = make(directory)
    for name, left in (("a", b""), ("b", b"bgm-job"), ("c", None)):
        key = added(registry, name)
        files = _jobfiles.JobFiles(registry.directory, key, ord(name) - ord("a") + 1)
        files.create(registry.max_output)
        if left is not None:
            Path(files.path).write_bytes(left)
        assert registry.claim(key, RUNNER)
        assert write(registry, key, b"output") == 6
        assert all_of(registry, key) == b"output"


def test_a_file_of_a_job_that_the_index_has_lost_is_not_taken_for_that_of_a_new_one(make, directory):
    registry = make(directory)
    running(registry)
    write(registry, KEY, b"of the old one")
    registry.close()
    for file in directory.glob("index.db*"):
        file.unlink()
    registry = make(directory)
    running(registry)
    assert registry.get(KEY).output_end == 0
    assert write(registry, KEY, b"new") == 3


# What is stored.


def test_the_schema_of_an_older_version_is_brought_up_to_date_and_its_jobs_stay(make, directory, monkeypatch):
    old = make(directory)
    ended(old, output=b"kept")
    running(old, "running")
    old.close()
    newer = (*_index._STEPS, "ALTER TABLE jobs ADD COLUMN colour TEXT;\nCREATE INDEX jobs_by_colour ON jobs (colour);")
    with monkeypatch.context() as patch:
        patch.setattr(_index, "_STEPS", newer)
        new = make(directory)
        new.check()
        assert all_of(new, KEY) == b"kept"
        assert {job.title for job in new.jobs()} == {"one", "running"}
        assert new.finish(key_of("running"), RUNNER, JobState.FINISHED)
        new.close()
    with sqlite3.connect(directory / "index.db") as database:
        assert database.execute("PRAGMA user_version").fetchone() == (len(newer),)
        assert database.execute("SELECT DISTINCT colour FROM jobs").fetchall() == [(None,)]
    database.close()
    refused(make(directory), f"has version {len(newer)}, and this bgmiddleware knows {len(newer) - 1} and below")


def test_a_migration_that_fails_changes_nothing(make, directory, monkeypatch):
    old = make(directory)
    ended(old, output=b"kept")
    old.close()
    with monkeypatch.context() as patch:
        patch.setattr(_index, "_STEPS", (*_index._STEPS, "ALTER TABLE jobs ADD COLUMN colour TEXT;\nSELECT nonsense;"))
        with pytest.raises(RegistryError, match="nonsense"):
            make(directory).get(KEY)
    assert all_of(make(directory), KEY) == b"kept"


def test_the_database_of_something_else_is_left_alone(make, directory):
    directory.mkdir(0o700)
    with sqlite3.connect(directory / "index.db") as database:
        database.execute("CREATE TABLE recipes (name)")
    database.close()
    refused(make(directory), "index.db is the database of something else")
    (directory / "index.db").write_bytes(b"no database at all, but long enough to be looked at" * 100)
    registry = make(directory)
    with pytest.raises(ConfigurationError, match="file is not a database"):
        registry.check()
    with pytest.raises(RegistryError, match="file is not a database"):
        registry.jobs()


class Watched:
    """A connection to a database in which somebody does something after the first few statements."""

    def __init__(self, database: sqlite3.Connection, statements: int, happens: Callable[[], object]) -> None:
        self._database = database
        self._left = statements
        self._happens = happens

    def execute(self, statement: str) -> sqlite3.Cursor:
        if self._left == 0:
            self._happens()
        self._left -= 1
        return self._database.execute(statement)


@pytest.mark.parametrize("statements", range(4))
def test_a_database_that_another_process_makes_just_now_is_no_strangers(make, directory, statements):
    directory.mkdir(0o700)
    path = str(directory / "index.db")
    with sqlite3.connect(path, isolation_level=None) as database:
        watched = Watched(database, statements, lambda: added(make(directory)))
        assert _index._version(watched, path) in (0, len(_index._STEPS))
        assert _index._version(database, path) == (len(_index._STEPS) if statements < 3 else 0)
    database.close()


def test_a_secret_that_was_cut_is_an_error(make, directory):
    registry = make(directory)
    registry.secret()
    (directory / "secret").write_bytes(b"short")
    with pytest.raises(RegistryError, match="secret was changed by somebody else"):
        registry.secret()
    assert [name for name in everything_in(directory) if "secret" in name] == ["secret"]


def test_a_newer_program_may_know_more_of_a_job(make, directory):
    registry = make(directory)
    added(registry)
    with sqlite3.connect(directory / "index.db") as database:
        database.execute("""UPDATE jobs SET document = json_set(document, '$.colour', 'red')""")
    database.close()
    assert registry.get(KEY).title == "one"


UNREADABLE = {
    "a state of a newer version": ("document", "json_set(document, '$.state', 'paused')"),
    "a priority of a newer version": ("document", "json_set(document, '$.priority', 'urgent')"),
    "half a document": ("document", "substr(document, 1, 40)"),
    "no document": ("document", "''"),
    "no JSON": ("document", "'[' || document"),
    "no object": ("document", "'[]'"),
    "null": ("document", "'null'"),
    "deep JSON": ("document", f"'{'[' * 100_000}'"),
    "no UTF-8": ("document", "CAST(x'ff' || document AS TEXT)"),
    "an instant that is none": ("document", "json_set(document, '$.created_at', 'soon')"),
    "another lease": ("document", "json_set(document, '$.lease_expires_at', json('[]'))"),
    "groups that are none": ("document", "json_set(document, '$.groups', 'many')"),
    "a response without headers": ("document", """json_set(document, '$.response', json('{"status": "200 OK"}'))"""),
    "the key of another job": ("document", "json_set(document, '$.key', '" + key_of("two") + "')"),
    "a title that is none": ("document", "json_remove(document, '$.title')"),
}


@pytest.fixture(params=UNREADABLE)
def spoils(request: pytest.FixtureRequest, directory: Path) -> Callable[[], None]:
    column, value = UNREADABLE[request.param]

    def spoil() -> None:
        with contextlib.closing(sqlite3.connect(directory / "index.db")) as database, database:
            changed = database.execute(f"UPDATE jobs SET {column} = {value} WHERE key = ?", (KEY,)).rowcount
            assert changed == 1

    return spoil


@pytest.mark.parametrize("state", [JobState.PENDING, JobState.RUNNING, JobState.FINISHED])
def test_a_row_that_cannot_be_read_is_an_error_of_its_own_job_and_is_given_up_when_it_is_due(
    make, directory, clock, caplog, spoils, state
):
    registry = make(directory, ttl=60.0, pending_ttl=60.0)
    {
        JobState.PENDING: added,
        JobState.RUNNING: lambda registry: running(registry, lease=60.0),
        JobState.FINISHED: lambda registry: ended(registry, output=b"x"),
    }[state](registry)
    files = files_in(directory)
    spoils()
    uses = (
        lambda: registry.get(KEY),
        lambda: registry.read(KEY, Channel.OUTPUT, 0),
        lambda: registry.wait(KEY, 0, LONG),
        lambda: registry.request_cancel(KEY),
        lambda: registry.finish(KEY, RUNNER, JobState.FINISHED),
        lambda: added(registry, "one"),
    )
    for use in uses:
        with pytest.raises(RegistryError, match=f"{KEY[:8]}… is damaged, or of a newer version"):
            use()
    added(registry, "two")
    assert registry.claim(key_of("two"), RUNNER, lease=60.0)
    assert [job.title for job in registry.jobs()] == ["two"]
    assert "1 jobs cannot be read" in caplog.text
    for _ in range(256):
        assert registry.evict() == (0, 0)
    assert set(files) < set(files_in(directory))
    clock.advance(60.0)
    assert registry.evict() == (1, 1)  # the other one is lost
    assert f"the job {KEY[:8]}… is given up" in caplog.text
    assert not set(files) & set(files_in(directory))
    with pytest.raises(JobExpired):
        registry.get(KEY)
    added(registry, "one")


def test_a_row_that_cannot_be_read_makes_room_as_others_do(make, directory, clock):
    registry = make(directory, max_jobs=2)
    ended(registry)
    ended(registry, "two")
    with contextlib.closing(sqlite3.connect(directory / "index.db")) as database, database:
        database.execute("UPDATE jobs SET document = '' WHERE key = ?", (KEY,))
    added(registry, "three")
    assert [job.title for job in registry.jobs()] == ["three", "two"]


def test_a_list_goes_on_behind_many_rows_that_cannot_be_read(make, directory):
    registry = make(directory)
    added(registry, "first")
    for number in range(250):
        added(registry, f"job {number}")
    with contextlib.closing(sqlite3.connect(directory / "index.db")) as database, database:
        database.execute("UPDATE jobs SET document = '' WHERE key != ?", (key_of("first"),))
    assert [job.title for job in registry.jobs()] == ["first"]


def test_the_files_of_a_job_in_a_state_of_a_newer_version_stay(make, directory):
    registry = make(directory)
    added(registry)
    registry.append(KEY, Channel.REQUEST, 0, b"request")
    with contextlib.closing(sqlite3.connect(directory / "index.db")) as database, database:
        database.execute("UPDATE jobs SET state = 'paused', document = json_set(document, '$.state', 'paused')")
    files = files_in(directory)
    for _ in range(256):
        registry.evict()
    assert files_in(directory) == files


# Time.


def test_when_the_clock_goes_back_an_hour_nothing_is_lost_or_forgotten(make, clock):
    registry = make(ttl=60.0, pending_ttl=20.0)
    ended(registry, "ended", output=b"kept")
    running(registry, "running", lease=15.0)
    added(registry, "pending")
    clock.advance(-3600.0)
    assert registry.evict() == (0, 0)
    assert registry.renew(key_of("running"), RUNNER, lease=15.0).ok
    added(registry, "later")
    assert [job.title for job in registry.jobs()] == ["later", "pending", "running", "ended"]
    assert registry.position(key_of("later")) == 2
    assert all_of(registry, key_of("ended")) == b"kept"
    clock.advance(14.99)
    assert registry.get(key_of("running")).state is JobState.RUNNING
    clock.advance(0.01)
    assert registry.get(key_of("running")).state is JobState.LOST
    assert registry.evict() == (1, 0)
    clock.advance(3600.0 - 15.0 + 60.0)
    assert registry.evict() == (2, 2)  # both that nobody claimed; and what ended, and what was lost an hour ago


def test_when_the_clock_goes_back_the_job_that_ended_first_still_goes_first(make, clock):
    registry = make(max_jobs=2)
    ended(registry, "first")
    clock.advance(-3600.0)
    ended(registry, "second")
    added(registry, "third")
    assert {job.title for job in registry.jobs()} == {"second", "third"}


def test_a_wait_goes_by_no_wall_clock(make, clock):
    registry = make()
    running(registry, lease=15.0)
    waiting = begun(registry.wait, KEY, 0, 0.3)
    blocked_on(waiting, registry, KEY, 0)
    clock.advance(-3600.0)
    assert done(waiting).state is JobState.RUNNING


def test_a_key_that_expired_and_was_used_again_is_unknown_when_that_job_is_discarded_and_may_expire_again(make, clock):
    registry = make(ttl=60.0)
    for _ in range(2):
        ended(registry)
        clock.advance(60.0)
        assert registry.evict() == (0, 1)
        with pytest.raises(JobExpired):
            registry.get(KEY)
    added(registry)
    assert registry.discard(KEY)
    with pytest.raises(JobNotFound):
        registry.get(KEY)


def test_what_is_remembered_of_expired_jobs_is_bounded(make, clock):
    remembers_the_last_three(make(max_jobs=3, ttl=60.0), clock)


# Waking.


needs_inotify = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")


@needs_inotify
def test_an_instance_of_inotify_is_used_again_and_watches_nothing_while_it_is_idle(tmp_path):
    waking = _waking.Waking(_jobfiles.look)
    try:
        with waking.watch(str(tmp_path)):
            pass
        (pid, instance), *others = waking._idle
        assert (pid, others) == (os.getpid(), [])
        assert not os.get_inheritable(instance)
        assert "inotify wd:" not in Path(f"/proc/self/fdinfo/{instance}").read_text()
        with waking.watch(str(tmp_path)):
            assert "inotify wd:" in Path(f"/proc/self/fdinfo/{instance}").read_text()
            assert waking._idle == []
    finally:
        waking.close()


def test_nobody_waits_for_a_file_that_is_gone(tmp_path):
    waking = _waking.Waking(_jobfiles.look)
    try:
        with waking.watch(str(tmp_path / "gone")) as wait:
            done(begun(wait, LONG))
    finally:
        waking.close()


def test_who_waits_for_a_file_hears_that_it_is_removed_while_others_have_it_open(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"text")
    waking = _waking.Waking(_jobfiles.look)
    try:
        with path.open("rb"), waking.watch(str(path)) as wait:
            path.unlink()
            done(begun(wait, LONG))
    finally:
        waking.close()


@needs_inotify
def test_an_instance_of_inotify_of_another_process_is_not_used(tmp_path):
    waking = _waking.Waking(_jobfiles.look)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    waking._idle.append((os.getppid(), reading))  # as a fork leaves it
    try:
        with waking.watch(str(tmp_path)), pytest.raises(BrokenPipeError):
            os.write(writing, b"x")  # nobody has the other end open: it was closed
    finally:
        waking.close()
        os.close(writing)


def test_of_what_is_larger_than_the_ring_only_its_end_is_written():
    written = list(Bounds(2, 3).writes(0, 100))
    assert sum(room for _, _, room in written) == 5
    assert {at for at, _, _ in written} <= {0, 97, 98, 99}


def test_where_the_instances_of_inotify_are_used_up_a_wait_looks_by_itself(make, monkeypatch):
    class Exhausted:
        def inotify_init1(self, flags: int) -> int:
            return -1

    monkeypatch.setattr(_waking, "_inotify", Exhausted)
    registry = make()
    running(registry)
    waiting = begun(registry.wait, KEY, 0, LONG)
    blocked_on(waiting, registry, KEY, 0)
    write(registry, KEY, b"x")
    assert done(waiting).output_end == 1
    waiting = begun(registry.wait, KEY, END, LONG)
    blocked_on(waiting, registry, KEY, END - 1)
    registry.finish(KEY, RUNNER, JobState.FINISHED)
    assert done(waiting).state is JobState.FINISHED


def test_a_wait_for_another_job_is_not_woken_by_what_an_earlier_one_waited_for(make):
    registry = make()
    for name in "ab":
        running(registry, name)
    registry.wait(key_of("a"), 0, 0.01)
    write(registry, key_of("a"), b"x")
    began = time.monotonic()
    assert registry.wait(key_of("b"), 0, 0.05).output_end == 0
    assert time.monotonic() - began >= 0.05


def test_many_waits_at_once_leave_a_bounded_number_of_files_open(make):
    registry = make()
    running(registry)
    numbers = len(os.listdir("/proc/self/fd"))
    waiting = [begun(registry.wait, KEY, 0, LONG) for _ in range(24)]
    blocked_on(waiting[-1], registry, KEY, 0)
    write(registry, KEY, b"x")
    assert {done(each).output_end for each in waiting} == {1}
    assert len(registry._waking._idle) <= 16
    registry.close()
    assert len(os.listdir("/proc/self/fd")) <= numbers


# Writers.


def test_a_refused_append_of_another_runner_leaves_the_right_one_at_work(make):
    registry = make()
    running(registry)
    write(registry, KEY, b"one")
    with pytest.raises(Fenced):
        registry.append(KEY, Channel.OUTPUT, 3, b"x", runner="another")
    with pytest.raises(BadOffset):
        registry.append(KEY, Channel.OUTPUT, 4, b"x", runner=RUNNER)
    assert write(registry, KEY, b"two") == 6
    assert all_of(registry, KEY) == b"onetwo"


def test_a_runner_that_was_fenced_off_keeps_no_file_open(make, directory, clock):
    registry, other = make(directory), make(directory)
    running(registry, lease=1.0)
    write(registry, KEY, b"x")
    clock.advance(1.0)
    assert other.evict() == (1, 0)
    assert registry._store.writers._open
    assert registry.renew(KEY, RUNNER, lease=1.0).ok is False
    assert registry._store.writers._open == {}


def test_two_threads_that_write_to_a_job_for_the_first_time_at_once_leave_no_file_open(make, directory):
    registry = make(directory)
    for number in range(50):
        key = running(registry, f"job {number}")
        start = threading.Barrier(2)

        def append(channel: Channel, key: str = key, start: threading.Barrier = start) -> None:
            start.wait(LONG)
            registry.append(key, channel, 0, b"x", runner=RUNNER)

        for each in [begun(append, channel) for channel in (Channel.OUTPUT, Channel.BODY)]:
            done(each)
        registry.finish(key, RUNNER, JobState.FINISHED)
    assert open_files_of_jobs(directory) == []


def test_of_two_writers_that_were_opened_at_once_the_second_is_closed_and_the_first_is_used(make, directory):
    registry = make(directory)
    key = running(registry)
    row, _ = registry._look(key)
    writers = _writer.Writers()
    first, second, another = (
        _writer.Writer(registry._store.files(row), runner, 1.0) for runner in (RUNNER, RUNNER, "another")
    )
    assert writers.add(first) is first
    assert writers.add(second) is first
    assert len(open_files_of_jobs(directory)) == 2
    assert writers.add(another) is another
    assert len(open_files_of_jobs(directory)) == 1
    writers.close_all()
    assert open_files_of_jobs(directory) == []


def open_files_of_jobs(directory: Path) -> list[str]:
    names = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing
            names.append(os.readlink(f"/proc/self/fd/{number}"))
    return [name for name in names if name.startswith(f"{directory.resolve()}/") and "/index." not in name]


def test_eight_threads_that_append_at_one_offset_add_it_once(make):
    registry = make()
    running(registry)
    start = threading.Barrier(8)

    def append() -> None:
        start.wait(LONG)
        for offset in range(0, 300, 3):
            assert registry.append(KEY, Channel.OUTPUT, offset, b"%03d" % offset, runner=RUNNER) >= offset + 3

    for each in [begun(append) for _ in range(8)]:
        done(each)
    assert all_of(registry, KEY) == b"".join(b"%03d" % offset for offset in range(0, 300, 3))


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="needs a system that lists the locks of files")
def test_another_registry_of_the_process_takes_no_lock_of_the_first_ones_connection_away(make, directory):
    # Closing a file gives up all locks that the process has in it: nothing but SQLite may open its database.
    def locks_of_index() -> int:
        number = f":{(directory / 'index.db').stat().st_ino} "
        lines = Path("/proc/locks").read_text().splitlines()
        return sum(number in line and f" {os.getpid()} " in line for line in lines)

    first = make(directory)
    added(first)
    held = locks_of_index()
    assert held
    added(make(directory), "two")
    assert locks_of_index() >= held


@pytest.mark.parametrize("reads", [False, True])
def test_what_was_forgotten_at_the_end_of_a_job_is_in_no_file_any_more(tmp_path: Path, reads: bool) -> None:
    with SpoolRegistry(tmp_path / "jobs") as registry:
        for number in range(30):
            key = registry.add(Job(key_of(f"{number}"), "job", request={"HTTP_COOKIE": "a secret " + "x" * 500})).key
            registry.append(key, Channel.REQUEST, 0, b"a secret in a body")
            registry.claim(key, RUNNER)
            registry.finish(key, RUNNER, JobState.FINISHED)
        if reads:  # then it stays for now
            with registry._store.reading() as database:
                cursor = database.execute("SELECT document FROM jobs")
                cursor.fetchone()
                registry.evict()
                cursor.close()
        registry.evict()
        files = [path for path in (tmp_path / "jobs").rglob("*") if path.is_file()]
        assert len(files) > 30
        for path in files:
            assert b"a secret" not in path.read_bytes(), path.name
