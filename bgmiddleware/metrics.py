"""Numbers for Prometheus: the extra ``prometheus``.

``metrics="/_metrics"`` of the middleware serves them; :func:`register` adds them to what a site serves already.
"""

import os
import threading
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from ._jobs import Job
from ._serving import Viewers
from .errors import ConfigurationError, RegistryError
from .registries.base import BOUNDS, MOST_PATHS, OTHER, Registry, path_of

try:
    import prometheus_client
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
    from prometheus_client.core import GaugeMetricFamily, Metric
    from prometheus_client.multiprocess import MultiProcessCollector
except ImportError as _error:
    raise ImportError("metrics need the extra prometheus: pip install 'bgmiddleware[prometheus]'") from _error

__all__ = ["Metrics", "register"]

_PREFIX = "bgmiddleware_"
_SEVERAL = "PROMETHEUS_MULTIPROC_DIR"


class Counted(Protocol):
    """A ``BackgroundMiddleware``."""

    @property
    def registry(self) -> Registry: ...

    @property
    def viewers(self) -> Viewers: ...


def register(middleware: Counted, registry: CollectorRegistry = prometheus_client.REGISTRY) -> None:
    """Add the numbers of *middleware* to a *registry* of ``prometheus_client`` that the site serves. Once each."""
    Metrics(middleware.registry, middleware.viewers, registry)


class Metrics:
    """The numbers of one middleware, whose jobs are in *jobs*. Any thread may call.

    What ended is counted by the process that wrote the end down. If the variable ``PROMETHEUS_MULTIPROC_DIR`` names a
    directory, the processes of a host add theirs up there. How many jobs wait and run is asked of the registry, and is
    the same for all processes that share it.
    """

    def __init__(self, jobs: Registry, viewers: Viewers, registry: CollectorRegistry | None = None) -> None:
        self._jobs = jobs
        self._own = CollectorRegistry() if registry is None else registry
        self._lock = threading.Lock()  # guards the next
        self._paths: set[str] = set()
        named: dict[str, Any] = {"labelnames": ["path"], "registry": self._own}
        self._ended = Counter(
            f"{_PREFIX}jobs_ended", "Jobs that ended, by state.", labelnames=["path", "state"], registry=self._own
        )
        self._ran = Histogram(f"{_PREFIX}job_run_seconds", "How long jobs ran.", buckets=BOUNDS, **named)
        self._waited = Histogram(f"{_PREFIX}job_wait_seconds", "How long jobs waited.", buckets=BOUNDS, **named)
        self._printed = Counter(f"{_PREFIX}job_output_bytes", "Bytes that jobs printed.", **named)
        self._dropped = Counter(f"{_PREFIX}job_output_dropped_bytes", "Bytes of output that were dropped.", **named)
        self._sums = self._sums_of_all_paths()
        self._now = _Now(jobs)
        self._own.register(self._now)
        jobs.tell_ends(self._count)
        jobs.tell_numbers(self._add)
        viewers.tell_numbers(self._add)

    def _sums_of_all_paths(self) -> dict[str, Counter | Gauge]:
        """Return what the registry and the viewers tell of, by the names that they have for it."""
        named: dict[str, Any] = {"registry": self._own}
        held = "Viewers whose connections are held open now."
        return {
            "held": Gauge(f"{_PREFIX}viewers_held", held, multiprocess_mode="livesum", **named),
            "refused": Counter(f"{_PREFIX}viewers_refused", "Viewers who were told to poll instead.", **named),
            "errors": Counter(f"{_PREFIX}registry_errors", "Calls that the registry's storage failed.", **named),
            "away": Counter(f"{_PREFIX}registry_away_seconds", "How long that did not answer.", **named),
            "evicted": Counter(f"{_PREFIX}jobs_evicted", "Ended jobs that were deleted, expired or for room.", **named),
        }

    def _add(self, name: str, number: float) -> None:
        self._sums[name].inc(number)

    def text(self) -> bytes:
        """Return the numbers as Prometheus reads them."""
        if _SEVERAL not in os.environ:
            return prometheus_client.generate_latest(self._own)
        together = CollectorRegistry()
        together.register(self._now)
        together.register(_Ours(MultiProcessCollector(None)))  # type: ignore[no-untyped-call]
        return prometheus_client.generate_latest(together)

    @property
    def content_type(self) -> str:
        """What kind of text that is."""
        return str(prometheus_client.CONTENT_TYPE_LATEST)

    def _count(self, job: Job) -> None:
        path = self._bounded(path_of(job))
        self._ended.labels(path, job.state.value).inc()
        self._printed.labels(path).inc(job.output_end)
        if job.output_dropped is not None:
            self._dropped.labels(path).inc(job.output_dropped[1] - job.output_dropped[0])
        if job.started_at is not None:
            self._waited.labels(path).observe(max(0.0, job.started_at - job.created_at))
            self._ran.labels(path).observe(job.elapsed(job.ended_at or job.started_at))

    def _bounded(self, path: str) -> str:
        with self._lock:
            if path not in self._paths and len(self._paths) >= MOST_PATHS - 1:  # and the others together
                return OTHER
            self._paths.add(path)
        return path


class _Now:
    """What the registry says when somebody asks."""

    def __init__(self, jobs: Registry) -> None:
        self._jobs = jobs

    def describe(self) -> Iterable[Metric]:
        """Return nothing: else registering would ask the registry."""
        return ()

    def collect(self) -> Iterator[Metric]:
        try:
            queue = self._jobs.queue()
            age = queue.waited(self._jobs.clock())
        except (RegistryError, ConfigurationError):
            yield GaugeMetricFamily(f"{_PREFIX}registry_up", "Whether the registry answers.", value=0)
            return
        yield GaugeMetricFamily(f"{_PREFIX}registry_up", "Whether the registry answers.", value=1)
        jobs = GaugeMetricFamily(f"{_PREFIX}jobs", "Jobs that wait and run now.", labels=["state"])
        jobs.add_metric(["pending"], queue.waiting)
        jobs.add_metric(["running"], queue.running)
        yield jobs
        yield GaugeMetricFamily(f"{_PREFIX}queue_oldest_seconds", "How long the oldest job has waited.", value=age)


class _Ours:
    """Of what all processes counted, what is ours: the site may count more."""

    def __init__(self, all_of_them: Any) -> None:
        self._all = all_of_them

    def collect(self) -> Iterator[Metric]:
        return (metric for metric in self._all.collect() if metric.name.startswith(_PREFIX))
