"""What a process does for jobs that wait in its memory: it says that it is still there, so that nobody waits for what
was killed with it."""

import contextlib
import os
import threading
from contextvars import Context

from ..errors import JobExpired, JobNotFound, RegistryError
from ..registries.base import Registry
from .keeper import LEASE, RENEW_EVERY

__all__ = ["Waiting"]


class Waiting:
    """The jobs of one registry that wait in this process. Any thread may call; a forked child has none."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._held: dict[int, _Held] = {}  # by process

    def hold(self, key: str) -> None:
        """Renew the lease of a job until it has begun, or is gone."""
        self._held.setdefault(os.getpid(), _Held(self._registry)).add(key)

    def close(self) -> None:
        """Hold none any more: those that wait are not run by this process. The registry is not called after this."""
        held = self._held.pop(os.getpid(), None)
        if held is not None:
            held.close()


class _Held:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._lock = threading.Lock()  # guards what follows
        self._keys: set[str] = set()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def add(self, key: str) -> None:
        with self._lock:
            self._keys.add(key)
            if self._thread is not None:
                return
            self._thread = thread = threading.Thread(target=self._renew, name="bgmiddleware-waiting", daemon=True)
        try:
            Context().run(thread.start)  # it inherits nothing of the request that happened to need it
        except RuntimeError:  # the system has no room for it; the next job tries again
            self._thread = None

    def close(self) -> None:
        with self._lock:
            self._keys.clear()
            thread = self._thread
        self._closed.set()
        if thread is not None and thread.is_alive():
            thread.join()

    def _renew(self) -> None:
        """Run in a thread as long as there are jobs that wait."""
        while not self._closed.wait(RENEW_EVERY):
            with self._lock:
                keys = list(self._keys)
                if not keys:
                    self._thread = None
                    return
            with contextlib.suppress(RegistryError):  # it is away; the next time
                for key in keys:
                    if not self._still_waits(key):
                        with self._lock:
                            self._keys.discard(key)

    def _still_waits(self, key: str) -> bool:
        try:
            return self._registry.renew(key, "", lease=LEASE).ok
        except (JobNotFound, JobExpired):
            return False
