"""What it costs to keep jobs alive that wait in the memory of a process, on registries that processes share.

``python -m benchmarks.waiting``. Budgets: at most 2 % of a processor for 100,000 of them, the server of Redis included,
and none of them reads as lost.
"""

import argparse
import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextvars import Context

from bgmiddleware import Job, JobState, Registry, Run
from bgmiddleware._jobs import key_of
from bgmiddleware._running import LEASE, Waiting, call_function
from bgmiddleware.registries.redis import RedisRegistry
from bgmiddleware.registries.spool import SpoolRegistry

from ._measure import header, verdict

__all__ = ["main"]

_MOST_PERCENT = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waiting", description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000, help="how many wait (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="for how long (default: %(default)s)")
    parser.add_argument(
        "--redis", help="the URL of a Redis whose keys may be used; without it only a spool is measured"
    )
    options = parser.parse_args(arguments)

    print(header(f"{options.jobs:,} jobs that wait"))
    for kind, registry in _registries(options.redis, options.jobs):
        waiting = Waiting(registry)
        runs = []
        for number in range(options.jobs):
            key = key_of(f"{kind} {number}")
            registry.add(Job(key, "waits", process=waiting.process), lease=LEASE)
            runs.append(Run(key, "waits", registry, call_function(lambda: None), Context()))
            waiting.hold(runs[-1])
        before, server_before = _cpu(), _cpu_of_redis(options.redis)
        time.sleep(options.seconds)
        used = _cpu() - before + _cpu_of_redis(options.redis) - server_before
        percent = 100 * used / options.seconds
        sample = random.sample(runs, min(1000, len(runs)))
        lost = sum(registry.get(run.key).state is not JobState.PENDING for run in sample)
        waiting.close()
        print(
            f"{kind:8}{percent:6.2f} % of a processor (≤ {_MOST_PERCENT}: {verdict(percent, _MOST_PERCENT)}),"
            f" {lost} of {len(sample)} looked at read as lost (≤ 0: {verdict(lost, 0)})"
        )
    return 0


def _registries(url: str | None, jobs: int) -> Iterator[tuple[str, Registry]]:
    with tempfile.TemporaryDirectory() as directory, SpoolRegistry(f"{directory}/jobs", max_jobs=2 * jobs) as spool:
        yield "spool", spool
    if url is not None:
        with RedisRegistry(url, prefix=f"benchmark-{os.getpid()}", max_jobs=2 * jobs) as redis:
            yield "Redis", redis


def _cpu() -> float:
    return sum(os.times()[:2])


def _cpu_of_redis(url: str | None) -> float:
    if url is None:
        return 0.0
    import redis

    with contextlib.closing(redis.Redis.from_url(url)) as client:
        used = client.info("cpu")
    return float(used["used_cpu_sys"]) + float(used["used_cpu_user"])


if __name__ == "__main__":
    sys.exit(main())
