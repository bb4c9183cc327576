"""What a framework has around a view, for a function that a view leaves behind.

The function runs when the request in the foreground is over, and what the framework kept for that request is closed, or
somebody else's already. So it gets surroundings of its own, made of the recorded request.
"""

import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

from .._capture import detached
from .._jobs import RecordedResponse

__all__ = ["Surroundings", "run_within", "surroundings"]

Function = Callable[[], Any]
Surroundings = Callable[[dict[str, Any], Function], Any]
"""Calls a function, for the request of an environ, and returns what it returned."""


def surroundings() -> tuple[Surroundings, ...]:
    """Return what is around the calling view, from the outer one to the inner one."""
    return tuple(found for module, find in _FINDERS if module in sys.modules and (found := find()) is not None)


def run_within(around: tuple[Surroundings, ...], environ: dict[str, Any], function: Function) -> Any:
    """Call *function* within what is *around* it."""
    if not around:
        return function()
    return around[0](environ, lambda: run_within(around[1:], environ, function))


_begun: ContextVar[list[Any] | None] = ContextVar("bgmiddleware_sessions", default=None)
_listens_to: list[Any] = []


def _of_sqlalchemy() -> Surroundings:
    """Close the sessions that the function used: those of its thread would be the next job's, with all that it had not
    committed."""
    from sqlalchemy import event
    from sqlalchemy.orm import Session

    if Session not in _listens_to:
        _listens_to.append(Session)

        @event.listens_for(Session, "after_transaction_create")  # type: ignore[untyped-decorator,unused-ignore]
        def note(session: Any, transaction: Any) -> None:
            sessions = _begun.get()
            if sessions is not None and not any(session is other for other in sessions):
                sessions.append(session)

    def run(environ: dict[str, Any], function: Function) -> Any:
        sessions: list[Any] = []
        token = _begun.set(sessions)
        try:
            return function()
        finally:
            _begun.reset(token)
            for session in sessions:
                session.close()

    return run


def _of_django() -> Surroundings | None:
    """Send the signals of a request, by which Django looks after its connections, and begin the transactions that
    ``ATOMIC_REQUESTS`` had begun."""
    from django.conf import settings
    from django.core.signals import request_finished, request_started
    from django.db import connections, transaction

    if not settings.configured:
        return None
    atomic = [
        connection.alias
        for connection in connections.all(initialized_only=True)
        if connection.settings_dict["ATOMIC_REQUESTS"] and connection.in_atomic_block
    ]

    def run(environ: dict[str, Any], function: Function) -> Any:
        for alias in atomic:
            function = transaction.atomic(using=alias)(function)
        request_started.send(sender=_of_django, environ=environ)
        try:
            return function()
        finally:
            request_finished.send(sender=_of_django)

    return run


def _of_flask() -> Surroundings | None:
    """Push contexts of the function's own, with the session as the view left it and what ``before_request`` functions
    put into ``g``."""
    import flask
    from werkzeug.exceptions import HTTPException

    if not flask.has_app_context():
        return None
    app = flask.current_app._get_current_object()  # type: ignore[attr-defined,unused-ignore]
    is_request = flask.has_request_context()
    left = dict(flask.session) if is_request else {}

    def run(environ: dict[str, Any], function: Function) -> Any:
        with app.app_context():
            if not is_request:
                return function()
            with app.request_context(environ):
                if left or flask.session:
                    flask.session.clear()
                    flask.session.update(left)
                # They said yes in the foreground, and what they print is in the output already.
                try:
                    with detached():
                        app.preprocess_request()
                except HTTPException:
                    pass
                return function()

    return run


def _of_pyramid() -> Surroundings | None:
    """Push a request to ``get_current_request``, and begin a transaction where there was one."""
    from pyramid.interfaces import IRequestFactory
    from pyramid.request import Request, apply_request_extensions
    from pyramid.threadlocal import RequestContext, get_current_request

    left = get_current_request()
    if left is None:
        return None
    registry = left.registry
    manager = left.environ.get("tm.manager") if "tm.active" in left.environ else None

    def run(environ: dict[str, Any], function: Function) -> Any:
        if manager is not None:
            environ = {**environ, "tm.active": True, "tm.manager": manager}
        request = registry.queryUtility(IRequestFactory, default=Request)(environ)
        request.registry = registry
        request.matched_route, request.matchdict = left.matched_route, left.matchdict
        with RequestContext(request):
            apply_request_extensions(request)
            try:
                return function() if manager is None else _in_transaction(manager, function)
            finally:
                request._process_finished_callbacks()

    return run


def _in_transaction(manager: Any, function: Function) -> Any:
    manager.begin()
    try:
        value = function()
        if manager.isDoomed():
            manager.abort()
        else:
            manager.commit()
    except BaseException:  # a cancel too
        manager.abort()
        raise
    return value


def _of_bottle() -> Surroundings | None:
    """Bind ``bottle.request`` and ``bottle.response`` in the function's thread."""
    import bottle

    try:
        left = bottle.request.environ
    except (AttributeError, RuntimeError):  # this thread answers no request of it
        return None
    if "bottle.app" not in left:
        return None
    routed = {key: left[key] for key in ("bottle.app", "bottle.route", "route.handle", "route.url_args") if key in left}

    def run(environ: dict[str, Any], function: Function) -> Any:
        bottle.request.bind({**environ, **routed})
        bottle.response.bind()
        try:
            return function()
        finally:
            bottle.request.bind({})

    return run


def _of_webpy() -> Surroundings | None:
    """Load ``web.ctx``, and run the function as the handler of the app, so that its processors are around it."""
    import web

    stack = web.ctx.get("app_stack")
    if not stack:
        return None
    app = stack[0]

    def run(environ: dict[str, Any], function: Function) -> Any:
        def through(processors: list[Any]) -> Any:
            return processors[0](lambda: through(processors[1:])) if processors else function()

        app._cleanup()
        app.load(environ)
        try:
            return through(app.processors)
        except web.HTTPError as error:  # raised to answer so
            body = error.data.encode() if isinstance(error.data, str) else error.data or b""
            return RecordedResponse(web.ctx.status, tuple(web.ctx.headers)), body
        finally:
            app._cleanup()

    return run


def _of_cherrypy() -> Surroundings | None:
    """Serve a copy of ``cherrypy.request`` and a new ``cherrypy.response`` in the function's thread."""
    import cherrypy

    left = cherrypy.serving.request
    if getattr(left, "app", None) is None:
        return None
    kept = {
        name: value for name, value in vars(left).items() if name not in ("hooks", "rfile", "body", "stage", "closed")
    }

    def run(environ: dict[str, Any], function: Function) -> Any:
        request, _ = left.app.get_serving(left.local, left.remote, left.scheme, left.server_protocol)
        vars(request).update(kept, wsgi_environ=environ)
        try:
            return function()
        finally:
            left.app.release_serving()

    return run


_FINDERS: tuple[tuple[str, Callable[[], Surroundings | None]], ...] = (
    ("sqlalchemy.orm", _of_sqlalchemy),
    ("django.db", _of_django),
    ("flask", _of_flask),
    ("pyramid.threadlocal", _of_pyramid),
    ("bottle", _of_bottle),
    ("web.application", _of_webpy),
    ("cherrypy", _of_cherrypy),
)
"""From the outer one to the inner one, each with the module without which it cannot be."""
