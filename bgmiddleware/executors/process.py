"""Jobs in child processes, which load the app by its name and can be killed."""

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

from .._ground.loading import check_name
from .._ground.numbers import check_count, check_seconds
from .._jobs import JobState
from .._running import Run
from ..errors import ConfigurationError, JobExpired, JobNotFound, RegistryError
from ._engines.sites import Unloaded, fail_unloaded, is_ini
from ._local import SHUT_DOWN, LocalExecutor
from ._processes.children import LAST_SECONDS, Child
from ._processes.watching import Remains, Watcher

__all__ = ["ProcessExecutor"]

_log = logging.getLogger("bgmiddleware")

_LOOK_EVERY = 1.0
_LOOK_OFTEN = 0.1


class ProcessExecutor(LocalExecutor):
    """Runs up to *max_workers* jobs at a time, each in a child process that loads *app*.

    For views that need their own processor core, that must be killable, or whose C code and subprocesses print:
    everything that a child and its children write to file descriptors 1 and 2 during a job is the job's output. It
    needs a registry that processes share. POSIX only.

    *app* is ``module:attribute``, or an ini file of PasteDeploy, ``path.ini`` or ``path.ini#name``, that contains the
    same middleware. The children start when jobs need them, and again after a fork. A child is replaced when it dies
    and after *max_jobs_per_child* jobs. A job that was asked to stop, or is over its deadline, has *grace* seconds to
    end; then it is killed with all its children. *max_memory*: bytes of memory that a child, app included, may use
    while it runs a job, and each of its children; None: no limit. Up to *max_pending* jobs wait; beyond that ``submit``
    raises ``QueueFull``. At the end of this process running jobs get *drain* seconds; if it is killed, they run to
    their end.
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
        check_count("max_jobs_per_child", max_jobs_per_child, 1)
        if max_memory is not None:
            check_count("max_memory", max_memory, 1)
        check_seconds("grace", grace)
        if os.name != "posix":
            raise ConfigurationError("executor: a ProcessExecutor needs a POSIX system: expected a ThreadExecutor here")
        if not is_ini(app):
            check_name("app", app, "MODULE:APP or a file FILE.ini")
            if app.startswith("__main__:"):
                raise ConfigurationError.of_setting("app", app, "a module that other processes can import")
        self.app: str = os.path.abspath(app) if is_ini(app) else app
        self.max_jobs_per_child = max_jobs_per_child
        self.max_memory = max_memory
        self.grace = grace

    @property
    def how(self) -> dict[str, Any]:
        """What each message to a child contains, beside the job's key."""
        return {"app": self.app, "max_memory": self.max_memory}

    def _reset(self) -> None:
        super()._reset()
        self._seats: dict[str, _Seat] = {}  # those that run a job, by its key

    def _worker(self) -> contextlib.AbstractContextManager[Callable[[Run], bool]]:
        return _taken(_Seat(self.how, self.grace, self.max_jobs_per_child, self._seats))

    def _abandon(self, run: Run) -> None:
        seat = self._seats.get(run.key)
        if seat is None:
            run.abandon(SHUT_DOWN)
        else:
            seat.abandon(run)

    def shutdown(self, drain: float | None = None) -> None:
        super().shutdown(drain)
        if self._pid != os.getpid():
            return
        for seat in list(self._seats.values()):
            seat.kill()
        with self._lock:
            self._idle.wait_for(lambda: not self._workers, LAST_SECONDS)


class _Seat:
    """A place for one child process, which is replaced when it has died or has run enough jobs.

    One thread uses it; other threads call only :meth:`abandon` and :meth:`kill`. While it runs a job it is in *seats*,
    under the job's key.
    """

    def __init__(self, how: dict[str, Any], grace: float, max_jobs_per_child: int, seats: "dict[str, _Seat]") -> None:
        self._how = how
        self._grace = grace
        self._max_jobs_per_child = max_jobs_per_child
        self._seats = seats
        self._child: Child | None = None

    def run(self, run: Run) -> bool:
        """Let the child run a job. Return whether the job must wait. Raises nothing."""
        try:
            must_wait = self._run(run)
        except (JobNotFound, JobExpired):
            must_wait = False  # the job was deleted meanwhile
        except RegistryError as error:
            _log.warning("job %s waits for its registry: %s", run.key[:8], error)
            return True
        except Exception as error:
            _log.exception("job %s could not be run", run.key[:8])
            must_wait = not run.abandon(f"it could not be run: {error}")
        if not must_wait:
            run.leave()
        return must_wait

    def _run(self, run: Run) -> bool:
        child = self._ready_child()
        self._watcher = Watcher(run.registry, run.key, self._grace)
        self._remains = Remains(redaction=run.redaction)
        self._seats[run.key] = self
        try:
            answer = self._hand_over(child, run)
        finally:
            del self._seats[run.key]
            self._remains.close()
        if "unloaded" in answer:
            self.close()
            trouble = run.redacted(answer["unloaded"])
            return fail_unloaded(Unloaded(run.registry, trouble), run.key) or run.still_waits()
        if self._watcher.asked:
            child.end(patience=0.0)  # and kill what the job left running
        must_wait = answer.get("must_wait")
        child.jobs += not must_wait
        if must_wait is None or not child.is_alive or child.jobs >= self._max_jobs_per_child:
            self.close()
        return bool(must_wait) or run.still_waits()

    def _ready_child(self) -> Child:
        if self._child is not None and not self._child.is_alive:
            self.close()
        if self._child is None:
            self._child = Child()
        return self._child

    def _hand_over(self, child: Child, run: Run) -> dict[str, Any]:
        """Give a job to the child, watch it, and return its answer. If the child dies, record how the job ended."""
        child.give({**self._how, "key": run.key}, self._remains.outlet)
        self._remains.hand_over()
        flood = False
        while child.is_alive:
            answer = child.answer(_LOOK_OFTEN if self._watcher.asked or flood else _LOOK_EVERY)
            if answer is not None:
                break
            flood = self._remains.outlet.relieve()
            due = self._watcher.look()
            if due is not None:
                child.signal(due)
        else:
            how = child.end()
            # The child was killed while it was idle: the job has not started, and the next child runs it.
            if child.jobs and run.registry.get(run.key).state is JobState.PENDING:
                return {"must_wait": True}
            answer = {}
            self._remains.end(run.registry, run.key, how)
        if "failed" in answer:
            self._remains.end(run.registry, run.key, f"its process could not run it: {answer['failed']}")
        return answer

    def abandon(self, run: Run) -> None:
        """Record that the job *run* is lost, and interrupt it."""
        with contextlib.suppress(OSError):  # the file is closed because the job has just ended
            self._remains.end(run.registry, run.key, SHUT_DOWN)
        self._watcher.stop()
        if self._child is not None:
            self._child.signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the child at once."""
        if self._child is not None:
            self._child.signal(signal.SIGKILL)

    def close(self) -> None:
        """End the child, if there is one."""
        child, self._child = self._child, None
        if child is not None:
            child.close()


@contextlib.contextmanager
def _taken(seat: _Seat) -> Iterator[Callable[[Run], bool]]:
    with contextlib.closing(seat):
        yield seat.run
