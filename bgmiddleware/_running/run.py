"""Run one recorded request, or one function, as a job: capture what it prints, record what it answers, write down how
it ended. Where it runs is the executor's choice."""

import contextlib
import functools
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import Context
from dataclasses import replace
from typing import Any, Protocol

from .._capture import (
    JobOutput,
    Outlet,
    detached,
    install,
    own_descriptors,
    use_output,
    write_late,
)
from .._frameworks import unwind
from .._ground.redaction import Redaction
from .._ground.weakly import weakly
from .._jobs import JobState, Priority, Progress, RecordedResponse, Steps, StepState
from ..errors import BadOffset, ConfigurationError, Fenced, JobCancelled, JobExpired, JobNotFound, RegistryError
from ..registries.base import Registry, Transition
from .channels import BodyStore
from .failures import log_failed, one_line, raised_in
from .job import RunningJob
from .keeper import LEASE, Keeper, patiently
from .naming import new_runner, where
from .questions import Questions
from .recording import plain_title
from .steps import RunningSteps
from .tee import open_tee
from .works import Work

__all__ = ["Run", "over_deadline"]

_log = logging.getLogger("bgmiddleware")

_LOST_BODY = "part of its response is lost: its registry went back to what it was earlier"
_TAIL_BYTES = 64 * 1024  # of the output, in which a traceback is looked for
_NOTHING = contextlib.nullcontext()  # around a job
_LAST_DRAIN = 1.0  # seconds that a job which prints without pause may hold up its end


class Holder(Protocol):
    """What holds a job that waits in this process."""

    def leave(self, key: str) -> None:
        """Take note that a job does not wait any more."""

    def revive(self) -> None:
        """Say at once that this process is there."""


