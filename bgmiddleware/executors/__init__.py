"""Where jobs run: the contract in ``base``, one module for each kind of executor, and an executor by its name."""

import inspect
from typing import Any

from ..errors import ConfigurationError
from .base import Executor
from .thread import ThreadExecutor

__all__ = ["EXECUTORS", "open_executor"]

EXECUTORS = "thread, process"


def open_executor(name: str, **options: Any) -> Executor:
    """Return the executor that *name* names, with *options* of its class. Begins nothing yet.

    Raises ``ConfigurationError`` for any other name, and for an option that it lacks or does not have.
    """
    match name:
        case "thread":
            kind: type[Executor] = ThreadExecutor
        case "process":
            from .process import ProcessExecutor

            kind = ProcessExecutor
        case _:
            raise ConfigurationError.of_setting("executor", name, EXECUTORS)
    known = inspect.signature(kind).parameters
    for option, value in options.items():
        if option not in known:
            raise ConfigurationError(f"{option} = {value!r}: executor = {name} has no such setting")
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in options:
            raise ConfigurationError(f"{option} is missing: executor = {name} needs it")
    return kind(**options)
