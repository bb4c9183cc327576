"""How long a job may take, by how long others like it took."""

import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from .._jobs import Job, JobState
from ..registries.base import Registry

__all__ = ["Estimate", "Estimates"]

_RUNS = 20
_STEPS = 50  # of each that are remembered
_LOOKED_AT = 200
_FRESH = 60.0
_REMEMBERED = 256


class Estimate(NamedTuple):
    """By the last *runs* that finished, it takes at least *low* seconds and at most *high*."""

    low: float
    high: float
    runs: int


class _Run(NamedTuple):
    """How long a run took, and when its steps began: each title with how many of it there were before."""

    took: float
    begun: dict[tuple[str, int], float]


class Estimates:
    """Remembers for a minute what jobs took, of the 256 endpoints asked about last: viewers ask every second, and an
    answer takes a look at two hundred jobs. Any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards the next
        self._made: OrderedDict[tuple[str, str | None], tuple[float, list[_Run]]] = OrderedDict()

    def of(self, registry: Registry, job: Job) -> Estimate | None:
        """Return how long jobs of the same title and owner took that finished, of the last 200; None if none did.

        A query makes no difference. Of the same owner: nobody shall learn from it what others do. A job that has begun
        a step is taken to need as long from there on as those did that had it too.
        """
        endpoint = _endpoint(job), job.owner
        now = self._clock()
        with self._lock:
            made_at, runs = self._made.get(endpoint, (-_FRESH, []))
        if now - made_at >= _FRESH:
            runs = _runs(registry, job)
            with self._lock:
                self._made[endpoint] = now, runs
                self._made.move_to_end(endpoint)
                if len(self._made) > _REMEMBERED:
                    self._made.popitem(last=False)
        return _estimate(runs, job)


def _endpoint(job: Job) -> str:
    return job.title.partition("?")[0]


def _runs(registry: Registry, job: Job) -> list[_Run]:
    # Of all states: a registry would go through all of its jobs to find enough that finished.
    return [
        _Run(other.elapsed(0.0), _begun(other))
        for other in registry.jobs(limit=_LOOKED_AT)
        if other.state is JobState.FINISHED and (_endpoint(other), other.owner) == (_endpoint(job), job.owner)
    ][:_RUNS]


def _estimate(runs: list[_Run], job: Job) -> Estimate | None:
    took = [run.took for run in runs]
    for step, at in reversed(_begun(job).items()):
        from_there = [at + run.took - run.begun[step] for run in runs if step in run.begun]
        if from_there:
            took = from_there
            break
    return Estimate(min(took), max(took), len(took)) if took else None


def _begun(job: Job) -> dict[tuple[str, int], float]:
    """Return when each of the first outermost steps of a job began, in seconds since the job did, in their order."""
    begun: dict[tuple[str, int], float] = {}
    counted: Counter[str] = Counter()
    outermost = [step for step in ([] if job.steps is None else job.steps.listed) if step.parent is None]
    for step in outermost[:_STEPS]:
        begun[step.title, counted[step.title]] = step.begun / 1000
        counted[step.title] += 1
    return begun
