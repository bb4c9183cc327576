"""Keeping a job beyond its TTL, and giving it one again."""

from collections.abc import Mapping
from string import Template

from .._jobs import Job
from .markup import Markup, filled_in
from .problems import Answer, problem
from .status import status_answer
from .visit import Visit

__all__ = ["answer_keep", "answer_unkeep", "keep_form"]

_FORM = Template(
    '<form id="job-keep" method="post">$kept<button name="_action" value="$action">$word</button></form>\n'
)
_KEPT = Template('<b id="job-kept">$kept</b> ')


def answer_keep(visit: Visit, job: Job, form: Mapping[str, str]) -> Answer:
    """Take an ended job out of its TTL, and say so by its state."""
    if not job.state.ended:
        return problem(visit.environ, 409, "still-running", "The job still runs. Keep it when it has ended.")
    registry = visit.registry
    kept = registry.keep(visit.key)
    if kept is None:
        detail = (
            f"At most {registry.max_kept} jobs are kept, of {registry.max_kept_bytes} bytes in all."
            " Let another one expire first."
        )
        return problem(visit.environ, 409, "too-many-kept", detail)
    return status_answer(visit, kept, "200 OK")


def answer_unkeep(visit: Visit, job: Job, form: Mapping[str, str]) -> Answer:
    """Let a job that is kept expire, and say so by its state."""
    return status_answer(visit, visit.registry.keep(visit.key, False) or job, "200 OK")


def keep_form(visit: Visit, job: Job, said: Mapping[str, str]) -> Markup:
    """Return what the page of an ended job says of its being kept, and the button that keeps it or lets it expire."""
    kept = filled_in(_KEPT, said) if job.kept else Markup()
    if not job.state.ended or not visit.may("keep") or not (job.kept or visit.registry.max_kept):
        return kept
    action = "unkeep" if job.kept else "keep"
    return filled_in(_FORM, {"kept": kept, "action": action, "word": said["unkeep_it" if job.kept else "keep_it"]})
