"""The middleware: look, decide, delegate."""

import re
from collections.abc import Callable, Iterable
from contextvars import Context, copy_context
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl

from . import _context, marks
from ._capture import ForegroundOutput, install, use_output, write_late
from ._context import BackgroundRequested
from ._jobs import Channel, Job, key_of, new_token
from ._recording import MAX_BODY, RecordedRequest, RememberingInput, record_request, title_of
from ._runner import Run, Work, call_function, replay_request
from ._serving import (
    UNSTORED,
    Answer,
    Slots,
    StartResponse,
    Visit,
    about,
    names_json,
    problem,
    retry_after,
    serve,
    status_answer,
)
from .errors import BadRequestBody, ConfigurationError, QueueFull, RegistryFull
from .executors.base import Executor
from .executors.thread import ThreadExecutor
from .registries.base import Registry
from .registries.memory import MemoryRegistry

__all__ = ["BackgroundMiddleware"]

WSGIApplication = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_ALLOW = ("Allow", "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS")
_SPECULATIVE = re.compile(r"\bpre(?:fetch|render)\b", re.IGNORECASE)


class BackgroundMiddleware:
    """Runs marked requests of *app*, a WSGI application, in the background.

    A marked request is recorded, submitted to the *executor*, and answered at once with a redirect to its own URL with
    a token; whoever has the token gets the job's output, its state, and in the end its response, from the *registry*.
    All other requests go to *app* as they are.

    *when* is a mark (see :mod:`bgmiddleware.marks`); the decorators mark requests besides it. *registry* and *executor*
    default to a ``MemoryRegistry`` and a ``ThreadExecutor``. *max_body*: bytes of a request body, beyond it 413.
    *stream_slots*: how many connections of this process may be held open to follow jobs; others get what there is.
    *capture_logging*: whether log records of a job reach its output where no handler writes them to the console.
    *token_name*: the query parameter that bears the token.

    Constructing starts nothing. Calling is safe from any thread. Raises ``ConfigurationError`` for a bad option.
    """

    def __init__(
        self,
        app: WSGIApplication,
        *,
        when: marks.Mark = marks.prefers_async,
        registry: Registry | None = None,
        executor: Executor | None = None,
        max_body: int = MAX_BODY,
        stream_slots: int = 2,
        capture_logging: bool = True,
        token_name: str = "_t",  # noqa: S107  # no password: the name of a parameter
    ) -> None:
        for name, value, least in (("max_body", max_body, 0), ("stream_slots", stream_slots, 0)):
            if value < least:
                raise ConfigurationError.of_setting(name, value, f"a number from {least}")
        if not callable(when):
            raise ConfigurationError.of_setting("when", when, "a mark: a function of the environ")
        if not re.fullmatch(r"[A-Za-z0-9_.~-]+", token_name):
            raise ConfigurationError.of_setting("token_name", token_name, "letters, digits and -._~")
        self.app = app
        self.registry = MemoryRegistry() if registry is None else registry
        self.executor = ThreadExecutor() if executor is None else executor
        if not self.executor.in_process and not self.registry.shared:
            raise ConfigurationError("the executor runs jobs in other processes, which cannot see this registry's jobs")
        self._when = when
        self._max_body = max_body
        self._slots = Slots(stream_slots)
        self._capture_logging = capture_logging
        self._token_name = token_name
        self._may_bear_token = f"{token_name}="
        self._find_tokens = re.compile(rf"(?:^|&){re.escape(token_name)}=({_UUID})(?=&|$)").findall

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        # Every request of the site passes here: no object is made, and no WebOb, for one that is not ours.
        query = environ.get("QUERY_STRING")
        if query and self._may_bear_token in query:
            tokens = self._find_tokens(query)
            if tokens:
                return serve(self._visit(environ, tokens[-1]), start_response)
        if self._when(environ) and not _context.current_job():
            return self._start_replay(environ, copy_context()).send(environ, start_response)
        if _context.declared:
            return self._watch(environ, start_response)
        try:
            return self.app(environ, start_response)
        except BackgroundRequested as asked:  # from a view that this very request imported
            exc_info = (type(asked), asked, asked.__traceback__)
            return self._start_asked(environ, environ, asked).send(environ, start_response, exc_info)

    def _watch(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Call the app, prepared for a decorated view in it: the request as it came, and what it prints, are kept."""
        install()
        body = environ["wsgi.input"]
        if (environ.get("CONTENT_LENGTH") or "HTTP_TRANSFER_ENCODING" in environ) and not _can_rewind(body):
            body = environ["wsgi.input"] = RememberingInput(body, self._max_body)
        recorded = environ.copy()
        try:
            with use_output(ForegroundOutput(write_late("stdout"), write_late("stderr"))):
                return self.app(environ, start_response)
        except BackgroundRequested as asked:
            exc_info = (type(asked), asked, asked.__traceback__)
            return self._start_asked(environ, recorded, asked).send(environ, start_response, exc_info)
        finally:
            if isinstance(body, RememberingInput):
                body.forget()

    def _start_asked(self, environ: dict[str, Any], recorded: dict[str, Any], asked: BackgroundRequested) -> Answer:
        """Start what a decorator asked for, with the request as it was *recorded* before the app saw it."""
        if asked.function is not None:
            return self._start_function(environ, asked, asked.function)
        body = recorded["wsgi.input"]
        if isinstance(body, RememberingInput):
            try:
                recorded["wsgi.input"] = body.rewind()
            except BadRequestBody as error:
                return problem(environ, error.status, "bad-request-body", f"{error}.")
        elif _can_rewind(body):
            body.seek(0)
        return self._start_replay(recorded, asked.context)

    def _start_replay(self, environ: dict[str, Any], context: Context) -> Answer:
        """Record a marked request and start it as a job."""
        refused = self._refuse(environ)
        if refused is not None:
            return refused
        try:
            request = record_request(environ, self._max_body)
        except BadRequestBody as error:
            return problem(environ, error.status, "bad-request-body", f"{error}.")

        def work(key: str) -> Work:
            return replay_request(self.app, self.registry, key, request.environ, request.kept)

        with request.body:
            return self._start(environ, title_of(environ), request, work, context, "")

    def _start_function(
        self, environ: dict[str, Any], asked: BackgroundRequested, function: Callable[[], Any]
    ) -> Answer:
        """Start a ``@background`` function as a job."""
        refused = self._refuse(environ)
        if refused is not None:
            return refused
        if not self.executor.in_process:
            raise ConfigurationError(
                f"@background runs functions in this process, and the executor is {type(self.executor).__name__}:"
                " decorate the view with @backgrounder instead"
            )

        def work(key: str) -> Work:
            return call_function(function)

        return self._start(environ, title_of(environ), None, work, asked.context, asked.printed)

    def _refuse(self, environ: dict[str, Any]) -> Answer | None:
        """Return the answer for a request that must start nothing, whatever its mark."""
        if environ.get("wsgi.multiprocess") and not self.registry.shared:
            raise ConfigurationError(
                f"this server runs several processes, and a {type(self.registry).__name__} keeps its jobs in one:"
                " a token would be unknown to the others. Serve from one process with threads, or use a registry"
                " that processes share"
            )
        method = environ["REQUEST_METHOD"]
        if method == "HEAD":
            return Answer("200 OK", (("Content-Type", "text/plain; charset=utf-8"), *UNSTORED))
        if method == "OPTIONS":
            return Answer("204 No Content", (_ALLOW, *UNSTORED))
        purposes = (environ.get(name) for name in ("HTTP_SEC_PURPOSE", "HTTP_PURPOSE", "HTTP_X_MOZ"))
        if any(purpose and _SPECULATIVE.search(purpose) for purpose in purposes):
            # A browser drops this and asks again when the person really follows the link.
            return problem(environ, 503, "speculative", "A job is only started by a real request.", retry_after(1.0))
        return None

    def _start(
        self,
        environ: dict[str, Any],
        title: str,
        request: RecordedRequest | None,
        work: Callable[[str], Work],
        context: Context,
        preface: str,
    ) -> Answer:
        """Add a job, submit it, and say where it is."""
        token = new_token()
        key = key_of(token)
        run = Run(
            key,
            title,
            self.registry,
            work(key),
            context,
            preface=preface,
            takes_logging=self._capture_logging,
        )
        try:
            job = self.registry.add(Job(key, title, request=request.environ if request else {}))
            try:
                offset = 0
                for chunk in request.chunks() if request else ():
                    offset = self.registry.append(key, Channel.REQUEST, offset, chunk)
                self.executor.submit(run)
            except BaseException:
                self.registry.discard(key)
                raise
        except QueueFull as full:
            return problem(environ, 503, "queue-full", f"Too busy: {full}.", retry_after(full.retry_after))
        except RegistryFull as full:
            return problem(environ, 503, "queue-full", f"Too busy: {full}.", retry_after(60.0))
        return self._started(environ, token, job)

    def _started(self, environ: dict[str, Any], token: str, job: Job) -> Answer:
        query = environ.get("QUERY_STRING") or ""
        # Relative, and nothing but a query: right behind every proxy, whatever it does to host and path.
        location = ("Location", f"?{query}{'&' if query else ''}{self._token_name}={token}")
        vary = "Accept, Prefer"
        asked = marks.prefers_async(environ)
        if asked or names_json(environ.get("HTTP_ACCEPT")):
            applied = (("Preference-Applied", "respond-async"),) if asked else ()
            return status_answer(self._visit(environ, token), job, "202 Accepted", location, *applied, vary=vary)
        body = f"Started in the background: see {location[1]}\n".encode()
        content = (("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))))
        return Answer("303 See Other", (location, *content, *about(job, vary)), [body])

    def _visit(self, environ: dict[str, Any], token: str) -> Visit:
        return Visit(
            environ=environ,
            token=token,
            key=key_of(token),
            registry=self.registry,
            executor=self.executor,
            slots=self._slots,
            token_name=self._token_name,
            parameters=dict(parse_qsl(environ.get("QUERY_STRING") or "", keep_blank_values=True)),
        )

    def close(self, drain: float | None = None) -> None:
        """Take no more jobs, give those that run *drain* seconds (None: as the executor is configured), and let go of
        all resources. What does not end in time is ``lost``. Idempotent."""
        self.executor.shutdown(drain)
        self.registry.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


_context.entrances.update({BackgroundMiddleware.__call__.__code__, BackgroundMiddleware._watch.__code__})


def _can_rewind(body: Any) -> bool:
    """Whether a ``wsgi.input`` can be read a second time: some servers have the whole body before they call the app."""
    seekable = getattr(body, "seekable", None)
    return hasattr(body, "seek") and (seekable is None or bool(seekable()))
