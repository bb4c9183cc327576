"""What keeps the registry and a running job in step: output and progress go there, a cancel comes from there, and a
lease is renewed while the job's process is alive."""

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from .._capture import JobOutput, detached
from .._jobs import Channel, Progress, Steps
from ..errors import BadOffset, Fenced, JobExpired, JobNotFound, RegistryError, RegistryFull
from ..registries.base import Registry, StorageFull
from .keeping import Keeping, Place, keeping_of
from .ticking import Ticking, ticking_of

__all__ = ["LEASE", "RENEW_EVERY", "Keeper", "patiently"]

_T = TypeVar("_T")

_log = logging.getLogger("bgmiddleware")

LEASE = 15.0
"""Seconds after which the job of a vanished runner reads as lost, where processes share a registry."""

RENEW_EVERY = 5.0
_LOOK_EVERY = 1.0  # for a cancel
_TELL_EVERY = 0.1
_COLLECT_EVERY = 0.25  # what ends no line
_GATHER = 0.02
_ENOUGH = 256 * 1024
_CHUNK = 256 * 1024
_ROOM = 1024 * 1024
_PATIENCE = 30.0
_PATIENCE_WHERE_FULL = 5.0
_BACK_OFF = 0.05, 1.0
_GONE = (Fenced, JobNotFound, JobExpired, BadOffset)


def patiently(registry: Registry, call: Callable[[], _T], *, but: tuple[type[Exception], ...] = ()) -> _T:
    """Return what *call* does to a registry; repeat it while a shared one is away, for half a minute; or where its
    storage is full, for five seconds: many who wait for room in all places of workers would let nobody make any.

    What is tried again must be safe to repeat. Raises what *call* raised last, as a ``RegistryError``; at once
    what a registry answers, and *but*, which is not its trouble.
    """
    answers: tuple[type[Exception], ...] = (*_GONE, RegistryFull, *but)
    begun = time.monotonic()
    for last in _tries(registry):
        try:
            return call()
        except answers:
            raise
        except StorageFull:
            if last or time.monotonic() - begun > _PATIENCE_WHERE_FULL:
                raise
        except Exception as error:  # a library below it raises whatever it likes
            if last:
                raise as_trouble(error) from error
    raise AssertionError("unreachable: one of them is the last")


def as_trouble(error: Exception) -> RegistryError:
    """Return what came out of a registry as the error that it should have been."""
    return error if isinstance(error, RegistryError) else RegistryError(f"{type(error).__name__}: {error}")


def _tries(registry: Registry) -> Iterable[bool]:
    """Yield for half a minute, with pauses between that grow, whether this is the last time; once where a registry is
    of this process."""
    return _tries_of_shared() if registry.shared else (True,)


def _tries_of_shared() -> Iterator[bool]:
    until = time.monotonic() + _PATIENCE
    pause, longest = _BACK_OFF
    while time.monotonic() < until:
        yield False
        time.sleep(pause)
        pause = min(2 * pause, longest)
    yield True


