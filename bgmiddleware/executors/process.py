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

from .._loading import check_name
from .._runner import Run
from ..errors import ConfigurationError
from ._local import SHUT_DOWN, LocalExecutor
from ._worker import Remains, Watcher, fail_unloaded, how_it_ended, is_ini, signal_group

__all__ = ["ProcessExecutor"]

_LOOK_EVERY = 1.0
_LOOK_OFTEN = 0.1
_LAST_SECONDS = 6.0  # more than a child waits for the threads of its app


class ProcessExecutor(LocalExecutor):
    """Runs up to *max_workers* jobs at a time, each in a child process that loads *app*.

    For views that need a processor of their own, that must be killable, or whose C code and subprocesses print: all
    that a child and its children write to their file descriptors 1 and 2 during a job is the job's output. Needs a
    registry that processes share. POSIX only.

    *app* is ``module:attribute``, or an ini file of PasteDeploy, ``path.ini`` or ``path.ini#name``, in which the same
    middleware is. The children begin when jobs need them, and again after a fork; each runs up to *max_jobs_per_child*
    jobs and is then replaced, as one that died is. A job that was asked to stop, or is over its deadline, has *grace*
    seconds to end by itself; then it is killed with all its children. *max_memory*: bytes of memory that a child, app
    included, may have while it runs a job, and each of its children; None: as many as there are. Up to *max_pending*
    jobs wait; then ``submit`` raises ``QueueFull``. At the end of this process running jobs get *drain* seconds; where
    it is killed, they are run to their end.
    """

    def __init__(
        self,
        app: str,
        *,
        max_workers: int = 4,
        max_pending: int = 100,
        max_jobs_per_child: int = 100,
        max_memory: int | None = None,
        grace: float = 5.0,
        drain: float = 10.0,
    ) -> None:
        super().__init__(max_workers=max_workers, max_pending=max_pending, drain=drain)
        if not max_jobs_per_child >= 1:
            raise ConfigurationError.of_setting("max_jobs_per_child", max_jobs_per_child, "a number from 1")
        if max_memory is not None and not max_memory >= 1:
            raise ConfigurationError.of_setting("max_memory", max_memory, "a number from 1")
        if not grace >= 0:
            raise ConfigurationError.of_setting("grace", grace, "a number from 0")
        if os.name != "posix":
            raise ConfigurationError("a ProcessExecutor needs a POSIX system")
        if not is_ini(app):
            check_name("app", app, "MODULE:APP or a file FILE.ini")
            if app.startswith("__main__:"):
                raise ConfigurationError.of_setting("app", app, "a module that other processes can import")
        self.app = app
        self.max_jobs_per_child = max_jobs_per_child
        self.max_memory = max_memory
        self.grace = grace

    def _reset(self) -> None:
        super()._reset()
        self._children: dict[str, _Child] = {}  # by the keys of their jobs

    @contextlib.contextmanager
    def _worker(self) -> Iterator[Callable[[Run], bool]]:
        with contextlib.closing(_Seat(self)) as seat:
            yield seat.run

    def _abandon(self, run: Run) -> None:
        with self._lock:
            child = self._children.get(run.key)
        if child is None:
            run.abandon(SHUT_DOWN)
        else:
            child.abandon(SHUT_DOWN)

    def shutdown(self, drain: float | None = None) -> None:
        super().shutdown(drain)
        if self._pid == os.getpid():
            with self._lock:
                left = list(self._children.values())
            for child in left:
                child.signal(signal.SIGKILL)


