"""What a job begins belongs to the job: threads, pool tasks, greenlets, forked children, subprocesses, log records.

Each hook replaces one function of the standard library by one that asks whether the caller is a job, and does nothing
else where it is not. They are put in place once, with the stand-ins, and stay.
"""

import concurrent.futures
import concurrent.futures.thread
import contextlib
import faulthandler
import functools
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextvars import Context
from typing import Any, TextIO

from . import _bars, _debugger, _green, _pipes, _pools, _writers
from ._foreground import ForegroundOutput
from ._imports import hook_modules
from ._output import JobOutput, pass_on
from ._streams import ByteStandIn, StandIn, bound, current, job_output, restore, route, use_output
from ._system import stand_in_of

__all__ = ["install_hooks", "rebind_logging"]

_installed = False


def install_hooks(forget_lock: Callable[[], None]) -> None:
    """Put the hooks in place. Does nothing the second time; to be called with a lock held, which a forked child is to
    forget by *forget_lock*."""
    global _installed
    if _installed:
        return
    _installed = True
    _hook_threads()
    _pools.hook_pools()
    hook_modules({**_pools.HOOKS, **_bars.HOOKS, **_debugger.HOOKS, **_green.HOOKS, **_writers.HOOKS})
    _hook_children()
    _hook_logging()
    _hook_faulthandler()
    _hook_dup2()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=forget_lock)
        os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)


