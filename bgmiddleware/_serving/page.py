"""A job for a person: its state, its output so far, and what can be done with it. A script keeps it up to date; without
one it is all there too, and asks for itself again."""

import html
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from string import Template
from typing import Any
from urllib.parse import quote

from .._jobs import Job, JobState
from . import assets
from .problems import Answer, Headers
from .readable import readable
from .status import status_document
from .visit import Visit, about

__all__ = ["SYMBOLS", "PageMaker", "PageParts", "answer_asset", "answer_page", "policy"]

_TAIL_BYTES = 64 * 1024
_SCRIPT_TAIL_BYTES = 1024 * 1024
_REFRESH_SECONDS = 3

SYMBOLS = {
    "pending": "…",
    "running": "▶",
    "finished": "✓",
    "failed": "✗",
    "cancelled": "■",
    "lost": "?",
    "expired": "–",
}
_COLOURS = {
    "pending": "777",
    "running": "06c",
    "finished": "1a7f37",
    "failed": "b3261e",
    "cancelled": "8a5a00",
    "lost": "b3261e",
    "expired": "777",
}
_ICON = (
    "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32'><circle cx='16' cy='16' r='16'"
    " fill='%23COLOUR'/><text x='16' y='23' font-size='20' fill='white' text-anchor='middle'>SYMBOL</text></svg>"
)


@dataclass(frozen=True, slots=True)
class PageParts:
    """What a page of a site's own is made of.

    *head* and *body* are HTML: what must be in the ``<head>``, and the whole view of the job, for anywhere in the
    ``<body>``. *language* is that of their words. *status* is what a script is told of the job (``_view=status``), and
    *output* the end of what it printed, as plain text: both are not escaped.
    """

    head: str
    body: str
    language: str
    status: Mapping[str, Any]
    output: str


PageMaker = Callable[[PageParts], str]

_OWN_PAGE = Template("""<!DOCTYPE html>
<html lang="$language">
<head>
$head</head>
<body class="job-page">
$body</body>
</html>
""")


def answer_page(visit: Visit, job: Job) -> Answer:
    """Answer with the page; without a script it asks for itself again every three seconds while the job runs."""
    job, piece = visit.registry.page(visit.key, -_TAIL_BYTES)
    language = assets.language_of(visit.environ.get("HTTP_ACCEPT_LANGUAGE"))
    status = status_document(visit, job)
    output = readable(piece.data.decode("utf-8", "replace"))
    values = _values(visit, job, language, status)
    values["output"] = html.escape(output)
    values["earlier"] = assets.words(language)["page"]["earlier"].format(bytes=f"{piece.offset:,}")
    values["no_earlier"] = _hidden(not piece.offset)
    parts = PageParts(
        assets.template("head.html").substitute(values),
        assets.template("body.html").substitute(values),
        language,
        status,
        output,
    )
    body = _made(visit, parts).encode("utf-8", "backslashreplace")
    headers = [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Content-Security-Policy", _policy(visit)),
        *about(job, "Accept, Accept-Language"),
    ]
    return Answer("200 OK", tuple(headers), [body])


def _made(visit: Visit, parts: PageParts) -> str:
    if visit.site.page is not None:
        return visit.site.page(parts)
    return _OWN_PAGE.substitute(head=parts.head, body=parts.body, language=parts.language)


# The policies.


