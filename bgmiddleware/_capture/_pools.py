"""Pools that jobs share: what a task prints belongs to the job that gave the task, whoever began the worker."""

import concurrent.futures
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ._streams import bound, job_output, use_output

__all__ = ["HOOKS", "hook_pools"]

_NOBODY = object()

# Who gave a pool of processes its tasks so far: one job, or _NOBODY, from the second one on.
_users: "weakref.WeakKeyDictionary[Any, Any]" = weakref.WeakKeyDictionary()


def hook_pools() -> None:
    """Hook what begins tasks in pools of threads. To be called once."""
    submit: Callable[..., Any] = concurrent.futures.ThreadPoolExecutor.submit

    @functools.wraps(submit)
    def submit_task(self: Any, function: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        output = job_output()
        if output is not None and not _runs_elsewhere(self):
            function = bound(function, output)
        return submit(self, function, *args, **options)

    concurrent.futures.ThreadPoolExecutor.submit = submit_task  # type: ignore[method-assign]
    add = concurrent.futures.Future.add_done_callback

    @functools.wraps(add)
    def add_done_callback(self: Any, fn: Callable[..., Any]) -> None:
        output = job_output()
        add(self, fn if output is None else bound(fn, output))

    concurrent.futures.Future.add_done_callback = add_done_callback  # type: ignore[method-assign]


def _runs_elsewhere(pool: object) -> bool:
    """Whether *pool* pickles its tasks for other interpreters, as one that is new in 3.14 does."""
    return any(kind.__name__ == "InterpreterPoolExecutor" for kind in type(pool).__mro__)


def _hook_executor(module: Any) -> None:
    kind = module.ProcessPoolExecutor
    _note_users_of_new(kind)
    submit = kind.submit

    @functools.wraps(submit)
    def submit_task(self: Any, function: Callable[..., Any], /, *args: Any, **options: Any) -> Any:
        # Its workers are forked when they are needed, from the thread of whoever gives a task.
        return _give(self, lambda function: submit(self, function, *args, **options), function)

    kind.submit = submit_task


def _hook_pool(module: Any) -> None:
    _note_users_of_new(module.Pool)
    _hook_callbacks(module.ApplyResult)
    for name in ("apply_async", "_map_async", "imap", "imap_unordered"):
        _hook_method(module, name)


def _hook_callbacks(kind: Any) -> None:
    """What a task's end calls is called by a thread of the pool, which whoever made the pool has begun."""
    begin = kind.__init__

    @functools.wraps(begin)
    def begin_result(self: Any, pool: Any, callback: Any, error_callback: Any) -> None:
        output = job_output()
        begin(self, pool, *(each and bound(each, output) for each in (callback, error_callback)))

    kind.__init__ = begin_result


def _read_in(iterable: Iterable[Any], output: Any) -> Iterator[Any]:
    """Yield what *iterable* has; what it prints meanwhile goes to *output*, in whatever thread it is read."""
    read = bound(functools.partial(next, iter(iterable), _NOBODY), output)
    while (item := read()) is not _NOBODY:
        yield item


def _hook_method(module: Any, name: str) -> None:
    method = getattr(module.Pool, name)

    @functools.wraps(method)
    def give(self: Any, func: Callable[..., Any], *args: Any, **options: Any) -> Any:
        if name.startswith("imap") and args:  # a thread of the pool reads it
            args = (_read_in(args[0], job_output()), *args[1:])
        if isinstance(self, module.ThreadPool):
            return method(self, bound(func, job_output()), *args, **options)
        return _give(self, lambda function: method(self, function, *args, **options), func)

    setattr(module.Pool, name, give)


HOOKS: dict[str, Callable[[Any], None]] = {
    "concurrent.futures.process": _hook_executor,
    "multiprocessing.pool": _hook_pool,
}
"""By the modules that they are called with."""


def _note_users_of_new(kind: Any) -> None:
    begin = kind.__init__

    @functools.wraps(begin)
    def begin_pool(self: Any, *args: Any, **options: Any) -> None:
        output = job_output()
        _users[self] = _NOBODY if output is None else weakref.ref(output)
        begin(self, *args, **options)

    kind.__init__ = begin_pool


def _give(pool: Any, give: Callable[[Callable[..., Any]], Any], function: Callable[..., Any]) -> Any:
    """Give a task to a pool of processes. As long as one job alone uses the pool, its tasks print to the job, by what
    the workers inherit; from the second one on they print to the server."""
    output = job_output()
    user = _users.setdefault(pool, _NOBODY)
    if user is not _NOBODY and user() is not output:
        user = _users[pool] = _NOBODY
    if user is not _NOBODY:
        return give(function)
    with use_output(None):
        return give(functools.partial(_call_for_nobody, function) if _forks(pool) else function)


def _forks(pool: Any) -> bool:
    context = getattr(pool, "_mp_context", None) or getattr(pool, "_ctx", None)
    return context is not None and context.get_start_method() == "fork"


def _call_for_nobody(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    with use_output(None):
        return function(*args, **options)
