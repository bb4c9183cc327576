"""The app of ``benchmarks.executors``; the web process and the workers make it as BENCHMARK_EXECUTOR says."""

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from bgmiddleware import BackgroundMiddleware, marks
from bgmiddleware.executors import open_executor
from bgmiddleware.registries import open_registry

__all__ = ["make"]

LINE = "x" * 99


def view(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """``/lines/N`` prints N lines at once; ``/times/N`` prints the time, N times, 30 ms apart."""
    _, kind, count = environ["PATH_INFO"].split("/")
    for _ in range(int(count)):
        if kind == "times":
            print(repr(time.time()), flush=True)
            time.sleep(0.03)
        else:
            print(LINE)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done\n"]


def make(executor: str, registry: str) -> BackgroundMiddleware:
    """Return the app over the executor and the registry of these names."""
    options = {"app": "benchmarks._executor_app:app"} if executor == "process" else {}
    return BackgroundMiddleware(
        view, when=marks.always, registry=open_registry(registry), executor=open_executor(executor, **options)
    )


def __getattr__(name: str) -> Any:
    """Make what a worker asks for when it asks: Celery need not be there for the others."""
    if name == "app":
        return make(*os.environ["BENCHMARK_EXECUTOR"].split(" "))
    if name == "celery":
        from celery import Celery

        globals()["celery"] = Celery("benchmark", broker=os.environ["BENCHMARK_BROKER"])
        return globals()["celery"]
    raise AttributeError(name)
