"""How long a job may take, by how long others like it took."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from .._jobs import Job, JobState
from ..registries.base import Registry

__all__ = ["Estimate", "Estimates"]

_RUNS = 20
_LOOKED_AT = 200
_FRESH = 60.0
_REMEMBERED = 256


class Estimate(NamedTuple):
    """Of the last *runs* that finished the shortest took *low* seconds, and the longest *high*."""

    low: float
    high: float
    runs: int


class Estimates:
    """Remembers estimates for a minute, of the 256 endpoints asked about last: viewers ask every second, and an answer
    takes a look at two hundred jobs. Any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards the next
        self._made: OrderedDict[tuple[str, str | None], tuple[float, Estimate | None]] = OrderedDict()

    def of(self, registry: Registry, job: Job) -> Estimate | None:
        """Return how long jobs of the same title and owner took that finished, of the last 200; None if none did.

        A query makes no difference. Of the same owner: nobody shall learn from it what others do.
        """
        endpoint = _endpoint(job), job.owner
        now = self._clock()
        with self._lock:
            made_at, estimate = self._made.get(endpoint, (-_FRESH, None))
        if now - made_at < _FRESH:
            return estimate
        estimate = _estimate(registry, job)
        with self._lock:
            self._made[endpoint] = now, estimate
            self._made.move_to_end(endpoint)
            if len(self._made) > _REMEMBERED:
                self._made.popitem(last=False)
        return estimate


def _endpoint(job: Job) -> str:
    return job.title.partition("?")[0]


def _estimate(registry: Registry, job: Job) -> Estimate | None:
    # Of all states: a registry would go through all of its jobs to find enough that finished.
    took = [
        other.elapsed(0.0)
        for other in registry.jobs(limit=_LOOKED_AT)
        if other.state is JobState.FINISHED and (_endpoint(other), other.owner) == (_endpoint(job), job.owner)
    ][:_RUNS]
    return Estimate(min(took), max(took), len(took)) if took else None
