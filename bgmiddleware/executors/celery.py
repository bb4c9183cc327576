"""Jobs in workers of Celery, by whatever broker it has: the extra ``celery``.

The web processes send messages that are named by a job's key and hold nothing; workers, begun by
``python -m bgmiddleware work``, run them in Celery's pool of processes. All else about a job is in the registry.
"""

import contextlib
import logging
import os
import re
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from typing import Any

from celery import Celery, Task, __version__, bootsteps, signals
from celery.concurrency.prefork import TaskPool
from celery.exceptions import Ignore, Terminated, WorkerLostError
from celery.worker import state
from celery.worker.request import Request
from click import ClickException
from kombu.entity import Exchange, Queue
from kombu.exceptions import KombuError

from .._loading import loaded
from .._runner import Run
from ..errors import ConfigurationError, QueueFull
from ._worker import Remains, Site, Watcher, how_it_ended, run_message, signal_group
from .base import Executor

__all__ = ["CeleryExecutor"]

_TASK = "bgmiddleware.run"
_LOOK_EVERY = 1.0
_DAY = 86_400
_CONNECTIONS = 8
_OLDEST = (5, 6)  # the first that can do without prefetching


class CeleryExecutor(Executor):
    """Runs jobs in workers of Celery (5.6 or newer), which are begun by ``python -m bgmiddleware work``.

    *celery*: your ``Celery``, or its name as ``module:attribute``, which is imported when it is needed; its settings of
    the broker count. *queue*: the name of a queue that only these workers take from. Up to *max_pending* jobs wait in
    it; then, and while the broker does not answer, ``submit`` raises ``QueueFull``. A job that was asked to stop, or is
    over its deadline, gets *grace* seconds to end by itself before its processes are killed.

    A worker refuses to start, and ``submit`` to send, by a ``ConfigurationError``, where a setting does not fit jobs
    that run for hours.
    """

    def __init__(
        self, celery: "Celery | str", *, queue: str = "bgmiddleware", max_pending: int = 1000, grace: float = 5.0
    ) -> None:
        for name, value, least in (("max_pending", max_pending, 1), ("grace", grace, 0)):
            if not value >= least:
                raise ConfigurationError.of_setting(name, value, f"a number from {least}")
        version = tuple(int(part) for part in __version__.split(".")[:2])
        if version < _OLDEST:
            raise ConfigurationError(f"a CeleryExecutor needs Celery 5.6 or newer, and this is {__version__}")
        self.grace = grace
        self._given = celery
        self._queue = Queue(queue, Exchange(queue), routing_key=queue)  # type: ignore[no-untyped-call]
        self._outbox = _Outbox(self._queue, max_pending)
        self._closed = False

    @property
    def celery(self) -> Celery:
        """The ``Celery`` that it uses."""
        if not isinstance(self._given, Celery):
            found = loaded("executor", self._given)
            if not isinstance(found, Celery):
                raise ConfigurationError(f"executor = celery:{self._given}: this is a {type(found).__name__}")
            self._given = found
        return self._given

    def submit(self, run: Run) -> None:
        if self._closed:
            raise QueueFull("the server is shutting down")
        if self.celery.conf.task_always_eager:
            raise ConfigurationError("task_always_eager: then Celery runs jobs in the web process, before it answers")
        self._outbox.send(self.celery, run.key)

    def stop(self, key: str) -> None:
        """Do nothing: the worker that runs it looks at the registry, and who takes out a cancelled one leaves it."""

    def shutdown(self, drain: float | None = None) -> None:
        self._closed = True
        self._outbox.close()

    def work(self, site: Site, options: Sequence[str]) -> None:
        """Be a worker, with *options* of Celery's own, until a signal says stop."""
        app = self.celery
        _force(app.conf, self._queue)
        task = app.task(
            _run,
            name=_TASK,
            base=_Task,
            bind=True,
            shared=False,
            acks_late=False,  # a broker that waits for hours delivers again
            reject_on_worker_lost=False,
            ignore_result=True,
            track_started=False,
            serializer="json",
        )
        task.site, task.grace, task.outbox, task.waiting = site, self.grace, self._outbox, deque()
        app.steps["worker"].add(_Watch)
        signals.worker_process_init.connect(_lead_group, weak=False)
        signals.setup_logging.connect(_set_up_logging, weak=False)
        with tempfile.TemporaryDirectory(prefix="bgmiddleware-", ignore_cleanup_errors=True) as task.directory:
            try:
                app.worker_main(["worker", "--hostname", f"bgmiddleware-{os.getpid()}@%h", *options])
            except ClickException as error:
                raise ConfigurationError(f"celery worker: {error.format_message()}") from None


