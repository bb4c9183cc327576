"""Jobs in the workers of RQ, on this machine and on others: the extra ``rq``.

The web processes push the keys of jobs into a queue in Redis. Workers, started by ``python -m bgmiddleware work``, take
them out and fork a process for each job. Everything else about a job is in the registry.
"""

import argparse
import contextlib
import functools
import logging
import os
import signal
from collections.abc import Callable, Sequence
from typing import Any, cast

from .._capture import Outlet
from .._jobs import Priority
from ..errors import ConfigurationError
from ._engines.engine import EngineExecutor, no_answer, too_many
from ._engines.sites import Site, Unloaded
from ._engines.worker import run_message
from ._processes.watching import Remains, Watcher, how_it_ended, signal_group

try:
    from redis import Connection, ConnectionPool, Redis
    from redis.backoff import ExponentialBackoff, NoBackoff
    from redis.connection import parse_url
    from redis.exceptions import AuthenticationError, AuthorizationError, OutOfMemoryError, RedisError, ResponseError
    from redis.exceptions import ConnectionError as RedisConnectionError
    from redis.exceptions import TimeoutError as RedisTimeoutError
    from redis.retry import Retry
    from rq import Queue, Worker
    from rq.exceptions import NoSuchJobError
    from rq.executions import Execution
    from rq.job import Job as Message
    from rq.job import JobStatus

    from ..registries._redis.link import is_elsewhere
except ImportError as _error:
    raise ImportError("RQExecutor needs the extra rq: pip install 'bgmiddleware[rq]'") from _error

__all__ = ["RQExecutor"]

_log = logging.getLogger("bgmiddleware")

_SCHEMES = ("redis://", "rediss://", "unix://")
_LOOK_EVERY = 1  # seconds between two looks for jobs to kill or to deliver again; whole, because RQ sets an alarm
_DELIVERED_AT_ONCE = 10
_NO_LIMIT = -1
_FAILURE_TTL = 3600


class RQExecutor(EngineExecutor):
    """Runs jobs in RQ workers, each job in its own process. POSIX only.

    *url* is RQ's Redis (``redis://``, ``rediss://`` or ``unix://``), *queue* the name of the queue; jobs of high or low
    priority are in ``QUEUE:high`` and ``QUEUE:low``. Up to *max_pending* jobs wait in all of them; beyond that, and
    while Redis does not answer, ``submit`` raises ``QueueFull``. A job that was asked to stop, or is over its deadline,
    gets *grace* seconds to end before its processes are killed.

    Redis is trusted: anyone who can write there can have the app answer any request, as any user.
    """

    def __init__(
        self,
        url: str = "redis://localhost:6379/0",
        *,
        queue: str = "bgmiddleware",
        max_pending: int = 1000,
        grace: float = 5.0,
    ) -> None:
        if not url.startswith(_SCHEMES):
            shown = url.partition(":")[0] if "@" in url else url  # it may contain a password
            raise ConfigurationError.of_setting("url", shown, f"a URL that begins with one of {', '.join(_SCHEMES)}")
        super().__init__(queue=queue, max_pending=max_pending, grace=grace)
        self._url = url
        # No retries: they would push a job twice. And no client must wait for a Redis that hangs.
        self._client = _client(url, socket_timeout=5, socket_connect_timeout=5)
        self._queues = {priority: self._queue(priority) for priority in Priority}

    def _queue(self, priority: Priority) -> Queue:
        name = self.queue if priority is Priority.NORMAL else f"{self.queue}:{priority}"
        return Queue(name, connection=self._client, serializer="json")

    def _send(self, key: str, priority: Priority) -> None:
        queue = self._queues[priority]
        try:
            # In one pipeline, because each round trip costs as much as everything else here.
            with self._client.pipeline() as pipeline:
                queue.enqueue_call(
                    "bgmiddleware.executors.rq.refuse",
                    job_id=key,
                    timeout=_NO_LIMIT,  # the deadline is the job's own
                    result_ttl=0,
                    failure_ttl=_FAILURE_TTL,
                    description="bgmiddleware",
                    pipeline=pipeline,
                )
                for each in self._queues.values():
                    pipeline.llen(each.key)
                waiting = sum(pipeline.execute()[-len(self._queues) :])  # this job included
            if waiting > self.max_pending and self._take_back(queue, key):
                raise too_many(self.max_pending)
        except RedisError as error:
            raise no_answer(error) from error

    def _take_back(self, queue: Queue, key: str) -> bool:
        """Remove a message that was just sent. Return false if a worker has already taken it."""
        if not self._client.lrem(queue.key, -1, key):
            return False
        self._client.delete(Message.key_for(key))
        return True

    def stop(self, key: str) -> None:
        # The worker stops a running job, because it watches the registry. That works even if this process is gone.
        with contextlib.suppress(RedisError, NoSuchJobError):
            message = Message.fetch(key, self._client, "json")
            if message.get_status(refresh=False) in (JobStatus.QUEUED, JobStatus.SCHEDULED):
                message.delete()

    def _disconnect(self) -> None:
        self._client.close()

    def work(self, site: Site | Unloaded, options: Sequence[str]) -> None:
        """Run the jobs of the queue, each in a fork of this process, until a signal stops the worker."""
        parser = argparse.ArgumentParser(prog="python -m bgmiddleware work MODULE:APP", description="Run RQ's jobs.")
        parser.add_argument("--burst", action="store_true", help="end when no job is left")
        parser.add_argument("--name", help="the worker's name, unique; default: a random one")
        chosen = parser.parse_args(options)
        worker = _Worker(
            [queue.name for queue in self._queues.values()],  # the worker takes from them in this order
            chosen.name,
            # Of old versions of redis a call is only tried again after errors that are named here.
            connection=_client(self._url, retry=_AT_ONCE, retry_on_error=[RedisConnectionError, RedisTimeoutError]),
            serializer="json",
            job_monitoring_interval=_LOOK_EVERY,
            log_job_description=False,
        )
        worker.site = site
        worker.grace = self.grace
        worker.work(burst=chosen.burst)


