"""What a spool directory has: an index, files of jobs, a secret. All that touches them together is here."""

import contextlib
import errno
import itertools
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator

from ..._jobs import Channel, Job, JobState
from ...errors import BadOffset, ConfigurationError, Fenced, JobExists, RegistryError
from .._trouble import Trouble
from ..base import StorageFull
from . import rows as table
from .directory import Directory
from .index import Index
from .jobfiles import TIMES, JobFiles
from .room import Room
from .rows import Entry, Row
from .writer import Writers

__all__ = ["Change", "Store", "storage_errors", "trouble"]

_FILE = re.compile(rf"([0-9a-f]{{32}})\.([0-9]+)(?:\.(?:{Channel.REQUEST}|{Channel.BODY}|{TIMES}|{TIMES}\.new))?")
_ROWS_AT_ONCE = 200
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_ENDED = frozenset(state for state in JobState if state.ended)

_log = logging.getLogger("bgmiddleware")


class Store:
    """The storage of a spool registry. Constructing it makes nothing; *patience*: see :class:`Index`."""

    def __init__(
        self,
        directory: str | os.PathLike[str],
        patience: float,
        tell: Callable[[Job], None] = lambda job: None,
        count: Callable[[str, float], None] = lambda name, number: None,
    ) -> None:
        self._tell = tell  # that a job has ended
        self._count = count  # see Registry.tell_numbers
        self.trouble = Trouble(count)
        self.writers = Writers()
        self._directory = Directory(directory)
        self._index = Index(self._directory.path, patience)
        self.room = Room(self._directory.path)
        self._prepared = False
        first = os.urandom(1)[0]  # each process begins elsewhere
        self._shards = itertools.cycle([f"{(first + number) % 256:02x}" for number in range(256)])

    @property
    def path(self) -> str:
        """The absolute path of the directory."""
        return self._directory.path

    def check(self) -> None:
        """Raise ``ConfigurationError`` where the directory cannot be used, or made. Makes nothing."""
        if not self._directory.check():
            return
        try:
            with storage_errors():
                self._index.check()
        except RegistryError as error:
            raise ConfigurationError(f"directory = {self.path!r}: {error}; name another, or delete it") from error
        finally:
            self._index.release()

    def is_there(self) -> bool:
        """Whether the directory was used before. Makes nothing."""
        return os.path.exists(self._index.path)

    def is_full(self) -> bool:
        """Whether the disk has less room than a new job needs."""
        self._prepare()
        with storage_errors():
            return self.room.is_low()

    def files(self, row: Entry) -> JobFiles:
        """Return the files of a job."""
        return JobFiles(self.path, row.key, row.number)

    def secret(self) -> bytes:
        """Return the bytes that all have in common who share the directory."""
        self._prepare()
        with storage_errors():
            return self._directory.secret()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Look at the index."""
        try:
            self._prepare()
            with self._index.reading() as database:
                yield database
        except RegistryError:
            self.trouble.failed()
            raise
        if self.trouble.told_until is not None:
            self.trouble.ended()

    @contextlib.contextmanager
    def changing(self) -> Iterator["Change"]:
        """Change the index; when that is done, the files, and wake who waits. One process at a time."""
        try:
            self._prepare()
            with storage_errors():
                self.room.spare()
                with self._index.writing() as database:
                    change = Change(database)
                    yield change
        except RegistryError as error:
            if not isinstance(error, (BadOffset, Fenced, JobExists)):  # which are answers
                self.trouble.failed()
            if isinstance(error.__cause__, sqlite3.OperationalError):  # a quota, which the room does not say, is full
                self.room.give_back()
            raise
        if self.trouble.told_until is not None:
            self.trouble.ended()
        if change.evicted:
            self._count("evicted", change.evicted)
        for row in change.ended:
            self.writers.close(row.key)
            if not row.job.holds_request:
                self.files(row).remove(Channel.REQUEST)
        for row in change.changed:
            self.files(row).stamp()
        for gone in change.gone:
            files = self.files(gone)
            files.remove()
            if isinstance(gone, Row) and gone.job.state is JobState.PENDING:
                files.stamp()  # it had no file that who waits for it could miss
        for job in change.told:
            self._tell(job)

    def free_what_expired(self, now: float, limit: int) -> None:
        """Remove the files of up to *limit* jobs that are to be forgotten, before that is written down: where there is
        no room, to write comes second."""
        with self.reading() as database:
            due = table.due(database, now, limit)
        for row in due:
            if not isinstance(row, Row) or row.job.state.ended:
                self.files(row).remove()

    def newest_first(self, state: JobState | None, expected: int = _ROWS_AT_ONCE) -> Iterator[Row]:
        """Yield the jobs that may read as *state*, or all, as far as they can be read; without a cursor that stays
        open. *expected*: how many are wanted, as far as that is known."""
        before, at_once = None, min(_ROWS_AT_ONCE, expected)
        unreadable = 0
        while True:
            with self.reading() as database:
                entries = table.newest(database, state, before, at_once)
            at_once = _ROWS_AT_ONCE
            if not entries:
                break
            rows = [entry for entry in entries if isinstance(entry, Row)]
            unreadable += len(entries) - len(rows)
            yield from rows
            before = entries[-1].number
        if unreadable:
            _log.warning("%s: %d jobs cannot be read, and are left out of a list", self.path, unreadable)

    def clean_up(self) -> None:
        """Remove files of jobs that are gone, and requests of jobs that have ended: they were left by processes that
        were killed after they changed the index, or before. Each call looks at one 256th of them. And empty the log of
        the index, and keep room again, where there was none."""
        with storage_errors():
            self._index.empty_log()
            self.room.keep()
        directory = os.path.join(self.path, next(self._shards))
        with storage_errors(), contextlib.suppress(FileNotFoundError):
            matches = map(_FILE.fullmatch, os.listdir(directory))
            names = [match for match in matches if match and match[1].startswith(os.path.basename(directory))]
            with self.reading() as database:
                left = [name for name in names if _is_left_behind(database, name)]
            if left:
                with self._index.writing() as database:  # nobody is about to add a job now
                    for name in left:
                        if _is_left_behind(database, name):
                            with contextlib.suppress(IsADirectoryError, PermissionError):  # then it is none of ours
                                os.unlink(os.path.join(directory, name[0]))

    def close(self) -> None:
        """Let go of files and connections."""
        self.writers.close_all()
        self._index.close()

    def _prepare(self) -> None:
        if not self._prepared:
            self._directory.prepare()
            with storage_errors():
                self.room.spare()
                self._index.prepare()
                self.room.keep()
            self._prepared = True
        elif not os.path.exists(self._index.path):
            # Somebody removed it all. The directory is not made again: what it is in may be a disk that is not there
            # just now.
            with storage_errors():
                self._index.prepare()


class Change:
    """A change of the index, and what is to be done after it."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database
        self.changed: list[Row] = []
        self.ended: list[Row] = []
        self.told: list[Job] = []
        """Those of them as they are now."""
        self.gone: list[Entry] = []
        self.evicted = 0

    def store(self, row: Row, job: Job, kept: int | None = None) -> None:
        """Replace a job; who waits for it is to be woken."""
        table.store(self.database, row, job, kept)
        self.changed.append(row)

    def forget(self, row: Entry, *, remembered: int) -> None:
        """Remove a job; its files are to be removed."""
        table.forget(self.database, row, remembered=remembered)
        self.gone.append(row)
        self.evicted += remembered > 0


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """Let what the system refuses be a ``RegistryError``."""
    try:
        yield
    except OSError as error:
        raise trouble(error) from error


def trouble(error: OSError) -> RegistryError:
    """Say what the system refused."""
    kind = StorageFull if error.errno in _FULL else RegistryError
    return kind(f"{error.filename or 'the spool directory'}: {error.strerror}")


def _is_left_behind(database: sqlite3.Connection, name: re.Match[str]) -> bool:
    state = table.state_of(database, int(name[2]), name[1])
    # A state that only a newer version knows is none of these.
    if state is None or not (state in _ENDED and name[0].endswith(f".{Channel.REQUEST}")):
        return state is None
    return not table.keeps_request(database, name[1])
