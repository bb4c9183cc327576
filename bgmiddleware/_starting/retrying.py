"""Starts the next try of a request that failed."""

import json
import logging
from collections.abc import Callable
from traceback import format_exception
from typing import ClassVar

from .._ground.redaction import Redaction
from .._jobs import Job
from ..errors import JobExpired, JobNotFound, QueueFull, RegistryError, RegistryFull
from ..registries.base import Registry
from .errands import Errand, Message

__all__ = ["Retrying"]

_log = logging.getLogger("bgmiddleware")

_NO_ROOM = 30.0


class Retrying(Errand):
    """Has the next try of a job started by *start*, which raises ``QueueFull`` or ``RegistryFull`` where there is no
    room for it, and ``RegistryError``."""

    what: ClassVar[str] = "it is not tried again"

    def __init__(self, registry: Registry, start: Callable[[Job], None], redaction: Redaction | None) -> None:
        super().__init__(registry, "retries")
        self._start = start
        self._redaction = redaction

    def concerns(self, job: Job) -> bool:
        return job.tries is not None and bool(job.tries.coming)

    def due(self, job: Job) -> tuple[float, Message] | None:
        at = job.next_try_at(self.registry.ttl)
        return None if at is None else (at, {})

    def do(self, key: str, message: Message) -> None:
        try:
            job = self.registry.get(key)
            if job.awaits_try:  # else it was cancelled meanwhile, or run by somebody else
                self._start(job)
        except (QueueFull, RegistryFull) as error:
            _log.info("job %s is tried again later, when there is room: %s", key[:8], error)
            self.outbox.put(key, self.registry.clock() + _NO_ROOM, json.dumps(message))
            return
        except (JobExpired, JobNotFound):
            _log.warning("job %s is not tried again: it is gone", key[:8])
        except RegistryError:
            raise
        except Exception as error:  # of the site's own functions; the lease brings it again
            trace = "".join(format_exception(error)).rstrip()
            _log.error(
                "job %s could not be tried again\n%s", key[:8], self._redaction(trace) if self._redaction else trace
            )
            return
        self.outbox.remove(key)
