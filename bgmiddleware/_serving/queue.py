"""Where a pending job stands, and whether any worker is there to run it."""

import logging
import threading
from collections.abc import Iterator

from .._jobs import Job, JobState
from ..executors.base import Executor
from ..registries.base import Registry

__all__ = ["Workers"]

_log = logging.getLogger("bgmiddleware")

_UNSEEN = 30.0
_LOOK_EVERY = 5.0
_LOG_EVERY = 60.0
_LOOKED_AT = 5


class Workers:
    """Knows when a worker of an engine was last seen at work, from what the registry says about jobs. Any thread.

    Whoever starts the workers may have started none, or some that listen to another queue: their jobs would wait for
    ever, and nothing would say why. Instants are the registry's.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards the next
        self._looked_at = self._logged_at = float("-inf")
        self._seen_at = float("-inf")

    def unseen_for(self, registry: Registry, executor: Executor, job: Job) -> float | None:
        """Return for how many seconds a pending job has waited without any worker at work; None: that is nothing to
        tell, as for an executor that needs no workers. It is told in the log, too, once a minute."""
        if not executor.needs_workers or job.state is not JobState.PENDING:
            return None
        now = registry.clock()
        if now - job.created_at < _UNSEEN:
            return None
        with self._lock:
            if not 0 <= now - self._looked_at < _LOOK_EVERY:
                self._seen_at = max(self._seen_at, *_signs(registry, now), float("-inf"))
                self._looked_at = now
            unseen = now - max(self._seen_at, job.created_at)
            if unseen < _UNSEEN:
                return None
            must_log = now - self._logged_at >= _LOG_EVERY
            self._logged_at = now if must_log else self._logged_at
        if must_log:
            _log.warning(
                "no worker has been seen for %.0f s, so jobs of the %s wait. Start one: python -m bgmiddleware work"
                " MODULE:APP",
                unseen,
                type(executor).__name__,
            )
        return unseen


def _signs(registry: Registry, now: float) -> Iterator[float]:
    """Yield instants at which a worker was at work, the last ones as far as that costs little."""
    if registry.jobs(JobState.RUNNING, 1):
        yield now
        return
    for state in (each for each in JobState if each.ended):
        for job in registry.jobs(state, _LOOKED_AT):
            if job.started_at is not None and job.ended_at is not None:
                yield job.ended_at