def _client(url: str, **options: Any) -> Redis:
    """Return a client that leaves a server which cannot be written to, and tries nothing again by itself.

    After a fail-over behind one address, the connections that are open lead to the old primary, now a replica: it
    answers, and refuses to write. For RQ's worker that would be the end, while it survives a broken connection. The
    same is true of a server whose memory or disk is full.
    """
    options = {**parse_url(url), **options}  # type: ignore[no-untyped-call]
    kind: Any = options.pop("connection_class", Connection)

    class ToPrimary(kind):  # type: ignore[misc]
        def read_response(self, *arguments: Any, **named: Any) -> Any:
            try:
                return super().read_response(*arguments, **named)
            except ResponseError as error:
                if not (is_elsewhere(error) or _takes_no_writes(error)):
                    raise
                self.disconnect()
                raise RedisConnectionError(str(error).rstrip(".")) from error

    return Redis(connection_pool=ConnectionPool(ToPrimary, **options))


def _takes_no_writes(error: ResponseError) -> bool:
    return isinstance(error, OutOfMemoryError) or str(error).startswith(("MISCONF ", "NOREPLICAS "))


class _Patience(Retry):
    """Tries a call again until Redis answers, every two seconds in the end, and logs that it waits. It *gives up* where
    the worker is to end."""

    def __init__(self, gives_up: Callable[[], bool] = lambda: False) -> None:
        super().__init__(ExponentialBackoff(cap=2, base=0.1), -1)
        self._gives_up = gives_up

    def call_with_retry(self, do: Callable[[], Any], fail: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        waits = False

        def note(error: Exception, *count: int) -> None:
            nonlocal waits
            fail(error, *count)
            if isinstance(error, (AuthenticationError, AuthorizationError)) or self._gives_up():
                raise error
            if not waits:
                _log.warning("Redis does not answer the worker, which tries again: %s", error)
            waits = True

        return super().call_with_retry(do, note, *arguments, **named)


_AT_ONCE = Retry(NoBackoff(), 0)


def refuse() -> None:
    """Say what is wrong. Messages name this function, and only workers of another kind would call it."""
    raise RuntimeError("this queue is for workers that are started by: python -m bgmiddleware work MODULE:APP")


class _KeyOnly(Message):
    """A message of which only the key is used: nothing else that is stored in Redis is imported or called."""

    site: Site | Unloaded
    outlet: Outlet
    success_callback = failure_callback = stopped_callback = None

    def perform(self) -> None:
        if run_message(self.site, self.id, self.outlet):  # must wait: let RQ schedule it
            self.repeats_left, self.repeat_intervals = 1, [1]
        else:  # what RQ notes of a job that has ended is worth no waiting
            self.connection.set_retry(_AT_ONCE)

    def send_webhooks(self, *arguments: Any, **named: Any) -> None:
        """Send nothing."""


class _Worker(Worker):
    """Takes keys out of the queue, and watches the process that runs the job."""

    job_class = _KeyOnly
    dequeue_timeout = _LOOK_EVERY
    site: Site | Unloaded
    grace: float
    _remains: Remains
    _watcher: Watcher
    _status = 0

    def bootstrap(self, *arguments: Any, **named: Any) -> None:
        super().bootstrap(*arguments, **named)  # fails at once if the URL is wrong
        # RQ survives an outage only while it waits for a message. Later it would end, and lose the one that it has.
        self._be_patient()

    def _be_patient(self) -> None:
        self.connection.set_retry(_Patience(lambda: self._stop_requested))

    def teardown(self) -> None:
        self.connection.set_retry(_AT_ONCE)
        with contextlib.suppress(RedisError):  # RQ forgets a worker that says nothing more
            super().teardown()  # type: ignore[no-untyped-call]

    def set_shutdown_requested_date(self) -> None:
        """Write nothing: a handler of signals calls this, wherever the worker is, and nobody reads it."""

    def set_state(self, state: str, pipeline: Any = None) -> None:
        with contextlib.suppress(RedisError):  # where the worker is to end
            super().set_state(state, pipeline)

    def run_maintenance_tasks(self) -> None:
        with contextlib.suppress(RedisError):  # they can wait
            super().run_maintenance_tasks()  # type: ignore[no-untyped-call]

    # Old versions of redis do not try a pipeline again.

    def prepare_execution(self, job: Message) -> Execution:
        prepare = functools.partial(super().prepare_execution, job)
        return cast(Execution, _Patience().call_with_retry(prepare, lambda error: self.executions.clear()))

    def prepare_job_execution(self, job: Message, remove_from_intermediate_queue: bool = False) -> None:
        prepare = functools.partial(super().prepare_job_execution, job, remove_from_intermediate_queue)
        _Patience().call_with_retry(prepare, lambda error: None)

    def execute_job(self, job: Message, queue: Queue) -> None:
        with contextlib.closing(Remains(redaction=self.site.redaction)) as self._remains:  # the fork inherits it
            super().execute_job(job, queue)

    def perform_job(self, job: Message, queue: Queue, execution: Execution) -> bool:
        message = cast(_KeyOnly, job)
        message.site, message.outlet = self.site, self._remains.outlet
        return super().perform_job(job, queue, execution)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        if pipeline is not None:
            super().heartbeat(timeout, pipeline)
            return
        with contextlib.suppress(RedisError):  # the next time
            super().heartbeat(timeout)
            self._deliver_again()  # between jobs

    def monitor_work_horse(self, job: Message, queue: Queue, execution: Execution) -> None:
        registry, pid = self.site.registry, self.horse_pid
        self._watcher = Watcher(registry, job.id, self.grace)
        self._remains.hand_over()
        self.connection.set_retry(_AT_ONCE)  # the look at the job each second must not wait for Redis
        try:
            super().monitor_work_horse(job, queue, execution)
        except SystemExit:  # at the second signal RQ has killed the process
            self._remains.end_if_left(registry, job.id, pid, "its worker was shut down")
            raise
        except RedisError as error:  # the process has ended, and RQ could not note how
            _log.warning("job %s: RQ could not note its end: %s", job.id[:8], error)
        self._be_patient()
        if self._status:
            signal_group(pid, signal.SIGKILL)  # the children that it left behind
        self._remains.end_if_left(registry, job.id, pid, how_it_ended(self._status), regular=not self._status)

    def wait_for_horse(self) -> tuple[int | None, int | None, Any]:
        pid, status, usage = super().wait_for_horse()
        self._status = os.waitstatus_to_exitcode(status or 0)
        return pid, status, usage

    def maintain_heartbeats(self, job: Message, execution: Execution) -> None:
        # RQ calls this each second while the job runs. If it raised, RQ would abandon the process that runs the job.
        with contextlib.suppress(RedisError):
            super().maintain_heartbeats(job, execution)
            self._deliver_again()
        self._remains.outlet.relieve()
        due = self._watcher.look()
        if due is not None:
            self._stopped_job_id = job.id  # so that RQ does not count it as failed
            signal_group(self.horse_pid, due)

    def _deliver_again(self) -> None:
        """Put jobs that waited for their group back into the queue. RQ's scheduler would do it in a process of its own.

        If two workers do so at once, the job is delivered twice and runs once.
        """
        for queue in self.queues:
            waiting = queue.scheduled_job_registry
            # A few at a time: each needs a fork to find out whether its group has room now.
            for key in waiting.get_jobs_to_schedule(chunk_size=_DELIVERED_AT_ONCE):
                message = queue.fetch_job(key)
                with queue.connection.pipeline() as pipeline:
                    if message is not None:
                        queue.enqueue_job(message, pipeline=pipeline)
                    waiting.remove(key, pipeline=pipeline)
                    pipeline.execute()
