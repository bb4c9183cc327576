"""The registry in Redis: the contract on several servers, and what is particular to it: its keys, times and clients."""

# ruff: noqa: F401, F811  # fixtures are imported by their names

import itertools
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import (
    Channel,
    ConfigurationError,
    Job,
    JobExists,
    JobExpired,
    JobNotFound,
    JobState,
    Progress,
    QueueFull,
    RegistryError,
)
from bgmiddleware._jobs import key_of
from bgmiddleware.registries._redis.link import Call
from bgmiddleware.registries.base import END
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
from tests.conftest import needs
from tests.kit.documents import PAGES, ROOT
from tests.kit.looking import eventually
from tests.kit.redis_server import RedisServer, needs_server, redis_server, redis_server_of_module

redis: Any = needs("redis")

from bgmiddleware.registries import redis as _redis  # noqa: E402
from bgmiddleware.registries.redis import RedisRegistry  # noqa: E402

pytestmark = pytest.mark.everything

Make = Callable[..., RedisRegistry]

ENDED = [state for state in JobState if state.ended]

_numbers = itertools.count()


def making(server: RedisServer, **own_settings: object) -> Iterator[Make]:
    """Make registries that are empty: each has a prefix of its own, unless it is given one."""
    made: list[RedisRegistry] = []

    def make(**settings: object) -> RedisRegistry:
        chosen: dict[str, Any] = {"url": server.url, "prefix": f"test-{next(_numbers)}", **own_settings, **settings}
        made.append(RedisRegistry(**chosen))
        return made[-1]

    yield make
    for registry in made:
        registry.close()


class TestRedisRegistry(SharedRegistryContract):
    @pytest.fixture
    def location(self, redis_server: RedisServer) -> str:
        return redis_server.url

    @pytest.fixture
    def make(self, redis_server: RedisServer, clock: Clock) -> Iterator[Make]:
        yield from making(redis_server, clock=clock)


@pytest.fixture(scope="module")
def valkey() -> Iterator[RedisServer]:
    with RedisServer(path=needs_server("valkey-server")) as server:
        yield server


class TestRedisRegistryOnValkey(RegistryContract):
    @pytest.fixture
    def make(self, valkey: RedisServer, clock: Clock) -> Iterator[Make]:
        yield from making(valkey, clock=clock)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisServer]:
    """A cluster of one: it refuses a script whose keys are of two slots, as any cluster does."""
    with RedisServer("--cluster-enabled", "yes") as server:
        with redis.Redis.from_url(server.url) as client:
            client.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
            eventually(lambda: b"cluster_state:ok" in client.execute_command("CLUSTER", "INFO"))
        yield server


class TestRedisRegistryInACluster(RegistryContract):
    @pytest.fixture
    def make(self, cluster: RedisServer, clock: Clock) -> Iterator[Make]:
        yield from making(cluster, clock=clock)

    def test_it_does_refuse(self, cluster: RedisServer) -> None:
        with redis.Redis.from_url(cluster.url) as client, pytest.raises(redis.ResponseError, match="slot"):
            client.eval("return 1", 2, "{a}", "{b}")


def test_who_keeps_a_job_that_is_given_back_meanwhile_takes_no_place_that_another_one_has(
    redis_server: RedisServer,
) -> None:
    class Slow(RedisRegistry):
        """Between its look and its change something happens."""

        def get(self, key: str) -> Job:
            job = super().get(key)
            happens()
            return job

    def happens() -> None:
        other.keep(KEY, False)
        other.keep(key_of("other"))

    prefix = f"test-{next(_numbers)}"
    with RedisRegistry(redis_server.url, prefix=prefix, max_kept=1) as other:
        ended(other)
        ended(other, "other")
        other.keep(KEY)
        with Slow(redis_server.url, prefix=prefix, max_kept=1) as slow:
            answer = slow.keep(KEY)
        assert answer is None or not answer.kept
        assert [job.key for job in other.jobs() if job.kept] == [key_of("other")]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make(redis_server: RedisServer) -> Iterator[Make]:
    """Registries of one prefix, by the server's clock."""
    yield from making(redis_server, prefix="bg")


@pytest.fixture
def registry(make: Make) -> RedisRegistry:
    return make()


@pytest.fixture
def server(redis_server: RedisServer) -> Iterator[Any]:
    """What an operator types at the server."""
    with redis.Redis.from_url(redis_server.url, decode_responses=True) as client:
        yield client


def record_of(key: str) -> str:
    return f"bg:{{{key}}}"


# Settings.


def test_constructing_opens_nothing() -> None:
    threads = set(threading.enumerate())
    with RedisRegistry("redis://nowhere.invalid:1/0") as registry:
        assert set(threading.enumerate()) <= threads  # those of other tests may end
        assert registry.shared


