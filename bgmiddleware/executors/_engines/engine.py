"""What the executors have in common whose jobs run in workers of an engine, begun apart from the web processes."""

from abc import abstractmethod
from collections.abc import Sequence

from ..._ground.numbers import check_count, check_seconds
from ..._jobs import Priority
from ..._running import Run
from ...errors import QueueFull
from ..base import Executor
from .sites import Site, Unloaded

__all__ = ["EngineExecutor", "no_answer", "too_many"]


class EngineExecutor(Executor):
    """Sends the keys of jobs into *queue*, for workers begun by ``python -m bgmiddleware work``.

    Up to *max_pending* jobs wait in it; then, and while it does not answer, ``submit`` raises ``QueueFull``. A job that
    was asked to stop, or is over its deadline, gets *grace* seconds to end by itself before its processes are killed.
    """

    def __init__(self, *, queue: str, max_pending: int, grace: float) -> None:
        check_count("max_pending", max_pending, 1)
        check_seconds("grace", grace)
        self.queue = queue
        self.max_pending = max_pending
        self.grace = grace
        self._closed = False

    def submit(self, run: Run) -> None:
        if self._closed:
            raise QueueFull("the server is shutting down")
        self._send(run.key, run.priority)

    def shutdown(self, drain: float | None = None) -> None:
        """Take no more jobs; those that were taken are the workers'."""
        self._closed = True
        self._disconnect()

    @abstractmethod
    def _send(self, key: str, priority: Priority) -> None:
        """Send the message of a job. Raises ``QueueFull``, and then none was sent."""

    @abstractmethod
    def _disconnect(self) -> None:
        """Let go of all connections. Idempotent."""

    @abstractmethod
    def work(self, site: Site | Unloaded, options: Sequence[str]) -> None:
        """Be a worker, with *options* of the engine's own, until a signal says stop."""


def too_many(most: int) -> QueueFull:
    """Return what says that *most* jobs wait."""
    return QueueFull(f"{most} jobs are waiting")


def no_answer(error: Exception) -> QueueFull:
    """Return what says that the broker is away."""
    return QueueFull(f"the queue of jobs does not answer: {error}")
