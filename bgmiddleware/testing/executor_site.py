"""The app of the executor contract: worker processes import it as ``bgmiddleware.testing.executor_site:app``.

How it is set up they read from the environment; the tests direct its views over a socket, see :class:`Stage`.
"""

import contextlib
import ctypes
import importlib
import itertools
import json
import logging
import multiprocessing
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any

from .. import marks
from .._capture import detached
from .._context import current_job, progress
from .._ground.loading import loaded
from .._middleware import BackgroundMiddleware
from .._running import keeper, run, waiting
from .._starting import starter
from ..executors._engines import sites
from ..executors._processes import watching
from ..executors.base import Executor
from ..registries import open_registry

NAME = "bgmiddleware.testing.executor_site:app"
VARIABLE = "BGMIDDLEWARE_TEST_APP"
WAIT = 120.0  # never reached by a test that passes

log: logging.Logger = logging.getLogger("shop")  # to a file, as on a real site
log.propagate = False
log.addHandler(logging.FileHandler(os.devnull, delay=True))


class Stage:
    """Where the views of jobs, in whatever process, meet the test: each says who it is and waits for its word."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(WAIT)
        self.port: int = self._listener.getsockname()[1]
        self._arrived: list[tuple[str, socket.socket]] = []

    def arrival(self) -> tuple[str, socket.socket]:
        """Wait for the next view that comes; return what it says and the connection to it."""
        connection, _ = self._listener.accept()
        connection.settimeout(WAIT)
        self._arrived.append(("", connection))
        return connection.recv(1000).decode(), connection

    def close(self) -> None:
        """Let everybody go."""
        self._listener.close()
        for _, connection in self._arrived:
            connection.close()


def go(connection: socket.socket) -> None:
    """Let a view that arrived take its next step."""
    connection.sendall(b"go\n")


@contextlib.contextmanager
def on_stage(name: str) -> Iterator[Callable[[], object]]:
    """A view's side of it: give a function that waits for the test's word, and goes on where the test has left."""
    with socket.create_connection(("127.0.0.1", config()["stage"])) as connection:
        connection.sendall(name.encode())
        yield lambda: connection.recv(3)


def config() -> Any:
    """Return how the app is set up."""
    return json.loads(os.environ[VARIABLE])


def view(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    name = environ["PATH_INFO"].strip("/").partition("/")[0]
    answer: Callable[[dict[str, Any]], bytes] = globals()[f"view_{name}"]
    body = answer(environ)
    start_response("201 Created", [("Content-Type", "text/plain"), ("X-Made-By", "the app"), ("Set-Thing", "1")])
    return [body[:3], body[3:]]


def view_demo(environ: dict[str, Any]) -> bytes:
    """What a view does that knows nothing of jobs."""
    print("reading what was sent")
    sent: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    for number in range(3):
        print("row", number, end="\n" if number else " …\n")
    sys.stdout.write("no end of line, ünïcode ☃")
    sys.stdout.flush()
    print()
    sys.stderr.write("a warning\n")
    sys.stdout.buffer.write(b"bytes \xff\n")
    log.warning("logged %d", 1)
    subprocess.run(["echo", "from a child"], stdout=sys.stdout, check=True)
    environ["wsgi.errors"].write("an error\n")
    progress(3, 3, "done")
    return b"you sent " + sent + str(environ["QUERY_STRING"]).encode()


def view_steps(environ: dict[str, Any]) -> bytes:
    """Print a line for each word of the test."""
    with on_stage(environ["PATH_INFO"]) as next_step:
        for number in range(1, 4):
            next_step()
            print("line", number)
    return b"done"


def view_stamps(environ: dict[str, Any]) -> bytes:
    """Print what time it is, now and then."""
    for number in range(12):
        print(time.time(), flush=bool(number % 2))
        time.sleep(0.12)
    return b"done"


def view_imports(environ: dict[str, Any]) -> bytes:
    """Need what is not there, only now."""
    print("about to import")
    importlib.import_module("no_such_module_of_the_shop")
    return b"never"


def view_obeys(environ: dict[str, Any]) -> bytes:
    """Go on until it is told to stop, looking often."""
    print("obedient")
    with on_stage("obeys"):
        try:
            while True:
                current_job().check()
                time.sleep(0.01)
        finally:
            print("cleaned up")


def view_sleeps(environ: dict[str, Any]) -> bytes:
    """Be in one long call, which lets other threads run."""
    print("falling asleep")
    with on_stage("sleeps"):
        try:
            time.sleep(1000)
        finally:
            print("woken up")
    return b"slept"


def view_hogs(environ: dict[str, Any]) -> bytes:
    """Be in one long call, which lets nothing else of Python run in this process; with a query, when it is told to."""
    print("taking the lock")
    if environ["QUERY_STRING"]:
        with on_stage("about to hog") as next_step:
            next_step()
    with on_stage("hogs"):
        return b"%d" % sum(itertools.repeat(1))


def view_children(environ: dict[str, Any]) -> bytes:
    """Wait for a child that has a child. None ends by itself; a connection to the stage that they hold tells when."""
    print("giving birth")
    _begun_children().wait()
    return b"they left"


def view_leaves(environ: dict[str, Any]) -> bytes:
    """End as soon as it is told to stop, and leave its children alone."""
    print("giving birth")
    _begun_children()
    while True:
        current_job().check()
        time.sleep(0.01)


def _begun_children() -> "subprocess.Popen[bytes]":
    stage = socket.create_connection(("127.0.0.1", config()["stage"]))
    os.set_inheritable(stage.fileno(), True)
    stage.sendall(b"children")
    command = ["sh", "-c", "trap '' TERM; sleep 1000; sleep 1000"]
    child = subprocess.Popen(command, close_fds=False)
    stage.close()
    return child


def view_raises(environ: dict[str, Any]) -> bytes:
    print("about to fail")
    raise ValueError("no such report")


def view_descriptors(environ: dict[str, Any]) -> bytes:
    """Print in all ways that there are, by turns."""
    c = ctypes.CDLL(None)
    print(1)
    os.write(1, b"2\n")
    print(3, file=sys.stderr)
    c.printf(b"4\n")
    sys.stdout.write("5\n")
    os.system("echo 6; echo 7 >&2")
    subprocess.run(["echo", "8"], check=True)
    print(9)
    c.puts(b"10")
    return b""


def view_alternates(environ: dict[str, Any]) -> bytes:
    """Print by turns in Python and below it, often enough to meet whoever looks into the output meanwhile: 200,000
    numbers, or as many as fit into ten seconds. Return how many."""
    number, until = 0, time.monotonic() + 10.0
    while number < 200_000 and time.monotonic() < until:
        print(number)
        os.write(1, b"%d\n" % (number + 1))
        number += 2
    return b"%d" % number


def view_dies(environ: dict[str, Any]) -> bytes:
    """Be killed together with the process, in mid-line, when the test says so."""
    print("the first words")
    with on_stage("dies") as next_step:
        next_step()
        sys.stdout.write("the last words")
        sys.stdout.flush()
        os.kill(os.getpid(), 9)
    return b"never"


def view_crashes(environ: dict[str, Any]) -> bytes:
    """Print a lot, to the last byte before the end, and end in the way that the query says."""
    way, _, lines = environ["QUERY_STRING"].partition(".")
    for number in range(int(lines or 1)):
        print("line", number)
    os.write(1, b"the last words")
    match way:
        case "segv":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "hangs-up":
            os.closerange(3, 1000)
            time.sleep(1000)
        case "sys-exit":
            sys.exit("no more")
    return b""


def view_eats(environ: dict[str, Any]) -> bytes:
    """Take as many bytes as the query says."""
    print("hungry")
    return b"%d" % len(bytearray(int(environ["QUERY_STRING"])))


def view_defies(environ: dict[str, Any]) -> bytes:
    """Go on whatever is raised."""
    print("defiant")
    with on_stage("defies"):
        while True:
            with contextlib.suppress(BaseException):
                time.sleep(1000)


def view_forks(environ: dict[str, Any]) -> bytes:
    """Print in children of each kind that Python has."""
    print("in the job")
    pid = os.fork()
    if not pid:
        print("in a fork")
        os._exit(0)
    os.waitpid(pid, 0)
    for kind in ("fork", "spawn"):
        context: Any = multiprocessing.get_context(kind)
        child = context.Process(target=print, args=(f"in a process by {kind}",))
        child.start()
        child.join()
    return b""


def view_floods(environ: dict[str, Any]) -> bytes:
    """Print more than a pipe holds, in C code that keeps the lock of Python meanwhile."""
    print("begin")
    data = b"flood\n" * 500_000
    ctypes.PyDLL(None).write(1, data, ctypes.c_size_t(len(data)))
    print("end")
    return b""


def view_pools(environ: dict[str, Any]) -> bytes:
    """Have a pool of forked processes, which is ended by a signal."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply(print, ["in a pool"])
    print("in the job")
    return b""


