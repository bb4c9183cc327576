"""What a registry counted, as charts that the server draws: to be looked at, and beside each its numbers as a table."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from string import Template
from typing import Any

from ..registries.base import BOUNDS, History, Level, Minute, Registry
from . import assets
from .markup import Markup, filled_in
from .readable import readable
from .recent import Recent

__all__ = ["SPANS", "Charts", "history_document"]

SPANS = {"hour": (3600.0, 60.0), "day": (86400.0, 900.0)}
"""How far back a chart goes, and how long the time is that one of its bars stands for; in seconds."""

_FRESH = {"hour": 5.0, "day": 60.0}
_ENDS = ("finished", "failed", "cancelled", "lost")
_WIDTH, _HEIGHT = 600, 90
_MOST_PATHS = 20

_CHARTS = Template("""<section class="job-charts" aria-labelledby="charts">
<h2 id="charts">$w_last</h2> <nav aria-label="$w_time">$spans</nav>
<div class="job-figures">
$figures</div>
$paths</section>
""")
_FIGURE = Template("""<figure>
<figcaption>$title $key</figcaption>
<svg role="img" aria-label="$told" viewBox="0 0 $width $height" preserveAspectRatio="none">$shapes</svg>
<details><summary>$w_numbers</summary><div class="job-table" role="region" aria-label="$title" tabindex="0"><table>
<thead><tr><th>$w_from</th>$heads</tr></thead>
<tbody>$rows</tbody>
</table></div></details>
</figure>
""")
_KEY = Template('<span class="job-key job-$name">■ $word</span>')
_PATHS = Template("""<div class="job-table" role="region" aria-label="$w_paths" tabindex="0">
<table>
<caption>$w_by_path</caption>
<thead><tr><th>$w_path</th><th>$w_started</th><th>$w_failed</th><th>$w_run_time</th><th>$w_most</th><th>$w_longest</th>
<th>$w_waited</th><th>$w_most</th></tr></thead>
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
        self._drawn = Recent[Markup](clock)

    def of(self, registry: Registry, span: str, language: str, link: Callable[[str], str]) -> Markup:
        """Return the charts of a *span*, one of ``SPANS``, in a *language*; *link* gives a reference to the jobs of a
        path."""

        def draw() -> Markup:
            return _charts(registry, span, assets.words(language), link)

        return self._drawn.of((span, language), _FRESH[span], draw)


def history_document(history: History) -> dict[str, Any]:
    """Return what was counted as JSON has it: instants and durations in seconds."""
    return {
        "bounds": list(BOUNDS),
        "minutes": [asdict(minute) for minute in history.minutes],
        "levels": [level._asdict() for level in history.levels],
    }


def _charts(registry: Registry, span: str, words: Mapping[str, Any], link: Callable[[str], str]) -> Markup:
    back, step = SPANS[span]
    now = registry.clock()
    history = registry.history(now - back + 60.0)
    first = (now - back) // step * step + step
    at = [first + step * number for number in range(round(back / step))]
    said = words["charts"]
    links = (f'<a href="?span={name}"{_current(name, span)}>{said[name]}</a>' for name in SPANS)
    figures = [_ends(history.minutes, at, step, words), _levels(history.levels, at, step, said)]
    values = {
        "w_last": said[f"last_{span}"],
        "w_time": said["time"],
        "spans": Markup(" ".join(links)),
        "figures": Markup("".join(figures)),
        "paths": _paths(history, said, link),
    }
    return filled_in(_CHARTS, values)


def _current(name: str, span: str) -> str:
    return ' aria-current="true"' if name == span else ""


def _ends(minutes: Iterable[Minute], at: Sequence[float], step: float, words: Mapping[str, Any]) -> Markup:
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
    names = {name: words["states"][name] for name in _ENDS}
    told = ", ".join(f"{total} {word}" for word, total in zip(names.values(), totals, strict=True))
    said = words["charts"]
    return _figure("ended", names, f"{told}; {said['at_most'].format(count=top)}", shapes, said, at, sums)


def _levels(levels: Iterable[Level], at: Sequence[float], step: float, said: Mapping[str, str]) -> Markup:
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
    told = f"{said['now'].format(waiting=rows[-1][0], running=rows[-1][1])}; {said['at_most'].format(count=top)}"
    names = {name: said[name] for name in ("waiting", "running")}
    return _figure("levels", names, told, shapes, said, at, rows)


def _figure(
    name: str,
    names: Mapping[str, str],
    told: str,
    shapes: Iterable[str],
    said: Mapping[str, str],
    at: Sequence[float],
    rows: Sequence[Sequence[int]],
) -> Markup:
    lines = []
    for begin, row in zip(at, rows, strict=True):
        if any(row):
            cells = "".join(f"<td>{number}</td>" for number in row)
            lines.append(f"<tr><td>{datetime.fromtimestamp(begin, UTC):%H:%M} UTC</td>{cells}</tr>")
    title = said[name]
    values = {
        "w_numbers": said["numbers"],
        "w_from": said["from"],
        "title": title,
        "told": f"{title}: {told}",
        "key": Markup(" ".join(filled_in(_KEY, {"name": key, "word": word}) for key, word in names.items())),
        "shapes": Markup("".join(shapes)),
        "heads": Markup("".join(f"<th>{word}</th>" for word in names.values())),
        "rows": Markup("".join(lines)),
        "width": str(_WIDTH),
        "height": str(_HEIGHT),
    }
    return filled_in(_FIGURE, values)


def _paths(history: History, said: Mapping[str, str], link: Callable[[str], str]) -> Markup:
    busiest_first = sorted(history.by_path().values(), key=lambda each: -each.run_time.total)
    sums = busiest_first[:_MOST_PATHS]
    if not sums:
        return Markup()
    longest = max(each.run_time.longest for each in sums) or 1.0
    words = {f"w_{name}": word for name, word in said.items()}
    return filled_in(_PATHS, {**words, "rows": Markup("".join(_path(each, longest, link) for each in sums))})


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
    if seconds is None:
        return "–"
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"
