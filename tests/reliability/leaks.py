"""Run many jobs, and see that they leave threads, descriptors, files, objects and memory where they were.

``python -m tests.reliability.leaks memory --jobs 10000``, or ``spool``, or ``redis``: prints what there was before and
after; the status is other than 0 where something stayed.
"""

import argparse
import contextlib
import ctypes
import gc
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from bgmiddleware import BackgroundMiddleware, MemoryRegistry, Registry, ThreadExecutor, marks
from bgmiddleware._jobs import key_of
from bgmiddleware._starting import early
from bgmiddleware.errors import JobExpired, JobNotFound
from bgmiddleware.registries.base import END
from bgmiddleware.registries.spool import SpoolRegistry
from tests.kit.clients import InProcess
from tests.kit.processes import LONG
from tests.kit.redis_server import RedisServer
from tests.reliability.fuzz import rss

__all__ = ["KINDS", "MEMORY", "Counts", "leaks", "left_by"]

KINDS = ("memory", "spool", "redis")
MEMORY = 8 * 1024 * 1024
"""How many bytes of memory 10,000 jobs may leave. Some MiB are what malloc cannot give back, since it is in pieces; a
leak of 800 bytes a job is found, and jobs that stay by the count of objects."""

_LIMITS: dict[str, Any] = {"ttl": 2.0, "max_jobs": 100}
_CLIENTS = 4
_WARM_UP = 300  # jobs, until what is kept once is there
_THREADS = 2  # those for what waits and for what runs come when there is something, and go a while later
_DESCRIPTORS = 9  # three connections of SQLite, where more threads than ever met at once
_OBJECTS = 1.5  # that may be left by each job: one that stays is dozens; caches differ by some hundred


class Counts(NamedTuple):
    """What there is at one time. *stored*: files of jobs, or keys of jobs in a server that stay for ever."""

    threads: int
    descriptors: int
    stored: int
    objects: int
    memory: int


def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Print and answer more than is kept in memory, now and then."""
    large = environ["QUERY_STRING"].endswith("0")
    for line in range(10):
        print("line", line, "x" * (40_000 if large else 40))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"x" * (400_000 if large else 400)]


@contextlib.contextmanager
def _opened(kind: str) -> Iterator[tuple[Registry, Callable[[], int]]]:
    """Give a registry, and how much it stores by now."""
    with contextlib.ExitStack() as stack:
        if kind == "memory":
            yield stack.enter_context(MemoryRegistry(**_LIMITS)), lambda: 0  # its files have no names
        elif kind == "spool":
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bg-leaks-")), "jobs")
            yield (
                stack.enter_context(SpoolRegistry(directory, **_LIMITS)),
                lambda: sum(path.is_file() and "." not in path.name[:1] for path in directory.glob("??/*")),
            )
        else:
            import redis

            from bgmiddleware.registries.redis import RedisRegistry

            server = stack.enter_context(RedisServer())
            client = stack.enter_context(redis.Redis.from_url(server.url))
            yield (
                stack.enter_context(RedisRegistry(server.url, **_LIMITS)),
                lambda: sum(client.ttl(key) == -1 for key in client.keys("bg:*")),
            )


def _run(site: BackgroundMiddleware, numbers: Iterable[int], clients: int = _CLIENTS) -> None:
    """Start a job for each number, follow it, and read what it answered."""

    def run(number: int) -> None:
        client = InProcess(site)
        deadline = time.monotonic() + LONG
        while (reply := client.request("POST", f"/report?{number}")).status != 303:
            assert reply.status in (410, 503), reply  # 410: it ended and expired before this client was told of it
            assert time.monotonic() < deadline
        target = f"/report{reply['Location']}"
        # So short a time may be over before a job was read, or in the middle of that.
        with contextlib.suppress(JobExpired, JobNotFound):
            site.registry.wait(key_of(target.rpartition("=")[2]), END, LONG)
            for view in ("log", "result", "status"):
                assert client.request("GET", f"{target}&_view={view}").status in (200, 404, 410)

    with ThreadPoolExecutor(clients) as pool:
        for _ in pool.map(run, numbers):
            pass


def _counted(site: BackgroundMiddleware, stored: Callable[[], int]) -> Counts:
    """Count, when all jobs are forgotten."""
    deadline = time.monotonic() + LONG
    while site.registry.jobs() or stored():
        site.registry.evict()
        assert time.monotonic() < deadline, (site.registry.jobs(), stored())
        time.sleep(0.05)
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", int)(0)  # what it keeps for later is no leak
    threads = [thread for thread in threading.enumerate() if not thread.name.startswith("ThreadPoolExecutor")]
    return Counts(len(threads), len(os.listdir("/proc/self/fd")), stored(), len(gc.get_objects()), rss())


def left_by(kind: str, jobs: int) -> tuple[Counts, Counts]:
    """Return what there is before and after so many jobs."""
    before = early._GRACE, early._QUEUED
    early._GRACE = early._QUEUED = 0.0
    try:
        with (
            _opened(kind) as (registry, stored),
            BackgroundMiddleware(
                answer,
                when=marks.always,
                registry=registry,
                executor=ThreadExecutor(max_workers=4),
            ) as site,
        ):
            _run(site, range(_WARM_UP), 3 * _CLIENTS)  # so connections and threads are there that are kept
            first = _counted(site, stored)
            _run(site, range(jobs))
            return first, _counted(site, stored)
    finally:
        early._GRACE, early._QUEUED = before


def leaks(before: Counts, after: Counts, jobs: int) -> list[str]:
    """Return what has grown by more than it may."""
    most = Counts(_THREADS, _DESCRIPTORS, 0, int(_OBJECTS * jobs), MEMORY)
    return [
        f"{name}: {was} before, {now} after {jobs} jobs"
        for name, was, now, may in zip(Counts._fields, before, after, most, strict=True)
        if now - was > may
    ]


def main() -> int:
    """Run jobs, and print figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.leaks", description=__doc__)
    parser.add_argument("registry", choices=KINDS)
    parser.add_argument("--jobs", type=int, default=10_000)
    chosen = parser.parse_args()
    if "PYTHONMALLOC" not in os.environ:  # by itself Python keeps more of what is in pieces, and gives none of it back
        command = [sys.executable, "-m", "tests.reliability.leaks", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, "PYTHONMALLOC": "malloc"})
    begun = time.monotonic()
    before, after = left_by(chosen.registry, chosen.jobs)
    print(f"{chosen.registry}: {chosen.jobs} jobs in {time.monotonic() - begun:.0f} s")
    print(f"before: {before}\nafter:  {after}")
    found = leaks(before, after, chosen.jobs)
    print("\n".join(found) or "nothing is left")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
