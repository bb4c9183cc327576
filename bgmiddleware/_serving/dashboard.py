"""All jobs, for those who may see them: what there is, how it goes, and what failed; and the way to each of them."""

import logging
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import parse_qsl

from .._jobs import Job
from ..errors import ConfigurationError, RegistryError
from . import assets
from .batch import answer_batch
from .charts import SPANS, history_document
from .deliveries import deliveries_document
from .listing import Filters, Found, look_for
from .negotiate import View, choose
from .news import answer_news
from .overview import PAGE_HEADERS, Look, answer_overview, deliveries_of, drawn_lately, page_of
from .problems import UNSTORED, Answer, Headers, as_json, bad_query, problem, retry_after, whole
from .visit import BadParameter, Site, Visit

__all__ = ["answer_dashboard"]

_log = logging.getLogger("bgmiddleware")

_METHODS = ("Allow", "GET, HEAD, POST")

_HEADERS: Headers = (("Vary", "Accept"), *UNSTORED)
_LEAST = 4.0  # seconds more than the fastest poll, since a list costs more than a job


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


def _look_of(site: Site, environ: Mapping[str, Any], rights: Collection[str]) -> Look:
    query = environ.get("QUERY_STRING") or ""
    filters, after = Filters.of_query(query)
    span = dict(parse_qsl(query)).get("span", "hour")
    if span not in SPANS:
        raise BadParameter(f"span must be one of {', '.join(SPANS)}")
    language = assets.language_of(environ.get("HTTP_ACCEPT_LANGUAGE"))
    return Look(site, frozenset(rights), filters, after, span, language)


def _answer(environ: Mapping[str, Any], look: Look) -> Answer:
    site = look.site
    if environ["REQUEST_METHOD"] == "POST":
        return answer_batch(site, environ, look.rights, look.filters, lambda content: page_of(look, content), look.said)
    visit = site.operator_visit(environ, "", look.rights)
    named = visit.parameters.get("_view")
    if named == "history":
        return _history(site, look.span)
    view = choose(environ.get("HTTP_ACCEPT"))
    if View.EVENTS in (named, view):
        return answer_news(look, visit)
    if named == "live":
        return _part(look, _pace(visit))
    if view is not View.PAGE:
        return _as_json(look, look_for(site.registry, look.filters, look.after))
    return answer_overview(look, _pace(visit))


def _pace(visit: Visit) -> float:
    """Return in how many seconds one who leaves the list open should ask again."""
    place = "list", visit.environ.get("REMOTE_ADDR")
    return visit.site.viewers.pace(visit.seconds("_every"), place) + _LEAST


def _part(look: Look, every: float) -> Answer:
    told = (("Content-Security-Policy", "default-src 'none'"), ("Job-Poll", f"{every:.3g}"), retry_after(every))
    return whole("text/html; charset=utf-8", drawn_lately(look).html, (*told, *PAGE_HEADERS))


def _as_json(look: Look, found: Found) -> Answer:
    now = look.site.registry.clock()
    deliveries = deliveries_of(look.site) if look.is_plain else ()
    document = {
        "jobs": [_row(job, now) for job in found.jobs],
        "next": None if found.next is None else look.filters.query(before=str(found.next)),
        **({"sorted": found.looked} if look.filters.sort else {}),
        **({"webhooks": deliveries_document(deliveries, now)} if deliveries else {}),
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
        "percent": None if job.current_progress is None else job.current_progress.percent,
    }


def _history(site: Site, span: str) -> Answer:
    since = site.registry.clock() - SPANS[span][0] + 60.0
    return as_json(history_document(site.registry.history(since)), _HEADERS)
