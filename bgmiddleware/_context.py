"""What a view sees of its job, and the two decorators that ask for one."""

import contextlib
import functools
import inspect
import operator
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, copy_context
from types import CodeType
from typing import Any, ParamSpec, TypeVar

from ._capture import ForegroundOutput, current_output
from ._running import RunningJob
from .errors import ConfigurationError

__all__ = ["BackgroundRequested", "background", "backgrounder", "current_job", "progress", "track"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")

_REPORT_EVERY = 0.1

declared = False
"""Whether a decorator was used in this process: then requests are watched, so that nothing they did is missing."""

entrances: set[CodeType] = set()
"""The code of the functions that catch :class:`BackgroundRequested`."""

UNSTARTED = ("HEAD", "OPTIONS")
"""The methods of requests that start no job: they are the app's, marked or not."""


class BackgroundRequested(BaseException):
    """Leaves a view, through its framework, for the middleware: go on in the background.

    A ``BaseException``, as ``GeneratorExit`` is: it is no error, so ``except Exception`` must not take it for one.
    *function* is what to run; None: replay the request. *context* is a copy of the caller's.
    """

    def __init__(self, function: Callable[[], Any] | None, context: Context, printed: str) -> None:
        super().__init__("a view asked for the background, and no BackgroundMiddleware is around it")
        self.function = function
        self.context = context
        self.printed = printed


class _NoJob(RunningJob):
    """What :func:`current_job` gives outside of jobs: the same calls, which do nothing; it is false."""

    def __init__(self) -> None:
        self.key = self.title = ""

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Do nothing."""

    def check(self) -> None:
        """Do nothing."""

    def __bool__(self) -> bool:
        return False


_NO_JOB = _NoJob()


def current_job() -> RunningJob:
    """Return the job that the calling code runs in, also from threads that the job began.

    Outside of a job it returns one that is false and whose methods do nothing, so that a view runs unchanged.
    """
    output = current_output()
    job = None if output is None else output.job
    return _NO_JOB if job is None else job


def progress(done: float, total: float | None = None, message: str = "") -> None:
    """Say how far the current job is; see :meth:`RunningJob.progress`. Outside of a job it does nothing."""
    current_job().progress(done, total, message)


def track(items: Iterable[_T], message: str = "", *, total: float | None = None) -> Iterator[_T]:
    """Yield *items* and report the progress of the current job: at the first, at the last, and ten times a second.

    *total*: how many there are, where ``len(items)`` cannot tell. Each item is a cancellation point.
    """
    job = current_job()
    if not job:
        yield from items
        return
    if total is None:
        total = operator.length_hint(items) or None
    done = 0
    reported_at = float("-inf")
    for done, item in enumerate(items, 1):
        now = time.monotonic()
        if now - reported_at >= _REPORT_EVERY:
            job.progress(done - 1, total, message)
            reported_at = now
        else:
            job.check()
        yield item
    job.progress(done, total, message)


def backgrounder(view: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a view so that its requests run in the background.

    The view's framework has routed the request, and checked who sends it, when the call arrives here; then the request
    as it reached the middleware is replayed in a worker, where the call goes through. For the view of any framework
    and for a plain WSGI application. Outside of a middleware, and inside a job, it just calls.

    Raises ``ConfigurationError`` for a coroutine function: mark its URL instead.
    """
    _declare(view, "backgrounder")

    @_wraps(view)
    def call(*args: _P.args, **options: _P.kwargs) -> _R:
        if not _may_leave():
            return view(*args, **options)
        raise BackgroundRequested(None, copy_context(), "")

    return call


def background(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function so that calling it in a request starts it as a job and sends the client to its output.

    The rest of the view does not run. The job's output begins with what the request printed before the call; what the
    function returns is the job's result (``str``, ``bytes``, anything that is JSON, or None). It runs in a thread of
    this process, in a copy of the caller's context. Outside of a middleware, and inside a job, it just calls.

    Raises ``ConfigurationError`` for a coroutine function.
    """
    _declare(function, "background")

    @_wraps(function)
    def call(*args: _P.args, **options: _P.kwargs) -> _R:
        if not _may_leave():
            return function(*args, **options)
        output = current_output()
        printed = output.text if isinstance(output, ForegroundOutput) else ""
        raise BackgroundRequested(functools.partial(function, *args, **options), copy_context(), printed)

    return call


def _wraps(function: Callable[_P, _R]) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    def wrap(call: Callable[_P, _R]) -> Callable[_P, _R]:
        functools.update_wrapper(call, function)
        with contextlib.suppress(TypeError, ValueError):  # a callable of C, which has no signature
            # Pyramid decides by it what to call a view with, and does not follow __wrapped__.
            call.__signature__ = inspect.signature(function)  # type: ignore[attr-defined]
        return call

    return wrap


def _declare(function: Callable[..., Any], decorator: str) -> None:
    global declared
    if inspect.iscoroutinefunction(function):
        name = getattr(function, "__qualname__", repr(function))
        raise ConfigurationError(f"@{decorator} cannot decorate the coroutine function {name}: mark its URL with when=")
    declared = True


def _may_leave() -> bool:
    """Whether a middleware will catch what the caller raises, its request may start a job, and the caller is not in
    one already."""
    output = current_output()
    if output is not None and output.job is not None:
        return False
    # The stack is the very way that the exception will take. Telling by a context variable would cost each request
    # of the site; this costs the ones that leave.
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code in entrances:
            there = frame.f_locals  # the request as it came, which some frameworks change
            return there.get("recorded", there["environ"])["REQUEST_METHOD"] not in UNSTARTED
        frame = frame.f_back  # type: ignore[assignment]
    return False
