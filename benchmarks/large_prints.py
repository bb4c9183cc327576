"""What large prints cost: one job prints a lot in pieces of one size, while a viewer follows it and while none does.

``python -m benchmarks.large_prints``. Budgets: with a viewer at most twice the time without; at most 64 MiB of memory
above the idle process, beside the piece itself; a status is answered within 100 ms. And one print of 50, 100 and
200 MB, each of which must take about twice as long as the one before it.
"""

import argparse
import contextlib
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context

from bgmiddleware import Channel, Job, JobState, MemoryRegistry, Registry, Run
from bgmiddleware._running import call_function
from bgmiddleware.registries.spool import SpoolRegistry

from ._measure import header, verdict

__all__ = ["main"]

_MOST_RATIO = 2.0
_MOST_MIB = 64.0
_MOST_STATUS_MS = 100.0
_MIB = 1024 * 1024
_KEY = "0" * 31


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_prints", description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1000, help="how much a job prints (default: %(default)s)")
    parser.add_argument("--pieces", type=int, nargs="*", default=[4_000, 100 * 1024, _MIB, 16 * _MIB])
    options = parser.parse_args(arguments)

    print(header("Large prints"))
    for kind, opened in _registries():
        for megabytes in (50, 100, 200):
            with opened() as registry:
                seconds = _print(registry, megabytes * 10**6, 1)[0]
            print(f"{kind:8} one print of {megabytes:4} MB {seconds:8.2f} s")
        for size in options.pieces:
            count = max(1, options.megabytes * 10**6 // size)
            with opened() as registry:
                alone, _, _ = _print(registry, size, count)
            with opened() as registry, _followed(registry) as worst:
                followed, grown, _ = _print(registry, size, count)
            ratio = followed / alone
            memory = grown - size / _MIB
            print(
                f"{kind:8} {options.megabytes:5} MB in {size:9} B: alone {alone:6.2f} s, followed {ratio:5.2f} ×"
                f" (≤ {_MOST_RATIO}: {verdict(ratio, _MOST_RATIO)}), {memory:6.1f} MiB"
                f" (≤ {_MOST_MIB:.0f}: {verdict(memory, _MOST_MIB)}), status {worst[0]:6.1f} ms"
                f" (≤ {_MOST_STATUS_MS:.0f}: {verdict(worst[0], _MOST_STATUS_MS)})"
            )
    return 0


def _registries() -> Iterator[tuple[str, Callable[[], contextlib.AbstractContextManager[Registry]]]]:
    yield "memory", MemoryRegistry
    yield "spool", _spool


@contextlib.contextmanager
def _spool() -> Iterator[Registry]:
    with tempfile.TemporaryDirectory() as directory, SpoolRegistry(f"{directory}/jobs") as registry:
        yield registry


def _print(registry: Registry, size: int, count: int) -> tuple[float, float, int]:
    """Have a job print *count* pieces; return the seconds, the MiB that the process grew by, and the bytes."""
    key = f"{_KEY}1"
    registry.add(Job(key, "prints"))
    piece = "x" * (size - 1)
    before = _resident()
    most = [before]
    done = threading.Event()

    def measure() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], _resident())

    def work() -> None:
        for _ in range(count):
            print(piece)

    threading.Thread(target=measure, daemon=True).start()
    begun = time.perf_counter()
    Run(key, "prints", registry, call_function(work), Context())()
    seconds = time.perf_counter() - begun
    done.set()
    job = registry.get(key)
    assert job.state is JobState.FINISHED, job.reason
    assert job.output_end == size * count, job.output_end
    return seconds, (most[0] - before) / _MIB, job.output_end


@contextlib.contextmanager
def _followed(registry: Registry) -> Iterator[list[float]]:
    """Follow the job as a viewer does, and ask for its status all the time; yield the milliseconds of the worst one."""
    key = f"{_KEY}1"
    worst = [0.0]
    ended = threading.Event()

    def follow() -> None:
        while not ended.is_set():
            with contextlib.suppress(Exception):
                offset = 0
                while not registry.wait(key, offset, 1.0).state.ended:
                    offset = registry.read(key, Channel.OUTPUT, offset).end
                return
            time.sleep(0.001)

    def ask() -> None:
        while not ended.wait(0.02):
            begun = time.perf_counter()
            with contextlib.suppress(Exception):
                registry.get(key)
            worst[0] = max(worst[0], 1000 * (time.perf_counter() - begun))

    threads = [threading.Thread(target=target, daemon=True) for target in (follow, ask)]
    for thread in threads:
        thread.start()
    try:
        yield worst
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _resident() -> int:
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
