"""What a worker's parent does for the process that runs a job: see when it must be killed, and write down its end."""

import contextlib
import socket

from .._jobs import JobState
from .._keeper import patiently
from ..errors import JobExpired, JobNotFound, RegistryError
from ..registries.base import Registry

__all__ = ["is_overdue", "settle"]


def is_overdue(registry: Registry, key: str, grace: float) -> bool:
    """Whether a job was asked to stop, or passed its deadline, more than *grace* seconds ago and runs on.

    Asks it to stop where nobody did. False where the registry does not answer.
    """
    with contextlib.suppress(RegistryError, JobNotFound, JobExpired):
        job = registry.get(key)
        now = registry.clock()
        if job.state is not JobState.RUNNING:
            return False
        if job.cancel_requested_at is not None and now >= job.cancel_requested_at + grace:
            return True
        if job.deadline is not None and job.started_at is not None and now >= job.started_at + job.deadline + grace:
            registry.request_cancel(key, f"it ran longer than its deadline of {job.deadline:g} s")
            return True
    return False


def settle(registry: Registry, key: str, pid: int) -> None:
    """Write down the end of a job whose process *pid* of this machine is gone, unless that did so itself."""
    with contextlib.suppress(RegistryError, JobNotFound, JobExpired):
        job = patiently(registry, lambda: registry.get(key))
        if job.state is not JobState.RUNNING or job.receipt.get("runner") != f"{socket.gethostname()}:{pid}":
            return
        if job.cancel_requested_at is not None:
            state, reason = JobState.CANCELLED, job.reason
        else:
            state, reason = JobState.LOST, "its runner vanished"
        patiently(registry, lambda: registry.finish(key, job.runner, state, reason=reason))
