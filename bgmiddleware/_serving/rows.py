"""The list of all jobs as HTML: filters that are links, what failed of late, and a row for each job."""

from collections.abc import Collection, Iterable, Mapping, Sequence
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
from .timed import span
from .visit import Site

__all__ = ["Rows", "counted"]

_TAIL_BYTES = 8192
_FAILURES = 5
_COLUMNS = (
    *(("state", "state"), ("title", "job"), ("path", "path"), ("owner", "owner"), ("version", "version")),
    *(("created", "created"), ("duration", "duration"), ("output", "output")),
)
"""What each column is sorted by, and the word for it."""

_FILTERS = Template("""<nav aria-label="$w_states">$states</nav>
<form method="get" class="job-filters">
$hidden<label>$w_path <input name="path" value="$path"></label>
<label>$w_owner <input name="owner" value="$owner"></label>
<label>$w_version <input name="version" value="$version"></label>
<label>$w_text <input type="search" name="text" value="$text"></label>
<label>$w_within <select name="since">$spans</select></label>
<button>$w_filter</button> <a href="?">$w_all</a>
</form>
""")
_STATE = Template('<a href="$link"$current>$word</a>\n')
_SPAN = Template('<option value="$value"$selected>$word</option>')
_HIDDEN = Template('<input type="hidden" name="$name" value="$value">\n')
_FAILURES_BOX = Template(
    '<section class="job-failures" aria-labelledby="failures"><h2 id="failures">$w_failed_lately</h2>\n<ul>\n'
    '$items</ul>\n<a href="$link">$w_all_failed</a></section>\n'
)
_FAILURE = Template('<li>$badge $title <time datetime="$created">$ago</time> $reason</li>\n')
_TABLE = Template("""<form method="post" action="$here">
<div class="job-table" role="region" aria-label="$w_title" tabindex="0">
<table>
<thead><tr>$head</tr></thead>
<tbody>
$rows</tbody>
</table>
</div>
$actions</form>
""")
_BADGE = Template('<span class="job-badge" data-job="$state">$symbol $word</span>')
_ROW = Template(
    "<tr>$box<td>$badge</td><td>$title$progress$reason</td><td>$path</td><td>$owner</td><td>$version</td>"
    '<td><time datetime="$created">$ago</time></td><td>$elapsed</td><td>$output</td></tr>\n'
)
_BOX = Template('<td><input type="checkbox" name="key" value="$key" aria-label="$select"></td>')
_HEAD = Template('<th scope="col"$sorted><a href="$link">$word</a>$arrow</th>')
_LINKED = Template('<a href="$link">$title</a>')
_REASON = Template('<br><small class="job-reason">$reason</small>')
_PROGRESS = Template('<br><small class="job-progress">$told</small>')
_NO_ROWS = Template('<tr><td colspan="9">$none</td></tr>\n')
_ACTION = Template('<button name="_action" value="$action">$word …</button>\n')
_ACTIONS = Template(
    '<p class="job-actions"><label><input type="checkbox" name="_all" value="yes"> $word</label>\n$buttons</p>\n'
)


