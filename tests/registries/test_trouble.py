"""A registry that is full, locked or gone while a job runs on a real server: the job runs on, and nobody is lied to."""

import contextlib
import fcntl
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.kit.clients import Reply
from tests.kit.disks import mounted
from tests.kit.processes import Server, gunicorn, running
from tests.kit.redis_server import RedisServer
from tests.kit.served_site import FLOOD_LINE

pytestmark = pytest.mark.everything

needs("gunicorn")

FLOOD = "".join(FLOOD_LINE % at for at in range(0, 40_200 * 100, 100))
ROOM = 1024 * 1024  # what a job keeps for a registry that is away


def serve(directory: Path, registry: str, options: str = "{}") -> Server:
    site = {"SITE_REGISTRY": registry, "SITE_REGISTRY_OPTIONS": options}
    return gunicorn(directory, "-k", "gthread", "--threads", "4", **site)


def printed(server: Server, directory: Path, name: str) -> None:
    """Wait until the flooding view has printed a part of its output."""
    server.until(lambda _: (directory / f"printed-{name}").exists(), "GET", "/fast")


def assert_away(reply: Reply) -> None:
    assert (reply.status, "Retry-After" in reply) == (503, True), reply
    assert b"Traceback" not in reply.body


def assert_truthful(kept: str) -> int:
    """Each byte of the flood is there, or in a range that is named; return how many are not there."""
    begin = missing = 0
    parts = re.split(r"\n\[bytes (\d+) to (\d+) of the output could not be stored\]\n", kept)
    for text, first, end in zip(parts[0::3], [*parts[1::3], str(len(FLOOD))], [*parts[2::3], ""], strict=True):
        assert text == FLOOD[begin : int(first)]
        if end:
            missing += int(end) - int(first)
            begin = int(end)
    return missing


def missing_of(server: Server, target: str) -> int:
    """Let a flooded job end, and see that it did, and that its output is true; return how many bytes are missing."""
    state = server.ended(target)
    assert (state["state"], state["reason"]) == ("finished", "")

    def read(view: str) -> str:
        # The registry's time-out is short, and may pass once more on a busy machine.
        return server.until(lambda reply: reply.status == 200, "GET", f"{target}&_view={view}").text

    assert read("result") == f"{len(FLOOD)} bytes\n"
    return assert_truthful(read("log"))


# In a directory.


def test_a_disk_that_is_full_in_mid_job_and_free_again(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with mounted(disk, "size=6m,mode=700"), running(serve(tmp_path, f"spool:{disk}/jobs")) as server:
        target = server.started("/x/flood")
        server.begun(target, FLOOD_LINE % 9900)
        fill(disk)
        (tmp_path / "full").touch()
        printed(server, tmp_path, "free")
        reply = server.request("GET", f"{target}&_view=log&_offset=0")
        assert (reply.status, reply["Job-State"]) == (200, "running")
        assert FLOOD.startswith(reply.text)
        assert_away(server.request("POST", "/x/count?1"))
        (disk / "ballast").unlink()
        (tmp_path / "free").touch()
        assert 0 < missing_of(server, target) < len(FLOOD) - ROOM
        assert server.ended(server.started("/x/count?1"))["state"] == "finished"


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


def test_an_index_that_another_process_keeps_locked_for_a_while(tmp_path: Path) -> None:
    jobs = tmp_path / "jobs"
    with running(serve(tmp_path, f"spool:{jobs}", '{"busy_timeout": 0.3}')) as server:
        target = server.started("/x/flood")
        server.begun(target, FLOOD_LINE % 9900)
        with (jobs / "index.lock").open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            (tmp_path / "full").touch()
            printed(server, tmp_path, "free")
            # What needs no change of the index goes on.
            server.begun(target, FLOOD_LINE % 9900)
            assert server.request("GET", f"{target}&_view=status").json["state"] == "running"
            assert_away(server.request("DELETE", target))
            assert_away(server.request("POST", "/x/count?1"))
            (tmp_path / "free").touch()
            printed(server, tmp_path, "")
        assert missing_of(server, target) == 0


def test_a_directory_that_is_gone_for_a_while(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with running(serve(tmp_path, f"spool:{disk}/jobs")) as server:
        target = server.started("/x/flood")
        server.begun(target, FLOOD_LINE % 9900)
        disk.rename(tmp_path / "elsewhere")
        (tmp_path / "full").touch()
        printed(server, tmp_path, "free")
        for view in ("log", "status", "page", "result", "events"):
            assert_away(server.request("GET", f"{target}&_view={view}"))
        assert_away(server.request("DELETE", target))
        assert server.request("POST", "/x/count?1").status in (500, 503)  # 500 where a process is to begin with that
        (tmp_path / "elsewhere").rename(disk)
        (tmp_path / "free").touch()
        assert missing_of(server, target) == 0  # its file was open


# In Redis.

KEEPING = ("--appendonly", "yes", "--appendfsync", "always")


@pytest.fixture
def redis(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with RedisServer(*getattr(request, "param", ())) as server:
        yield server


def set_room(size: str, server: RedisServer) -> None:
    import redis as library

    with library.Redis.from_url(server.url) as client:
        client.config_set("maxmemory", size)


@pytest.mark.parametrize(
    ("redis", "fail", "mend", "answers"),
    [
        pytest.param((), RedisServer.pause, RedisServer.resume, False, id="paused"),
        pytest.param(KEEPING, RedisServer.kill, RedisServer.start, False, id="killed and started again"),
        pytest.param((), partial(set_room, "1"), partial(set_room, "0"), True, id="full"),
    ],
    indirect=["redis"],
)
def test_a_redis_server_that_is_away_for_a_while(
    redis: RedisServer,
    fail: Callable[[RedisServer], object],
    mend: Callable[[RedisServer], object],
    answers: bool,
    tmp_path: Path,
) -> None:
    with running(serve(tmp_path, redis.url, '{"timeout": 0.5}')) as server:
        target = server.started("/x/flood")
        server.begun(target, FLOOD_LINE % 9900)
        fail(redis)
        (tmp_path / "full").touch()
        printed(server, tmp_path, "free")
        if not answers:
            for view in ("log", "status", "page", "result", "events"):
                assert_away(server.request("GET", f"{target}&_view={view}"))
            assert_away(server.request("DELETE", target))
        assert_away(server.request("POST", "/x/count?1"))
        # Until its keeper comes to look, the job's output waits where it was printed, and none of it is missing.
        server.until(lambda reply: reply.text == "yes\n", "GET", "/dropped")
        mend(redis)
        (tmp_path / "free").touch()
        assert 0 < missing_of(server, target) < len(FLOOD) - ROOM
        assert server.ended(server.started("/x/count?1"))["state"] == "finished"


def test_a_redis_server_that_is_started_again_without_its_memory(redis: RedisServer, tmp_path: Path) -> None:
    with running(serve(tmp_path, redis.url)) as server:
        target = server.started("/x/stay")
        server.begun(target, "still here\n")
        redis.kill()
        redis.start()
        # Nobody knows of it any more, so it need not go on.
        server.until(lambda _: (tmp_path / "interrupted").exists(), "GET", "/fast")
        assert server.request("GET", f"{target}&_view=log").status == 404
        assert server.ended(server.started("/x/count?1"))["state"] == "finished"
