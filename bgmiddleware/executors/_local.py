"""The queue and the threads that executors of this process share. Each thread takes care of one job at a time."""

import atexit
import concurrent.futures.thread  # noqa: F401  # imported first, so it ends after us: jobs may use pools
import contextlib
import itertools
import os
import sys
import threading
import weakref
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from contextvars import Context
from heapq import heapify, heappop, heappush

from .._ground.numbers import check_count, check_seconds
from .._ground.weakly import nudge
from .._running import Run
from ..errors import QueueFull
from .base import Executor, full_group

__all__ = ["SHUT_DOWN", "LocalExecutor"]

SHUT_DOWN = "server shut down"
_GRACE = 1.0
_LOOK_EVERY = 1.0
_LOOK_AGAIN = 60.0  # how often an idle thread checks that its executor still exists
_Entry = tuple[int, int, Run]  # sorted by the rank of the priority, then by arrival
_forked = threading.Lock()  # guards the first use of an executor in a forked child


class LocalExecutor(Executor):
    """Runs up to *max_workers* jobs at a time, each in a thread of this process named ``bgmiddleware-N``.

    The threads start when jobs need them, and again after a fork. Up to *max_pending* jobs wait, higher priorities
    first; beyond that ``submit`` raises ``QueueFull``. A job that waits for its group, because as many jobs of the
    group are queued or running as may run, takes none of these places; each group has places of its own. When the
    process ends, running jobs get *drain* seconds.
    """

    keeps_queue = True

    def __init__(self, *, max_workers: int, max_pending: int, drain: float) -> None:
        check_count("max_workers", max_workers, 1)
        check_count("max_pending", max_pending, 0)
        check_seconds("drain", drain)
        self.max_workers = max_workers
        self.max_pending = max_pending
        self.drain = drain
        self._reset()

    @abstractmethod
    def _worker(self) -> AbstractContextManager[Callable[[Run], bool]]:
        """Return the context manager of one thread. The thread enters it when it starts and leaves it when it ends; it
        gives a function that runs a job and returns whether the job must wait."""

    def _abandon(self, run: Run) -> None:
        """Record that a job is lost because the server shut down, and interrupt it if it runs."""
        run.abandon(SHUT_DOWN)

    def _reset(self) -> None:
        # Guards everything below. Reentrant: the garbage collector may finalize an executor in a thread that holds it.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)  # notified when there is a run to take, and at shutdown
        self._idle = threading.Condition(self._lock)  # notified when nothing runs and nothing waits
        self._pending: list[_Entry] = []  # a heap
        self._parked: list[
            _Entry
        ] = []  # their groups were full when they were tried, because of jobs of other processes
        self._held: dict[str, list[_Entry]] = {}  # heaps of the runs that wait for a full group, by group
        self._entered: Counter[str] = Counter()  # how many runs of each group are pending, parked or running
        self._submitted = 0
        self._running: dict[str, Run] = {}
        self._abandoned: set[str] = set()
        self._workers = 0
        self._waiting = 0
        self._closed = False
        weakref.finalize(self, nudge, self._work).atexit = False
        self._pid = os.getpid()  # assigned last: it says that all of the above belongs to this process

    @property
    def takes_jobs(self) -> bool:
        return not self._closed

    def submit(self, run: Run) -> None:
        if self._pid != os.getpid():
            with _forked:
                if self._pid != os.getpid():
                    self._reset()  # the threads, and the runs they had, are the parent's
        with self._lock:
            if self._closed:
                raise QueueFull("the server is shutting down")
            self._submitted += 1
            entry = run.priority.rank, self._submitted, run
            if run.groups and self._hold(entry):
                return
            waiting = len(self._pending) + len(self._parked)
            if waiting + len(self._running) >= self.max_workers + self.max_pending:
                running = min(self.max_workers, waiting + len(self._running) - len(self._parked))
                waiting += len(self._running) - running
                raise QueueFull(f"{running} jobs are running and {waiting} are waiting")
            self._enter(entry)
            if self._waiting >= len(self._pending):
                self._work.notify()
            elif self._workers < self.max_workers:
                self._begin(entry)

    def _begin(self, entry: _Entry) -> None:
        """Start another thread for a new entry. Called with the lock held, so the number of threads is exact."""
        name, arguments = f"bgmiddleware-{self._workers + 1}", (weakref.ref(self), self._work)
        thread = threading.Thread(target=_run_jobs, args=arguments, name=name, daemon=True)
        try:
            # In an empty context: a worker must inherit nothing from the request that happened to start it.
            Context().run(thread.start)
        except RuntimeError:
            if self._workers:
                return  # the existing threads will take it
            self._pending.remove(entry)  # no thread would ever take it
            heapify(self._pending)
            self._leave(entry)
            raise QueueFull("the system has no room for another thread") from None
        self._workers += 1
        if self._workers == 1:
            _at_exit(self)

    def _put_back(self, taken: _Entry, must_wait: bool) -> None:
        with self._lock:
            del self._running[taken[-1].key]
            if must_wait:
                self._parked.append(taken)
            else:
                self._leave(taken)
                self._unpark()

    def _has_left(self) -> None:
        with self._lock:
            self._workers -= 1
            self._idle.notify_all()

    def _unpark(self) -> None:
        """Queue the parked runs again: their groups may have room now. Called with the lock held."""
        self._work.notify(len(self._parked))
        for entry in self._parked:
            heappush(self._pending, entry)
        self._parked.clear()

    # The following methods are called with the lock held.

    def _take(self) -> _Entry | float | None:
        """Return the run to run now, or the number of seconds to wait for one, or None if the thread must end."""
        if self._pending:
            taken = heappop(self._pending)
            self._running[taken[-1].key] = taken[-1]
            return taken
        if not self._running:
            self._idle.notify_all()
        if self._closed and not self._parked:
            return None
        self._waiting += 1
        # Nothing tells us when jobs of other processes end.
        return _LOOK_EVERY if self._parked else _LOOK_AGAIN

    def _has_waited(self, in_time: bool) -> None:
        self._waiting -= 1
        if not in_time:
            self._unpark()

    def _full_group(self, entry: _Entry) -> str | None:
        """Return a full group of a run: one with as many pending or running jobs as may run. None if there is none."""
        return next((group for group, most in entry[-1].groups.items() if self._entered[group] >= most), None)

    def _hold(self, entry: _Entry) -> bool:
        """Let a run wait for a full group, in a place of that group. Return false if none of its groups is full. Raises
        ``QueueFull`` if too many wait for the group."""
        group = self._full_group(entry)
        if group is None:
            return False
        held = self._held.setdefault(group, [])
        if len(held) >= self.max_pending:
            raise full_group(group, entry[-1].groups[group], len(held))
        heappush(held, entry)
        return True

    def _enter(self, entry: _Entry) -> None:
        """Queue a run for the next free thread."""
        if entry[-1].groups:  # most jobs belong to none
            self._entered.update(entry[-1].groups.keys())
        heappush(self._pending, entry)

    def _leave(self, entry: _Entry) -> None:
        """Free the places that a run had in its groups, and queue the runs that waited for them."""
        groups = entry[-1].groups
        for group in groups:
            self._entered[group] -= 1
            if not self._entered[group]:
                del self._entered[group]
        for group in groups:
            held = self._held.get(group, [])
            while held and (full := self._full_group(held[0])) != group:
                if full is None:
                    self._enter(heappop(held))
                    self._work.notify()
                else:
                    heappush(self._held.setdefault(full, []), heappop(held))
            if not held:
                self._held.pop(group, None)

    def stop(self, key: str) -> None:
        if self._pid != os.getpid():
            return
        with self._lock:
            for queue in (self._pending, self._parked):
                stopped = [entry for entry in queue if entry[-1].key == key]
                queue[:] = [entry for entry in queue if entry[-1].key != key]
                heapify(queue)
                for entry in stopped:
                    self._leave(entry)
            for group, held in list(self._held.items()):
                held[:] = [entry for entry in held if entry[-1].key != key]
                heapify(held)
                if not held:
                    del self._held[group]

    def shutdown(self, drain: float | None = None) -> None:
        if self._pid != os.getpid():
            return
        with self._lock:
            self._closed = True
            # Do not wait again for jobs that an earlier shutdown abandoned, for example at process exit.
            timeout = min(self.drain if drain is None else drain, threading.TIMEOUT_MAX)
            self._idle.wait_for(self._is_drained, timeout)
            held = itertools.chain.from_iterable(self._held.values())
            queued = (entry[-1] for entry in (*self._parked, *self._pending, *held))
            left = [run for run in (*queued, *self._running.values()) if run.key not in self._abandoned]
            self._abandoned.update(run.key for run in left)
            self._pending.clear()
            self._parked.clear()
            self._held.clear()
            self._work.notify_all()
            self._idle.notify_all()  # wake other threads that wait in shutdown()
        for run in left:
            self._abandon(run)
        with self._lock:  # interrupted jobs may clean up
            self._idle.wait_for(lambda: not self._running, min(timeout, _GRACE) if left else 0.0)

    def _is_drained(self) -> bool:
        return not self._pending and not self._parked and not self._held and self._running.keys() <= self._abandoned