def _hook_threads() -> None:
    # The lowest function that starts a thread: wrappers of Thread.start by tracing tools come and go above it.
    name = "_start_joinable_thread" if hasattr(threading, "_start_joinable_thread") else "_start_new_thread"
    start = getattr(threading, name)
    pool_worker = getattr(concurrent.futures.thread, "_worker", None)

    @functools.wraps(start)
    def start_thread(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        output = job_output()
        thread = getattr(function, "__self__", None)
        is_pools = pool_worker is not None and getattr(thread, "_target", None) is pool_worker
        if is_pools or type(thread).__name__ in _OF_ALL:
            # A worker of a pool outlives the job that happens to begin it; its tasks are hooked one by one.
            _set_in_context_of(thread, None)
        elif output is not None:
            _set_in_context_of(thread, output)
            function = bound(function, output)  # also around the target, where threading.excepthook is called
        return start(function, *args, **options)

    setattr(threading, name, start_thread)


# tqdm's, which redraws the bars of all; what tells of the ends of a pool's tasks, whoever gave them
_OF_ALL = ("TMonitor", "_ExecutorManagerThread")


def _set_in_context_of(thread: object, output: JobOutput | None) -> None:
    """From Python 3.14 on a thread runs its target in a context of its own, which may be a copy of its parent's."""
    context = getattr(thread, "_context", None)
    if isinstance(context, Context) and context.get(current) is not output:
        with contextlib.suppress(RuntimeError):  # it was given to the thread by hand, and somebody is in it
            context.run(route, output)


_POSITIONS = {"stdin": 3, "stdout": 4, "stderr": 5}  # among the arguments of Popen, self left out


def _hook_children() -> None:
    begin = subprocess.Popen.__init__

    @functools.wraps(begin)
    def begin_child(self: Any, *args: Any, **options: Any) -> None:
        output = job_output()
        if output is None:
            begin(self, *args, **options)
            return
        args = tuple(map(_meant_for_child, args))
        options = {name: _meant_for_child(value) for name, value in options.items()}
        given = {name: args[at] if at < len(args) else options.get(name) for name, at in _POSITIONS.items()}
        number = error_number = None
        if output.takes_children:
            number, error_number = output.fileno("stdout"), output.fileno("stderr")
        if number is not None:
            defaults = {"stdin": subprocess.DEVNULL, "stdout": number, "stderr": error_number}
            for name, at in _POSITIONS.items():
                if given[name] is None and at >= len(args):
                    given[name] = options[name] = defaults[name]
        begin(self, *args, **options)
        if any(isinstance(stream, StandIn | ByteStandIn) for stream in given.values()) or (
            number is not None and (given["stdout"] == number or given["stderr"] == error_number)
        ):
            output.adopt(self)

    subprocess.Popen.__init__ = begin_child  # type: ignore[method-assign]


def _meant_for_child(stream: Any) -> Any:
    """Return what a child gets for *stream*: for an original of the process, the job's. The number of the original
    stays the server's, since code of C prints there."""
    for name in ("stdout", "stderr"):
        if stream is not None and stream is getattr(sys, f"__{name}__"):
            return stand_in_of(name)
    return stream


def _hook_dup2() -> None:
    """A job that redirects its number is to find the same number when it asks again, to redirect it back."""
    dup2 = os.dup2

    @functools.wraps(dup2)
    def duplicate(fd: int, fd2: int, inheritable: bool = True) -> int:
        output = job_output()
        pipe = None if output is None else output.pipe_of(fd2)  # before: one that it closed may be anybody's
        number = dup2(fd, fd2, inheritable)
        if pipe is not None:
            pipe.note_redirected(number)
        return number

    os.dup2 = duplicate


_FILE_AT = {"enable": 0, "dump_traceback_later": 2, "register": 1}


def _hook_faulthandler() -> None:
    """What faulthandler is to write later, it writes by a number, when that may be somebody else's file: let it be the
    server's stderr, or descriptor 2 where that is the job's."""
    for name, at in _FILE_AT.items():
        if hasattr(faulthandler, name):  # not all systems have all
            setattr(faulthandler, name, _by_lasting_number(getattr(faulthandler, name), at))


def _by_lasting_number(function: Callable[..., Any], at: int) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        output = job_output()
        if output is None:
            return function(*args, **options)
        file = args[at] if at < len(args) else options.get("file", sys.stderr)
        if output.has_descriptors and isinstance(file, StandIn):
            if at < len(args):
                args = (*args[:at], 2, *args[at + 1 :])
            else:
                options["file"] = 2
        with use_output(None):
            return function(*args, **options)

    return call


_stdout_of_parent: Any = None


def _before_fork() -> None:
    global _stdout_of_parent
    output = job_output()
    if output is not None:
        output.fileno()  # what the child prints goes to the pipe that both have, not to a copy of our list
        _stdout_of_parent = _pipes.identity(1)


def _after_fork_in_child() -> None:
    foreground = current.get()
    if isinstance(foreground, ForegroundOutput):
        foreground.request = None  # its parent answers it: a decorated function that the child calls just runs
    output = job_output()
    if output is None:
        _pipes.after_fork(None)
    else:
        output.after_fork(_stdout_of_parent)


_FORMATTER = logging.Formatter("%(levelname)s %(name)s: %(message)s")


def _hook_logging() -> None:
    call_handlers = logging.Logger.callHandlers

    @functools.wraps(call_handlers)
    def call(self: logging.Logger, record: logging.LogRecord) -> None:
        output = job_output()
        if output is None or not output.takes_logging:
            call_handlers(self, record)
            return
        probe = _Probe(output)
        before = route(probe)
        try:
            call_handlers(self, record)
        finally:
            restore(before)
        # Where a handler writes to the console, the job has it. Where they write to files only, it gets a line.
        if not probe.touched and _accepted(self, record.levelno):
            output.err(_formatted(record))

    logging.Logger.callHandlers = call  # type: ignore[method-assign]
    _keep_ours_heard()


def _keep_ours_heard() -> None:
    """Let no job switch our own logger off: ``fileConfig`` and ``dictConfig`` do so with all that they do not name."""
    logger: Any = logging.getLogger("bgmiddleware")

    def is_disabled(self: Any) -> bool:
        return bool(vars(self).get("disabled"))

    def disable(self: Any, disabled: bool) -> None:
        if job_output() is None:
            vars(self)["disabled"] = disabled

    logger.__class__ = type("Logger", (type(logger),), {"disabled": property(is_disabled, disable)})


def _formatted(record: logging.LogRecord) -> str:
    try:
        return _FORMATTER.format(record) + "\n"
    except Exception:  # arguments that do not fit: logging's handlers do not raise for it, either
        return f"{record.levelname} {record.name}: {record.msg!r} % {record.args!r}\n"


def _accepted(logger: logging.Logger | None, level: int) -> bool:
    """Whether any handler that the record passes takes its level."""
    while logger is not None:
        if any(level >= handler.level and type(handler) is not logging.NullHandler for handler in logger.handlers):
            return True
        logger = logger.parent if logger.propagate else None
    return False


class _Probe:
    """A job's output that notices whether anything is written to it."""

    pending: list[str | bytes] | None = None
    batch = 1

    def __init__(self, output: JobOutput) -> None:
        self._output = output
        self.printer: Callable[[str], int] = pass_on
        self.touched = False

        def noticing(write: str) -> Callable[[str], int]:
            def notice(text: str) -> int:
                self.touched = True
                written: int = getattr(output, write)(text)  # looked up now: a cancel swaps it
                return written

            return notice

        self.out, self.err = noticing("out"), noticing("err")

    @property
    def job(self) -> Any:
        return self._output.job

    @property
    def assigned(self) -> dict[str, Any]:
        return self._output.assigned

    def assign(self, name: str, stream: Any) -> None:
        self._output.assign(name, stream)

    def unassign(self, name: str) -> None:
        self._output.unassign(name)

    def write_bytes(self, data: bytes, original: Callable[[bytes], int]) -> int:
        self.touched = True
        return self._output.write_bytes(data, original)

    def drain_soon(self) -> None:
        """Do nothing: the output does so itself."""

    def flush(self) -> None:
        self._output.flush()

    def fileno(self, name: str = "stdout") -> int | None:
        return self._output.fileno(name)


def rebind_logging(original: TextIO | None, stand_in: StandIn) -> None:
    """Let the logging handlers that hold *original*, taken before the first job, write to its stand-in."""
    if original is None:
        return
    loggers = [logging.getLogger(), *logging.getLogger().manager.loggerDict.values()]
    for logger in loggers:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream is original:
                handler.setStream(stand_in)
