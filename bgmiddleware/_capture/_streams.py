"""The stand-ins for the standard streams, and the context variable that says whose output this is."""

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from typing import Any, TextIO

from ._output import LARGE, JobOutput, Output, pass_on

__all__ = [
    "ByteStandIn",
    "StandIn",
    "StandInOfOther",
    "StdinStandIn",
    "bound",
    "current",
    "current_output",
    "detached",
    "job_output",
    "printing",
    "restore",
    "route",
    "use_output",
]

current: ContextVar[Output | None] = ContextVar("bgmiddleware_output", default=None)

printing: ContextVar[Callable[[str], int]] = ContextVar("bgmiddleware_printing")
"""What ``print`` calls; set wherever ``current`` is, so unset in contexts that never ran anything of ours."""


def route(output: Output | None) -> tuple[Token[Any], Token[Any]]:
    """Let what is written in this context go to *output*; return what :func:`restore` needs to undo it."""
    return current.set(output), printing.set(pass_on if output is None else output.printer)


def restore(before: tuple[Token[Any], Token[Any]]) -> None:
    """Undo a :func:`route`."""
    current.reset(before[0])
    printing.reset(before[1])


def current_output() -> Output | None:
    """Return the output that the running code prints to; None outside of jobs and watched requests."""
    return current.get()


def job_output() -> JobOutput | None:
    """Return the output of the running job that the code belongs to; None outside of jobs and after their end."""
    output = current.get()
    return output if isinstance(output, JobOutput) and output.job is not None else None


@contextlib.contextmanager
def use_output(output: Output | None) -> Iterator[None]:
    """Route what is printed in this block, in this context, to *output*."""
    before = route(output)
    try:
        yield
    finally:
        restore(before)


@contextlib.contextmanager
def detached() -> Iterator[None]:
    """Run a block outside of the job: what it prints goes to the server's streams, and threads that it begins are
    nobody's children. For long-lived helpers that one job happens to begin for all."""
    with use_output(None):
        yield


def bound(function: Callable[..., Any], output: Output | None) -> Callable[..., Any]:
    """Return *function* so that what it prints goes to *output*, in whatever thread it is called."""

    def run(*args: Any, **options: Any) -> Any:
        with use_output(output):
            return function(*args, **options)

    return run


class StandIn(io.TextIOWrapper):
    """What ``sys.stdout`` or ``sys.stderr`` is from the first job on: it writes to the output of whoever is writing.

    A ``TextIOWrapper``, because libraries ask for one before they look at ``buffer`` or call ``reconfigure``.
    """

    def __init__(self, original: Any, name: str) -> None:
        write_original = _write_of(original)
        get = current.get
        buffer: Any = ByteStandIn(self)
        vars(self).update(original=original, _title=name, _bytes=buffer, write_original=write_original)
        super().__init__(buffer, encoding="utf-8", errors="backslashreplace", newline="", write_through=True)

        # Functions of the instance: no bound method is made for a write, and a copy that somebody keeps stays right.
        if name == "stdout":
            # With the job's list in it: a call more would be a fifth of a write.
            def write(text: str) -> int:
                output = get()
                if output is None:
                    return write_original(text)
                if text.__class__ is str:
                    pending = output.pending
                    if pending is not None:
                        pending.append(text)
                        if (size := len(text)) < LARGE and len(pending) < output.batch:
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
                write_slowly = output.err
                return write_slowly(text)

        vars(self)["write"] = write

    original: Any
    write_original: Callable[[str], int]
    _title: str
    _bytes: "ByteStandIn"

    def __setattr__(self, name: str, value: Any) -> None:
        """Let a job that replaces what the stream does, as ``mock.patch.object`` does, replace it for itself only."""
        # The interpreter sets this one when the stream is garbage, in whatever job that happens to be seen.
        own = None if name == "_finalizing" else self._own()
        setattr_here = super().__setattr__ if own is None else own.change
        setattr_here(name, value)

    def __delattr__(self, name: str) -> None:
        delattr_here = super().__delattr__ if (own := self._own()) is None else own.restore
        delattr_here(name)

    def _own(self) -> "_ChangedStandIn | None":
        """Return the stream that the running job has instead of this one, everybody's; None outside of jobs."""
        output = current.get()
        if output is None or output.job is None:
            return None
        own = output.assigned.get(self._title)
        if not isinstance(own, _ChangedStandIn):
            own = _ChangedStandIn(self.original, self._title)
            output.assign(self._title, own)
        return own

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
        number = None if output is None else output.fileno(self._title)
        if number is None:
            if self.original is None:
                raise io.UnsupportedOperation("fileno")
            number = self.original.fileno()
        return int(number)

    def isatty(self) -> bool:
        # 2 to 19 times fewer bytes than a terminal would be sent, and a viewer that need not be one.
        ask = None if self.is_in_job() else getattr(self.original, "isatty", None)
        return ask is not None and bool(ask())

    def reconfigure(self, **options: Any) -> None:
        if not self.is_in_job() and hasattr(self.original, "reconfigure"):
            self.original.reconfigure(**options)

    def close(self) -> None:
        """Do nothing: no job may close the server's streams, nor may the end of this object."""

    def detach(self) -> Any:
        """Return the bytes of this stream, which stays what it is: it is everybody's."""
        return self._bytes

    def is_in_job(self) -> bool:
        output = current.get()
        return output is not None and output.job is not None

    @property
    def buffer(self) -> Any:
        return self._bytes

    @property
    def encoding(self) -> str:  # type: ignore[override]  # an attribute of the base, a question here
        return "utf-8" if self.is_in_job() else getattr(self.original, "encoding", None) or "utf-8"

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return "backslashreplace" if self.is_in_job() else getattr(self.original, "errors", None)

    @property
    def line_buffering(self) -> bool:
        return True if self.is_in_job() else bool(getattr(self.original, "line_buffering", False))

    @property
    def closed(self) -> bool:
        return not self.is_in_job() and bool(getattr(self.original, "closed", False))

    @property
    def name(self) -> str:
        return f"<{self._title}>"

    @property
    def mode(self) -> str:
        return "w"

    def __repr__(self) -> str:
        return f"<bgmiddleware {self._title} of {self.original!r}>"


