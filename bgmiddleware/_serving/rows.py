"""The list of all jobs as HTML: filters that are links, what failed of late, and a row for each job."""

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from string import Template

from .._jobs import Job, JobState
from .._running.failures import raised_in
from ..errors import JobExpired, JobNotFound
from . import assets
from .icons import LOOKS, look_of
from .listing import Filters
from .markup import Markup, filled_in
from .readable import readable
from .visit import Site

__all__ = ["Rows"]

_TAIL_BYTES = 8192
_FAILURES = 5
_SPANS = {"": "any time", "900": "15 minutes", "3600": "an hour", "86400": "a day"}

_FILTERS = Template("""<nav aria-label="States">$states</nav>
<form method="get" class="job-filters">
$state<label>Path <input name="path" value="$path"></label>
<label>Owner <input name="owner" value="$owner"></label>
<label>Version <input name="version" value="$version"></label>
<label>Text <input type="search" name="text" value="$text"></label>
<label>Within <select name="since">$spans</select></label>
<button>Filter</button> <a href="?">All jobs</a>
</form>
""")
_STATE = Template('<a href="$link"$current>$word</a>\n')
_SPAN = Template('<option value="$value"$selected>$word</option>')
_HIDDEN = Template('<input type="hidden" name="state" value="$state">\n')
_FAILURES_BOX = Template(
    '<section class="job-failures" aria-labelledby="failures"><h2 id="failures">Failed lately</h2>\n<ul>\n$items</ul>\n'
    '<a href="$link">All that failed</a></section>\n'
)
_FAILURE = Template('<li>$badge $title <time datetime="$created">$ago ago</time> $reason</li>\n')
_TABLE = Template("""<form method="post" action="$here">
<div class="job-table" role="region" aria-label="Jobs" tabindex="0">
<table>
<thead><tr>$head<th>State</th><th>Job</th><th>Path</th><th>Owner</th><th>Version</th><th>Created</th><th>Duration</th>\
<th>Output</th></tr></thead>
<tbody>
$rows</tbody>
</table>
</div>
$actions</form>
""")
_BADGE = Template('<span class="job-badge" data-job="$state">$symbol $word</span>')
_ROW = Template(
    "<tr>$box<td>$badge</td><td>$title$reason</td><td>$path</td><td>$owner</td><td>$version</td>"
    '<td><time datetime="$created">$ago ago</time></td><td>$elapsed</td><td>$output</td></tr>\n'
)
_BOX = Template('<td><input type="checkbox" name="key" value="$key" aria-label="Select $title"></td>')
_LINKED = Template('<a href="$link">$title</a>')
_REASON = Template('<br><small class="job-reason">$reason</small>')
_NO_ROWS = '<tr><td colspan="9">There are no jobs.</td></tr>\n'
_ACTION = Template('<button name="_action" value="$action">$word</button>\n')
_ALL = '<label><input type="checkbox" name="_all" value="yes"> All that match, not only the selected</label>\n'