@pytest.mark.parametrize("name", ["timeout", "max_waiting"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_a_bad_setting_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=rf"^{name} = "):
        RedisRegistry(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["max_output", "max_result"])
def test_no_more_is_promised_than_a_string_holds(name: str) -> None:
    limit = 512 * 1024 * 1024
    RedisRegistry(**{name: limit})  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=rf"^{name} = .*at most {limit}"):
        RedisRegistry(**{name: limit + 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("prefix", ["", "a{b}c", "with space", "é", "x" * 101, "line\n"])
def test_a_prefix_that_could_not_be_told_from_a_key_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^prefix = "):
        RedisRegistry(prefix=prefix)


@pytest.mark.parametrize("prefix", ["b", "app:jobs/v1.2_3-4", "x" * 100])
def test_a_prefix_may_be(prefix: str) -> None:
    RedisRegistry(prefix=prefix)


@pytest.mark.parametrize(
    "url",
    [
        "http://:geheim@localhost",
        "localhost:6379",
        "redis://:geheim@localhost:port",
        "redis://:geheim@localhost:99999999",
        "redis://:geheim@localhost?no_such=option",
        "redis://:geheim@localhost?socket_timeout=soon",
        "redis://:geheim@[localhost",
        "",
    ],
)
def test_a_bad_url_is_refused_and_its_password_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^url: expected redis://") as refused:
        RedisRegistry(url)
    assert "geheim" not in str(refused.value)
    assert refused.value.__suppress_context__


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://ann:geheim@example.org:7000/3", "redis://example.org:7000/3"),
        ("rediss://:geheim@example.org", "rediss://example.org:6379/0"),
        ("redis://", "redis://localhost:6379/0"),
        ("unix://:geheim@/run/redis.sock?db=2", "unix:///run/redis.sock"),
    ],
)
def test_what_is_shown_of_a_registry_has_no_password(url: str, shown: str) -> None:
    registry = RedisRegistry(url, prefix="jobs")
    assert repr(registry) == f"<RedisRegistry {shown} jobs>"


def test_the_options_of_a_url_do_not_change_what_is_ours(make: Make, redis_server: RedisServer) -> None:
    options = "decode_responses=true&retry_on_timeout=true&protocol=3&health_check_interval=1&socket_timeout=100"
    registry = make(url=f"{redis_server.url}?{options}", timeout=0.2)
    ended(registry, output=b"\xff")
    assert all_of(registry, KEY) == b"\xff"
    redis_server.pause()
    try:
        with pytest.raises(RegistryError):
            done(begun(registry.get, KEY))
    finally:
        redis_server.resume()


WITHOUT_REDIS = """
import sys
sys.modules["redis"] = None
try:
    from bgmiddleware.registries.redis import RedisRegistry
except ImportError as error:
    print(error)
"""


def test_without_the_library_the_import_names_the_extra() -> None:
    command = [sys.executable, "-c", WITHOUT_REDIS]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONG)
    assert "pip install 'bgmiddleware[redis]'" in said.stdout, said.stderr


# The keys.


def test_all_keys_of_a_job_are_in_one_slot_and_those_of_the_index_in_another(
    registry: RedisRegistry, server: Any
) -> None:
    registry.add(Job(KEY, "one", request={"PATH_INFO": "/"}, groups={"ann {x} ☃": 2}))
    registry.append(KEY, Channel.REQUEST, 0, b"request")
    registry.claim(KEY, RUNNER, lease=15.0)
    registry.append(KEY, Channel.OUTPUT, 0, b"output", runner=RUNNER)
    registry.append(KEY, Channel.BODY, 0, b"body", runner=RUNNER)
    ended(registry, "two")
    added(registry, "three")
    registry.secret()
    slots: dict[int, set[str]] = {}
    for name in server.scan_iter():
        slots.setdefault(redis.crc.key_slot(name.encode()), set()).add(name)
    ours = {record_of(KEY) + part for part in ("", ":request", ":output", ":body", ":wake")}
    index = {"jobs", "pending", "queue", "running", "due", "ended", "last", "secret", "group:ann {x} ☃", "minute:N"}
    assert ours in slots.values()
    of_minutes = [{re.sub("minute:[0-9]+", "minute:N", name) for name in names} for names in slots.values()]
    assert {f"{{bg}}:{name}" for name in index} in of_minutes
    assert len(slots) == 4


def test_a_script_touches_no_key_that_it_does_not_declare() -> None:
    names = "RECORD|GONE|REQUEST|OUTPUT|BODY|WAKE|BYTES|JOBS|PENDING|RUNNING|DUE|ENDED|LAST|QUEUE|NAME|PROCESSES|HELD"
    names += "|EXPIRED|KEPT|TIMES|WAITS|COUNTS|PATHS"
    names += r"|KEYS\[(?:group|waits|minute)\]|key(?=, ARGV\[11\]|\))"
    declared = rf"({names}|where == 'pending' and PENDING or RUNNING)[,)]"
    scripts = list((ROOT / "bgmiddleware" / "registries" / "_redis" / "lua").glob("*.lua"))
    assert len(scripts) > 10
    for script in scripts:
        for call in re.findall(r"redis\.call\('\w+'(.*)", script.read_text()):
            assert call.startswith(")") or re.match(rf", {declared}", call), f"{script.name}: {call}"


def test_jobs_of_another_prefix_are_not_seen(make: Make, server: Any) -> None:
    one, other = make(prefix="one", max_jobs=1), make(prefix="other", max_jobs=1)
    ended(one, output=b"output")
    added(other, "two")
    with pytest.raises(JobNotFound):
        other.get(KEY)
    assert [job.title for job in one.jobs()] == ["one"]
    assert [job.title for job in other.jobs()] == ["two"]
    assert one.secret() != other.secret()
    assert {name.strip("{}").partition(":")[0].rstrip("}") for name in server.scan_iter()} == {"one", "other"}


