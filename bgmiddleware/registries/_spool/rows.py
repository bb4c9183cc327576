"""What the index has of jobs: each function is one statement, or two, on a database of :class:`Index`.

The document of a job is the truth. Columns beside it repeat what is searched for.
"""

import contextlib
import json
import sqlite3
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from ..._jobs import Job, JobState
from ...errors import RegistryError
from .. import _changes as changes

__all__ = [
    "Entry",
    "Row",
    "due",
    "find",
    "first_ended",
    "forget",
    "forget_processes",
    "has_expired",
    "hold",
    "insert",
    "keeps_request",
    "kept",
    "last_of_name",
    "newest",
    "place",
    "running",
    "state_of",
    "store",
    "take_cookies",
    "totals",
    "waiting",
]

_UNTIL = "(SELECT until FROM processes WHERE processes.name = jobs.process)"
# As bytes: to read a text that is no UTF-8 would fail for all rows at once.
_ROW = f"SELECT number, bytes, key, CAST(document AS BLOB), process, {_UNTIL} FROM jobs"  # noqa: S608
_CANDIDATES = {
    # What is stored as one state may read as another.
    JobState.LOST: (JobState.LOST, JobState.RUNNING, JobState.PENDING),
    JobState.CANCELLED: (JobState.CANCELLED, JobState.RUNNING),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A place in the index; *number* is the order of coming; *bytes* is what it was last known to keep in files.

    One that is no :class:`Row` has a document that cannot be read: it is damaged, or of a newer version.
    """

    number: int
    bytes: int
    key: str


@dataclass(frozen=True, slots=True)
class Row(Entry):
    """A job as it is stored."""

    job: Job


def find(database: sqlite3.Connection, key: str) -> Row | None:
    """Return the row of a key; ``RegistryError`` where it cannot be read."""
    return _readable(_first(database.execute(f"{_ROW} WHERE key = ?", (key,))))


def last_of_name(database: sqlite3.Connection, name: str) -> Row | None:
    """Return the job that was the last to be given a name; ``RegistryError`` where it cannot be read."""
    return _readable(_first(database.execute(f"{_ROW} WHERE name = ? ORDER BY number DESC LIMIT 1", (name,))))


def has_expired(database: sqlite3.Connection, key: str) -> bool:
    """Whether a job of this key was there, and expired."""
    return database.execute("SELECT 1 FROM expired WHERE key = ?", (key,)).fetchone() is not None


def insert(database: sqlite3.Connection, job: Job) -> Row:
    """Add a pending job."""
    database.execute("DELETE FROM expired WHERE key = ?", (job.key,))
    statement = "INSERT INTO jobs (key, state, rank, due, name, process, document) VALUES (?, ?, ?, ?, ?, ?, ?)"
    names = (job.name or None, job.process or None)
    values = (job.key, job.state, job.priority.rank, job.expires_at, *names, _document(job))
    number = database.execute(statement, values).lastrowid
    assert number is not None  # noqa: S101  # an INSERT has one
    return Row(number, 0, job.key, job)


def hold(database: sqlite3.Connection, process: str, until: float) -> None:
    """Say until when a process is there in whose memory jobs wait."""
    database.execute("INSERT OR REPLACE INTO processes (name, until) VALUES (?, ?)", (process, until))


def forget_processes(database: sqlite3.Connection, now: float) -> None:
    """Forget the processes that are gone for long, with their jobs."""
    database.execute(
        "DELETE FROM processes WHERE until < ? AND NOT EXISTS (SELECT 1 FROM jobs WHERE process = processes.name)",
        (now - _PROCESSES_KEPT,),
    )


def store(database: sqlite3.Connection, row: Row, job: Job, kept: int | None = None) -> None:
    """Replace a job of which *kept* bytes are in files (None: as many as before)."""
    due = job.lease_expires_at if job.state is JobState.RUNNING else job.expires_at
    process = (job.process or None) if job.state is JobState.PENDING else None
    makes_room = job.state.ended and not job.kept
    ended = "(SELECT IFNULL(MAX(ended), 0) + 1 FROM jobs WHERE ended IS NOT NULL)" if makes_room else "NULL"
    database.execute(
        f"UPDATE jobs SET state = ?, due = ?, ended = {ended}, kept = ?, bytes = ?, process = ?, document = ?"  # noqa: S608
        " WHERE number = ?",
        (job.state, due, job.kept or None, row.bytes if kept is None else kept, process, _document(job), row.number),
    )


def forget(database: sqlite3.Connection, row: Entry, *, remembered: int = 0) -> None:
    """Remove a job; remember its key as expired, as one of the *remembered* latest (0: not at all)."""
    database.execute("DELETE FROM jobs WHERE number = ?", (row.number,))
    if remembered:
        number = database.execute("INSERT OR REPLACE INTO expired (key) VALUES (?)", (row.key,)).lastrowid or 0
        database.execute("DELETE FROM expired WHERE number <= ?", (number - remembered,))


def take_cookies(database: sqlite3.Connection, row: Row) -> bool:
    """Take the cookies of a job; return whether they were there."""
    statement = "UPDATE jobs SET cookies_taken = 1 WHERE number = ? AND NOT cookies_taken"
    return database.execute(statement, (row.number,)).rowcount > 0


def due(database: sqlite3.Connection, now: float, limit: int) -> list[Entry]:
    """Return up to *limit* jobs that are to be made lost, or to be forgotten."""
    found = _all(database.execute(f"{_ROW} WHERE due <= ? ORDER BY due LIMIT ?", (now, limit)))
    gone = "process IN (SELECT name FROM processes WHERE until <= ?) AND due > ?"
    return found + _all(database.execute(f"{_ROW} WHERE {gone} LIMIT ?", (now, now, limit - len(found))))


def first_ended(database: sqlite3.Connection) -> Entry | None:
    """Return the job that ended before all others."""
    return _first(database.execute(f"{_ROW} WHERE ended IS NOT NULL ORDER BY ended LIMIT 1"))


def kept(database: sqlite3.Connection) -> list[Job]:
    """Return the jobs that have ended and have no TTL, as far as they can be read."""
    rows = _all(database.execute(f"{_ROW} WHERE kept IS NOT NULL"))
    return [row.job for row in rows if isinstance(row, Row)]


def running(database: sqlite3.Connection) -> list[Job]:
    """Return the jobs that are stored as running, as far as they can be read."""
    rows = _all(database.execute(f"{_ROW} WHERE state = ?", (JobState.RUNNING,)))
    return [row.job for row in rows if isinstance(row, Row)]


def place(database: sqlite3.Connection, row: Row) -> int:
    """Return the place of a pending job among those that wait."""
    # The state is written out: so the index of those that are pending is used.
    statement = "SELECT COUNT(*) FROM jobs WHERE state = 'pending' AND (rank, number) <= (?, ?)"
    return int(database.execute(statement, (row.job.priority.rank, row.number)).fetchone()[0])


def waiting(database: sqlite3.Connection, group: str) -> int:
    """Return how many jobs are stored as pending that belong to a group."""
    # What cannot be read belongs to none. A name may have a lone surrogate, which SQLite has no text for.
    documents = database.execute("SELECT CAST(document AS BLOB) FROM jobs WHERE state = 'pending'").fetchall()
    return sum(group in _groups(document) for (document,) in documents)


def _groups(document: bytes) -> Collection[str]:
    with contextlib.suppress(ValueError, AttributeError, RecursionError):
        groups = json.loads(document).get("groups")
        return groups if isinstance(groups, dict) else ()
    return ()


def newest(database: sqlite3.Connection, state: JobState | None, before: int | None, limit: int) -> list[Entry]:
    """Return up to *limit* jobs that came before that of number *before*, newest first: those that may read as
    *state*, or all."""
    asked_for = () if state is None else _CANDIDATES.get(state, (state,))
    conditions = [f"state IN ({', '.join('?' * len(asked_for))})"] if asked_for else []
    arguments: list[Any] = [*asked_for]
    if before is not None:
        conditions.append("number < ?")
        arguments.append(before)
    where = " WHERE " + " AND ".join(conditions) if conditions else ""
    return _all(database.execute(f"{_ROW}{where} ORDER BY number DESC LIMIT ?", (*arguments, limit)))


def totals(database: sqlite3.Connection) -> tuple[int, int]:
    """Return how many jobs there are, and how many bytes they keep in files."""
    jobs, kept = database.execute("SELECT jobs, bytes FROM totals").fetchone()
    return jobs, kept


def state_of(database: sqlite3.Connection, number: int, key: str) -> str | None:
    """Return the state that is stored of the job with this number and key; None: there is none."""
    row = database.execute("SELECT state FROM jobs WHERE number = ? AND key = ?", (number, key)).fetchone()
    return None if row is None else str(row[0])


def keeps_request(database: sqlite3.Connection, key: str) -> bool:
    """Whether the job of this key keeps its request, or cannot be read."""
    entry = _first(database.execute(f"{_ROW} WHERE key = ?", (key,)))
    return entry is not None and (not isinstance(entry, Row) or entry.job.holds_request)


def _readable(entry: Entry | None) -> Row | None:
    if entry is None or isinstance(entry, Row):
        return entry
    raise RegistryError(f"what the index says of the job {entry.key[:8]}… is damaged, or of a newer version")


def _first(cursor: sqlite3.Cursor) -> Entry | None:
    return next(iter(_all(cursor)), None)


def _all(cursor: sqlite3.Cursor) -> list[Entry]:
    return [_read(*columns) for columns in cursor.fetchall()]


def _read(number: int, kept: int, key: str, document: bytes, process: str | None, until: float | None) -> Entry:
    try:
        job = Job.from_document(json.loads(document))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return Entry(number, kept, key)
    if process is not None:
        job = changes.held(job, until or 0.0)
    # The key names files: that of another job must not name them.
    return Row(number, kept, key, job) if job.key == key else Entry(number, kept, key)


_PROCESSES_KEPT = 3600.0  # seconds; far more than any lease
_json = json.JSONEncoder(separators=(",", ":")).encode


def _document(job: Job) -> str:
    return _json(job.to_brief_document())