class _Outbox:
    """Connections to the broker that give up soon, to send messages by. Any thread may send."""

    def __init__(self, queue: Queue, max_pending: int) -> None:
        self._queue = queue
        self._max_pending = max_pending
        self._pools: dict[int, Any] = {}  # one after a fork is not the one before

    def send(self, app: Celery, key: str, *, anyway: bool = False) -> None:
        """Send the message of the job *key*, *anyway* even where too many wait. Raises ``QueueFull``."""
        pool = self._pools.get(os.getpid()) or self._pools.setdefault(os.getpid(), _pool(app))
        errors = (KombuError, OSError, *pool.connection.connection_errors, *pool.connection.channel_errors)
        try:
            with pool.acquire(block=True, timeout=_PATIENCE) as connection:
                declare: Any = self._queue(connection.default_channel).queue_declare
                waiting = declare().message_count
                if waiting >= self._max_pending and not anyway:
                    raise QueueFull(f"{waiting} jobs are waiting")
                app.send_task(
                    _TASK,
                    task_id=key,
                    queue=self._queue,
                    serializer="json",
                    ignore_result=True,
                    connection=connection,
                    retry=True,  # it may have been idle too long; what comes twice runs once
                    retry_policy=_ONCE_MORE,
                )
        except errors as error:
            raise QueueFull(f"the queue of jobs does not answer: {error}") from error

    def close(self) -> None:
        """Close all connections."""
        pool = self._pools.pop(os.getpid(), None)
        if pool is not None:
            pool.force_close_all()


_ONCE_MORE = {"max_retries": 1, "interval_start": 0, "interval_step": 0}
_PATIENCE = 5.0


def _pool(app: Celery) -> Any:
    connection = app.connection_for_write()
    if connection.transport.driver_type == "redis":
        limits = {"socket_timeout": _PATIENCE, "socket_connect_timeout": _PATIENCE}
    else:
        limits = {"read_timeout": _PATIENCE, "write_timeout": _PATIENCE}
    options = {**limits, **_ONCE_MORE}
    return app.connection_for_write(transport_options=options, connect_timeout=_PATIENCE).Pool(limit=_CONNECTIONS)


def _force(conf: Any, queue: Queue) -> None:
    """Set what jobs need in a worker that does nothing else; refuse what others would have to set."""
    options = dict(conf.broker_transport_options or {})
    if not options.setdefault("visibility_timeout", _DAY) >= _DAY:
        raise ConfigurationError(
            f"broker_transport_options: visibility_timeout = {options['visibility_timeout']}: expected at least"
            f" {_DAY} (a day), for all that use this broker: what waits longer would be delivered again"
        )
    conf.update(
        task_queues=[queue],
        broker_transport_options=options,
        accept_content=["json"],
        worker_pool="prefork",
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,  # where the broker is not Redis, and that cannot be had
        worker_redirect_stdouts=False,
        task_time_limit=None,  # the deadline is the job's own
        task_soft_time_limit=None,
        worker_lost_wait=0.1,  # for a result, and there is none
    )


def _run(task: "_Task") -> None:
    """Run in a process of the pool."""
    path = task.output_path(task.request.id, os.getpid())
    output_file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        must_wait = run_message(task.site, task.request.id, output_file)
    finally:
        os.close(output_file)
        os.unlink(path)
    if must_wait:
        raise Ignore("it must wait")  # what is returned does not reach the pool's parent


