"""What the processes that run jobs have in common: they load the app by its name, and run what another process
recorded; and what is written down of a job whose process cannot do it any more."""

import contextlib
import logging
import os
import secrets
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

from .._jobs import Channel, Job, JobState
from .._keeper import LEASE, patiently
from .._loading import loaded
from .._runner import Run, over_deadline
from ..errors import ConfigurationError, JobExpired, JobNotFound, RegistryError
from ..registries.base import Registry

__all__ = ["Site", "Stopper", "end_dead", "end_of_process", "fail_unloaded", "how_it_ended", "load_site", "run_stored"]

_log = logging.getLogger("bgmiddleware")

_INNER = ("app", "wsgi_app", "application", "_app", "_wsgi_app", "wrap_app", "wrapped_app", "_application")
_DEEPEST = 8
_TERMINATE_AFTER = 1.0


class Site(Protocol):
    """A ``BackgroundMiddleware``, which a worker cannot import: it is above all executors."""

    @property
    def registry(self) -> Registry: ...

    def stored_run(self, key: str, *, alone: bool = False) -> Run: ...


def load_site(app: str) -> Site:
    """Import the app that ``module:attribute`` names and return the ``BackgroundMiddleware`` in it.

    It is the object itself, the ``wsgi_app`` of a Flask app, or inside a few wrappers. Raises ``ConfigurationError``
    where there is none, and what importing the module raises.
    """
    found = loaded("app", app, "MODULE:APP")
    for candidate in _inside(found):
        if callable(getattr(type(candidate), "stored_run", None)):
            site: Site = candidate
            return site
    raise ConfigurationError(f"app = {app!r}: there is no BackgroundMiddleware in this {type(found).__name__}")


def _inside(app: Any) -> Iterator[Any]:
    """Yield *app* and what it wraps, the outermost first."""
    left = deque([(app, 0)])
    seen = set()
    while left:
        candidate, depth = left.popleft()
        seen.add(id(candidate))
        yield candidate
        inner = vars(candidate) if hasattr(candidate, "__dict__") else {}
        if depth < _DEEPEST:
            left.extend((inner[name], depth + 1) for name in _INNER if name in inner and id(inner[name]) not in seen)


def run_stored(site: Site, key: str) -> bool:
    """Run the job *key* in this process, which does nothing else meanwhile; return whether it must wait.

    It must where one of its groups is full: then it is still pending, and is to be tried again when a job has ended, or
    a second later. Does nothing for a job that somebody else runs, that has ended, or that is gone. Raises
    ``RegistryError`` where the registry cannot be asked.
    """
    try:
        run = patiently(site.registry, lambda: site.stored_run(key, alone=True))
    except (JobNotFound, JobExpired):
        _log.info("job %s was gone before it began", key[:8])
        return False
    return run()


def fail_unloaded(registry: Registry, key: str, error: BaseException | str) -> None:
    """Write down that the job *key* failed because the app could not be loaded: the traceback is its output.

    *error* is what was raised, or its traceback. Does nothing for a job that is not pending.
    """
    text = error if isinstance(error, str) else "".join(traceback.format_exception(error))
    last = text.strip().rpartition("\n")[2][:500]
    runner = f"{os.getpid()}-{secrets.token_hex(8)}"
    try:
        if patiently(registry, lambda: registry.claim(key, runner, lease=LEASE)):
            data = text.encode("utf-8", "backslashreplace")
            patiently(registry, lambda: registry.append(key, Channel.OUTPUT, 0, data, runner=runner))
            reason = f"the app could not be loaded: {last}"
            patiently(registry, lambda: registry.finish(key, runner, JobState.FAILED, reason=reason))
    except (JobNotFound, JobExpired):
        _log.info("job %s was gone before it failed", key[:8])


def end_dead(registry: Registry, key: str, reason: str) -> None:
    """Write down the end of the job *key*, whose process is gone for *reason*: at once, not when its lease has run out.

    It is ``cancelled`` where that was asked for, else ``lost``. Does nothing where its end is written down already.
    """
    try:
        patiently(registry, lambda: _end_dead(registry, key, reason))
    except (JobNotFound, JobExpired, RegistryError) as error:
        _log.warning("job %s could not be written down as lost: %s", key[:8], error)


def _end_dead(registry: Registry, key: str, reason: str) -> None:
    job = registry.get(key)
    state = JobState.LOST
    if job.cancel_requested_at is not None:
        state, reason = JobState.CANCELLED, job.reason
    if job.state is JobState.PENDING:
        registry.transition(key, {JobState.PENDING}, state, reason=reason)
    else:
        registry.finish(key, job.runner, state, reason=reason)


def end_of_process(registry: Registry, key: str, pid: int, how: str, *, regular: bool = False) -> None:
    """Write down the end of the job *key*, if the process *pid* of this host left it undone.

    *how* that ended becomes the reason; *regular*: whether it meant to, so that a pending job still waits. Does nothing
    for a job that another process runs: messages may come twice.
    """
    with contextlib.suppress(JobNotFound, JobExpired, RegistryError):  # its lease will tell
        job = patiently(registry, lambda: registry.get(key))
        claimed = job.receipt.get("runner") == f"{socket.gethostname()}:{pid}"
        if claimed if job.state is JobState.RUNNING else not regular:
            end_dead(registry, key, how)


def how_it_ended(status: int) -> str:
    """Return in words how a process ended, by its *status* as ``subprocess`` gives it."""
    if status >= 0:
        return f"its process exited with status {status}"
    return f"its process was killed by {signal.Signals(-status).name}"


class Stopper:
    """Says when the process of one running job is to be sent which signal: a job that was asked to stop, or is over its
    deadline, is interrupted at its next print by its own runner; a second later it is to be terminated, and *grace*
    seconds after it was asked, killed.
    """

    def __init__(self, registry: Registry, key: str, grace: float) -> None:
        self._registry = registry
        self._key = key
        self._grace = grace
        self._asked_at: float | None = None
        self._terminated = False

    @property
    def asked(self) -> bool:
        """Whether the job was asked to stop, as far as the last look knows."""
        return self._asked_at is not None

    def look(self) -> signal.Signals | None:
        """Look at the job, as its registry has it now; return the signal that is due. To be called once a second."""
        if self._asked_at is None:
            if not self._is_asked():
                return None
            self._asked_at = time.monotonic()
        waited = time.monotonic() - self._asked_at
        if waited >= self._grace:
            return signal.SIGKILL
        if waited >= min(_TERMINATE_AFTER, self._grace / 2) and not self._terminated:
            self._terminated = True
            return signal.SIGTERM
        return None

    def _is_asked(self) -> bool:
        try:
            job = self._registry.get(self._key)
            if job.cancel_requested_at is not None:
                return True
            if not self._is_over_deadline(job):
                return False
            # Its own runner does so in time, unless it is kept from it: by C code that never lets go, say.
            self._registry.request_cancel(self._key, over_deadline(job.deadline or 0.0))
        except (RegistryError, JobNotFound, JobExpired):
            return False  # the next look may tell
        return True

    def _is_over_deadline(self, job: Job) -> bool:
        if job.deadline is None or job.started_at is None or job.state.ended:
            return False
        return self._registry.clock() - job.started_at > job.deadline
