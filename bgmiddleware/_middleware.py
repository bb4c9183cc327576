"""The middleware: look, decide, delegate."""

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import copy_context
from string import Template
from types import TracebackType
from typing import Any, Never, Self
from urllib.parse import parse_qsl

from . import _context, marks
from ._capture import Outlet, current, replaced
from ._context import BackgroundRequested, Wish
from ._ground.screens import screen_of
from ._jobs import Job
from ._running import MAX_BODY, Run, Waiting, as_it_came, forget_body, remember_body, without_traces
from ._serving import (
    IN_PLACE_OF_TOKEN,
    Answer,
    Authorize,
    Health,
    Numbers,
    PageMaker,
    Site,
    StartResponse,
    Viewers,
    Visit,
    answer_metrics,
    answer_operator,
    page_maker,
    serve,
)
from ._starting import (
    Ends,
    LazyResponse,
    Starter,
    TracerProvider,
    Tracing,
    WSGIApplication,
    check_options,
    check_places,
    end_of,
    foreground_is_asked_for,
    foreground_of,
    may_be_lazy,
    may_begin_twice,
    rules_of,
    run_again,
    settle,
    taken,
    try_again,
)
from .errors import ConfigurationError, JobExpired, JobNotFound, RegistryError
from .executors.base import Executor
from .executors.thread import ThreadExecutor
from .hooks import OnEnd, hooks_of
from .owners import Owner
from .redact import Redaction, redaction_of
from .registries.base import Registry
from .registries.memory import MemoryRegistry

__all__ = ["BackgroundMiddleware", "WSGIApplication"]

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_output_of_caller = current.get  # of a name that is imported, CPython 3.11 looks a method up as slowly as an attribute
_BODIED = ("POST", "PUT", "PATCH")


