"""What the index has counted: each function is a few statements on a database of :class:`Index`."""

import json
import sqlite3
from collections.abc import Mapping

from .._history import KEPT, MOST_PATHS, OTHER, History, Level, added, minutes_of

__all__ = ["count", "history", "note_level"]

_json = json.JSONEncoder(separators=(",", ":")).encode


def count(database: sqlite3.Connection, now: float, path: str, events: Mapping[str, int]) -> None:
    """Count *events* of a path in this minute."""
    minute = int(now // 60)
    path = _counted_as(database, path, minute)
    row = database.execute("SELECT numbers FROM counts WHERE minute = ? AND path = ?", (minute, path)).fetchone()
    numbers = added(json.loads(row[0]) if row else {}, events)
    values = (minute, path, _json(numbers))
    database.execute("INSERT OR REPLACE INTO counts (minute, path, numbers) VALUES (?, ?, ?)", values)


def _counted_as(database: sqlite3.Connection, path: str, minute: int) -> str:
    """Return *path*, or ``OTHER`` where that is one too many."""
    if path == OTHER:
        return path
    row = database.execute("SELECT minute FROM paths WHERE path = ?", (path,)).fetchone()
    if row is None:
        database.execute("DELETE FROM paths WHERE minute <= ?", (minute - KEPT,))
        if database.execute("SELECT COUNT(*) FROM paths").fetchone()[0] >= MOST_PATHS - 1:
            return OTHER
    if row is None or row[0] != minute:
        database.execute("INSERT OR REPLACE INTO paths (path, minute) VALUES (?, ?)", (path, minute))
    return path


def note_level(database: sqlite3.Connection, now: float) -> None:
    """Note how many jobs wait and run; forget what was counted more than a day ago."""
    minute = int(now // 60)
    values = (minute, *_level(database))
    database.execute("INSERT OR REPLACE INTO levels (minute, waiting, running) VALUES (?, ?, ?)", values)
    for table in ("counts", "levels"):
        database.execute(f"DELETE FROM {table} WHERE minute <= ?", (minute - KEPT,))  # noqa: S608  # one of two words


def history(database: sqlite3.Connection, first: int, last: int) -> History:
    """Return what was counted from one minute to another one, and how many jobs wait and run now."""
    within = (first, last)
    counted = database.execute("SELECT minute, path, numbers FROM counts WHERE minute BETWEEN ? AND ?", within)
    minutes = minutes_of([(minute, path, json.loads(numbers)) for minute, path, numbers in counted.fetchall()])
    found = database.execute("SELECT minute, waiting, running FROM levels WHERE minute BETWEEN ? AND ?", within)
    levels = [Level(60.0 * minute, waiting, running) for minute, waiting, running in found.fetchall() if minute != last]
    return History(minutes, (*levels, Level(60.0 * last, *_level(database))))


def _level(database: sqlite3.Connection) -> tuple[int, int]:
    # Two statements: each counts within the index of its state.
    found = [
        int(database.execute("SELECT COUNT(*) FROM jobs WHERE state = ?", (state,)).fetchone()[0])
        for state in ("pending", "running")
    ]
    return found[0], found[1]
