"""Loads the app in a process that runs jobs of other processes, and finds the ``BackgroundMiddleware`` in it."""

import importlib
import os
import secrets
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol

from ..._capture import Outlet
from ..._ground.loading import loaded
from ..._ground.redaction import Redaction
from ..._jobs import Channel, JobState
from ..._running import LEASE, Run, log_failed, patiently
from ...errors import ConfigurationError
from ...registries.base import Registry

__all__ = ["Site", "Unloaded", "fail_unloaded", "is_ini", "load_site"]

_INNER = ("app", "wsgi_app", "wsgi", "application", "_app", "_wsgi_app", "_application", "wrap_app", "wrapped_app")
_DEEPEST = 8


class Site(Protocol):
    """A ``BackgroundMiddleware``. Executors cannot import the class, which is in a higher layer."""

    @property
    def registry(self) -> Registry: ...

    @property
    def redaction(self) -> Redaction | None: ...

    def stored_run(self, key: str, *, outlet: Outlet | None = None) -> Run: ...


def load_site(app: str) -> Site:
    """Load the app that ``module:attribute`` names, or the ini file ``path.ini`` or ``path.ini#name``, and return the
    ``BackgroundMiddleware`` in it.

    The middleware is the object itself, the ``wsgi_app`` of a Flask app, or inside a few wrappers. Raises
    ``ConfigurationError`` if there is none, and whatever importing the app raises.
    """
    found = _from_ini(app) if is_ini(app) else loaded("app", app, "MODULE:APP")
    for candidate in _inside(found):
        if callable(getattr(type(candidate), "stored_run", None)):
            site: Site = candidate
            return site
    raise ConfigurationError(
        f"app = {app!r}: there is no BackgroundMiddleware in this {type(found).__name__}. Wrap it as the web processes"
        " do, or name the wrapped app"
    )


def is_ini(app: str) -> bool:
    """Whether *app* is the name of an ini file for PasteDeploy."""
    return app.partition("#")[0].endswith(".ini")


def _from_ini(app: str) -> Any:
    try:
        deploy = importlib.import_module("paste.deploy")
    except ImportError as error:
        raise ConfigurationError(
            f"app = {app!r}: an ini file needs PasteDeploy, pip install PasteDeploy: {error}"
        ) from error
    return deploy.loadapp(f"config:{os.path.abspath(app)}")


def _inside(app: Any) -> Iterator[Any]:
    """Yield *app* and the apps inside it, outermost first."""
    left = deque([(app, 0)])
    while left:
        candidate, depth = left.popleft()
        yield candidate
        inner: Mapping[str, Any] = getattr(candidate, "__dict__", {})
        if depth < _DEEPEST:
            left.extend((inner[name], depth + 1) for name in _INNER if name in inner)


class Unloaded(NamedTuple):
    """Stands for a site whose app cannot be loaded. Its jobs, in *registry*, fail with the *traceback*."""

    registry: Registry
    traceback: str
    redaction: Redaction | None = None


def fail_unloaded(site: Unloaded, key: str) -> bool:
    """Record that the job *key* failed because the app could not be loaded; the traceback becomes its output.

    Return whether the job must wait first, as :func:`run_stored` does. Does nothing for a job that is not pending.
    Raises ``JobNotFound``, ``JobExpired`` and ``RegistryError``.
    """
    registry = site.registry
    reason = f"the app could not be loaded: {site.traceback.strip().rpartition(chr(10))[2]}"[:500]
    data = site.traceback.encode("utf-8", "backslashreplace")
    runner = f"{os.getpid()}-{secrets.token_hex(8)}"
    if not patiently(registry, lambda: registry.claim(key, runner, lease=LEASE)):
        return registry.get(key).state is JobState.PENDING
    patiently(registry, lambda: registry.append(key, Channel.OUTPUT, 0, data, runner=runner))
    patiently(registry, lambda: registry.finish(key, runner, JobState.FAILED, reason=reason))
    log_failed(key, registry.get(key).title, reason)
    return False
