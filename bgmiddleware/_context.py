"""What a view sees of its job, and the two decorators that ask for one."""

import contextlib
import functools
import inspect
import logging
import operator
import sys
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, overload

from ._capture import ForegroundOutput, current_output, write_late
from ._frameworks import Surroundings, surroundings, undecorated_views
from ._jobs import StepState
from ._running import TIMEOUT, RunningJob
from .errors import ConfigurationError, JobCancelled

__all__ = [
    "BackgroundRequested",
    "Wish",
    "ask",
    "background",
    "backgrounder",
    "current_job",
    "progress",
    "step",
    "swallower_of",
    "track",
    "warn_of_misplaced",
]

_log = logging.getLogger("bgmiddleware")

_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")

_REPORT_EVERY = 0.1
_START_RESPONSE = "start_response"

_decorated: "weakref.WeakSet[Callable[..., Any]]" = weakref.WeakSet()
"""The views as they were before ``@backgrounder``."""

_warned: set[str] = set()
"""The decorated functions that the log named: once is enough."""

declared = False
"""Whether a decorator was used in this process: then requests are watched, so that nothing they did is missing."""

entrances: set[int] = set()
"""The code of the functions that take a request from the view that asked for the background. Their *foreground*, where
they have one, is where the wish is noted. By identity: to hash code costs more than to look for it."""

registries: "weakref.WeakSet[object]" = weakref.WeakSet()
"""Those of the middlewares of this process: with one of them, no middleware can be inside another site's."""

late_entrances: set[int] = set()
"""The code of the functions that pass on a response that has begun, by identity."""

bypasses: set[int] = set()
"""The code of the functions through which a middleware lets an app answer in the foreground, by identity."""

UNSTARTED = ("HEAD", "OPTIONS")
"""The methods of requests that start no job: they are the app's, marked or not."""


@dataclass(frozen=True)
class Wish:
    """What a view asked for, kept by the middleware's call: what becomes of the exception is then no matter."""

    function: Callable[[], Any] | None
    """What to run; None: replay the request."""
    context: Context
    """A copy of the caller's."""
    printed: str
    """What the request printed so far."""
    around: tuple[Surroundings, ...]
    """What the framework has around the view, for the function."""
    error: "BackgroundRequested"


class BackgroundRequested(SystemExit):
    """Leaves a view, through its framework, for the middleware: go on in the background.

    A ``SystemExit`` of code 0, because that is what frameworks, error monitors and bare ``except:`` clauses let pass,
    and what is no error to them. It is only raised where a middleware is further up on the very stack.
    """

    wish: Wish

    def __init__(self) -> None:
        super().__init__(0)

    def __str__(self) -> str:
        return "a view left for the background, and this kept it from its BackgroundMiddleware"


class _NoJob(RunningJob):
    """What :func:`current_job` gives outside of jobs: the same calls, which do nothing; it is false."""

    def __init__(self) -> None:
        self.key = ""

    @property
    def title(self) -> str:
        """Empty; to set it does nothing."""
        return ""

    @title.setter
    def title(self, title: object) -> None:
        pass

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Do nothing."""

    def check(self) -> None:
        """Do nothing."""

    def begin_step(self, title: str) -> None:
        """Do nothing."""

    def end_step(self, number: int, state: StepState) -> None:
        """Do nothing."""

    def ask(self, question: str, choices: Sequence[str], timeout: float) -> str:
        """Ask at the terminal."""
        said = f"{question} [{'/'.join(choices)}] " if choices else f"{question} "
        while (answer := input(said).strip()) not in choices and choices:
            pass
        return answer

    def __bool__(self) -> bool:
        return False


_NO_JOB = _NoJob()


def current_job() -> RunningJob:
    """Return the job that the calling code runs in, also from threads that the job started.

    Outside a job it returns an object that is false and whose methods do nothing, so that a view runs unchanged.
    """
    output = current_output()
    job = None if output is None else output.job
    return _NO_JOB if job is None else job


def progress(done: float, total: float | None = None, message: str = "") -> None:
    """Report the progress of the current job; see :meth:`RunningJob.progress`. Outside a job it does nothing."""
    current_job().progress(done, total, message)


def track(items: Iterable[_T], message: str = "", *, total: float | None = None) -> Iterator[_T]:
    """Yield *items* and report the progress of the current job: at the first, at the last, and ten times a second.

    *total*: the number of items, if ``len(items)`` does not work. Each item is a cancellation point.
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


