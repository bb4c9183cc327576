"""Jobs in the workers of RQ, on this machine and on others: the extra ``rq``.

The web processes push the keys of jobs into a queue of Redis; workers, begun by ``python -m bgmiddleware work``, take
them out and fork a process for each. All else about a job is in the registry.
"""

import argparse
import contextlib
import os
import signal
from collections.abc import Sequence
from typing import Any, cast

from .._capture import Outlet
from .._jobs import Priority
from ..errors import ConfigurationError
from ._engines.engine import EngineExecutor, no_answer, too_many
from ._engines.sites import Site, Unloaded
from ._engines.worker import run_message
from ._processes.watching import Remains, Watcher, how_it_ended, signal_group

try:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError
    from redis.retry import Retry
    from rq import Queue, Worker
    from rq.exceptions import NoSuchJobError
    from rq.executions import Execution
    from rq.job import Job as Message
    from rq.job import JobStatus
except ImportError as _error:
    raise ImportError("RQExecutor needs the extra rq: pip install 'bgmiddleware[rq]'") from _error

__all__ = ["RQExecutor"]

_SCHEMES = ("redis://", "rediss://", "unix://")
_LOOK_EVERY = 1  # for what must be killed, and what waits for a place in its group; whole seconds: RQ sets an alarm
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
        # Silent retries push twice, and no client shall wait for a Redis that hangs.
        self._client = Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0))
        self._queues = {priority: self._queue(priority) for priority in Priority}

    def _queue(self, priority: Priority) -> Queue:
        name = self.queue if priority is Priority.NORMAL else f"{self.queue}:{priority}"
        return Queue(name, connection=self._client, serializer="json")

    def _send(self, key: str, priority: Priority) -> None:
        queue = self._queues[priority]
        try:
            # All at once, since each call that Redis answers costs as much as all the rest.
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
                waiting = sum(pipeline.execute()[-len(self._queues) :])  # itself included
            if waiting > self.max_pending and self._take_back(queue, key):
                raise too_many(self.max_pending)
        except RedisError as error:
            raise no_answer(error) from error

    def _take_back(self, queue: Queue, key: str) -> bool:
        """Remove a message that was just sent, unless a worker has it already; return whether it was there."""
        if not self._client.lrem(queue.key, -1, key):
            return False
        self._client.delete(Message.key_for(key))
        return True

    def stop(self, key: str) -> None:
        # What runs is stopped by its worker, which looks at the registry: that works too when this process is gone.
        with contextlib.suppress(RedisError, NoSuchJobError):
            message = Message.fetch(key, self._client, "json")
            if message.get_status(refresh=False) in (JobStatus.QUEUED, JobStatus.SCHEDULED):
                message.delete()

    def _disconnect(self) -> None:
        self._client.close()

    def work(self, site: Site | Unloaded, options: Sequence[str]) -> None:
        """Be a worker: run the jobs of the queue until a signal says stop, each in a fork of this process."""
        parser = argparse.ArgumentParser(prog="python -m bgmiddleware work MODULE:APP", description="Run RQ's jobs.")
        parser.add_argument("--burst", action="store_true", help="end when no job is left")
        parser.add_argument("--name", help="the worker's name, unique; default: a random one")
        chosen = parser.parse_args(options)
        worker = _Worker(
            [queue.name for queue in self._queues.values()],  # it takes from them in this order
            chosen.name,
            connection=Redis.from_url(self._url),
            serializer="json",
            job_monitoring_interval=_LOOK_EVERY,
            log_job_description=False,
        )
        worker.site = site
        worker.grace = self.grace
        worker.work(burst=chosen.burst)


def refuse() -> None:
    """Say what is wrong: the function that messages name, which only a worker of another kind would call."""
    raise RuntimeError("this queue is for workers begun by: python -m bgmiddleware work MODULE:APP")


class _KeyOnly(Message):
    """A message of which only the key is believed: nothing that Redis may name is imported or called."""

    site: Site | Unloaded
    outlet: Outlet
    success_callback = failure_callback = stopped_callback = None

    def perform(self) -> None:
        if run_message(self.site, self.id, self.outlet):  # then RQ has it scheduled
            self.repeats_left, self.repeat_intervals = 1, [1]

    def send_webhooks(self, *arguments: Any, **named: Any) -> None:
        """Send nothing."""


class _Worker(Worker):
    """Takes keys out of the queue, and looks after the process that runs one."""

    job_class = _KeyOnly
    dequeue_timeout = _LOOK_EVERY
    site: Site | Unloaded
    grace: float
    _remains: Remains
    _watcher: Watcher
    _status = 0

    def execute_job(self, job: Message, queue: Queue) -> None:
        with contextlib.closing(Remains()) as self._remains:  # the forked process has it too
            super().execute_job(job, queue)

    def perform_job(self, job: Message, queue: Queue, execution: Execution) -> bool:
        message = cast(_KeyOnly, job)
        message.site, message.outlet = self.site, self._remains.outlet
        return super().perform_job(job, queue, execution)

    def heartbeat(self, timeout: int | None = None, pipeline: Any = None) -> None:
        super().heartbeat(timeout, pipeline)
        if pipeline is None:  # between jobs
            self._deliver_again()

    def monitor_work_horse(self, job: Message, queue: Queue, execution: Execution) -> None:
        registry, pid = self.site.registry, self.horse_pid
        self._watcher = Watcher(registry, job.id, self.grace)
        self._remains.hand_over()
        try:
            super().monitor_work_horse(job, queue, execution)
        except SystemExit:  # at the second signal to end RQ has killed it
            self._remains.end_if_left(registry, job.id, pid, "its worker was shut down")
            raise
        if self._status:
            signal_group(pid, signal.SIGKILL)  # children that it left behind
        self._remains.end_if_left(registry, job.id, pid, how_it_ended(self._status), regular=not self._status)

    def wait_for_horse(self) -> tuple[int | None, int | None, Any]:
        pid, status, usage = super().wait_for_horse()
        self._status = os.waitstatus_to_exitcode(status or 0)
        return pid, status, usage

    def maintain_heartbeats(self, job: Message, execution: Execution) -> None:
        # Called each second while the job runs. Of an error RQ would leave the process that runs it alone.
        with contextlib.suppress(RedisError):
            super().maintain_heartbeats(job, execution)
            self._deliver_again()
        self._remains.outlet.relieve()
        due = self._watcher.look()
        if due is not None:
            self._stopped_job_id = job.id  # in RQ's books it did not fail
            signal_group(self.horse_pid, due)

    def _deliver_again(self) -> None:
        """Put jobs that waited for a place in their group back into the queue: what RQ's scheduler does, without its
        process. Where two workers do so at once the job comes twice, and runs once."""
        for queue in self.queues:
            waiting = queue.scheduled_job_registry
            # A few at a time: each costs a fork to find out whether there is a place now.
            for key in waiting.get_jobs_to_schedule(chunk_size=_DELIVERED_AT_ONCE):
                message = queue.fetch_job(key)
                with queue.connection.pipeline() as pipeline:
                    if message is not None:
                        queue.enqueue_job(message, pipeline=pipeline)
                    waiting.remove(key, pipeline=pipeline)
                    pipeline.execute()
