"""Scripts, styles and icons at URLs of their own: the page's, for sites whose own policy allows nothing inside a page,
and a script for pages of the site's own."""

from collections.abc import Callable
from functools import partial

from .._jobs import Job
from . import assets
from .icons import ICON, LOOKS, icon
from .negotiate import View
from .problems import Answer, whole
from .visit import BadParameter, Visit

__all__ = ["answer_asset", "asset_link"]

_FOR_A_YEAR = ("Cache-Control", "private, max-age=31536000, immutable")
_NOT_KEPT = ("Cache-Control", "no-store")
_TYPES = {
    View.SCRIPT: "text/javascript",
    View.STYLE: "text/css",
    View.CLIENT: "text/javascript",
    View.ICON: "image/svg+xml",
}
_TEXTS: dict[View, Callable[[], str]] = {
    View.SCRIPT: assets.script,
    View.STYLE: assets.style,
    View.CLIENT: partial(assets.static, "client.js"),
}


def asset_link(visit: Visit, view: View, state: str = "") -> str:
    """Return a relative reference to what is the same for all jobs; of icons, to that of a *state*."""
    return visit.link(_view=view, _version=state if view is View.ICON else _content(view)[1])


def answer_asset(visit: Visit, job: Job) -> Answer:
    """Answer with what says nothing of the job, and that a browser may keep, and nobody else: the
    URL has the token."""
    view = View(visit.parameters["_view"])
    asked = visit.parameters.get("_version", "")
    if view is View.ICON and asked not in LOOKS:
        raise BadParameter("_version of an icon must be a state")
    text, version = _content(view, asked)
    headers = (_FOR_A_YEAR if asked == version else _NOT_KEPT, ("X-Content-Type-Options", "nosniff"))
    return whole(f"{_TYPES[view]}; charset=utf-8", text, headers)


def _content(view: View, state: str = "") -> tuple[str, str]:
    """Return a text and its version: a new one is at a new URL, since it may be kept for good."""
    if view is View.ICON:
        return icon(ICON, state), state
    text = _TEXTS[view]()
    return text, assets.digest(text)[:12]
