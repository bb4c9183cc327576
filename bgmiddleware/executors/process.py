"""Jobs in child processes of this process, which load the app by its name and can be killed."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

from .._runner import Run
from ..errors import ConfigurationError
from ._local import SHUT_DOWN, LocalExecutor
from ._worker import Stopper, end_dead, fail_unloaded, how_it_ended

__all__ = ["ProcessExecutor"]

_LOOK_EVERY = 1.0
_GRACE_AT_END = 1.0


class ProcessExecutor(LocalExecutor):
    """Runs up to *max_workers* jobs at a time, each in a child process that loads *app*, ``module:attribute``.

    For views that need a processor of their own, that must be killable, or whose C code and subprocesses print: all
    that a child writes to its file descriptors 1 and 2 during a job is the job's output. Needs a registry that
    processes share. POSIX only.

    The children begin when jobs need them, and again after a fork; each runs up to *max_jobs_per_child* jobs. A job
    that was asked to stop, or is over its deadline, has *grace* seconds to end by itself; then it is killed with all
    its children. Up to *max_pending* jobs wait; then ``submit`` raises ``QueueFull``. At the end of this process
    running jobs get *drain* seconds.
    """

    def __init__(
        self,
        app: str,
        *,
        max_workers: int = 4,
        max_pending: int = 100,
        max_jobs_per_child: int = 100,
        grace: float = 5.0,
        drain: float = 10.0,
    ) -> None:
        super().__init__(max_workers=max_workers, max_pending=max_pending, drain=drain)
        if not max_jobs_per_child >= 1:
            raise ConfigurationError.of_setting("max_jobs_per_child", max_jobs_per_child, "a number from 1")
        if not grace >= 0:
            raise ConfigurationError.of_setting("grace", grace, "a number from 0")
        if os.name != "posix":
            raise ConfigurationError("a ProcessExecutor needs a POSIX system")
        self.app = app
        self.max_jobs_per_child = max_jobs_per_child
        self.grace = grace

    def _reset(self) -> None:
        super()._reset()
        self._abandoned_keys: set[str] = set()

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Callable[[Run], bool]]:
        seat = _Seat(self)
        try:
            yield seat.run
        finally:
            seat.leave()

    def _abandon(self, run: Run) -> None:
        end_dead(run.registry, run.key, SHUT_DOWN)
        with self._lock:
            self._abandoned_keys.add(run.key)


class _Seat:
    """A place for one child, which is replaced when it dies or has run enough jobs. One thread's."""

    def __init__(self, executor: ProcessExecutor) -> None:
        self._executor = executor
        self._child: _Child | None = None

    def run(self, run: Run) -> bool:
        """Let the child run a job; return whether it must wait."""
        child = self._child
        if child is None or not child.is_alive:
            child = self._child = _Child(self._executor.app)
        stopper = Stopper(run.registry, run.key, self._executor.grace)
        child.send({"key": run.key})
        while (answer := child.answer(_LOOK_EVERY)) is None and child.is_alive:
            due = stopper.look()
            if due is not None:
                child.signal(due)
        if answer is None:
            end_dead(run.registry, run.key, child.end())
            return False
        if "unloaded" in answer:
            fail_unloaded(run.registry, run.key, answer["unloaded"])
        elif "failed" in answer:
            end_dead(run.registry, run.key, answer["failed"])
        if stopper.asked or "unloaded" in answer or child.jobs >= self._executor.max_jobs_per_child:
            self.leave()
        return bool(answer.get("must_wait"))

    def leave(self) -> None:
        """Let the child end."""
        child, self._child = self._child, None
        if child is not None:
            child.close()


class _Child:
    """A process that runs jobs, one at a time, and the socket to talk to it."""

    def __init__(self, app: str) -> None:
        self._socket, theirs = socket.socketpair()
        self.jobs = 0
        with theirs:
            # Not a fork of this process, which has threads: a new one, in a session of its own, so that it can be
            # killed with all its children, and Ctrl-C at a terminal is not its business.
            self._process = subprocess.Popen(  # noqa: S603  # this interpreter, with nothing of a request
                [sys.executable, "-u", "-m", "bgmiddleware.executors._child", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._received = b""
        self._say({"app": app, "path": sys.path})

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def send(self, message: Any) -> None:
        self.jobs += 1
        self._say(message)

    def _say(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # it is dead: that is seen when it is asked for its answer
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def answer(self, timeout: float) -> dict[str, Any] | None:
        """Wait up to *timeout* seconds for an answer."""
        if not select.select([self._socket], [], [], timeout)[0]:
            return None
        data = self._socket.recv(65536)
        self._received += data
        line, newline, rest = self._received.partition(b"\n")
        if not newline:
            if not data:
                self._process.wait()
            return None
        self._received = rest
        answer: dict[str, Any] = json.loads(line)
        return answer

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and all its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def end(self) -> str:
        """Return how the process ended."""
        self.close()
        return how_it_ended(self._process.wait())

    def close(self) -> None:
        """Let the process end, and wait for it."""
        self._socket.close()
