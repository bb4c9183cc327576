"""What a registry counted, as charts that the server draws: to be looked at, and beside each its numbers as a table."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from string import Template
from typing import Any

from ..registries.base import BOUNDS, History, Level, Minute, Registry
from .markup import Markup, filled_in
from .readable import readable

__all__ = ["SPANS", "Charts", "history_document"]

SPANS = {"hour": (3600.0, 60.0), "day": (86400.0, 900.0)}
"""How far back a chart goes, and how long the time is that one of its bars stands for; in seconds."""

_FRESH = {"hour": 5.0, "day": 60.0}
_ENDS = ("finished", "failed", "cancelled", "lost")
_WIDTH, _HEIGHT = 600, 90
_MOST_PATHS = 20

_CHARTS = Template("""<section class="job-charts" aria-labelledby="charts">
<h2 id="charts">The last $span</h2> <nav aria-label="Time">$spans</nav>
<div class="job-figures">
$figures</div>
$paths</section>
""")
_FIGURE = Template("""<figure>
<figcaption>$title $key</figcaption>
<svg role="img" aria-label="$told" viewBox="0 0 $width $height" preserveAspectRatio="none">$shapes</svg>
<details><summary>Numbers</summary><div class="job-table" role="region" aria-label="$title" tabindex="0"><table>
<thead><tr><th>From</th>$heads</tr></thead>
<tbody>$rows</tbody>
</table></div></details>
</figure>
""")
_KEY = Template('<span class="job-key job-$name">■ $name</span>')
_PATHS = Template("""<div class="job-table" role="region" aria-label="Paths" tabindex="0">
<table>
<caption>By path</caption>
<thead><tr><th>Path</th><th>Started</th><th>Failed</th><th>Run time: median</th><th>95 %</th><th>Longest</th>
<th>Waited: median</th><th>95 %</th></tr></thead>
<tbody>
$rows</tbody>
</table>
</div>
""")
_PATH = Template(
    '<tr><td><a href="$link">$path</a></td><td>$started</td><td>$failed</td>'
    "<td>$bar $median</td><td>$most</td><td>$longest</td><td>$waited</td><td>$waited_most</td></tr>\n"
)
_BAR = Template(
    '<svg class="job-bar" aria-hidden="true" viewBox="0 0 100 10" preserveAspectRatio="none">'
    '<rect class="job-most" width="$most" height="10"/><rect class="job-median" width="$median" height="10"/></svg>'
)


class Charts:
    """The charts of one registry. They are drawn anew only every few seconds, however many look. Any thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()  # guards the next
        self._drawn: dict[str, tuple[float, Markup]] = {}

    def of(self, registry: Registry, span: str, link: Callable[[str], str]) -> Markup:
        """Return the charts of a *span*, one of ``SPANS``; *link* gives a reference to the jobs of a path."""
        now = self._clock()
        with self._lock:
            drawn_at, drawn = self._drawn.get(span, (-_FRESH[span], Markup()))
        if now - drawn_at < _FRESH[span]:
            return drawn
        drawn = _charts(registry, span, link)
        with self._lock:
            self._drawn[span] = now, drawn
        return drawn


def history_document(history: History) -> dict[str, Any]:
    """Return what was counted as JSON has it: instants and durations in seconds."""
    return {
        "bounds": list(BOUNDS),
        "minutes": [asdict(minute) for minute in history.minutes],
        "levels": [level._asdict() for level in history.levels],
    }


def _charts(registry: Registry, span: str, link: Callable[[str], str]) -> Markup:
    back, step = SPANS[span]
    now = registry.clock()
    history = registry.history(now - back + 60.0)
    first = (now - back) // step * step + step
    at = [first + step * number for number in range(round(back / step))]
    links = (f'<a href="?span={name}"{_current(name, span)}>{name}</a>' for name in SPANS)
    figures = [_ends(history.minutes, at, step), _levels(history.levels, at, step)]
    values = {
        "span": span,
        "spans": Markup(" ".join(links)),
        "figures": Markup("".join(figures)),
        "paths": _paths(history, link),
    }
    return filled_in(_CHARTS, values)


def _current(name: str, span: str) -> str:
    return ' aria-current="true"' if name == span else ""


