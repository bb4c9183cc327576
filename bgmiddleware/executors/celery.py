"""Jobs in workers of Celery, with any broker that it supports: the extra ``celery``.

The web processes send empty messages whose id is the job's key. Workers, started by ``python -m bgmiddleware work``,
run the jobs in Celery's pool of processes. Everything else about a job is in the registry.
"""

import contextlib
import logging
import os
import re
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from .._capture import Outlet, write_late
from .._ground.loading import loaded
from .._jobs import Priority
from ..errors import ConfigurationError, QueueFull
from ._engines.engine import EngineExecutor, no_answer, too_many
from ._engines.sites import Site, Unloaded
from ._engines.worker import run_message
from ._processes.watching import Remains, Watcher, how_it_ended, signal_group

try:
    from celery import Celery, Task, __version__, bootsteps, signals
    from celery.concurrency.prefork import TaskPool
    from celery.exceptions import Ignore, Terminated, WorkerLostError
    from celery.worker import state
    from celery.worker.request import Request
    from click import ClickException
    from kombu.entity import Exchange, Queue
    from kombu.exceptions import KombuError
except ImportError as _error:
    raise ImportError("CeleryExecutor needs the extra celery: pip install 'bgmiddleware[celery]'") from _error

__all__ = ["CeleryExecutor"]

_TASK = "bgmiddleware.run"
_LOOK_EVERY = 1.0
_DAY = 86_400
_CONNECTIONS = 8
_OLDEST = (5, 7)  # with 5.6 a job that waits for a place within its limit is never delivered again


class CeleryExecutor(EngineExecutor):
    """Runs jobs in Celery workers (5.7 or newer), which ``python -m bgmiddleware work`` starts.

    *celery*: your ``Celery``, or its name as ``module:attribute``, which is imported at first use; its broker settings
    apply. *queue*: the name of a queue that only these workers use. Up to *max_pending* jobs wait in it; beyond that,
    and while the broker does not answer, ``submit`` raises ``QueueFull``. A job that was asked to stop, or is over its
    deadline, gets *grace* seconds to end before its processes are killed.

    If a setting does not fit jobs that run for hours, the worker refuses to start and ``submit`` to send, with a
    ``ConfigurationError``.
    """

    def __init__(
        self, celery: "Celery | str", *, queue: str = "bgmiddleware", max_pending: int = 1000, grace: float = 5.0
    ) -> None:
        super().__init__(queue=queue, max_pending=max_pending, grace=grace)
        version = tuple(int(part) for part in __version__.split(".")[:2])
        if version < _OLDEST:
            raise ConfigurationError(f"Celery {__version__}: expected 5.7 or newer, pip install 'bgmiddleware[celery]'")
        self._given = celery
        self._queue = Queue(queue, Exchange(queue), routing_key=queue, max_priority=max(_OF_AMQP.values()))  # type: ignore[no-untyped-call]
        self._outbox = _Outbox(self._queue, max_pending)

    @property
    def celery(self) -> Any:
        """The ``Celery`` app that it uses."""
        if not isinstance(self._given, Celery):
            found = loaded("executor", self._given)
            if not isinstance(found, Celery):
                raise ConfigurationError(
                    f"executor = celery:{self._given}: expected a Celery app, and this is a {type(found).__name__}"
                )
            self._given = found
        return self._given

    def _send(self, key: str, priority: Priority) -> None:
        if self.celery.conf.task_always_eager:
            raise ConfigurationError(
                "task_always_eager = True: expected False, since Celery would run jobs in the web process, before it"
                " answers. Use a ThreadExecutor where there are no workers"
            )
        self._outbox.send(self.celery, key, priority)

    def stop(self, key: str) -> None:
        """Do nothing: the worker that runs the job watches the registry, and no worker runs a cancelled message."""

    def _disconnect(self) -> None:
        self._outbox.close()

    def work(self, site: Site | Unloaded, options: Sequence[str]) -> None:
        """Run jobs as a worker, with *options* of Celery's own, until a signal stops it."""
        app = self.celery
        _force(app.conf, self._queue)
        self._outbox.check(app)
        task = app.task(
            _run,
            name=_TASK,
            base=_Task,
            bind=True,
            shared=False,
            acks_late=False,  # a broker would deliver a job of hours again
            reject_on_worker_lost=False,
            ignore_result=True,
            track_started=False,
            serializer="json",
        )
        task.site, task.grace, task.outbox, task.waiting = site, self.grace, self._outbox, deque()
        task.outlets = {}
        app.steps["worker"].add(_Watch)
        signals.worker_process_init.connect(_lead_group, weak=False)
        signals.setup_logging.connect(_set_up_logging, weak=False)
        with tempfile.TemporaryDirectory(prefix="bgmiddleware-", ignore_cleanup_errors=True) as task.directory:
            try:
                app.worker_main(["worker", "--hostname", f"bgmiddleware-{os.getpid()}@%h", *options])
            except ClickException as error:
                raise ConfigurationError(f"celery worker: {error.format_message()}") from None


