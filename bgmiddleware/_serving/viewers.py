"""Viewers must never starve the app: how many connections may be held, how often the others may ask, who has left."""

import math
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["FASTEST", "Viewers", "disconnection_of"]

FASTEST = 1.0
"""Seconds between two polls where there are few: who is told to wait longer is one of a crowd."""

_DECAY = 10.0
_POLLS_PER_SECOND = 50.0
_SLOWEST = 30.0


class Viewers:
    """Counts held connections against *slots*, and tells those who poll how long to wait. Any thread."""

    def __init__(self, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()  # guards all of these
        self._clock = clock
        self._slots = slots
        self._held: dict[object, Callable[[], bool]] = {}
        self._waited = 0.0
        self._counted_at = clock()
        self._next_turn = clock()

    def take_slot(self, gone: Callable[[], bool]) -> object | None:
        """Return a slot, to be given back; None if all are held by clients that are still there.

        *gone* tells whether the client that it is for has left, without waiting.
        """
        slot = object()
        if not self._hold(slot, gone):
            # Servers notice only at the next write: nobody shall be turned away for one who left. Not looked at with
            # the lock held: under gevent a look lets others run, who may want the lock.
            for other, other_gone in list(self._held.items()):
                if other_gone():
                    self.give_back(other)
            if not self._hold(slot, gone):
                return None
        return slot

    def _hold(self, slot: object, gone: Callable[[], bool]) -> bool:
        with self._lock:
            if len(self._held) >= self._slots:
                return False
            self._held[slot] = gone
            return True

    def give_back(self, slot: object) -> None:
        """Give a slot back. Does nothing if somebody else was given it meanwhile."""
        with self._lock:
            self._held.pop(slot, None)

    def pace(self, every: float | None) -> float:
        """Return how many seconds a poller should wait, which waited *every* seconds for this answer (None: unknown).

        Without knowing anybody: N pollers that each come every S seconds say S, N/S times a second, which adds up to N
        per second (Little's law). So the sum, forgotten with a time constant of ten seconds, is ten times their number.
        Who says 0 is new, and counted at once: for ten, which are forgotten just as fast as what it says adds up.
        """
        with self._lock:
            now = self._clock()
            self._waited *= math.exp((self._counted_at - now) / _DECAY)
            self._counted_at = now
            self._waited += _DECAY if every == 0 else min(every or 0.0, _SLOWEST)
            pollers = self._waited / _DECAY
        return min(_SLOWEST, max(FASTEST, pollers / _POLLS_PER_SECOND))

    def turn(self) -> float:
        """Return in how many seconds who is refused a slot should begin to poll: each a fiftieth of a second after the
        one before, and at once where nobody came just before. Those who come at once would all be back at once."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._next_turn)
            self._next_turn = min(turn + 1 / _POLLS_PER_SECOND, now + _SLOWEST)
            return turn - now


def disconnection_of(environ: Mapping[str, Any]) -> Callable[[], bool]:
    """Return a function that tells whether the client of a request has gone, as well as its server lets us know.

    Servers do not say so until a write fails, so where one gives the socket away we look whether it is at its end.
    """
    asked = environ.get("waitress.client_disconnected")
    connection = environ.get("gunicorn.socket") or environ.get("werkzeug.socket")
    if connection is None and asked is not None:
        connection = getattr(getattr(asked, "__self__", None), "socket", None)

    def gone() -> bool:
        if asked is not None and asked():
            return True
        return isinstance(connection, socket.socket) and _at_end(connection)

    return gone


def _at_end(connection: socket.socket) -> bool:
    number = connection.fileno()
    if number < 0:  # closed by the server
        return True
    try:
        # Not read at once: gevent's sockets wait for something to read, whatever the flags.
        return _is_readable(number) and not connection.recv(1, socket.MSG_PEEK | getattr(socket, "MSG_DONTWAIT", 0))
    except (BlockingIOError, ValueError):  # TLS, say, lets nobody look
        return False
    except OSError:  # reset
        return True


def _is_readable(number: int) -> bool:
    if not hasattr(select, "poll"):
        return bool(select.select([number], [], [], 0)[0])
    poll = select.poll()  # unlike select() for descriptors of any number
    poll.register(number, select.POLLIN)
    return bool(poll.poll(0))
