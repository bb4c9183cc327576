"""What ended jobs keep of a process's memory, and what is left of it when they are forgotten.

``python -m benchmarks.memory``. A process of its own runs jobs that print 10 KB each, on a registry in memory; then
their TTL is over. Resident memory above that of the process after its first jobs; the median of several processes.
"""

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

from bgmiddleware import BackgroundMiddleware, MemoryRegistry, marks
from bgmiddleware._jobs import key_of
from bgmiddleware.registries.base import END

from ._measure import header, verdict

__all__ = ["main"]

_MOST_KIB = 10.0
_MOST_LEFT_MIB = 2.0
_PAGE_KIB = 4
_LINES = 100
_LINE = "x" * 99
_HOUR = 3600.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; or be the process that is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--be-measured", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.be_measured:
        print(json.dumps(_measured(options.jobs)))
        return 0
    command = [sys.executable, "-m", "benchmarks.memory", "--be-measured", "--jobs", str(options.jobs)]
    rounds = [
        json.loads(subprocess.check_output(command, text=True, cwd=Path(__file__).parent.parent))
        for _ in range(options.rounds)
    ]
    kept, left = (statistics.median(each) for each in zip(*rounds, strict=True))
    print(header(f"Memory of {options.jobs} jobs that print 10 KB each"))
    kept_verdict = verdict(kept, _MOST_KIB, "memory kept for a job of 10 KB, KiB")
    print(f"kept for each: {kept:.1f} KiB; budget ≤ {_MOST_KIB:g}: {kept_verdict}")
    left_verdict = verdict(left, _MOST_LEFT_MIB, "memory left when all are forgotten, MiB")
    print(f"left when all are forgotten: {left:.1f} MiB; budget ≤ {_MOST_LEFT_MIB:g}: {left_verdict}")
    return 0


def _measured(jobs: int) -> tuple[float, float]:
    """Return how many KiB each job keeps, and how many MiB are left of all."""
    later = [0.0]
    registry = MemoryRegistry(max_jobs=10 * jobs, ttl=_HOUR, clock=lambda: time.time() + later[0])
    with BackgroundMiddleware(_print, when=marks.always, registry=registry) as app:
        for _ in range(50):
            _run(app)
        later[0] += 2 * _HOUR
        registry.evict(jobs)
        before = _resident()
        for _ in range(jobs):
            _run(app)
        kept = _resident() - before
        later[0] += 2 * _HOUR
        while registry.evict(1000).evicted:
            pass
        gc.collect()
        return kept / jobs, (_resident() - before) / 1024


def _print(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    for _ in range(_LINES):
        print(_LINE)
    start_response("204 No Content", [])
    return []


def _run(app: BackgroundMiddleware) -> None:
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    head: list[Any] = []
    for _ in app(environ, lambda status, headers: head.extend(headers)):
        pass
    app.registry.wait(key_of(dict(head)["Location"].rpartition("=")[2]), END, 60.0)


def _resident() -> float:
    """Return the resident memory of this process, in KiB."""
    return float(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_KIB


if __name__ == "__main__":
    sys.exit(main())