class Keeper:
    """Keeps one running job and its registry in step.

    Where the registry reads the live output itself (``Registry.attach``), what is stored goes there at once, in the
    thread that stores, and at least ten times a second: so it is known when it came. Elsewhere the process has one
    thread for all jobs (``keeping``), which gathers it for 20 ms or 256 KiB, and sends it: a print never waits for a
    network, unless the job prints faster than the registry takes it. A job that ends sooner sends what it printed
    itself. What the registry cannot take because it is away is kept, up to 1 MiB, and sent again; the lines that have
    no room then are dropped, and the output says which bytes. Whatever a registry raises, that thread goes on; and it
    renews and looks for a cancel by time, not when it has sent all there is, which of a job that prints without pause
    is never.

    A registry whose storage went back to what it was earlier is not left: the output goes on and says which bytes are
    missing. *reclaim* claims the job again where that was before its claim, and returns whether it was so.

    Where :meth:`leave_to_parent` was called, that thread neither renews nor looks for a cancel while there is a parent,
    and progress is told by the job's own thread. For a registry has locks, and C code that lets no other thread run
    would have this one hold them against all processes.
    """

    def __init__(self, registry: Registry, key: str, runner: str, reclaim: Callable[[], bool] = lambda: False) -> None:
        self._registry = registry
        self._key = key
        self._runner = runner
        self._reclaim = reclaim
        self._output: JobOutput | None = None
        self._keeping: Keeping | None = None  # None: the registry takes all at once
        self._place: Place | None = None  # None: no turns any more
        self._changed = threading.Condition()  # guards the next seven
        # What it is, when it came, and how many bytes of the output it stands for: a note stands for what was dropped.
        self._waiting: deque[tuple[memoryview, int, int]] = deque()
        self._size = 0
        self._given = 0
        self._owed = 0  # so much of that is not stored, nor a word about it
        self._dropped_from: int | None = None
        self._away = False
        self._full = False  # so is its storage
        self._is_quiet = False  # what is printed next is to be sent at once
        self._is_told = False  # that there is enough to send
        self._pause = _BACK_OFF[0]
        self._sending = threading.Lock()  # guards the next four: one chunk at a time, the same until it is taken
        self._chunk = b""
        self._stands_for = 0  # the chunk
        self._came: list[tuple[int, int]] = []  # when the bytes of the chunk came up to there
        self._end = 0
        self._forgot = False
        self._progress: Progress | None = None
        self._title: str | None = None
        self._steps: Steps | None = None
        self._ends_line = True
        self._parent = 0  # who does our work; 0: nobody
        self._renew_at = self._look_at = self._tell_at = 0.0
        self._begun = time.monotonic()
        self._ticking: Ticking | None = None

    def leave_to_parent(self) -> None:
        """Say that the parent of this process renews the lease, and interrupts the job when it is asked to stop."""
        self._parent = os.getppid()

    def claimed(self) -> None:
        """Say that the job was claimed just now: the times of its output count from there."""
        self._begun = time.monotonic()

    def begin(self, output: JobOutput) -> None:
        """Begin to keep *output*, of which nothing was stored yet."""
        now = time.monotonic()
        self._output = output
        self._renew_at, self._look_at = now + RENEW_EVERY, now + _LOOK_EVERY
        if self._parent:
            self._open()
        if not self._registry.attach(self._key, output):
            self._keeping = keeping_of(self._registry)
            self._place = self._keeping.join(self, self._due_look(), now + _GATHER)
        else:
            self._ticking = ticking_of(self._registry)
            self._ticking.join(output)

    def _open(self) -> None:
        with contextlib.suppress(Exception):  # what comes will tell
            self._registry.append(self._key, Channel.OUTPUT, 0, b"", runner=self._runner)

    def store(self, data: bytes) -> None:
        """Take a piece of output. Called with the output's lock held, so by one thread at a time."""
        keeping, is_keeper = self._keeping, self._is_keeper()
        if is_keeper and not self._away and not self._has_room(data):
            self._send()  # it collects what a file holds, more than there is room for, and cannot wait for itself
        with self._changed:
            if keeping is not None and not is_keeper:
                # It prints faster than the registry takes it: it waits. Not where the registry is away.
                while not (self._has_room(data) or self._away) and self._place is not None and keeping.is_alive():
                    self._changed.wait(_LOOK_EVERY)
            if self._has_room(data):
                self._put(data)
            elif self._dropped_from is None:
                # Whole lines only: a note in the midst of an escape sequence would not be seen.
                kept = data[: data.rfind(b"\n", 0, max(0, _ROOM - self._size)) + 1]
                self._put(kept)
                self._dropped_from = self._given + len(kept)
            self._given += len(data)
            self._owed += len(data)
            self._ends_line = data.endswith((b"\n", b"\r"))
            is_due = self._is_quiet or (self._size > _ENOUGH and not self._away and not self._is_told)
            if is_due:
                self._is_quiet, self._is_told = False, True
        if keeping is None:
            self._send()
        elif is_due and not is_keeper and self._place is not None:
            keeping.wake(self._place)

    @property
    def given(self) -> tuple[int, bool]:
        """How many bytes it was given, and whether a new line begins there."""
        with self._changed:
            return self._given, self._ends_line

    def now(self) -> int:
        """Return how many milliseconds it is since the job began."""
        return int(1000 * (time.monotonic() - self._begun))

    def report(self, progress: Progress | None = None, title: str | None = None, steps: Steps | None = None) -> None:
        """Take how far the job is, what it is called now, or which steps it has. Raises nothing: progress that is not
        told is not missed for long."""
        self._progress, self._title = progress or self._progress, title or self._title
        self._steps = steps or self._steps
        now = time.monotonic()
        if self._keeping is None or (self._parent and now >= self._tell_at):
            self._tell_at = now + _TELL_EVERY
            self._look()
            # Where it is away the job does not wait for it again soon.
            if self._has_news():
                self._tell_at = now + RENEW_EVERY

    def flush(self) -> None:
        """Send what was stored so far, if the registry takes it now. Any thread may call."""
        self._send()

    def end(self) -> None:
        """Stop keeping, and send what is left, patiently. Nothing is stored behind it.

        Not where the storage is full: who has a response has waited for room to store that.
        """
        if self._keeping is not None and self._place is not None:
            self._keeping.leave(self._place)
            self._place = None
        if self._ticking is not None and self._output is not None:
            self._ticking.leave(self._output)
        if not (self._size or self._dropped_from is not None or self._has_news()):
            return  # as of most jobs: all is sent, and nobody stores more
        for _ in _tries(self._registry):
            if self._has_told_all() or self._full:
                break
        if self._send():
            with self._changed:
                if self._dropped_from is not None:  # while there was no room
                    self._put(b"")
            self._send()

    @property
    def missing(self) -> str:
        """In the end: what is to be said of output that is not stored, nor a word about it; empty: nothing."""
        return f"the last {self._owed} bytes of its output could not be stored" if self._owed else ""

    def _is_keeper(self) -> bool:
        return self._keeping is not None and self._keeping.is_here()

    @property
    def end_sent(self) -> int:
        """The end of the output as its registry said last; 0 where nobody wanted it any more."""
        return 0 if self._forgot else self._end

    def mend(self) -> None:
        """Say what is missing of the output, if its registry went back since all was sent."""
        with self._sending, contextlib.suppress(Fenced, JobNotFound, JobExpired):
            patiently(self._registry, lambda: self._is_appended(b""))

    def _has_told_all(self) -> bool:
        sent = self._send()
        self._look()
        return sent and not self._has_news()

    def _has_news(self) -> bool:
        return self._progress is not None or self._title is not None or self._steps is not None

    def _has_room(self, data: bytes) -> bool:
        return not self._size or self._size + len(data) <= _ROOM

    def _put(self, data: bytes) -> None:
        if self._dropped_from is not None:
            note = f"\n[bytes {self._dropped_from} to {self._given} of the output could not be stored]\n".encode()
            self._waiting.append((memoryview(note), self.now(), self._given - self._dropped_from))
            self._size += len(note)
            self._dropped_from = None
        if data:
            self._waiting.append((memoryview(data), self.now(), len(data)))
            self._size += len(data)

    def _next_chunk(self) -> bytes:
        if not self._chunk:
            with self._changed:
                parts, room = [], _CHUNK
                self._came = []
                self._stands_for = 0
                while self._waiting and room:
                    part, came, stands_for = self._waiting.popleft()
                    if len(part) > room:
                        left = stands_for * (len(part) - room) // len(part)
                        self._waiting.appendleft((part[room:], came, left))
                        part, stands_for = part[:room], stands_for - left
                    self._stands_for += stands_for
                    parts.append(part)
                    room -= len(part)
                    if self._came and self._came[-1][1] == came:
                        self._came.pop()
                    self._came.append((_CHUNK - room, came))
                self._chunk = b"".join(parts)
        return self._chunk

    def _send(self) -> bool:
        """Append what waits now; return whether it is in, or nobody wants it any more."""
        with self._sending:
            left = self._size  # what comes meanwhile waits for the next time: it need never end
            try:
                while left > 0 and (chunk := self._next_chunk()):
                    # Always the same frozen chunk at the same offset: if it had arrived after all, it is a no-op.
                    if not self._is_appended(chunk):
                        continue
                    self._chunk = b""
                    left -= len(chunk)
                    with self._changed:
                        self._size -= len(chunk)
                        self._owed -= self._stands_for
                        self._is_told = False
                        self._changed.notify_all()
                    if self._keeping is not None and self._keeping.is_here():
                        self._keeping.see_to_looks()  # those of the other jobs too
            except _GONE:
                self._forget()
            except Exception as error:
                self._say_away(error)
                return False
            self._away = self._full = False
            return True

    def _is_appended(self, chunk: bytes) -> bool:
        """Append a chunk; where the registry went back, do what must be done before that, and return false."""
        try:
            times = [(self._end + size, came) for size, came in self._came] if chunk else []
            self._end = self._registry.append(
                self._key, Channel.OUTPUT, self._end, chunk, runner=self._runner, times=times
            )
        except BadOffset as error:
            if error.end >= self._end:
                raise
            self._leave_gap(error.end)
            return False
        except Fenced:
            if not self._reclaim():
                raise
            return False
        return True

    def _leave_gap(self, end: int) -> None:
        """Go on where the output was, though its registry has it only to *end*, and say so there."""
        lost = f"bytes {end} to {self._end} of the output are lost: its registry went back to what it was earlier"
        note = f"\n[{lost}]\n".encode()
        self._end = self._registry.leave_gap(self._key, self._end, note, runner=self._runner)
        with detached(), contextlib.suppress(Exception):
            _log.warning("job %s: %s", self._key[:8], lost)

    def _forget(self) -> None:
        """Drop what waits: the job was ended by somebody else, and nobody will read it."""
        self._forgot = True
        with self._changed:
            self._chunk = b""
            self._waiting.clear()
            self._size = self._owed = 0
            self._changed.notify_all()

    def _say_away(self, error: Exception) -> None:
        with self._changed:
            away, self._away = self._away, True
            self._full = isinstance(error, StorageFull)
            self._changed.notify_all()
        if not away:
            self._say("output waits for its registry", error)

    def _say(self, what: str, error: Exception) -> None:
        # It is not the job that says this. And what a log handler of the app raises ends no keeper.
        with detached(), contextlib.suppress(Exception):
            _log.warning("job %s: %s: %s", self._key[:8], what, as_trouble(error))

    # In the thread of the keeping, while the job runs.

    def turn(self) -> float:
        """Send what there is now; return when there is to be more."""
        sent = False
        try:
            if self._has_news():
                self._look()
            if self._gather():
                self._pause = _BACK_OFF[0]
                return time.monotonic() + _COLLECT_EVERY
            sent = self._send()
        except Exception as error:
            self._say("its keeper goes on", error)
        self._pause = _GATHER if sent else min(2 * max(self._pause, _BACK_OFF[0]), _BACK_OFF[1])
        return time.monotonic() + self._pause

    def _gather(self) -> bool:
        """Take what was printed so far; return whether that is nothing. Then what is printed from here on wakes us."""
        output = self._output
        assert output is not None  # noqa: S101  # begin() comes first
        with self._changed:
            self._is_quiet = self._is_told = False
        # While much is printed, it is gathered where it is, which costs the job nothing.
        output.watch(False)
        output.store_soon()
        if not self._size:
            # Told to store each line at once, then asked for what it has: so nothing is missed.
            output.watch(True)
            output.store_soon()
        with self._changed:
            self._is_quiet = not self._size
        if not self._is_quiet:
            output.watch(False)
        return self._is_quiet

    def look(self) -> float:
        """Look after the lease; return when to do so again."""
        try:
            self._look()
        except Exception as error:
            self._say("its keeper goes on", error)
        return max(self._due_look(), time.monotonic() + _COLLECT_EVERY)  # where it failed it is still due

    def _due_look(self) -> float:
        return min(self._renew_at, self._look_at)

    def _look(self) -> None:
        """Renew the lease when it is due, tell what is new, and hear whether a cancel was asked for."""
        now = time.monotonic()
        progress, self._progress = self._progress, None
        title, self._title = self._title, None
        steps, self._steps = self._steps, None
        is_left = self._parent and self._parent == os.getppid()
        leased = self._registry.shared and now >= self._renew_at and not is_left
        try:
            if leased or any(news is not None for news in (progress, title, steps)):
                lease = LEASE if leased else None
                ok, cancel = self._registry.renew(
                    self._key, self._runner, lease=lease, progress=progress, title=title, steps=steps
                )
                if leased:
                    self._renew_at = now + RENEW_EVERY
                if not ok and not self._reclaim():
                    self._interrupt("it was given up as lost")
            elif self._keeping is not None and now >= self._look_at and not is_left:
                cancel = self._registry.get(self._key).cancel_requested_at is not None
            else:
                return
            self._look_at = now + _LOOK_EVERY
            if cancel and self._keeping is not None:
                self._interrupt(self._registry.get(self._key).reason)
        except (JobNotFound, JobExpired):
            self._interrupt("its registry has forgotten it")
        except Exception:  # the next look tries again
            self._progress, self._title = self._progress or progress, self._title or title
            self._steps = self._steps or steps

    def _interrupt(self, reason: str) -> None:
        if self._output is not None:
            self._output.interrupt(reason)
