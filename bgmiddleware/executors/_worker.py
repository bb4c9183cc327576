"""What executors of other processes have in common. In such a process: the app is loaded by its name, and runs what
another process recorded. Beside it: somebody looks after the process, and writes down how the job ended if it dies."""

import contextlib
import importlib
import logging
import os
import secrets
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, Protocol

from .._capture import JobOutput, current_output, open_output_file, refuse_more
from .._exchange import Exchange
from .._jobs import Channel, Job, JobState
from .._keeper import LEASE, RENEW_EVERY, patiently
from .._loading import loaded
from .._runner import Run, over_deadline
from ..errors import BadOffset, ConfigurationError, Fenced, JobExpired, JobNotFound, RegistryError
from ..registries.base import PAGE_BYTES, Registry

__all__ = [
    "Remains",
    "Site",
    "Watcher",
    "fail_unloaded",
    "how_it_ended",
    "interrupted_by",
    "is_ini",
    "load_site",
    "print_beside_jobs",
    "run_message",
    "run_stored",
    "signal_group",
    "unheard",
]

_log = logging.getLogger("bgmiddleware")

_INNER = ("app", "wsgi_app", "application", "_app", "_wsgi_app", "_application", "wrap_app", "wrapped_app")
_DEEPEST = 8
_TERMINATE_AFTER = 1.0
_COMPARED = 64


# In the process of the job.


class Site(Protocol):
    """A ``BackgroundMiddleware``, which is above all executors and cannot be imported by them."""

    @property
    def registry(self) -> Registry: ...

    def stored_run(self, key: str, *, output_file: int | None = None) -> Run: ...


def load_site(app: str) -> Site:
    """Load the app that ``module:attribute`` names, or the ini file ``path.ini`` or ``path.ini#name``, and return the
    ``BackgroundMiddleware`` in it.

    It is the object itself, the ``wsgi_app`` of a Flask app, or inside a few wrappers. Raises ``ConfigurationError``
    where there is none, and whatever importing the app raises.
    """
    found = _from_ini(app) if is_ini(app) else loaded("app", app, "MODULE:APP")
    for candidate in _inside(found):
        if callable(getattr(type(candidate), "stored_run", None)):
            site: Site = candidate
            return site
    raise ConfigurationError(f"app = {app!r}: there is no BackgroundMiddleware in this {type(found).__name__}")


def is_ini(app: str) -> bool:
    """Whether *app* names a file for PasteDeploy."""
    return app.partition("#")[0].endswith(".ini")


def _from_ini(app: str) -> Any:
    try:
        deploy = importlib.import_module("paste.deploy")
    except ImportError as error:
        raise ConfigurationError(f"app = {app!r}: an ini file needs PasteDeploy: {error}") from error
    return deploy.loadapp(f"config:{os.path.abspath(app)}")


def _inside(app: Any) -> Iterator[Any]:
    """Yield *app* and what it wraps, the outermost first."""
    left = deque([(app, 0)])
    while left:
        candidate, depth = left.popleft()
        yield candidate
        inner: Mapping[str, Any] = getattr(candidate, "__dict__", {})
        if depth < _DEEPEST:
            left.extend((inner[name], depth + 1) for name in _INNER if name in inner)


def run_stored(site: Site, key: str, output_file: int, *, has_watcher: bool = False) -> bool:
    """Run the job *key* in this process, which does nothing else meanwhile; return whether it must wait.

    It must where one of its groups is full: then it is still pending, and is to be tried again when a job has ended, or
    a second later. Does nothing for a job that somebody else runs, or that has ended. *output_file*, an empty one, is
    where its output goes first: see :class:`Remains`. *has_watcher*: whether the parent of this process has a
    :class:`Watcher` at work in a thread that nothing else can hold up. Raises ``JobNotFound``, ``JobExpired``, and
    ``RegistryError`` where the registry cannot be asked.
    """
    run = _stored_run(site, key, output_file)
    if has_watcher:
        run.leave_to_parent()
    return run()


def run_message(site: Site, key: str, output_file: int) -> bool:
    """The same for a message of an engine: return whether it is to be delivered again a second later.

    That is so where the registry cannot be asked, too. What a job that was stopped leaves running is killed. Called in
    the main thread of a process that leads a group. Raises nothing of these.
    """
    try:
        with interrupted_by(signal.SIGINT), unheard(signal.SIGTERM):
            run = _stored_run(site, key, output_file)
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


def _stored_run(site: Site, key: str, output_file: int) -> Run:
    return patiently(site.registry, lambda: site.stored_run(key, output_file=output_file))


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
    """Let signal *number* do nothing to this process. Not ignored: its children would inherit that."""

    def hear(number: int, frame: FrameType | None) -> None:
        """Do nothing."""

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


# Beside it.


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
    """What a job's process leaves behind when it dies: *output_file*, to which all that the job printed went first.

    Made before, by who looks after that process, and to be closed by them.
    """

    def __init__(self, output_file: int | None = None) -> None:
        self.output_file = open_output_file() if output_file is None else output_file

    def end(self, registry: Registry, key: str, reason: str) -> None:
        """Write down the rest of the output of job *key* and how it ended: now, not when its lease has run out.

        It is ``cancelled`` where that was asked for, else ``lost`` for *reason*. Does nothing where the end is written
        down already. Raises nothing: where the registry is away for long, the lease tells.
        """
        try:
            patiently(registry, lambda: self._end(registry, key, reason))
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
            registry.transition(key, {JobState.PENDING}, state, reason=reason)
            return
        with contextlib.suppress(BadOffset, Fenced):  # it lives and prints, or has ended
            self._store_rest(registry, job)
        registry.finish(key, job.runner, state, reason=reason)

    def _store_rest(self, registry: Registry, job: Job) -> None:
        end = job.output_end
        # Where something was dropped on the way, offsets are not those of the file.
        begin = max(0, end - _COMPARED)
        if registry.read(job.key, Channel.OUTPUT, begin, end - begin).data != os.pread(
            self.output_file, end - begin, begin
        ):
            return
        while data := os.pread(self.output_file, PAGE_BYTES, end):
            end = registry.append(job.key, Channel.OUTPUT, end, data, runner=job.runner)

    def close(self) -> None:
        """Let go of the file. Children that the job left behind can write no more to it."""
        refuse_more(self.output_file)
        os.close(self.output_file)


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


def fail_unloaded(registry: Registry, key: str, error: BaseException | str) -> None:
    """Write down that the job *key* failed because the app could not be loaded: the traceback is its output.

    *error* is what was raised, or its traceback. Does nothing for a job that is not pending. Raises ``RegistryError``.
    """
    text = error if isinstance(error, str) else "".join(traceback.format_exception(error))
    reason = f"the app could not be loaded: {text.strip().rpartition(chr(10))[2]}"[:500]
    data = text.encode("utf-8", "backslashreplace")
    runner = f"{os.getpid()}-{secrets.token_hex(8)}"
    with contextlib.suppress(JobNotFound, JobExpired):
        if patiently(registry, lambda: registry.claim(key, runner, lease=LEASE)):
            patiently(registry, lambda: registry.append(key, Channel.OUTPUT, 0, data, runner=runner))
            patiently(registry, lambda: registry.finish(key, runner, JobState.FAILED, reason=reason))
