"""Green threads, which begin in an empty context: those that a job begins are the job's."""

import functools
from collections.abc import Callable
from contextvars import Context
from typing import Any

from ._streams import bound, job_output, route

__all__ = ["HOOKS"]


def _inherit(greenlet: Any) -> None:
    """Let *greenlet*, which has not begun, belong to the job of the running code."""
    output = job_output()
    if output is not None and greenlet.gr_context is None:
        context = Context()
        context.run(route, output)
        greenlet.gr_context = context


def _hook_gevent(module: Any) -> None:
    module.Greenlet.add_spawn_callback(_inherit)


def _hook_gevent_threads(module: Any) -> None:
    spawn = module.ThreadPool.spawn

    @functools.wraps(spawn)
    def spawn_task(self: Any, func: Callable[..., Any], *args: Any, **options: Any) -> Any:
        output = job_output()
        return spawn(self, func if output is None else bound(func, output), *args, **options)

    module.ThreadPool.spawn = spawn_task


def _hook_eventlet(module: Any) -> None:
    begin, spawn_n = module.GreenThread.__init__, module._spawn_n

    @functools.wraps(begin)
    def begin_thread(self: Any, *args: Any, **options: Any) -> None:
        begin(self, *args, **options)
        _inherit(self)

    @functools.wraps(spawn_n)
    def spawn_bare(seconds: float, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        output = job_output()
        return spawn_n(seconds, func if output is None else bound(func, output), args, kwargs)

    module.GreenThread.__init__ = begin_thread
    module._spawn_n = spawn_bare


HOOKS: dict[str, Callable[[Any], None]] = {
    "gevent": _hook_gevent,
    "gevent.threadpool": _hook_gevent_threads,
    "eventlet.greenthread": _hook_eventlet,
}
"""By the modules that they are called with."""
