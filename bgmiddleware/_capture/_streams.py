"""The stand-ins for the standard streams, and the context variable that says whose output this is."""

import contextlib
import functools
import io
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from typing import Any, TextIO

from ._output import Output

__all__ = [
    "after_fork",
    "bound",
    "current_output",
    "detached",
    "error_stream",
    "install",
    "use_output",
    "write_late",
]

_LARGE = 4096

current: ContextVar[Output | None] = ContextVar("bgmiddleware_output", default=None)
_install_lock = threading.Lock()  # guards the replacing of sys.stdout, sys.stderr and sys.stdin
_latest: dict[str, "_StandIn"] = {}  # the newest, by name


def current_output() -> Output | None:
    """Return the output that the running code prints to; None outside of jobs and watched requests."""
    return current.get()


@contextlib.contextmanager
def use_output(output: Output | None) -> Iterator[None]:
    """Route what is printed in this block, in this context, to *output*."""
    token: Token[Output | None] = current.set(output)
    try:
        yield
    finally:
        current.reset(token)


@contextlib.contextmanager
def detached() -> Iterator[None]:
    """Run a block outside of the job: what it prints goes to the server's streams, and threads that it begins are
    nobody's children. For long-lived helpers that one job happens to begin for all."""
    with use_output(None):
        yield


def bound(function: Callable[..., Any], output: Output) -> Callable[..., Any]:
    """Return *function* so that what it prints goes to *output*, in whatever thread it is called."""

    def run(*args: Any, **options: Any) -> Any:
        with use_output(output):
            return function(*args, **options)

    return run


class _StandIn(io.TextIOWrapper):
    """What ``sys.stdout`` or ``sys.stderr`` is from the first job on: it writes to the output of whoever is writing.

    A ``TextIOWrapper``, because libraries ask for one before they look at ``buffer`` or call ``reconfigure``.
    """

    def __init__(self, original: Any, name: str) -> None:
        write_original = _write_of(original)
        get = current.get
        self.original = original
        self._title = name
        self._bytes = _ByteStandIn(self)
        buffer: Any = self._bytes
        super().__init__(buffer, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)

        # Functions of the instance: no bound method is made for a print, and a copy that somebody keeps stays right.
        # Twice the same but for one word, and with the job's list in them: a call more would be a fifth of a print.
        if name == "stdout":

            def write(text: str) -> int:
                output = get()
                if output is None:
                    return write_original(text)
                if text.__class__ is str:
                    pending = output.pending
                    if pending is not None:
                        pending.append(text)
                        if (size := len(text)) < _LARGE and len(pending) < output.batch:
                            return size
                        output.drain_soon()
                        return size
                write_slowly = output.out
                return write_slowly(text)
        else:

            def write(text: str) -> int:
                output = get()
                if output is None:
                    return write_original(text)
                if text.__class__ is str:
                    pending = output.pending
                    if pending is not None:
                        pending.append(text)
                        if (size := len(text)) < _LARGE and len(pending) < output.batch:
                            return size
                        output.drain_soon()
                        return size
                write_slowly = output.err
                return write_slowly(text)

        self.__dict__["write"] = write
        self.write_original = write_original

    def flush(self) -> None:
        output = current.get()
        if output is not None and output.job is not None:
            output.flush()
        elif not getattr(self.original, "closed", False):
            flush = getattr(self.original, "flush", None)  # there are streams that have only write
            if flush is not None:
                flush()

    def fileno(self) -> int:
        output = current.get()
        number = None if output is None else output.fileno()
        if number is None:
            if self.original is None:
                raise io.UnsupportedOperation("fileno")
            number = self.original.fileno()
        return int(number)

    def isatty(self) -> bool:
        # 2 to 19 times fewer bytes than a terminal would be sent, and a viewer that need not be one.
        ask = None if self._in_job() else getattr(self.original, "isatty", None)
        return ask is not None and bool(ask())

    def reconfigure(self, **options: Any) -> None:
        if not self._in_job() and hasattr(self.original, "reconfigure"):
            self.original.reconfigure(**options)

    def close(self) -> None:
        """Do nothing: no job may close the server's streams, nor may the end of this object."""

    def detach(self) -> Any:
        raise io.UnsupportedOperation("detach")

    def _in_job(self) -> bool:
        output = current.get()
        return output is not None and output.job is not None

    @property
    def buffer(self) -> Any:
        return self._bytes

    @property
    def encoding(self) -> str:  # type: ignore[override]  # an attribute of the base, a question here
        return "utf-8" if self._in_job() else getattr(self.original, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return "backslashreplace" if self._in_job() else getattr(self.original, "errors", None)

    @property
    def line_buffering(self) -> bool:
        return True if self._in_job() else bool(getattr(self.original, "line_buffering", False))

    @property
    def closed(self) -> bool:
        return not self._in_job() and bool(getattr(self.original, "closed", False))

    @property
    def name(self) -> str:
        return f"<{self._title}>"

    @property
    def mode(self) -> str:
        return "w"

    def __repr__(self) -> str:
        return f"<bgmiddleware {self._title} of {self.original!r}>"


class _StandInOfOther(_StandIn):
    """For an original that may have more to it than a ``TextIOWrapper``: that is forwarded.

    A class apart, because ``__getattr__`` slows down the look-up of all that is there, too: a print by 7 %.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)


def _write_of(original: Any) -> Callable[[str], int]:
    if original is None:  # a process without streams: then nothing is written
        return len
    try:
        write: Callable[[str], int] = original.write
    except Exception:  # mod_wsgi has a stdout that raises whatever one asks of it: it shall do so to who prints to it
        return lambda text: int(original.write(text))
    return write


class _ByteStandIn(io.BufferedIOBase):
    """The ``buffer`` of a stand-in: one object for all, because click and others keep it."""

    def __init__(self, text: _StandIn) -> None:
        self._text = text

    def write(self, data: Any) -> int:
        output = current.get()
        if output is None:
            return self._write_original(data)
        return output.write_bytes(data, self._write_original)

    def __getattr__(self, name: str) -> Any:  # raw, for one
        return getattr(self._text.original.buffer, name)

    def _write_original(self, data: Any) -> int:
        buffer = getattr(self._text.original, "buffer", None)
        if buffer is None:  # a StringIO of a test runner
            return self._text.write_original(bytes(data).decode("utf-8", "backslashreplace"))
        return int(buffer.write(data))

    def flush(self) -> None:
        self._text.flush()

    def fileno(self) -> int:
        return self._text.fileno()

    def isatty(self) -> bool:
        return self._text.isatty()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Do nothing, as the text stream does."""


class _StdinStandIn(io.TextIOBase):
    """``sys.stdin``: at its end inside a job, which must not read what is typed at the server; else the original."""

    def __init__(self, original: Any) -> None:
        self.original = original

    def _source(self) -> Any:
        output = current.get()
        return self.original if output is None or output.job is None else _nothing()

    def read(self, size: int | None = -1) -> str:
        return str(self._source().read(-1 if size is None else size))

    def readline(self, size: int = -1) -> str:  # type: ignore[override]
        return str(self._source().readline(size))

    def fileno(self) -> int:
        return int(self._source().fileno())

    def isatty(self) -> bool:
        return bool(self._source().isatty())

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        """Do nothing: the server's stdin is not ours to close."""

    @property
    def closed(self) -> bool:
        return bool(getattr(self._source(), "closed", False))

    # What TextIOBase has and does not fill in; input() at a terminal asks for the first two.

    @property
    def encoding(self) -> str | None:  # type: ignore[override]
        return getattr(self._source(), "encoding", None)

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return getattr(self._source(), "errors", None)

    @property
    def newlines(self) -> Any:  # type: ignore[override]
        return getattr(self._source(), "newlines", None)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source(), name)


