"""What is to be done at the end of jobs, by whichever process of the site comes to it first."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from .._jobs import Job
from ..errors import JobExpired, JobNotFound
from ..registries.base import Outbox, Registry

__all__ = ["LEASE", "Errand", "Message"]

Message = Mapping[str, Any]
"""What an errand needs to know, as JSON."""

LEASE = 60.0
"""Seconds that an errand may take: a delivery takes at most 15, and looking up a name some more."""

_LOOK_AGAIN = 5.0, 60.0
_LOST_FROM_SIGHT = 120.0  # a job that was never added


class Errand(ABC):
    """What is to be done at the end of the jobs that it concerns.

    Its messages wait in an outbox of the registry, each under the key of its job. One is there before the job begins,
    and says that the job is to be looked at; at the end it becomes what is to be done. So a process that is killed
    between the two loses nothing: another one finds the message, looks at the job, and does it. Any thread may call.
    """

    what: ClassVar[str]
    """What does not happen where its outbox is full."""

    def __init__(self, registry: Registry, name: str) -> None:
        self.registry = registry
        self._name = name

    @property
    def outbox(self) -> Outbox:
        """Where its messages wait."""
        return self.registry.outbox(self._name)

    @abstractmethod
    def concerns(self, job: Job) -> bool:
        """Whether there may be something to do at the end of a job."""

    @abstractmethod
    def due(self, job: Job) -> tuple[float, Message] | None:
        """Return what is to be done for a job that has ended, and at which instant; None: nothing."""

    @abstractmethod
    def do(self, key: str, message: Message) -> None:
        """Do it, and remove or replace the message. Else it comes again, ``LEASE`` seconds later."""

    def expect(self, job: Job) -> bool:
        """Say that there will be a job, before it is added. Return whether there was room to note that."""
        now = self.registry.clock()
        waits = {"since": now, "again": _LOOK_AGAIN[0]}
        return self.outbox.put(job.key, now + _LOOK_AGAIN[0], json.dumps(waits))

    def announce(self, job: Job) -> None:
        """Say that a job has ended."""
        due = self.due(job)
        if due is None:
            self.outbox.remove(job.key)
        else:
            self.outbox.put(job.key, due[0], json.dumps(due[1]))

    def work(self) -> bool:
        """Do what is due first; return whether there was something."""
        now = self.registry.clock()
        found = self.outbox.take(now, LEASE)
        if found is None:
            return False
        key, message = found[0], json.loads(found[1])
        if "again" not in message:
            self.do(key, message)
            return True
        looked = self._looked_at(key, message, now)
        if isinstance(looked, Job):
            self.announce(looked)
        elif looked is None:
            self.outbox.remove(key)
        else:
            self.outbox.put(key, now + looked["again"], json.dumps(looked))
        return True

    def _looked_at(self, key: str, message: Message, now: float) -> Job | Message | None:
        """Return the job, if it has ended for good; or when to look again; None: there is none."""
        again = {**message, "again": min(2 * message["again"], _LOOK_AGAIN[1])}
        try:
            job = self.registry.get(key)
        except JobExpired:
            return None
        except JobNotFound:
            return again if now - message["since"] < _LOST_FROM_SIGHT else None
        # A loss that nobody wrote down yet may be revived.
        is_for_good = job.state.ended and (job.kept or job.expires_at is not None)
        return job if is_for_good else again
