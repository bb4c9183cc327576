"""Methods that do not keep their object."""

import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["weakly"]


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return what calls *method* as long as its object is there, later does nothing, and does not keep the object.

    For an object whose parts call it: without a circle it is gone when nobody needs it, not at the next collection.
    """
    reference = weakref.WeakMethod(method)

    def call(*args: Any, **options: Any) -> Any:
        there = reference()
        return None if there is None else there(*args, **options)

    return call
