"""What an operator does with several jobs at once: those that he selected, or all that match; confirmed once."""

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from string import Template
from typing import Any, NamedTuple

from .._jobs import KEY_LENGTH, Job, JobState
from ..errors import JobExpired, JobNotFound
from .actions import fields_of
from .cancel import cancelled, stop
from .listing import Filters, matching
from .markup import Markup, filled_in
from .problems import UNSTORED, Answer, problem, retry_after, see_other
from .readable import readable
from .rows import counted
from .same_site import refused_cross_site
from .visit import Site

__all__ = ["answer_batch"]

_MOST = {"cancel": 1000, "discard": 1000, "rerun": 100}
"""What can be done with several jobs, and with how many at a time: a request is stored once more for each new run."""
_SHOWN = 10
_LATER = 5.0

_CONFIRM = Template(
    '<h1>$question</h1>\n<ul>\n$titles</ul>\n$notes<form method="post" action="$here">\n$fields'
    '<button name="_sure" value="yes">$word</button> <a href="$here">$back</a>\n</form>\n'
)
_FIELD = Template('<input type="hidden" name="$name" value="$value">\n')
_TITLE = Template("<li>$title</li>\n")
_NOTE = Template("<p>$note</p>\n")


class _Batch(NamedTuple):
    """What is asked for: an *action*, with the *jobs* that it can be done with; how many more were selected, but are
    *left_out*; whether *all_of_them* are meant that match."""

    action: str
    jobs: list[Job]
    left_out: int
    all_of_them: bool

    @property
    def fields(self) -> list[tuple[str, str]]:
        """What a form sends that means this batch."""
        whose = [("_all", "yes")] if self.all_of_them else [("key", job.key) for job in self.jobs]
        return [("_action", self.action), *whose]


def answer_batch(
    site: Site,
    environ: Mapping[str, Any],
    rights: Collection[str],
    filters: Filters,
    page: Callable[[Markup], Answer],
    said: Mapping[str, str],
) -> Answer:
    """Ask whether an action is meant, as a *page*; or do it, where that was said, and lead back to the list."""
    refused = refused_cross_site(environ)
    if refused is not None:
        return refused
    fields = fields_of(environ)
    given = dict(fields)
    action = given.get("_action", "")
    if action not in _MOST:
        return problem(environ, 400, "bad-parameter", "_action must be cancel, discard or rerun.")
    if action not in rights:
        told = "run jobs again" if action == "rerun" else f"{action} jobs"
        return problem(environ, 403, "forbidden", f"You are not allowed to {told}.")
    keys = [value for name, value in fields if name == "key" and len(value) == KEY_LENGTH][: _MOST["cancel"]]
    batch = _batch(site, filters, action, keys, all_of_them="_all" in given)
    if "_sure" not in given:
        return page(_question(batch, filters, said))
    for number, job in enumerate(batch.jobs):
        failed = _do(site, environ, rights, action, job)
        if failed is not None:
            done = f"{number} of {len(batch.jobs)} jobs are run again. The others wait until you confirm once more"
            return problem(environ, failed, "queue-full", f"{done}: the queue is full.", retry_after(_LATER))
    return see_other(filters.query(), "See the list.", UNSTORED)


def _batch(site: Site, filters: Filters, action: str, keys: Sequence[str], *, all_of_them: bool) -> _Batch:
    most, fits = _MOST[action], _FITS[action]
    if all_of_them:
        return _Batch(action, matching(site.registry, filters, most, fits), 0, all_of_them)
    found = []
    for key in dict.fromkeys(keys):
        with contextlib.suppress(JobNotFound, JobExpired):
            found.append(site.registry.get(key))
    jobs = [job for job in found if fits(job)]
    return _Batch(action, jobs[:most], len(found) - len(jobs), all_of_them)


def _runs_again(job: Job) -> bool:
    # Once: what fails for good would be run again and again by who confirms for all that match.
    failed = job.state in (JobState.FAILED, JobState.LOST)
    return failed and job.keeps_request and bool(job.request) and not job.rerun_as and not job.is_tried_again


_FITS: Mapping[str, Callable[[Job], bool]] = {
    "cancel": lambda job: not job.state.ended or job.awaits_try,
    "discard": lambda job: job.state.ended,
    "rerun": _runs_again,
}


def _do(site: Site, environ: Mapping[str, Any], rights: Collection[str], action: str, job: Job) -> int | None:
    """Do it with one job. Return the status of a refusal that the next ones would meet too."""
    with contextlib.suppress(JobNotFound, JobExpired):  # it is gone meanwhile
        if action == "discard":
            site.registry.discard(job.key)
        elif action == "cancel":
            cancelled(site.registry, job, lambda key: stop(site, key))
        else:
            answer = site.rerun(site.operator_visit(environ, job.key, rights), job)
            return 503 if answer.status.startswith("503") else None
    return None


def _question(batch: _Batch, filters: Filters, said: Mapping[str, str]) -> Markup:
    action, jobs = batch.action, batch.jobs
    named = counted(len(jobs), said)
    titles = [readable(job.title) for job in jobs[:_SHOWN]]
    if len(jobs) > _SHOWN:
        titles.append(said["more"].format(count=len(jobs) - _SHOWN))
    values = {
        "question": said[f"sure_{action}"].format(jobs=named),
        "titles": _each(_TITLE, "title", titles),
        "notes": _each(_NOTE, "note", _notes(batch, said)),
        "fields": Markup("".join(filled_in(_FIELD, {"name": name, "value": value}) for name, value in batch.fields)),
        "here": filters.query(),
        "word": said[f"do_{action}"].format(jobs=named),
        "back": said["back"],
    }
    return filled_in(_CONFIRM, values)


def _notes(batch: _Batch, said: Mapping[str, str]) -> Iterator[str]:
    if batch.action == "rerun":
        yield said["in_nobodys_name"]
        if batch.left_out:
            yield said["left_out"].format(jobs=counted(batch.left_out, said))
    if len(batch.jobs) == _MOST[batch.action]:
        yield said["at_a_time"].format(count=len(batch.jobs))


def _each(template: Template, name: str, texts: Iterable[str]) -> Markup:
    return Markup("".join(filled_in(template, {name: text}) for text in texts))
