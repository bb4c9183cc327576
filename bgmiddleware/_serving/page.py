"""A job for a person: its state, its output so far, and what can be done with it, without any script."""

import base64
import hashlib
import html
import re
from datetime import UTC, datetime
from string import Template

from .._jobs import Job, JobState
from .problems import Answer
from .visit import Visit, about

__all__ = ["STYLE", "SYMBOLS", "answer_page", "policy", "readable"]

_TAIL_BYTES = 64 * 1024
_REFRESH_SECONDS = 3

STYLE = """
:root { color-scheme: light dark; --line: #8886; --bad: #b3261e; --good: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff8a80; --good: #7ee787; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 72rem; }
header { display: flex; flex-wrap: wrap; gap: .25rem 1rem; align-items: baseline; }
h1 { font-size: 1.25rem; margin: 0; overflow-wrap: anywhere; }
.state { border: 1px solid currentColor; border-radius: 1rem; padding: 0 .75rem; white-space: nowrap; }
.finished { color: var(--good); }
.failed, .lost, .cancelled { color: var(--bad); }
.reason { overflow-wrap: anywhere; }
progress { width: 100%; height: 1rem; }
pre { border: 1px solid var(--line); border-radius: .25rem; padding: .75rem; overflow: auto; max-height: 70vh;
  font: .875rem/1.4 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; tab-size: 8; }
nav { display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: center; }
form { margin: 0 0 0 auto; }
table { border-collapse: collapse; width: 100%; display: block; overflow-x: auto; margin: 1rem 0; }
th, td { text-align: left; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid var(--line); }
button { font: inherit; padding: .25rem 1rem; }
"""


def policy(style: str) -> str:
    """Return the content security policy of a page that has this one style, forms to its own site, and nothing else."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'sha256-{digest}'; form-action 'self'; base-uri 'none'; frame-ancestors 'self'"
    )


_PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
$refresh<title>$symbol $title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
<span class="state $state">$symbol $state</span>
<span>$times</span>
</header>
$reason$progress$cut<pre tabindex="0" aria-label="Output">$output</pre>
<nav>$links$cancel</nav>
</body>
</html>
""")

SYMBOLS = {
    JobState.PENDING: "…",
    JobState.RUNNING: "▶",
    JobState.FINISHED: "✓",
    JobState.FAILED: "✗",
    JobState.CANCELLED: "■",
    JobState.LOST: "?",
}


_NOTHING = {True: "(No output yet.)", False: "(There was no output.)"}


def answer_page(visit: Visit, job: Job) -> Answer:
    """Answer with the page; while the job runs it asks for itself again every three seconds."""
    job, piece = visit.registry.page(visit.key, -_TAIL_BYTES)
    live = not job.state.ended
    body = _PAGE.substitute(
        refresh=f'<meta http-equiv="refresh" content="{_REFRESH_SECONDS}">\n' if live else "",
        style=STYLE,
        title=html.escape(readable(job.title)),
        state=job.state.value,
        symbol=SYMBOLS[job.state],
        times=_times(visit, job),
        reason=f'<p class="reason">{html.escape(readable(_reason(job)))}</p>\n' if _reason(job) else "",
        progress=_progress(job),
        cut=f"<p>The first {piece.offset} bytes are not shown here.</p>\n" if piece.offset else "",
        output=html.escape(readable(piece.data.decode("utf-8", "replace"))) or _NOTHING[live],
        links=_links(visit, job),
        cancel=_cancel(visit) if live and job.cancel_requested_at is None else "",
    ).encode("utf-8", "backslashreplace")
    headers = [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Content-Security-Policy", policy(STYLE)),
        *about(job),
    ]
    return Answer("200 OK", tuple(headers), [body])


def _times(visit: Visit, job: Job) -> str:
    begun = job.started_at if job.started_at is not None else job.created_at
    at = datetime.fromtimestamp(begun, UTC)
    word = "started" if job.started_at is not None else "queued"
    elapsed = job.elapsed(visit.registry.clock())
    return (
        f'{word} <time datetime="{at.isoformat(timespec="seconds")}">{at:%Y-%m-%d %H:%M:%S} UTC</time>, {elapsed:.1f} s'
    )


def _reason(job: Job) -> str:
    if job.cancel_requested_at is not None and job.state in (JobState.RUNNING, JobState.FINISHED, JobState.FAILED):
        asked = "A cancel was asked for" + ("." if job.state.ended else "; it stops at its next print.")
        return f"{asked} {job.reason}".strip()
    return job.reason


def _progress(job: Job) -> str:
    if job.progress is None:
        return ""
    percent = job.progress.percent
    value = "" if percent is None else f' value="{percent:.1f}"'
    of = "" if job.progress.total is None else f" of {_count(job.progress.total)}"
    text = f"{job.progress.message} {_count(job.progress.done)}{of}".strip()
    return f'<p><progress max="100"{value} aria-label="Progress"></progress> {html.escape(readable(text))}</p>\n'


def _count(number: float) -> str:
    return f"{number:,.2f}".removesuffix(".00")


def _links(visit: Visit, job: Job) -> str:
    links = [(visit.link(_view="log"), "Output as text")]
    if not job.state.ended:
        links.insert(0, (visit.link(), "Refresh"))
    elif job.response is not None and job.response.complete:
        links.insert(0, (visit.link(_view="result"), "Result"))
    return "".join(f'<a href="{html.escape(target)}">{text}</a>\n' for target, text in links)


def _cancel(visit: Visit) -> str:
    return (
        f'<form method="post" action="{html.escape(visit.link())}">'
        '<button name="_action" value="cancel">Cancel the job</button></form>\n'
    )


# CSI, OSC and the other string sequences, and the two-character escapes (ECMA-48 §5).
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\|(?=\n)|$)"
    r"|\x1b[ -/]*[0-~]?"
)
_OVERWRITTEN = re.compile(r"^[^\n]*\r(?!\n|$)", re.MULTILINE)
_CONTROLS = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127, *range(128, 160)))
_BIDI = {code: f"[U+{code:04X}]" for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_SHOWN = {**_CONTROLS, **_BIDI}


def readable(text: str) -> str:
    """Return terminal output as the text that a person would see: without escapes and controls, of a line that was
    written over with carriage returns only the last state, and with bidirectional overrides made visible."""
    text = _ESCAPES.sub("", text)
    text = text.replace("\r\n", "\n")
    text = _OVERWRITTEN.sub("", text)
    return text.replace("\r", "").translate(_SHOWN)
