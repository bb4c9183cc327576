"""The jobs of a reader, a line for each: those of his owner in the registry, else those that his browser remembers."""

import json
from datetime import UTC, datetime
from functools import cache
from string import Template
from typing import Any

from .._jobs import Job
from . import assets
from .icons import LOOKS, look_of
from .listing import Filters, Found, look_for
from .markup import Markup, filled_in
from .negotiate import View, choose
from .plain import plain_page
from .problems import Answer, Headers, as_json
from .readable import readable
from .shared_links import OWN
from .shorten import shortened
from .visit import Visit, about

__all__ = ["answer_mine"]

_NOTHING = Found([], None, 0, True)
_LEAST = 2.0
"""Seconds more than the fastest poll, since a list costs more than a job."""

_OF_OWNER = Template("""<h1>$mine</h1>
<div id="live" data-every="$every">
<ul class="job-mine">
$rows</ul>
<p id="none"$hidden>$none</p>
$more</div>
""")
_ROW = Template("""<li><span class="job-badge" data-job="$look">$symbol $word</span> <a href="$link">$title</a>
$progress<time datetime="$instant">$at UTC</time>$result</li>
""")
_PROGRESS = Template('<progress max="100" value="$percent"></progress> ')
_MORE = Template("<p>$more</p>\n")
_RESULT = Template(' <a href="$link">$word</a>')
_OF_BROWSER = Template("""<h1>$mine</h1>
<noscript><p>$browser</p></noscript>
<ul id="mine" class="job-mine" data-said="$said"></ul>
<p id="none" hidden>$none</p>
""")


def answer_mine(visit: Visit, job: Job) -> Answer:
    """Answer with the jobs of who asks: as a page for a client that names HTML, else as JSON, which has those of an
    owner only. Up to fifty, the newest, as far as a look goes; both say whether there may be more."""
    found = look_for(visit.registry, Filters(owners=visit.owners), None) if visit.owners else _NOTHING
    jobs = found.jobs
    if choose(visit.environ.get("HTTP_ACCEPT")) is not View.PAGE:
        told = {"jobs": [_document(visit, each) for each in jobs], "more": found.next is not None}
        return as_json(told, about(job))
    language = assets.language_of(visit.environ.get("HTTP_ACCEPT_LANGUAGE"))
    said = assets.words(language)
    running = sum(not each.state.ended for each in jobs)
    title = f"({running}) {said['mine']['mine']}" if running else said["mine"]["mine"]
    content = _list_of(visit, found, said) if visit.owners else _of_browser(said)
    return plain_page(title, content, _headers(job), language=language, script=_script())


def _headers(job: Job) -> Headers:
    """Return the headers of the page: no other job is told by a Referer where its reader comes from."""
    told = (header for header in about(job, "Accept, Accept-Language") if header[0] != "Referrer-Policy")
    return (*told, ("Referrer-Policy", "no-referrer"))


def _link(visit: Visit, job: Job, **parameters: str) -> str:
    query = visit.site.without_ours(visit.environ.get("QUERY_STRING") or "")
    return visit.site.place(query, visit.token if job.key == visit.key else OWN + job.key, **parameters)


def _has_result(job: Job) -> bool:
    return job.state.ended and job.response is not None and job.response.complete


def _document(visit: Visit, job: Job) -> dict[str, Any]:
    progress = job.current_progress
    return {
        "title": job.title,
        "state": job.state.value,
        "percent": None if progress is None else progress.percent,
        "kept": job.kept,
        "created_at": job.created_at,
        "ended_at": job.ended_at,
        "link": _link(visit, job),
    }


def _list_of(visit: Visit, found: Found, said: dict[str, Any]) -> Markup:
    is_all = found.next is None
    values = {
        **said["mine"],
        "every": f"{visit.site.viewers.pace(None, ('mine', visit.key)) + _LEAST:.3g}",
        "rows": Markup("".join(_row(visit, job, said) for job in found.jobs)),
        "hidden": Markup(" hidden" if found.jobs or not is_all else ""),
        "more": Markup() if is_all else filled_in(_MORE, said["mine"]),
    }
    return filled_in(_OF_OWNER, values)


def _row(visit: Visit, job: Job, said: dict[str, Any]) -> Markup:
    look, at = look_of(job), datetime.fromtimestamp(job.created_at, UTC)
    progress = None if job.state.ended else job.current_progress
    percent = None if progress is None else progress.percent
    result = _RESULT if _has_result(job) else Template("")
    values = {
        "look": look,
        "symbol": LOOKS[look][0],
        "word": said["states"][look],
        "link": _link(visit, job),
        "title": readable(job.title),
        "progress": Markup() if percent is None else filled_in(_PROGRESS, {"percent": f"{percent:.1f}"}),
        "instant": at.isoformat(timespec="seconds"),
        "at": f"{at:%Y-%m-%d %H:%M}",
        "result": filled_in(result, {"link": _link(visit, job, _view=View.RESULT), "word": said["mine"]["result"]}),
    }
    return filled_in(_ROW, values)


def _of_browser(said: dict[str, Any]) -> Markup:
    looks = {state: (*look, said["states"][state]) for state, look in LOOKS.items()}
    return filled_in(_OF_BROWSER, {**said["mine"], "said": json.dumps({"words": said["mine"], "looks": looks})})


@cache
def _script() -> str:
    return shortened(assets.static("texts.js") + assets.static("mine.js"))
