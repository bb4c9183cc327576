"""Run one recorded request, or one function, as a job: capture what it prints, record what it answers, write down how
it ended. Where it runs is the executor's choice."""

import contextlib
import io
import json
import logging
import os
import traceback
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from ._capture import JobOutput, detached, error_stream, install, use_output, write_late
from ._jobs import Channel, JobState, Progress, RecordedResponse
from ._recording import IN_MEMORY, replay_environ
from .errors import Fenced, JobCancelled, JobExpired, JobNotFound, RegistryError
from .registries.base import Registry

__all__ = ["Run", "RunningJob", "Work", "call_function", "replay_request"]

_log = logging.getLogger("bgmiddleware")

_BODY_CHUNK = 256 * 1024
_UNSENT_LIMIT = 1024 * 1024
# What concerns one connection only (RFC 9110 §7.6.1, RFC 2616 §13.5.1): servers refuse it from an app.
_HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization te trailer trailers transfer-encoding upgrade".split()
)


class RunningJob:
    """The job that the calling code belongs to: see :func:`bgmiddleware.current_job`. Any thread of it may call.

    *key* names it in its registry; *title* is what people call it.
    """

    def __init__(self, key: str, title: str, check: Callable[[], None], report: Callable[[Progress], None]) -> None:
        self.key = key
        self.title = title
        self._check = check
        self._report = report

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Say how far the job is: *done* of *total*, and what it is doing. A cancellation point, as :meth:`check`."""
        self.check()
        self._report(Progress(done, total, message))

    def check(self) -> None:
        """Raise :class:`~bgmiddleware.JobCancelled` if the job was asked to stop; call it now and then in a loop that
        does not print. Only the job's own thread is interrupted: in its helper threads this does nothing."""
        self._check()


class Work(Protocol):
    """What a job does: it gives the body to *write* in pieces and its response's head to *head*."""

    def __call__(self, head: "Callable[[RecordedResponse], None]", write: Callable[[bytes], None]) -> None: ...


class Run:
    """One job, ready to be run once in this process, by whatever thread an executor has.

    An executor of this process calls it; one of another process carries its *key* and nothing else.
    """

    def __init__(
        self,
        key: str,
        title: str,
        registry: Registry,
        work: Work,
        context: Context,
        *,
        preface: str = "",
        takes_logging: bool = True,
    ) -> None:
        self.key = key
        self._registry = registry
        self._work = work
        self._context = context
        self._preface = preface
        self.title = title
        self._runner = f"{os.getpid()}/{key}"
        self._takes_logging = takes_logging
        self._output: JobOutput | None = None  # from the claim on
        self._response: RecordedResponse | None = None
        self._abandoned = False

    def __call__(self) -> None:
        """Run the job, if it is still pending, and write down how it ended. Raises nothing that the job raised."""
        try:
            if self._registry.claim(self.key, self._runner):
                self._context.run(self._run)
        except (JobNotFound, JobExpired):
            _log.info("job %s was gone before it began", self.key[:8])
        except BaseException:  # a worker thread must live on, whatever it was
            _log.exception("job %s could not be run or recorded", self.key[:8])

    def abandon(self, reason: str) -> None:
        """Write down that the job is lost, from another thread than the one that runs it; interrupt it if it runs.

        Its output up to here is kept. Does nothing if it has ended.
        """
        self._abandoned = True
        with contextlib.suppress(JobNotFound, JobExpired):
            lost = JobState.LOST
            if self._registry.transition(self.key, {JobState.PENDING}, lost, reason=reason):
                return
            output = self._output
            if output is not None:
                output.drain()
            if self._registry.finish(self.key, self._runner, lost, reason=reason) and output is not None:
                output.interrupt(reason)

    def _run(self) -> None:
        install()
        store = _OutputStore(self._registry, self.key, self._runner)
        job = RunningJob(self.key, self.title, self._check, self._report)
        late = write_late("stdout"), write_late("stderr")
        self._output = output = JobOutput(store, *late, job=job, takes_logging=self._takes_logging)
        output.begin()
        state, reason = JobState.FAILED, "its runner failed"
        try:
            self._registry.attach(self.key, output)
            with use_output(output):
                if self._preface:
                    output.note(self._preface)
                state, reason = self._outcome(output)
        finally:
            # In this order: who sees the end sees everything.
            output.end()
            self._registry.finish(self.key, self._runner, state, reason=reason, response=self._response)

    def _outcome(self, output: JobOutput) -> tuple[JobState, str]:
        try:
            body = _BodyStore(self._registry, self.key, self._runner, output)
            try:
                self._work(self._take_head, body.write)
            finally:
                body.flush()
        except JobCancelled as cancelled:
            return JobState.CANCELLED, cancelled.reason
        except BaseException as error:  # SystemExit too: a view that exits must not take the worker with it
            if self._abandoned:  # nobody will read what is written of it
                return JobState.LOST, "abandoned"
            # Text, not the exception: its frames would be kept for a whole TTL.
            output.note("".join(traceback.format_exception(_without_our_frames(error))))
            with detached():  # the server's log, where it would be if the request had run in the foreground
                _log.error("job %s failed: %s", self.key[:8], _described(error), exc_info=error)
            if self._response is not None:
                self._response = RecordedResponse(self._response.status, self._response.headers, complete=False)
            return JobState.FAILED, _described(error)
        if self._response is not None and self._response.code >= 500:
            return JobState.FAILED, f"the app answered {self._response.status}"
        return JobState.FINISHED, ""

    def _take_head(self, response: RecordedResponse) -> None:
        self._response = response

    def _check(self) -> None:
        if self._output is not None:
            self._output.check()

    def _report(self, progress: Progress) -> None:
        held = contextlib.nullcontext() if self._output is None else self._output.held()
        with held, contextlib.suppress(RegistryError, JobNotFound, JobExpired):
            self._registry.renew(self.key, self._runner, progress=progress)