_given_away: list[int] = []


def view_gives_away(environ: dict[str, Any]) -> bytes:
    """Close descriptor 1, so that the next file is given its number: the file that the query names."""
    print("before")
    sys.stdout.flush()
    os.close(1)
    _given_away.append(os.open(environ["QUERY_STRING"], os.O_RDWR | os.O_CREAT, 0o600))
    print("after", _given_away)
    return b""


def view_lingers(environ: dict[str, Any]) -> bytes:
    """Leave a thread behind that prints when the job has ended, and one that is nobody's child."""
    connection = socket.create_connection(("127.0.0.1", config()["stage"]))
    connection.sendall(b"lingers")

    def print_late() -> None:
        with connection:
            connection.recv(3)
            print("printed late")
            sys.stdout.flush()
            os.write(1, b"written late\n")
            connection.sendall(b"done")

    with detached():
        print("printed beside")
    print("printed in time")
    threading.Thread(target=print_late, daemon=True).start()
    return b""


def view_stdin(environ: dict[str, Any]) -> bytes:
    return b"%r %r" % (sys.stdin.read(), os.read(0, 1))


def view_surroundings(environ: dict[str, Any]) -> bytes:
    """Answer with what crosses to the process of the job."""
    told = {name: value for name, value in environ.items() if isinstance(value, str | bool | int | tuple)}
    return json.dumps(told).encode()


