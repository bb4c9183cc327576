"""The main program of the processes that run jobs for a ``ProcessExecutor``.

It talks to its parent over a socket, in lines of JSON: each says which job to run and how, comes with the outlet of the
job's output, and is answered when the job has ended. The app is loaded for the first of them. The process ends
when its parent closes the socket, or is no more; a job that runs then is run to its end.
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
    """Run jobs until the parent has no more."""
    number = int(sys.argv[2])
    del sys.argv[1:]  # they are not the app's
    os.set_inheritable(number, False)  # else the children of jobs would keep it open
    print_beside_jobs()
    # SIGINT is for a job: it may come when that has just ended.
    with socket.socket(fileno=number) as parent, unheard(signal.SIGINT):
        _serve(parent)
    # Threads that the app began may never end.
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
        except OSError:  # it is gone; the job is written down all the same
            return


def _load(asked: dict[str, Any]) -> tuple[Site | None, str]:
    """Return the site, or None and the traceback of what is wrong with it."""
    try:
        return load_site(asked["app"]), ""
    except BaseException:  # a module may exit when it is imported, too
        return None, traceback.format_exc()


def _receive(parent: socket.socket) -> tuple[dict[str, Any], Outlet] | None:
    """Return the next message and the outlet that came with it; None at the end."""
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
        # SIGTERM is for the children of the job, and what a service manager sends to all processes of a service at its
        # end: there the parent, which has it too, decides how long jobs go on.
        with _limited(asked["max_memory"]), interrupted_by(signal.SIGINT), unheard(signal.SIGTERM):
            return {"must_wait": run_stored(site, asked["key"], outlet, has_watcher=True)}
    except Exception as error:
        return {"failed": f"{type(error).__name__}: {error}"}


@contextlib.contextmanager
def _limited(max_memory: int | None) -> Iterator[None]:
    """Let this process, and each of its children, have *max_memory* bytes."""
    if max_memory is None:
        yield
        return
    import resource

    # What a process may write to, on Linux; elsewhere all of its addresses.
    kind = resource.RLIMIT_DATA if sys.platform == "linux" else resource.RLIMIT_AS
    soft, hard = resource.getrlimit(kind)
    most = max_memory if hard == resource.RLIM_INFINITY else min(max_memory, hard)
    resource.setrlimit(kind, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(kind, (soft, hard))
