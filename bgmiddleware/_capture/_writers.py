"""Handlers of logs that hold records back for all, and write them later: no job gets those of another."""

import functools
import sys
from collections.abc import Callable
from typing import Any

from ._streams import StandIn, job_output, use_output

__all__ = ["HOOKS"]


def _hook_logging(module: Any) -> None:
    flush = module.MemoryHandler.flush

    @functools.wraps(flush)
    def flush_for_nobody(self: Any) -> None:
        # Its records are of several jobs, each of which has had a line when it logged.
        with use_output(None):
            flush(self)

    module.MemoryHandler.flush = flush_for_nobody


def _hook_loguru(module: Any) -> None:
    emit = module.Handler.emit

    @functools.wraps(emit)
    def emit_now(self: Any, *args: Any, **options: Any) -> None:
        # With enqueue=True a thread of the process writes, which is no job's: a job writes to the console by itself.
        if self._enqueue and job_output() is not None and _is_console(getattr(self._sink, "_stream", None)):
            here = object.__new__(type(self))
            vars(here).update(vars(self), _enqueue=False)
            emit(here, *args, **options)
        else:
            emit(self, *args, **options)

    module.Handler.emit = emit_now


def _is_console(stream: object) -> bool:
    is_original = stream is not None and (stream is sys.__stdout__ or stream is sys.__stderr__)
    return is_original or isinstance(stream, StandIn)


HOOKS: dict[str, Callable[[Any], None]] = {"logging.handlers": _hook_logging, "loguru._handler": _hook_loguru}
"""By the modules that they are called with."""
