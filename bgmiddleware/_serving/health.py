"""Whether this process can take jobs, for load balancers and Kubernetes."""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigurationError, RegistryError
from .problems import UNSTORED, Answer, as_json, problem
from .visit import Site

__all__ = ["Health"]

_log = logging.getLogger("bgmiddleware")

_FRESH = 1.0  # seconds, and twenty times as long as the look took: anybody may ask, as often as he likes
_TIMES = 20


class Health:
    """Answers requests for the health of a *site*. It looks at the registry once a second at most. Any thread."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._lock = threading.Lock()  # held by the thread that looks
        self._seen: dict[str, Any] = {}
        self._fresh_until = float("-inf")

    def answer(self, environ: Mapping[str, Any]) -> Answer:
        """Answer 200 where a job could be started now, else 503; as JSON, without anything that a job says."""
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return problem(environ, 405, "method-not-allowed", "Health can only be read.", ("Allow", "GET, HEAD"))
        seen = self._look()
        takes_jobs = self._site.executor.takes_jobs
        is_well = takes_jobs and seen["registry"]
        document = {"status": "ok" if is_well else "unavailable", "executor": takes_jobs, **seen}
        return as_json(document, UNSTORED, "200 OK" if is_well else "503 Service Unavailable")

    def _look(self) -> dict[str, Any]:
        # While one looks at a registry that hangs, the others are told what was seen last.
        if self._lock.acquire(blocking=not self._seen):
            try:
                begun = time.monotonic()
                if begun >= self._fresh_until:
                    self._seen = self._seen_now()
                    ended = time.monotonic()
                    self._fresh_until = ended + max(_FRESH, _TIMES * (ended - begun))
            finally:
                self._lock.release()
        return self._seen

    def _seen_now(self) -> dict[str, Any]:
        registry = self._site.registry
        try:
            queue = registry.queue()
            oldest = queue.oldest
            waited = round(queue.waited(registry.clock()), 3)
            unseen = self._site.workers.unseen_for(registry, self._site.executor, oldest) if oldest else None
        except (RegistryError, ConfigurationError) as error:
            _log.warning("health: the registry cannot be used: %s", error)
            return {"registry": False, "workers": None, "queue": None}
        workers = unseen is None if self._site.executor.needs_workers else None
        told = {"waiting": queue.waiting, "running": queue.running, "oldest": waited}
        return {"registry": True, "workers": workers, "queue": told}