def test_neither_a_token_nor_a_pickle_is_stored(registry: RedisRegistry, server: Any) -> None:
    ended(registry)
    for field, value in server.hgetall(record_of(KEY)).items():
        assert value == "" or value.isprintable(), field
        assert "one" not in field


def test_the_secret_stays_and_is_never_evicted_first(make: Make, server: Any) -> None:
    secret = make().secret()
    assert make().secret() == secret
    assert server.pttl("{bg}:secret") == -1
    server.flushall()
    one, other = make(), make()
    assert one.secret() == other.secret() != secret


# Names.


def name_of(server: Any) -> str | None:
    return server.get("{bg}:name:n")


def test_a_name_is_kept_as_long_as_its_job_may_hold_it(server: Any, make: Make) -> None:
    registry = make(prefix="bg", ttl=100.0, pending_ttl=50.0)
    key = registry.add(Job(KEY, "one", name="n", keeps_name=True)).key
    assert name_of(server) == key
    assert 50_000 < server.pttl("{bg}:name:n") <= 110_000
    assert registry.claim(key, RUNNER, lease=LONG)
    assert server.pttl("{bg}:name:n") > 7 * 24 * 3600 * 1000
    assert registry.finish(key, RUNNER, JobState.FINISHED)
    assert 100_000 < server.pttl("{bg}:name:n") <= 160_000


def test_a_name_whose_record_was_lost_is_free(server: Any, make: Make) -> None:
    registry = make(prefix="bg")
    first = registry.add(Job(KEY, "one", name="n", keeps_name=True)).key
    server.delete(f"bg:{{{first}}}")
    second = registry.add(Job(key_of("two"), "two", name="n", keeps_name=True)).key
    assert name_of(server) == second


@pytest.mark.parametrize("comes_back", [False, True])
def test_who_dies_between_a_name_and_its_record_loses_the_name(make: Make, server: Any, comes_back: bool) -> None:
    registry, other = make(prefix="bg"), make(prefix="bg")
    run_all = registry._server.run_all

    def late(*calls: Call) -> list[Any]:
        """Come to the record when somebody else has given up waiting for it."""
        if calls[0].name != "create":
            return run_all(*calls)
        registry._server.run_all = run_all  # type: ignore[method-assign]
        assert other.add(Job(key_of("two"), "two", name="n")).title == "two"
        if not comes_back:
            raise RegistryError("it died")
        return run_all(*calls)

    registry._server.run_all = late  # type: ignore[method-assign]
    with pytest.raises(JobExists if comes_back else RegistryError) as refused:
        registry.add(Job(KEY, "one", name="n"))
    if comes_back:
        assert isinstance(refused.value, JobExists)
        assert refused.value.key == key_of("two")
    assert name_of(server) == key_of("two")
    with pytest.raises(JobNotFound):
        registry.get(KEY)
    assert [job.title for job in registry.jobs()] == ["two"]


# How long the server keeps what.


def lives(server: Any, key: str = KEY) -> dict[str, float]:
    """Return the seconds that each key of a job has left; infinite where it stays."""
    record = record_of(key)
    left = {name.removeprefix(record).lstrip(":"): server.pttl(name) / 1000 for name in server.keys(f"{record}*")}
    return {name: math.inf if seconds < 0 else seconds for name, seconds in left.items()}


def test_a_pending_and_a_running_job_have_no_time_to_live(registry: RedisRegistry, server: Any) -> None:
    added(registry)
    registry.append(KEY, Channel.REQUEST, 0, b"request")
    assert lives(server) == {"": math.inf, "request": math.inf}
    registry.claim(KEY, RUNNER, lease=15.0)
    write(registry, KEY, b"output")
    write(registry, KEY, b"body", Channel.BODY)
    registry.renew(KEY, RUNNER, lease=15.0)
    registry.request_cancel(KEY)
    assert lives(server) == dict.fromkeys(["", "request", "output", "body", "wake"], math.inf)


@pytest.mark.parametrize("state", ENDED)
def test_an_ended_job_lives_for_its_ttl_and_is_remembered_as_long_again(
    make: Make, server: Any, state: JobState
) -> None:
    registry = make(ttl=1000.0)
    running(registry)
    write(registry, KEY, b"output")
    write(registry, KEY, b"body", Channel.BODY)
    registry.finish(KEY, RUNNER, state)
    left = lives(server)
    assert set(left) == {"", "output", "body", "wake", "gone"}
    for name in ("", "output", "body"):
        assert 1000 - LONG < left[name] <= 1000 + 5
    assert 2000 - LONG < left["gone"] <= 2000 + 5
    assert left["wake"] <= 60


def test_the_server_forgets_by_itself_and_remembers_that_it_did(make: Make, server: Any) -> None:
    registry = make(ttl=0.01)
    ended(registry, output=b"output")
    for name in ("", ":output"):  # as if two more seconds were over
        server.pexpire(record_of(KEY) + name, 1)
    eventually(lambda: not server.exists(record_of(KEY), record_of(KEY) + ":output"))
    with pytest.raises(JobExpired):
        registry.get(KEY)
    assert registry.jobs() == []
    eventually(lambda: registry.evict() == (0, 1))
    assert server.zcard("{bg}:jobs") == server.zcard("{bg}:ended") == 0
    server.delete(record_of(KEY) + ":gone")  # and the time after that
    with pytest.raises(JobNotFound):
        registry.get(KEY)
    added(registry)


