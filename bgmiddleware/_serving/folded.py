"""The output as it stands on the page before a script draws it: steps and groups fold, and what came on stderr is
marked. ``static/lines.js`` folds the same in the same way."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from string import Template

from .._jobs import Job, JobState, Step, Steps, StepState
from ..registries.base import Piece
from .markup import Markup, filled_in
from .readable import readable
from .timed import Came, Streams, span
from .visit import Visit

__all__ = ["folded"]

_SCREEN = 40  # lines: what is not longer is not folded
_DEEPEST = 40  # how many folds are within each other: browsers have a limit, and so has a narrow screen
_MOST = 500

# What GitHub, GitLab and Buildkite take for the begin and the end of a part.
_MARKS = re.compile(
    r"(?P<group>::group::)|(?P<end>::endgroup::)|(?:\x1b\[0K)?section_start:\d+:(?P<name>[\w.-]+)"
    r"|[^\r\n]*section_end:\d+:(?P<ended>[\w.-]+)|(?P<sign>---|\+\+\+) (?=\S)(?![^\r\n]* ---$)"
)
_BEFORE_TITLE = re.compile(r"^( *)(?:▸ |::group::|--- |\+\+\+ )")
_SIGNS = {StepState.DONE: "✓", StepState.FAILED: "✗", StepState.RUNNING: "…", StepState.CANCELLED: "–"}

_PLAIN = Template('<pre id="job-text" class="terminal">$text</pre>')
_FOLDED = Template('<div id="job-text" class="terminal">$parts</div>')
_HEAD = Template('<details class="job-part"$open><summary>$title <small>$sign $took</small></summary>')
_TAIL = Markup("</details>")
_RUN = Template("<pre>$text</pre>")
_STREAMS = {"stdout": Template("<span>$text</span>"), "stderr": Template("<span data-stderr>$text</span>")}


@dataclass(frozen=True, slots=True)
class _Fold:
    """The lines from *first*, its head, to before *last*; that is None where it has not ended."""

    first: int
    last: int | None = None
    state: StepState = StepState.RUNNING
    name: str = ""
    took: float | None = None
    is_shown: bool = False
    """Whether its mark says that it is open."""
    hides: int | None = None
    """The line that says that it ended, and nothing else."""


def folded(visit: Visit, job: Job, piece: Piece, output: str) -> tuple[Markup, bool]:
    """Return a piece of the output, which reads *output*, as an element; and whether something in it came on stderr.

    While the job runs, all is open: the page is loaded again and again.
    """
    lines = re.findall(rb"[^\n]*\n|[^\n]+", piece.data)
    starts = [piece.offset]
    for line in lines:
        starts.append(starts[-1] + len(line))
    texts = [line.decode("utf-8", "replace") for line in lines]
    streams = Streams(job)
    came = [streams.at(start) or "stdout" for start in starts[:-1]]
    folds = [*_steps(visit, job, starts), *_groups(visit, job, starts, texts)]
    if not folds and "stderr" not in came:
        return filled_in(_PLAIN, {"text": output}), False
    folds.sort(key=lambda fold: fold.first)
    parts = Markup("".join(_parts(job, texts, came, folds[:_MOST])))
    return filled_in(_FOLDED, {"parts": parts}), "stderr" in came


# What folds.


def _steps(visit: Visit, job: Job, starts: Sequence[int]) -> Iterator[_Fold]:
    now = job.elapsed(visit.registry.clock())
    for step in (job.steps or Steps()).within(job.state, int(1000 * now)).listed:
        if starts[0] <= step.start < starts[-1]:
            last = None if step.end is None else bisect_left(starts, step.end)
            yield _Fold(bisect_right(starts, step.start) - 1, last, step.state, took=_took(step, now))


def _took(step: Step, now: float) -> float:
    return (now if step.ended is None else step.ended / 1000) - step.begun / 1000


def _groups(visit: Visit, job: Job, starts: Sequence[int], texts: Sequence[str]) -> Iterator[_Fold]:
    """Yield the groups, each with its state and how long it took."""
    found = _marked(texts)
    needed = {line for fold in found for line in (fold.first, (fold.last or len(texts)) - 1)}
    came = Came(visit.registry, visit.key, starts[0])
    times = {line: came.at(starts[line + 1] - 1) / 1000 for line in sorted(needed)}
    now = job.elapsed(visit.registry.clock())
    if not job.state.ended:
        state = StepState.RUNNING
    else:
        state = StepState.DONE if job.state is JobState.FINISHED else StepState.FAILED
    for fold in found:
        end = now if fold.last is None else times[fold.last - 1]
        yield replace(fold, state=state if fold.last is None else StepState.DONE, took=end - times[fold.first])


def _marked(texts: Sequence[str]) -> list[_Fold]:
    found: list[_Fold] = []
    for line, text in enumerate(texts):
        mark = _MARKS.match(text)
        if mark is None or len(found) >= _MOST:
            continue
        if mark["end"]:
            _close(found, "", line + 1, hides=line)
        elif mark["ended"]:
            _close(found, f":{mark['ended']}", line)
        elif mark["sign"]:
            before = _close(found, "-", line)
            # The head of a difference is none of Buildkite's.
            if mark["sign"] == "+++" and before is not None and before.first == line - 1 and not before.is_shown:
                found.remove(before)
            else:
                found.append(_Fold(line, name="-", is_shown=mark["sign"] == "+++"))
        else:
            found.append(_Fold(line, name=f":{mark['name']}" if mark["name"] else ""))
    return found


def _close(found: list[_Fold], name: str, last: int, hides: int | None = None) -> _Fold | None:
    """Close the innermost open one of that name; return it as it is then, if there is one."""
    for number in range(len(found) - 1, -1, -1):
        fold = found[number]
        if fold.name == name and fold.last is None:
            found[number] = replace(fold, last=last, hides=hides)
            return found[number]
    return None


# How it looks.


def _parts(job: Job, texts: Sequence[str], came: Sequence[str], folds: Sequence[_Fold]) -> Iterator[Markup]:
    heads = {fold.first: fold for fold in reversed(folds)}
    hidden = {fold.hides for fold in folds}
    failed = [fold.first for fold in folds if fold.state is StepState.FAILED]
    ends: list[int] = []  # of those that are open
    run: list[int] = []
    for line in range(len(texts)):
        is_head = line in heads and len(ends) < _DEEPEST
        if run and (is_head or ends[-1:] == [line]):
            yield _run(run, texts, came)
            run = []
        while ends and ends[-1] <= line:
            ends.pop()
            yield _TAIL
        if is_head:
            fold = heads[line]
            ends.append(min([fold.last or len(texts), *ends[-1:]]))
            yield _head(fold, texts[line], _is_open(job, fold, len(texts), failed))
        elif line not in hidden:
            run.append(line)
    if run:
        yield _run(run, texts, came)
    yield from [_TAIL] * len(ends)


def _run(lines: Sequence[int], texts: Sequence[str], came: Sequence[str]) -> Markup:
    """Return lines that stand below each other."""
    parts = (
        filled_in(_STREAMS[stream], {"text": readable("".join(texts[line] for line in run))})
        for stream, run in groupby(lines, lambda line: came[line])
    )
    return filled_in(_RUN, {"text": Markup("".join(parts))})


def _head(fold: _Fold, text: str, is_open: bool) -> Markup:
    title = _BEFORE_TITLE.sub(r"\1", readable(text)).rstrip()
    took = "" if fold.took is None else span(max(0.0, fold.took), 1)
    values = {"open": Markup(" open" if is_open else ""), "title": title, "sign": _SIGNS[fold.state], "took": took}
    return filled_in(_HEAD, values)


def _is_open(job: Job, fold: _Fold, count: int, failed: Sequence[int]) -> bool:
    if not job.state.ended or fold.state is not StepState.DONE or fold.is_shown:
        return True
    last = count if fold.last is None else fold.last
    is_short = count <= _SCREEN or last - fold.first < 2
    return is_short or last >= count or any(fold.first < line < last for line in failed)
