"""What a registry costs: each one side by side, with few jobs in it and with many.

``python -m benchmarks.registries``; ``--redis redis://…`` measures that one too. Times are medians, in µs and ms. A
wake-up is the time from before an append until the ``wait`` of another thread, or of another process, has returned.
Budgets: a wake-up takes at most 0.5 ms in memory, 15 ms in a spool directory, 30 ms in Redis; looking a job up takes no
longer among many jobs than among few.
"""

import argparse
import contextlib
import importlib
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bgmiddleware import Channel, Job, JobState, MemoryRegistry, Registry
from bgmiddleware._jobs import key_of
from bgmiddleware.registries.base import END
from bgmiddleware.registries.spool import SpoolRegistry

from ._measure import header, verdict

__all__ = ["main"]

_RUNNER = "benchmark"
_WAKE_BUDGETS = {"memory": 0.5, "spool": 15.0, "redis": 30.0}
_MOST_GROWTH = 2.0
_DAY = 86_400.0
_LARGE = 1024 * 1024
_PAUSE = 0.005

Row = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; or be the other process, which waits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.registries", description=__doc__)
    parser.add_argument("--jobs", type=int, nargs="+", default=[10, 100_000], help="how many there are already")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--redis", metavar="URL", help="measure this one too; what is in it is not touched")
    parser.add_argument("--wake", nargs=2, metavar=("LOCATION", "COUNT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.wake:
        _say_when_woken(options.wake[0], int(options.wake[1]))
        return 0

    measured: dict[tuple[str, int], Row] = {}
    for count in options.jobs:
        for name in ("memory", "spool", *(["redis"] if options.redis else [])):
            with tempfile.TemporaryDirectory() as directory:
                location = {"spool": f"spool:{directory}/jobs", "redis": options.redis}.get(name, "memory:")
                measured[name, count] = _measured(location, count, options.calls)
    _report(measured, options.jobs, options.calls)
    return 0


def _open(location: str, **settings: Any) -> Registry:
    kind, _, rest = location.partition(":")
    if kind == "memory":
        return MemoryRegistry(**settings)
    if kind == "spool":
        return SpoolRegistry(rest, **settings)
    registry: Registry = importlib.import_module("bgmiddleware.registries.redis").RedisRegistry(location, **settings)
    return registry


def _measured(location: str, count: int, calls: int) -> Row:
    """Return what each call takes, in µs, among *count* ended jobs."""
    later = [0.0]
    run = random.randrange(10**9)  # the keys of one run are not those of another
    with _open(location, ttl=_DAY, max_jobs=count + 10 * calls, clock=lambda: time.time() + later[0]) as registry:
        for number in range(count):
            key = registry.add(Job(key_of(f"{run} old {number}"), "old")).key
            registry.request_cancel(key)
        keys = [key_of(f"{run} new {number}") for number in range(calls)]
        took = {
            "add": _timed(keys, lambda key: registry.add(Job(key, "new", request={"PATH_INFO": "/report" * 50}))),
            "get": _timed(keys, registry.get),
            "claim": _timed(keys, lambda key: registry.claim(key, _RUNNER, lease=_DAY)),
            "append 100 bytes": _timed(*_appends(registry, keys[0], calls)),
            "renew": _timed(keys, lambda key: registry.renew(key, _RUNNER, lease=_DAY)),
            "read 4 KiB somewhere": _timed(*_reads(registry, keys[1], calls)),
            "wake a thread": median(_woken_threads(registry, keys[2], max(1, calls // 20))),
        }
        if registry.shared:
            took["wake a process"] = median(_woken_processes(registry, location, keys[3], max(1, calls // 20)))
        took["finish"] = _timed(keys, lambda key: registry.finish(key, _RUNNER, JobState.FINISHED))
        took["evict, nothing is due"] = _timed(range(20), lambda _: registry.evict())
        later[0] = 2 * _DAY
        took.update(_evicted(registry))
    return took


def _timed(items: Sequence[Any], call: Callable[[Any], object]) -> float:
    took = []
    for item in items:
        begun = time.perf_counter()
        call(item)
        took.append(time.perf_counter() - begun)
    return median(took) * 1e6


def _appends(registry: Registry, key: str, calls: int) -> tuple[Sequence[int], Callable[[int], object]]:
    return range(0, 100 * calls, 100), lambda at: registry.append(key, Channel.OUTPUT, at, b"x" * 100, runner=_RUNNER)


def _reads(registry: Registry, key: str, calls: int) -> tuple[Sequence[int], Callable[[int], object]]:
    for offset in range(0, _LARGE, 65536):
        registry.append(key, Channel.OUTPUT, offset, b"x" * 65536, runner=_RUNNER)
    chance = random.Random(0)
    offsets = [chance.randrange(_LARGE - 4096) for _ in range(calls)]
    return offsets, lambda offset: registry.read(key, Channel.OUTPUT, offset, 4096)


def _evicted(registry: Registry) -> Row:
    """Forget all jobs; Redis does that by itself."""
    took, gone = [], 0
    while True:
        begun = time.perf_counter()
        evicted = registry.evict(100).evicted
        if not evicted:
            break
        took.append(time.perf_counter() - begun)
        gone += evicted
    return {"evict, for each job": sum(took) / gone * 1e6, "evict 100, the longest": max(took) * 1e6} if gone else {}


# Wake-ups: the other one says when it was woken, by the clock that all have in common.


def _woken_threads(registry: Registry, key: str, calls: int) -> Iterator[float]:
    woken: list[float] = []
    ready = threading.Semaphore(0)

    def wait() -> None:
        for offset in range(calls):
            registry.wait(key, offset, 60.0)
            woken.append(time.monotonic())
            ready.release()

    waiting = threading.Thread(target=wait)
    waiting.start()
    for offset, begun in _appended_now_and_then(registry, key, calls):
        ready.acquire()
        yield (woken[offset] - begun) * 1e6
    waiting.join()


def _woken_processes(registry: Registry, location: str, key: str, calls: int) -> Iterator[float]:
    command = [sys.executable, "-m", "benchmarks.registries", "--wake", location, str(calls)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent
    ) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdin.write(f"{key}\n")
        other.stdin.flush()
        other.stdout.readline()
        for _, begun in _appended_now_and_then(registry, key, calls):
            yield (float(other.stdout.readline()) - begun) * 1e6


def _appended_now_and_then(registry: Registry, key: str, calls: int) -> Iterator[tuple[int, float]]:
    for offset in range(calls):
        time.sleep(_PAUSE)  # so the other one waits again
        begun = time.monotonic()
        registry.append(key, Channel.OUTPUT, offset, b"x", runner=_RUNNER)
        yield offset, begun


def _say_when_woken(location: str, calls: int) -> None:
    with _open(location) as registry, contextlib.suppress(BrokenPipeError):
        key = sys.stdin.readline().strip()
        registry.wait(key, END, 0.01)
        print("ready", flush=True)
        for offset in range(calls):
            registry.wait(key, offset, 60.0)
            print(time.monotonic(), flush=True)


# What came of it.


def _report(measured: dict[tuple[str, int], Row], counts: Sequence[int], calls: int) -> None:
    print(header(f"Registries, medians of {calls} calls in µs"))
    names = list(dict.fromkeys(name for name, _ in measured))
    columns = [(name, count) for count in counts for name in names]
    print(f"{'':26}" + "".join(f"{f'{name}, {count:,}':>18}" for name, count in columns))
    for call in dict.fromkeys(call for row in measured.values() for call in row):
        cells = (measured[column].get(call) for column in columns)
        print(f"{call:26}" + "".join(f"{'–' if cell is None else f'{cell:,.1f}':>18}" for cell in cells))
    for name in names:
        few, many = measured[name, counts[0]], measured[name, counts[-1]]
        wake = max(took for call, took in few.items() if call.startswith("wake")) / 1000
        budget = _WAKE_BUDGETS[name]
        print(f"{name}: wakes within {wake:.2f} ms, budget {budget:g}: {verdict(wake, budget)}", end="; ")
        growth = many["get"] / few["get"]
        print(f"a look among many is {growth:.2f} × one among few, budget {_MOST_GROWTH:g}:", end=" ")
        print(verdict(growth, _MOST_GROWTH))


if __name__ == "__main__":
    sys.exit(main())
