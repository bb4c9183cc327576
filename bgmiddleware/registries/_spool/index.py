"""The index of a spool directory: what is known of each job, in a small SQLite database that processes share."""

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from urllib.parse import quote

from ...errors import BackgroundError, ConfigurationError, RegistryError
from .directory import INDEX, make_file
from .room import log_pages

__all__ = ["Index"]

_APPLICATION_ID = 0x6267_6D77  # "bgmw": somebody else's database is not touched
_FORK_PATIENCE = 1.0
_CLOSE_PATIENCE = 1.0
_LOG_BYTES = 4 * 1024 * 1024  # a log that grew beyond it, while a reader was stuck, is cut when it is begun anew

# Each step leads from one version of the schema to the next. Never change one that was released: add another.
_STEPS = (
    """
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice: it names the files
        key TEXT NOT NULL UNIQUE,
        state TEXT NOT NULL,
        due REAL,  -- when it is lost, or is to be forgotten
        ended INTEGER,  -- its place in the order of ends, whatever the clock said
        bytes INTEGER NOT NULL DEFAULT 0,
        cookies_taken INTEGER NOT NULL DEFAULT 0,
        document TEXT NOT NULL
    );
    CREATE INDEX jobs_by_due ON jobs (due) WHERE due IS NOT NULL;
    CREATE INDEX jobs_by_state ON jobs (state, number);
    CREATE INDEX jobs_by_end ON jobs (ended) WHERE ended IS NOT NULL;
    CREATE TABLE expired (number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE);
    CREATE TABLE totals (jobs INTEGER NOT NULL, bytes INTEGER NOT NULL);
    INSERT INTO totals VALUES (0, 0);
    CREATE TRIGGER job_added AFTER INSERT ON jobs BEGIN
        UPDATE totals SET jobs = jobs + 1, bytes = bytes + new.bytes;
    END;
    CREATE TRIGGER job_grown AFTER UPDATE OF bytes ON jobs BEGIN
        UPDATE totals SET bytes = bytes + new.bytes - old.bytes;
    END;
    CREATE TRIGGER job_removed AFTER DELETE ON jobs BEGIN
        UPDATE totals SET jobs = jobs - 1, bytes = bytes - old.bytes;
    END;
    """,
    """
    ALTER TABLE jobs ADD COLUMN rank INTEGER NOT NULL DEFAULT 1;  -- of its priority: 0 is taken first
    CREATE INDEX jobs_by_place ON jobs (rank, number) WHERE state = 'pending';
    """,
    """
    ALTER TABLE jobs ADD COLUMN name TEXT;  -- by which a repetition of its request finds it
    CREATE INDEX jobs_by_name ON jobs (name, number) WHERE name IS NOT NULL;
    """,
    """
    ALTER TABLE jobs ADD COLUMN process TEXT;  -- in whose memory it waits; NULL when it does not wait any more
    CREATE INDEX jobs_by_process ON jobs (process) WHERE process IS NOT NULL;
    CREATE TABLE processes (name TEXT PRIMARY KEY, until REAL NOT NULL);
    """,
    """
    CREATE TABLE counts (minute INTEGER, path TEXT, numbers TEXT NOT NULL, PRIMARY KEY (minute, path)) WITHOUT ROWID;
    CREATE TABLE paths (path TEXT PRIMARY KEY, minute INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE levels (minute INTEGER PRIMARY KEY, waiting INTEGER NOT NULL, running INTEGER NOT NULL);
    """,
    """
    ALTER TABLE jobs ADD COLUMN kept INTEGER;  -- NULL, unless it has ended and has no TTL
    CREATE INDEX jobs_by_keeping ON jobs (number) WHERE kept IS NOT NULL;
    """,
)


