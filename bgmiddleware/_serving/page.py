"""A job for a person: its state, its output so far, and what can be done with it. A script keeps it up to date; without
one it is all there too, and asks for itself again."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from string import Template
from typing import Any

from .._jobs import Job, JobState
from . import assets
from .comparing import may_compare
from .external import asset_link
from .folded import folded
from .icons import ICON, LOOKS, icon, look_of
from .kept import keep_form
from .markup import Markup, filled_in
from .negotiate import View
from .parts import PageParts
from .policies import page_policy
from .problems import Answer, whole
from .question import asked_of, question_form
from .readable import readable
from .rerun import rerun_form
from .sharing import shared_note
from .status import status_document
from .tries import note_of_tries
from .visit import Visit, about

__all__ = ["answer_page"]

_TAIL_BYTES = 64 * 1024
_PATIENCE = 10.0
"""Seconds after which a job that was asked to stop, and did not, is said to go on."""
_REFRESH = '<noscript><meta http-equiv="refresh" content="3"></noscript>\n'


def answer_page(visit: Visit, job: Job) -> Answer:
    """Answer with the page; without a script it asks for itself again every three seconds while the job runs."""
    job, piece = visit.registry.page(visit.key, -_TAIL_BYTES)
    language = assets.language_of(visit.environ.get("HTTP_ACCEPT_LANGUAGE"))
    status = status_document(visit, job)
    output = readable(piece.data.decode("utf-8", "replace"))
    values = _values(visit, job, language, status)
    values["text"], has_errors = folded(visit, job, piece, output)
    values["no_errors"] = _hidden(not has_errors)
    values["earlier"] = assets.words(language)["page"]["earlier"].format(bytes=f"{piece.offset:,}")
    values["no_earlier"] = _hidden(not piece.offset)
    parts = PageParts(
        filled_in(assets.template("head.html"), values),
        filled_in(assets.template("body.html"), values),
        language,
        status,
        output,
    )
    site = visit.site
    policy = page_policy(of_the_site=site.own_page, external=site.external_assets)
    headers = (("Content-Security-Policy", policy), *about(job, "Accept, Accept-Language"))
    return whole("text/html; charset=utf-8", site.page(parts), headers)


# The parts.


def _values(visit: Visit, job: Job, language: str, status: Mapping[str, Any]) -> dict[str, str]:
    """Return what the templates are filled with; only what is ``Markup`` is not escaped."""
    said = assets.words(language)
    live, look = not job.state.ended, look_of(job)
    told = said["states"][look]
    if look == "refused" and job.response is not None:
        told = f"{told}: {job.response.status}"
    words = {f"w_{name}": word for name, word in said["page"].items()}
    tries = note_of_tries(visit, job, said["script"])
    if _is_sent_on(job):
        words["w_result"] = said["script"]["form"]
    return {
        **words,
        "result": status["links"].get("result", ""),
        "log": status["links"].get("log", ""),
        "denied": " ".join(right for right in ("answer", "cancel", "result") if not visit.may(right)),
        "operator": _operator(visit, job, words),
        # Nobody's half of an answer is to be taken away.
        "refresh": Markup(_REFRESH if not visit.has_ended(job) and asked_of(job) is None else ""),
        "question": question_form(job, said["page"]),
        "rerun": rerun_form(visit, job, said["page"]),
        "share": filled_in(_SHARE, {**words, "link": visit.link(_view=View.SHARE)}) if visit.may("share") else Markup(),
        "compare": _compare(visit, job, words),
        "mine": filled_in(_MINE, {**words, "link": visit.link(_view=View.MINE)}) if visit.may("mine") else Markup(),
        "keep": keep_form(visit, job, said["page"]),
        "shared": shared_note(visit, said["share"]),
        "symbol": LOOKS[look][0],
        "title": readable(job.title),
        "head_title": readable(f"{told} · {job.title}" if look == "refused" else job.title),
        "icon": _icon(visit, look),
        "state": look,
        "state_word": readable(told),
        "times": _times(visit, job, said["page"]),
        "note": readable(" · ".join(filter(None, [_note(visit, job, said["page"]), tries]))),
        "percent": _percent(job),
        "nothing": said["page"]["nothing" if live else "empty"],
        "no_nothing": _hidden(job.output_end > 0),
        "again": _again(visit, job),
        "no_result": _hidden(not visit.may("result") or not _has_result(job)),
        "no_save": _hidden(not visit.may("result") or not _is_file(job)),
        "no_cancel": _hidden(
            not visit.may("cancel") or not (live or job.awaits_try) or job.cancel_requested_at is not None
        ),
        "data": _data(visit, said, status),
        "style": _style(visit),
        "script": _script(visit),
    }


def _hidden(is_so: bool) -> Markup:
    return Markup(" hidden" if is_so else "")


_OPERATOR = Template('<nav id="job-operator"><a href="$list">← $w_all</a>$discard</nav>\n')
_DISCARD = Template(
    '<details id="job-discard" class="job-fold"><summary>$w_discard</summary><form method="post" action="$self">'
    '<p>$w_discard_text</p><button name="_action" value="discard">$w_discard</button></form></details>'
)


_SHARE = Template('<a class="job-button" href="$link">$w_share</a>\n')


_MINE = Template('<a href="$link">$w_mine</a>\n')


def _compare(visit: Visit, job: Job, words: Mapping[str, str]) -> Markup:
    if not may_compare(visit, job):
        return Markup()
    return filled_in(_COMPARE, {**words, "link": visit.link(_view=View.COMPARE)})


_COMPARE = Template('<a class="job-button" href="$link">$w_compare</a>\n')


def _operator(visit: Visit, job: Job, words: Mapping[str, str]) -> Markup:
    """Return what only an operator's page has: the way back to the list, and to have the job forgotten."""
    if visit.share is not None or not visit.is_operators:
        return Markup()
    discard = filled_in(_DISCARD, {**words, "self": visit.link()}) if visit.may("discard") else Markup()
    back = visit.site.path_to_list if visit.may("list") else ""
    return filled_in(_OPERATOR, {**words, "list": back, "discard": discard})


