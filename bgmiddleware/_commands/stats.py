"""``jobs stats`` and ``jobs watch``: what a registry counted, and how its jobs go just now."""

import argparse
import json
import time
from collections.abc import Mapping

from .._jobs import Job
from ..registries.base import History, Registry, Spread

__all__ = ["jobs_line", "printable", "run_stats", "run_watch"]

_CLEAR = "\x1b[H\x1b[2J"
_MOST_PATHS = 20
_COUNTS = ("started", "finished", "failed", "cancelled", "lost")
_LEAST = 0.1  # seconds between two looks


def run_stats(registry: Registry, options: argparse.Namespace) -> int:
    """Print how many jobs wait and run, and what was counted of each path in the last minutes."""
    document = _document(registry.history(registry.clock() - 60.0 * (options.minutes - 1)), options.minutes)
    print(json.dumps(document) if options.json else _table(document))
    return 0


def run_watch(registry: Registry, options: argparse.Namespace) -> int:
    """Print that and the newest jobs again and again."""
    rounds = 0
    while True:
        now = registry.clock()
        document = _document(registry.history(now - 60.0 * (options.minutes - 1)), options.minutes)
        jobs = registry.jobs(limit=options.limit)
        if options.json:
            states = [{"key": job.key, "title": job.title, "state": job.state.value} for job in jobs]
            print(json.dumps({**document, "jobs": states}), flush=True)
        else:
            lines = "\n".join(jobs_line(job, now) for job in jobs)
            print(f"{_CLEAR}{_table(document)}\n\n{lines}", flush=True)
        rounds += 1
        if rounds == options.rounds:
            return 0
        time.sleep(max(_LEAST, options.every))


def jobs_line(job: Job, now: float) -> str:
    """Return a job as one line."""
    begun = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(job.created_at))
    owner = f"  ({printable(job.owner)})" if job.owner is not None else ""
    return (
        f"{job.key}  {job.state:9}  {begun}  {job.elapsed(now):8.1f} s"
        f"  {job.output_end:>11,} B  {printable(job.title)}{owner}{'  kept' * job.kept}"
    )


def printable(text: str | None) -> str:
    """Return a text of a client without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else "�" for character in text or "")


def _document(history: History, minutes: int) -> dict[str, object]:
    told = {
        path: {
            **{name: getattr(each, name) for name in _COUNTS},
            "run_time": _told(each.run_time),
            "queue_wait": _told(each.queue_wait),
        }
        for path, each in history.by_path().items()
    }
    level = history.levels[-1]
    return {"minutes": minutes, "waiting": level.waiting, "running": level.running, "paths": told}


def _told(spread: Spread) -> Mapping[str, float | None]:
    longest = spread.longest if spread.count else None
    return {"median": spread.quantile(0.5), "p95": spread.quantile(0.95), "longest": longest}


def _table(document: Mapping[str, object]) -> str:
    lines = [
        f"{document['waiting']} waiting, {document['running']} running; in the last {document['minutes']} minutes:",
        f"{'':40} started finished   failed cancelled     lost   median     95 %  longest",
    ]
    paths = document["paths"]
    assert isinstance(paths, dict)  # noqa: S101  # we made it
    for path, counts in sorted(paths.items(), key=lambda item: -item[1]["started"])[:_MOST_PATHS]:
        numbers = [counts[name] for name in _COUNTS]
        times = [counts["run_time"][name] for name in ("median", "p95", "longest")]
        cells = "".join(f"{number:9}" for number in numbers)
        lines.append(f"{printable(path)[:40]:40}{cells}{''.join(map(_seconds, times))}")
    return "\n".join(lines)


def _seconds(seconds: float | None) -> str:
    return f"{'–':>9}" if seconds is None else f"{seconds:7.2f} s"