class _Request(Request):  # type: ignore[misc]
    """One message, as the pool's parent sees it."""

    def on_failure(self, exc_info: Any, *arguments: Any, **named: Any) -> None:
        super().on_failure(exc_info, *arguments, **named)
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, Ignore):
            self.task.waiting.append(self.id)
            return
        if isinstance(error, WorkerLostError | Terminated):
            signal_group(self.worker_pid, signal.SIGKILL)  # children that it left behind
        self.end(_how(error))

    def end(self, how: str) -> None:
        """Write down its end, unless its process did so."""
        path = self.task.output_path(self.id, self.worker_pid)
        with contextlib.suppress(FileNotFoundError), contextlib.closing(Remains(os.open(path, os.O_RDWR))) as remains:
            os.unlink(path)
            remains.end_if_left(self.task.site.registry, self.id, self.worker_pid, how)


def _how(error: BaseException) -> str:
    """Return in words how a process ended: Celery has a sentence with its status in it."""
    if found := re.search(r"(signal|exitcode) (\d+)", str(error)):
        return how_it_ended(int(found[2]) * (-1 if found[1] == "signal" else 1))
    return f"its process failed: {error}"


class _Task(Task):  # type: ignore[misc]
    Request = _Request
    site: Site
    grace: float
    outbox: _Outbox
    waiting: deque[str]
    """Jobs whose groups were full when their message came."""
    directory: str
    """For the files that the output of jobs goes through."""

    def output_path(self, key: str, pid: int) -> str:
        """Return the path of the file for the output of a job that a process runs."""
        return os.path.join(self.directory, f"{key}-{pid}")


class _Watch(bootsteps.StartStopStep):  # type: ignore[misc]
    """Looks each second after the jobs that the pool runs, in its parent."""

    requires = ("celery.worker.components:Pool", "celery.worker.components:Timer")

    def __init__(self, worker: Any, **named: Any) -> None:
        super().__init__(worker, **named)
        if not issubclass(worker.pool_cls, TaskPool):
            raise ConfigurationError(
                f"worker_pool = {worker.pool_cls.__module__}: expected prefork: threads cannot be killed"
            )
        self._running: dict[str, _Request] = {}
        self._watchers: dict[str, Watcher] = {}

    def start(self, worker: Any) -> None:
        self._entry = worker.timer.call_repeatedly(_LOOK_EVERY, self._look, (worker,))

    def stop(self, worker: Any) -> None:
        self._entry.cancel()
        self._deliver_again(worker.app.tasks[_TASK])

    def terminate(self, worker: Any) -> None:
        """Kill what runs, since the worker shall not wait for it."""
        self.stop(worker)
        for pid in worker.pool.info["processes"]:
            signal_group(pid, signal.SIGKILL)
        for request in self._running.values():
            request.end("its worker was shut down")

    def _look(self, worker: Any) -> None:
        task = worker.app.tasks[_TASK]
        self._deliver_again(task)
        active = [request for request in list(state.active_requests) if isinstance(request, _Request)]
        running = self._running = {request.id: request for request in active}
        known = self._watchers
        self._watchers = {key: known.get(key) or Watcher(task.site.registry, key, task.grace) for key in running}
        for key, watcher in self._watchers.items():
            due = watcher.look()
            if due is not None:
                signal_group(running[key].worker_pid, due)
            if due is signal.SIGKILL:
                running[key].terminate(worker.pool, "SIGKILL")  # it is dead; now Celery knows why
                running[key].end("its process was killed")

    def _deliver_again(self, task: _Task) -> None:
        # Not by Celery's countdown: then this worker would keep it, behind what runs here, where others may be idle.
        with contextlib.suppress(QueueFull):
            while task.waiting:
                task.outbox.send(task.app, task.waiting[0], anyway=True)
                task.waiting.popleft()


def _set_up_logging(loglevel: int, logfile: str | None, format: str, **named: Any) -> None:  # noqa: A002  # Celery's name
    """Let Celery log beside the jobs, and only itself: its own way takes the app's logging over, and the console."""
    handler = logging.FileHandler(logfile) if logfile else logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(format))
    logger = logging.getLogger("celery")
    logger.addHandler(handler)
    logger.setLevel(loglevel)
    logger.propagate = False


def _lead_group(**named: Any) -> None:
    """Make a process of the pool the leader of a group, so that it can be killed with all its children."""
    os.setpgid(0, 0)