class _Outbox:
    """Sends messages, over connections to the broker with short time-outs. Any thread may send."""

    def __init__(self, queue: Queue, max_pending: int) -> None:
        self._queue = queue
        self._max_pending = max_pending
        self._pools: dict[int, Any] = {}  # by process: a forked child needs connections of its own
        self._unseen = 0  # how many messages may be sent before the next look at the queue
        self._look_at = 0.0  # when that look is due at the latest

    def send(self, app: Celery, key: str, priority: Priority) -> None:
        """Send the message of the job *key*. Raises ``QueueFull``."""
        with self._connected(app) as connection:
            self._check_room(connection)
            numbers = _OF_REDIS if _is_redis(connection) else _OF_AMQP
            self._send(app, connection, key, numbers[priority])

    def send_again(self, app: Celery, key: str, priority: int | None) -> None:
        """Send a message again with the *priority* that it had, even if too many wait. Raises ``QueueFull``."""
        with self._connected(app) as connection:
            self._send(app, connection, key, priority)

    def check(self, app: Celery) -> None:
        """Raise ``ConfigurationError`` if the broker has a queue of another kind. Ignore a broker that is away."""
        with contextlib.suppress(QueueFull), self._connected(app) as connection:
            self._declare(connection)

    def close(self) -> None:
        """Close all connections."""
        pool = self._pools.pop(os.getpid(), None)
        if pool is not None:
            pool.force_close_all()

    @contextlib.contextmanager
    def _connected(self, app: Celery) -> Iterator[Any]:
        pool = self._pools.get(os.getpid()) or self._pools.setdefault(os.getpid(), _pool(app))
        errors = (KombuError, OSError, *pool.connection.connection_errors, *pool.connection.channel_errors)
        try:
            with pool.acquire(block=True, timeout=_PATIENCE) as connection:
                yield connection
        except errors as error:
            if getattr(error, "reply_code", None) == _PRECONDITION_FAILED:
                raise ConfigurationError(
                    f"queue = {self._queue.name!r}: the broker has a queue of this name with other properties. Delete"
                    f" it there, or name another one: {error}"
                ) from error
            raise no_answer(error) from error

    def _check_room(self, connection: Any) -> None:
        # If there is much room, look only now and then: a look costs as much as a message.
        self._unseen -= 1
        now = time.monotonic()
        if self._unseen > 0 and now < self._look_at:
            return
        waiting = self._declare(connection)
        if waiting >= self._max_pending:
            raise too_many(waiting)
        self._unseen, self._look_at = (self._max_pending - waiting) // 10, now + _LOOK_EVERY

    def _declare(self, connection: Any) -> int:
        """Create the queue if there is none. Return how many messages wait in it."""
        declare: Any = self._queue(connection.default_channel).queue_declare
        waiting: int = declare().message_count
        return waiting

    def _send(self, app: Celery, connection: Any, key: str, priority: int | None) -> None:
        app.send_task(
            _TASK,
            task_id=key,
            queue=self._queue,
            priority=priority,
            serializer="json",
            ignore_result=True,
            connection=connection,
            retry=True,  # the connection may have been idle too long; a message that comes twice runs once
            retry_policy=_ONCE_MORE,
        )


_ONCE_MORE = {"max_retries": 1, "interval_start": 0, "interval_step": 0}
_PATIENCE = 5.0
_PRECONDITION_FAILED = 406  # a reply code of AMQP
# With Redis the lowest number comes first, in kombu's steps: 0, 3, 6, 9. With AMQP the highest comes first.
_OF_REDIS = {Priority.HIGH: 0, Priority.NORMAL: 3, Priority.LOW: 6}
_OF_AMQP = {Priority.HIGH: 2, Priority.NORMAL: 1, Priority.LOW: 0}