def policy(style: str, script: str = "") -> str:
    """Return the content security policy of a page that has this one style and script, and nothing else."""
    allowed = f"script-src 'sha256-{assets.digest(script)}'; connect-src 'self'; " if script else ""
    return (
        f"default-src 'none'; {allowed}style-src 'sha256-{assets.digest(style)}'; img-src data:; form-action 'self';"
        " base-uri 'none'; frame-ancestors 'self'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


_OF_THE_SITE = (
    "default-src 'self'; script-src 'self'{script}; style-src 'self'{style}; img-src 'self' data:; form-action 'self';"
    " base-uri 'none'; frame-ancestors 'self'; object-src 'none'"
)


def _policy(visit: Visit) -> str:
    inline = not visit.site.external_assets
    if visit.site.page is not None:
        hashes = {"script": assets.script(), "style": assets.style()} if inline else {}
        named = {name: f" 'sha256-{assets.digest(text)}'" for name, text in hashes.items()}
        return _OF_THE_SITE.format(**{"script": "", "style": "", **named})
    if inline:
        return policy(assets.style(), assets.script())
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; form-action"
        " 'self'; base-uri 'none'; frame-ancestors 'self'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


# The parts.


def _values(visit: Visit, job: Job, language: str, status: Mapping[str, Any]) -> dict[str, str]:
    """Return what the templates are filled with, as HTML."""
    said = assets.words(language)
    live = not job.state.ended
    links = {name: html.escape(link) for name, link in status["links"].items()}
    times, note = _times(visit, job, said["page"]), readable(_note(job, said["page"]))
    percent = job.progress.percent if job.progress else None
    return {
        **{f"w_{name}": html.escape(word) for name, word in said["page"].items()},
        **links,
        "refresh": _refresh() if live else "",
        "symbol": SYMBOLS[job.state],
        "title": html.escape(readable(job.title)),
        "icon": _icon(job.state),
        "state": job.state.value,
        "state_word": said["states"][job.state],
        "times": times,
        "note": html.escape(note),
        "percent": _hidden(job.progress is None) if percent is None else f' value="{percent:.1f}"',
        "nothing": said["page"]["nothing" if live else "empty"],
        "no_nothing": _hidden(job.output_end > 0),
        "no_result": _hidden(not _has_result(job)),
        "no_cancel": _hidden(not live or job.cancel_requested_at is not None),
        "data": _data(said, status),
        "style": _style(visit),
        "script": _script(visit),
    }


def _hidden(is_so: bool) -> str:
    return " hidden" if is_so else ""


def _refresh() -> str:
    return f'<noscript><meta http-equiv="refresh" content="{_REFRESH_SECONDS}"></noscript>\n'


def _icon(state: JobState) -> str:
    return _ICON.replace("COLOUR", _COLOURS[state]).replace("SYMBOL", quote(SYMBOLS[state]))


def _has_result(job: Job) -> bool:
    return job.state.ended and job.response is not None and job.response.complete


def _data(said: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    data = {
        "job": status,
        "words": {**said["script"], "states": said["states"]},
        "symbols": SYMBOLS,
        "colours": _COLOURS,
        "icon": _ICON,
        "tail": _SCRIPT_TAIL_BYTES,
    }
    # Nothing in there can end the element that it is in, nor begin a comment.
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _style(visit: Visit) -> str:
    if visit.site.external_assets:
        return f'<link rel="stylesheet" href="{_asset(visit, "app.css", assets.style())}">'
    return f"<style>{assets.style()}</style>"


def _script(visit: Visit) -> str:
    if visit.site.external_assets:
        return f'<script type="module" src="{_asset(visit, "app.js", assets.script())}"></script>'
    return f'<script type="module">{assets.script()}</script>'


def _times(visit: Visit, job: Job, said: Mapping[str, str]) -> str:
    begun = job.started_at if job.started_at is not None else job.created_at
    at = datetime.fromtimestamp(begun, UTC)
    word = said["started" if job.started_at is not None else "queued"]
    elapsed = job.elapsed(visit.registry.clock())
    return (
        f'{word} <time datetime="{at.isoformat(timespec="seconds")}">{at:%Y-%m-%d %H:%M:%S} UTC</time>, {elapsed:.1f} s'
    )


def _note(job: Job, said: Mapping[str, str]) -> str:
    """Return the line below the title: how far it is, or why it ended."""
    if job.state.ended:
        asked = job.cancel_requested_at is not None and job.state is not JobState.CANCELLED
        return " ".join([said["asked"], job.reason] if asked else [job.reason])
    if job.cancel_requested_at is not None:
        return said["cancelling"]
    if job.progress is None:
        return ""
    of = "" if job.progress.total is None else f" {said['of']} {_count(job.progress.total)}"
    return f"{job.progress.message} {_count(job.progress.done)}{of}".strip()


def _count(number: float) -> str:
    return f"{number:,.2f}".removesuffix(".00")


# What is not in the page where a site's own policy allows nothing that is.

_FOR_A_YEAR = ("Cache-Control", "private, max-age=31536000, immutable")


def _asset(visit: Visit, name: str, text: str) -> str:
    return html.escape(visit.link(_view=name, _v=_version(text)))


def _version(text: str) -> str:
    return assets.digest(text)[:8].replace("/", "-").replace("+", "-")


def answer_asset(visit: Visit, job: Job) -> Answer:
    """Answer with the script or the style of the page. There is nothing of the job in it."""
    is_script = visit.parameters["_view"] == "app.js"
    text = assets.script() if is_script else assets.style()
    content_type = "text/javascript" if is_script else "text/css"
    body = text.encode()
    is_current = visit.parameters.get("_v") == _version(text)
    headers: Headers = (
        ("Content-Type", f"{content_type}; charset=utf-8"),
        ("Content-Length", str(len(body))),
        _FOR_A_YEAR if is_current else ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
    )
    return Answer("200 OK", headers, [body])
