"""Some frameworks and tools clean up after an ``Exception`` only, and a view is left by what is none: by its wish for
the background, or by a cancel. Then they are helped, each by what it does itself after an error or a response."""

import logging
import sys
from collections.abc import Callable, Mapping
from types import FrameType, TracebackType
from typing import Any

__all__ = ["unwind"]

_log = logging.getLogger("bgmiddleware")

Locals = Mapping[str, Any]


def unwind(traceback: TracebackType | None) -> None:
    """Clean up for the functions of frameworks that an exception has left, from the inner one to the outer one.

    *traceback*: of that exception. Its first frame caught it, and cleans up by itself.
    """
    frames: list[FrameType] = []
    while traceback is not None:
        frames.append(traceback.tb_frame)
        traceback = traceback.tb_next
    for frame in reversed(frames[1:]):
        try:
            clean_up = _clean_up_of(frame)
            if clean_up is not None:
                clean_up(frame.f_locals)
        except Exception:  # as a server does: the request is over, however its clean-up went
            _log.exception("the clean-up of %s after a view that was left failed", frame.f_globals.get("__name__"))


def _clean_up_of(frame: FrameType) -> Callable[[Locals], None] | None:
    name = frame.f_code.co_name
    if name == "__call__" and "django.http" in sys.modules and _is_django_middleware(frame.f_locals.get("self")):
        return _process_django_response
    return _CLEAN_UPS.get((frame.f_globals.get("__name__"), name))


def _abort_transaction(there: Locals) -> None:
    there["manager"].abort()


def _abort_own_transaction(there: Locals) -> None:
    there["self"].abort()


def _send_request_finished(there: Locals) -> None:
    """Do what closing the response does, which there is none of: it ends the connections to databases."""
    from django.core.signals import request_finished

    request = there.get("request")
    if request is not None:
        request.close()
    request_finished.send(sender=type(there["self"]))


def _is_django_middleware(found: object) -> bool:
    """Whether *found* is of the kind that Django's ``MiddlewareMixin`` makes; some are written without it."""
    return hasattr(found, "get_response") and hasattr(found, "process_response")


def _process_django_response(there: Locals) -> None:
    """Let a middleware see a response: it may save a session then, or take what it put into the thread."""
    from django.http import HttpResponse

    there["self"].process_response(there["request"], HttpResponse(status=303))


def _process_response(there: Locals) -> None:
    """Call the middlewares that were called for the request; they hold the connections to databases."""
    _, _, independent = there["self"]._middleware
    for process_response in independent or there["dependent_mw_resp_stack"]:
        process_response(there["req"], there["resp"], there["resource"], False)


def _end_span(there: Locals) -> None:
    """End the trace, and take it from the thread, whose next request would belong to it."""
    from opentelemetry import context

    there["span"].end()
    if there["token"] is not None:
        context.detach(there["token"])


def _forget_thread(there: Locals) -> None:
    there["self"]._cleanup()


_CLEAN_UPS: dict[tuple[str | None, str], Callable[[Locals], None]] = {
    ("django.core.handlers.wsgi", "__call__"): _send_request_finished,
    ("falcon.app", "__call__"): _process_response,
    ("opentelemetry.instrumentation.wsgi", "__call__"): _end_span,
    ("pyramid_tm", "tm_tween"): _abort_transaction,
    ("repoze.tm", "__call__"): _abort_own_transaction,
    ("web.application", "wsgi"): _forget_thread,
}
"""By the module and the name of the function that was left: what it leaves undone."""
