"""The app of ``python -m demo.fleet``: the web process serves it, and the workers of RQ load it to run its jobs."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from bgmiddleware import BackgroundMiddleware, marks, track
from bgmiddleware.executors.rq import RQExecutor
from bgmiddleware.registries.redis import RedisRegistry

from . import PAUSE

URL = os.environ.get("DEMO_REDIS_URL", "redis://localhost:6379/0")

PAGE = """<!doctype html><title>A fleet</title>
<h1>A fleet</h1>
<p>Start <a href="/count/60">a job of a minute</a>, or several, and look at <a href="/jobs">all of them</a>.
<p>The page of a job says which process runs it. Kill that one, or its worker, and see what the page says.
"""


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
    if not environ["PATH_INFO"].startswith("/count/"):
        start_response("200 OK", [("Content-Type", "text/html; charset=utf-8")])
        yield PAGE.encode()
        return
    print(f"This is process {os.getpid()} of {socket.gethostname()}, a child of the worker {os.getppid()}.")
    for step in track(range(1, 61), "steps"):
        time.sleep(PAUSE)
        print(f"Step {step} is done.")
    start_response("200 OK", [("Content-Type", "text/plain; charset=utf-8")])
    yield b"Counted to 60.\n"


application = BackgroundMiddleware(
    app,
    when=marks.path("/count/*"),
    registry=RedisRegistry(URL),
    executor=RQExecutor(URL),
    dashboard="/jobs",
    authorize=lambda environ: True,  # it is served to this machine only
)
