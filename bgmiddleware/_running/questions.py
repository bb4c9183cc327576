"""What a job asks its readers: it waits for the answer, and holds nothing meanwhile but its worker."""

import contextlib
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence

from .._capture import JobOutput
from .._ground.numbers import is_finite
from .._jobs import Job, JobState, Question
from ..errors import ConfigurationError, JobCancelled, JobExpired, JobNotFound, NoAnswer, RegistryError
from ..registries.base import Registry
from .recording import plain_title

__all__ = ["TIMEOUT", "Questions", "taken_answer"]

TIMEOUT = 600.0
"""How many seconds a question waits that says nothing else."""

_LOOK_EVERY = 0.25
_MOST_CHOICES = 20
_LONGEST_CHOICE = 100
_PROMPT_BYTES = 4000
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.?)|[\x00-\x08\x0b-\x1f\x7f]")


class Questions:
    """Asks the readers of the job that *key* names and *runner* runs. Any thread of the job may ask; one at a time.

    *output* is the job's; *flush* brings to the registry what was printed so far; *redacted* takes secrets out of text.
    """

    def __init__(
        self,
        registry: Registry,
        key: str,
        runner: str,
        output: JobOutput,
        flush: Callable[[], None],
        redacted: Callable[[str], str],
    ) -> None:
        self._registry = registry
        self._key = key
        self._runner = runner
        self._output = output
        self._flush = flush
        self._redacted = redacted
        self._one = threading.Lock()  # held by the thread whose question waits

    def ask(self, text: str, choices: Sequence[str], timeout: float) -> str:
        """Print a question and wait for its answer, which is printed too. Raises ``NoAnswer``."""
        _check(text, choices, timeout)
        text, shown = plain_title(self._redacted(text)), tuple(map(self._redacted, choices))
        if len(set(shown)) < len(set(choices)):
            raise ConfigurationError.of_setting("choices", shown, "texts that differ without the secrets in them")
        said = f" [{'/'.join(shown)}]" if shown else ""
        self._output.note(f"? {text}{said}\n")
        answer = self._answer(text, shown, timeout)
        self._output.note(f"> {answer}\n")
        return choices[shown.index(answer)] if shown else answer

    def read_line(self) -> str:
        """Return a line that somebody answers, for ``input()``: the question is what the job printed last, behind the
        last end of a line. Raises ``NoAnswer``."""
        answer = self._answer(plain_title(self._prompt()) or "The job waits for a line.", (), TIMEOUT)
        self._output.note(f"{answer}\n")
        return f"{answer}\n"

    def _prompt(self) -> str:
        self._output.drain(1.0, last=True)  # what is held back may be the prompt
        self._flush()
        with self._output.held(), contextlib.suppress(RegistryError):
            data = self._registry.page(self._key, -_PROMPT_BYTES).piece.data
            return _ESCAPES.sub("", re.split("[\r\n]", data.decode("utf-8", "replace"))[-1])
        return ""

    def _answer(self, text: str, choices: tuple[str, ...], timeout: float) -> str:
        until = time.monotonic() + timeout
        while not self._one.acquire(timeout=_LOOK_EVERY):
            self._check_going(text, timeout, until)
        try:
            asked = Question(text, choices, self._registry.clock() + timeout, secrets.token_hex(8))
            while (answer := self._look(asked)) is None:
                self._check_going(text, timeout, until)
                time.sleep(min(_LOOK_EVERY, max(0.001, until - time.monotonic())))
            return answer
        except (JobCancelled, NoAnswer):
            with contextlib.suppress(RegistryError, JobNotFound, JobExpired):
                self._registry.amend(self._key, lambda job: _without(job, self._runner))
            raise
        finally:
            self._one.release()

    def _check_going(self, text: str, timeout: float, until: float) -> None:
        self._output.check()
        if time.monotonic() >= until or self._output.job is None:  # the latter in a thread that outlives its job
            raise NoAnswer(text, timeout)

    def _look(self, asked: Question) -> str | None:
        """Return the answer, if there is one; ask, if the registry does not know of the question (any more)."""
        with self._output.held(), contextlib.suppress(RegistryError):  # it is away: the next look
            found = self._registry.get(self._key).question
            if found is None or found.id != asked.id:
                self._registry.amend(self._key, lambda job: _asking(job, self._runner, asked))
            elif found.answer is not None:
                self._registry.amend(self._key, lambda job: _without(job, self._runner))
                return found.answer
        return None


def _check(text: str, choices: Sequence[str], timeout: float) -> None:
    if isinstance(choices, str) or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise ConfigurationError.of_setting("choices", choices, "texts, such as ('yes', 'no')")
    if len(choices) > _MOST_CHOICES or any(len(choice) > _LONGEST_CHOICE for choice in choices):
        allowed = f"at most {_MOST_CHOICES}, each of at most {_LONGEST_CHOICE} characters"
        raise ConfigurationError.of_setting("choices", choices, allowed)
    if any(choice != plain_title(choice) for choice in choices):
        raise ConfigurationError.of_setting("choices", choices, "texts of one line, without spaces around them")
    if not (is_finite(timeout) and timeout > 0):
        raise ConfigurationError.of_setting("timeout", timeout, "a number of seconds above 0")
    if not (isinstance(text, str) and text.strip()):
        raise ConfigurationError.of_setting("question", text, "a text")


def _asking(job: Job, runner: str, asked: Question) -> Job | None:
    return job.changed(question=asked) if _is_run_by(job, runner) else None


def _without(job: Job, runner: str) -> Job | None:
    return job.changed(question=None) if _is_run_by(job, runner) else None


def _is_run_by(job: Job, runner: str) -> bool:
    return job.state is JobState.RUNNING and job.runner == runner


def taken_answer(job: Job, answer: str, now: float, number: str = "") -> Job | None:
    """Return the job when it was given an *answer*; None where it asks nothing, or not the question of this *number*
    any more, or has an answer already."""
    asked = job.question
    if job.state is not JobState.RUNNING or asked is None or asked.answer is not None or now >= asked.until:
        return None
    if number not in ("", asked.id) or (asked.choices and answer not in asked.choices):
        return None
    return job.changed(question=Question(asked.text, asked.choices, asked.until, asked.id, answer))
