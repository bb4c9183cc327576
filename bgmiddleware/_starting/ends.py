"""What follows the end of a job: the site's hooks are called, webhooks are told, and what failed is tried again."""

import contextlib
import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextvars import Context

from .._capture import detached
from .._ground.redaction import Redaction
from .._jobs import Job
from .._serving import Delivery
from ..errors import ConfigurationError, RegistryError
from ..hooks import OnEnd, Webhook
from ..registries.base import Registry
from .delivering import Delivering
from .errands import Errand
from .retrying import Retrying

__all__ = ["Ends"]

_log = logging.getLogger("bgmiddleware")

_POLL = 1.0
_LAST = 5.0


class Ends:
    """Calls *hooks* with each job of *registry* whose end this process writes down, and does the errands that follow
    from the ends of all: it delivers webhooks, and has the next try of a job started by *retry*, if that is given. Any
    thread may call.
    """

    def __init__(
        self,
        registry: Registry,
        hooks: Sequence[OnEnd],
        redaction: Redaction | None,
        retry: Callable[[Job], None] | None = None,
    ) -> None:
        self._registry = registry
        self._hooks = tuple(hook for hook in hooks if not isinstance(hook, Webhook))
        self._webhooks = [Delivering(registry, hook) for hook in hooks if isinstance(hook, Webhook)]
        self._retries = None if retry is None else Retrying(registry, retry, redaction)
        self._errands: list[Errand] = [*self._webhooks, *filter(None, [self._retries])]
        self._redaction = redaction
        self._changed = threading.Condition()  # guards what follows
        self._thread: threading.Thread | None = None
        self._closed = False
        self._is_asked = False
        self._looked_at = -_POLL
        if hooks or self._errands:
            registry.tell_ends(self._has_ended)

    def expect(self, job: Job) -> Job:
        """Say that there will be a job: to be called before it is added. Return it without tries that nobody would
        start. Raises ``RegistryError``."""
        if not self._errands:
            return job
        for errand in self._errands:
            if errand.concerns(job) and not errand.expect(job):
                _log.warning("job %s: %s, too many messages wait", job.key[:8], errand.what)
                if errand is self._retries:
                    job = job.changed(tries=None)
        self._begin()
        return job

    def forget(self, job: Job) -> None:
        """Say that there will be no such job after all: requests that are refused take no room from messages."""
        with contextlib.suppress(RegistryError):
            for errand in self._errands:
                if errand.concerns(job):
                    errand.outbox.remove(job.key)

    def look(self) -> None:
        """See whether there is something to do that another process has left, once a second at most. Never blocks for
        long."""
        if self._errands and time.monotonic() >= self._looked_at + _POLL:
            self._begin()

    def _begin(self) -> None:
        """See to it that a thread does what there is to do."""
        with self._changed:
            self._is_asked = True
            if self._closed or (self._thread is not None and self._thread.is_alive()):
                return
            thread = threading.Thread(target=self._run_errands, name="bgmiddleware-ends", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can begin: the next request tries again
                Context().run(thread.start)
                self._thread = thread

    def deliveries(self) -> list[Delivery]:
        """Return how the messages of each webhook go. Raises ``RegistryError``."""
        return [webhook.delivery() for webhook in self._webhooks]

    def close(self) -> None:
        """Do what is due, for some seconds at most; what is left waits for another process, if it can."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread.is_alive():
            thread.join(_LAST)

    def _has_ended(self, job: Job) -> None:
        for hook in self._hooks:
            self._tell(hook, job)
        for errand in self._errands:
            if errand.concerns(job):
                self._tell(errand.announce, job)
        with self._changed:
            self._changed.notify_all()

    def _tell(self, hook: OnEnd, job: Job) -> None:
        with detached():
            try:
                hook(job)
            except (Exception, SystemExit) as error:
                trace = "".join(traceback.format_exception(error)).rstrip()
                trace = trace if self._redaction is None else self._redaction(trace)
                with contextlib.suppress(Exception):  # of a log handler
                    _log.error("job %s has ended, and a hook raised\n%s", job.key[:8], trace)

    def _run_errands(self) -> None:
        """Run in a thread as long as there is something to wait for."""
        while True:
            self._is_asked = False  # who asks from now on has put something there that may not be seen below
            self._looked_at = time.monotonic()
            try:
                # Who is closed starts no job, and leaves the tries to others.
                some = [errand.work() for errand in (self._webhooks if self._closed else self._errands)]
                is_empty = not any(some) and not any(errand.outbox.size() for errand in self._errands)
                if not is_empty:
                    self._registry.keep_house()  # who writes down that a job was lost, for which we wait
            except (RegistryError, ConfigurationError) as error:  # it is away; the next time
                some, is_empty = [], False
                with contextlib.suppress(Exception):
                    _log.debug("what follows the ends of jobs could not be looked at: %s", error)
            if any(some):
                continue
            with self._changed:
                if self._closed or (is_empty and not self._is_asked):
                    self._thread = None
                    return
                if not is_empty:
                    self._changed.wait(_POLL)