def _ends(minutes: Iterable[Minute], at: Sequence[float], step: float) -> Markup:
    """Draw how many jobs ended, by state: a stack for each time."""
    sums = [[0] * len(_ENDS) for _ in at]
    for minute in minutes:
        number = int((minute.at - at[0]) // step)
        if 0 <= number < len(at):
            for place, name in enumerate(_ENDS):
                sums[number][place] += getattr(minute, name)
    top = max(1, *(sum(each) for each in sums))
    width, shapes = _WIDTH / len(at), []
    for number, each in enumerate(sums):
        y = float(_HEIGHT)
        for name, count in zip(_ENDS, each, strict=True):
            height = _HEIGHT * count / top
            y -= height
            if count:
                box = f'x="{number * width:.1f}" y="{y:.1f}" width="{width - 1:.1f}" height="{height:.1f}"'
                shapes.append(f'<rect class="job-{name}" {box}/>')
    totals = [sum(column) for column in zip(*sums, strict=True)]
    told = ", ".join(f"{total} {name}" for name, total in zip(_ENDS, totals, strict=True))
    return _figure("Jobs that ended", _ENDS, told + f"; at most {top} at a time", shapes, at, sums)


def _levels(levels: Iterable[Level], at: Sequence[float], step: float) -> Markup:
    """Draw how many jobs waited and ran: a line each. Where nobody looked it is as it was before."""
    found = {int((level.at - at[0]) // step): [level.waiting, level.running] for level in levels}
    rows, last = [], [0, 0]
    for number in range(len(at)):
        last = found.get(number, last)
        rows.append(last)
    top = max(1, *(max(row) for row in rows))
    width, shapes = _WIDTH / len(at), []
    for place, name in enumerate(("waiting", "running")):
        heights = [_HEIGHT - (_HEIGHT - 2) * row[place] / top for row in rows]
        steps = " ".join(f"L{n * width:.1f} {y:.1f}H{(n + 1) * width:.1f}" for n, y in enumerate(heights))
        shapes.append(f'<path class="job-{name}" d="M{steps[1:]}"/>')
    told = f"now {rows[-1][0]} waiting, {rows[-1][1]} running; at most {top} at a time"
    return _figure("Waiting and running", ("waiting", "running"), told, shapes, at, rows)


def _figure(
    title: str,
    names: Sequence[str],
    told: str,
    shapes: Iterable[str],
    at: Sequence[float],
    rows: Sequence[Sequence[int]],
) -> Markup:
    lines = []
    for begin, row in zip(at, rows, strict=True):
        if any(row):
            cells = "".join(f"<td>{number}</td>" for number in row)
            lines.append(f"<tr><td>{datetime.fromtimestamp(begin, UTC):%H:%M} UTC</td>{cells}</tr>")
    values = {
        "title": title,
        "told": f"{title}: {told}",
        "key": Markup(" ".join(filled_in(_KEY, {"name": name}) for name in names)),
        "shapes": Markup("".join(shapes)),
        "heads": Markup("".join(f"<th>{name}</th>" for name in names)),
        "rows": Markup("".join(lines)),
        "width": str(_WIDTH),
        "height": str(_HEIGHT),
    }
    return filled_in(_FIGURE, values)


def _paths(history: History, link: Callable[[str], str]) -> Markup:
    busiest_first = sorted(history.by_path().values(), key=lambda each: -each.run_time.total)
    sums = busiest_first[:_MOST_PATHS]
    if not sums:
        return Markup()
    longest = max(each.run_time.longest for each in sums) or 1.0
    return filled_in(_PATHS, {"rows": Markup("".join(_path(each, longest, link) for each in sums))})


def _path(each: Minute, longest: float, link: Callable[[str], str]) -> Markup:
    ran, waited = each.run_time, each.queue_wait
    median, most = ran.quantile(0.5), ran.quantile(0.95)
    bar = {"median": f"{100 * (median or 0.0) / longest:.1f}", "most": f"{100 * (most or 0.0) / longest:.1f}"}
    values = {
        "link": link(each.path),
        "path": readable(each.path),
        "started": str(each.started),
        "failed": str(each.failed + each.lost),
        "bar": filled_in(_BAR, bar),
        "median": _seconds(median),
        "most": _seconds(most),
        "longest": _seconds(ran.longest if ran.count else None),
        "waited": _seconds(waited.quantile(0.5)),
        "waited_most": _seconds(waited.quantile(0.95)),
    }
    return filled_in(_PATH, values)


def _seconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"