def _is_redis(connection: Any) -> bool:
    return bool(connection.transport.driver_type == "redis")


def _pool(app: Celery) -> Any:
    connection = app.connection_for_write()
    if _is_redis(connection):
        limits = {"socket_timeout": _PATIENCE, "socket_connect_timeout": _PATIENCE}
    else:
        # Ask for confirmation: otherwise nobody would notice that the broker is gone.
        limits = {"read_timeout": _PATIENCE, "write_timeout": _PATIENCE, "confirm_publish": True}
    options = {**limits, **_ONCE_MORE}
    return app.connection_for_write(transport_options=options, connect_timeout=_PATIENCE).Pool(limit=_CONNECTIONS)


def _force(conf: Any, queue: Queue) -> None:
    """Set what jobs need in this worker. Refuse settings that other processes would have to change, too."""
    options = dict(conf.broker_transport_options or {})
    if not options.setdefault("visibility_timeout", _DAY) >= _DAY:
        raise ConfigurationError(
            f"broker_transport_options: visibility_timeout = {options['visibility_timeout']}: expected at least"
            f" {_DAY} (a day), for all that use this broker: what waits longer would be delivered again"
        )
    conf.update(
        task_queues=[queue],
        task_queue_max_priority=None,  # our queue has its own
        broker_transport_options=options,
        accept_content=["json"],
        worker_pool="prefork",
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,  # for brokers other than Redis, which always prefetch
        worker_redirect_stdouts=False,
        task_time_limit=None,  # the deadline is the job's own
        task_soft_time_limit=None,
        worker_lost_wait=0.1,  # how long to wait for a result; ours have none
    )


def _run(task: "_Task") -> None:
    """Run one job, in a process of the pool."""
    path = task.output_path(task.request.id, os.getpid())
    outlet = Outlet.make_at(path)
    try:
        must_wait = run_message(task.site, task.request.id, outlet)
    finally:
        outlet.end(write_late("stdout"))
        Outlet.remove_at(path)
    if must_wait:
        raise Ignore("it must wait")  # a return value would not reach the pool's parent


class _Request(Request):  # type: ignore[misc]
    """One message, in the pool's parent."""

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        super().on_accepted(pid, time_accepted)
        self.task.hold(self.id, pid)

    def on_failure(self, exc_info: Any, *arguments: Any, **named: Any) -> None:
        super().on_failure(exc_info, *arguments, **named)
        error = getattr(exc_info.exception, "exc", exc_info.exception)
        if isinstance(error, Ignore):  # see _run
            self.task.let_go(self.task.output_path(self.id, self.worker_pid))
            self.task.waiting.append((self.id, self.delivery_info["priority"]))
            return
        if isinstance(error, WorkerLostError | Terminated) and self.worker_pid:
            signal_group(self.worker_pid, signal.SIGKILL)  # children that it left behind
        self.end(_how(error))

    def end(self, how: str) -> None:
        """Record how the job ended, unless its process did so."""
        self.task.end(self.id, self.worker_pid, how)


def _how(error: BaseException) -> str:
    """Return in words how a process ended. Celery's own sentence contains the status."""
    if found := re.search(r"(signal|exitcode) (\d+)", str(error)):
        return how_it_ended(int(found[2]) * (-1 if found[1] == "signal" else 1))
    return f"its process failed: {error}"


