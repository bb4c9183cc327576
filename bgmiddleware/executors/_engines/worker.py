"""In the process that runs a job, which another process recorded: how it is run, and how signals reach it."""

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
    """Run the job *key* in this process, which does nothing else meanwhile; return whether it must wait.

    It must where one of its groups is full: then it is still pending, and is to be tried again when a job has ended, or
    a second later. Does nothing for a job that somebody else runs, or that has ended. *outlet*, an empty one, is where
    its output goes first: see :class:`Remains`. *has_watcher*: whether the parent of this process has a
    :class:`Watcher` at work in a thread that nothing else can hold up. Raises ``JobNotFound``, ``JobExpired``, and
    ``RegistryError`` where the registry cannot be asked.
    """
    run = _stored_run(site, key, outlet)
    if has_watcher:
        run.leave_to_parent()
    return run()


def run_message(site: Site | Unloaded, key: str, outlet: Outlet) -> bool:
    """The same for a message of an engine: return whether it is to be delivered again a second later.

    That is so where the registry cannot be asked, too. What a job that was stopped leaves running is killed. Called in
    the main thread of a process that leads a group. Raises nothing of these.
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
    """Kill all of the group that this process leads, except itself: it steps out of it meanwhile."""
    led = os.getpid()
    os.setpgid(0, os.getpgid(os.getppid()))
    with contextlib.suppress(ProcessLookupError, PermissionError):  # there is nobody
        os.killpg(led, signal.SIGKILL)
    os.setpgid(0, 0)


def print_beside_jobs() -> None:
    """Let what is printed outside of the job go to where this process prints now, while a job has its file descriptors
    1 and 2. To be called before anybody keeps ``sys.stdout`` or ``sys.stderr``."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        with contextlib.suppress(OSError):  # there is none
            stream = os.fdopen(os.dup(number), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
            setattr(sys, name, stream)
    install()  # what the app takes when it is imported is a stand-in then


@contextlib.contextmanager
def interrupted_by(number: signal.Signals) -> Iterator[None]:
    """Let signal *number* interrupt the job that runs in the main thread: as always, at its next print. If it comes
    once more, ``JobCancelled`` is raised wherever the app is just then, in a loop or a sleep, too; not while our own
    code runs, which must not be torn. To be called in the main thread.
    """
    before = signal.signal(number, _interrupt)
    try:
        yield
    finally:
        signal.signal(number, before)


@contextlib.contextmanager
def unheard(number: signal.Signals) -> Iterator[None]:
    """Let signal *number* do nothing to this process. Not ignored: its children would inherit that. A forked one ends
    of it, as it would elsewhere: so pools of processes end their workers."""
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
        output.interrupt("cancelled on request")  # the registry knows better why


_PACKAGE = __name__.partition(".")[0]
_EXCHANGE = Exchange.__module__
_DECORATORS = f"{_PACKAGE}._context"


def _is_in_app(frame: FrameType | None) -> bool:
    """Whether *frame* is the app's code, or code that it called, with none of ours in between."""
    while frame is not None:
        name: str = frame.f_globals.get("__name__", "")
        if name.startswith(f"{_PACKAGE}.") and name != _DECORATORS:  # these are around views
            return name == _EXCHANGE
        frame = frame.f_back
    return False
