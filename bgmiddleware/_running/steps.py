"""The steps of a job that runs: which are begun and ended, where in its output, and how far each of them is."""

import threading
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import replace

from .._jobs import Progress, Step, Steps, StepState

__all__ = ["LISTED", "RunningSteps"]

LISTED = 500
"""How many steps of a job are listed; the others are counted."""

_LONGEST_TITLE = 200


_innermost: ContextVar[tuple[str, int] | None] = ContextVar("bgmiddleware_step", default=None)
"""The innermost step of the calling code: its job, and its number."""


class RunningSteps:
    """The steps of the job that *key* names. Any thread of it may call.

    *now*: how many milliseconds it is since the job began. *tell*: takes how far the job is, or its steps.
    """

    def __init__(self, key: str, now: Callable[[], int], tell: Callable[[Progress | None, Steps | None], None]) -> None:
        self._key = key
        self._now = now
        self._tell = tell
        self._lock = threading.Lock()  # guards what follows
        self._listed: list[Step] = []
        self._unlisted = 0
        self._thread = 0
        self._number: int | None = None  # of the innermost step of that thread

    def belong(self) -> None:
        """Say that the calling thread is the job's own: what others do is within the step that it is in."""
        self._thread = threading.get_ident()

    @property
    def depth(self) -> int:
        """In how many steps the calling code is."""
        number, depth = self._innermost(), 0
        while number is not None:
            number, depth = self._listed[number].parent, depth + 1
        return depth

    def begin(self, title: str, start: int) -> int | None:
        """Begin a step at an offset of the output, within the innermost one; return its number, or None where it is
        only counted."""
        title = title if len(title) <= _LONGEST_TITLE else f"{title[: _LONGEST_TITLE - 1]}…"
        number = None
        with self._lock:
            if len(self._listed) < LISTED:
                number = len(self._listed)
                self._listed.append(Step(title, self._innermost(), begun=self._now(), start=start))
            else:
                self._unlisted += 1
        if number is not None:
            self._set(number)
        self._say()
        return number

    def end(self, number: int, state: StepState, end: int) -> None:
        """End a step at an offset of the output."""
        with self._lock:
            step = self._listed[number]
            self._listed[number] = replace(step, state=state, ended=self._now(), end=end)
        self._set(step.parent)
        self._say()

    def report(self, progress: Progress) -> None:
        """Take how far the innermost step is, or the job outside of all steps."""
        number = self._innermost()
        if number is None:
            self._tell(progress, None)
            return
        with self._lock:
            self._listed[number] = replace(self._listed[number], progress=progress)
        self._say()

    def _innermost(self) -> int | None:
        key, number = _innermost.get() or ("", None)
        return number if key == self._key else self._number  # a context may outlive its job

    def _set(self, number: int | None) -> None:
        _innermost.set(None if number is None else (self._key, number))
        if threading.get_ident() == self._thread:
            self._number = number

    def _say(self) -> None:
        with self._lock:
            steps = Steps(tuple(self._listed), self._unlisted)
        self._tell(None, steps)
