"""The registry in Redis when its server is full, slow, gone, emptied, guarded, or holds what is not ours."""

# ruff: noqa: F401, F811  # fixtures are imported by their names

import contextlib
import logging
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from bgmiddleware import Channel, ConfigurationError, Fenced, Job, JobNotFound, JobState, RegistryError
from bgmiddleware._jobs import key_of
from bgmiddleware.testing.registries import (
    KEY,
    LONG,
    RUNNER,
    added,
    all_of,
    begun,
    blocked_on,
    done,
    ended,
    running,
    write,
)
from tests.conftest import needs
from tests.kit.redis_server import RedisServer, redis_server, redis_server_of_module

redis: Any = needs("redis")

from bgmiddleware.registries.redis import RedisRegistry  # noqa: E402

pytestmark = pytest.mark.everything

RECORD = f"bg:{{{KEY}}}"
T = TypeVar("T")


def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(100_000):
        if condition():
            return
    raise AssertionError("it never comes")


@pytest.fixture
def make() -> Iterator[Callable[..., RedisRegistry]]:
    with contextlib.ExitStack() as stack:
        yield lambda url, **settings: stack.enter_context(RedisRegistry(url, **settings))


Make = Callable[..., RedisRegistry]


@pytest.fixture
def registry(make: Make, redis_server: RedisServer) -> RedisRegistry:
    return make(redis_server.url)


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[Any]:
    """What an operator types at the server. Its settings are as before after the test."""
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        yield client
        client.flushall()
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")


@pytest.fixture
def own_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


# Away.


def test_a_server_that_is_not_there_is_a_registry_error_and_the_next_call_may_succeed(
    make: Make, own_server: RedisServer
) -> None:
    registry = make(own_server.url)
    own_server.kill()
    told: list[tuple[str, float]] = []
    registry.tell_numbers(lambda name, number: told.append((name, number)))
    for call in (lambda: registry.get(KEY), lambda: added(registry), registry.jobs, registry.secret, registry.evict):
        with pytest.raises(RegistryError, match=rf"^redis://127.0.0.1:{own_server.port}/0: ") as refused:
            call()
        assert isinstance(refused.value.__cause__, redis.RedisError)
    assert [name for name, _ in told] == ["errors", *["errors", "away"] * 4]
    own_server.start()
    ended(registry, output=b"output")
    assert all_of(registry, KEY) == b"output"
    assert [name for name, _ in told[9:]] == ["away"]
    assert all(number > 0 for _, number in told)


def test_a_host_that_cannot_be_found_is_a_registry_error(make: Make) -> None:
    with pytest.raises(RegistryError, match=r"nowhere\.invalid"):
        make("redis://ann:geheim@nowhere.invalid:1/0").get(KEY)


def test_a_server_that_is_restarted_empty_in_mid_job_knows_nothing_of_it(make: Make, own_server: RedisServer) -> None:
    registry = make(own_server.url)
    running(registry, lease=15.0)
    write(registry, KEY, b"output")
    waiting = begun(registry.wait, KEY, 6, LONG)
    blocked_on(waiting, registry, KEY, 6)
    own_server.kill()
    own_server.start()
    with pytest.raises((JobNotFound, RegistryError)):
        done(waiting)
    calls: list[Callable[[], object]] = [
        lambda: registry.get(KEY),
        lambda: registry.append(KEY, Channel.OUTPUT, 6, b"x", runner=RUNNER),
        lambda: registry.renew(KEY, RUNNER, lease=15.0),
        lambda: registry.finish(KEY, RUNNER, JobState.FINISHED),
    ]
    for call in calls:
        with pytest.raises(JobNotFound):
            call()
    assert registry.discard(KEY) is False
    assert registry.jobs() == []
    running(registry)
    assert write(registry, KEY, b"anew") == 4


def test_a_server_that_was_flushed_in_mid_job_knows_nothing_of_it(
    make: Make,
    redis_server: RedisServer,
    server: Any,
) -> None:
    registry = make(redis_server.url, timeout=1.0)
    running(registry, lease=15.0)
    write(registry, KEY, b"output")
    waiting = begun(registry.wait, KEY, 6, LONG)
    blocked_on(waiting, registry, KEY, 6)
    server.flushall()
    with pytest.raises(JobNotFound):
        registry.append(KEY, Channel.OUTPUT, 6, b"x", runner=RUNNER)
    with pytest.raises(JobNotFound):
        done(waiting)
    assert registry.evict() == (0, 0)


