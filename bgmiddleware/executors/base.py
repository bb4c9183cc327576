"""The contract of an executor."""

from abc import ABC, abstractmethod
from typing import ClassVar

from .._running import Run
from ..errors import QueueFull

__all__ = ["Executor", "full_group"]


class Executor(ABC):
    """Runs jobs. Constructing one starts nothing; all methods may be called from any thread."""

    in_process: ClassVar[bool] = False
    """Whether it calls the run in this process; one that does not carries the run's key and nothing else."""

    keeps_queue: ClassVar[bool] = False
    """Whether jobs wait in the memory of this process, and are lost with it."""

    needs_workers: ClassVar[bool] = False
    """Whether jobs wait for workers that somebody starts by hand, and that may not be there."""

    @abstractmethod
    def submit(self, run: Run) -> None:
        """Run it, soon and at most once; again where it says that it must wait.

        Raises ``QueueFull`` where it would have to wait behind too many, and then has not taken it.
        """

    @abstractmethod
    def stop(self, key: str) -> None:
        """Stop a job as well as this executor can; its registry knows already that it shall. Best effort."""

    @abstractmethod
    def shutdown(self, drain: float | None = None) -> None:
        """Take no more jobs, wait up to *drain* seconds (None: as configured) for those it has, and write down the
        rest as ``lost: server shut down``. Idempotent."""


def full_group(group: str, most: int, waiting: int) -> QueueFull:
    """Return what says that of a group *most* jobs may run, and too many wait for that."""
    kind = group.partition(" ")[0]
    return QueueFull(f"of one {kind} {most} may run at a time, and {waiting} are waiting")
