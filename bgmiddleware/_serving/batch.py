"""What an operator does with several jobs at once: those that he selected, or all that match; confirmed once."""

from collections.abc import Callable, Collection, Iterable, Mapping
from string import Template
from typing import Any

from .._jobs import KEY_LENGTH, Job
from ..errors import JobExpired, JobNotFound
from .actions import fields_of
from .cancel import stop
from .listing import Filters, matching
from .markup import Markup, filled_in
from .problems import UNSTORED, Answer, problem, see_other
from .readable import readable
from .same_site import refused_cross_site
from .visit import Site

__all__ = ["answer_batch"]

_MOST = 1000
"""How many jobs one confirmation is good for."""
_SHOWN = 10

_CONFIRM = Template(
    '<h1>$question</h1>\n<ul>\n$titles</ul>\n<form method="post" action="$here">\n$fields'
    '<button name="_sure" value="yes">$word</button> <a href="$here">Back</a>\n</form>\n'
)
_FIELD = Template('<input type="hidden" name="$name" value="$value">\n')
_TITLE = Template("<li>$title</li>\n")


def answer_batch(
    site: Site,
    environ: Mapping[str, Any],
    rights: Collection[str],
    filters: Filters,
    page: Callable[[Markup], Answer],
) -> Answer:
    """Ask whether an action is meant, as a *page*; or do it, where that was said, and lead back to the list."""
    refused = refused_cross_site(environ)
    if refused is not None:
        return refused
    fields = fields_of(environ)
    given = dict(fields)
    action = given.get("_action", "")
    if action not in ("cancel", "discard"):
        return problem(environ, 400, "bad-parameter", "_action must be cancel or discard.")
    if action not in rights:
        return problem(environ, 403, "forbidden", f"You are not allowed to {action} jobs.")
    keys = [value for name, value in fields if name == "key" and len(value) == KEY_LENGTH][:_MOST]
    jobs = _jobs(site, filters, keys, all_of_them="_all" in given)
    jobs = [job for job in jobs if job.state.ended == (action == "discard")]
    if "_sure" not in given:
        return page(_question(action, jobs, filters, all_of_them="_all" in given))
    for job in jobs:
        _do(site, action, job.key)
    return see_other(filters.query(), "See the list.", UNSTORED)


def _jobs(site: Site, filters: Filters, keys: Iterable[str], *, all_of_them: bool) -> list[Job]:
    if all_of_them:
        return matching(site.registry, filters, _MOST)
    found = []
    for key in keys:
        try:
            found.append(site.registry.get(key))
        except (JobNotFound, JobExpired):
            continue
    return found


def _do(site: Site, action: str, key: str) -> None:
    try:
        if action == "discard":
            site.registry.discard(key)
        else:
            stop(site, key)
    except (JobNotFound, JobExpired):  # it is gone meanwhile
        return


def _question(action: str, jobs: list[Job], filters: Filters, *, all_of_them: bool) -> Markup:
    named = "1 job" if len(jobs) == 1 else f"{len(jobs)} jobs"
    fields = [("_action", action), *([("_all", "yes")] if all_of_them else [("key", job.key) for job in jobs])]
    titles = [readable(job.title) for job in jobs[:_SHOWN]]
    if len(jobs) > _SHOWN:
        titles.append(f"… and {len(jobs) - _SHOWN} more")
    items = [filled_in(_TITLE, {"title": title}) for title in titles]
    values = {
        "question": f"{action.capitalize()} {named}?",
        "titles": Markup("".join(items)),
        "fields": Markup("".join(filled_in(_FIELD, {"name": name, "value": value}) for name, value in fields)),
        "here": filters.query(),
        "word": f"{action.capitalize()} {named}",
    }
    return filled_in(_CONFIRM, values)