def _run_jobs(reference: "weakref.ref[LocalExecutor]", work: threading.Condition) -> None:
    """Run jobs in a thread of an executor.

    An idle thread holds no reference to its executor. So an executor that is no longer used can be collected, and its
    threads end.
    """
    executor = reference()
    if executor is None:
        return
    seat = executor._worker()
    held = [executor]  # cleared while the thread is idle
    del executor
    with seat as perform:
        while (found := _next(reference, work, held)) is not None:
            executor, taken = found
            must_wait = False
            try:
                must_wait = perform(taken[-1])
            finally:
                executor._put_back(taken, must_wait)
            held.append(executor)
            del executor, taken, found  # an idle thread must not keep a request alive
    executor = reference()
    if executor is not None:
        executor._has_left()


def _next(
    reference: "weakref.ref[LocalExecutor]", work: threading.Condition, held: list[LocalExecutor]
) -> tuple[LocalExecutor, _Entry] | None:
    """Wait for a run. Hold no reference to the executor meanwhile. Return None when the thread must end."""
    with work:
        while (executor := reference()) is not None:
            taken = executor._take()
            if taken is None:
                return None
            held.clear()
            if not isinstance(taken, float):
                return executor, taken
            del executor
            in_time = reference() is None or work.wait(taken)
            executor = reference()
            if executor is not None:
                executor._has_waited(in_time)
    return None