def test_what_is_remembered_of_expired_jobs_is_bounded(make: Make, server: Any, clock: Clock) -> None:
    registry = make(prefix="bg", clock=clock, max_jobs=3, ttl=60.0)
    remembers_the_last_three(registry, clock)
    assert len(list(server.scan_iter("bg:*:gone"))) == 3
    assert server.zcard("{bg}:expired") == 3
    added(registry, "c")
    assert server.zcard("{bg}:expired") == 2
    assert registry.discard(key_of("c"))
    with pytest.raises(JobNotFound):
        registry.get(key_of("c"))


def test_those_who_made_room_are_remembered_within_the_same_bound(make: Make, server: Any, clock: Clock) -> None:
    registry = make(prefix="bg", clock=clock, max_jobs=2, ttl=60.0)
    for number in range(8):
        ended(registry, f"job {number}")
        clock.advance(1.0)
    registry.evict()
    assert server.zcard("{bg}:expired") == 2
    expired = [number for number in range(8) if server.exists(f"bg:{{{key_of(f'job {number}')}}}:gone")]
    assert expired == [4, 5, 6, 7]  # of which two have made room, and two are there


def test_who_made_room_is_forgotten_at_once(make: Make, server: Any) -> None:
    registry = make(max_jobs=1)
    ended(registry, output=b"output")
    added(registry, "two")
    assert set(lives(server)) <= {"gone", "wake"}
    with pytest.raises(JobExpired):
        registry.get(KEY)


def test_a_lower_max_jobs_is_reached_bit_by_bit(make: Make) -> None:
    registry = make(max_jobs=300)
    for number in range(250):
        ended(registry, f"job {number}")
    fewer = make(max_jobs=5)
    with pytest.raises(QueueFull):  # a hundred have gone, as many again at the second try
        added(fewer, "new")
    added(fewer, "new")
    assert len(registry.jobs(limit=1000)) == 5


def test_those_who_made_room_are_forgotten_though_it_was_not_enough(make: Make, server: Any) -> None:
    registry = make(max_jobs=4)
    for name in ("ended", "also ended"):
        ended(registry, name, output=b"output")
    for name in ("runs", "runs too"):
        running(registry, name)
    with pytest.raises(QueueFull):
        added(make(max_jobs=2), "new")
    assert list(server.scan_iter("bg:*:output")) == []
    assert [job.title for job in registry.jobs()] == ["runs too", "runs"]


def test_a_job_of_which_only_the_index_knows_is_gone_when_it_is_discarded(registry: RedisRegistry, server: Any) -> None:
    added(registry)
    server.delete(record_of(KEY))
    assert not registry.discard(KEY)
    assert server.zcard("{bg}:jobs") == server.zcard("{bg}:pending") == server.zcard("{bg}:due") == 0


def test_a_discarded_key_can_be_added_again_and_its_waiters_wait(registry: RedisRegistry) -> None:
    added(registry)
    registry.discard(KEY)
    running(registry)
    waiting = begun(registry.wait, KEY, 0, LONG)
    blocked_on(waiting, registry, KEY, 0)
    write(registry, KEY, b"x")
    assert done(waiting).output_end == 1


# The clock that counts is the server's.


def test_all_instants_are_the_servers(registry: RedisRegistry, server: Any) -> None:
    def now() -> float:
        seconds, microseconds = server.time()
        return float(seconds + microseconds / 1e6)

    before = now()
    added(registry)
    assert before <= registry.get(KEY).created_at <= now()
    before = now()
    registry.claim(KEY, RUNNER, lease=15.0)
    job = registry.get(KEY)
    assert job.started_at is not None
    assert before - 0.1 <= job.started_at <= now()  # as of the last answer
    assert job.lease_expires_at == job.started_at + 15.0
    registry.request_cancel(KEY)
    registry.finish(KEY, RUNNER, JobState.CANCELLED)
    job = registry.get(KEY)
    assert job.started_at <= job.cancel_requested_at <= job.ended_at <= now()  # type: ignore[operator]
    assert abs(registry.clock() - now()) < LONG


def test_the_clock_of_this_machine_does_not_count(registry: RedisRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    running(registry, lease=LONG)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 3600.0)
    assert registry.get(KEY).state is JobState.RUNNING
    added(registry, "two")
    assert abs(registry.get(key_of("two")).created_at - real()) < LONG
    assert abs(registry.clock() - real()) < LONG


def test_who_asks_for_the_time_of_a_server_that_is_away_gets_this_machines() -> None:
    with RedisRegistry("redis://127.0.0.1:1/0") as registry:
        assert abs(registry.clock() - time.time()) < LONG


# The connections.


def connections(server: Any) -> int:
    return len(server.client_list()) - 1  # without the operator's