class _Task(Task):  # type: ignore[misc]
    Request = _Request
    site: Site | Unloaded
    grace: float
    outbox: _Outbox
    waiting: deque[tuple[str, int | None]]
    """The jobs whose groups were full when their message came, with the message's priority."""
    directory: str
    """The directory of the files that the output of jobs passes through."""
    outlets: dict[str, Outlet]
    """The outlets of running jobs, by path."""

    def output_path(self, key: str, pid: int) -> str:
        """Return the path of the output file of a job that process *pid* runs."""
        return os.path.join(self.directory, f"{key}-{pid}")

    def end(self, key: str, pid: int, how: str) -> None:
        """Record how a job ended that process *pid* ran, unless the process did so."""
        path = self.output_path(key, pid)
        outlet = self.outlets.pop(path, None)
        if outlet is None:
            with contextlib.suppress(FileNotFoundError):  # the process had not created it yet
                outlet = Outlet.find_at(path)
        Outlet.remove_at(path)
        with contextlib.closing(Remains(outlet, redaction=self.site.redaction)) as remains:
            remains.end_if_left(self.site.registry, key, pid, how)

    def hold(self, key: str, pid: int) -> None:
        """Open the outlet of a job, so that output which its process leaves in the pipe is kept. Where the process has
        not made it yet, it takes this one: it may die before we look again, and the pipe would die with it."""
        path = self.output_path(key, pid)
        if path not in self.outlets:
            with contextlib.suppress(FileNotFoundError):  # it has just ended, and removed the names
                Outlet.name_at(path)
                self.outlets[path] = Outlet.find_at(path)

    def let_go(self, path: str) -> None:
        """Close the outlet of a job that runs no more, and remove its names, which we may have made after its end."""
        if path in self.outlets:
            self.outlets.pop(path).end(write_late("stdout"))
            Outlet.remove_at(path)

    def look_into(self, running: Collection[tuple[str, int]]) -> None:
        """Read the pipes of these jobs, whose processes may be busy in C code that prints; close all other outlets."""
        paths = {self.output_path(key, pid) for key, pid in running}
        for key, pid in running:
            self.hold(key, pid)
        for path in self.outlets.keys() - paths:
            self.let_go(path)
        for outlet in self.outlets.values():
            outlet.relieve()

    def end_all(self, pids: Collection[int], how: str) -> None:
        """Call :meth:`end` for all jobs that these processes ran, including those that Celery does not know of yet."""
        for name in os.listdir(self.directory):
            key, _, pid = name.rpartition("-")
            if not Outlet.is_pipe(name) and int(pid) in pids:
                self.end(key, int(pid), how)


class _Watch(bootsteps.StartStopStep):  # type: ignore[misc]
    """Watches the jobs that the pool runs, once a second, in the pool's parent."""

    requires = ("celery.worker.components:Pool", "celery.worker.components:Timer")

    def __init__(self, worker: Any, **named: Any) -> None:
        super().__init__(worker, **named)
        if not issubclass(worker.pool_cls, TaskPool):
            raise ConfigurationError(
                f"worker_pool = {worker.pool_cls.__module__}: expected prefork: threads cannot be killed"
            )
        self._watchers: dict[str, Watcher] = {}

    def start(self, worker: Any) -> None:
        self._entry = worker.timer.call_repeatedly(_LOOK_EVERY, self._look, (worker,))

    def stop(self, worker: Any) -> None:
        self._entry.cancel()
        self._deliver_again(worker.app.tasks[_TASK])

    def terminate(self, worker: Any) -> None:
        """Kill the running jobs: the worker must not wait for them."""
        self.stop(worker)
        pids = worker.pool.info["processes"]
        for pid in pids:
            signal_group(pid, signal.SIGKILL)
        worker.app.tasks[_TASK].end_all(pids, "its worker was shut down")

    def _look(self, worker: Any) -> None:
        task = worker.app.tasks[_TASK]
        self._deliver_again(task)
        active = [request for request in list(state.active_requests) if isinstance(request, _Request)]
        running = {request.id: request for request in active}
        task.look_into([(request.id, request.worker_pid) for request in active if request.worker_pid])
        known = self._watchers
        self._watchers = {key: known.get(key) or Watcher(task.site.registry, key, task.grace) for key in running}
        for key, watcher in self._watchers.items():
            due = watcher.look()
            if due is not None:
                signal_group(running[key].worker_pid, due)
            if due is signal.SIGKILL:
                running[key].terminate(worker.pool, "SIGKILL")  # the process is dead; this tells Celery why
                running[key].end("its process was killed")

    def _deliver_again(self, task: _Task) -> None:
        # Not by Celery's countdown: this worker would keep the job behind its own, though other workers may be idle.
        with contextlib.suppress(QueueFull):
            while task.waiting:
                task.outbox.send_again(task.app, *task.waiting[0])
                task.waiting.popleft()


def _set_up_logging(loglevel: int, logfile: str | None, format: str, **named: Any) -> None:  # noqa: A002  # Celery's name
    """Let only Celery's own logger write beside the jobs. By default Celery takes over the app's logging and the
    console."""
    handler = logging.FileHandler(logfile) if logfile else logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(format))
    logger = logging.getLogger("celery")
    logger.addHandler(handler)
    logger.setLevel(loglevel)
    logger.propagate = False


def _lead_group(**named: Any) -> None:
    """Make a pool process the leader of a process group, so that it can be killed with all its children."""
    os.setpgid(0, 0)