class Rows:
    """What an operator with these *rights* sees in a *language*, who asks with these *filters*."""

    def __init__(self, site: Site, rights: Collection[str], filters: Filters, language: str) -> None:
        self._site = site
        self._rights = rights
        self._filters = filters
        self._now = site.registry.clock()
        said = assets.words(language)
        self._states: Mapping[str, str] = said["states"]
        self._said: Mapping[str, str] = said["list"]
        self._spans: Mapping[str, str] = said["spans"]
        self._words = {f"w_{name}": word for name, word in said["list"].items()}

    def filters(self) -> Markup:
        """Return the links and the form by which jobs are filtered."""
        filters = self._filters
        states = [("", self._said["any_state"]), *((state.value, self._states[state]) for state in JobState)]
        links = [
            filled_in(_STATE, {"link": filters.query(state=state), "word": word, "current": _current(filters, state)})
            for state, word in states
        ]
        spans = {str(filters.since or ""): f"{span(filters.since)}", **self._spans}
        options = [
            filled_in(_SPAN, {"value": value, "word": word, "selected": _selected(filters, value)})
            for value, word in spans.items()
        ]
        hidden = {name: getattr(filters, name) for name in ("state", "sort")}
        kept = [filled_in(_HIDDEN, {"name": name, "value": value}) for name, value in hidden.items() if value]
        values = {"states": Markup("".join(links)), "hidden": Markup("".join(kept)), "spans": Markup("".join(options))}
        texts = {name: readable(getattr(filters, name)) for name in ("path", "owner", "version", "text")}
        return filled_in(_FILTERS, self._words | values | texts)

    def failures(self, newest: Iterable[Job]) -> Markup:
        """Return what failed or was lost among the newest jobs, with the reason."""
        failed = [job for job in newest if job.state in (JobState.FAILED, JobState.LOST)][:_FAILURES]
        if not failed:
            return Markup()
        items = Markup("".join(filled_in(_FAILURE, self._values(job)) for job in failed))
        return filled_in(_FAILURES_BOX, {**self._words, "items": items, "link": Filters(state="failed").query()})

    def table(self, jobs: Sequence[Job]) -> Markup:
        """Return a table of jobs, and what can be done with them."""
        rows = "".join(filled_in(_ROW, self._values(job)) for job in jobs)
        acts = [action for action in ("cancel", "discard", "rerun") if action in self._rights]
        if not any(job.keeps_request for job in jobs):
            acts = [action for action in acts if action != "rerun"]
        buttons = "".join(filled_in(_ACTION, {"action": action, "word": self._said[action]}) for action in acts)
        actions = filled_in(_ACTIONS, {"word": self._said["all_match"], "buttons": Markup(buttons)})
        select = f"<th>{self._said['select']}</th>" if self._selects else ""
        values = {
            "here": self._filters.query(),
            "head": Markup(select + "".join(self._head(name, self._said[word]) for name, word in _COLUMNS)),
            "rows": Markup(rows) or filled_in(_NO_ROWS, {"none": self._said["none"]}),
            "actions": actions if acts and rows else Markup(),
        }
        return filled_in(_TABLE, self._words | values)

    @property
    def _selects(self) -> bool:
        return not {"cancel", "discard", "rerun"}.isdisjoint(self._rights)

    def _head(self, name: str, word: str) -> Markup:
        """Return the head of a column: a link that sorts by it, the other way round where that is so already."""
        order, link = self._filters.order_by(name)
        looks = {
            "": ("", ""),
            "ascending": (' aria-sort="ascending"', " ↑"),
            "descending": (' aria-sort="descending"', " ↓"),
        }
        sorted_, arrow = looks[order]
        return filled_in(_HEAD, {"sorted": Markup(sorted_), "link": link, "word": word, "arrow": arrow})

    def _values(self, job: Job) -> dict[str, str]:
        look, title = look_of(job), readable(job.title)
        word = f"{self._states[look]}, {self._said['kept']}" if job.kept else self._states[look]
        badge = {"state": look, "symbol": LOOKS[look][0], "word": word}
        opens = "output" in self._rights
        linked = filled_in(_LINKED, {"link": self._site.path_to(job.key), "title": title}) if opens else title
        select = {"key": job.key, "select": self._said["select_one"].format(title=title)}
        return {
            "box": filled_in(_BOX, select) if self._selects else Markup(),
            "badge": filled_in(_BADGE, badge),
            "title": linked,
            "progress": _progress(job),
            "reason": self._reason(job),
            "path": self._filter("path", job.asked.get("path") or ""),
            "owner": self._filter("owner", job.owner or ""),
            "version": self._filter("version", job.version),
            "created": datetime.fromtimestamp(job.created_at, UTC).isoformat(timespec="seconds"),
            "ago": self._said["ago"].format(time=span(self._now - job.created_at)),
            "elapsed": "–" if job.started_at is None else span(job.elapsed(self._now), digits=1),
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


def _progress(job: Job) -> Markup:
    """Return how far a running job is."""
    progress = job.current_progress
    if job.state is not JobState.RUNNING or progress is None:
        return Markup()
    percent = "" if progress.percent is None else f"{progress.percent:.0f} %"
    told = " · ".join(filter(None, [percent, readable(progress.message)]))
    return filled_in(_PROGRESS, {"told": told}) if told else Markup()


def counted(count: int, said: Mapping[str, str]) -> str:
    """Return how many jobs, in words."""
    return said["one"] if count == 1 else said["count"].format(count=count)


def _current(filters: Filters, state: str) -> Markup:
    return Markup(' aria-current="page"' if filters.state == state else "")


def _selected(filters: Filters, value: str) -> Markup:
    return Markup(" selected" if str(filters.since or "") == value else "")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
