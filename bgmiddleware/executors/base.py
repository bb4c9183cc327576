"""The contract of an executor."""

from abc import ABC, abstractmethod
from typing import ClassVar

from .._running import Run
from ..errors import QueueFull

__all__ = ["Executor", "full_group"]


class Executor(ABC):
    """Runs jobs. Constructing one starts nothing; all methods may be called from any thread."""

    in_process: ClassVar[bool] = False
    """Whether the executor calls the ``Run`` in this process. If not, it passes on only the run's key."""

    keeps_queue: ClassVar[bool] = False
    """Whether waiting jobs are in the memory of this process, and are lost with it."""

    needs_workers: ClassVar[bool] = False
    """Whether jobs wait for workers that somebody starts by hand, and that may not be there."""

    @property
    def takes_jobs(self) -> bool:
        """Whether ``submit`` still takes jobs: not after ``shutdown``."""
        return True

    @abstractmethod
    def submit(self, run: Run) -> None:
        """Run *run* soon and at most once. If a call says that the job must wait, call it again later.

        Raises ``QueueFull`` if too many jobs wait already; then the executor has not taken the run.
        """

    @abstractmethod
    def stop(self, key: str) -> None:
        """Stop a job as well as this executor can. The registry already has the cancel request. Best effort."""

    @abstractmethod
    def shutdown(self, drain: float | None = None) -> None:
        """Take no more jobs, wait up to *drain* seconds (None: as configured) for those it has, and record the rest as
        ``lost: server shut down``. Idempotent."""


def full_group(group: str, most: int, waiting: int) -> QueueFull:
    """Return what says that of a group *most* jobs may run, and too many wait for that."""
    kind = group.partition(" ")[0]
    return QueueFull(f"of one {kind} {most} may run at a time, and {waiting} are waiting")
