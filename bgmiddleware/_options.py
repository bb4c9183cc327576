"""What the middleware's options may be. Each check raises ``ConfigurationError``, which names the option."""

import re
from collections.abc import Mapping

from . import marks
from ._jobs import Priority
from .errors import ConfigurationError

__all__ = ["Limits", "Priorities", "check_functions", "check_numbers", "check_texts", "limits_of", "priorities_of"]

Limits = tuple[tuple[str, marks.Mark, int], ...]
Priorities = tuple[tuple[marks.Mark, Priority], ...]

_SHORTEST_SECRET = 16


def check_numbers(*, deadline: float | None, **from_zero: float) -> None:
    """Check the numbers: all are from 0, and a deadline is above."""
    for name, number in from_zero.items():
        if not number >= 0:
            raise ConfigurationError.of_setting(name, number, "a number from 0")
    if deadline is not None and not deadline > 0:
        raise ConfigurationError.of_setting("deadline", deadline, "a number above 0")


def check_functions(*, when: object, **others: object) -> None:
    """Check what is called with an environ: *when*, and the others where there are any."""
    there = {"when": when, **{name: function for name, function in others.items() if function is not None}}
    for name, function in there.items():
        if not callable(function):
            raise ConfigurationError.of_setting(name, function, "a function of the environ")


def check_texts(*, token_name: str, secret: str | None, dashboard: str | None, assets: str) -> None:
    """Check the texts."""
    if not re.fullmatch(r"[A-Za-z0-9_.~-]+", token_name):
        raise ConfigurationError.of_setting("token_name", token_name, "letters, digits and -._~")
    if secret is not None and len(secret) < _SHORTEST_SECRET:
        raise ConfigurationError.of_setting("secret", "…", f"at least {_SHORTEST_SECRET} characters")
    if dashboard is not None and not dashboard.startswith("/"):
        raise ConfigurationError.of_setting("dashboard", dashboard, "a path that begins with '/'")
    if assets not in ("inline", "external"):
        raise ConfigurationError.of_setting("assets", assets, "inline or external")


def limits_of(per_owner: int | None, per_mark: Mapping[str, int] | None) -> Limits:
    """Return how many jobs may run at a time of those that each mark is true for: its name, itself, the number."""
    per_mark = per_mark or {}
    if per_owner is not None and not per_owner >= 1:
        raise ConfigurationError.of_setting("limit_per_owner", per_owner, "a number from 1")
    if not all(most >= 1 for most in per_mark.values()):
        raise ConfigurationError.of_setting("limit_per_mark", per_mark, "for each glob a number from 1")
    return tuple((glob, marks.path(glob), most) for glob, most in per_mark.items())


def priorities_of(per_mark: Mapping[str, str] | None) -> Priorities:
    """Return the priority of the jobs that each mark is true for."""
    per_mark = per_mark or {}
    words = [priority.value for priority in Priority]
    if not all(word in words for word in per_mark.values()):
        raise ConfigurationError.of_setting("priority_per_mark", per_mark, f"for each glob one of {', '.join(words)}")
    return tuple((marks.path(glob), Priority(word)) for glob, word in per_mark.items())
