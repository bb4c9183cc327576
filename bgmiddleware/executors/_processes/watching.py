"""Beside the process that runs a job: somebody looks after it, and writes down how the job ended if it dies."""

import contextlib
import logging
import os
import signal
import socket
import time

from ..._capture import Outlet, write_late
from ..._jobs import Channel, Job, JobState
from ..._running import LEASE, RENEW_EVERY, one_line, over_deadline, patiently
from ...errors import BadOffset, Fenced, JobExpired, JobNotFound, RegistryError
from ...registries.base import PAGE_BYTES, Registry, Transition

__all__ = ["Remains", "Watcher", "how_it_ended", "signal_group"]

_log = logging.getLogger("bgmiddleware")

_TERMINATE_AFTER = 1.0
_COMPARED = 64


class Watcher:
    """Looks after one running job from outside of its process, which may be unable to: C code need never let a thread
    of ours run.

    It renews the claim while that process is alive, and says which signal is due where the job was asked to stop or is
    over its deadline: ``SIGINT`` at once, for :func:`interrupted_by`; ``SIGTERM`` a second later, when that is not
    enough, and ``SIGINT`` again and again, since the system may give it to a thread that does not wake the job's; and
    ``SIGKILL`` *grace* seconds after the first.
    """

    def __init__(self, registry: Registry, key: str, grace: float) -> None:
        self._registry = registry
        self._key = key
        self._grace = grace
        self._renewed_at = time.monotonic()
        self._asked_at: float | None = None
        self._sent: signal.Signals | None = None

    @property
    def asked(self) -> bool:
        """Whether the job was asked to stop, as far as the last look knows."""
        return self._asked_at is not None

    def stop(self) -> None:
        """Count the job as asked to stop, whatever its registry says."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()

    def look(self) -> signal.Signals | None:
        """Look at the job; return the signal that is due, if any. To be called about once a second while the process is
        alive. Raises nothing: where the registry is away, the next look tells."""
        try:
            self._look()
        except (JobNotFound, JobExpired):
            self.stop()
        except RegistryError as error:
            _log.debug("job %s cannot be looked at: %s", self._key[:8], error)
        if self._asked_at is None:
            return None
        waited = time.monotonic() - self._asked_at
        before = self._sent
        if waited >= self._grace:
            self._sent = signal.SIGKILL
        elif waited >= min(_TERMINATE_AFTER, self._grace / 2):
            self._sent = signal.SIGTERM
        else:
            self._sent = signal.SIGINT
        if self._sent is not before:
            return self._sent
        return None if before is signal.SIGINT else signal.SIGINT

    def _look(self) -> None:
        job = self._registry.get(self._key)
        if job.started_at is None:
            if job.state.ended:  # cancelled, or given up, before its process was ready for it
                self.stop()
            return
        if job.cancel_requested_at is not None:
            self.stop()
        elif job.deadline is not None and self._registry.clock() - job.started_at > job.deadline:
            self._registry.request_cancel(self._key, over_deadline(job.deadline))
            self.stop()
        now = time.monotonic()
        if now - self._renewed_at >= RENEW_EVERY:
            self._registry.renew(self._key, job.runner, lease=LEASE)
            self._renewed_at = now


class Remains:
    """What a job's process leaves behind when it dies: *outlet*, through which all that the job printed went first.

    Made before, by who looks after that process, and to be closed by them.
    """

    def __init__(self, outlet: Outlet | None = None) -> None:
        self.outlet = Outlet.open() if outlet is None else outlet

    def hand_over(self) -> None:
        """Take note that the process has the outlet now."""
        self.outlet = self.outlet.without_writer()

    def end(self, registry: Registry, key: str, reason: str) -> None:
        """Write down the rest of the output of job *key* and how it ended: now, not when its lease has run out.

        It is ``cancelled`` where that was asked for, else ``lost`` for *reason*. Does nothing where the end is written
        down already. Raises nothing: where the registry is away for long, the lease tells.
        """
        try:
            patiently(registry, lambda: self._end(registry, key, reason), but=(OSError,))
        except (JobNotFound, JobExpired):
            _log.info("job %s was gone before its end was written down", key[:8])
        except RegistryError as error:
            _log.warning("job %s: its end could not be written down: %s", key[:8], error)

    def end_if_left(self, registry: Registry, key: str, pid: int, how: str, *, regular: bool = False) -> None:
        """Do so if the process *pid* of this host left the job undone when it ended; *how* is the reason.

        *regular*: whether it meant to end, so that a job that is still pending waits for a place in its group. Does
        nothing for a job that another process runs: messages may come twice.
        """
        with contextlib.suppress(JobNotFound, JobExpired, RegistryError):  # its lease will tell
            job = patiently(registry, lambda: registry.get(key))
            ours = job.receipt.get("runner") == f"{socket.gethostname()}:{pid}"
            if ours if job.state is JobState.RUNNING else not regular:
                self.end(registry, key, how)

    def _end(self, registry: Registry, key: str, reason: str) -> None:
        job = registry.get(key)
        state = JobState.LOST
        if job.cancel_requested_at is not None:
            state, reason = JobState.CANCELLED, job.reason
        if job.started_at is None:
            registry.transition(key, {JobState.PENDING}, Transition(state, reason=reason))
            return
        with contextlib.suppress(BadOffset, Fenced):  # it lives and prints, or has ended
            self._store_rest(registry, job)
        if registry.finish(key, job.runner, state, reason=reason) and state is JobState.LOST:
            _log.error("job %s is lost: %s: %s", key[:8], one_line(job.title), reason)

    def _store_rest(self, registry: Registry, job: Job) -> None:
        end = job.output_end
        # Where something was dropped on the way, offsets are not those of the file.
        begin = max(0, end - _COMPARED)
        self.outlet.move()
        if registry.read(job.key, Channel.OUTPUT, begin, end - begin).data != os.pread(
            self.outlet.file, end - begin, begin
        ):
            return
        while data := os.pread(self.outlet.file, PAGE_BYTES, end):
            end = registry.append(job.key, Channel.OUTPUT, end, data, runner=job.runner)

    def close(self) -> None:
        """Let go of it. What children that the job left behind print goes to where this process prints."""
        self.hand_over()
        self.outlet.end(write_late("stdout"))


def how_it_ended(status: int) -> str:
    """Return in words how a process ended, by its *status* as ``subprocess`` gives it."""
    if status >= 0:
        return f"its process exited with status {status}"
    return f"its process was killed by {signal.Signals(-status).name}"


def signal_group(pid: int, number: signal.Signals) -> None:
    """Have the process *pid*, which leads a group, interrupt its job (``SIGINT``), end all its children (``SIGTERM``),
    or kill it and them (``SIGKILL``). Does nothing where they are gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # SIGTERM is for its children, see unheard(); and it has the job raise by another SIGINT.
        if number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, signal.SIGINT)
        if number is not signal.SIGINT:
            os.killpg(pid, number)