def ask(question: str, choices: Sequence[str] = (), timeout: float = TIMEOUT) -> str:
    """Ask the readers of the current job, and return the answer: one of *choices*, or with none any line.

    The question is on the job's page, in its output, and in its state (``waiting_for``). Anyone who may cancel the job
    may answer it. The job waits, and keeps its worker, at most *timeout* seconds: then this raises
    :class:`~bgmiddleware.NoAnswer`. A cancel ends the waiting. Outside a job it asks at the terminal.

    Raises ``ConfigurationError`` for what is no question, for choices that are no short texts, and in a forked process.
    """
    return current_job().ask(question, choices, timeout)


class _StepBlock(contextlib.ContextDecorator):
    """A block of code, or the calls of a function, as a step of the current job."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._job: RunningJob = _NO_JOB
        self._number: int | None = None

    def _recreate_cm(self) -> "_StepBlock":  # of a decorated function, each call is a step of its own
        return _StepBlock(self._title)

    def __enter__(self) -> None:
        self._job = current_job()
        self._number = self._job.begin_step(self._title)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._number is not None:
            cancelled = kind is not None and issubclass(kind, JobCancelled)
            state = StepState.DONE if kind is None else StepState.CANCELLED if cancelled else StepState.FAILED
            self._job.end_step(self._number, state)


@overload
def step(title: str) -> _StepBlock: ...
@overload
def step(title: Callable[_P, _R]) -> Callable[_P, _R]: ...
def step(title: str | Callable[_P, _R]) -> _StepBlock | Callable[_P, _R]:
    """Name a part of the current job: ``with step("Reading rows"):``, or ``@step("Reading rows")`` before a function.

    ``@step`` alone takes the function's name. A step prints its title as a line; its state, its times and its place in
    the output are in the job's state and on its page. Steps may be within each other and in any thread of the job:
    :func:`progress` and :func:`track` belong to the innermost one. The beginning is a cancellation point. At most 500
    steps of a job are listed. Outside a job it does nothing.

    Raises ``ConfigurationError`` for a coroutine or generator function: use ``with`` within it.
    """
    if isinstance(title, str):
        return _StepBlock(title)
    if inspect.iscoroutinefunction(title) or inspect.isgeneratorfunction(title):
        raise ConfigurationError(f"@step cannot decorate {title.__qualname__}: use with step(…) within it")
    return _StepBlock(title.__name__.replace("_", " ").strip().capitalize())(title)


def backgrounder(view: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a view so that its requests run in the background.

    When the view is called, the framework has routed the request and checked its user. The middleware then replays the
    request, as it arrived, in a worker, where the call runs the view. This works for views of any framework and for a
    plain WSGI application. Outside a middleware, and inside a job, the view is simply called.

    Raises ``ConfigurationError`` for a coroutine function: mark its URL instead.
    """
    _declare(view, "backgrounder")
    with contextlib.suppress(TypeError):  # some callables cannot be referred to weakly
        _decorated.add(view)

    @_wraps(view)
    def call(*args: _P.args, **options: _P.kwargs) -> _R:
        foreground = _foreground("backgrounder", view)
        if foreground is None:
            return view(*args, **options)
        raise _left(foreground, None)

    return call