class Index:
    """A database in *directory*, made by :meth:`prepare`. Any thread may call, and any process.

    Its journal is a write-ahead log: readers and the writer do not wait for each other, and a commit needs no fsync (a
    commit that a loss of power takes back is lost as a whole). SQLite before 3.51.3 may lose commits where one
    connection copies that log back while another one writes. So all writers here take turns by a lock of ours, within
    which SQLite does that copying too; it is held for as long as a transaction takes.

    *patience*: seconds to wait for other writers; then ``RegistryError``.
    """

    def __init__(self, directory: str, patience: float) -> None:
        self.path = os.path.join(directory, INDEX)
        self._lock_path = os.path.join(directory, "index.lock")
        self._patience = patience
        self._pid = os.getpid()
        self._free = threading.Condition()  # guards those that follow
        self._idle: list[_Connection] = []
        self._busy = 0
        self._closed = False
        with _all_lock:
            _all.add(self)

    def prepare(self) -> None:
        """Make the database if there is none, bring an older one up to date; ``ConfigurationError`` for a newer one."""
        make_file(self.path)
        with self._connection() as connection:
            if _version(connection.database, self.path) < len(_STEPS):  # else nobody needs to wait for a writer
                with connection.writing(self._patience):
                    _migrate(connection.database, self.path)

    def check(self) -> None:
        """Raise ``ConfigurationError`` where there is a database that this version cannot use. Changes nothing."""
        if os.path.exists(self.path) and os.path.getsize(self.path):
            with self._connection() as connection:
                _version(connection.database, self.path)

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Look at the database; leave no cursor open."""
        with self._connection() as connection:
            yield connection.database

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Change the database, all or nothing: what the block raises takes it back. One writer at a time."""
        with self._connection() as connection, connection.writing(self._patience):
            yield connection.database

    def empty_log(self) -> None:
        """Copy the write-ahead log into the database and empty it: of jobs that have ended it has what was forgotten,
        credentials say. It stays where somebody reads from it just now."""
        with self._connection() as connection:
            connection.empty_log(self._patience)

    def close(self) -> None:
        """Close the connections; one that is used just now is closed after that, and so is what a later use opens:
        nobody would come and close it."""
        with self._free:
            self._closed = True
        self.release()

    def release(self) -> None:
        """Close the connections that nobody uses just now."""
        with self._free:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    @contextlib.contextmanager
    def _connection(self) -> Iterator["_Connection"]:
        connection = self._take()
        keep = False
        try:
            yield connection
            keep = True
        except sqlite3.Error as error:
            keep = isinstance(error, sqlite3.OperationalError)  # locked, or no room
            raise RegistryError(f"{self.path}: {error}") from error
        except BackgroundError:
            keep = True
            raise
        finally:
            self._give_back(connection, keep)

    def _take(self) -> "_Connection":
        if self._pid != os.getpid():
            self._begin_in_child()  # forked by C code, which told nobody
        identity = self._identity()
        with self._free:
            stale = [each for each in self._idle if each.identity != identity]
            self._idle = [each for each in self._idle if each.identity == identity]
            connection = self._idle.pop() if self._idle else None
            self._busy += 1
        try:
            for each in stale:  # somebody removed the database, and there is another one now
                each.close()
            return connection or _Connection(self.path, self._lock_path, self._patience, identity)
        except (sqlite3.Error, OSError) as error:
            self._give_back(None, False)
            raise RegistryError(f"{self.path}: {error}") from error

    def _identity(self) -> tuple[int, int]:
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise RegistryError(f"{self.path}: {error.strerror}") from error
        return status.st_dev, status.st_ino

    def _give_back(self, connection: "_Connection | None", keep: bool) -> None:
        with self._free:
            if connection is not None and keep and not self._closed:
                self._idle.append(connection)
                connection = None
        if connection is not None:
            connection.close()
        with self._free:
            self._busy -= 1
            self._free.notify_all()

    # A connection must not be there while its process forks: SQLite keeps, for each process, what it has locked, and
    # a child would believe that of its parent.

    def _before_fork(self) -> None:
        self._free.acquire()
        until = time.monotonic() + _FORK_PATIENCE
        while self._busy and (left := until - time.monotonic()) > 0:
            self._free.wait(left)
        while self._idle:
            self._idle.pop().close()

    def _after_fork(self) -> None:
        self._free.release()

    def _begin_in_child(self) -> None:
        _inherited.extend(self._idle)  # neither used nor closed here, both would be wrong
        self._pid = os.getpid()
        self._free = threading.Condition()
        self._idle = []
        self._busy = 0


