"""What a process does for jobs that wait in its memory: it says that it is still there, so that nobody waits for what
was killed with it."""

import contextlib
import logging
import os
import secrets
import threading
import weakref
from contextvars import Context

from .._jobs import JobState
from ..errors import JobExpired, JobNotFound, QueueFull
from ..registries.base import Registry, Transition
from .keeper import LEASE, RENEW_EVERY
from .run import Run

__all__ = ["Waiting"]

_log = logging.getLogger("bgmiddleware")

DROPPED = "it was dropped before it began"


class Waiting:
    """The jobs of one registry that wait in this process. Any thread may call; a forked child has none.

    One lease is for all of them, however many they are. Which they are, their executor says: a job waits as long as its
    run is there, which only the executor has. One whose run is gone before it began is written down as lost.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._held: dict[int, _Held] = {}  # by process

    @property
    def process(self) -> str:
        """The name of this process."""
        return self._here().name

    def hold(self, run: Run) -> None:
        """Hold a job, which was added for this process, until it has begun or its run is gone. Raises ``QueueFull``."""
        self._here().add(run)

    def let_go(self, key: str) -> None:
        """Hold a job no longer: its executor did not take it, and its registry knows that."""
        self._here().leave(key)

    def close(self) -> None:
        """Hold none any more: those that wait are not run by this process. The registry is not called after this."""
        held = self._held.pop(os.getpid(), None)
        if held is not None:
            held.close()

    def _here(self) -> "_Held":
        pid = os.getpid()
        return self._held.get(pid) or self._held.setdefault(pid, _Held(self._registry))


class _Held:
    def __init__(self, registry: Registry) -> None:
        self.name = f"{os.getpid()}-{secrets.token_hex(8)}"
        self._registry = registry
        self._lock = threading.Lock()  # guards what follows
        self._runs: dict[str, weakref.ref[Run]] = {}
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def add(self, run: Run) -> None:
        run.wait_in(self)
        with self._lock:
            self._runs[run.key] = weakref.ref(run)
            if self._thread is not None:
                return
            thread = threading.Thread(target=self._renew, name="bgmiddleware-waiting", daemon=True)
            try:
                Context().run(thread.start)  # it inherits nothing of the request that happened to need it
            except RuntimeError:
                self.leave(run.key)
                raise QueueFull("the system has no room for another thread") from None
            self._thread = thread

    def leave(self, key: str) -> None:
        """Take note that a job does not wait any more."""
        self._runs.pop(key, None)

    def revive(self) -> None:
        """Say at once that this process is there."""
        self._registry.hold(self.name, LEASE)

    def close(self) -> None:
        with self._lock:
            self._runs.clear()
            thread = self._thread
        self._closed.set()
        if thread is not None and thread.is_alive():
            thread.join()

    def _renew(self) -> None:
        """Run in a thread as long as there are jobs that wait."""
        while not self._closed.wait(RENEW_EVERY):
            with self._lock:
                if not self._runs:
                    self._thread = None
                    return
            try:
                self.revive()
                self._give_up_dropped()
            except Exception as error:  # it is away; the next time
                with contextlib.suppress(Exception):  # of a log handler
                    _log.debug("jobs that wait could not be renewed: %s", error)

    def _give_up_dropped(self) -> None:
        # Copied as a whole: a list of a hundred thousand pairs would have the garbage collector look at all there is.
        for key, reference in self._runs.copy().items():
            if reference() is None:
                with contextlib.suppress(JobNotFound, JobExpired):
                    self._registry.transition(key, {JobState.PENDING}, Transition(JobState.LOST, reason=DROPPED))
                self.leave(key)
