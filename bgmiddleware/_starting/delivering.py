"""Delivers the messages of a webhook."""

import http.client
import json
import logging
from typing import ClassVar

from .._jobs import Job
from .._running import one_line
from .._serving import Delivery
from ..hooks import Webhook, message_of
from ..registries.base import Outbox, Registry
from .errands import LEASE, Errand, Message

__all__ = ["DELAYS", "Delivering"]

_log = logging.getLogger("bgmiddleware")

DELAYS = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 21_600.0)
"""Seconds until a message that was not taken is sent again: for a day all in all."""

_DAY = 86_400.0
_MOST_FORGOTTEN = 100  # at a time
_LONGEST_TROUBLE = 300  # characters of a line of the log


class Delivering(Errand):
    """Tells a webhook of the end of jobs."""

    what: ClassVar[str] = "a webhook will not be told of it"

    def __init__(self, registry: Registry, hook: Webhook) -> None:
        super().__init__(registry, hook.name)
        self.hook = hook

    def concerns(self, job: Job) -> bool:
        return True

    def due(self, job: Job) -> tuple[float, Message] | None:
        if job.state.value not in self.hook.events:
            return None
        return self.registry.clock(), {"body": message_of(job), "tries": 0}

    def delivery(self) -> Delivery:
        """Return how its messages go. Raises ``RegistryError``."""
        for _ in range(_MOST_FORGOTTEN):
            over = self._given_up.take(self.registry.clock(), LEASE)
            if over is None:
                break
            self._given_up.remove(over[0])
        first = self._failing.first()
        oldest, trouble = (None, "") if first is None else first[1:]
        size, failing, given_up = self.outbox.size(), self._failing.size(), self._given_up.size()
        return Delivery(self.hook.shown, size, failing, oldest, trouble, given_up)

    @property
    def _failing(self) -> Outbox:
        """What was not taken yet, by when that was first: only to be looked at."""
        return self.registry.outbox(f"{self.hook.name}failing")

    @property
    def _given_up(self) -> Outbox:
        """What was never taken, by when that is to be forgotten."""
        return self.registry.outbox(f"{self.hook.name}givenup")

    def do(self, key: str, message: Message) -> None:
        hook, tries = self.hook, int(message["tries"])
        try:
            status = hook.deliver(key, str(message["body"]))
            trouble = "" if 200 <= status < 300 else f"it answered {status}"
        except (OSError, http.client.HTTPException) as error:
            # What the receiver said may be in it: of any length, and with controls of a terminal.
            trouble = one_line(f"{type(error).__name__}: {error}"[:_LONGEST_TROUBLE].strip())
        now = self.registry.clock()
        if trouble and tries < len(DELAYS):
            _log.warning("%s was not told of the end of job %s, once more later: %s", hook, key[:8], trouble)
            since = float(message.get("failing_since", now))
            self._failing.put(key, since, trouble)
            retry = json.dumps({**message, "tries": tries + 1, "failing_since": since})
            self.outbox.put(key, now + DELAYS[tries], retry)
            return
        if trouble:
            _log.error("%s was not told of the end of job %s: %s", hook, key[:8], trouble)
            self._given_up.put(key, now + _DAY, trouble)
        self._failing.remove(key)
        self.outbox.remove(key)
