"""What counts as a number where one is expected: not a text, not True, not infinity."""

from math import isfinite
from numbers import Integral, Real
from typing import TypeGuard

__all__ = ["is_finite", "is_whole"]


def is_finite(value: object) -> TypeGuard[float]:
    """Whether *value* is a number that is not infinite."""
    return isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)


def is_whole(value: object, least: int) -> TypeGuard[int]:
    """Whether *value* is a whole number from *least*."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least