@functools.cache
def _nothing() -> TextIO:
    """Return a file that is at its end, with a descriptor and a buffer. One for all jobs, open for good."""
    return io.TextIOWrapper(io.BufferedReader(io.FileIO(os.open(os.devnull, os.O_RDONLY), closefd=False)), "utf-8")


def install() -> None:
    """Put the stand-ins in place, where they are not or no longer. Idempotent; any thread; cheap to repeat.

    They are never taken away again: that is only safe as long as nobody else has put a stream over them.
    """
    if sys.stdout is _latest.get("stdout") and sys.stderr is _latest.get("stderr") and type(sys.stdin) is _StdinStandIn:
        return  # the usual case, quickly
    if _holds_stand_in(sys.stdout) and _holds_stand_in(sys.stderr) and _is_stand_in_or_none(sys.stdin):
        return
    # Here and not above: the hooks use this module.
    from ._hooks import install_hooks, rebind_logging

    with _install_lock:
        install_hooks()
        for name in ("stdout", "stderr"):
            original: TextIO | None = getattr(sys, name)
            if not _holds_stand_in(original):
                kind = _StandIn if original is None or type(original) is io.TextIOWrapper else _StandInOfOther
                stand_in = _latest[name] = kind(original, name)
                setattr(sys, name, stand_in)
                rebind_logging(original, stand_in)
        if not _is_stand_in_or_none(sys.stdin):
            setattr(sys, "stdin", _StdinStandIn(sys.stdin))  # noqa: B010  # not a TextIO to mypy, but to all who read


def _is_stand_in_or_none(stream: object) -> bool:
    return stream is None or type(stream) is _StdinStandIn


def _holds_stand_in(stream: object, depth: int = 4) -> bool:
    """Whether *stream* is a stand-in, or a wrapper of one that passes writes on (colorama, codecs, tee)."""
    while stream is not None and depth:
        # No attribute is asked of a foreign object, not even __class__: see _write_of.
        if issubclass(type(stream), _StandIn):
            return True
        try:
            inner = object.__getattribute__(stream, "__dict__")
        except AttributeError:
            return False
        stream = next((inner[name] for name in _WRAPPED if name in inner), None)
        depth -= 1
    return False


_WRAPPED = ("_StreamWrapper__wrapped", "stream", "_file", "wrapped", "_wrapped")


def error_stream() -> TextIO:
    """Return the stand-in of ``sys.stderr``, to be a replayed request's ``wsgi.errors``."""
    install()
    return _latest["stderr"]


def write_late(name: str) -> Callable[[str], int]:
    """Return a function that writes to what ``sys.stdout`` or ``sys.stderr`` (*name*) is outside of jobs, looked up at
    each call: a stream that was the original once may be closed by now."""

    def write(text: str) -> int:
        stream = getattr(sys, name)
        if stream is None:
            return len(text)
        if issubclass(type(stream), _StandIn):
            written: int = stream.write_original(text)
            return written
        with use_output(None):  # somebody's wrapper, which comes back to a stand-in
            return int(stream.write(text) or 0)

    return write


def after_fork() -> None:
    """In a forked child: another thread of the parent may have been installing."""
    global _install_lock
    _install_lock = threading.Lock()
