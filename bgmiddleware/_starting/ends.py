"""What follows the end of a job: the site's hooks are called, and its webhooks are delivered."""

import contextlib
import http.client
import json
import logging
import threading
import traceback
from contextvars import Context

from .._capture import detached
from .._ground.redaction import Redaction
from .._jobs import Job
from .._running import one_line
from .._serving import Delivery
from ..errors import ConfigurationError, JobExpired, JobNotFound, RegistryError
from ..hooks import OnEnd, Webhook, message_of
from ..registries.base import Outbox, Registry

__all__ = ["Ends"]

_log = logging.getLogger("bgmiddleware")

DELAYS = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 21_600.0)
"""Seconds until a message that was not taken is sent again: for a day all in all."""

_DAY = 86_400.0
_MOST_FORGOTTEN = 100  # at a time

_LEASE = 60.0  # a delivery takes at most 15 seconds, and looking up a name some more
_LOOK_AGAIN = 5.0, 60.0
_LOST_FROM_SIGHT = 120.0  # a job that was never added
_POLL = 1.0
_LAST = 5.0
_LONGEST_TROUBLE = 300  # characters of a line of the log


class Ends:
    """Calls *hooks* with each job of *registry* whose end this process writes down, and delivers webhooks.

    A webhook's message is put into its outbox before the job begins, as one that is to be looked at; at the end it
    becomes what is to be sent. So a process that is killed between an end and its delivery loses none: another one
    finds the message, looks at the job, and sends it. Any thread may call.
    """

    def __init__(self, registry: Registry, hooks: tuple[OnEnd, ...], redaction: Redaction | None) -> None:
        self._registry = registry
        self._hooks = hooks
        self._webhooks = [hook for hook in hooks if isinstance(hook, Webhook)]
        self._redaction = redaction
        self._changed = threading.Condition()  # guards what follows
        self._thread: threading.Thread | None = None
        self._closed = False
        if hooks:
            registry.tell_ends(self._has_ended)

    def expect(self, key: str) -> None:
        """Say that there will be a job: to be called before it is added. Raises ``RegistryError``."""
        if not self._webhooks:
            return
        now = self._registry.clock()
        for hook in self._webhooks:
            waits = json.dumps({"since": now, "again": _LOOK_AGAIN[0]})
            if not self._outbox(hook).put(key, now + _LOOK_AGAIN[0], waits):
                _log.warning("%s will not be told of the job %s: too many messages wait", hook, key[:8])
        self.look()

    def forget(self, key: str) -> None:
        """Say that there will be no such job after all: requests that are refused take no room from messages."""
        with contextlib.suppress(RegistryError):
            for hook in self._webhooks:
                self._outbox(hook).remove(key)

    def look(self) -> None:
        """See to it that a thread delivers what there is. Never blocks for long."""
        if not self._webhooks:
            return
        with self._changed:
            if self._closed or (self._thread is not None and self._thread.is_alive()):
                return
            thread = threading.Thread(target=self._deliver, name="bgmiddleware-webhooks", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread can begin: the next request tries again
                Context().run(thread.start)
                self._thread = thread

    def deliveries(self) -> list[Delivery]:
        """Return how the messages of each webhook go. Raises ``RegistryError``."""
        return [self._delivery(hook) for hook in self._webhooks]

    def _delivery(self, hook: Webhook) -> Delivery:
        failing, given_up = self._failing(hook), self._given_up(hook)
        for _ in range(_MOST_FORGOTTEN):
            over = given_up.take(self._registry.clock(), _LEASE)
            if over is None:
                break
            given_up.remove(over[0])
        first = failing.first()
        oldest, trouble = (None, "") if first is None else first[1:]
        return Delivery(hook.shown, self._outbox(hook).size(), failing.size(), oldest, trouble, given_up.size())

    def close(self) -> None:
        """Deliver what is due, for some seconds at most; what is left waits for another process, if it can."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread.is_alive():
            thread.join(_LAST)

    def _has_ended(self, job: Job) -> None:
        for hook in self._hooks:
            with detached():
                try:
                    if isinstance(hook, Webhook):
                        self._announce(hook, job)
                    else:
                        hook(job)
                except (Exception, SystemExit) as error:
                    trace = "".join(traceback.format_exception(error)).rstrip()
                    trace = trace if self._redaction is None else self._redaction(trace)
                    with contextlib.suppress(Exception):  # of a log handler
                        _log.error("job %s has ended, and a hook raised\n%s", job.key[:8], trace)

    def _announce(self, hook: Webhook, job: Job) -> None:
        outbox = self._outbox(hook)
        if job.state.value not in hook.events:
            outbox.remove(job.key)
            return
        outbox.put(job.key, self._registry.clock(), json.dumps({"body": message_of(job), "tries": 0}))
        with self._changed:
            self._changed.notify_all()

    def _outbox(self, hook: Webhook) -> Outbox:
        return self._registry.outbox(hook.name)

    def _failing(self, hook: Webhook) -> Outbox:
        """What was not taken yet, by when that was first: only to be looked at."""
        return self._registry.outbox(f"{hook.name}failing")

    def _given_up(self, hook: Webhook) -> Outbox:
        """What was never taken, by when that is to be forgotten."""
        return self._registry.outbox(f"{hook.name}givenup")

    # In the thread that delivers.

    def _deliver(self) -> None:
        while True:
            try:
                some = [self._deliver_one(hook) for hook in self._webhooks]
                is_empty = not any(some) and not any(self._outbox(hook).size() for hook in self._webhooks)
            except (RegistryError, ConfigurationError) as error:  # it is away; the next time
                some, is_empty = [], False
                with contextlib.suppress(Exception):
                    _log.debug("webhooks could not be looked at: %s", error)
            if any(some):
                continue
            with self._changed:
                if self._closed or is_empty:
                    self._thread = None
                    return
                self._changed.wait(_POLL)

    def _deliver_one(self, hook: Webhook) -> bool:
        """Do what is due first; return whether there was something."""
        outbox, now = self._outbox(hook), self._registry.clock()
        found = outbox.take(now, _LEASE)
        if found is None:
            return False
        key, message = found[0], json.loads(found[1])
        if "body" not in message:
            looked = self._looked_at(key, message, now)
            if looked is None or (isinstance(looked, Job) and looked.state.value not in hook.events):
                outbox.remove(key)
                return True
            if not isinstance(looked, Job):
                outbox.put(key, now + looked["again"], json.dumps(looked))
                return True
            message = {"body": message_of(looked), "tries": 0}
            outbox.put(key, now + _LEASE, json.dumps(message))
        self._send(hook, outbox, key, message)
        return True

    def _looked_at(self, key: str, message: dict[str, float], now: float) -> Job | dict[str, float] | None:
        """Return the job, if it has ended for good; or when to look again; None: there is none."""
        again = {**message, "again": min(2 * message["again"], _LOOK_AGAIN[1])}
        try:
            job = self._registry.get(key)
        except JobExpired:
            return None
        except JobNotFound:
            return again if now - message["since"] < _LOST_FROM_SIGHT else None
        # A loss that nobody wrote down yet may be revived.
        is_for_good = job.state.ended and (job.kept or job.expires_at is not None)
        return job if is_for_good else again

    def _send(self, hook: Webhook, outbox: Outbox, key: str, message: dict[str, object]) -> None:
        tries = int(str(message["tries"]))
        try:
            status = hook.deliver(key, str(message["body"]))
            trouble = "" if 200 <= status < 300 else f"it answered {status}"
        except (OSError, http.client.HTTPException) as error:
            # What the receiver said may be in it: of any length, and with controls of a terminal.
            trouble = one_line(f"{type(error).__name__}: {error}"[:_LONGEST_TROUBLE].strip())
        now = self._registry.clock()
        if trouble and tries < len(DELAYS):
            _log.warning("%s was not told of the end of job %s, once more later: %s", hook, key[:8], trouble)
            since = float(str(message.get("failing_since", now)))
            self._failing(hook).put(key, since, trouble)
            retry = json.dumps({**message, "tries": tries + 1, "failing_since": since})
            outbox.put(key, now + DELAYS[tries], retry)
            return
        if trouble:
            _log.error("%s was not told of the end of job %s: %s", hook, key[:8], trouble)
            self._given_up(hook).put(key, now + _DAY, trouble)
        self._failing(hook).remove(key)
        outbox.remove(key)