class _Connection:
    """A connection to the database, used by one thread at a time, and the lock that its writers take."""

    def __init__(self, path: str, lock_path: str, patience: float, identity: tuple[int, int]) -> None:
        self.identity = identity
        self.database = sqlite3.connect(
            f"file:{quote(os.fsencode(path))}?mode=rw",
            uri=True,
            timeout=patience,
            isolation_level=None,
            check_same_thread=False,
        )
        try:
            self._lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except BaseException:
            self.database.close()
            raise
        try:
            (mode,) = self.database.execute("PRAGMA journal_mode").fetchone()
            if mode != "wal":  # once for a database
                with self._locked(patience):
                    (mode,) = self.database.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise ConfigurationError(
                    f"{path}: this file system cannot have a SQLite database with a shared log: name a directory on a"
                    " local disk"
                )
            self.database.execute("PRAGMA synchronous = NORMAL")
            self.database.execute("PRAGMA secure_delete = ON")  # a job that ended has no credentials any more
            # Where the disk is about to be full, neither the log nor anything in a directory of others may grow.
            self.database.execute(f"PRAGMA wal_autocheckpoint = {log_pages(os.path.dirname(path))}")
            self.database.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
            self.database.execute("PRAGMA temp_store = MEMORY")
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def writing(self, patience: float) -> Iterator[None]:
        with self._locked(patience):
            self.database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.database.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self.database.execute("ROLLBACK")
                raise

    def empty_log(self, patience: float) -> None:
        with self._locked(patience):
            self.database.execute("PRAGMA busy_timeout = 0")  # no reader is waited for: the others wait for us
            try:
                self.database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                self.database.execute(f"PRAGMA busy_timeout = {int(1000 * patience)}")

    @contextlib.contextmanager
    def _locked(self, patience: float) -> Iterator[None]:
        until = time.monotonic() + patience
        pause = 0.0001
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise sqlite3.OperationalError("another process does not let go of its lock") from None
            time.sleep(pause)
            pause = min(pause * 2, 0.01)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        # The last one to close copies the log back: that is writing too.
        with contextlib.suppress(sqlite3.Error), self._locked(_CLOSE_PATIENCE):
            self.database.close()
        self.database.close()
        os.close(self._lock)


def _migrate(database: sqlite3.Connection, path: str) -> None:
    version = _version(database, path)
    for step in _STEPS[version:]:
        for statement in _statements(step):
            database.execute(statement)
    if version < len(_STEPS):
        database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {len(_STEPS)}")


def _version(database: sqlite3.Connection, path: str) -> int:
    # In this order: another process may just now make the tables, and with them the rest.
    (tables,) = database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    (application,) = database.execute("PRAGMA application_id").fetchone()
    if application != _APPLICATION_ID and (application or tables):
        raise ConfigurationError(f"{path} is the database of something else: name another directory")
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    if version > len(_STEPS):
        raise ConfigurationError(
            f"{path} has version {version}, and this bgmiddleware knows {len(_STEPS)} and below: "
            "it was written by a newer one; upgrade, or name another directory"
        )
    return version


def _statements(script: str) -> Iterator[str]:
    # Not executescript(): it commits first, and the steps are to be done as a whole.
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


_all: "weakref.WeakSet[Index]" = weakref.WeakSet()
_all_lock = threading.Lock()  # guards it, and is held while the process forks: who forks next waits
_forking: list[Index] = []  # those whose locks the forking thread holds
_inherited: list[_Connection] = []


def _before_fork() -> None:
    _all_lock.acquire()
    for index in _all:
        index._before_fork()
        _forking.append(index)


def _after_fork_in_parent() -> None:
    while _forking:
        _forking.pop()._after_fork()
    _all_lock.release()


def _after_fork_in_child() -> None:
    # uWSGI forks in C, and calls this without the first of the three.
    global _all_lock
    _all_lock = threading.Lock()
    _forking.clear()
    for index in _all:
        index._begin_in_child()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
