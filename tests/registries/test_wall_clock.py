"""The wall clock of a running server is set back by an hour, and forward again: jobs run on, and nobody is lied to."""

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from bgmiddleware import Registry
from bgmiddleware._jobs import key_of
from bgmiddleware.registries import open_registry
from bgmiddleware.registries._spool.clock import HostClock
from bgmiddleware.registries.base import END
from tests.conftest import needs
from tests.kit.processes import LONG, Server, gunicorn, running
from tests.kit.redis_server import RedisServer
from tests.kit.wall_clock import WallClock

pytestmark = pytest.mark.everything

needs("gunicorn")

HOUR = 3600
LEASE = 2.0
TTL = 7200.0


@pytest.fixture
def clock(tmp_path: Path) -> WallClock:
    return WallClock(tmp_path)


@pytest.fixture(params=["spool", "redis"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "spool":
        yield f"spool:{tmp_path}/jobs"
        return
    with RedisServer() as redis:  # it has the clock of the machine: that of the web server does not matter
        yield redis.url


@pytest.fixture
def redis_of_this_clock(clock: WallClock) -> Iterator[str]:
    with RedisServer(environ=clock.environ) as redis:
        yield redis.url


def serve(directory: Path, url: str, clock: WallClock) -> Server:
    site = {"SITE_REGISTRY": url, "SITE_REGISTRY_OPTIONS": f'{{"ttl": {TTL}}}', "SITE_LEASE": str(LEASE)}
    return gunicorn(directory, "-k", "gthread", "--threads", "4", **site, **clock.environ)


def key_at(target: str) -> str:
    (token,) = parse_qs(target.partition("?")[2])["_t"]
    return key_of(token)


def renewed(registry: Registry, target: str, times: int = 2) -> None:
    """Wait until the lease of a running job was renewed; at no time does the job read as anything but running."""
    until = time.monotonic() + LONG
    last = None
    while times:
        job = registry.wait(key_at(target), END, 0.1)
        assert job.state == "running", job
        assert time.monotonic() < until, job
        if job.lease_expires_at != last:
            times -= last is not None
            last = job.lease_expires_at


def test_a_job_runs_on_and_new_ones_are_started(clock: WallClock, url: str, tmp_path: Path) -> None:
    with running(serve(tmp_path, url, clock)) as server, open_registry(url) as registry:
        target = server.started("/x/wait?gate")
        server.begun(target)
        for ahead in (-HOUR, 0, HOUR):
            clock.set(ahead)
            # An addition evicts what is lost.
            new = server.started(f"/x/count?3&{ahead}")
            renewed(registry, target)
            assert server.ended(new)["state"] == "finished"
            assert server.request("GET", f"{target}&_view=status").json["state"] == "running"
            job = registry.get(key_at(new))
            assert job.started_at is not None
            assert job.ended_at is not None
            assert job.created_at <= job.started_at <= job.ended_at
            assert job.expires_at == job.ended_at + TTL
        (tmp_path / "gate").touch()
        state = server.ended(target)
        assert (state["state"], state["reason"]) == ("finished", "")
        assert 0 < state["elapsed"] < HOUR / 2
        assert server.request("GET", f"{target}&_view=log").text == "begun\nended\n"


@pytest.mark.parametrize("ahead", [-HOUR, HOUR])
def test_the_job_of_a_worker_that_is_killed_is_lost_in_time(
    ahead: int, clock: WallClock, url: str, tmp_path: Path
) -> None:
    with running(serve(tmp_path, url, clock)) as server:
        reply = server.request("POST", "/x/wait?never")
        target = f"/x/wait{reply['Location']}"
        server.begun(target)
        os.kill(int(reply["Worker"]), signal.SIGKILL)
        clock.set(ahead)
        assert server.ended(target)["reason"] == "its runner vanished"


def test_the_clock_of_redis_is_set_back_in_mid_job(clock: WallClock, redis_of_this_clock: str, tmp_path: Path) -> None:
    url = redis_of_this_clock
    with running(serve(tmp_path, url, clock)) as server, open_registry(url) as registry:
        reply = server.request("POST", "/x/wait?gate")
        target = f"/x/wait{reply['Location']}"
        server.begun(target)
        clock.set(-HOUR)
        renewed(registry, target)
        new = server.started("/x/count?3")
        assert server.ended(new)["state"] == "finished"
        os.kill(int(reply["Worker"]), signal.SIGKILL)
        assert server.ended(target)["reason"] == "its runner vanished"


def test_the_clock_of_redis_is_set_forward_in_mid_job(
    clock: WallClock, redis_of_this_clock: str, tmp_path: Path
) -> None:
    url = redis_of_this_clock
    with running(serve(tmp_path, url, clock)) as server:
        target = server.started("/x/wait?gate")
        server.begun(target)
        clock.set(HOUR)
        # It may read as lost until its next renewal, while nobody starts another job.
        server.until(lambda reply: reply.json["state"] == "running", "GET", f"{target}&_view=status")
        (tmp_path / "gate").touch()
        server.until(lambda reply: reply.json["state"] == "finished", "GET", f"{target}&_view=status")


# The clock of a directory.


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """A directory that was used before."""
    (tmp_path / "index.db").touch()
    return tmp_path


def test_all_who_share_a_directory_have_one_clock_whatever_was_set_between(
    spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = HostClock(str(spool))
    begun = first()
    assert abs(begun - time.time()) < HOUR / 2
    monkeypatch.setattr(time, "time", lambda: 0.0)
    other = HostClock(str(spool))
    assert begun <= other() <= first() <= other() < begun + HOUR / 2


def test_a_clock_of_an_earlier_start_of_the_host_does_not_count_any_more(spool: Path) -> None:
    before = f"clock.{uuid.uuid4()}"
    for name in (before, f"{before}.0123456789abcdef", "clock.py", "clock.of-before", f"{before}.txt"):
        (spool / name).write_text("0.0")
    assert abs(HostClock(str(spool))() - time.time()) < HOUR / 2
    kept = {path.name for path in spool.iterdir()} - {"index.db", "clock.py", "clock.of-before", f"{before}.txt"}
    (name,) = kept
    assert (spool / name).stat().st_mode & 0o777 == 0o600


def test_where_there_is_no_spool_yet_it_is_the_wall_clock_and_makes_nothing(tmp_path: Path) -> None:
    clock = HostClock(str(tmp_path / "jobs"))
    assert abs(clock() - time.time()) < HOUR / 2
    assert not (tmp_path / "jobs").exists()
    (tmp_path / "jobs").mkdir()
    clock()
    assert not list((tmp_path / "jobs").iterdir())
    (tmp_path / "jobs" / "index.db").touch()
    clock()
    assert list((tmp_path / "jobs").glob("clock.*"))


def test_what_somebody_wrote_into_its_file_stops_nobody(spool: Path) -> None:
    HostClock(str(spool))()
    (file,) = spool.glob("clock.*")
    file.write_text("nonsense")
    assert abs(HostClock(str(spool))() - time.time()) < HOUR / 2
