"""All jobs, for those who may see them: what there is, how it goes, and what failed; and the way to each of them."""

import logging
from collections.abc import Collection, Mapping
from functools import cache
from string import Template
from typing import Any
from urllib.parse import parse_qsl

from .._jobs import Job
from ..errors import ConfigurationError, RegistryError
from . import assets
from .batch import answer_batch
from .charts import SPANS, history_document
from .listing import ROWS, Filters, Found, look_for
from .markup import Markup, filled_in
from .negotiate import View, choose
from .plain import plain_page
from .problems import UNSTORED, Answer, Headers, as_json, bad_query, problem, retry_after
from .rows import Rows
from .shorten import shortened
from .visit import BadParameter, Site

__all__ = ["answer_dashboard"]

_log = logging.getLogger("bgmiddleware")

_METHODS = ("Allow", "GET, HEAD, POST")

_HEADERS: Headers = (("Vary", "Accept"), *UNSTORED)
_LIST = Template("""<h1>Jobs</h1>
$filters<div id="live" data-every="$every">
<p role="status">$summary</p>
$failures$charts$table<nav>$links</nav>
</div>
""")
_OLDER = Template('<a href="$link">$word</a>\n')


def answer_dashboard(site: Site, environ: Mapping[str, Any], rights: Collection[str]) -> Answer:
    """Answer with some of the jobs that are asked for, newest first: as a page for a client that names HTML, else as
    JSON. A POST does something with several of them."""
    if "list" not in rights:
        return problem(environ, 403, "forbidden", "You are not allowed to list jobs.")
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD", "POST"):
        return problem(environ, 405, "method-not-allowed", "The list of jobs is read or posted to.", _METHODS)
    refused = bad_query(environ)
    if refused is not None:
        return refused
    try:
        filters, after = Filters.of_query(environ.get("QUERY_STRING") or "")
        if environ["REQUEST_METHOD"] == "POST":
            return answer_batch(site, environ, rights, filters, _page)
        given = dict(parse_qsl(environ.get("QUERY_STRING") or ""))
        span = given.get("span", "hour")
        if span not in SPANS:
            raise BadParameter(f"span must be one of {', '.join(SPANS)}")
        if given.get("_view") == "history":
            return _history(site, span)
        found = look_for(site.registry, filters, after)
        if choose(environ.get("HTTP_ACCEPT")) is not View.PAGE:
            return _as_json(site, filters, found)
        charts = _charts_of(site, span) if after is None and filters == Filters() else Markup()
        return _as_page(site, environ, rights, filters, found, charts, is_first=after is None)
    except (BadParameter, ValueError) as error:
        return problem(environ, 400, "bad-parameter", f"{error}.")
    except (RegistryError, ConfigurationError) as error:  # the latter where a process finds no disk at its first use
        _log.error("the list of jobs could not be read: %s", error)
        return problem(environ, 503, "registry-error", "The list of jobs cannot be read now.", retry_after(5.0))


def _as_json(site: Site, filters: Filters, found: Found) -> Answer:
    now = site.registry.clock()
    document = {
        "jobs": [_row(job, now) for job in found.jobs],
        "next": None if found.next is None else filters.query(before=str(found.next)),
    }
    return as_json(document, _HEADERS)


def _row(job: Job, now: float) -> dict[str, Any]:
    return {
        "key": job.key,
        "title": job.title,
        "state": job.state.value,
        "reason": job.reason,
        "kept": job.kept,
        "owner": job.owner,
        "path": job.asked.get("path"),
        "version": job.version or None,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "age": max(0.0, now - job.created_at),
        "elapsed": job.elapsed(now),
        "output": job.output_end,
    }


def _history(site: Site, span: str) -> Answer:
    since = site.registry.clock() - SPANS[span][0] + 60.0
    return as_json(history_document(site.registry.history(since)), _HEADERS)


def _charts_of(site: Site, span: str) -> Markup:
    return site.charts.of(site.registry, span, lambda path: Filters(path=path).query())


def _as_page(
    site: Site,
    environ: Mapping[str, Any],
    rights: Collection[str],
    filters: Filters,
    found: Found,
    charts: Markup,
    *,
    is_first: bool,
) -> Answer:
    rows = Rows(site, rights, filters)
    summary = f"{len(found.jobs)} jobs" if len(found.jobs) != 1 else "1 job"
    if not found.whole:
        summary += f" among {found.looked} that were looked at. Look on for older ones."
    values = {
        "filters": rows.filters(),
        "summary": summary,
        "failures": rows.failures(found.jobs) if is_first and filters == Filters() else Markup(),
        "charts": charts,
        "table": rows.table(found.jobs),
        "links": _links(filters, found, is_first=is_first),
        "every": f"{site.viewers.pace(None, ('list', environ.get('REMOTE_ADDR'))) + _LEAST:.3g}",
    }
    return _page(filled_in(_LIST, values), script=is_first)


@cache
def _script() -> str:
    return shortened(assets.static("dashboard.js"))


_LEAST = 4.0  # seconds more than the fastest poll, since a list costs more than a job


def _page(content: Markup, *, script: bool = False) -> Answer:
    return plain_page("Jobs", content, _HEADERS, script=_script() if script else "")


def _links(filters: Filters, found: Found, *, is_first: bool) -> Markup:
    links = [] if is_first else [filled_in(_OLDER, {"link": filters.query(), "word": "Newest"})]
    if found.next is not None:
        word = f"Next {ROWS}" if found.whole else "Look on"
        links.append(filled_in(_OLDER, {"link": filters.query(before=str(found.next)), "word": word}))
    return Markup("".join(links))
