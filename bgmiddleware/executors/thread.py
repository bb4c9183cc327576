"""Jobs in threads of this process."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

from .._running import Run
from ._local import LocalExecutor

__all__ = ["ThreadExecutor"]


class ThreadExecutor(LocalExecutor):
    """Runs up to *max_workers* jobs at a time in threads of this process, named ``bgmiddleware-N``.

    The threads start when jobs need them, and again after a fork. Up to *max_pending* jobs wait; beyond that ``submit``
    raises ``QueueFull``. At the end of the process running jobs get *drain* seconds.
    """

    in_process = True

    def __init__(self, *, max_workers: int = 8, max_pending: int = 100, drain: float = 10.0) -> None:
        super().__init__(max_workers=max_workers, max_pending=max_pending, drain=drain)

    def _worker(self) -> AbstractContextManager[Callable[[Run], bool]]:
        return nullcontext(lambda run: run())
