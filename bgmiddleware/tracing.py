"""Spans for OpenTelemetry: the extra ``opentelemetry``. ``tracing=True`` of the middleware makes them."""

import contextlib
import functools
import logging
import re
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextvars import Context, ContextVar
from typing import Any, cast
from weakref import WeakKeyDictionary

from ._capture import JobOutput, current_output
from ._ground.version import VERSION
from ._jobs import Job, JobState, key_of
from ._serving import IN_PLACE_OF_TOKEN
from .errors import JobExpired, JobNotFound, RegistryError
from .registries.base import Registry, path_of

try:
    from opentelemetry import context as contexts
    from opentelemetry import trace
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as _error:
    raise ImportError("tracing needs the extra opentelemetry: pip install 'bgmiddleware[opentelemetry]'") from _error

__all__ = ["Tracing", "hide_tokens"]

_log = logging.getLogger("bgmiddleware")

_PREFIX = "bgmiddleware."
_MOST_STEPS = 50  # with two events each; a span keeps 128, and forgets the oldest
_LONGEST_STATE = 512  # characters of a tracestate: what W3C wants to be carried at least
_MOST_OVER = 1000
_FLUSH = 2.0  # seconds that a process which may end now waits for the collector
_UNKNOWN = "its end could not be read"

_W3C = TraceContextTextMapPropagator()

# One for all middlewares: a log record is of a job, and says nothing of its middleware.
_spans: dict[str, Span] = {}
"""The spans of the jobs that run in this process, by key."""
_over: WeakKeyDictionary[Registry, deque[str]] = WeakKeyDictionary()
"""The last jobs of a registry whose spans have ended. Middlewares that share it are all told of each end."""
_of_context: ContextVar[tuple[str, Span] | None] = ContextVar("bgmiddleware_span", default=None)
"""The short id and the span of the job whose own code this is, or who writes down how it ends."""


class Tracing:
    """Makes a span of each job in *registry*, by *provider*; None: by the one that is set for the whole process. Any
    thread may call.

    The span is made where the job runs, is current there, and ends when the job's end is written down. Where the
    runner did not do that, since it was killed or never came, who did makes the span. From the first ``Tracing`` of a
    process on, each of its log records has the attributes ``job``, ``trace_id`` and ``span_id``, which are empty
    outside of jobs.
    """

    def __init__(self, registry: Registry, provider: Any = None) -> None:
        self._registry = registry
        self._provider = provider
        self._tracer = trace.get_tracer("bgmiddleware", VERSION, tracer_provider=provider)
        self._over = _over.setdefault(registry, deque(maxlen=_MOST_OVER))
        registry.tell_ends(self._has_ended)
        _label_log_records()

    def carried(self, environ: Mapping[str, Any]) -> dict[str, str]:
        """Return what is kept of a request's trace, in the words of W3C: of the span that is current, else of what its
        client sent; nothing where it has none."""
        context = contexts.get_current()
        if not trace.get_current_span(context).get_span_context().is_valid:
            sent = {name: environ.get(f"HTTP_{name.upper()}", "") for name in ("traceparent", "tracestate")}
            context = _W3C.extract(sent, contexts.Context())
        kept: dict[str, str] = {}
        _W3C.inject(kept, context)
        if len(kept.get("tracestate", "")) > _LONGEST_STATE:
            del kept["tracestate"]
        return kept

    @contextlib.contextmanager
    def around(self, job: Job, *, flushes: bool) -> Iterator[None]:
        """Make the span of a *job* that runs within. *flushes*: whether this process may end any time after the job, so
        that what it has is exported at once."""
        span = self._begin(job)
        _spans[job.key] = span
        attached = contexts.attach(trace.set_span_in_context(span))
        labelled = _of_context.set((job.key[:8], span))
        try:
            yield
        finally:
            _of_context.reset(labelled)
            contexts.detach(attached)
            if job.key in _spans:
                self._end_unheard(job)
            if flushes:
                self._flush()

    def _begin(self, job: Job, started_at: float | None = None) -> Span:
        parent = _W3C.extract(job.asked, contexts.Context())
        cause = trace.get_current_span(parent).get_span_context()
        method, path = job.asked.get("method", ""), path_of(job)
        attributes: dict[str, str] = {f"{_PREFIX}job": job.key[:8], "url.template": path}
        if method:
            attributes["http.request.method"] = method
        if job.version:
            attributes[f"{_PREFIX}version"] = job.version
        try:
            return self._tracer.start_span(
                " ".join(filter(None, ("job", method, path))),
                parent,
                SpanKind.CONSUMER,
                attributes,
                [Link(cause)] if cause.is_valid else [],
                None if started_at is None else _nanoseconds(started_at),
            )
        except Exception:  # of a site's own sampler, say: the job runs
            _log.exception("job %s has no span", job.key[:8])
            return trace.INVALID_SPAN

    def _has_ended(self, job: Job) -> None:
        """Take note of a job whose end this process has written down."""
        span = _spans.pop(job.key, None)
        if span is None and job.key in self._over:
            return
        self._over.append(job.key)
        if span is not None:
            self._end(span, job)
        else:
            began = job.created_at if job.started_at is None else job.started_at
            self._end(self._begin(job, began), job, job.ended_at)

    def _end_unheard(self, job: Job) -> None:
        """End the span of a job whose end another process wrote down, or nobody."""
        with contextlib.suppress(RegistryError, JobNotFound, JobExpired):
            job = self._registry.get(job.key)
        self._over.append(job.key)
        span = _spans.pop(job.key, None)
        if span is not None:
            self._end(span, job)

    def _end(self, span: Span, job: Job, ended_at: float | None = None) -> None:
        try:
            if span.is_recording():
                _describe(span, job)
            span.end(None if ended_at is None else _nanoseconds(ended_at))
        except Exception:  # of a site's own processor, say
            _log.exception("the span of job %s could not be ended", job.key[:8])

    def _flush(self) -> None:
        flush = getattr(self._provider or trace.get_tracer_provider(), "force_flush", None)
        if flush is None:
            return
        # In a thread: exporters try for as long as they like.
        thread = threading.Thread(target=_quietly, args=(flush,), name="bgmiddleware-tracing", daemon=True)
        Context().run(thread.start)
        thread.join(_FLUSH)


