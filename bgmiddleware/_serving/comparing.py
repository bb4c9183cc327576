"""Two runs beside each other: what differs in their outputs, steps, times and results."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from string import Template
from typing import NamedTuple

from .._jobs import Channel, Job, JobState, Steps
from . import assets
from .differences import MOST_LINES, Change, changes_between, keys_of
from .links import unsealed
from .markup import Markup, filled_in
from .negotiate import View, choose
from .plain import plain_page
from .problems import Answer, problem, whole
from .readable import readable
from .visit import Visit, about

__all__ = ["answer_compare", "may_compare"]

_MOST_BYTES = 16 * 1024 * 1024
_MOST_ROWS = 2_000
_LONGEST_LINE = 500
_AROUND = 3  # lines that are shown before and behind a change
_LOOKED_AT = 500  # jobs, for an earlier one of the same owner and title
_CHAIN = 20
_BUSY = "Too many compare runs just now: ask again."

Row = tuple[str, str, str]
"""A row of the comparison: a sign (``" "``, ``-``, ``+``, ``~`` or ``@``), and what is left and right."""

_PAGE = Template("""<h1>$heading</h1>
<p><a href="$this">$this_run</a> <a href="$switch">$switch_word</a></p>
<div class="job-table" role="region" aria-label="$facts" tabindex="0">
<table>
<thead><tr><td></td><th>$earlier</th><th>$later</th><th>$change</th></tr></thead>
<tbody>
$rows</tbody>
</table>
</div>
<h2>$output</h2>
<div class="job-table" role="region" aria-label="$output" tabindex="0">
<table class="job-lines">
<thead><tr><th>$earlier</th><th>$later</th></tr></thead>
<tbody>
$lines</tbody>
</table>
</div>
""")
_FACT = Template("<tr><th>$name</th><td>$old</td><td>$new</td><td>$difference</td></tr>\n")
_LINES: Mapping[str, Template] = {
    " ": Template("<tr><td>$old</td><td>$new</td></tr>\n"),
    "-": Template("<tr><td><del>$old</del></td><td></td></tr>\n"),
    "+": Template("<tr><td></td><td><ins>$new</ins></td></tr>\n"),
    "~": Template("<tr><td><del>$old</del></td><td><ins>$new</ins></td></tr>\n"),
    "@": Template('<tr><td colspan="2">$old</td></tr>\n'),
}


class _Fact(NamedTuple):
    name: str
    old: str
    new: str
    difference: str = ""


def may_compare(visit: Visit, job: Job) -> bool:
    """Whether there may be another run of the job's request that this client sees."""
    return visit.may("compare") and (bool(unsealed(job.rerun_of, visit.token)) or job.owner is not None)


def answer_compare(visit: Visit, job: Job) -> Answer:
    """Answer with what differs between this job and another one that the client sees too: the one whose token
    ``_with`` has, else an earlier run of the same request; as a page for a client that names HTML, else as text."""
    other = _other(visit, job)
    if other is None:
        detail = "There is no other run to compare with: name one that you may see, by _with and its token."
        return problem(visit.environ, 404, "nothing-to-compare", detail)
    held = visit.take_slot_for_work()
    if held is None:
        return visit.refused(_BUSY)
    try:
        ignores = visit.parameters.get("_ignore") == "numbers"
        rows = _bounded(_rows(_lines(visit, other), _lines(visit, job), ignores_numbers=ignores))
    finally:
        held.give_back()
    language = assets.language_of(visit.environ.get("HTTP_ACCEPT_LANGUAGE"))
    said: dict[str, str] = assets.words(language)["compare"]
    facts = _facts(visit, other, job, said)
    if choose(visit.environ.get("HTTP_ACCEPT")) is View.PAGE:
        return _page(visit, job, facts, rows, said, language, ignores_numbers=ignores)
    text = "".join(_text(facts, rows))
    return whole("text/plain; charset=utf-8", text, about(job, "Accept, Accept-Language"))


# Which other one.


