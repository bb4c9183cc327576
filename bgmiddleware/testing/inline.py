"""Jobs that run within their request."""

import contextlib
from collections.abc import Iterator

from .._middleware import BackgroundMiddleware
from .._running import Run
from ..errors import QueueFull
from ..executors.base import Executor

__all__ = ["InlineExecutor", "inline"]


class InlineExecutor(Executor):
    """Runs each job at once, in the thread of the request that starts it, for tests.

    The request is recorded and replayed, and the job's output and response are stored, as by any other executor. But
    the job has ended when the client is told where it is, so a test waits for nothing. Nothing can be seen of a job
    while it runs, and a client cannot cancel it. ``submit`` raises ``QueueFull`` where the job would have to wait for
    another one of its group, or after ``shutdown``.
    """

    in_process = True

    def __init__(self) -> None:
        self._is_closed = False

    def submit(self, run: Run) -> None:
        if self._is_closed:
            raise QueueFull("the server is shutting down")
        if run():
            raise QueueFull("another job of its group runs, and an InlineExecutor lets none wait")

    def stop(self, key: str) -> None:
        """Do nothing: the registry has told the job already."""

    def shutdown(self, drain: float | None = None) -> None:
        self._is_closed = True


@contextlib.contextmanager
def inline(middleware: BackgroundMiddleware) -> Iterator[InlineExecutor]:
    """Let the jobs that start in this block run in their requests, whatever executor the site has. Not for tests that
    use one middleware in several threads."""
    executor, before = InlineExecutor(), middleware.executor
    _give(middleware, executor)
    try:
        yield executor
    finally:
        _give(middleware, before)


def _give(middleware: BackgroundMiddleware, executor: Executor) -> None:
    middleware.executor = executor
    object.__setattr__(middleware._site, "executor", executor)  # frozen for all but tests