def test_a_server_with_a_file_of_what_was_appended_goes_on_where_it_was(make: Make) -> None:
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
        registry = make(server.url)
        secret = registry.secret()
        running(registry, lease=LONG)
        write(registry, KEY, b"before ")
        ended(registry, "two", output=b"two")
        server.kill()
        with pytest.raises(RegistryError):
            registry.append(KEY, Channel.OUTPUT, 7, b"after", runner=RUNNER)
        server.start()
        assert registry.append(KEY, Channel.OUTPUT, 7, b"after", runner=RUNNER) == 12
        assert registry.finish(KEY, RUNNER, JobState.FINISHED)
        assert all_of(registry, KEY) == b"before after"
        assert all_of(registry, key_of("two")) == b"two"
        assert registry.secret() == secret


def test_a_paused_server_is_a_registry_error_and_the_same_chunk_is_then_stored_once(
    make: Make,
    redis_server: RedisServer,
) -> None:
    registry = make(redis_server.url, timeout=0.3)
    running(registry, lease=LONG)
    write(registry, KEY, b"before ")
    waiting = begun(registry.wait, KEY, 7, LONG)
    blocked_on(waiting, registry, KEY, 7)
    redis_server.pause()
    try:
        for _ in range(3):  # each of them may be done when the server goes on
            with pytest.raises(RegistryError, match=r"[Tt]imed? ?out"):
                done(begun(lambda: registry.append(KEY, Channel.OUTPUT, 7, b"chunk", runner=RUNNER)))
        with pytest.raises(RegistryError):
            done(waiting)
        with pytest.raises(RegistryError):
            done(begun(lambda: registry.renew(KEY, RUNNER, lease=LONG)))
    finally:
        redis_server.resume()
    assert when_back(lambda: registry.append(KEY, Channel.OUTPUT, 7, b"chunk", runner=RUNNER)) == 12
    assert registry.append(KEY, Channel.OUTPUT, 12, b" after", runner=RUNNER) == 18
    assert all_of(registry, KEY) == b"before chunk after"


def when_back(call: Callable[[], T]) -> T:
    """Return what a call returns when the server is back, and the process has found that."""
    deadline = time.monotonic() + LONG
    while True:
        try:
            return call()
        except RegistryError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def probes() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "bgmiddleware-redis-probe"]


def test_after_a_call_timed_out_all_others_fail_at_once_and_one_thread_finds_the_server_back(
    make: Make, redis_server: RedisServer
) -> None:
    registry = make(redis_server.url, timeout=0.5)
    running(registry, lease=LONG)
    calls: list[Callable[[], object]] = [
        lambda: registry.get(KEY),
        lambda: added(registry, "new"),
        lambda: registry.append(KEY, Channel.OUTPUT, 0, b"chunk", runner=RUNNER),
        lambda: registry.renew(KEY, RUNNER, lease=LONG),
        registry.jobs,
    ]
    redis_server.pause()
    try:
        with pytest.raises(RegistryError) as slow:
            registry.get(KEY)
        assert isinstance(slow.value.__cause__, redis.TimeoutError)
        for call in calls * 100:  # if each waited for as long, this would take four minutes
            with pytest.raises(RegistryError, match="the server timed out and has not answered since") as fast:
                call()
            assert fast.value.__cause__ is None
        assert len(probes()) == 1
    finally:
        redis_server.resume()
    assert when_back(lambda: registry.append(KEY, Channel.OUTPUT, 0, b"chunk", runner=RUNNER)) == 5
    assert registry.get(KEY).output_end == 5
    for probe in probes():
        probe.join(LONG)
    assert not probes()