class _Seat:
    """A place for one child, which is replaced when it dies or has run enough jobs. Of one thread."""

    def __init__(self, executor: ProcessExecutor) -> None:
        self._executor = executor
        self._child: _Child | None = None

    def run(self, run: Run) -> bool:
        """Let the child run a job; return whether it must wait."""
        executor = self._executor
        if self._child is not None and not self._child.is_alive:
            self.close()
        if self._child is None:
            self._child = _Child(executor)
        child = self._child
        executor._children[run.key] = child
        try:
            must_wait = child.run(run)
        finally:
            del executor._children[run.key]
        if not child.is_good or child.jobs >= executor.max_jobs_per_child:
            self.close()
        return must_wait

    def close(self) -> None:
        """Let the child end, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.close()


class _Child:
    """A process that runs jobs, one at a time, and the socket to talk to it."""

    def __init__(self, executor: ProcessExecutor) -> None:
        self._grace = executor.grace
        self._socket, theirs = socket.socketpair()
        self.jobs = 0
        self.is_good = True
        """Whether it may be given another job."""
        with theirs:
            # Not a fork of this process, which has threads, but a new one. In a session of its own, so that it can be
            # killed with all its children, and Ctrl-C at a terminal is not its business.
            self._process = subprocess.Popen(  # noqa: S603  # our own module, with nothing that a request said
                [_interpreter(), "-u", "-m", _CHILD, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self._received = b""
        self._how = {"app": executor.app, "path": sys.path, "max_memory": executor.max_memory}

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None and not _has_ended(self._process.pid)

    def run(self, run: Run) -> bool:
        """Let it run a job, look after it meanwhile, and write down how it ended if the process cannot; return whether
        the job must wait."""
        self.jobs += 1
        self._run, self._remains = run, Remains()
        self._watcher = Watcher(run.registry, run.key, self._grace)
        with contextlib.closing(self._remains):
            self._say({**self._how, "key": run.key}, self._remains.output_file)
            while (answer := self._answer()) is None and self.is_alive:
                due = self._watcher.look()
                if due is not None:
                    self.signal(due)
            if answer is None:
                self._remains.end(run.registry, run.key, self._kill())
                answer = {}
            elif "unloaded" in answer:
                fail_unloaded(run.registry, run.key, answer["unloaded"])
            elif "failed" in answer:
                self._remains.end(run.registry, run.key, f"its process could not run it: {answer['failed']}")
        self.is_good = not self._watcher.asked and "must_wait" in answer
        return answer.get("must_wait") is True

    def abandon(self, reason: str) -> None:
        """Write down that its job is lost, and interrupt it. Called by another thread than :meth:`run` is."""
        with contextlib.suppress(OSError):  # its remains are closed: it has just ended
            self._remains.end(self._run.registry, self._run.key, reason)
        self._watcher.stop()
        self.signal(signal.SIGTERM)

    def _say(self, message: Any, file: int) -> None:
        data = json.dumps(message).encode() + b"\n"
        with contextlib.suppress(OSError):  # it is dead: that is seen when it is asked for its answer
            sent = socket.send_fds(self._socket, [data], [file])
            self._socket.sendall(data[sent:])

    def _answer(self) -> dict[str, Any] | None:
        """Wait for an answer until it is time to look at the job."""
        timeout = _LOOK_OFTEN if self._watcher.asked else _LOOK_EVERY
        if not select.select([self._socket], [], [], timeout)[0]:
            return None
        with contextlib.suppress(OSError):
            self._received += self._socket.recv(65536)
        line, newline, rest = self._received.partition(b"\n")
        if not newline:
            return None
        self._received = rest
        answer: dict[str, Any] = json.loads(line)
        return answer

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and all its children."""
        signal_group(self._process.pid, number)

    def _kill(self) -> str:
        """Kill what is left of the process and its children; return how it ended."""
        self.signal(signal.SIGKILL)
        return how_it_ended(self._process.wait())

    def close(self) -> None:
        """Let the process end, and wait for that."""
        self._socket.close()
        try:
            self._process.wait(_LAST_SECONDS if self.is_good else 0.1)
        except subprocess.TimeoutExpired:
            self._kill()


_CHILD = "bgmiddleware.executors._child"


def _has_ended(pid: int) -> bool:
    """Whether a child has ended; it is not waited for, so that its number is not given to another."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _interpreter() -> str:
    """Return the path of this Python: servers that have it built in name themselves."""
    if os.path.basename(sys.executable or "").startswith(("python", "pypy")):
        return sys.executable
    return os.path.join(sys.prefix, "bin", "python3")
