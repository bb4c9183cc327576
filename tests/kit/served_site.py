"""An app for servers that are real processes; how it is served, its environment variables say.

``SITE_REGISTRY``: where jobs are kept, as an ini file would say it; ``SITE_REGISTRY_OPTIONS``: more of it, as JSON.
``SITE_SETTINGS``: arguments of the middleware, as JSON. ``SITE_LEASE``: seconds of a lease. ``SITE_DRAIN``: seconds
that jobs get at the end. ``SITE_BOUND``: seconds that a follower is held where there is a bound. ``SITE_SIGN``: seconds
between two signs of life. ``SITE_WORKERS``: how many run at a time. ``SITE_EXECUTOR``: where they run, as an ini file
would say it. ``SITE_THREADS``: none of ours begins while this file is there. A view that waits for something waits for
a file in ``SITE_DIRECTORY``. Each response says in ``Worker`` which process gave it.
"""

import gc
import json
import os
import random
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bgmiddleware import BackgroundMiddleware, Executor, background, marks, owners
from bgmiddleware._running import keeper, run, waiting
from bgmiddleware._serving import connections, log
from bgmiddleware._starting import starter
from bgmiddleware.executors import open_executor
from bgmiddleware.executors._engines import sites
from bgmiddleware.executors._processes import watching
from bgmiddleware.registries import open_registry

FLOOD_LINE = "%010d " + "x" * 88 + "\n"  # where it is, so that each line says which bytes it is
WAIT = 600.0  # never reached by a test that passes
_DIRECTORY = Path(os.environ.get("SITE_DIRECTORY", "."))


def _wait_for(name: str) -> None:
    until = time.monotonic() + WAIT
    while not (_DIRECTORY / name).exists():
        assert time.monotonic() < until, f"the test never made {name}"
        time.sleep(0.01)


def _count(query: str) -> str:
    """Print so many lines."""
    number = int(query.partition("&")[0])
    for line in range(number):
        print("line", line)
    return f"{number} lines"


def _wait(query: str) -> str:
    """Print, wait for a file, print again."""
    print("begun")
    _wait_for(query.partition("&")[0])
    print("ended")
    return "it came"


def _burn(query: str) -> str:
    """Keep the processor busy until a file is there, without a print or a pause; say by ``burning`` that it begins."""
    print("begun")
    (_DIRECTORY / "burning").touch()
    until = time.monotonic() + WAIT
    while not os.path.exists(_DIRECTORY / query.partition("&")[0]):
        assert time.monotonic() < until, "the test never made the file"
    return "burnt"


def _stay(query: str) -> str:
    """Print for ever."""
    try:
        while True:
            print("still here")
            time.sleep(0.01)
    finally:
        (_DIRECTORY / "interrupted").touch()


def _lines(query: str) -> str:
    """Print numbered lines, as fast or slow as it comes."""
    name, _, number = query.partition("&")
    chance = random.Random(name)
    for line in range(int(number)):
        print(f"{name}: {line}")
        if not line % 20:
            time.sleep(chance.random() * 0.05)
    return f"{name} is done"


def _large(query: str) -> str:
    """Answer with so many bytes, each time the same."""
    print("making", query)
    return random.Random(query).randbytes(int(query.partition("&")[0])).hex()


def _talk(query: str) -> str:
    """Print a numbered line, again and again, until a file is there; say how many those are."""
    lines = 0
    until = time.monotonic() + WAIT
    while not (_DIRECTORY / query.partition("&")[0]).exists():
        assert time.monotonic() < until, "the test never made the file"
        print(f"{lines:07d}")
        lines += 1
        time.sleep(0.01)
    return f"{lines} lines"


def _flood(query: str) -> str:
    """Print some lines, wait for ``full``, print 4 MB, say so by a file, wait for ``free``, print some more."""
    size = 0
    for name, lines in (("full", 100), ("free", 40_000), ("", 100)):
        for _ in range(lines):
            size += len(FLOOD_LINE % size)
            print(FLOOD_LINE % (size - len(FLOOD_LINE % 0)), end="")
        (_DIRECTORY / f"printed-{name}").touch()
        if name:
            _wait_for(name)
    return f"{size} bytes"