def test_without_room_for_a_thread_that_probes_each_call_asks_the_server(
    make: Make, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = make(redis_server.url, timeout=0.2)
    running(registry)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    redis_server.pause()
    try:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        for _ in range(2):
            with pytest.raises(RegistryError) as refused:
                registry.get(KEY)
            assert isinstance(refused.value.__cause__, redis.TimeoutError)
    finally:
        redis_server.resume()
    assert registry.get(KEY).state is JobState.RUNNING


def test_a_registry_that_is_closed_while_its_server_hangs_probes_no_more(make: Make, redis_server: RedisServer) -> None:
    registry = make(redis_server.url, timeout=0.2)
    redis_server.pause()
    try:
        with pytest.raises(RegistryError):
            registry.get(KEY)
        (probe,) = probes()
        registry.close()
        probe.join(LONG)
        assert not probe.is_alive()
    finally:
        redis_server.resume()
    with pytest.raises(JobNotFound):
        registry.get(KEY)


def test_a_server_that_is_gone_after_it_hung_is_asked_again_by_each_call(make: Make, own_server: RedisServer) -> None:
    registry = make(own_server.url, timeout=0.2)
    own_server.pause()
    with pytest.raises(RegistryError):
        registry.get(KEY)
    own_server.kill()
    for probe in probes():
        probe.join(LONG)
    with pytest.raises(RegistryError) as refused:
        registry.get(KEY)
    assert isinstance(refused.value.__cause__, redis.ConnectionError)
    own_server.start()
    with pytest.raises(JobNotFound):
        registry.get(KEY)


def test_a_timed_out_call_is_not_tried_again_by_itself(make: Make) -> None:
    taken: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as silent:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(silent.accept()[0])

        thread = threading.Thread(target=accept, name="test", daemon=True)
        thread.start()
        registry = make(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", timeout=0.2)
        registry._server.link._breaker.end()  # who probes would connect too
        with pytest.raises(RegistryError):
            done(begun(registry.get, KEY))
        silent.shutdown(socket.SHUT_RDWR)
        thread.join(LONG)
    assert len(taken) == 1
    for each in taken:
        each.close()


def test_a_call_that_timed_out_is_done_once(make: Make, redis_server: RedisServer, server: Any) -> None:
    registry = make(redis_server.url, timeout=0.2)
    running(registry)
    server.config_resetstat()
    redis_server.pause()
    try:
        with pytest.raises(RegistryError):
            registry.get(KEY)
    finally:
        redis_server.resume()
    eventually(lambda: "cmdstat_evalsha" in server.info("commandstats"))
    assert server.info("commandstats")["cmdstat_evalsha"]["calls"] == 1


@pytest.mark.parametrize("part", ["running", "due"])
def test_an_index_that_cannot_be_written_fails_no_claim_and_no_end(
    registry: RedisRegistry, server: Any, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    added(registry)
    server.delete(f"{{bg}}:{part}")
    server.set(f"{{bg}}:{part}", "what is this?")
    assert registry.claim(KEY, RUNNER, lease=LONG)
    assert registry.finish(KEY, RUNNER, JobState.FINISHED)
    assert "is filed later" in caplog.text
    server.delete(f"{{bg}}:{part}")
    assert registry.get(KEY).state is JobState.FINISHED


def test_connections_that_the_server_closed_are_opened_anew(registry: RedisRegistry, server: Any) -> None:
    running(registry)
    waiting = [begun(registry.wait, KEY, 0, LONG) for _ in range(3)]
    blocked_on(waiting[0], registry, KEY, 0)
    for number in range(5):
        server.client_kill_filter(_type="normal", skipme=True)
        assert registry.append(KEY, Channel.BODY, number, b"x", runner=RUNNER) == number + 1
        assert [job.key for job in registry.jobs()] == [KEY]
    write(registry, KEY, b"x")
    assert [done(each).output_end for each in waiting] == [1] * 3


def test_who_gets_no_connection_to_wait_with_looks_again_and_again(
    make: Make, registry: RedisRegistry, redis_server: RedisServer, server: Any
) -> None:
    running(registry)
    other = make(redis_server.url)
    other.get(KEY)  # connects
    most = server.config_get("maxclients")["maxclients"]
    server.config_set("maxclients", len(server.client_list()))
    try:
        assert registry.wait(KEY, 0, 0.02).output_end == 0
        waiting = begun(registry.wait, KEY, 0, LONG)
        write(other, KEY, b"x")
        assert done(waiting).output_end == 1
    finally:
        server.config_set("maxclients", most)


def test_scripts_that_the_server_forgot_are_sent_again(registry: RedisRegistry, server: Any) -> None:
    running(registry)
    server.script_flush()
    assert write(registry, KEY, b"x") == 1
    server.script_flush()
    assert [job.output_end for job in registry.jobs()] == [1]
    server.script_flush()
    assert registry.evict() == (0, 0)


# An answer that does not arrive.


class Lossy:
    """Between a client and a server; when told to, it lets no answer through but those before the one it loses."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.before: int | None = None  # how many answers pass before one is lost, with its connection
        self.lost = 0
        self._open: list[socket.socket] = [self._listening]
        threading.Thread(target=self._accept, name="test", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listening.accept()[0]
                server = socket.create_connection(("127.0.0.1", self._port))
                self._open += [client, server]
                threading.Thread(target=self._pass, args=[client, server, False], name="test", daemon=True).start()
                threading.Thread(target=self._pass, args=[server, client, True], name="test", daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                if answers and self.before is not None:
                    self.before -= 1
                    if self.before < 0:
                        self.before = None
                        self.lost += 1
                        break
                target.sendall(data)
            for each in (source, target):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def lossy(redis_server: RedisServer) -> Iterator[Lossy]:
    between = Lossy(redis_server.port)
    yield between
    between.close()


def claimed_in_a_group(registry: RedisRegistry) -> None:
    registry.add(Job(KEY, "one", groups={"reindex": 1}))
    registry.claim(KEY, RUNNER, lease=LONG)


CHANGES: dict[str, tuple[Callable[[RedisRegistry], object], Callable[[RedisRegistry], object], object]] = {
    "add": (lambda registry: None, lambda registry: added(registry), KEY),
    "claim": (added, lambda registry: registry.claim(KEY, RUNNER, lease=LONG), True),
    "claim in a group": (
        lambda registry: registry.add(Job(KEY, "one", groups={"reindex": 1})),
        lambda registry: registry.claim(KEY, RUNNER, lease=LONG),
        True,
    ),
    "append": (running, lambda registry: registry.append(KEY, Channel.OUTPUT, 0, b"abc", runner=RUNNER), 3),
    "finish": (running, lambda registry: registry.finish(KEY, RUNNER, JobState.FINISHED), True),
    "finish in a group": (
        claimed_in_a_group,
        lambda registry: registry.finish(KEY, RUNNER, JobState.FINISHED),
        True,
    ),
    "renew": (running, lambda registry: registry.renew(KEY, RUNNER, lease=LONG), (True, False)),
    "cancel": (added, lambda registry: registry.request_cancel(KEY), JobState.CANCELLED),
    "cancel a running one": (running, lambda registry: registry.request_cancel(KEY), JobState.RUNNING),
    "take the cookies": (ended, lambda registry: registry.take_cookies(KEY), True),
    "read": (lambda registry: ended(registry, output=b"x"), lambda registry: all_of(registry, KEY), b"x"),
    "secret": (lambda registry: None, lambda registry: len(registry.secret()), 32),
}


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize(("prepare", "change", "answer"), CHANGES.values(), ids=CHANGES)
def test_a_call_whose_answer_was_lost_is_done_once_and_answered_as_if_nothing_were(
    make: Make,
    lossy: Lossy,
    redis_server: RedisServer,
    prepare: Callable[[RedisRegistry], object],
    change: Callable[[RedisRegistry], object],
    answer: object,
    before: int,
) -> None:
    plain = make(redis_server.url)
    prepare(plain)
    registry = make(f"redis://127.0.0.1:{lossy.port}/0")
    registry.jobs()  # opens the connection
    lossy.before = before
    assert change(registry) == answer
    assert lossy.lost or lossy.before is not None
    job = registry.get(KEY) if answer != 32 else None
    if job is not None:
        assert [each.key for each in plain.jobs(job.state)] == [KEY]
        assert plain.position(KEY) == (job.state is JobState.PENDING)
    if answer is True and job is not None and job.state is JobState.FINISHED:
        assert registry.take_cookies(KEY) is ("cookies" not in str(change.__code__.co_names))


# Full.


def fill(server: Any) -> None:
    """Let there be no room for more."""
    server.config_set("maxmemory", 1)


def test_a_full_server_refuses_bytes_and_new_jobs_and_takes_them_when_there_is_room(
    registry: RedisRegistry, server: Any
) -> None:
    running(registry, lease=LONG)
    write(registry, KEY, b"before ")
    fill(server)
    for channel in (Channel.OUTPUT, Channel.BODY):
        with pytest.raises(RegistryError, match=r"OOM|memory"):
            write(registry, KEY, b"x", channel)
    with pytest.raises(RegistryError, match=r"OOM|memory"):
        added(registry, "two")
    assert registry.get(KEY).output_end == 7
    assert all_of(registry, KEY) == b"before "
    server.config_set("maxmemory", 0)
    assert registry.append(KEY, Channel.OUTPUT, 7, b"after", runner=RUNNER) == 12
    added(registry, "two")
    assert {job.title for job in registry.jobs()} == {"one", "two"}


def test_a_full_server_is_told_how_jobs_stand(registry: RedisRegistry, server: Any) -> None:
    for name in ("one", "two", "three"):
        registry.add(Job(key_of(name), name, groups={"reindex": 3}))
    registry.claim(KEY, RUNNER, lease=LONG)
    registry.claim(key_of("two"), RUNNER, lease=0.01)
    fill(server)
    assert registry.renew(KEY, RUNNER, lease=LONG) == (True, False)
    assert registry.request_cancel(key_of("three")) is JobState.CANCELLED
    assert registry.finish(KEY, RUNNER, JobState.FINISHED)
    assert registry.wait(key_of("two"), 0, LONG).state is JobState.LOST
    assert registry.evict() == (1, 0)
    states = {job.title: job.state for job in registry.jobs()}
    assert states == {"one": JobState.FINISHED, "two": JobState.LOST, "three": JobState.CANCELLED}
    assert [server.zcard(f"{{bg}}:{name}") for name in ("pending", "running", "due", "ended")] == [0, 0, 0, 3]
    assert registry.discard(KEY)


@pytest.mark.parametrize("groups", [{}, {"reindex": 1}])
def test_a_full_server_lets_jobs_be_claimed(registry: RedisRegistry, server: Any, groups: dict[str, int]) -> None:
    registry.add(Job(KEY, "one", groups=groups))
    fill(server)
    assert registry.claim(KEY, RUNNER, lease=LONG)
    assert [job.key for job in registry.jobs(JobState.RUNNING)] == [KEY]


@pytest.mark.parametrize(
    ("policy", "maxmemory", "warned"),
    [
        ("allkeys-lru", 10**9, True),
        ("allkeys-random", 10**9, True),
        ("allkeys-lru", 0, False),
        ("noeviction", 10**9, False),
        ("volatile-lru", 10**9, False),
        ("volatile-ttl", 10**9, False),
    ],
)
def test_a_server_that_may_evict_running_jobs_is_warned_of_once(
    make: Make,
    redis_server: RedisServer,
    server: Any,
    caplog: pytest.LogCaptureFixture,
    policy: str,
    maxmemory: int,
    warned: bool,
) -> None:
    server.config_set("maxmemory-policy", policy)
    server.config_set("maxmemory", maxmemory)
    registry = make(redis_server.url)
    assert caplog.records == []
    running(registry)
    write(registry, KEY, b"x")
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * warned
    assert all(f"maxmemory-policy {policy}" in record.getMessage() for record in caplog.records)


def test_who_may_not_ask_for_the_policy_is_not_kept_from_the_rest(
    make: Make,
    redis_server: RedisServer,
    server: Any,
) -> None:
    server.acl_setuser("bg", enabled=True, passwords=["+geheim"], keys=["bg:*", "{bg}:*"], commands=["+@all", "-info"])
    registry = make(redis_server.url.replace("//", "//bg:geheim@"))
    ended(registry, output=b"x")
    assert all_of(registry, KEY) == b"x"
    server.acl_deluser("bg")


def test_a_record_that_was_evicted_is_not_found_and_its_bytes_are_in_nobodys_way(
    registry: RedisRegistry, server: Any
) -> None:
    running(registry, lease=LONG)
    write(registry, KEY, b"output of before")
    server.delete(RECORD)
    with pytest.raises(JobNotFound):
        write(registry, KEY, b"x")
    running_again = added(registry)
    registry.claim(running_again, RUNNER)
    assert write(registry, KEY, b"anew") == 4
    assert all_of(registry, KEY) == b"anew"


@pytest.mark.parametrize(("channel", "name"), [(Channel.OUTPUT, "output"), (Channel.BODY, "body")])
@pytest.mark.parametrize("left", [b"", b"out"])
def test_bytes_that_were_evicted_are_an_error_and_not_an_end(
    registry: RedisRegistry, server: Any, channel: Channel, name: str, left: bytes
) -> None:
    running(registry)
    write(registry, KEY, b"output", channel)
    server.set(f"{RECORD}:{name}", left) if left else server.delete(f"{RECORD}:{name}")
    with pytest.raises(RegistryError, match="gone"):
        registry.read(KEY, channel, 0)
    with pytest.raises(RegistryError, match="gone"):
        write(registry, KEY, b"x", channel)
    assert registry.finish(KEY, RUNNER, JobState.FINISHED)


def test_a_wake_stream_that_was_evicted_is_made_again(registry: RedisRegistry, server: Any) -> None:
    running(registry)
    write(registry, KEY, b"abc")
    server.delete(f"{RECORD}:wake")
    waiting = begun(registry.wait, KEY, 3, LONG)
    blocked_on(waiting, registry, KEY, 3)
    write(registry, KEY, b"d")
    assert done(waiting).output_end == 4


# What is not ours.


@pytest.mark.parametrize(
    "fields",
    [
        {"job": "no json"},
        {"job": "[]"},
        {"job": "{}"},
        {"job": '{"key": "x", "title": "x", "state": "tomorrow"}'},
        {"environ": "no json"},
        {"output": "many"},
        {"max_output": "many"},
        {"job": '{"key": "x", "title": "x", "created_at": "soon"}'},
        {"state": "of a newer version", "until": "soon"},
    ],
    ids=str,
)
def test_a_record_that_cannot_be_read_is_an_error_that_does_not_spread(
    registry: RedisRegistry, server: Any, fields: dict[str, str]
) -> None:
    running(registry, lease=0.01)
    added(registry, "two")
    server.hset(RECORD, mapping=fields)
    with pytest.raises(RegistryError, match=r"is damaged|attempt to compare"):
        registry.get(KEY)
    assert [job.title for job in registry.jobs()] == ["two"]
    eventually(lambda: float(server.zscore("{bg}:due", KEY)) < registry.clock())
    assert registry.evict() == (0, 0)
    assert server.zscore("{bg}:due", KEY) is None  # else it would be looked at for ever
    added(registry, "three")


@pytest.mark.parametrize("part", ["", ":output", ":wake"])
def test_a_key_of_another_type_is_an_error_that_does_not_spread(
    registry: RedisRegistry, server: Any, part: str
) -> None:
    running(registry, lease=0.01)
    added(registry, "two")
    server.delete(RECORD + part)
    server.lpush(RECORD + part, "what is this?")
    with pytest.raises(RegistryError, match="WRONGTYPE"):
        registry.append(KEY, Channel.OUTPUT, 0, b"x", runner=RUNNER)
    if not part:
        with pytest.raises(RegistryError, match="WRONGTYPE"):
            registry.get(KEY)
        assert [job.title for job in registry.jobs()] == ["two"]
    eventually(lambda: float(server.zscore("{bg}:due", KEY)) < registry.clock())
    registry.evict()
    added(registry, "three")


def test_an_index_of_another_type_is_an_error(registry: RedisRegistry, server: Any) -> None:
    server.set("{bg}:jobs", "what is this?")
    for call in (lambda: added(registry), registry.jobs):
        with pytest.raises(RegistryError, match="WRONGTYPE"):
            call()


@pytest.mark.parametrize("found", [b"", b"short", b"x" * 33])
def test_a_secret_that_is_none_is_an_error(registry: RedisRegistry, server: Any, found: bytes) -> None:
    server.set("{bg}:secret", found)
    with pytest.raises(RegistryError, match="secret"):
        registry.secret()


def test_a_record_that_changes_all_the_time_is_an_error_and_no_endless_loop(
    registry: RedisRegistry,
    server: Any,
    redis_server: RedisServer,
    make: Make,
) -> None:
    running(registry)
    stop = threading.Event()

    def change() -> None:
        with redis.Redis.from_url(redis_server.url) as client:
            while not stop.is_set():
                client.eval("for n = 1, 20 do redis.call('HINCRBY', KEYS[1], 'op', 1) end", 1, RECORD)

    server.hset(RECORD, "op", 1)
    changing = [begun(change) for _ in range(2)]
    try:
        # Either it finds a moment of peace, or it says that it did not.
        for _ in range(20):
            with contextlib.suppress(RegistryError):
                done(begun(lambda: registry.renew(KEY, RUNNER, lease=LONG)))
            server.hset(RECORD, "op", 1)
    finally:
        stop.set()
        for each in changing:
            with contextlib.suppress(redis.ResponseError):
                done(each)


# Guarded.


def test_a_password_opens_and_is_never_shown(make: Make) -> None:
    with RedisServer("--requirepass", "geheim") as server:
        where = f"127.0.0.1:{server.port}/0"
        with make(f"redis://:geheim@{where}") as registry:
            ended(registry, output=b"x")
            assert all_of(registry, KEY) == b"x"
            assert "geheim" not in repr(registry)
        for wrong in ("redis://", "redis://:falsch@", "redis://ann:falsch@"):
            with pytest.raises(RegistryError, match=f"^redis://{where}: ") as refused:
                make(f"{wrong}{where}").get(KEY)
            error: BaseException | None = refused.value
            while error is not None:
                assert "falsch" not in str(error)
                error = error.__cause__


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate that somebody made for this machine, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    paths = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run([*command.split(), *names, *files], check=True, capture_output=True, timeout=LONG)
    return paths


def test_a_connection_by_tls_trusts_the_right_certificate_only(
    make: Make, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    path, key = certificate
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"--tls-port {port} --tls-cert-file {path} --tls-key-file {key} --tls-ca-cert-file {path}"
    try:
        server = RedisServer(*options.split(), "--tls-auth-clients", "no").start()
    except RuntimeError:
        pytest.skip("needs a redis-server that was built with TLS")
    try:
        registry = make(f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={path}", prefix="bg")
        ended(registry, output=b"x")
        waiting = begun(registry.wait, running(registry, "two"), 0, LONG)
        registry.append(key_of("two"), Channel.OUTPUT, 0, b"y", runner=RUNNER)
        assert done(waiting).output_end == 1
        assert all_of(make(server.url), KEY) == b"x"
        with pytest.raises(RegistryError, match=r"^rediss://.*certificate"):
            make(f"rediss://127.0.0.1:{port}/0").get(KEY)
    finally:
        server.close()


def test_a_unix_socket_is_as_good(make: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with RedisServer("--unixsocket", path):
        registry = make(f"unix://{path}")
        ended(registry, output=b"x")
        assert all_of(registry, KEY) == b"x"


# Forks.


def test_a_fork_while_others_wait_leaves_the_child_free(make: Make, redis_server: RedisServer) -> None:
    registry = make(redis_server.url, max_waiting=1)
    running(registry)
    waiting = begun(registry.wait, KEY, 0, LONG)
    blocked_on(waiting, registry, KEY, 0)
    child = os.fork()
    if child == 0:
        # Its only connection to wait with was taken, in the parent.
        os._exit(0 if when_back(lambda: registry.wait(KEY, 0, 0.05)).state is JobState.RUNNING else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    write(registry, KEY, b"x")
    assert done(waiting).output_end == 1


def test_a_runner_whose_job_was_lost_while_its_server_was_away_is_fenced_off(
    make: Make,
    redis_server: RedisServer,
) -> None:
    registry = make(redis_server.url, timeout=0.2)
    running(registry, lease=0.01)
    redis_server.pause()
    try:
        with pytest.raises(RegistryError):
            registry.renew(KEY, RUNNER, lease=LONG)
    finally:
        redis_server.resume()
    # The renewal that had no answer may yet be done; if it was not, the job is lost.
    if when_back(lambda: registry.wait(KEY, 0, 0.05)).state is JobState.LOST and registry.evict().lost:
        with pytest.raises(Fenced):
            registry.append(KEY, Channel.OUTPUT, 0, b"x", runner=RUNNER)
        assert registry.renew(KEY, RUNNER, lease=LONG).ok is False


def test_a_long_gap_in_an_output_is_a_dropped_range(make: Make, redis_server: RedisServer) -> None:
    registry = make(redis_server.url, max_output=1000)
    running(registry)
    write(registry, KEY, b"abc")
    note = b"\n[lost]\n"
    end = registry.leave_gap(KEY, 10**8, note, runner=RUNNER)
    assert end == registry.leave_gap(KEY, 10**8, note, runner=RUNNER) == 10**8 + len(note)
    assert registry.get(KEY).output_dropped == (3, 10**8)
    assert registry.read(KEY, Channel.OUTPUT, 0) == (0, b"abc")
    assert registry.read(KEY, Channel.OUTPUT, 3) == (10**8, note)
    for _ in range(3):  # more than the ring has room for
        end = registry.append(KEY, Channel.OUTPUT, end, bytes(range(200)) * 2, runner=RUNNER)
    assert registry.get(KEY).output_dropped == (3, end - 997)
    assert registry.read(KEY, Channel.OUTPUT, 3) == (end - 997, (bytes(range(200)) * 6)[-997:])
    assert registry.append(KEY, Channel.OUTPUT, end - 10, bytes(range(190, 200)), runner=RUNNER) == end
    later = registry.leave_gap(KEY, end + 10**6, note, runner=RUNNER)
    assert later == end + 10**6 + len(note)
    assert registry.get(KEY).output_dropped == (3, end + 10**6)
    assert registry.read(KEY, Channel.OUTPUT, 3) == (end + 10**6, note)


def test_a_short_gap_in_an_output_is_filled_and_its_range_is_known(registry: RedisRegistry) -> None:
    running(registry)
    write(registry, KEY, b"abc")
    assert registry.leave_gap(KEY, 200, b"\n[lost]\n", runner=RUNNER) == 200
    assert registry.get(KEY).output_dropped == (3, 200)
    assert registry.read(KEY, Channel.OUTPUT, 0).data == b"abc\n[lost]\n".ljust(199) + b"\n"


def test_a_job_is_not_given_up_as_soon_as_its_server_is_back(make: Make, own_server: RedisServer) -> None:
    """Who runs it could not say that it is there."""
    clock = [1000.0]
    registry = make(own_server.url, clock=lambda: clock[0])
    running(registry, lease=15.0)
    added(registry, "waits")
    clock[0] += 20.0
    own_server.kill()
    with pytest.raises(RegistryError):
        registry.get(KEY)
    own_server.start()
    with redis.Redis.from_url(own_server.url) as client:
        assert client.dbsize() == 0  # it has no copy on disk
    running(registry, lease=15.0)
    clock[0] += 20.0
    added(registry, "new")
    assert registry.renew(KEY, RUNNER, lease=15.0).ok
    assert registry.get(KEY).state is JobState.RUNNING


@pytest.mark.parametrize("trouble", ["READONLY", "MASTERDOWN"])
def test_a_server_that_is_no_primary_any_more_is_left(
    registry: RedisRegistry, own_server: RedisServer, make: Make, trouble: str
) -> None:
    with redis.Redis.from_url(own_server.url, decode_responses=True) as server:
        registry = make(own_server.url)
        running(registry)
        before = {client["id"] for client in server.client_list() if client["id"] != str(server.client_id())}
        assert before
        if trouble == "MASTERDOWN":
            server.config_set("replica-serve-stale-data", "no")
        server.replicaof("127.0.0.1", "1")
        with pytest.raises(RegistryError):
            write(registry, KEY, b"abc")
        server.replicaof("NO", "ONE")
        write(registry, KEY, b"abc")
        now = {client["id"] for client in server.client_list()}
        assert not before & now
        assert all_of(registry, KEY) == b"abc"


def test_who_waits_at_a_server_that_is_no_primary_any_more_goes_on(own_server: RedisServer, make: Make) -> None:
    with redis.Redis.from_url(own_server.url, decode_responses=True) as server:
        registry = make(own_server.url)
        running(registry)
        waiting = begun(lambda: registry.wait(KEY, 0, LONG))
        eventually(lambda: any(client["flags"] == "b" for client in server.client_list()))
        server.replicaof("127.0.0.1", "1")
        server.replicaof("NO", "ONE")
        write(registry, KEY, b"abc")
        assert done(waiting).output_end == 3


@pytest.mark.parametrize("error", [ValueError("I/O operation on closed file"), LookupError("unknown encoding: idna")])
def test_whatever_the_library_raises_is_a_registry_error(registry: RedisRegistry, error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(RegistryError, match=str(error)):
        registry._server.link._call(fail)


@pytest.fixture
def sentinel(own_server: RedisServer, tmp_path: Path) -> Iterator[int]:
    """The port of a sentinel that knows the own server as ``jobs``."""
    known = redis.connection.parse_url(own_server.url)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\nsentinel monitor jobs {known['host']} {known['port']} 1\n"
    )
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("needs the redis-server of the system: it is a sentinel too")
    process = subprocess.Popen([program, str(config), "--sentinel"], stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port, retry=redis.retry.Retry(redis.backoff.ConstantBackoff(0.05), 200)) as client:
            client.ping()
        yield port
    finally:
        process.kill()
        process.wait()


def test_sentinels_say_where_the_server_is(sentinel: int, make: Make, own_server: RedisServer) -> None:
    registry = make(f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel}/jobs/1")
    assert registry._server.shown == f"redis+sentinel://127.0.0.1:1,127.0.0.1:{sentinel}/jobs/1"
    running(registry)
    write(registry, KEY, b"abc")
    assert make(own_server.url.rpartition("/")[0] + "/1").get(KEY).output_end == 3


def test_a_service_that_no_sentinel_knows_is_an_error_of_the_registry(sentinel: int, make: Make) -> None:
    with pytest.raises(RegistryError):
        make(f"redis+sentinel://127.0.0.1:{sentinel}/other").get(KEY)


@pytest.mark.parametrize("url", ["redis+sentinel://host", "redis+sentinel://host:x/jobs", "redis+sentinel:///jobs"])
def test_a_url_of_sentinels_names_hosts_and_a_service(url: str) -> None:
    with pytest.raises(ConfigurationError, match="sentinel"):
        RedisRegistry(url)
