"""Sharing a job: its owner makes links that read and do nothing else, sees them, and takes them back."""

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from string import Template
from typing import Any

from .._jobs import Job
from . import assets
from .markup import Markup, filled_in
from .negotiate import View, choose
from .plain import plain_page
from .problems import Answer, as_json, problem
from .readable import readable
from .shared_links import SCOPES, Share, signed
from .status import status_answer
from .visit import Visit, about

__all__ = ["answer_share", "answer_shares", "answer_unshare", "shared_note", "shares_of"]

_MOST = 20
_SHORTEST, _LONGEST = 60.0, 90 * 86400.0
_USUAL = 7 * 86400.0

_PAGE = Template("""<h1>$share: $title</h1>
<p>$explained</p>
<form method="post" action="$back">
<label>$what <select name="_scope"><option value="both">$both</option>
<option value="output">$output</option><option value="result">$result</option></select></label>
<label>$how_long <select name="_for"><option value="3600">$hour</option><option value="86400">$day</option>
<option value="604800" selected>$week</option></select></label>
<button name="_action" value="share">$make</button>
</form>
<ul>
$shares</ul>
<p><a href="$back">$job</a></p>
""")
_SHARE = Template("""<li><a href="$link">$what</a> <span>$until</span>
<form method="post" action="$back"><input type="hidden" name="_share" value="$id">
<button name="_action" value="unshare" aria-label="$revoke: $what $until">$revoke</button></form></li>
""")
_NOTE = Template('<p id="job-shared">$note</p>\n')


def answer_share(visit: Visit, job: Job, form: Mapping[str, str]) -> Answer:
    """Make a link to the ``_scope`` of the job, for ``_for`` seconds, and answer with it."""
    scope, seconds = form.get("_scope", "both"), _seconds(form.get("_for", ""))
    if scope not in SCOPES or seconds is None:
        detail = f"_scope must be one of {', '.join(SCOPES)}, and _for {_SHORTEST:g} to {_LONGEST:g} seconds."
        return problem(visit.environ, 400, "bad-parameter", detail)
    now = visit.registry.clock()
    share = Share(job.key, secrets.token_urlsafe(9), scope, round(now + seconds, 3))
    if visit.registry.amend(visit.key, lambda job: _with(job, share, now)) is None:
        detail = f"At most {_MOST} links to a job are shared. Take one back first."
        return problem(visit.environ, 409, "too-many-shares", detail)
    document = _document(visit, share)
    return as_json(document, (*about(job), ("Location", document["link"])), "201 Created")


def answer_unshare(visit: Visit, job: Job, form: Mapping[str, str]) -> Answer:
    """Take back the link that ``_share`` names; ``all`` takes back each. Say so by the state."""
    number = form.get("_share", "")
    visit.registry.amend(visit.key, lambda job: _without(job, number))
    return status_answer(visit, visit.registry.get(visit.key), "200 OK")


def _seconds(text: str) -> float | None:
    if not text:
        return _USUAL
    seconds = float(text) if text.isascii() and text.isdigit() and len(text) <= 9 else 0.0
    return seconds if _SHORTEST <= seconds <= _LONGEST else None


def _with(job: Job, share: Share, now: float) -> Job | None:
    shares = {number: told for number, told in job.shares.items() if now < float(told["until"])}
    if len(shares) >= _MOST:
        return None
    return job.changed(shares={**shares, share.id: {"scope": share.scope, "until": share.until}})


def _without(job: Job, number: str) -> Job:
    left = {} if number == "all" else {known: told for known, told in job.shares.items() if known != number}
    return job.changed(shares=left)


def shares_of(visit: Visit, job: Job) -> list[dict[str, Any]]:
    """Return the links to a job that lead there still."""
    now = visit.registry.clock()
    found = [Share(job.key, number, str(told["scope"]), float(told["until"])) for number, told in job.shares.items()]
    return [_document(visit, share) for share in found if share.is_of(job, now)]


def _document(visit: Visit, share: Share) -> dict[str, Any]:
    query = visit.site.without_ours(visit.environ.get("QUERY_STRING") or "")
    # Who may see the result alone is led there.
    view = {"_view": "result"} if share.scope == "result" else {}
    link = visit.site.place(query, signed(visit.registry, share), **view)
    return {"id": share.id, "scope": share.scope, "until": share.until, "link": link}


def answer_shares(visit: Visit, job: Job) -> Answer:
    """Answer with a page on which links are made and taken back, or for scripts with the links."""
    if choose(visit.environ.get("HTTP_ACCEPT")) is not View.PAGE:
        return as_json({"shares": shares_of(visit, job)}, about(job))
    language = assets.language_of(visit.environ.get("HTTP_ACCEPT_LANGUAGE"))
    said: dict[str, str] = assets.words(language)["share"]
    back = visit.link()
    rows = (
        {**said, **share, "what": said[share["scope"]], "back": back, "until": _until(share["until"], said)}
        for share in shares_of(visit, job)
    )
    shares = Markup("".join(filled_in(_SHARE, row) for row in rows))
    content = filled_in(_PAGE, {**said, "title": readable(job.title), "back": back, "shares": shares})
    return plain_page(said["share"], content, about(job, "Accept, Accept-Language"), language=language)


def shared_note(visit: Visit, said: Mapping[str, str]) -> Markup:
    """Return what the page says to a reader with a shared link."""
    share = visit.share
    return Markup() if share is None else filled_in(_NOTE, {"note": f"{said['shared']}, {_until(share.until, said)}"})


def _until(instant: float, said: Mapping[str, str]) -> str:
    at = datetime.fromtimestamp(instant, UTC)
    return said["until"].format(day=said["days"].split()[at.weekday()], at=f"{at:%Y-%m-%d %H:%M} UTC")