def _dropped(query: str) -> str:
    """Whether a job of this process printed what is kept nowhere, since its registry is away."""
    keepers = [thing for thing in gc.get_objects() if isinstance(thing, keeper.Keeper)]
    return "yes" if any(map(_has_dropped, keepers)) else "no"


def _has_dropped(it: keeper.Keeper) -> bool:
    with it._changed:
        waiting = b"".join((it._chunk, *(data for data, _, _ in it._waiting)))
        return it._dropped_from is not None or b"could not be stored" in waiting


_VIEWS = {
    "/dropped": _dropped,
    "/x/flood": _flood,
    "/x/lines": _lines,
    "/x/large": _large,
    "/x/count": _count,
    "/x/wait": _wait,
    "/x/burn": _burn,
    "/x/stay": _stay,
    "/x/talk": _talk,
}


ODD_STATUS = "207 Odd Reason"
ODD_HEADERS = [("Content-Type", "application/x-odd"), ("X-Twice", "one"), ("X-Twice", "two"), ("X-Text", "a, \t!")]
ODD_BODY = bytes(range(256)) * 64


@background
def _in_the_background(environ: dict[str, Any]) -> str:
    print("begun by a decorator")
    return "done by a decorator"


def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/x/odd":
        start_response(ODD_STATUS, ODD_HEADERS)
        return [ODD_BODY[:1000], ODD_BODY[1000:]]
    if environ["PATH_INFO"] == "/decorated":
        _in_the_background(environ)
    view = _VIEWS.get(environ["PATH_INFO"])
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    text = "fast" if view is None else view(environ["QUERY_STRING"])
    start_response("200 OK", [("Content-Type", "text/plain"), ("Ran-In", str(os.getpid()))])
    return [f"{text}\n".encode(), body]


def _executor(name: str) -> Executor:
    if name not in ("thread", "process"):
        return open_executor(name)
    drain = float(os.environ.get("SITE_DRAIN", "10"))
    app = {"app": "tests.kit.served_site:middleware"} if name == "process" else {}
    return open_executor(name, drain=drain, max_workers=int(os.environ.get("SITE_WORKERS", "8")), **app)


def _refuse_threads(name: str) -> None:
    start = threading.Thread.start

    def start_or_refuse(thread: threading.Thread) -> None:
        if thread.name.startswith("bgmiddleware") and (_DIRECTORY / name).exists():
            raise RuntimeError("can't start new thread")
        start(thread)

    threading.Thread.start = start_or_refuse  # type: ignore[method-assign]


def _made() -> BackgroundMiddleware:
    lease = os.environ.get("SITE_LEASE")
    if lease is not None:
        for module in (keeper, run, starter, waiting, sites, watching):
            for name, seconds in {"LEASE": float(lease), "RENEW_EVERY": float(lease) / 8}.items():
                if hasattr(module, name):
                    setattr(module, name, seconds)
    if "SITE_THREADS" in os.environ:
        _refuse_threads(os.environ["SITE_THREADS"])
    if "SITE_SIGN" in os.environ:
        log.SIGN_EVERY = log.SIGN_EVERY_TO_PROXY = float(os.environ["SITE_SIGN"])
        log.LOOK_EVERY = 0.1
    connections._BOUND = float(os.environ.get("SITE_BOUND", "25"))
    return BackgroundMiddleware(
        answer,
        when=marks.any_of(marks.path("/x/*"), marks.prefers_async),
        registry=open_registry(
            os.environ.get("SITE_REGISTRY", "memory:"), **json.loads(os.environ.get("SITE_REGISTRY_OPTIONS", "{}"))
        ),
        executor=_executor(os.environ.get("SITE_EXECUTOR", "thread")),
        owner=owners.header("X-User"),
        dashboard="/_jobs",
        authorize=lambda environ: environ.get("HTTP_X_USER") == "admin",
        **json.loads(os.environ.get("SITE_SETTINGS", "{}")),
    )


middleware = _made()


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        return start_response(status, [*headers, ("Worker", str(os.getpid()))], exc_info)

    return middleware(environ, start)


print("the app is there", flush=True)
