"""The parent's side of the child processes of a ``ProcessExecutor``. Their own side is in ``child``."""

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from typing import Any

from ..._capture import Outlet
from .watching import how_it_ended, signal_group

__all__ = ["LAST_SECONDS", "Child"]

LAST_SECONDS = 6.0
"""Seconds that a child may take to end: longer than it waits for the threads of its app."""


class Child:
    """A process that runs one job at a time, and the socket to it."""

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._received = b""
        self._hung_up = False
        self.jobs = 0
        _connections.add(self._socket)
        _close_in_forks()
        try:
            # A new process, not a fork, because this one has threads. It gets a session of its own, so that it can be
            # killed with all its children, and Ctrl-C at a terminal does not reach it.
            self._process = subprocess.Popen(  # noqa: S603  # our own module, with nothing that a request said
                [*_python(), "-u", "-c", _MAIN, json.dumps(sys.path), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        except BaseException:
            self._socket.close()
            raise
        finally:
            theirs.close()

    @property
    def is_alive(self) -> bool:
        return not self._hung_up and not self._has_ended

    @property
    def _has_ended(self) -> bool:
        # Do not reap it yet: the system could reuse its pid, and we would kill another process.
        if self._process.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:  # other code, or the system, has reaped it
            return True

    def give(self, message: dict[str, Any], outlet: Outlet) -> None:
        """Send it a job to run."""
        data = json.dumps(message).encode() + b"\n"
        with contextlib.suppress(OSError):  # it is dead; answer() will notice
            self._socket.settimeout(None)
            sent = socket.send_fds(self._socket, [data], list(outlet.numbers))
            self._socket.sendall(data[sent:])

    def answer(self, timeout: float) -> dict[str, Any] | None:
        """Wait up to *timeout* seconds for its answer. Return None if there is none yet."""
        data = b""
        self._socket.settimeout(timeout)
        try:
            data = self._socket.recv(65536)
        except TimeoutError:
            return None
        except OSError:  # it is dead
            pass
        self._hung_up = not data
        self._received += data
        line, newline, rest = self._received.partition(b"\n")
        if not newline:
            return None
        self._received = rest
        answer: dict[str, Any] = json.loads(line)
        return answer

    def signal(self, number: signal.Signals) -> None:
        """Interrupt the job (SIGINT), end all its children (SIGTERM), or kill the process and them (SIGKILL)."""
        signal_group(self._process.pid, number)

    def end(self, patience: float = 0.5) -> str:
        """Kill the process and its children, after *patience* seconds for it to end by itself. Return how it ended."""
        until = time.monotonic() + patience
        while (lives := not self._has_ended) and time.monotonic() < until:
            time.sleep(0.01)  # no system call waits with a time-out and does not reap the process
        if self._process.returncode is None:
            self.signal(signal.SIGKILL)  # before it is reaped, while its pid is its own
        status = self._process.wait()
        return "its process does not answer any more" if lives else how_it_ended(status)

    def close(self) -> None:
        """Let the process end by itself, and wait for it."""
        self._socket.close()
        if self._process.returncode is None:
            try:
                self._process.wait(LAST_SECONDS)
            except subprocess.TimeoutExpired:
                self.end(0.0)


# The child gets the module path of this process before its first import.
_MAIN = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[1]); "
    "from bgmiddleware.executors._processes import child; child.main()"
)


def _python() -> list[str]:
    """Return the command of this Python, with its options. In a server with Python built in, ``sys.executable`` is the
    server."""
    executable = sys.executable or ""
    if not os.path.basename(executable).startswith(("python", "pypy")):
        executable = os.path.join(sys.prefix, "bin", "python3")
    options: Callable[[], list[str]] = getattr(subprocess, "_args_from_interpreter_flags", list)
    return [executable, *options()]


_connections: "weakref.WeakSet[socket.socket]" = weakref.WeakSet()


@functools.cache
def _close_in_forks() -> None:
    """Close the connections to children in future forks of this process. Their copies would keep the children from
    noticing that the parent is gone."""

    def close() -> None:
        for connection in list(_connections):
            connection.close()

    os.register_at_fork(after_in_child=close)