class Rows:
    """What an operator with these *rights* sees, who asks with these *filters*."""

    def __init__(self, site: Site, rights: Collection[str], filters: Filters) -> None:
        self._site = site
        self._rights = rights
        self._filters = filters
        self._now = site.registry.clock()

    def filters(self) -> Markup:
        """Return the links and the form by which jobs are filtered."""
        filters, said = self._filters, assets.words("en")["states"]
        states = [("", "all"), *((state.value, said[state]) for state in JobState)]
        links = [
            filled_in(_STATE, {"link": filters.query(state=state), "word": word, "current": _current(filters, state)})
            for state, word in states
        ]
        spans = {str(filters.since or ""): f"{_span(filters.since)}", **_SPANS}
        options = [
            filled_in(_SPAN, {"value": value, "word": word, "selected": _selected(filters, value)})
            for value, word in spans.items()
        ]
        values = {
            "states": Markup("".join(links)),
            "state": filled_in(_HIDDEN, {"state": filters.state}) if filters.state else Markup(),
            "spans": Markup("".join(options)),
        }
        texts = {name: readable(getattr(filters, name)) for name in ("path", "owner", "version", "text")}
        return filled_in(_FILTERS, values | texts)

    def failures(self, newest: Iterable[Job]) -> Markup:
        """Return what failed or was lost among the newest jobs, with the reason."""
        failed = [job for job in newest if job.state in (JobState.FAILED, JobState.LOST)][:_FAILURES]
        if not failed:
            return Markup()
        items = Markup("".join(filled_in(_FAILURE, self._values(job)) for job in failed))
        return filled_in(_FAILURES_BOX, {"items": items, "link": Filters(state="failed").query()})

    def table(self, jobs: Iterable[Job]) -> Markup:
        """Return a table of jobs, and what can be done with them."""
        rows = "".join(filled_in(_ROW, self._values(job)) for job in jobs)
        allowed = [action for action in ("cancel", "discard") if action in self._rights]
        words = {"cancel": "Cancel …", "discard": "Discard …"}
        buttons = "".join(filled_in(_ACTION, {"action": action, "word": words[action]}) for action in allowed)
        values = {
            "here": self._filters.query(),
            "head": Markup("<th>Select</th>" if allowed else ""),
            "rows": Markup(rows or _NO_ROWS),
            "actions": Markup(f'<p class="job-actions">{_ALL}{buttons}</p>\n' if allowed and rows else ""),
        }
        return filled_in(_TABLE, values)

    def _values(self, job: Job) -> dict[str, str]:
        look, title = look_of(job), readable(job.title)
        word = assets.words("en")["states"][look]
        badge = {"state": look, "symbol": LOOKS[look][0], "word": f"{word}, kept" if job.kept else word}
        acts = "cancel" in self._rights or "discard" in self._rights
        opens = "output" in self._rights
        linked = filled_in(_LINKED, {"link": self._site.path_to(job.key), "title": title}) if opens else title
        return {
            "box": filled_in(_BOX, {"key": job.key, "title": title}) if acts else Markup(),
            "badge": filled_in(_BADGE, badge),
            "title": linked,
            "reason": self._reason(job),
            "path": self._filter("path", job.asked.get("path") or ""),
            "owner": self._filter("owner", job.owner or ""),
            "version": self._filter("version", job.version),
            "created": datetime.fromtimestamp(job.created_at, UTC).isoformat(timespec="seconds"),
            "ago": _span(self._now - job.created_at),
            "elapsed": "–" if job.started_at is None else _span(job.elapsed(self._now), digits=1),
            "output": _size(job.output_end),
        }

    def _filter(self, name: str, value: str) -> str:
        if not value:
            return "–"
        return filled_in(_LINKED, {"link": self._filters.query(**{name: value}), "title": readable(value)})

    def _reason(self, job: Job) -> Markup:
        """Return why a job ended as it did, with the last line of its traceback where the reason does not have it."""
        if not job.reason:
            return Markup()
        raised = self._raised(job) if job.state is JobState.FAILED else ""
        told = " · ".join(filter(None, [job.reason, raised if raised not in job.reason else ""]))
        return filled_in(_REASON, {"reason": readable(" ".join(told.split()))})

    def _raised(self, job: Job) -> str:
        # What an exception did is in the reason; a framework that made an answer of it printed or logged it.
        if "output" not in self._rights or not job.reason.startswith("the app answered"):
            return ""
        try:
            page = self._site.registry.page(job.key, -_TAIL_BYTES, job=job)
        except (JobNotFound, JobExpired):
            return ""
        return raised_in(page.piece.data.decode("utf-8", "replace"))


def _current(filters: Filters, state: str) -> Markup:
    return Markup(' aria-current="page"' if filters.state == state else "")


def _selected(filters: Filters, value: str) -> Markup:
    return Markup(" selected" if str(filters.since or "") == value else "")


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