def _without_our_frames(error: BaseException) -> BaseException:
    """Begin the traceback where the app was called; leave it whole if it never was."""
    frames = error.__traceback__
    while frames is not None and frames.tb_frame.f_globals.get("__name__") == __name__:
        frames = frames.tb_next
    return error if frames is None else error.with_traceback(frames)


def _described(error: BaseException) -> str:
    """Return the last line of a traceback: what a person needs to know first. Bounded."""
    return traceback.format_exception_only(error)[-1].strip()[:500]


class _OutputStore:
    """Appends to the output channel. What the registry cannot take now is kept, within a bound, and sent again.

    Called with the output's lock held, so by one thread at a time.
    """

    def __init__(self, registry: Registry, key: str, runner: str) -> None:
        self._registry = registry
        self._key = key
        self._runner = runner
        self._end = 0
        self._unsent: list[bytes] = []
        self._unsent_size = 0
        self._dropped = 0

    def __call__(self, data: bytes) -> None:
        if self._unsent_size + len(data) > _UNSENT_LIMIT and self._unsent:
            self._dropped += len(data)
        else:
            if self._dropped:
                data = f"\n[{self._dropped} bytes of output could not be stored]\n".encode() + data
                self._dropped = 0
            self._unsent.append(data)
            self._unsent_size += len(data)
        try:
            while self._unsent:
                # Always the same frozen chunk at the same offset: if it had arrived after all, it is a no-op.
                chunk = self._unsent[0]
                self._end = self._registry.append(self._key, Channel.OUTPUT, self._end, chunk, runner=self._runner)
                self._unsent_size -= len(chunk)
                del self._unsent[0]
        except (Fenced, JobNotFound, JobExpired):
            self._unsent.clear()  # the job was ended by somebody else: nobody will read this
            self._unsent_size = 0
        except RegistryError as error:
            _log.warning("job %s: output waits for its registry: %s", self._key[:8], error)


