"""Runs a job that another process recorded, and handles the signals that reach the job's process."""

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from ..._capture import JobOutput, Outlet, current_output, install
from ..._running import Exchange, Run, patiently
from ...errors import JobExpired, JobNotFound, RegistryError
from .sites import Site, Unloaded, fail_unloaded

__all__ = ["interrupted_by", "print_beside_jobs", "run_message", "run_stored", "unheard"]

_log = logging.getLogger("bgmiddleware")


def run_stored(site: Site, key: str, outlet: Outlet, *, has_watcher: bool = False) -> bool:
    """Run the job *key* in this process, which does nothing else meanwhile. Return whether the job must wait.

    A job must wait if one of its groups is full. Then it is still pending: try it again when a job has ended, or a
    second later. Does nothing for a job that another process runs or that has ended. *outlet* must be empty; the job's
    output goes through it, see :class:`Remains`. *has_watcher*: whether the parent of this process runs a
    :class:`Watcher` in a thread that nothing else blocks. Raises ``JobNotFound``, ``JobExpired``, and ``RegistryError``
    if the registry does not answer.
    """
    run = _stored_run(site, key, outlet)
    if has_watcher:
        run.leave_to_parent()
    return run()


def run_message(site: Site | Unloaded, key: str, outlet: Outlet) -> bool:
    """Run the job of an engine's message. Return whether the engine must deliver it again a second later.

    It must also if the registry does not answer. If the job was stopped, kill what it left running. Call it in the main
    thread of a process that leads a process group. Raises none of the errors of :func:`run_stored`.
    """
    try:
        if isinstance(site, Unloaded):
            return fail_unloaded(site, key)
        with interrupted_by(signal.SIGINT), unheard(signal.SIGTERM):
            run = _stored_run(site, key, outlet)
            must_wait = run()
            if run.is_interrupted:
                _kill_rest_of_group()
            return must_wait
    except (JobNotFound, JobExpired):
        _log.info("job %s was gone before it began", key[:8])
    except RegistryError as error:
        _log.warning("job %s waits for its registry: %s", key[:8], error)
        return True
    return False


def _stored_run(site: Site, key: str, outlet: Outlet) -> Run:
    return patiently(site.registry, lambda: site.stored_run(key, outlet=outlet))


def _kill_rest_of_group() -> None:
    """Kill the group that this process leads, except this process, which leaves the group meanwhile."""
    led = os.getpid()
    os.setpgid(0, os.getpgid(os.getppid()))
    with contextlib.suppress(ProcessLookupError, PermissionError):  # the group is empty
        os.killpg(led, signal.SIGKILL)
    os.setpgid(0, 0)


def print_beside_jobs() -> None:
    """Keep the current destination for what is printed outside of jobs; a job gets the file descriptors 1 and 2.

    Call it before any code keeps a reference to ``sys.stdout`` or ``sys.stderr``.
    """
    for name, number in (("stdout", 1), ("stderr", 2)):
        with contextlib.suppress(OSError):  # there is none
            stream = os.fdopen(os.dup(number), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
            setattr(sys, name, stream)
    install()  # so that the app finds the stand-ins when it is imported


@contextlib.contextmanager
def interrupted_by(number: signal.Signals) -> Iterator[None]:
    """Let signal *number* interrupt the job that runs in the main thread, at the job's next print.

    A second signal raises ``JobCancelled`` wherever the app is at that moment, for example in a loop or a sleep, but
    never in our own code, which must not be torn. Call it in the main thread.
    """
    before = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextlib.contextmanager
def unheard(number: signal.Signals) -> Iterator[None]:
    """Make signal *number* do nothing in this process.

    It is not ignored (``SIG_IGN``), because children would inherit that. A forked child ends at the signal as usual, so
    process pools can end their workers.
    """
    pid = os.getpid()

    def hear(number: int, frame: FrameType | None) -> None:
        if os.getpid() != pid:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    before = signal.signal(number, hear)
    try:
        yield
    finally:
        signal.signal(number, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    output = current_output()
    if isinstance(output, JobOutput):
        if output.is_interrupted and _is_in_app(frame):
            output.check()
        output.interrupt("cancelled on request")  # the registry has the real reason


_PACKAGE = __name__.partition(".")[0]
_EXCHANGE = Exchange.__module__
_DECORATORS = f"{_PACKAGE}._context"
_TESTING = f"{_PACKAGE}.testing."


def _is_in_app(frame: FrameType | None) -> bool:
    """Whether *frame* is code of the app, or code that the app called, with none of our frames in between."""
    while frame is not None:
        name: str = frame.f_globals.get("__name__", "")
        # Our decorators are around views, and our contracts bring an app of their own.
        if name.startswith(f"{_PACKAGE}.") and name != _DECORATORS and not name.startswith(_TESTING):
            return name == _EXCHANGE
        frame = frame.f_back
    return False