def make() -> BackgroundMiddleware:
    """Return the app as the environment says: the same line in the process of the test and in those of the workers."""
    told = config()
    kind: Callable[..., Executor] = loaded("executor", told["executor"])
    return BackgroundMiddleware(
        view,
        registry=open_registry(told["registry"]),
        executor=kind(**told["executor_options"]),
        when=marks.always,
        version="2026.11",
        **told["options"],
    )


@contextlib.contextmanager
def configured(**told: Any) -> Iterator[None]:
    """Set up the app of the worker processes that begin in this block."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = json.dumps(told)
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


def shorten_lease(lease: float) -> None:
    """Let a job be lost after *lease* seconds without a word of its process, in this process."""
    for module, name, seconds in lease_of(lease):
        setattr(module, name, seconds)


def lease_of(lease: float) -> Iterator[tuple[ModuleType, str, float]]:
    """Yield where it says how long a claim lasts, and what to say there."""
    for module in (keeper, run, sites, starter, waiting, watching):
        for name, seconds in {"LEASE": lease, "RENEW_EVERY": lease / 8}.items():
            if hasattr(module, name):
                yield module, name, seconds


if VARIABLE in os.environ and "pytest" not in sys.modules:
    if config()["broken"]:
        raise RuntimeError("this app cannot be imported")
    shorten_lease(config()["lease"])
    app: BackgroundMiddleware = make()
