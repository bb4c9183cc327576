"""Bars of libraries that keep all bars of a process together: each job sees its own ones only."""

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from ._streams import current, job_output, use_output

__all__ = ["HOOKS"]


class _Bars:
    """The bars of tqdm, as a set of those of the running job, or of the server."""

    def __init__(self, bars: Any) -> None:
        self._of_server: weakref.WeakSet[Any] = weakref.WeakSet(bars)
        self._of_jobs: weakref.WeakKeyDictionary[Any, weakref.WeakSet[Any]] = weakref.WeakKeyDictionary()

    def _mine(self) -> "weakref.WeakSet[Any]":
        output = job_output()
        if output is None:
            return self._of_server
        return self._of_jobs.setdefault(output, weakref.WeakSet())

    def _all(self) -> "list[weakref.WeakSet[Any]]":
        return [self._of_server, *self._of_jobs.values()]

    def add(self, bar: Any) -> None:
        self._mine().add(bar)

    def remove(self, bar: Any) -> None:
        for bars in self._all():  # the end of a bar may come anywhere
            bars.discard(bar)

    discard = remove

    def copy(self) -> Any:
        if type(threading.current_thread()).__name__ == "TMonitor":
            return {bar for bars in self._all() for bar in bars}
        return self._mine().copy()

    def output_of(self, bar: Any) -> Any:
        """Return the output of the job whose bar it is; None: the server's."""
        return next((output for output, bars in list(self._of_jobs.items()) if bar in bars), None)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._mine())

    def __len__(self) -> int:
        return len(self._mine())

    def __contains__(self, bar: object) -> bool:
        return bar in self._mine()


def _hook_tqdm(module: Any) -> None:
    kind = module.tqdm
    bars = kind._instances = _Bars(kind._instances)
    refresh = kind.refresh

    @functools.wraps(refresh)
    def refresh_where_it_is(self: Any, *args: Any, **options: Any) -> Any:
        if current.get() is not None:
            return refresh(self, *args, **options)
        with use_output(bars.output_of(self)):  # the monitor of all bars redraws one
            return refresh(self, *args, **options)

    kind.refresh = refresh_where_it_is


class _OfJob:
    """An attribute of objects of the whole process that each job has for itself: a data descriptor."""

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self._name = name
        self._make = make
        self._of_jobs: weakref.WeakKeyDictionary[Any, dict[int, Any]] = weakref.WeakKeyDictionary()

    def __get__(self, owner: Any, kind: object = None) -> Any:
        if owner is None:
            return self
        output = job_output()
        if output is None:
            return vars(owner)[self._name]
        values = self._of_jobs.setdefault(output, {})
        return values.setdefault(id(owner), self._make())

    def __set__(self, owner: Any, value: Any) -> None:
        output = job_output()
        if output is None or self._name not in vars(owner):
            vars(owner)[self._name] = value if output is None else self._make()
        if output is not None:
            self._of_jobs.setdefault(output, {})[id(owner)] = value


def _hook_rich(module: Any) -> None:
    # What is drawn while a bar is shown: else a second job's bar is an error, or part of the first one's.
    module.Console._live_stack = _OfJob("_live_stack", list)
    module.Console._render_hooks = _OfJob("_render_hooks", list)
    if not hasattr(module.Console, "_live"):
        module.Console._live = _OfJob("_live", lambda: None)


def _hook_progressbar(module: Any) -> None:
    # It holds back what is printed beside bars, in one place for all: each job gets a place of its own.
    streams, kind = module.streams, module.StreamWrapper
    of_jobs: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def get(self: Any, name: str) -> Any:
        output = job_output()
        if output is None:
            return kind.__getattribute__(self, name)
        own = of_jobs.get(output)
        if own is None:
            own = of_jobs[output] = kind()
            own.original_excepthook = kind.__getattribute__(self, "original_excepthook")
        return getattr(own, name)

    streams.__class__ = type(kind.__name__, (kind,), {"__getattribute__": get})


HOOKS: dict[str, Callable[[Any], None]] = {
    "tqdm.std": _hook_tqdm,
    "rich.console": _hook_rich,
    "progressbar.utils": _hook_progressbar,
}
"""By the modules that they are called with."""