def test_closing_lets_go_of_the_connections_and_a_later_call_opens_others(make: Make, server: Any) -> None:
    before = connections(server)
    registry = make()
    running(registry)
    registry.wait(KEY, 0, 1.0)
    assert connections(server) == before + 2
    registry.close()
    eventually(lambda: connections(server) == before)
    assert registry.get(KEY).state is JobState.RUNNING
    registry.close()


def test_many_who_wait_share_few_connections_and_are_all_woken(make: Make, server: Any) -> None:
    registry = make(max_waiting=2)
    running(registry)
    before = connections(server)
    waiting = [begun(registry.wait, KEY, 0, LONG) for _ in range(12)]
    eventually(lambda: sum(client["cmd"] == "xread" for client in server.client_list()) == 2)
    registry.wait(KEY, 0, 0.02)
    assert sum(client["cmd"] == "xread" for client in server.client_list()) == 2
    assert connections(server) <= before + 2 + 13
    write(registry, KEY, b"x")
    assert [done(each).output_end for each in waiting] == [1] * 12


def test_a_connection_to_wait_with_is_given_back(make: Make, server: Any) -> None:
    registry = make(max_waiting=1)
    running(registry)
    for _ in range(3):
        registry.wait(KEY, 0, 0.001)
    waiting = begun(registry.wait, KEY, 0, LONG)
    eventually(lambda: any(client["cmd"] == "xread" and "b" in client["flags"] for client in server.client_list()))
    write(registry, KEY, b"x")
    assert done(waiting).output_end == 1


def test_a_child_of_a_fork_has_connections_of_its_own(make: Make, server: Any) -> None:
    registry = make()
    running(registry)
    write(registry, KEY, b"parent ")
    child = os.fork()
    if child == 0:
        write(registry, KEY, b"child ")
        registry.close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    write(registry, KEY, b"parent")
    assert all_of(registry, KEY) == b"parent child parent"


# The index follows the records.


def killed_at(registry: RedisRegistry, script: str, call: Callable[[], object]) -> None:
    """Do *call* in a child process that is killed where it would come to *script*, also within a round trip."""
    child = os.fork()
    if not child:
        run_all = registry._server.run_all

        def dies(*calls: Call) -> list[Any]:
            names = [each.name for each in calls]
            if script in names:
                run_all(*calls[: names.index(script)])
                os.kill(os.getpid(), signal.SIGKILL)
            return run_all(*calls)

        try:
            registry._server.run_all = dies  # type: ignore[method-assign]
            call()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_more_jobs_than_one_look_takes_are_listed_in_order(registry: RedisRegistry) -> None:
    for number in range(450):
        added(registry, f"job {number}")
    registry.claim(key_of("job 3"), RUNNER)
    titles = [f"job {number}" for number in reversed(range(450))]
    assert [job.title for job in registry.jobs(limit=1000)] == titles
    assert [job.title for job in registry.jobs(limit=5, skip=300)] == titles[300:305]
    assert [job.title for job in registry.jobs(JobState.RUNNING)] == ["job 3"]
    assert registry.jobs(JobState.LOST) == []


def test_a_job_that_the_index_lost_runs_to_its_end_and_is_listed_again(registry: RedisRegistry, server: Any) -> None:
    added(registry)
    server.delete(*server.keys("{bg}:*"))
    assert registry.jobs() == []
    assert registry.position(KEY) == 0
    assert registry.claim(KEY, RUNNER, lease=15.0)
    assert [job.state for job in registry.jobs()] == [JobState.RUNNING]
    server.delete(*server.keys("{bg}:*"))
    with pytest.raises(JobExists):
        added(registry)
    assert [job.state for job in registry.jobs(JobState.RUNNING)] == [JobState.RUNNING]
    assert registry.finish(KEY, RUNNER, JobState.FINISHED)
    assert [job.state for job in registry.jobs()] == [JobState.FINISHED]
    assert server.zcard("{bg}:running") == server.zcard("{bg}:due") == server.zcard("{bg}:pending") == 0


def test_a_running_job_that_was_not_filed_is_listed_from_its_next_renewal(make: Make, server: Any) -> None:
    registry = make()
    running(registry, lease=LONG)
    # As if its runner had not reached the index when it claimed.
    server.zrem("{bg}:running", KEY)
    server.zadd("{bg}:pending", {KEY: 1})
    assert registry.jobs(JobState.PENDING) == registry.jobs(JobState.RUNNING) == []
    assert registry.jobs() == [registry.get(KEY)]
    registry.renew(KEY, RUNNER, lease=LONG)
    assert [job.key for job in registry.jobs(JobState.RUNNING)] == [KEY]
    assert server.zcard("{bg}:pending") == 0


def test_the_server_keeps_an_ended_job_a_little_longer_than_its_ttl(make: Make, server: Any) -> None:
    registry = make(ttl=1000.0)
    ended(registry, output=b"text")
    for name in (record_of(KEY), f"{record_of(KEY)}:output"):
        assert 1_000_000 < server.pttl(name) <= 1_002_000


def test_who_waits_for_output_asks_once_and_is_not_woken_by_what_is_known(make: Make, server: Any) -> None:
    registry = make()
    running(registry)
    end = write(registry, KEY, b"known")
    server.config_resetstat()
    assert registry.wait(KEY, end, 0.2).output_end == end
    assert 1 <= server.info("commandstats")["cmdstat_xread"]["calls"] <= 2


