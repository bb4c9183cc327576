"""The main program of the processes that run jobs for a ``ProcessExecutor``.

The parent sends lines of JSON over a socket. Each says which job to run and how, and carries the outlet for the job's
output; the child answers when the job has ended. The first message loads the app. The process ends when the parent
closes the socket or dies; a job that is running then runs to its end.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from ..._capture import Outlet
from .._engines.sites import Site, load_site
from .._engines.worker import interrupted_by, print_beside_jobs, run_stored, unheard

_LAST_SECONDS = 5.0


def main() -> None:
    """Run jobs until the parent closes the socket."""
    number = int(sys.argv[2])
    del sys.argv[1:]  # the app must not see our arguments
    os.set_inheritable(number, False)  # otherwise children of jobs would keep it open
    print_beside_jobs()
    # SIGINT is meant for a job, and may arrive when the job has just ended.
    with socket.socket(fileno=number) as parent, unheard(signal.SIGINT):
        _serve(parent)
    # Threads of the app may never end.
    last = threading.Timer(_LAST_SECONDS, os._exit, (0,))
    last.daemon = True
    last.start()


def _serve(parent: socket.socket) -> None:
    site, trouble = None, ""
    while (received := _receive(parent)) is not None:
        asked, outlet = received
        if site is None:
            site, trouble = _load(asked)
        answer = {"unloaded": trouble} if site is None else _run(site, asked, outlet)
        outlet.close()
        try:
            parent.sendall(json.dumps(answer).encode() + b"\n")
        except OSError:  # the parent is gone; the end of the job is recorded anyway
            return


def _load(asked: dict[str, Any]) -> tuple[Site | None, str]:
    """Return the site; or None and the traceback, if the app cannot be loaded."""
    try:
        return load_site(asked["app"]), ""
    except BaseException:  # a module may exit when it is imported, too
        return None, traceback.format_exc()


def _receive(parent: socket.socket) -> tuple[dict[str, Any], Outlet] | None:
    """Return the next message and its outlet, or None when the parent has closed the socket."""
    line, numbers = b"", [-1, -1, -1]
    while not line.endswith(b"\n"):
        data, received, _, _ = socket.recv_fds(parent, 65536, 3)
        if not data:
            return None
        line += data
        numbers = received or numbers
    for number in numbers:
        os.set_inheritable(number, False)
    return json.loads(line), Outlet(*numbers)


def _run(site: Site, asked: dict[str, Any], outlet: Outlet) -> dict[str, Any]:
    try:
        # SIGTERM is meant for the children of the job. A service manager sends it to all processes of a service; then
        # the parent, which gets it too, decides how long jobs may run on.
        with _limited(asked["max_memory"]), interrupted_by(signal.SIGINT), unheard(signal.SIGTERM):
            return {"must_wait": run_stored(site, asked["key"], outlet, has_watcher=True)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


@contextlib.contextmanager
def _limited(max_memory: int | None) -> Iterator[None]:
    """Limit the memory of this process, and of each of its children, to *max_memory* bytes."""
    if max_memory is None:
        yield
        return
    import resource

    # On Linux the writable memory; elsewhere the whole address space.
    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    soft, hard = resource.getrlimit(kind)
    most = max_memory if hard == resource.RLIM_INFINITY else min(max_memory, hard)
    resource.setrlimit(kind, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))