def _at_exit(executor: LocalExecutor) -> None:
    """Shut *executor* down when the process ends, unless it is gone by then."""
    reference = weakref.ref(executor)

    def shutdown() -> None:
        alive = reference()
        if alive is not None:
            alive.shutdown()

    # The threads are daemons, so that no job keeps the process from ending. So we must give them time here.
    # The private hook runs before Python joins other threads, while everything still works; atexit runs later.
    register: Callable[[Callable[[], None]], object] = getattr(threading, "_register_atexit", atexit.register)
    try:
        register(shutdown)
    except RuntimeError:
        atexit.register(shutdown)  # the process is already ending
    if "uwsgi" in sys.modules:
        _at_exit_of_uwsgi(shutdown)


_callbacks: list[object] = []  # C code calls them and holds no reference


def _at_exit_of_uwsgi(shutdown: Callable[[], None]) -> None:
    """Call *shutdown* when a uWSGI worker ends.

    uWSGI calls Python's exit hooks only if no request is being answered, so not while somebody watches a job. It always
    calls those of C, in the thread that ends the process.
    """
    import ctypes

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: shutdown())
    _callbacks.append(callback)
    with contextlib.suppress(AttributeError):  # this system has no __cxa_atexit
        ctypes.CDLL(None).__cxa_atexit(callback, None, None)
