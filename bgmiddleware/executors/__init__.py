"""Where jobs run: the contract is in ``base``, and each kind of executor in a module of its own."""

import inspect
from typing import Any

from ..errors import ConfigurationError
from .base import Executor
from .thread import ThreadExecutor

__all__ = ["EXECUTORS", "open_executor"]

EXECUTORS = "thread, process, rq, rq:REDIS-URL, celery:MODULE:NAME"


def open_executor(name: str, **options: Any) -> Executor:
    """Return the executor that *name* names, constructed with *options*. Starts nothing.

    Raises ``ConfigurationError`` for an unknown name, for a missing or unknown option, and if the library that the
    executor needs is not installed.
    """
    word, _, rest = name.partition(":")
    kind = _kind(word, name)
    if rest:
        options = {"url" if word == "rq" else "celery": rest, **options}
    known = inspect.signature(kind).parameters
    for option, value in options.items():
        if option not in known:
            expected = f"one of {', '.join(name for name in known if name not in ('url', 'celery'))}"
            raise ConfigurationError(
                f"{option} = {value!r}: executor = {word} has no such setting. Leave it out; expected {expected}"
            )
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in options:
            raise ConfigurationError(f"{option} is missing: expected, since executor = {word} needs it")
    return kind(**options)


def _kind(word: str, name: str) -> type[Executor]:
    try:
        match word:
            case "thread" if word == name:
                return ThreadExecutor
            case "process" if word == name:
                from .process import ProcessExecutor

                return ProcessExecutor
            case "rq":
                from .rq import RQExecutor

                return RQExecutor
            case "celery" if word != name:
                from .celery import CeleryExecutor

                return CeleryExecutor
    except ImportError as error:
        why = error.__cause__ or error
        raise ConfigurationError(
            f"executor = {word} needs its extra, pip install 'bgmiddleware[{word}]': {why}"
        ) from error
    raise ConfigurationError.of_setting("executor", word if "@" in name else name, EXECUTORS)
