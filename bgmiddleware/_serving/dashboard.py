"""All jobs, for those who may see them: what there is and how it goes, but no way in, since tokens are not known."""

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from string import Template
from typing import Any
from urllib.parse import parse_qsl

from .._jobs import Job
from ..errors import ConfigurationError, RegistryError
from . import assets
from .icons import LOOKS, look_of
from .markup import Markup, filled_in
from .negotiate import View, choose
from .policies import style_policy
from .problems import UNSTORED, Answer, Headers, problem, retry_after
from .readable import readable
from .visit import Site

__all__ = ["answer_dashboard"]

_log = logging.getLogger("bgmiddleware")

_ROWS = 50

_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Jobs</title>
<style>$style</style>
</head>
<body class="job job-list">
<main>
<h1>Jobs</h1>
<div class="job-table" role="region" aria-label="Jobs" tabindex="0">
<table>
<thead><tr><th>State</th><th>Job</th><th>Owner</th><th>Created</th><th>Duration</th><th>Output</th></tr></thead>
<tbody>
$rows</tbody>
</table>
</div>
<nav>$links</nav>
</main>
</body>
</html>
""")


_ROW = Template(
    '<tr><td><span class="job-badge" data-job="$state">$symbol $word</span></td><td>$title</td><td>$owner</td>'
    '<td><time datetime="$created">$ago ago</time></td><td>$elapsed</td><td>$output</td></tr>\n'
)
_NO_ROWS = '<tr><td colspan="6">There are no jobs.</td></tr>\n'


def answer_dashboard(site: Site, environ: Mapping[str, Any], rights: Collection[str]) -> Answer:
    """Answer with one page of jobs, newest first, from ``_skip`` on; as a page for who names HTML, else as JSON."""
    if "list" not in rights:
        return problem(environ, 403, "forbidden", "You are not allowed to list jobs.")
    if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
        return problem(environ, 405, "method-not-allowed", "The list of jobs can only be read.", ("Allow", "GET, HEAD"))
    skip = _skip(environ)
    if skip is None:
        return problem(environ, 400, "bad-parameter", "_skip must be a whole number.")
    try:
        found = site.registry.jobs(limit=_ROWS + 1, skip=skip)
    except (RegistryError, ConfigurationError) as error:  # the latter where a process finds no disk at its first use
        _log.error("the list of jobs could not be read: %s", error)
        return problem(environ, 503, "registry-error", "The list of jobs cannot be read now.", retry_after(5.0))
    jobs, more = found[:_ROWS], len(found) > _ROWS
    now = site.registry.clock()
    if choose(environ.get("HTTP_ACCEPT")) is View.PAGE:
        return _answer_html(site, jobs, now, rights, _links(skip, more))
    document = {"jobs": [_row(job, now) for job in jobs], "next": f"?_skip={skip + _ROWS}" if more else None}
    return _answer("application/json", f"{json.dumps(document)}\n".encode())


def _skip(environ: Mapping[str, Any]) -> int | None:
    text = dict(parse_qsl(environ.get("QUERY_STRING") or "", keep_blank_values=True)).get("_skip", "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 9 else None


def _answer(content_type: str, body: bytes, *headers: tuple[str, str]) -> Answer:
    content: Headers = (("Content-Type", content_type), ("Content-Length", str(len(body))), ("Vary", "Accept"))
    return Answer("200 OK", (*content, *UNSTORED, *headers), [body])


def _row(job: Job, now: float) -> dict[str, Any]:
    return {
        "key": job.key,
        "title": job.title,
        "state": job.state.value,
        "reason": job.reason,
        "owner": job.owner,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "ended_at": job.ended_at,
        "age": max(0.0, now - job.created_at),
        "elapsed": job.elapsed(now),
        "output": job.output_end,
    }


def _answer_html(site: Site, jobs: Iterable[Job], now: float, rights: Collection[str], links: Markup) -> Answer:
    rows = Markup("".join(_html_row(site, job, now, rights) for job in jobs) or _NO_ROWS)
    page = filled_in(_PAGE, {"style": Markup(_style()), "rows": rows, "links": links})
    body = page.encode("utf-8", "backslashreplace")
    return _answer("text/html; charset=utf-8", body, ("Content-Security-Policy", style_policy(_style())))


def _style() -> str:
    return assets.style() + assets.stripped_style(assets.static("dashboard.css"))


def _html_row(site: Site, job: Job, now: float, rights: Collection[str]) -> Markup:
    created, look = datetime.fromtimestamp(job.created_at, UTC), look_of(job)
    values = {
        "state": look,
        "symbol": LOOKS[look][0],
        "title": _title(site, job, rights),
        "owner": readable(job.owner or "–"),
        "word": assets.words("en")["states"][look],
        "created": created.isoformat(timespec="seconds"),
        "ago": _span(now - job.created_at),
        "elapsed": "–" if job.started_at is None else _span(job.elapsed(now), digits=1),
        "output": _size(job.output_end),
    }
    return filled_in(_ROW, values)


_LINKED = Template('<a href="$link">$title</a>')


def _title(site: Site, job: Job, rights: Collection[str]) -> str:
    """Return the title of a job, linked where it can be opened."""
    title = readable(job.title)
    return filled_in(_LINKED, {"link": site.path_to(job.key), "title": title}) if "output" in rights else title


def _span(seconds: float, digits: int = 0) -> str:
    """Return a duration in its two largest units; what is shorter than ten seconds with so many *digits*."""
    if seconds < 10:
        return f"{max(0.0, seconds):.{digits}f} s"
    whole = int(seconds)
    for size, unit, part, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}{f' {rest} {smaller}' if rest else ''}"
    return f"{whole} s"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _links(skip: int, more: bool) -> Markup:
    links = [f'<a href="?_skip={max(0, skip - _ROWS)}">Newer</a>\n'] if skip else []
    return Markup("".join([*links, f'<a href="?_skip={skip + _ROWS}">Older</a>\n' if more else ""]))