class BackgroundMiddleware:
    """Runs marked requests of *app*, a WSGI application, in the background.

    The middleware records a marked request, submits it to the *executor*, and redirects the client to the same URL with
    a token. Anyone with the token gets the job's output, its state, and finally its response, from the *registry*.
    Unmarked requests pass through to *app* untouched.

    *when* is a mark (see :mod:`bgmiddleware.marks`); the decorators mark further requests. *promote_after*: seconds
    that a marked request may take before the client is redirected; a faster one is answered directly. *registry* and
    *executor* default to a ``MemoryRegistry`` and a ``ThreadExecutor``. *owner* (see :mod:`bgmiddleware.owners`) names
    the owner of a job; default: anyone with the token. *single_flight*: whether a request joins an identical one of the
    same client that still runs. *keep_requests*: whether the request of a job is kept until the TTL, so that it can be
    run again. *retries_per_mark*: how often a request of these paths is tried again that failed or was lost.
    *max_body*: bytes of a request body; a larger one gets 413. *stream_slots*: how many connections of this
    process viewers may hold open; further viewers get the output so far and poll; default: half of the server's threads
    if it reports their number, else 2. *dashboard*: the path of a list of all jobs, which are opened below it, for
    users whom *authorize*, a function of the environ, gives the right: ``True``, ``False``, or a set of ``list``,
    ``output``, ``result``, ``cancel``, ``keep``, ``discard`` and ``rerun``. *health*: the path at which anybody may
    read whether this process can take jobs. *metrics*: the path of numbers for Prometheus, for users whom *authorize*
    gives the right ``list``. *tracing*: whether each job has a span of OpenTelemetry, by the provider of the process;
    or a ``TracerProvider`` that makes them. *title*: the name of a job, a function of the environ; default: its method,
    path and query. *redact*: secrets that are replaced by ``[redacted]`` before anything of a job is stored, shown or
    logged, but not in its response: texts, compiled patterns, and what the functions of :mod:`bgmiddleware.redact`
    return. *on_end*: what is called with each job that has ended, by the process that wrote the end down: functions of
    a ``Job``, and what ``hooks.webhook(…)`` returns. *page*: your own design of a job's page: a function of
    :class:`~bgmiddleware.PageParts` that returns HTML, or a ``string.Template``. *assets*: ``inline`` puts the page's
    script and style in the page, ``external`` at their own URLs. *capture_logging*: whether a job's log records go to
    its output if no handler writes them to the console. *capture_children*: whether subprocesses without streams of the
    job print to its output too. *tee*: whether the output of jobs is copied to the server's standard output. *answers*:
    whether readers answer what a job reads by ``input()``; else its input is at its end. *details*: whether anyone who
    may see a job sees the traceback of its exception, and the host and process that ran it; else only the server's log
    has the traceback. *refuse_cross_site*: whether a marked request from a page of another site gets 403. *foreground*:
    whether no request starts a job, so that a debugger can stop in a view; the environment variable
    ``BGMIDDLEWARE_FOREGROUND`` does the same. *token_name*: the query parameter with the token.

    Constructing starts nothing. Calling is safe from any thread. Raises ``ConfigurationError`` for a bad option.
    """

    _knows_routes = False

    def __init__(
        self,
        app: WSGIApplication,
        *unnamed: Never,
        when: marks.Mark = marks.prefers_async,
        promote_after: float = 0.0,
        registry: Registry | None = None,
        executor: Executor | None = None,
        owner: Owner | None = None,
        single_flight: bool = False,
        keep_requests: bool = False,
        max_body: int = MAX_BODY,
        stream_slots: int | None = None,
        dashboard: str | None = None,
        authorize: Authorize | None = None,
        health: str | None = None,
        metrics: str | None = None,
        tracing: bool | TracerProvider = False,
        title: Callable[[dict[str, Any]], str] | None = None,
        redact: Iterable[str | re.Pattern[str] | Redaction] = (),
        on_end: OnEnd | Sequence[OnEnd] = (),
        deadline: float | None = None,
        limit_per_owner: int | None = None,
        limit_per_mark: Mapping[str, int] | None = None,
        priority_per_mark: Mapping[str, str] | None = None,
        retries_per_mark: Mapping[str, int] | None = None,
        version: str = "",
        secret: str | None = None,
        page: PageMaker | Template | None = None,
        assets: str = "inline",
        capture_logging: bool = True,
        capture_children: bool = False,
        tee: bool = False,
        answers: bool = False,
        details: bool = True,
        refuse_cross_site: bool = False,
        foreground: bool = False,
        token_name: str = "_t",  # noqa: S107  # no password: the name of a parameter
    ) -> None:
        check_options(locals())
        self.app: WSGIApplication = _unwrapped(app)
        self.registry: Registry = MemoryRegistry() if registry is None else registry
        self.executor: Executor = ThreadExecutor() if executor is None else executor
        check_places(self.registry, self.executor)
        self.redaction: Redaction | None = redaction_of(redact)
        rules = rules_of(limit_per_owner, limit_per_mark, priority_per_mark, retries_per_mark)
        self._ends = Ends(self.registry, hooks_of(on_end), self.redaction, self._try_again if rules.retries else None)
        parts = self.registry, self.executor, Viewers(stream_slots), token_name, owner, page_maker(page), self._rerun
        self._site = Site(
            *parts,
            own_page=page is not None,
            external_assets=assets == "external",
            details=details,
            retries=bool(rules.retries),
            dashboard=dashboard or "",
            deliveries=self._ends.deliveries,
        )
        self._starter = Starter(
            self._site,
            max_body=max_body,
            capture_logging=capture_logging,
            capture_children=capture_children,
            tee=tee,
            answers=answers,
            refuse_cross_site=refuse_cross_site,
            promote_after=promote_after,
            single_flight=single_flight,
            keep_requests=keep_requests,
            deadline=deadline,
            version=version,
            rules=rules,
            title=title,
            redaction=self.redaction,
            waiting=Waiting(self.registry),
            ends=self._ends,
            tracing=_tracing_of(tracing, self.registry),
            secret=None if secret is None else secret.encode(),
        )
        self._authorize, self._stays_in_foreground = authorize, foreground or foreground_is_asked_for()
        self._look_for(when, {"dashboard": dashboard, "health": health, "metrics": metrics}, token_name)

    @property
    def viewers(self) -> Viewers:
        """Who follows jobs in this process; for :mod:`bgmiddleware.metrics`."""
        return self._site.viewers

    def _rerun(self, visit: Visit, job: Job) -> Answer:
        return run_again(self._starter, self.app, visit, job)

    def _try_again(self, job: Job) -> None:
        try_again(self._starter, self.app, job)

    def _look_for(self, when: marks.Mark, paths: Mapping[str, str | None], token_name: str) -> None:
        """Prepare the look at each request, and what answers at our own paths."""
        self._health = Health(self._site)
        self._metrics = None if paths["metrics"] is None else _metrics_of(self.registry, self.viewers)
        # Our own paths are looked for among the marked ones, so that they cost the others nothing.
        exact = {name: marks.never if path is None else marks.exactly(path) for name, path in paths.items()}
        self._is_dashboard = marks.never if paths["dashboard"] is None else marks.with_keys(paths["dashboard"])
        self._is_health, self._is_metrics = exact["health"], exact["metrics"]
        own = [mark for mark in (self._is_dashboard, self._is_health, self._is_metrics) if mark is not marks.never]
        self._is_own = marks.any_of(*own) if own else marks.never
        marked = marks.any_of(*own, when) if own else when
        self._when = marks.always if self._stays_in_foreground else marked  # always: to be passed on to the app
        self._key, self._word, self._second, self._third, self._has_more = screen_of(self._when).tests
        self._may_bear_token = f"{token_name}="
        self._find_tokens = re.compile(rf"(?:^|&){re.escape(token_name)}=({_UUID}|{IN_PLACE_OF_TOKEN})(?=&|$)").findall

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        # Every request of the site passes here: for one that is not ours no object is made, and no function called.
        try:
            query = environ["QUERY_STRING"]
            path = environ["PATH_INFO"]
        except KeyError:  # some servers leave out what is empty
            query, path = environ.get("QUERY_STRING", ""), environ.get("PATH_INFO", "")
        if self._may_bear_token in query:
            tokens = self._find_tokens(query)
            if tokens:
                self._ends.look()
                if not _comes_from_replayed_document(environ):
                    return serve(self._site.visit(environ, tokens[-1]), start_response)
                environ = self._without_our_parameters(environ, tokens[-1])
        if self._word is None:
            may_be_marked = self._key in environ
        elif self._word in path:
            may_be_marked = True
        else:
            may_be_marked = self._has_more and (
                (self._key is not None and self._key in environ)
                or (self._second is not None and (self._second in path or self._third in path))
            )
        if may_be_marked and self._when(environ) and not _context.current_job() and self._may_start(environ):
            if self._stays_in_foreground and not self._is_own(environ):
                return self._in_foreground(environ, start_response)
            return self._answer_marked(environ).send(environ, start_response)
        app = self.app  # to call an attribute takes longer than to call a name
        if not _context.declared:
            try:
                return app(environ, start_response)
            except BackgroundRequested as asked:  # from a view that this very request imported
                settle(asked.wish, ())
                return self._answer_wish(without_traces(environ), asked.wish, start_response)

        # A decorator was used in this process, so the request is watched: it is kept as it came, and what it prints.
        foreground: Any = _output_of_caller()
        try:
            # Mostly all is in place for the next request of this thread.
            if foreground.request is not None or foreground.changes != replaced.changes:
                foreground = foreground_of(foreground)
        except AttributeError:  # the first one, or a job
            if foreground is not None and foreground.job is not None:
                return app(environ, start_response)
            foreground = foreground_of(foreground)
        if not self._knows_routes:
            self._look_at_routes()
        has_body = "CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ
        if has_body:
            remember_body(environ, self._starter.max_body)
        recorded = as_it_came(environ) if "webob.adhoc_attrs" in environ else environ.copy()
        foreground.request = recorded
        try:
            iterable = app(environ, start_response)
        except BaseException as error:
            iterable = taken(error, foreground)
        foreground.request = None
        if foreground.is_used:
            wish = end_of(foreground, iterable)
            if wish is not None:
                return self._answer_wish(recorded, wish, start_response)
        if type(iterable) is not list and may_be_lazy(iterable, environ):
            return LazyResponse(iterable, recorded, start_response, self._answer_wish, self.registry)
        if has_body:
            forget_body(recorded)
        return iterable

    def _may_start(self, environ: dict[str, Any]) -> bool:
        """Whether a marked request is ours: HEAD and OPTIONS start nothing, so the app answers them as any other."""
        return environ["REQUEST_METHOD"] not in _context.UNSTARTED or self._is_own(environ)

    def _look_at_routes(self) -> None:
        """Warn, once the app has its routes, of decorators that do nothing where they stand."""
        self._knows_routes = True
        _context.warn_of_misplaced(self.app)

    def _in_foreground(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Let the app answer by itself; the decorators find this call on the stack and just call the function."""
        return self.app(environ, start_response)

    def _answer_marked(self, environ: dict[str, Any]) -> Answer:
        self._ends.look()
        if self._is_health(environ):
            return self._health.answer(environ)
        if self._authorize is not None and self._metrics is not None and self._is_metrics(environ):
            return answer_metrics(environ, self._metrics, self._authorize)
        if self._authorize is not None and self._is_dashboard(environ):
            return answer_operator(self._site, environ, self._authorize)
        return self._starter.start_replay(self.app, environ, copy_context())

    def _answer_wish(self, recorded: dict[str, Any], wish: Wish, start_response: StartResponse) -> Iterable[bytes]:
        """Start what a decorator asked for, with the request as it was *recorded* before the app saw it."""
        try:
            answer = self._starter.start_wish(self.app, recorded, wish)
        finally:
            forget_body(recorded)
        return answer.send(recorded, may_begin_twice(start_response))

    def _without_our_parameters(self, environ: dict[str, Any], token: str) -> dict[str, Any]:
        """Return the request as a form of the replayed document meant it: to the URL that it was first at."""
        query = self._site.without_ours(environ["QUERY_STRING"])
        if not query:
            with contextlib.suppress(JobNotFound, JobExpired, RegistryError):
                query = self._site.visit(environ, token).job().asked.get("query", "")
        stripped = {**environ, "QUERY_STRING": query}
        for name in ("REQUEST_URI", "RAW_URI"):  # what some servers add: the same, undecoded
            if name in environ:
                stripped[name] = environ[name].partition("?")[0] + ("?" + query if query else "")
        return stripped

    def stored_run(self, key: str, *, outlet: Outlet | None = None) -> Run:
        """Return the run of the job *key*, which another process recorded: what executors call in their workers.

        *outlet*: for a process that does nothing else meanwhile, see :class:`~bgmiddleware.Run`. Raises
        ``JobNotFound`` or ``JobExpired``.
        """
        return self._starter.stored_run(self.app, key, outlet)

    def shutdown(self, drain: float | None = None) -> None:
        """Take no more jobs, and give those that run *drain* seconds (None: as the executor is configured). What does
        not end in time is ``lost``. What there is of all jobs can still be read. Idempotent."""
        self.executor.shutdown(drain)
        self.viewers.end()
        self._starter.waiting.close()
        self._ends.close()

    def close(self, drain: float | None = None) -> None:
        """The same as :meth:`shutdown`, and let go of all resources. Idempotent."""
        self.shutdown(drain)
        self.registry.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


_context.entrances.add(id(BackgroundMiddleware.__call__.__code__))
_context.bypasses.add(id(BackgroundMiddleware._in_foreground.__code__))


def _metrics_of(registry: Registry, viewers: Viewers) -> Numbers:
    from .metrics import Metrics  # it needs an extra

    return Metrics(registry, viewers)


def _tracing_of(tracing: bool | TracerProvider, registry: Registry) -> Tracing | None:
    if tracing is False:
        return None
    from .tracing import Tracing  # it needs an extra

    return Tracing(registry, None if tracing is True else tracing)


def _unwrapped(app: WSGIApplication) -> WSGIApplication:
    if isinstance(app, BackgroundMiddleware):
        raise ConfigurationError("app is in a BackgroundMiddleware already: wrap it once")
    return app


def _comes_from_replayed_document(environ: dict[str, Any]) -> bool:
    """Whether this is a form without an action in a result, sent to the URL that the result was seen at."""
    if environ["REQUEST_METHOD"] not in _BODIED:
        return False  # as nearly all are: their query is read once, by who serves them
    return dict(parse_qsl(environ["QUERY_STRING"], keep_blank_values=True)).get("_view") == "result"
