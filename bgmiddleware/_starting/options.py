"""What the middleware's options may be. Each check raises ``ConfigurationError``, which names the option."""

import re
from collections.abc import Mapping

from .. import marks
from .._ground.numbers import check_count, is_finite, is_whole
from .._jobs import Priority
from ..errors import ConfigurationError
from ..executors.base import Executor
from ..registries.base import Registry

__all__ = [
    "Limits",
    "Priorities",
    "check_functions",
    "check_numbers",
    "check_pair",
    "check_places",
    "check_switches",
    "check_texts",
    "limits_of",
    "priorities_of",
]

Limits = tuple[tuple[str, marks.Mark, int], ...]
Priorities = tuple[tuple[marks.Mark, Priority], ...]

_SHORTEST_SECRET = 16
_OUR_PARAMETERS = ("_view", "_offset", "_wait", "_every", "_action", "_version")


def check_numbers(*, deadline: object, promote_after: object, stream_slots: object, **whole: object) -> None:
    """Check the numbers: all are from 0, and a deadline is above. No end of time is said by None or 0, not by inf."""
    if not (is_finite(promote_after) and promote_after >= 0):
        raise ConfigurationError.of_setting("promote_after", promote_after, "a number from 0")
    if deadline is not None and not (is_finite(deadline) and deadline > 0):
        raise ConfigurationError.of_setting("deadline", deadline, "a number above 0")
    if stream_slots is not None:
        whole["stream_slots"] = stream_slots
    for name, number in whole.items():
        check_count(name, number, 0)


def check_functions(*, app: object, when: object, **others: object) -> None:
    """Check what is called with an environ: *app*, *when*, and the others where there are any."""
    if not callable(app):
        raise ConfigurationError.of_setting("app", app, "a WSGI application")
    there = {"when": when, **{name: function for name, function in others.items() if function is not None}}
    for name, function in there.items():
        if not callable(function):
            raise ConfigurationError.of_setting(name, function, "a function of the environ")


def check_switches(**switches: object) -> None:
    """Check what is on or off: ``"no"`` would be on."""
    for name, switch in switches.items():
        if not isinstance(switch, bool):
            raise ConfigurationError.of_setting(name, switch, "True or False")


def check_pair(dashboard: object, authorize: object) -> None:
    """Check that the list of all jobs is not for everybody."""
    if (dashboard is None) != (authorize is None):
        raise ConfigurationError("dashboard and authorize go together: a list of all jobs is not for everybody")


def check_places(registry: object, executor: object) -> None:
    """Check where jobs are kept and where they run: objects, while an ini file has their names."""
    if not isinstance(registry, Registry):
        raise ConfigurationError.of_setting("registry", registry, "a registry, such as MemoryRegistry()")
    if not isinstance(executor, Executor):
        raise ConfigurationError.of_setting("executor", executor, "an executor, such as ThreadExecutor()")
    if not executor.in_process and not registry.shared:
        raise ConfigurationError("the executor runs jobs in other processes, which cannot see this registry's jobs")


def check_texts(*, token_name: object, secret: object, dashboard: object, assets: object, version: object) -> None:
    """Check the texts."""
    if not (isinstance(token_name, str) and re.fullmatch(r"[A-Za-z0-9_.~-]+", token_name)):
        raise ConfigurationError.of_setting("token_name", token_name, "letters, digits and -._~")
    if token_name in _OUR_PARAMETERS:
        raise ConfigurationError.of_setting("token_name", token_name, f"another name than {', '.join(_OUR_PARAMETERS)}")
    if secret is not None and not (isinstance(secret, str) and len(secret) >= _SHORTEST_SECRET):
        raise ConfigurationError.of_setting("secret", "…", f"a text of at least {_SHORTEST_SECRET} characters")
    if dashboard is not None and not (isinstance(dashboard, str) and dashboard.startswith("/")):
        raise ConfigurationError.of_setting("dashboard", dashboard, "a path that begins with '/'")
    if assets not in ("inline", "external"):
        raise ConfigurationError.of_setting("assets", assets, "inline or external")
    if not isinstance(version, str):
        raise ConfigurationError.of_setting("version", version, "a text")


def limits_of(per_owner: object, per_mark: object) -> Limits:
    """Return how many jobs may run at a time of those that each mark is true for: its name, itself, the number."""
    if per_owner is not None:
        check_count("limit_per_owner", per_owner, 1)
    per_mark = {} if per_mark is None else per_mark
    if not isinstance(per_mark, Mapping) or not all(
        isinstance(glob, str) and is_whole(most, 1) for glob, most in per_mark.items()
    ):
        raise ConfigurationError.of_setting("limit_per_mark", per_mark, "for each glob a whole number from 1")
    return tuple((glob, marks.under(glob), most) for glob, most in per_mark.items())


def priorities_of(per_mark: object) -> Priorities:
    """Return the priority of the jobs that each mark is true for."""
    per_mark = {} if per_mark is None else per_mark
    words = [priority.value for priority in Priority]
    if not isinstance(per_mark, Mapping) or not all(
        isinstance(glob, str) and word in words for glob, word in per_mark.items()
    ):
        raise ConfigurationError.of_setting("priority_per_mark", per_mark, f"for each glob one of {', '.join(words)}")
    return tuple((marks.under(glob), Priority(word)) for glob, word in per_mark.items())
