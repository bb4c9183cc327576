"""What a job sees of itself while it runs."""

from collections.abc import Callable, Sequence

from .._jobs import Progress, StepState

__all__ = ["RunningJob"]


class RunningJob:
    """The job that the calling code belongs to: see :func:`bgmiddleware.current_job`. Any thread of it may call.

    *key* names it in its registry.
    """

    def __init__(
        self,
        key: str,
        title: str,
        check: Callable[[], None],
        report: Callable[[Progress], None],
        rename: Callable[[str], str],
        begin_step: Callable[[str], int | None],
        end_step: Callable[[int, StepState], None],
        ask: Callable[[str, Sequence[str], float], str],
    ) -> None:
        self.key = key
        self._title = title
        self._check = check
        self._report = report
        self._rename = rename
        self._begin_step = begin_step
        self._end_step = end_step
        self._ask = ask

    @property
    def title(self) -> str:
        """What people call the job. It can be set: the page, the list of jobs and the log say so from then on."""
        return self._title

    @title.setter
    def title(self, title: object) -> None:
        self._title = self._rename(str(title))

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Say how far the job is: *done* of *total*, and what it is doing. A cancellation point, as :meth:`check`."""
        self.check()
        self._report(Progress(done, total, message))

    def begin_step(self, title: str) -> int | None:
        """Begin a step within the innermost one that the calling code is in, and print its title. Return its number,
        or None where it is only counted. Code uses :func:`bgmiddleware.step`."""
        self.check()
        return self._begin_step(title)

    def end_step(self, number: int, state: StepState) -> None:
        """End a step. After the end of the job it does nothing."""
        self._end_step(number, state)

    def ask(self, question: str, choices: Sequence[str], timeout: float) -> str:
        """Wait for an answer: see :func:`bgmiddleware.ask`. A cancellation point for as long as it waits."""
        self.check()
        return self._ask(question, choices, timeout)

    def check(self) -> None:
        """Raise :class:`~bgmiddleware.JobCancelled` if the job was asked to stop; call it now and then in a loop that
        neither prints nor yields. Only the job's own thread is interrupted: in its helper threads this does nothing."""
        self._check()