def hide_tokens(span: Span, environ: Mapping[str, Any]) -> None:
    """Replace tokens of jobs in the attributes of a *span* by the jobs' short ids: URLs contain them. Give it to
    ``OpenTelemetryMiddleware`` or ``FlaskInstrumentor`` as ``request_hook``. *environ* is not used."""
    for name, value in dict(getattr(span, "attributes", None) or {}).items():
        if (hidden := _without_tokens(value)) != value:
            span.set_attribute(name, hidden)


def _without_tokens(value: Any) -> Any:
    if isinstance(value, str):
        return _TOKEN.sub(_short, value)
    return tuple(map(_without_tokens, value)) if isinstance(value, tuple) else value  # a header: several values


_TOKEN = re.compile(rf"[0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}|(?<==)(?:{IN_PLACE_OF_TOKEN})")


def _short(found: re.Match[str]) -> str:
    kind, _, rest = found[0].rpartition(".")
    if not kind:
        return key_of(found[0])[:8]
    return rest[:8] if kind == "own" else kind  # whose job a shared link shows, only the registry's secret tells


def _describe(span: Span, job: Job) -> None:
    """Say in a span how the job went. What people wrote is without secrets already, as the registry has it."""
    span.set_attribute(f"{_PREFIX}state", job.state.value)
    span.set_attribute(f"{_PREFIX}output", job.output_end)
    if job.response is not None:
        span.set_attribute("http.response.status_code", job.response.code)
    if job.started_at is not None:
        waited = max(0.0, job.started_at - job.created_at)
        span.add_event("claimed", {f"{_PREFIX}waited": waited}, _nanoseconds(job.started_at))
        _add_steps(span, job, job.started_at)
    if job.cancel_requested_at is not None:
        span.add_event("cancel requested", {}, _nanoseconds(job.cancel_requested_at))
    if not job.state.ended:
        span.set_status(Status(StatusCode.ERROR, _UNKNOWN))
        return
    reason = {f"{_PREFIX}reason": job.reason} if job.reason else {}
    ended_at = None if job.ended_at is None else _nanoseconds(job.ended_at)
    span.add_event("ended", {f"{_PREFIX}state": job.state.value, **reason}, ended_at)
    if job.state in (JobState.FAILED, JobState.LOST):
        span.set_status(Status(StatusCode.ERROR, job.reason or job.state.value))


def _add_steps(span: Span, job: Job, began: float) -> None:
    if job.steps is None:
        return
    span.set_attribute(f"{_PREFIX}steps", len(job.steps.listed) + job.steps.unlisted)
    for step in job.steps.listed[:_MOST_STEPS]:
        title = {f"{_PREFIX}step": step.title}
        span.add_event("step begun", title, _nanoseconds(began + step.begun / 1000))
        if step.ended is not None:
            state = {f"{_PREFIX}state": step.state.value}
            span.add_event("step ended", {**title, **state}, _nanoseconds(began + step.ended / 1000))


def _nanoseconds(instant: float) -> int:
    return int(instant * 1e9)


def _quietly(flush: Any) -> None:
    with contextlib.suppress(Exception):
        flush()


def _label_log_records() -> None:
    """From now on say in each log record which job it is of. Once for a process."""
    make: Any = logging.Logger.makeRecord
    if hasattr(make, "of_bgmiddleware"):
        return

    # Not in the factory of records: then logging would refuse an "extra" of the same names.
    @functools.wraps(make)
    def labelled(self: logging.Logger, *arguments: Any, **named: Any) -> logging.LogRecord:
        record = cast(logging.LogRecord, make(self, *arguments, **named))
        for name, value in zip(("job", "trace_id", "span_id"), _labels(), strict=True):
            vars(record).setdefault(name, value)
        return record

    vars(labelled)["of_bgmiddleware"] = True
    logging.Logger.makeRecord = labelled  # type: ignore[method-assign]


def _labels() -> tuple[str, str, str]:
    """Return the short id of the job that the caller belongs to, and the ids of its trace and of the span that the
    caller is in."""
    id_, span = _of_context.get() or _of_output() or ("", None)
    if span is None:
        return id_, "", ""
    current = trace.get_current_span().get_span_context()
    if not current.is_valid:  # a thread of the job, which knows nothing of traces
        current = span.get_span_context()
    return id_, trace.format_trace_id(current.trace_id), trace.format_span_id(current.span_id)


def _of_output() -> tuple[str, Span | None] | None:
    output = current_output()
    if not isinstance(output, JobOutput) or output.job is None:
        return None
    return output.job.key[:8], _spans.get(output.job.key)