def test_the_name_of_a_runner_may_be_any_text(make: Make) -> None:
    registry = make()
    added(registry)
    assert registry.claim(KEY, "host\udcff", lease=LONG)
    assert registry.append(KEY, Channel.OUTPUT, 0, b"text", runner="host\udcff") == 4
    assert registry.finish(KEY, "host\udcff", JobState.FINISHED)


def test_a_job_takes_one_round_trip_to_add_to_claim_and_to_finish(make: Make) -> None:
    registry = make()
    running(registry, "connects, and loads the scripts", lease=LONG)
    link = registry._server.link
    call, asked = link._call, 0

    def counts(run: Callable[[], Any]) -> Any:
        nonlocal asked
        asked += 1
        return call(run)

    link._call = counts  # type: ignore[method-assign, assignment]
    registry.add_request(Job(KEY, "one", process="p", request={"PATH_INFO": "/"}), b"x" * 60_000, lease=15.0)
    assert asked == 1
    assert registry.claim(KEY, RUNNER, lease=15.0)
    assert asked == 2
    assert registry.finish(KEY, RUNNER, JobState.FINISHED)
    assert asked == 3


@pytest.mark.parametrize("change", ["cancelled", "renewed", "ended"])
def test_who_remembers_a_job_that_somebody_else_changed_looks_again(make: Make, server: Any, change: str) -> None:
    registry, other = make(), make()
    running(registry, lease=LONG)
    if change == "cancelled":
        other.request_cancel(KEY, "not needed")
    elif change == "renewed":
        other.renew(KEY, RUNNER, lease=LONG, progress=Progress(1))
    else:
        assert other.finish(KEY, RUNNER, JobState.LOST)
    assert registry.finish(KEY, RUNNER, JobState.FINISHED) is (change != "ended")
    job = registry.get(KEY)
    assert job.state is (JobState.LOST if change == "ended" else JobState.FINISHED)
    assert (job.cancel_requested_at is not None, job.progress) == (
        change == "cancelled",
        Progress(1) if change == "renewed" else None,
    )
    # What was filed before the refusal is taken back.
    assert [each.key for each in registry.jobs(job.state)] == [KEY]
    assert server.zcard("{bg}:running") == server.zcard("{bg}:due") == server.zcard("{bg}:pending") == 0


def test_a_claim_that_comes_too_late_is_filed_as_what_the_job_is(make: Make, server: Any) -> None:
    registry, other = make(), make()
    added(registry)
    assert other.request_cancel(KEY) is JobState.CANCELLED
    assert not registry.claim(KEY, RUNNER, lease=LONG)
    assert server.zcard("{bg}:running") == server.zcard("{bg}:due") == server.zcard("{bg}:pending") == 0
    assert [each.key for each in registry.jobs(JobState.CANCELLED)] == [KEY]


def test_what_was_stored_of_a_job_that_found_no_place_is_gone(make: Make, server: Any) -> None:
    registry = make(max_jobs=1)
    added(registry)
    with pytest.raises(QueueFull):
        added(registry, "two")
    assert not server.exists(record_of(key_of("two")))


def test_a_registry_remembers_so_many_jobs_and_no_more(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_redis, "_REMEMBERED", 3)
    registry = make()
    for number in range(5):
        added(registry, f"job {number}")
    assert list(registry._written) == [key_of(f"job {number}") for number in (2, 3, 4)]
    for number in range(5):
        assert registry.claim(key_of(f"job {number}"), RUNNER)
        assert registry.finish(key_of(f"job {number}"), RUNNER, JobState.FINISHED)
    assert registry._written == {}


def test_what_was_not_filed_is_filed_when_it_is_due(make: Make, server: Any, clock: Clock) -> None:
    registry = make(clock=clock)
    added(registry)
    stale = server.zscore("{bg}:due", KEY)
    registry.claim(KEY, RUNNER, lease=LONG)
    # As if its runner had died before it could say so to the index.
    server.zrem("{bg}:running", KEY)
    server.zadd("{bg}:pending", {KEY: 1})
    server.zadd("{bg}:due", {KEY: stale})
    clock.now = stale - LONG / 2
    registry.renew(KEY, RUNNER, lease=LONG)
    server.zadd("{bg}:due", {KEY: stale})
    clock.now = stale
    assert registry.evict() == (0, 0)
    assert server.zrange("{bg}:running", 0, -1) == [KEY]
    assert server.zcard("{bg}:pending") == 0
    assert server.zscore("{bg}:due", KEY) == registry.get(KEY).lease_expires_at
    clock.advance(LONG)
    assert registry.evict() == (1, 0)


@pytest.mark.parametrize("groups", [{}, {"reindex": 1}])
def test_a_runner_killed_before_its_claim_was_filed_is_lost_when_its_lease_runs_out(
    make: Make, clock: Clock, groups: dict[str, int]
) -> None:
    registry = make(clock=clock)
    registry.add(Job(KEY, "one", groups=groups))
    killed_at(registry, "file", lambda: registry.claim(KEY, RUNNER, lease=6.0))
    assert registry.get(KEY).state is JobState.RUNNING
    clock.advance(5.9)
    assert registry.evict() == (0, 0)
    clock.advance(0.1)
    assert registry.evict() == (1, 0)
    assert registry.position(KEY) == 0
    assert [job.key for job in registry.jobs(JobState.LOST)] == [KEY]


