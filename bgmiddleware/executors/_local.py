"""What the executors of one process have in common: threads of it, each of which sees to one job at a time."""

import atexit
import concurrent.futures.thread  # noqa: F401  # at the end of a process it is left after us, for jobs that use pools
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
from .._running import Run
from ..errors import QueueFull
from .base import Executor, full_group

__all__ = ["SHUT_DOWN", "LocalExecutor"]

SHUT_DOWN = "server shut down"
_GRACE = 1.0
_LOOK_EVERY = 1.0
_LOOK_AGAIN = 60.0  # whether the executor is there still; nobody waits for this
_Entry = tuple[int, int, Run]  # by its priority's rank, then in the order of coming
_forked = threading.Lock()  # guards the first use of an executor in a forked child


class LocalExecutor(Executor):
    """Sees to up to *max_workers* jobs at a time, each in a thread of this process named ``bgmiddleware-N``.

    The threads begin when jobs need them, and again after a fork. Up to *max_pending* jobs wait, those of a higher
    priority before the others; then ``submit`` raises ``QueueFull``. A job that waits because as many of its group are
    there as may run takes none of these places: of each group as many more may wait. At the end of the process running
    jobs get *drain* seconds.
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
        """Return what one thread has jobs run with, entered in that thread and left at its end: a function that runs a
        job and returns whether it must wait."""

    def _abandon(self, run: Run) -> None:
        """Write down that a job is lost, since the server was shut down, and interrupt it if it runs."""
        run.abandon(SHUT_DOWN)

    def _reset(self) -> None:
        # Guards all of these. Its owner may come again: an executor that nobody holds is collected in any thread.
        self._lock = threading.RLock()
        self._work = threading.Condition(self._lock)  # there is a run to take, or the end
        self._idle = threading.Condition(self._lock)  # nothing runs and nothing waits
        self._pending: list[_Entry] = []  # a heap
        self._parked: list[_Entry] = []  # their groups were full when they were tried: of jobs of other processes
        self._held: dict[str, list[_Entry]] = {}  # by a group of which as many are in the others as may run: heaps
        self._entered: Counter[str] = Counter()  # how many those are, of each group
        self._submitted = 0
        self._running: dict[str, Run] = {}
        self._abandoned: set[str] = set()
        self._workers = 0
        self._waiting = 0
        self._closed = False
        weakref.finalize(self, _wake, self._work).atexit = False
        self._pid = os.getpid()  # the last: it says that the others are this process's

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
            if self._hold(entry):
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
        """Begin a thread more, since an entry came. Called with the lock held: of two that come at once, each knows of
        the threads that there are."""
        name, arguments = f"bgmiddleware-{self._workers + 1}", (weakref.ref(self), self._work)
        thread = threading.Thread(target=_run_jobs, args=arguments, name=name, daemon=True)
        try:
            # In an empty context: a worker inherits nothing of the request that happened to need it.
            Context().run(thread.start)
        except RuntimeError:
            if self._workers:
                return  # they take it
            self._pending.remove(entry)  # nobody is there to take it, ever
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
        """Try again those whose groups were full. Called with the lock held."""
        self._work.notify(len(self._parked))
        for entry in self._parked:
            heappush(self._pending, entry)
        self._parked.clear()

    # All of these are called with the lock held.

    def _take(self) -> _Entry | float | None:
        """Return a run that is to be run now; or for how many seconds to wait for one; or None: it is the end."""
        if self._pending:
            taken = heappop(self._pending)
            self._running[taken[-1].key] = taken[-1]
            return taken
        if not self._running:
            self._idle.notify_all()
        if self._closed and not self._parked:
            return None
        self._waiting += 1
        # Jobs of other processes end without a word.
        return _LOOK_EVERY if self._parked else _LOOK_AGAIN

    def _has_waited(self, in_time: bool) -> None:
        self._waiting -= 1
        if not in_time:
            self._unpark()

    def _full_group(self, entry: _Entry) -> str | None:
        """Return a group of a run of which as many are there already as may run at a time."""
        return next((group for group, most in entry[-1].groups.items() if self._entered[group] >= most), None)

    def _hold(self, entry: _Entry) -> bool:
        """Let a run wait for one of its groups, in a place of that group's own; false where none is full. Raises
        ``QueueFull`` where too many wait there."""
        group = self._full_group(entry)
        if group is None:
            return False
        held = self._held.setdefault(group, [])
        if len(held) >= self.max_pending:
            raise full_group(group, entry[-1].groups[group], len(held))
        heappush(held, entry)
        return True

    def _enter(self, entry: _Entry) -> None:
        """Let a run wait for a thread."""
        self._entered.update(entry[-1].groups.keys())
        heappush(self._pending, entry)

    def _leave(self, entry: _Entry) -> None:
        """Give the places of a run in its groups to those that wait for them."""
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
            # What was given up before is not waited for again, at the end of the process say.
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
            self._idle.notify_all()  # who shuts down besides us has nothing to wait for any more
        for run in left:
            self._abandon(run)
        with self._lock:  # what is interrupted may clean up
            self._idle.wait_for(lambda: not self._running, min(timeout, _GRACE) if left else 0.0)

    def _is_drained(self) -> bool:
        return not self._pending and not self._parked and not self._held and self._running.keys() <= self._abandoned


def _run_jobs(reference: "weakref.ref[LocalExecutor]", work: threading.Condition) -> None:
    """Run in a thread of an executor. That is not held while there is nothing to do: one that nobody else holds any
    more is gone, and lets go of its threads."""
    executor = reference()
    if executor is None:
        return
    seat = executor._worker()
    held = [executor]  # as long as there may be something to do
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
            del executor, taken, found  # the request and what it holds are not needed while waiting for the next
    executor = reference()
    if executor is not None:
        executor._has_left()


def _next(
    reference: "weakref.ref[LocalExecutor]", work: threading.Condition, held: list[LocalExecutor]
) -> tuple[LocalExecutor, _Entry] | None:
    """Wait for a run that is to be run now, and hold the executor no longer than there is one; None at the end."""
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


def _wake(work: threading.Condition) -> None:
    with work:
        work.notify_all()


def _at_exit(executor: LocalExecutor) -> None:
    """Shut *executor* down when the process ends, unless it is gone by then."""
    reference = weakref.ref(executor)

    def shutdown() -> None:
        alive = reference()
        if alive is not None:
            alive.shutdown()

    # Daemon threads, so that no job can keep a process from ending; and so they need somebody who gives them time.
    # The private hook runs before other threads are joined, while all still works; atexit runs only after that.
    register: Callable[[Callable[[], None]], object] = getattr(threading, "_register_atexit", atexit.register)
    try:
        register(shutdown)
    except RuntimeError:
        atexit.register(shutdown)  # the process ends already
    if "uwsgi" in sys.modules:
        _at_exit_of_uwsgi(shutdown)


_callbacks: list[object] = []  # of C, which holds no reference


def _at_exit_of_uwsgi(shutdown: Callable[[], None]) -> None:
    """Call *shutdown* at the end of a worker of uWSGI. It calls Python's hooks only where no request is being answered,
    so not where somebody watches a job; those of C always, in the thread that ends the process."""
    import ctypes

    callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: shutdown())
    _callbacks.append(callback)
    with contextlib.suppress(AttributeError):  # a system without it
        ctypes.CDLL(None).__cxa_atexit(callback, None, None)
