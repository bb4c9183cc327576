"""The views that the routes of a framework have, as far as one can look: a decorator above the route changes none."""

from collections.abc import Collection, Iterator
from typing import Any

__all__ = ["undecorated_views"]

_INNER = ("app", "wsgi_app", "application", "wrapped_app", "wrap_app")
_DEEPEST = 8


def undecorated_views(app: object, originals: Collection[Any]) -> list[Any]:
    """Return the views that *app* calls and that are among *originals*. Looks at Flask and Bottle."""
    return [view for framework in _inside(app) for view in _views(framework) if _is_in(view, originals)]


def _is_in(view: object, originals: Collection[Any]) -> bool:
    try:
        return view in originals
    except TypeError:  # it cannot be referred to weakly, so it is none of them
        return False


def _inside(app: object) -> Iterator[object]:
    """Yield *app* and what it wraps."""
    for _ in range(_DEEPEST):
        app = getattr(app, "__self__", app)  # Flask's wsgi_app is a method
        yield app
        inner = getattr(app, "__dict__", {})
        name = next((name for name in _INNER if name in inner), None)
        if name is None or inner[name] is app:
            return
        app = inner[name]


def _views(framework: object) -> list[Any]:
    flask = getattr(framework, "view_functions", None)
    if isinstance(flask, dict):
        return list(flask.values())
    bottle = getattr(framework, "routes", None)
    return [getattr(route, "callback", None) for route in bottle] if isinstance(bottle, list) else []
