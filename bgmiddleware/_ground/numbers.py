"""What counts as a number where one is expected: not a text, not True, not infinity."""

from math import isfinite
from numbers import Integral, Real
from typing import TypeGuard

from ..errors import ConfigurationError

__all__ = ["check_count", "check_positive", "check_seconds", "is_finite", "is_whole"]


def is_finite(value: object) -> TypeGuard[float]:
    """Whether *value* is a number that is not infinite."""
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)


def is_whole(value: object, least: int) -> TypeGuard[int]:
    """Whether *value* is a whole number from *least*."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_count(name: str, value: object, least: int) -> None:
    """Raise ``ConfigurationError`` unless the setting *name* is a whole number from *least*."""
    if not is_whole(value, least):
        raise ConfigurationError.of_setting(name, value, f"a whole number from {least}")


def check_positive(name: str, value: object) -> None:
    """Raise ``ConfigurationError`` unless the setting *name* is a number above 0."""
    if not (is_finite(value) and value > 0):
        raise ConfigurationError.of_setting(name, value, "a number above 0")


def check_seconds(name: str, value: object) -> None:
    """Raise ``ConfigurationError`` unless the setting *name* is a number from 0; infinity is for ever."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not value >= 0:
        raise ConfigurationError.of_setting(name, value, "a number from 0")