@pytest.mark.parametrize("groups", [{}, {"reindex": 1}])
def test_a_runner_killed_before_its_claim_was_written_leaves_the_job_to_others(
    make: Make, server: Any, clock: Clock, groups: dict[str, int]
) -> None:
    registry = make(clock=clock)
    until = registry.add(Job(KEY, "one", groups=groups)).expires_at
    killed_at(registry, "write", lambda: registry.claim(KEY, RUNNER, lease=6.0))
    assert server.zscore("{bg}:due", KEY) == clock.now + 6.0
    clock.advance(6.0)
    assert registry.evict() == (0, 0)
    assert server.zscore("{bg}:due", KEY) == until
    assert registry.position(KEY) == 1
    assert registry.claim(KEY, "another", lease=6.0)


def test_a_claim_never_puts_off_when_a_job_is_looked_at(make: Make, server: Any, clock: Clock) -> None:
    registry = make(clock=clock, pending_ttl=LONG)
    for name, lease in {"long": 2 * LONG, "none": None}.items():
        until = registry.add(Job(key_of(name), name, groups={"reindex": 2})).expires_at
        killed_at(registry, "write", partial(registry.claim, key_of(name), RUNNER, lease=lease))
        assert server.zscore("{bg}:due", key_of(name)) == until


def test_a_job_without_a_lease_is_looked_at_again_and_again(make: Make, server: Any, clock: Clock) -> None:
    registry = make(clock=clock)
    running(registry)
    for _ in range(3):
        due = server.zscore("{bg}:due", KEY)
        assert due > clock.now
        clock.now = due
        assert registry.evict() == (0, 0)
    server.delete(record_of(KEY))
    clock.advance(1e7)
    assert registry.evict() == (0, 0)
    assert server.zcard("{bg}:jobs") == server.zcard("{bg}:due") == server.zcard("{bg}:running") == 0


def test_a_place_in_a_group_is_given_back_by_who_lost_the_race(registry: RedisRegistry, server: Any) -> None:
    for number in range(10):
        key = registry.add(Job(key_of(f"job {number}"), "one", groups={"reindex": 8})).key
        start = threading.Barrier(8)

        def claim(runner: str, key: str = key, start: threading.Barrier = start) -> bool:
            start.wait(LONG)
            return registry.claim(key, runner, lease=15.0)

        runners = {runner: begun(claim, runner) for runner in "abcdefgh"}
        (winner,) = [runner for runner, won in runners.items() if done(won)]
        assert server.zcard("{bg}:group:reindex") == 1
        registry.finish(key, winner, JobState.FINISHED)
        assert not server.exists("{bg}:group:reindex")


def test_who_comes_to_life_again_takes_its_place_in_its_group_again(make: Make, server: Any, clock: Clock) -> None:
    registry = make(clock=clock)
    first, second = (registry.add(Job(key_of(name), name, groups={"reindex": 1})).key for name in ("first", "second"))
    assert registry.claim(first, RUNNER, lease=6.0)
    clock.advance(6.0)
    assert registry.claim(second, RUNNER, lease=6.0)
    assert registry.renew(first, RUNNER, lease=6.0).ok
    assert server.zcard("{bg}:group:reindex") == 2
    registry.finish(second, RUNNER, JobState.FINISHED)
    third = registry.add(Job(key_of("third"), "third", groups={"reindex": 1})).key
    assert not registry.claim(third, RUNNER)


def test_a_job_of_two_groups_takes_a_place_in_both_or_in_none(registry: RedisRegistry, server: Any) -> None:
    first = registry.add(Job(key_of("first"), "first", groups={"ann": 1})).key
    assert registry.claim(first, RUNNER, lease=15.0)
    second = registry.add(Job(key_of("second"), "second", groups={"report": 5, "ann": 1})).key
    assert not registry.claim(second, RUNNER, lease=15.0)
    assert server.zcard("{bg}:group:report") == 0


def test_the_name_of_a_group_may_be_any_string(registry: RedisRegistry) -> None:
    names = ["", "a b\nc", "caf\xe9\xff", "{bg}", "\udcff"]
    for number, name in enumerate(names):
        key = registry.add(Job(key_of(str(number)), "one", groups={name: 1})).key
        assert registry.claim(key, RUNNER, lease=15.0)
        again = registry.add(Job(key_of(f"{number} again"), "one", groups={name: 1})).key
        assert not registry.claim(again, RUNNER, lease=15.0)
        assert registry.finish(key, RUNNER, JobState.FINISHED)
        assert registry.claim(again, RUNNER, lease=15.0)


def test_groups_whose_names_are_no_text_are_told_apart(registry: RedisRegistry) -> None:
    for title, name in (("one", "\udc80"), ("two", "\udc81")):
        key = registry.add(Job(key_of(title), title, groups={name: 1})).key
        assert registry.claim(key, RUNNER, lease=15.0)


