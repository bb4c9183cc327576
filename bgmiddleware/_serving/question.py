"""Answering what a job asks its readers."""

from collections.abc import Mapping
from string import Template
from typing import Any

from .._jobs import Job, JobState, Question
from .._running import taken_answer
from .markup import Markup, filled_in
from .problems import Answer, problem
from .readable import readable
from .status import status_answer
from .visit import Visit, job_headers

__all__ = ["answer_answer", "asked_of", "question_form"]

_LONGEST = 4096

_FORM = Template("""<form id="job-question" class="job-row" method="post" data-id="$id" aria-labelledby="job-asked">
<strong id="job-asked">$text</strong>
<input type="hidden" name="_question" value="$id">
$fields</form>
""")
_CHOICE = Template('<button name="_answer" value="$choice">$choice</button>\n')
_LINE = Template("""<input name="_answer" aria-labelledby="job-asked" maxlength="$most" autocomplete="off">
<button name="_action" value="answer">$word</button>
""")


def asked_of(job: Job) -> Question | None:
    """Return what a job waits for; None where it asks nothing, or has its answer."""
    asked = job.question
    return asked if asked is not None and asked.answer is None and job.state is JobState.RUNNING else None


def answer_answer(visit: Visit, job: Job, form: Mapping[str, str]) -> Answer:
    """Give the job the ``_answer`` of a form, and say so by its state. ``_question`` may say to which question."""
    asked, answer, number = asked_of(job), form.get("_answer", ""), form.get("_question", "")
    said = answer.encode("utf-8", "backslashreplace").decode().rstrip("\r\n")
    if len(said) > _LONGEST or not said.replace("\t", "").isprintable():
        return problem(visit.environ, 400, "bad-answer", f"An answer is one line of at most {_LONGEST} characters.")
    if asked is not None and number in ("", asked.id) and asked.choices and said not in asked.choices:
        detail = f"The answer must be one of: {', '.join(asked.choices)}."
        return problem(visit.environ, 400, "bad-answer", detail, *job_headers(job))
    now = visit.registry.clock()
    if visit.registry.amend(visit.key, lambda job: taken_answer(job, said, now, number)) is None:
        detail = "The job does not wait for this answer: it was answered before, or the time is over."
        return problem(visit.environ, 409, "not-asked", detail, *job_headers(job))
    return status_answer(visit, visit.registry.get(visit.key), "202 Accepted")


def question_form(job: Job, said: Mapping[str, Any]) -> Markup:
    """Return the form by which a reader answers the job; empty where it asks nothing."""
    asked = asked_of(job)
    if asked is None:
        return Markup()
    fields = Markup("".join(filled_in(_CHOICE, {"choice": choice}) for choice in asked.choices))
    if not asked.choices:
        fields = filled_in(_LINE, {"most": str(_LONGEST), "word": said["answer"]})
    return filled_in(_FORM, {"id": asked.id, "text": readable(asked.text), "fields": fields})