def background(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorate a function so that calling it in a request starts it as a job and redirects the client to its output.

    The rest of the view does not run. The job's output begins with what the request printed before the call. The
    function's return value is the job's result (``str``, ``bytes``, anything that is JSON, or None). The function runs
    in a thread of this process, in a copy of the caller's context, and in its own request of the view's framework.
    Outside a middleware, and inside a job, it is simply called.

    Raises ``ConfigurationError`` for a coroutine function.
    """
    _declare(function, "background")

    @_wraps(function)
    def call(*args: _P.args, **options: _P.kwargs) -> _R:
        foreground = _foreground("background", function)
        if foreground is None:
            return function(*args, **options)
        raise _left(foreground, functools.partial(function, *args, **options))

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
        raise ConfigurationError(
            f"@{decorator} cannot decorate the coroutine function {name}: mark its URL, when=marks.path(…), instead"
        )
    declared = True


def _foreground(decorator: str, function: Callable[..., Any]) -> ForegroundOutput | None:
    """Return what keeps the wish of the caller for the middleware around it; None: there is no middleware, its request
    may not start a job, or the caller is in a job already."""
    output = current_output()
    if output is not None and output.job is not None:
        return None
    if isinstance(output, ForegroundOutput) and output.is_answering():
        return output if _may_start(output.request) else None
    # The context may be one of the view's own; then the stack tells, which is the way that the exception will take.
    frame = sys._getframe(2)
    is_request = False
    while frame is not None:
        if id(frame.f_code) in bypasses:
            return None
        if id(frame.f_code) in entrances:
            found = frame.f_locals.get("foreground")
            if found is None:  # not watched yet, since this very request imported the decorated view
                found = ForegroundOutput(write_late("stdout"), write_late("stderr"))
                found.request = frame.f_locals["environ"]
            return found if isinstance(found, ForegroundOutput) and _may_start(found.request) else None
        if id(frame.f_code) in late_entrances:
            where = sys._getframe(2)
            _log.warning(
                "a decorated function was called in the midst of a response, and runs in the foreground: %s:%d in %s",
                where.f_code.co_filename,
                where.f_lineno,
                where.f_code.co_name,
            )
            return None
        is_request = is_request or _START_RESPONSE in frame.f_code.co_varnames[: frame.f_code.co_argcount]
        frame = frame.f_back  # type: ignore[assignment]
    if is_request:
        _warn_once(
            "%s ran in the foreground: no BackgroundMiddleware is around the app. Wrap it: BackgroundMiddleware(app)",
            f"@{decorator} {_name_of(function)}",
        )
    return None


def _name_of(function: Callable[..., Any]) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', repr(function))}"


def _warn_once(message: str, name: str) -> None:
    """Log a warning, unless the function *name* was named before."""
    if name not in _warned:
        _warned.add(name)
        _log.warning(message, name)


def warn_of_misplaced(app: object) -> None:
    """Warn of views that the routes of *app* have without their decorator, since it stands above the route. Once."""
    for view in undecorated_views(app, _decorated):
        _warn_once(
            "%s has no effect: the route was registered without it. Put the decorator below the route's, right above"
            " the def",
            f"@backgrounder {_name_of(view)}",
        )


def _may_start(request: Mapping[str, Any] | None) -> bool:
    # The request as it came: some frameworks change it on the way to the view.
    return request is not None and request["REQUEST_METHOD"] not in UNSTARTED


def _left(foreground: ForegroundOutput, function: Callable[[], Any] | None) -> BackgroundRequested:
    """Note what the caller asks for, and return what it leaves by."""
    error = BackgroundRequested()
    around = () if function is None else surroundings()
    error.wish = Wish(function, copy_context(), foreground.text, around, error)
    if foreground.wish is None:
        foreground.ask(error.wish)
    else:
        _log.error(
            "a view asked for the background twice; only the first counts, which was kept from leaving by %s",
            swallower_of(foreground.wish.error),
        )
    return error


def swallower_of(error: BaseException) -> str:
    """Return where *error* was caught."""
    frames = error.__traceback__
    if frames is None:
        return "an unknown place"
    code = frames.tb_frame.f_code
    return f"{code.co_filename}:{frames.tb_lineno} in {code.co_name}"
