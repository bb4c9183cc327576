"""What does not keep an object, and what may be done when it is gone."""

import threading
import weakref
from collections.abc import Callable
from typing import Any

__all__ = ["nudge", "weakly"]


def nudge(changed: threading.Condition) -> None:
    """Wake who waits on *changed*, if nobody has its lock: what finalizers do, which must wait for nothing.

    Finalizers run in any thread and at any time. In a child of a fork, and while the interpreter ends, the thread that
    has the lock may never give it back. So whoever waits must look again by itself, too.
    """
    if changed.acquire(blocking=False):
        try:
            changed.notify_all()
        finally:
            changed.release()


def weakly(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return what calls *method* as long as its object is there, later does nothing, and does not keep the object.

    For an object whose parts call it: without a circle it is gone when nobody needs it, not at the next collection.
    """
    reference = weakref.WeakMethod(method)

    def call(*args: Any, **options: Any) -> Any:
        there = reference()
        return None if there is None else there(*args, **options)

    return call