class StandInOfOther(StandIn):
    """For an original that may have more to it than a ``TextIOWrapper``: that is forwarded.

    A class apart, because ``__getattr__`` slows down the look-up of all that is there, too: a print by 7 %.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["original"], name)


class _ChangedStandIn(StandInOfOther):
    """What one job has as its stream once it has replaced a method of it."""

    def _own(self) -> "_ChangedStandIn":
        return self

    def change(self, name: str, value: Any) -> None:
        vars(self)[name] = value

    def restore(self, name: str) -> None:
        vars(self).pop(name, None)


def _write_of(original: Any) -> Callable[[str], int]:
    if original is None:  # a process without streams: then nothing is written
        return len
    try:
        write: Callable[[str], int] = original.write
    except Exception:  # mod_wsgi has a stdout that raises whatever one asks of it: it shall do so to who prints to it
        return lambda text: int(original.write(text))
    return write


class ByteStandIn(io.BufferedIOBase):
    """The ``buffer`` of a stand-in: one object for all, because click and others keep it."""

    def __init__(self, text: StandIn) -> None:
        self._text = text

    def write(self, data: Any) -> int:
        output = current.get()
        if output is None:
            return self._write_original(data)
        return output.write_bytes(data, self._write_original)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._text.original.buffer, name)

    def _dealloc_warn(self, source: object) -> None:
        """Do nothing: who lets go of a wrapper around us without closing it leaves no file open."""

    @property
    def raw(self) -> Any:
        return _RawStandIn(self) if self._text.is_in_job() else self._text.original.buffer.raw

    def _write_original(self, data: Any) -> int:
        buffer = getattr(self._text.original, "buffer", None)
        if buffer is None:  # a StringIO of a test runner
            return self._text.write_original(bytes(data).decode("utf-8", "backslashreplace"))
        return int(buffer.write(data))

    def flush(self) -> None:
        self._text.flush()

    def detach(self) -> Any:
        """Return what is below these bytes, which stay what they are."""
        return self.raw

    def fileno(self) -> int:
        return self._text.fileno()

    def isatty(self) -> bool:
        return self._text.isatty()

    def writable(self) -> bool:
        return True

    def close(self) -> None:
        """Do nothing, as the text stream does."""


class _RawStandIn(io.RawIOBase):
    """The ``raw`` of a stand-in's bytes, in a job: an object for each who asks, which they may close."""

    def __init__(self, stand_in: ByteStandIn) -> None:
        self._bytes = stand_in

    def write(self, data: Any) -> int:
        return self._bytes.write(data)

    def fileno(self) -> int:
        return self._bytes.fileno()

    def isatty(self) -> bool:
        return self._bytes.isatty()

    def writable(self) -> bool:
        return True


class StdinStandIn(io.TextIOBase):
    """``sys.stdin``: inside a job, which must not read what is typed at the server, it has the lines that readers
    answer, or is at its end; else the original."""

    def __init__(self, original: Any) -> None:
        self.original = original

    def _source(self) -> Any:
        output = current.get()
        return self.original if output is None or output.job is None else _nothing()

    def read(self, size: int | None = -1) -> str:
        return str(self._source().read(-1 if size is None else size))

    def readline(self, size: int = -1) -> str:  # type: ignore[override]
        output = current.get()
        if isinstance(output, JobOutput) and output.job is not None and output.read_line is not None:
            return output.read_line()
        return str(self._source().readline(size))

    def __next__(self) -> str:  # type: ignore[override]
        return str(next(self._source()))  # reading to the end asks nobody

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
