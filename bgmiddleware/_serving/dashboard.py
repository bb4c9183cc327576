"""All jobs, for those who may see them: what there is, how it goes, and what failed; and the way to each of them."""

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from string import Template
from typing import Any
from urllib.parse import parse_qsl

from .._jobs import Job
from ..errors import ConfigurationError, RegistryError
from . import assets
from .batch import answer_batch
from .charts import SPANS, history_document
from .listing import ROWS, Cursor, Filters, Found, look_for
from .markup import Markup, filled_in
from .negotiate import View, choose
from .plain import plain_page
from .problems import UNSTORED, Answer, Headers, as_json, bad_query, problem, retry_after
from .rows import Rows, counted
from .shorten import shortened
from .visit import BadParameter, Site

__all__ = ["answer_dashboard"]

_log = logging.getLogger("bgmiddleware")

_METHODS = ("Allow", "GET, HEAD, POST")

_HEADERS: Headers = (("Vary", "Accept"), *UNSTORED)
_PAGE_HEADERS: Headers = (("Vary", "Accept, Accept-Language"), *UNSTORED)
_LIST = Template("""<h1>$title</h1>
$filters<div id="live" data-every="$every">
<p role="status">$summary</p>
$failures$charts$table<nav>$links</nav>
</div>
""")
_OLDER = Template('<a href="$link">$word</a>\n')


@dataclass(frozen=True, slots=True)
class _Look:
    """What a client with these *rights* looks at: the jobs behind *after* that *filters* match, and the charts."""

    site: Site
    rights: frozenset[str]
    filters: Filters
    after: Cursor | None
    span: str
    language: str

    @property
    def said(self) -> Mapping[str, Any]:
        """The words of the list."""
        words: Mapping[str, Any] = assets.words(self.language)["list"]
        return words

    @property
    def is_plain(self) -> bool:
        """Whether this is the first page of all jobs."""
        return self.after is None and self.filters == Filters()


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
        return _answer(environ, _look_of(site, environ, rights))
    except (BadParameter, ValueError) as error:
        return problem(environ, 400, "bad-parameter", f"{error}.")
    except (RegistryError, ConfigurationError) as error:  # the latter where a process finds no disk at its first use
        _log.error("the list of jobs could not be read: %s", error)
        return problem(environ, 503, "registry-error", "The list of jobs cannot be read now.", retry_after(5.0))


def _look_of(site: Site, environ: Mapping[str, Any], rights: Collection[str]) -> _Look:
    query = environ.get("QUERY_STRING") or ""
    filters, after = Filters.of_query(query)
    span = dict(parse_qsl(query)).get("span", "hour")
    if span not in SPANS:
        raise BadParameter(f"span must be one of {', '.join(SPANS)}")
    language = assets.language_of(environ.get("HTTP_ACCEPT_LANGUAGE"))
    return _Look(site, frozenset(rights), filters, after, span, language)


def _answer(environ: Mapping[str, Any], look: _Look) -> Answer:
    site = look.site
    if environ["REQUEST_METHOD"] == "POST":
        return answer_batch(site, environ, look.rights, look.filters, lambda content: _page(look, content), look.said)
    if dict(parse_qsl(environ.get("QUERY_STRING") or "")).get("_view") == "history":
        return _history(site, look.span)
    if choose(environ.get("HTTP_ACCEPT")) is not View.PAGE:
        return _as_json(look, look_for(site.registry, look.filters, look.after))
    return _as_page(environ, look)


def _as_json(look: _Look, found: Found) -> Answer:
    now = look.site.registry.clock()
    document = {
        "jobs": [_row(job, now) for job in found.jobs],
        "next": None if found.next is None else look.filters.query(before=str(found.next)),
        **({"sorted": found.looked} if look.filters.sort else {}),
    }
    return as_json(document, _HEADERS)


def _row(job: Job, now: float) -> dict[str, Any]:
    return {
        "key": job.key,
        "title": job.title,
        "state": job.state.value,
        "reason": job.reason,
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


def _as_page(environ: Mapping[str, Any], look: _Look) -> Answer:
    site = look.site
    found = look_for(site.registry, look.filters, look.after)
    rows = Rows(site, look.rights, look.filters, look.language)
    values = {
        "title": look.said["title"],
        "filters": rows.filters(),
        "summary": _summary(look, found),
        "failures": rows.failures(found.jobs) if look.is_plain else Markup(),
        "charts": _charts_of(look) if look.is_plain else Markup(),
        "table": rows.table(found.jobs),
        "links": _links(look, found),
        "every": f"{site.viewers.pace(None, ('list', environ.get('REMOTE_ADDR'))) + _LEAST:.3g}",
    }
    return _page(look, filled_in(_LIST, values), script=look.after is None)


def _charts_of(look: _Look) -> Markup:
    return look.site.charts.of(look.site.registry, look.span, look.language, lambda path: Filters(path=path).query())


def _summary(look: _Look, found: Found) -> str:
    jobs = counted(len(found.jobs), look.said)
    if found.whole:
        return jobs
    sort = look.filters.sort
    told = "looked" if not sort else "sorted_oldest" if sort == "created" else "sorted"
    return str(look.said[told].format(jobs=jobs, looked=found.looked))


@cache
def _script() -> str:
    return shortened(assets.static("dashboard.js"))


_LEAST = 4.0  # seconds more than the fastest poll, since a list costs more than a job


def _page(look: _Look, content: Markup, *, script: bool = False) -> Answer:
    text = _script() if script else ""
    return plain_page(look.said["title"], content, _PAGE_HEADERS, language=look.language, script=text)


def _links(look: _Look, found: Found) -> Markup:
    filters, said = look.filters, look.said
    links = [] if look.after is None else [filled_in(_OLDER, {"link": filters.query(), "word": said["newest"]})]
    if found.next is not None:
        word = said["following"].format(count=ROWS) if found.whole else said["look_on"]
        links.append(filled_in(_OLDER, {"link": filters.query(before=str(found.next)), "word": word}))
    return Markup("".join(links))
