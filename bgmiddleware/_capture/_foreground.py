"""What a request in the foreground printed so far."""

import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from ._output import pass_on

__all__ = ["ForegroundOutput"]


class ForegroundOutput:
    """What the requests of one context print in the foreground, one request after the other.

    A print goes where it went. The first *limit* characters of a request are kept as well: they begin the output of
    the ``@background`` function that it may yet call. One object serves all requests of a server's thread: to make one
    for each would cost more than all else that a request pays.
    """

    job = None
    pending: list[str | bytes] | None = None
    assigned: dict[str, Any] = {}  # noqa: RUF012  # of no job, so nothing is put into it
    batch = 1

    def __init__(self, out: Callable[[str], int], err: Callable[[str], int], limit: int = 65536) -> None:
        self.out = self._keeping(out)
        self.err = self._keeping(err)
        self.printer: Callable[[str], int] = pass_on
        self._limit = self._room = limit
        self._thread = threading.get_ident()
        self.request: dict[str, Any] | None = None
        """The environ of the request that is being answered, as it was before the app saw it; None: there is none."""
        self.wish: Any = None
        """What a view of this request asked for."""
        self.is_used = False
        """Whether :meth:`end` has something to do after this request."""
        self.changes = -1
        """How often the streams of ``sys`` had been replaced when the stand-ins were last known to be in place."""
        self._kept: list[str] = []

    def is_answering(self) -> bool:
        """Whether the calling thread answers a request of this output. A copied context may take it to others."""
        if self.request is None:
            return False
        return self._thread == threading.get_ident() or _runs_loop_for(self._thread)

    def _keeping(self, write: Callable[[str], int]) -> Callable[[str], int]:
        def keep(text: str) -> int:
            written = write(text)
            self._keep(text)
            return written

        return keep

    def _keep(self, text: str) -> None:
        if self._room > 0 and self.is_answering():
            self._kept.append(text[: self._room])
            self._room -= len(text)
            self.is_used = True

    def ask(self, wish: object) -> None:
        """Note what a view of this request asks for."""
        self.wish = wish
        self.is_used = True

    def end(self) -> None:
        """End the request: forget what was kept of it."""
        self.request = self.wish = None
        self._kept.clear()
        self._room = self._limit
        self.is_used = False

    @property
    def text(self) -> str:
        """All that was kept."""
        return "".join(self._kept)

    def write_bytes(self, data: bytes, original: Callable[[bytes], int]) -> int:
        written = original(data)
        if self._room > 0:
            self._keep(memoryview(data).tobytes()[: 4 * self._room].decode("utf-8", "backslashreplace"))
        return written

    def assign(self, name: str, stream: Any) -> None:
        """Never called: it is no job's."""

    def unassign(self, name: str) -> None:
        """Never called: it is no job's."""

    def drain_soon(self) -> None:
        """Do nothing: nothing is ever pending."""

    def flush(self) -> None:
        """Do nothing: the stand-in flushes the original."""

    def fileno(self, name: str = "stdout") -> int | None:
        return None


def _runs_loop_for(waiting: int) -> bool:
    """Whether the calling thread runs an event loop that the thread *waiting* waits for, as asgiref has it do for an
    asynchronous view of Flask: what happens here happens on behalf of that view's request."""
    arguments = getattr(threading.current_thread(), "_args", ())
    # A worker of a pool knows its pool from the start, the pool knows its worker a moment later.
    pool = arguments[0]() if arguments and isinstance(arguments[0], weakref.ref) else None
    if pool is None:
        return False
    frame = sys._current_frames().get(waiting)
    while frame is not None:
        if frame.f_globals.get("__name__") == "asgiref.sync" and frame.f_locals.get("loop_executor") is pool:
            return True
        frame = frame.f_back
    return False
