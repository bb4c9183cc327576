"""One request that bears a token, and what is needed to answer it."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from .._jobs import Job
from ..executors.base import Executor
from ..registries.base import Registry
from .problems import UNSTORED

__all__ = ["MAX_WAIT", "BadParameter", "Slots", "Visit", "about", "job_headers"]

MAX_WAIT = 30.0


class BadParameter(Exception):
    """A parameter of ours is not what it should be; the message says what it should."""


class Slots:
    """How many connections may be held open at once, so that the app keeps threads to run in. Any thread."""

    def __init__(self, limit: int) -> None:
        self._lock = threading.Lock()  # guards the count
        self._free = limit

    def take(self) -> bool:
        """Take a slot if one is free; it must be given back exactly once."""
        with self._lock:
            if self._free <= 0:
                return False
            self._free -= 1
            return True

    def give_back(self) -> None:
        """Give one slot back."""
        with self._lock:
            self._free += 1


@dataclass(frozen=True, slots=True)
class Visit:
    """A request about the job of *token*, in the values that views need.

    *parameters* are those of the query, of each name the last.
    """

    environ: Mapping[str, Any]
    token: str
    key: str
    registry: Registry
    executor: Executor
    slots: Slots
    token_name: str
    parameters: Mapping[str, str]

    def take_slot(self) -> bool:
        """Take the right to hold this connection; never where that would hold the server's only thread."""
        return bool(self.environ.get("wsgi.multithread")) and self.slots.take()

    def number(self, name: str) -> int | None:
        """Return a parameter as a whole number; None if it is not there. Raises ``BadParameter``."""
        text = self.parameters.get(name)
        if text is None:
            return None
        digits = text.removeprefix("-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
            raise BadParameter(f"{name} must be a whole number")
        return int(text)

    @property
    def wait(self) -> float:
        """How many seconds the client would wait for news: 0 to 30. Raises ``BadParameter``."""
        text = self.parameters.get("_wait")
        if text is None:
            return 0.0
        try:
            seconds = float(text)
        except ValueError:
            seconds = -1.0
        if not seconds >= 0:
            raise BadParameter("_wait must be a number of seconds")
        return min(seconds, MAX_WAIT)

    def link(self, **parameters: str) -> str:
        """Return a relative reference to this job: to a view of it, say, by ``_view="result"``."""
        return "?" + urlencode({self.token_name: self.token, **parameters})


def job_headers(job: Job) -> tuple[tuple[str, str], ...]:
    """Return what every answer says of its job, for scripts."""
    headers = [("Job-State", job.state.value)]
    if job.progress is not None and job.progress.percent is not None:
        headers.append(("Job-Progress", f"{job.progress.percent:.1f}"))
    return tuple(headers)


def about(job: Job, vary: str = "Accept") -> tuple[tuple[str, str], ...]:
    """Return the headers that all answers about a job have, but for the result."""
    return (*UNSTORED, ("Vary", vary), *job_headers(job))