class Run:
    """One job, ready to be run once in this process, by whatever thread an executor has.

    An executor of this process calls it; one of another process carries its *key* and nothing else. *priority*: which
    one an executor takes first of those that wait. *groups*: of which only so many run at a time. *deadline*: seconds
    after which it is asked to stop. *version*: which version of the app this process runs. *tees*: whether its output
    goes to standard output too. *tells_errors*: whether tracebacks are in its output. *redaction*: what is replaced
    in all that is stored or logged of it, but in its response. *answers*: whether readers answer its ``input()``.
    *around*: what the job runs within, from its claim until its end is written down. *outlet*: given by a process that
    does nothing else meanwhile. All output goes through it, and that of the file descriptors 1 and 2 too; who made it
    can read there what this process wrote before it died. The CPU time is that of the process and its children then.
    """

    def __init__(
        self,
        key: str,
        title: str,
        registry: Registry,
        work: Work,
        context: Context,
        *,
        preface: str = "",
        takes_logging: bool = True,
        takes_children: bool = False,
        tees: bool = False,
        tells_errors: bool = True,
        redaction: Redaction | None = None,
        answers: bool = False,
        priority: Priority = Priority.NORMAL,
        groups: Mapping[str, int] | None = None,
        deadline: float | None = None,
        version: str = "",
        around: contextlib.AbstractContextManager[object] = _NOTHING,
        outlet: Outlet | None = None,
    ) -> None:
        self.key = key
        self.priority = priority
        self.groups: Mapping[str, int] = {} if groups is None else groups
        self.registry = registry
        self._work = work
        self._context = context
        self._preface = preface
        self.title: str = title
        self._pid = os.getpid()
        self._takes_logging = takes_logging
        self._takes_children = takes_children
        self._tees = tees
        self._tells_errors = tells_errors
        self.redaction = redaction
        self._answers = answers
        self._deadline = deadline
        self._version = version
        self._around = around
        self._outlet = outlet
        self._cpu_clock = time.thread_time if outlet is None else _process_time
        self._runner = new_runner(self._pid)
        self._output: JobOutput | None = None  # from the claim on
        self._questions: Questions | None = None
        self._response: RecordedResponse | None = None
        self._body: BodyStore | None = None
        self._rest = b""  # of the body: what is stored with the end
        self._abandoned = False
        self._is_unsure = False  # whether a claim was tried and not answered
        self._holder: Holder | None = None  # None: it does not wait in this process
        self._going = threading.Lock()  # held until the end
        self._going.acquire()

    def __call__(self) -> bool:
        """Run the job, if it is still pending, and write down how it ended. Raises nothing that the job raised.

        True: it must wait, since one of its groups is full, or its registry away. Then call again, when a job has ended
        or a second later.
        """
        must_wait = self._claim_and_run()
        if not must_wait:
            self.leave()
            if self._going.locked():
                self._going.release()
        return must_wait

    def ends_within(self, seconds: float) -> bool:
        """Wait for its end in this process, at most so long; return whether it came. For one caller: a second one does
        not hear of it. It costs a single wake-up, where to wait by the registry costs one for each change."""
        return self._going.acquire(timeout=seconds)

    def _claim_and_run(self) -> bool:
        try:
            if not patiently(self.registry, self._claim):
                return self.still_waits()
            self.leave()
            self._context.run(self._run)
        except (JobNotFound, JobExpired):
            if self._output is None or self._abandoned:
                _log.info("job %s is gone", self.key[:8])
            else:
                _say("job %s ran, but its registry has lost its record: %s", self.key[:8], one_line(self.title))
        except BaseException as error:  # a worker thread must live on, whatever it was
            if isinstance(error, RegistryError) and self.registry.shared and self._output is None:
                _say("job %s waits for its registry: %s", self.key[:8], str(error))
                return True
            # First, since a log handler may raise; and in this process it has no lease: nobody else would ever end it.
            with contextlib.suppress(Exception):
                reason = f"its runner failed: {self._described(error)}"
                change = Transition(JobState.FAILED, self._runner, reason=reason)
                self.registry.transition(self.key, {JobState.PENDING, JobState.RUNNING}, change)
            name, trace = one_line(self.title), self._trace(error)
            _say("job %s could not be run or recorded: %s%s", self.key[:8], name, trace, exc_info=not trace)
        return False

    def wait_in(self, holder: Holder) -> None:
        """Say who holds the job while it waits in this process. To be called before it is submitted."""
        self._holder = holder

    def leave(self) -> None:
        """Say that the job does not wait any more: it has begun, or never will."""
        if self._holder is not None:
            self._holder.leave(self.key)

    def still_waits(self) -> bool:
        """Whether the job waits, though a claim was refused just now. Raises ``RegistryError`` and ``JobNotFound``.

        It does where one of its groups is full; or when this process stood still for so long that the job read as
        lost, and nobody made that permanent.
        """
        job = self.registry.get(self.key)
        if job.state is JobState.LOST and job.started_at is None and self._holder is not None:
            self._holder.revive()
            job = self.registry.get(self.key)
        return job.state is JobState.PENDING

    @property
    def is_interrupted(self) -> bool:
        """Whether it was asked to stop while it ran, whatever it made of that."""
        return self._output is not None and self._output.is_interrupted

    # Made by the thread that runs the job: who starts it answers a client.

    @functools.cached_property
    def _keeper(self) -> Keeper:
        if not self.registry.shared:  # then it does not go back to what it was earlier
            return Keeper(self.registry, self.key, self._runner)
        return Keeper(self.registry, self.key, self._runner, weakly(self._reclaim))

    def leave_to_parent(self) -> None:
        """Say, before it is called, that the parent of this process renews the claim and hears of a cancel."""
        self._keeper.leave_to_parent()

    def _claim(self) -> bool:
        receipt = {"runner": where(self._pid), "version": self._version}
        lease = LEASE if self.registry.shared else None
        try:
            claimed = self.registry.claim(self.key, self._runner, lease=lease, receipt=receipt)
            # Where a connection broke before the answer came, it is ours already.
            claimed = claimed or (self._is_unsure and self.registry.get(self.key).runner == self._runner)
        except (JobNotFound, JobExpired):
            raise
        except Exception:
            self._is_unsure = True
            raise
        self._is_unsure = False
        if claimed:
            self._keeper.claimed()
        return claimed

    def abandon(self, reason: str) -> bool:
        """Write down that the job is lost, from another thread than the one that runs it; interrupt it if it runs.

        Its output up to here is kept. Does nothing if it has ended. Return whether its registry took it.
        """
        self._abandoned = True
        try:
            if self.registry.transition(self.key, {JobState.PENDING}, Transition(JobState.LOST, reason=reason)):
                return True
            output = self._output
            if output is not None:
                output.drain(_LAST_DRAIN, last=True)
                self._keeper.flush()
            if self.registry.finish(self.key, self._runner, JobState.LOST, reason=reason) and output is not None:
                output.interrupt(reason)
        except (JobNotFound, JobExpired):
            _log.info("job %s was gone before it was abandoned", self.key[:8])
        except Exception:
            _say("job %s could not be written down as lost", self.key[:8], exc_info=True)
            return False
        return True

    def _run(self) -> None:
        install()
        has_descriptors = self._outlet is not None
        tees = open_tee(has_descriptors=has_descriptors) if self._tees else _NOTHING
        with self._around, tees as tee:
            self._run_captured(tee)

    def _run_captured(self, tee: Callable[[bytes], None] | None) -> None:
        keeper = self._keeper
        self._output = output = JobOutput(
            keeper.store,
            write_late("stdout"),
            write_late("stderr"),
            job=RunningJob(
                self.key,
                self.title,
                self._check,
                self._report,
                self._call_it,
                self._begin_step,
                self._end_step,
                self._ask,
            ),
            read_line=self._read_line if self._answers else None,
            takes_logging=self._takes_logging,
            takes_children=self._takes_children,
            tee=tee,
            redaction=self.redaction,
        )
        output.begin()
        redacted = str if self.redaction is None else self.redaction
        self._questions = Questions(self.registry, self.key, self._runner, output, keeper.flush, redacted)

        def tell(progress: Progress | None, steps: Steps | None) -> None:
            with output.held():
                keeper.report(progress, steps=steps)

        self._steps = RunningSteps(self.key, keeper.now, tell)
        self._steps.belong()
        if self._abandoned:  # between the claim and here: whoever did it found no output to interrupt
            output.interrupt("abandoned")
        state, reason = JobState.FAILED, "its runner failed"
        error: BaseException | None = None
        begun = self._cpu_clock()
        try:
            keeper.begin(output)
            limited = _NOTHING if self._deadline is None else self._limited(output, self._deadline)
            with limited, self._descriptors(output), use_output(output):
                if self._preface:
                    output.note(self._preface)
                state, reason, error = self._outcome(output)
                output.flush_assigned()
        except BaseException as failure:
            state, reason = JobState.FAILED, f"its runner failed: {self._described(failure)}"
            raise
        finally:
            # In this order: who sees the end sees everything.
            output.end()
            keeper.end()
            if state is JobState.FAILED and not reason.startswith("its runner failed"):
                self._log_failed(reason, error)  # where this process writes again to what it wrote to before
            del error  # its frames would be kept for as long as the registry is away
            reason = self.redacted("; ".join(filter(None, (reason, keeper.missing))))
            receipt: dict[str, str | float] = {"cpu_time": max(0.0, self._cpu_clock() - begun)}
            if output.errors is not None:
                receipt["stderr"] = str(output.errors)
            self._finish(Transition(state, self._runner, None, reason, self._response, receipt))

    def _finish(self, change: Transition) -> None:
        """Write down how the job ended; and what is missing, where its registry went back to what it was earlier."""
        registry = self.registry

        def finish() -> bool:
            if self._rest:
                return registry.finish_with(self.key, self._rest, change)
            return registry.transition(self.key, {JobState.RUNNING}, change)

        for last in (False, False, True):
            ends = (0, 0) if last else (self._keeper.end_sent, self._body.end if self._body else 0)
            change = change._replace(output_end=ends[0], body_end=ends[1])
            try:
                if patiently(registry, finish):
                    return
                if not patiently(registry, self._reclaim):
                    self._say_if_lost()
                    return
            except BadOffset:
                self._keeper.mend()
                change = self._with_its_losses(change)

    def _say_lost(self) -> None:
        _say("job %s was given up as lost while it ran: %s", self.key[:8], one_line(self.title))

    def _say_if_lost(self) -> None:
        """Say that somebody else ended the job, where its response was to be stored with its end."""
        if self._rest and not self._abandoned and self.registry.get(self.key).state is JobState.LOST:
            self._say_lost()

    def _with_its_losses(self, change: Transition) -> Transition:
        """Return the end of a job of whose response its registry may have less than was stored."""
        end = patiently(self.registry, lambda: self.registry.get(self.key)).body_end
        if self._body is None or end >= self._body.end:
            return change
        self._body.end = end
        response = None if change.response is None else replace(change.response, complete=False)
        if change.to not in (JobState.FINISHED, JobState.FAILED):
            return change._replace(response=response)
        return change._replace(to=JobState.FAILED, reason=_LOST_BODY, response=response)

    def _reclaim(self) -> bool:
        """Claim the job again, where its registry went back to before its claim; return whether it was so."""
        return self.registry.shared and self.still_waits() and self._claim()

    def _descriptors(self, output: JobOutput) -> contextlib.AbstractContextManager[None]:
        if self._outlet is None:
            return _NOTHING
        return own_descriptors(output, self._outlet)

    @contextlib.contextmanager
    def _limited(self, output: JobOutput, deadline: float) -> Iterator[None]:
        """Ask the job to stop when its deadline has passed."""
        reason = over_deadline(deadline)

        def stop() -> None:
            with contextlib.suppress(RegistryError, JobNotFound, JobExpired):
                self.registry.request_cancel(self.key, reason)
            output.interrupt(reason)

        timer = threading.Timer(deadline, stop)
        timer.daemon = True
        timer.name = f"bgmiddleware-deadline-{self.key[:8]}"
        with detached():
            timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _log_failed(self, reason: str, error: BaseException | None) -> None:
        """Say in the server's log that the job failed, where it would be if the request had run in the foreground."""
        raised = ""
        if error is not None:
            reason = self._described(error)
        else:  # a framework made the answer
            with contextlib.suppress(RegistryError, JobNotFound, JobExpired):
                page = self.registry.page(self.key, -_TAIL_BYTES)
                raised = raised_in(page.piece.data.decode("utf-8", "replace"))
        reason, trace = self.redacted(f"{reason}: {raised}" if raised else reason), self._trace(error)
        with detached():
            log_failed(self.key, self.title, reason, None if trace else error, trace=trace)

    def _outcome(self, output: JobOutput) -> tuple[JobState, str, BaseException | None]:
        """Do the work; return how it ended, why, and what it raised."""
        try:
            self._body = body = BodyStore(self.registry, self.key, self._runner, output)
            try:
                failure = self._work(self._take_head, body.write)
            finally:
                self._end_forked_child(output)
                self._rest = body.end_with(min(self.registry.short_body, self.registry.max_result))
        except BaseException as error:  # SystemExit too: a view that exits must not take the worker with it
            if not isinstance(error, Exception):
                unwind(error.__traceback__)
            if self._response is not None:
                self._response = replace(self._response, complete=False)
            if isinstance(error, JobCancelled):
                return JobState.CANCELLED, self._asked_for() or error.reason, None
            if isinstance(error, BadOffset):
                return JobState.FAILED, _LOST_BODY, error
            if self._abandoned:  # nobody will read what is written of it
                return JobState.LOST, "abandoned", None
            if isinstance(error, (JobNotFound, JobExpired, Fenced)) and error.key == self.key:
                if isinstance(error, Fenced):
                    self._say_lost()
                return JobState.LOST, "its registry does not take what it makes any more", None  # no fault of the job
            if not self._tells_errors:
                return JobState.FAILED, f"it raised an exception, see {self.key[:8]} in the server's log", error
            # Text, not the exception: its frames would be kept for a whole TTL.
            output.note("".join(traceback.format_exception(_without_our_frames(error))), is_error=True)
            return JobState.FAILED, self._described(error), error
        if self._response is not None and self._response.code >= 500:
            return JobState.FAILED, f"the app answered {self._response.status}", None
        if failure:
            return JobState.FAILED, failure, None
        return JobState.FINISHED, "", None

    def _asked_for(self) -> str:
        """Return why the job was asked to stop, as its registry knows: a signal that interrupts it does not."""
        try:
            return self.registry.get(self.key).reason
        except (RegistryError, JobNotFound, JobExpired):
            return ""

    def _end_forked_child(self, output: JobOutput) -> None:
        """End a child that the job forked and that came back to here: it would live on as a worker without a server,
        and wait for locks that threads of its parent held."""
        if os.getpid() != self._pid:
            error = sys.exc_info()[1]
            output.flush()
            os._exit(0 if error is None or (isinstance(error, SystemExit) and not error.code) else 1)

    def _take_head(self, response: RecordedResponse) -> None:
        self._response = response

    def _check(self) -> None:
        if self._output is not None:
            self._output.check()

    def redacted(self, text: str) -> str:
        """Return *text* as it may be stored, shown and logged."""
        return text if self.redaction is None else self.redaction(text)

    def _trace(self, error: BaseException | None) -> str:
        """Return the traceback for the log, where no handler may format the exception as it is; else nothing."""
        if self.redaction is None or error is None:
            return ""
        return "\n" + self.redacted("".join(traceback.format_exception(error)).rstrip())

    def _described(self, error: BaseException) -> str:
        """Return the last line of a traceback: what a person needs to know first. Bounded."""
        lines = traceback.TracebackException(type(error), error, None)
        lines.__notes__ = None  # they come after it
        line = self.redacted(list(lines.format_exception_only())[-1].strip())
        return line[:500].encode("utf-8", "backslashreplace").decode()

    def _report(self, progress: Progress) -> None:
        if self._output is None or os.getpid() != self._pid:
            return  # a forked child has a copy of the registry, which nobody looks at
        if self.redaction is not None:
            progress = replace(progress, message=self.redaction(progress.message))
        self._steps.report(progress)

    def _begin_step(self, title: str) -> int | None:
        output, title = self._output, plain_title(self.redacted(title))
        if output is None or os.getpid() != self._pid:
            return None
        output.drain(_LAST_DRAIN)
        if output.holds_back:  # the beginning of a line, say
            output.note("\n")
            output.drain(_LAST_DRAIN)
        begin, is_new_line = self._keeper.given
        output.note(f"{'' if is_new_line else chr(10)}{'  ' * self._steps.depth}▸ {title}\n")
        return self._steps.begin(title, begin if is_new_line else begin + 1)

    def _end_step(self, number: int, state: StepState) -> None:
        output = self._output
        if output is None or output.job is None or os.getpid() != self._pid:
            return
        output.drain(_LAST_DRAIN)
        self._steps.end(number, state, self._keeper.given[0])

    def _ask(self, text: str, choices: Sequence[str], timeout: float) -> str:
        if self._questions is None or os.getpid() != self._pid:
            raise ConfigurationError("ask() was called in a forked process: make the job's own process ask")
        return self._questions.ask(text, choices, timeout)

    def _read_line(self) -> str:
        # A forked child has a copy of the registry, which nobody looks at: its input is at its end.
        return "" if self._questions is None or os.getpid() != self._pid else self._questions.read_line()

    def _call_it(self, title: str) -> str:
        self.title = title = plain_title(self.redacted(title))
        if self._output is not None and os.getpid() == self._pid:
            with self._output.held():
                self._keeper.report(title=title)
        return title


def over_deadline(deadline: float) -> str:
    """Return the reason of a job that ran longer than *deadline* seconds."""
    return f"it ran longer than its deadline of {deadline:g} s"


def _process_time() -> float:
    """Return the seconds of a processor that this process and its children, as far as they ended, used."""
    return sum(os.times()[:4])


def _say(message: str, *arguments: str, exc_info: Any = None) -> None:
    """Log an error. What the app's handlers raise is theirs: neither the job nor its worker may end of it."""
    with contextlib.suppress(Exception):
        _log.error(message, *arguments, exc_info=exc_info)


_OURS = f"{__name__.partition('.')[0]}."


def _without_our_frames(error: BaseException) -> BaseException:
    """Begin the traceback at the first frame of the app's code; leave it whole if there is none."""
    frames = error.__traceback__
    while frames is not None and str(frames.tb_frame.f_globals.get("__name__")).startswith(_OURS):
        frames = frames.tb_next
    return error if frames is None else error.with_traceback(frames)