def _other(visit: Visit, job: Job) -> Job | None:
    """Return the run to compare with, if this client sees it: of one that did not finish, the last that did."""
    named = visit.parameters.get("_with")
    if named is not None:
        return visit.other_job(named)
    earlier = [*_chain(visit, job), *_of_the_same_owner(visit, job)]
    finished = (each for each in earlier if each.state is JobState.FINISHED)
    first = next(iter(earlier), None)
    return first if job.state is JobState.FINISHED else next(finished, first)


def _chain(visit: Visit, job: Job) -> Iterator[Job]:
    token: str | None = visit.token
    for _ in range(_CHAIN):
        token = unsealed(job.rerun_of, token or "")
        earlier = None if token is None else visit.other_job(token)
        if earlier is None:
            return
        yield earlier
        job = earlier


def _of_the_same_owner(visit: Visit, job: Job) -> list[Job]:
    if job.owner is None or job.owner not in visit.owners:
        return []
    jobs = visit.registry.jobs(limit=_LOOKED_AT)
    alike = (each for each in jobs if (each.owner, each.title) == (job.owner, job.title))
    return [each for each in alike if each.key != job.key and each.created_at <= job.created_at]


# What differs.


def _lines(visit: Visit, job: Job) -> list[str]:
    """Return the lines of an output; where they are too many, the first and the last ones."""
    end, half = job.output_end, _MOST_BYTES // 2
    ranges = [(0, end)] if end <= _MOST_BYTES else [(0, half), (end - half, end)]
    texts = [b"".join(_bytes(visit, job, *each)).decode("utf-8", "replace") for each in ranges]
    parts = [text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else [] for text in texts]
    lines = list(itertools.chain.from_iterable(parts))
    if len(lines) > MOST_LINES:
        parts, most = [lines[: MOST_LINES // 2], lines[-MOST_LINES // 2 :]], len(lines) - MOST_LINES
        return [*parts[0], f"[… {most:,} lines are left out …]", *parts[1]]
    return lines if len(parts) == 1 else [*parts[0], "[… left out …]", *parts[1]]


def _bytes(visit: Visit, job: Job, begin: int, end: int) -> Iterator[bytes]:
    while begin < end:
        piece = visit.registry.read(job.key, Channel.OUTPUT, begin, end - begin)
        if piece.end <= begin:
            return
        yield piece.data[: max(0, end - piece.offset)]
        begin = piece.end


def _rows(old: list[str], new: list[str], *, ignores_numbers: bool) -> Iterator[Row]:
    """Yield the changes with a few lines around each; none where there are no changes."""
    keys = (keys_of(lines, ignores_numbers=ignores_numbers) for lines in (old, new))
    at = new_at = 0  # behind the last change
    changes = changes_between(*keys)
    if not changes:
        return
    for number, change in enumerate([*changes, Change(len(old), len(old), len(new), len(new))]):
        is_last = number == len(changes)
        before = range(at, change.begin)
        head = before[:_AROUND] if at or new_at else before[:0]
        tail = before[:0] if is_last else before[max(len(head), len(before) - _AROUND) :]
        yield from ((" ", old[line], new[new_at + line - at]) for line in head)
        if len(before) > len(head) + len(tail):
            yield "@", f"… {len(before) - len(head) - len(tail):,} …", ""
        yield from ((" ", old[line], new[new_at + line - at]) for line in tail)
        gone, came = old[change.begin : change.end], new[change.new_begin : change.new_end]
        for left, right in itertools.zip_longest(gone, came):
            yield "+" if left is None else "-" if right is None else "~", left or "", right or ""
        at, new_at = change.end, change.new_end


def _bounded(rows: Iterable[Row]) -> list[Row]:
    found = list(itertools.islice(rows, _MOST_ROWS + 1))
    if len(found) > _MOST_ROWS:
        found[_MOST_ROWS:] = [("@", "[… further changes are left out …]", "")]
    return [(sign, _shown(old), _shown(new)) for sign, old, new in found]


def _shown(line: str) -> str:
    text = readable(line[: 4 * _LONGEST_LINE]).replace("\n", " ")
    return text if len(text) <= _LONGEST_LINE else f"{text[:_LONGEST_LINE]}…"


def _facts(visit: Visit, old: Job, new: Job, said: Mapping[str, str]) -> list[_Fact]:
    now = visit.registry.clock()
    facts = [
        _Fact(said["state"], _state(old), _state(new)),
        _Fact(said["reason"], readable(old.reason), readable(new.reason)),
        _seconds(said["took"], old.elapsed(now), new.elapsed(now)),
        _seconds(said["cpu_time"], _number(old.receipt.get("cpu_time")), _number(new.receipt.get("cpu_time"))),
        _Fact(said["version"], _version(old), _version(new)),
        _sizes(said["output"], old.output_end, new.output_end),
        _sizes(said["result"], old.body_end, new.body_end),
        *_steps(old, new, now),
    ]
    return [fact for fact in facts if fact.old or fact.new]


def _state(job: Job) -> str:
    return job.state.value if job.response is None else f"{job.state.value}, {readable(job.response.status)}"


def _version(job: Job) -> str:
    return readable(str(job.receipt.get("version") or ""))


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _seconds(name: str, old: float | None, new: float | None) -> _Fact:
    said_old, said_new = ("" if number is None else f"{number:.1f} s" for number in (old, new))
    return _Fact(name, said_old, said_new, "" if old is None or new is None else f"{new - old:+.1f} s")


def _sizes(name: str, old: int, new: int) -> _Fact:
    return _Fact(name, f"{old:,} B", f"{new:,} B", f"{new - old:+,} B" if new != old else "")


def _steps(old: Job, new: Job, now: float) -> Iterator[_Fact]:
    """Yield the steps of both, those of one title beside each other."""
    took: list[dict[tuple[str, int], float]] = []
    for job in (old, new):
        times: dict[tuple[str, int], float] = {}
        elapsed = int(1000 * job.elapsed(now))
        for step in (job.steps or Steps()).within(job.state, elapsed).listed:
            count = next(number for number in itertools.count() if (step.title, number) not in times)
            times[step.title, count] = ((elapsed if step.ended is None else step.ended) - step.begun) / 1000
        took.append(times)
    for title, number in {**took[1], **took[0]}:
        yield _seconds(f"▸ {readable(title)}", took[0].get((title, number)), took[1].get((title, number)))


# How it is said.


def _text(facts: Iterable[_Fact], rows: Iterable[Row]) -> Iterator[str]:
    for name, old, new, difference in facts:
        yield f"{name}: {old or '–'} → {new or '–'}{f' ({difference})' if difference else ''}\n"
    yield "\n"
    gone: list[str] = []
    for sign, old, new in [*rows, ("", "", "")]:
        if sign in ("~", "-"):
            yield f"-{old}\n"
        if sign in ("~", "+"):
            gone.append(f"+{new}\n")
        if sign not in ("~", "+", "-"):
            yield from gone
            gone.clear()
            yield f"{sign}{new or old}\n" if sign else ""


def _page(
    visit: Visit,
    job: Job,
    facts: Iterable[_Fact],
    rows: Iterable[Row],
    said: Mapping[str, str],
    language: str,
    *,
    ignores_numbers: bool,
) -> Answer:
    named = {name: value for name, value in visit.parameters.items() if name == "_with"}
    switch = named if ignores_numbers else {**named, "_ignore": "numbers"}
    heading = f"{said['compare']}: {readable(job.title)}"
    values = {
        **said,
        "heading": heading,
        "this": visit.link(),
        "switch": visit.link(_view=View.COMPARE, **switch),
        "switch_word": said["all" if ignores_numbers else "ignore"],
        "rows": Markup("".join(filled_in(_FACT, fact._asdict()) for fact in facts)),
        "lines": Markup("".join(filled_in(_LINES[sign], {"old": old, "new": new}) for sign, old, new in rows)),
    }
    headers = about(job, "Accept, Accept-Language")
    return plain_page(heading, filled_in(_PAGE, values), headers, language=language, looks="job-compare")
