"""Connections to a server, used without redis-py's client and pipelines: those take several times as long as to pack a
command, to send it and to read its answer."""

import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

import redis

__all__ = ["Connections"]

_SURE = 1.0  # seconds that a connection is taken to be good after an answer


class Connections:
    """Connections of one process, each used by one thread at a time. Any thread may call.

    *pool* makes them, and keeps none. It is redis-py's: it knows how to connect, and a sentinel's which of them lead to
    the primary still.
    """

    def __init__(self, pool: "redis.ConnectionPool") -> None:
        self._pool: Any = pool
        self._lock = threading.Lock()  # guards the next two
        self._idle: list[tuple[Any, float]] = []  # with when each was used last, by the monotonic clock
        self._closed = False

    def ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send *commands* in one go; return what each answered, an error too. Raises where the connection breaks, or
        the server takes no commands just now. The parts of a command are bytes, texts and numbers."""
        connection, used_at = self._take()
        try:
            self._make_ready(connection, used_at)
            connection.send_packed_command([_packed(commands)])
            return [_answer_of(connection) for _ in commands]
        except BaseException:
            connection.disconnect()  # else who has it next reads answers that were ours
            raise
        finally:
            self._give_back(connection)

    def let_go(self) -> None:
        """Close those that nobody uses just now."""
        with self._lock:
            for connection, _ in self._idle:
                connection.disconnect()

    def close(self) -> None:
        """Close all; those that are used just now, after that."""
        with self._lock:
            self._closed = True
        self.let_go()

    def _take(self) -> tuple[Any, float]:
        with self._lock:
            return self._idle.pop() if self._idle else (self._pool.make_connection(), time.monotonic())

    def _make_ready(self, connection: Any, used_at: float) -> None:
        if not self._pool.owns_connection(connection):
            connection.disconnect()
        connection.connect()  # if it is not
        if time.monotonic() - used_at >= _SURE and not _is_good(connection):
            connection.disconnect()
            connection.connect()

    def _give_back(self, connection: Any) -> None:
        with self._lock:
            self._idle.append((connection, time.monotonic()))
            if self._closed:
                connection.disconnect()


def _packed(commands: Iterable[Sequence[Any]]) -> bytes:
    pieces = []
    for parts in commands:
        pieces.append(b"*%d" % len(parts))
        for part in parts:
            data = part if isinstance(part, bytes) else str(part).encode()
            pieces += (b"$%d" % len(data), data)
    pieces.append(b"")
    return b"\r\n".join(pieces)


def _answer_of(connection: Any) -> Any:
    try:
        return connection.read_response()
    except redis.ResponseError as error:
        return error


def _is_good(connection: Any) -> bool:
    """Whether the server has neither closed a connection nor said on it what nobody asked for."""
    try:
        return not connection.can_read(0)
    except (redis.ConnectionError, redis.TimeoutError, OSError):
        return False
