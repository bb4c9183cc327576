"""The list of all jobs: how long its pages take among 10,000 jobs, and what fifty open ones cost an unrelated view.

``python -m benchmarks.dashboard [--redis redis://…]``. Budgets: the first page takes 100 ms of server time; while fifty
clients ask for it at the pace that it says, an unrelated view takes at most 1.5 × as long (median).
"""

import argparse
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Any

from bgmiddleware import BackgroundMiddleware, Job, JobState, MemoryRegistry, Registry, marks
from bgmiddleware._jobs import key_of
from bgmiddleware.registries.redis import RedisRegistry
from bgmiddleware.registries.spool import SpoolRegistry
from bgmiddleware.testing.clients import InProcess

from ._measure import header, verdict

__all__ = ["main"]

_RUNNER = "benchmark"
_BUDGET = 100.0  # ms
_EVERY = 5.0  # seconds: the least that the list says
_PAGES = {
    "first page": "",
    "failed": "?state=failed",
    "one owner": "?owner=ada",
    "a text that none has": "?text=nothing+like+it",
    "JSON": "",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dashboard", description=__doc__)
    parser.add_argument("--redis", metavar="URL", help="an empty server")
    parser.add_argument("--only", choices=("memory", "spool", "redis"))
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--pings", type=int, default=300)
    options = parser.parse_args(arguments)
    print(header(f"The list of {options.jobs} jobs, in ms: least, median, longest, and of a processor"))
    print(f"budget of a first page: {_BUDGET:g} ms; of a view beside 50 lists: 1.5 × alone")
    for name, registry in _registries(options.redis):
        if options.only in (None, name):
            _fill(registry, options.jobs)
            _pages(name, registry, options.times)
            _unrelated(name, registry, options.pings)
        registry.close()
    return 0


def _registries(url: str | None) -> Iterator[tuple[str, Registry]]:
    yield "memory", MemoryRegistry()
    with tempfile.TemporaryDirectory() as directory:
        yield "spool", SpoolRegistry(f"{directory}/jobs")
    if url is not None:
        yield "redis", RedisRegistry(url, prefix=f"dashboard-{time.time():.0f}")


def _fill(registry: Registry, count: int) -> None:
    for number in range(count):
        asked = {"method": "GET", "path": f"/reports/{'abcdefgh'[number % 8]}/*"}
        title = f"GET /reports/{'abcdefgh'[number % 8]}/{number}"
        key = registry.add(Job(key_of(f"{number}"), title, owner=f"user {number % 100}", asked=asked)).key
        registry.claim(key, _RUNNER, lease=3600.0)
        state = JobState.FAILED if number % 100 == 0 else JobState.FINISHED
        registry.finish(key, _RUNNER, state, reason="ValueError: no" if state is JobState.FAILED else "")


def _site(registry: Registry) -> Any:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"ok"]

    options: dict[str, Any] = {"dashboard": "/_jobs", "authorize": lambda environ: True}
    return BackgroundMiddleware(app, when=marks.never, registry=registry, **options)


def _pages(name: str, registry: Registry, times: int) -> None:
    client = InProcess(_site(registry))
    for page, query in _PAGES.items():
        accept = "application/json" if page == "JSON" else "text/html"
        used = time.thread_time()
        took = _timed(partial(client.request, "GET", f"/_jobs{query}", accept=accept), times)
        used = 1000 * (time.thread_time() - used) / (times + 1)
        told = verdict(median(took), _BUDGET, f"dashboard {name} {page}") if page == "first page" else ""
        print(f"{name:8}{page:24}{min(took):8.1f}{median(took):8.1f}{max(took):8.1f}{used:8.1f}  {told}", flush=True)


def _timed(call: Callable[[], object], times: int) -> list[float]:
    call()
    took = []
    for _ in range(times):
        begun = time.perf_counter()
        call()
        took.append(1000 * (time.perf_counter() - begun))
    return took


def _unrelated(name: str, registry: Registry, pings: int) -> None:
    """Measure a view of the same process, alone, and while fifty lists are open: together they ask ten times a
    second."""
    client = InProcess(_site(registry))

    def ping() -> None:
        client.request("GET", "/other")
        time.sleep(0.005)

    alone = median(_timed(ping, pings))
    ended = threading.Event()

    def look() -> None:
        with contextlib.suppress(Exception):
            while not ended.wait(_EVERY / 50):
                client.request("GET", "/_jobs", accept="text/html")

    viewer = threading.Thread(target=look)
    viewer.start()
    try:
        beside = median(_timed(ping, pings))
    finally:
        ended.set()
        viewer.join()
    told = verdict(beside / alone, 1.5, f"a view beside 50 dashboards, {name}")
    print(f"{name:8}{'another view':24}{alone:16.2f}{beside:8.2f}  {told}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