class _BodyStore:
    """Gathers the pieces of a response body and appends them to its channel."""

    def __init__(self, registry: Registry, key: str, runner: str, output: JobOutput) -> None:
        self._registry = registry
        self._key = key
        self._runner = runner
        self._output = output
        self._parts: list[bytes] = []
        self._size = 0
        self._end = 0

    def write(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size >= _BODY_CHUNK:
            self.flush()

    def flush(self) -> None:
        if self._size:
            data = b"".join(self._parts)
            self._parts.clear()
            self._size = 0
            with self._output.held():
                self._end = self._registry.append(self._key, Channel.BODY, self._end, data, runner=self._runner)


def replay_request(
    app: Callable[..., Iterable[bytes]],
    registry: Registry,
    key: str,
    stored: Mapping[str, str],
    kept: Mapping[str, Any],
) -> Work:
    """Return the work of calling *app* with a recorded request, whose body is in the registry."""

    def work(head: Callable[[RecordedResponse], None], write: Callable[[bytes], None]) -> None:
        with contextlib.closing(_open_request_body(registry, key)) as body:
            environ = replay_environ(stored, kept, body, error_stream(), multiprocess=registry.shared)
            _Exchange(head, write).run(app, environ)

    return work


def _open_request_body(registry: Registry, key: str) -> BinaryIO:
    first = registry.read(key, Channel.REQUEST, 0, IN_MEMORY).data
    if len(first) < IN_MEMORY:
        return io.BytesIO(first)
    return io.BufferedReader(_ChannelReader(registry, key), IN_MEMORY)


class _ChannelReader(io.RawIOBase):
    """A seekable file over the request channel, so that a large body is never in memory as a whole."""

    def __init__(self, registry: Registry, key: str) -> None:
        self._registry = registry
        self._key = key
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._registry.read(self._key, Channel.REQUEST, self._at, min(len(buffer), IN_MEMORY)).data
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self._at
        elif whence == io.SEEK_END:
            offset += self._size()
        if offset < 0:
            raise ValueError(f"negative seek position {offset}")
        self._at = offset
        return offset

    def _size(self) -> int:
        at = self._at
        size = 0
        while data := self._registry.read(self._key, Channel.REQUEST, size, IN_MEMORY).data:
            size += len(data)
        self._at = at
        return size

    def tell(self) -> int:
        return self._at


ExcInfo = tuple[type[BaseException], BaseException, TracebackType]


class _Exchange:
    """The server's side of one call of a WSGI application (PEP 3333), which records instead of sending."""

    def __init__(self, head: Callable[[RecordedResponse], None], write: Callable[[bytes], None]) -> None:
        self._head = head
        self._write = write
        self._response: RecordedResponse | None = None
        self._abandoned = False
        self._body_begun = False

    def run(self, app: Callable[..., Iterable[bytes]], environ: dict[str, Any]) -> None:
        iterable = app(environ, self._start_response)
        try:
            for data in iterable:
                # "The start_response callable must not actually transmit the response headers" before the first
                # non-empty string: until then an app may still change its mind, or not have called it yet.
                if data:
                    self._send(data)
            if self._response is None:
                raise RuntimeError("the application did not call start_response()")
        finally:
            close = getattr(iterable, "close", None)
            if close is not None:
                close()

    def _start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None
    ) -> Callable[[bytes], None]:
        if exc_info is not None:
            try:
                if self._body_begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # as PEP 3333 asks: no circular reference
        elif self._response is not None:
            raise AssertionError("start_response() was called a second time without exc_info")
        self._response = RecordedResponse(_checked_status(status), _checked_headers(headers))
        self._head(self._response)
        return self._send

    def _send(self, data: bytes) -> None:
        if self._response is None:
            raise AssertionError("the application sent a body before it called start_response()")
        if not isinstance(data, bytes):
            raise TypeError(f"the application's body must be bytes, not {type(data).__name__}")
        self._body_begun = True
        self._write(data)


def _checked_status(status: object) -> str:
    if not isinstance(status, str):
        raise TypeError(f"a status must be str, not {type(status).__name__}")
    if len(status) < 4 or not (status[:3].isascii() and status[:3].isdigit()) or status[3] != " ":
        raise ValueError(f"{status!r} is no status: expected three digits, a space and a reason")
    return status


def _checked_headers(headers: object) -> tuple[tuple[str, str], ...]:
    if not isinstance(headers, list):
        raise TypeError(f"headers must be a list, not {type(headers).__name__}")
    for name, value in headers:
        if not (isinstance(name, str) and isinstance(value, str)):
            raise TypeError(f"a header must be two str: {name!r}, {value!r}")
        if any(character in name + value for character in "\r\n\0"):
            raise ValueError(f"a header may not contain line breaks: {name!r}")
    return tuple((name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP)


def call_function(function: Callable[[], Any]) -> Work:
    """Return the work of calling a function: what it returns becomes the response.

    ``None`` is 204, ``str`` plain text, ``bytes`` octets, all else JSON; what is no JSON is 204 too.
    """

    def work(head: Callable[[RecordedResponse], None], write: Callable[[bytes], None]) -> None:
        response, body = _response_of(function())
        head(response)
        write(body)

    return work


def _response_of(value: Any) -> tuple[RecordedResponse, bytes]:
    if isinstance(value, str):
        kind, body = "text/plain; charset=utf-8", value.encode("utf-8", "backslashreplace")
    elif isinstance(value, bytes):
        kind, body = "application/octet-stream", value
    else:
        try:
            kind, body = "application/json", b"" if value is None else json.dumps(value).encode()
        except (TypeError, ValueError):
            body = b""
        if not body:
            return RecordedResponse("204 No Content", ()), b""
    return RecordedResponse("200 OK", (("Content-Type", kind), ("Content-Length", str(len(body))))), body
