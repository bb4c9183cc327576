"""A marked request becomes a job: it is recorded, joined or admitted, added to the registry, submitted and answered.

``watching`` takes over a request from the decorated view that it reached, and ``starter`` starts a job step by step.
``again`` starts the request of an ended job anew. ``joining`` finds the job of a repeated request, ``untouched``
answers a request that was done within ``promote_after``, and ``options`` checks the options of the middleware.
``ends`` is what follows the end of a job: its ``errands`` are ``delivering`` to webhooks and ``retrying`` what failed.
"""

from .again import run_again, try_again
from .ends import Ends
from .options import (
    TracerProvider,
    check_options,
    check_places,
    foreground_is_asked_for,
    rules_of,
)
from .starter import Starter, Tracing, WSGIApplication
from .watching import LazyResponse, end_of, foreground_of, may_be_lazy, may_begin_twice, settle, taken

__all__ = [
    "Ends",
    "LazyResponse",
    "Starter",
    "TracerProvider",
    "Tracing",
    "WSGIApplication",
    "check_options",
    "check_places",
    "end_of",
    "foreground_is_asked_for",
    "foreground_of",
    "may_be_lazy",
    "may_begin_twice",
    "rules_of",
    "run_again",
    "settle",
    "taken",
    "try_again",
]