def _percent(job: Job) -> Markup:
    """Return the attributes of the progress bar; without a value it says that something goes on, so it is hidden at the
    end of a job of which nobody knows how far it came."""
    progress = job.current_progress
    percent = 100.0 if job.state is JobState.FINISHED else progress.percent if progress else None
    if percent is None:
        return _hidden(job.state.ended)
    return Markup(f' value="{percent:.1f}"')


def _again(visit: Visit, job: Job) -> Markup:
    """Return the attributes of the link that starts the job again. It has an address only where to follow it does."""
    again = visit.again_of(job)
    if again is None or job.keeps_request:  # which has a button for it
        return _hidden(True)
    shown = job.state.ended and job.state is not JobState.FINISHED
    return filled_in(_LINKED, {"again": again, "hidden": _hidden(not shown)})


_LINKED = Template(' href="$again"$hidden')


def _is_sent_on(job: Job) -> bool:
    """Whether the app sent a form on: its result leads to where it is to be filled in."""
    return job.state is JobState.FAILED and job.response is not None and job.response.code in (307, 308)


def _has_result(job: Job) -> bool:
    return job.state.ended and job.response is not None and job.response.complete


def _is_file(job: Job) -> bool:
    """Whether the result is something to keep, and not only to read."""
    response = job.response
    return job.state is JobState.FINISHED and response is not None and response.code < 400 and response.code != 204


def _icon(visit: Visit, state: str = "STATE") -> str:
    """Return the URL of the icon of a state; by default one in which a script fills the state in."""
    if visit.site.external_assets:
        return asset_link(visit, View.ICON, state)
    return f"data:image/svg+xml,{ICON if state == 'STATE' else icon(ICON, state)}"


_UNUSED = {"token", "key", "links", "priority", "rerun_as", "rerun_of", "steps_unlisted", "stopping"}
"""What the script of the page does not read."""


def _data(visit: Visit, said: Mapping[str, Any], status: Mapping[str, Any]) -> Markup:
    data = {
        # Its links are all made of one.
        "job": {name: value for name, value in status.items() if name not in _UNUSED},
        "operator": visit.is_operators,
        "self": status["links"]["self"],
    }
    ours = {
        "words": said["script"],
        "looks": {state: (*look, said["states"][state]) for state, look in LOOKS.items()},
        "icon": _icon(visit),
    }
    # What others choose is in ASCII, so that nothing in it turns the direction of the text around it.
    text = f"{_json(data)[:-1]},{_json(ours, ensure_ascii=False)[1:]}"
    # Nothing in there can end the element that it is in, nor begin a comment.
    return Markup(text.replace("<", "\\u003c"))


def _json(value: Mapping[str, Any], *, ensure_ascii: bool = True) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, separators=(",", ":"))


_STYLE = Template('<link rel="stylesheet" href="$link">')
_SCRIPT = Template('<script type="module" src="$link"></script>')


def _style(visit: Visit) -> Markup:
    if visit.site.external_assets:
        return filled_in(_STYLE, {"link": asset_link(visit, View.STYLE)})
    return Markup(f"<style>{assets.style()}</style>")


def _script(visit: Visit) -> Markup:
    if visit.site.external_assets:
        return filled_in(_SCRIPT, {"link": asset_link(visit, View.SCRIPT)})
    return Markup(f'<script type="module">{assets.script()}</script>')


_TIMES = Template('$word <time datetime="$instant">$at UTC</time>, $elapsed s')


def _times(visit: Visit, job: Job, said: Mapping[str, str]) -> Markup:
    begun = job.started_at if job.started_at is not None else job.created_at
    at = datetime.fromtimestamp(begun, UTC)
    word = said["started" if job.started_at is not None else "queued"]
    elapsed = job.elapsed(visit.registry.clock())
    values = {"word": word, "instant": at.isoformat(timespec="seconds"), "at": f"{at:%Y-%m-%d %H:%M:%S}"}
    return filled_in(_TIMES, values | {"elapsed": f"{elapsed:.1f}"})


def _note(visit: Visit, job: Job, said: Mapping[str, str]) -> str:
    """Return the line below the title: how far it is, or how it ended."""
    if job.state.ended:
        asked = job.cancel_requested_at is not None and job.state is not JobState.CANCELLED
        answered = job.response.status if job.response is not None and look_of(job) == "finished" else ""
        return " · ".join(filter(None, [said["asked"] if asked else "", job.reason, answered]))
    if job.cancel_requested_at is not None:
        ago = visit.registry.clock() - job.cancel_requested_at
        return said["cancelling"] if ago < _PATIENCE else said["asked_ago"].format(time=f"{ago:.0f} s")
    unseen = visit.no_worker_for(job)
    if unseen is not None:
        return said["no_worker"].format(time=f"{unseen:.0f} s")
    if job.current_progress is None:
        return ""
    of = "" if job.current_progress.total is None else f" {said['of']} {_count(job.current_progress.total)}"
    return f"{job.current_progress.message} {_count(job.current_progress.done)}{of}".strip()


def _count(number: float) -> str:
    return f"{number:,.2f}".removesuffix(".00")
