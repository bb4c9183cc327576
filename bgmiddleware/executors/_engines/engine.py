"""The common part of executors that hand jobs to an engine, whose workers are started apart from the web processes."""

from abc import abstractmethod
from collections.abc import Sequence

from ..._ground.numbers import check_count, check_seconds
from ..._jobs import Priority
from ..._running import Run
from ...errors import QueueFull
from ..base import Executor, full_group
from .sites import Site, Unloaded

__all__ = ["EngineExecutor", "no_answer", "too_many"]

_OF_ONE_GROUP = 10  # so many of them have room in the queue


class EngineExecutor(Executor):
    """Sends the keys of jobs to *queue*, for workers that ``python -m bgmiddleware work`` starts.

    Up to *max_pending* jobs wait in the queue; beyond that, and while the broker does not answer, ``submit`` raises
    ``QueueFull``. Of one group a tenth of that may wait, beside as many as may run, so that other jobs find places. A
    job that was asked to stop, or is over its deadline, gets *grace* seconds to end before its processes are killed.
    """

    needs_workers = True

    def __init__(self, *, queue: str, max_pending: int, grace: float) -> None:
        check_count("max_pending", max_pending, 1)
        check_seconds("grace", grace)
        self.queue = queue
        self.max_pending = max_pending
        self.grace = grace
        self._closed = False

    @property
    def takes_jobs(self) -> bool:
        return not self._closed

    def submit(self, run: Run) -> None:
        if self._closed:
            raise QueueFull("the server is shutting down")
        for group, most in run.groups.items():
            # Itself included: so of those that come at once none is one too many.
            waiting = run.registry.waiting(group)
            if waiting > most + self.max_pending // _OF_ONE_GROUP:
                raise full_group(group, most, waiting - 1)
        self._send(run.key, run.priority)

    def shutdown(self, drain: float | None = None) -> None:
        """Take no more jobs. Workers run those that were submitted."""
        self._closed = True
        self._disconnect()

    @abstractmethod
    def _send(self, key: str, priority: Priority) -> None:
        """Send the message of a job. Raises ``QueueFull`` if it was not sent."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Close all connections. Idempotent."""

    @abstractmethod
    def work(self, site: Site | Unloaded, options: Sequence[str]) -> None:
        """Run jobs as a worker, with *options* of the engine's own, until a signal stops it."""


def too_many(most: int) -> QueueFull:
    """Return the error for a queue in which *most* jobs wait."""
    return QueueFull(f"{most} jobs are waiting")


def no_answer(error: Exception) -> QueueFull:
    """Return the error for a broker that does not answer."""
    return QueueFull(f"the queue of jobs does not answer: {error}")
