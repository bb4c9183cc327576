"""The parent's side of a process that runs a job: watch it, and record how the job ended if the process dies."""

import contextlib
import itertools
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator

from ..._capture import Outlet, write_late
from ..._ground.redaction import Redaction
from ..._jobs import Channel, Job, JobState
from ..._running import LEASE, RENEW_EVERY, one_line, over_deadline, patiently
from ...errors import BadOffset, Fenced, JobExpired, JobNotFound, RegistryError
from ...registries.base import PAGE_BYTES, Registry, Transition

__all__ = ["Remains", "Watcher", "how_it_ended", "signal_group"]

_log = logging.getLogger("bgmiddleware")

_TERMINATE_AFTER = 1.0
_COMPARED = 64


class Watcher:
    """Watches one running job from outside its process. The process itself may be unable to: C code may hold the
    interpreter lock for ever.

    The watcher renews the claim while the process lives. If the job was asked to stop or is over its deadline, it says
    which signal is due: ``SIGINT`` at once, for :func:`interrupted_by`; ``SIGTERM`` a second later if that was not
    enough, and ``SIGINT`` repeatedly, because the system may deliver it to a thread that does not wake the job's;
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
        """Whether the job had been asked to stop at the last look."""
        return self._asked_at is not None

    def stop(self) -> None:
        """Treat the job as asked to stop, whatever the registry says."""
        if self._asked_at is None:
            self._asked_at = time.monotonic()

    def look(self) -> signal.Signals | None:
        """Look at the job. Return the signal that is due, if any.

        Call it about once a second while the process is alive. Raises nothing: if the registry is away, the next look
        will find out.
        """
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
            if job.state.ended:  # it was cancelled or lost before its process was ready for it
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
    """What a job's process leaves behind when it dies: *outlet*, which all output of the job passes through.

    The parent creates it before the process, and must close it. *redaction*: what the process replaces in that output.
    """

    def __init__(self, outlet: Outlet | None = None, *, redaction: Redaction | None = None) -> None:
        self.outlet = Outlet.open() if outlet is None else outlet
        self._redaction = redaction

    def hand_over(self) -> None:
        """Close our writing end: the process has the outlet now."""
        self.outlet = self.outlet.without_writer()

    def end(self, registry: Registry, key: str, reason: str) -> None:
        """Record the rest of the output of job *key*, and how the job ended, without waiting for its lease to expire.

        The job is ``cancelled`` if somebody asked for that, else ``lost`` with *reason*. Does nothing if its end is
        recorded already. Raises nothing: if the registry stays away, the expired lease makes the job read as lost.
        """
        try:
            patiently(registry, lambda: self._end(registry, key, reason), but=(OSError,))
        except (JobNotFound, JobExpired):
            _log.info("job %s was deleted before its end was recorded", key[:8])
        except RegistryError as error:
            _log.warning("job %s: its end could not be recorded: %s", key[:8], error)

    def end_if_left(self, registry: Registry, key: str, pid: int, how: str, *, regular: bool = False) -> None:
        """Call :meth:`end` if process *pid* of this host ended without ending the job; *how* is the reason.

        *regular*: whether the process ended normally; then a job that is still pending waits for its group. Does
        nothing for a job that another process runs, because messages may be delivered twice.
        """
        with contextlib.suppress(JobNotFound, JobExpired, RegistryError):  # the expired lease will tell
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
        with contextlib.suppress(BadOffset, Fenced):  # the job lives and prints, or has ended
            self._store_rest(registry, job)
        if registry.finish(key, job.runner, state, reason=reason) and state is JobState.LOST:
            _log.error("job %s is lost: %s: %s", key[:8], one_line(job.title), reason)

    def _store_rest(self, registry: Registry, job: Job) -> None:
        end = job.output_end
        # If output was dropped on the way, offsets differ from those in the file.
        begin = max(0, end - _COMPARED)
        self.outlet.move()
        rest = self._read(begin) if self._redaction is None else self._read_redacted(self._redaction, begin)
        known = b""
        for data in rest:
            known += data
            if len(known) >= end - begin:
                break
        if registry.read(job.key, Channel.OUTPUT, begin, end - begin).data != known[: end - begin]:
            return
        for data in itertools.chain((known[end - begin :],), rest):
            if data:
                end = registry.append(job.key, Channel.OUTPUT, end, data, runner=job.runner)

    def _read(self, offset: int) -> Iterator[bytes]:
        """Yield what is in the file from *offset* on."""
        while data := os.pread(self.outlet.file, PAGE_BYTES, offset):
            yield data
            offset += len(data)

    def _read_redacted(self, redaction: Redaction, offset: int) -> Iterator[bytes]:
        """Yield the output from *offset* on: the file holds it as it was before secrets were replaced."""
        pieces: list[bytes] = []
        redactor = redaction.stream(pieces.append)
        for data in self._read(0):
            redactor.store(data)
            for piece in pieces:
                yield piece[offset:]
                offset = max(0, offset - len(piece))
            pieces.clear()
        redactor.end()
        for piece in pieces:
            yield piece[offset:]
            offset = max(0, offset - len(piece))

    def close(self) -> None:
        """Close the outlet. What the job's surviving children print goes to this process's own output."""
        self.hand_over()
        self.outlet.end(write_late("stdout"))


def how_it_ended(status: int) -> str:
    """Return in words how a process ended. *status* is that of ``subprocess``."""
    if status >= 0:
        return f"its process exited with status {status}"
    return f"its process was killed by {signal.Signals(-status).name}"


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal process *pid*, which leads a process group: interrupt its job (``SIGINT``), end all its children
    (``SIGTERM``), or kill it with its children (``SIGKILL``). Does nothing if they are gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        # SIGTERM ends only its children, see unheard(). Another SIGINT makes the job raise.
        if number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, signal.SIGINT)
        if number is not signal.SIGINT:
            os.killpg(pid, number)