def test_a_long_wait_is_no_silence_that_breaks_its_connection(make: Make, server: Any) -> None:
    registry = make(timeout=6.0)  # it blocks for 4.8 s at a time: an answer may be 1.2 s late on a busy machine
    running(registry)
    registry.wait(KEY, 0, 1.0)  # opens the connection that blocks
    before = {client["id"] for client in server.client_list()}
    assert registry.wait(KEY, 0, 7.0).state is JobState.RUNNING
    assert before <= {client["id"] for client in server.client_list()}, "one broke"


def test_an_expired_key_that_comes_again_comes_last(make: Make, clock: Clock) -> None:
    registry = make(clock=clock, ttl=60.0)
    ended(registry)
    clock.advance(30.0)
    added(registry, "two")
    clock.advance(30.0)
    added(registry)
    assert [job.title for job in registry.jobs()] == ["one", "two"]
    assert [registry.position(key) for key in (KEY, key_of("two"))] == [2, 1]
    clock.advance(60.0)
    assert registry.evict() == (0, 0)  # nothing is left of what it was


def test_who_makes_room_and_has_come_again_meanwhile_stays(make: Make, server: Any) -> None:
    registry = make(max_jobs=1)
    added(registry)
    server.zadd("{bg}:ended", {KEY: 1})  # as it was when it was chosen to make room
    added(registry, "two")
    assert registry.get(KEY).state is JobState.PENDING


def test_a_wait_ends_with_the_lease_and_not_at_the_next_look(make: Make) -> None:
    registry = make(timeout=1000.0)  # so nobody looks before that
    running(registry, lease=0.05)
    assert done(begun(registry.wait, KEY, 0, 1000.0)).state is JobState.LOST


def test_a_discard_wakes_at_once_and_not_at_the_next_look(registry: RedisRegistry, server: Any) -> None:
    added(registry)
    registry.discard(KEY)
    ((entry, _),) = server.xrange(record_of(KEY) + ":wake")
    assert entry == "18446744073709551615-1"
    assert 0 < server.pttl(record_of(KEY) + ":wake") <= 60_000


# What fits.


def test_offsets_beyond_what_fourteen_digits_hold_are_exact(registry: RedisRegistry, server: Any) -> None:
    running(registry)
    write(registry, KEY, b"x" * 100)
    end = 2**51 + 1
    most = 16 * 1024 * 1024
    server.hset(record_of(KEY), "output", end)  # as if so much had been printed
    server.setrange(record_of(KEY) + ":output", most - 1, "x")
    assert write(registry, KEY, b"abc") == end + 3
    assert registry.wait(KEY, end, LONG).output_end == end + 3
    assert registry.read(KEY, Channel.OUTPUT, end) == (end, b"abc")
    waiting = begun(registry.wait, KEY, end + 3, LONG)
    blocked_on(waiting, registry, KEY, end + 3)
    write(registry, KEY, b"d")
    assert done(waiting).output_end == end + 4
    assert registry.get(KEY).output_dropped == (most // 2, end + 4 - most // 2)


def test_what_wakes_readers_does_not_grow_with_the_output(registry: RedisRegistry, server: Any) -> None:
    running(registry)
    for offset in range(300):
        registry.append(KEY, Channel.OUTPUT, offset, b"x", runner=RUNNER)
    assert server.xlen(record_of(KEY) + ":wake") == 1


def test_a_read_is_no_longer_than_a_page(registry: RedisRegistry) -> None:
    running(registry)
    write(registry, KEY, b"x" * 300_000)
    assert len(registry.read(KEY, Channel.OUTPUT, 0, 10**9).data) == 256 * 1024
    assert len(all_of(registry, KEY, limit=10**9)) == 300_000


def test_who_asked_for_the_end_sees_it_whatever_is_printed(registry: RedisRegistry) -> None:
    running(registry)
    waiting = begun(registry.wait, KEY, END + 5, LONG)
    write(registry, KEY, b"x")
    blocked_on(waiting, registry, KEY, 1)
    registry.finish(KEY, RUNNER, JobState.FINISHED)
    assert done(waiting).state is JobState.FINISHED


def test_a_newer_version_may_have_written_more_into_a_record(registry: RedisRegistry, server: Any) -> None:
    job = registry.add(Job(KEY, "one"))
    document = server.hget(record_of(KEY), "job")
    server.hset(record_of(KEY), "job", document.replace("{", '{"tomorrow": [1],', 1))
    assert registry.get(KEY) == job
    assert registry.claim(KEY, RUNNER)
    assert registry.get(KEY).changed(started_at=None).runner == RUNNER


def test_the_documents_name_every_key(registry: RedisRegistry, server: Any) -> None:
    text = PAGES["registries.rst"].read_text()
    registry.add(Job(KEY, "one", groups={"reindex": 1}))
    registry.append(KEY, Channel.REQUEST, 0, b"x")
    registry.claim(KEY, RUNNER, lease=15.0)
    write(registry, KEY, b"x")
    write(registry, KEY, b"x", Channel.BODY)
    ended(registry, "two")
    added(registry, "three")
    registry.secret()
    named = {name.replace(KEY, "KEY").replace(":reindex", ":NAME") for name in server.scan_iter() if "{" in name}
    for name in (re.sub("minute:[0-9]+", "minute:NUMBER", name) for name in named):
        if not re.search("[0-9a-f]{32}", name):
            assert f"``{name}``" in text, name
