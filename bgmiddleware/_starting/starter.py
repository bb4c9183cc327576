"""Answers a marked request: records it and starts a job, joins it to a running job, or refuses it."""

import contextlib
import io
import logging
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from traceback import format_exception
from typing import Any, Protocol

from .. import marks
from .._capture import Outlet
from .._context import Wish, entrances, registries
from .._ground.redaction import Redaction
from .._jobs import NONE, Channel, Job, JobState, NextTry, Priority, Tries, key_of, new_token
from .._running import (
    LEASE,
    Dropped,
    RecordedRequest,
    Run,
    Waiting,
    Work,
    call_function,
    plain_title,
    record_request,
    replay_request,
    rewound,
    title_of,
    within_request,
)
from .._serving import (
    Answer,
    Headers,
    Site,
    StartResponse,
    Visit,
    about,
    answer_ended,
    bad_query,
    kept_of,
    means_result,
    names_json,
    newest,
    problem,
    retry_after,
    sealed,
    see_other,
    status_answer,
)
from ..errors import (
    BackgroundError,
    BadRequestBody,
    ConfigurationError,
    JobExists,
    JobExpired,
    JobNotFound,
    QueueFull,
    RegistryError,
    RegistryFull,
)
from ..registries.base import END, SHORT
from .early import Patience, is_early_answer
from .ends import Ends
from .joining import Asking, Beginnings, asking, asking_again
from .options import Rules
from .untouched import untouched

__all__ = ["Starter", "Tracing", "WSGIApplication"]

WSGIApplication = Callable[[dict[str, Any], StartResponse], Iterable[bytes]]

_log = logging.getLogger("bgmiddleware")

_OF_A_BODY = ("CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_TRANSFER_ENCODING", "wsgi.input_terminated")
_PURPOSES = ("HTTP_SEC_PURPOSE", "HTTP_PURPOSE", "HTTP_X_MOZ")
_SPECULATIVE = re.compile(r"\bpre(?:fetch|render)\b", re.IGNORECASE)
_LONGEST_WAIT = 5.0  # for a client that can use only the response; then it waits at the job's URL
_LONGEST_IDEMPOTENCY_KEY = 255


_ADMISSION = 60.0  # seconds that storing and submitting a request may take
_PATIENCE = 5.0  # seconds to wait for another process that stores the same request
_LOOK_EVERY = 0.02
_NOTHING = contextlib.nullcontext()  # around a job


class _OtherRequest(Exception):
    """An Idempotency-Key was used before, for a request that asks for something else."""


class Tracing(Protocol):
    """Makes spans of jobs."""

    def carried(self, environ: Mapping[str, Any]) -> dict[str, str]:
        """Return what is kept of a request's trace."""

    def around(self, job: Job, *, flushes: bool) -> contextlib.AbstractContextManager[object]:
        """Make the span of a *job* that runs within. *flushes*: whether this process may end any time after it."""


@dataclass(frozen=True)
class Starter:
    """Starts the jobs of one middleware, by its options. Any thread may call."""

    site: Site
    max_body: int
    capture_logging: bool
    capture_children: bool
    tee: bool
    answers: bool
    refuse_cross_site: bool
    promote_after: float
    single_flight: bool
    keep_requests: bool
    deadline: float | None
    version: str
    rules: Rules
    title: Callable[[dict[str, Any]], str] | None
    redaction: Redaction | None
    tracing: Tracing | None
    secret: bytes | None = field(repr=False)
    """The secret from which the names and tokens of jobs that can be joined are derived. None: the registry's own."""
    waiting: Waiting
    ends: Ends
    patience: Patience = field(default_factory=Patience, repr=False)
    beginnings: Beginnings = field(default_factory=Beginnings, repr=False)
    dropped: Dropped = field(default_factory=Dropped, repr=False)

    def __post_init__(self) -> None:
        registries.add(self.site.registry)

    def start_replay(
        self, app: WSGIApplication, environ: dict[str, Any], context: Context, *, decorated: bool = False
    ) -> Answer:
        """Record a marked request of *app* and start it as a job. A client that asked a *decorated* view does not wait
        for an early answer: logins and redirects of the framework come before the view, and its own are results."""
        promote_after = None if decorated and not self.promote_after else self.promote_after
        try:
            return self._start_replay(app, environ, context, promote_after)
        except ConfigurationError as error:
            return self._misconfigured(environ, error)

    def _misconfigured(self, environ: dict[str, Any], error: ConfigurationError) -> Answer:
        """Answer that the site's configuration does not allow jobs. Do not raise the error: some servers would close
        the connection, and some would leave the client waiting."""
        _log.error("no job can be started: %s", error)
        detail = f"{error}." if self.site.details else "This site cannot start jobs now. Its log says why."
        return problem(environ, 500, "misconfigured", detail)

    def _start_replay(
        self, app: WSGIApplication, environ: dict[str, Any], context: Context, promote_after: float | None
    ) -> Answer:
        refused = self.refuse(environ)
        if refused is not None:
            return refused
        try:
            request = self._recorded(environ)
        except BadRequestBody as error:
            return problem(environ, error.status, "bad-request-body", f"{error}.")

        kept = request.kept
        is_here = self.site.executor.in_process
        if not is_here:
            self.dropped.tell(kept)
            kept = {}
        multiprocess = not is_here or bool(environ.get("wsgi.multiprocess"))

        def run(job: Job) -> Run:
            work = replay_request(app, self.site.registry, job.key, request.environ, kept, multiprocess=multiprocess)
            return self.run(job, work, context)

        with request.body:
            return self._start(environ, request, run, promote_after, keeps_request=self.keep_requests, may_retry=True)

    def start_wish(self, app: WSGIApplication, environ: dict[str, Any], wish: Wish) -> Answer:
        """Start the job that a decorator asked for. *environ* is the request as it was before *app* saw it."""
        if wish.function is not None:
            try:
                return self._start_function(wish.function, environ, wish)
            except ConfigurationError as error:
                return self._misconfigured(environ, error)
        try:
            environ = {**environ, "wsgi.input": rewound(environ.get("wsgi.input"))}
        except BadRequestBody as error:
            return problem(environ, error.status, "bad-request-body", f"{error}.")
        # Not in the view's own context: its framework keeps data of the foreground request there.
        return self.start_replay(app, environ, copy_context(), decorated=True)

    def _start_function(self, function: Callable[[], Any], environ: dict[str, Any], wish: Wish) -> Answer:
        """Start a ``@background`` function as a job. Its output begins with what the request has printed."""
        refused = self.refuse(environ)
        if refused is not None:
            return refused
        if not self.site.executor.in_process:
            raise ConfigurationError(
                f"@background runs functions in this process, but a {type(self.site.executor).__name__} runs jobs in"
                " others: decorate the view with @backgrounder instead"
            )

        may_join = self._may_join(environ)
        if not may_join and not wish.around:
            return self._start(environ, None, self._runs_function(function, wish, None), None)
        try:
            # Rewind the body: the app may have read it.
            request = self._recorded({**environ, "wsgi.input": rewound(environ.get("wsgi.input"))})
        except BadRequestBody as error:
            if may_join:
                return problem(environ, error.status, "bad-request-body", f"{error}.")
            # The view has read the body; the function has what it needs of it in its arguments.
            unread = {key: value for key, value in environ.items() if key not in _OF_A_BODY}
            request = self._recorded({**unread, "wsgi.input": io.BytesIO()})
        with request.body:
            return self._start(environ, request, self._runs_function(function, wish, request), None)

    def _runs_function(
        self, function: Callable[[], Any], wish: Wish, request: RecordedRequest | None
    ) -> Callable[[Job], Run]:
        def run(job: Job) -> Run:
            called = function
            if request is not None:
                called = within_request(function, wish.around, self.site.registry, job.key, request)
            return self.run(job, call_function(called), wish.context, wish.printed)

        return run

    def _recorded(self, environ: Mapping[str, Any]) -> RecordedRequest:
        """Record a request, without tokens. Raises ``BadRequestBody``."""
        request = record_request(environ, self.max_body)
        return request._replace(environ=self.site.without_tokens(request.environ))

    def _may_join(self, environ: Mapping[str, Any]) -> bool:
        """Whether this request may join the job of an earlier one."""
        return self.single_flight or "HTTP_IDEMPOTENCY_KEY" in environ

    def run(self, job: Job, work: Work, context: Context, preface: str = "", *, outlet: Outlet | None = None) -> Run:
        return Run(
            job.key,
            job.title,
            self.site.registry,
            work,
            context,
            preface=preface,
            takes_logging=self.capture_logging,
            takes_children=self.capture_children,
            tees=self.tee,
            tells_errors=self.site.details,
            redaction=self.redaction,
            answers=self.answers,
            priority=job.priority,
            groups=job.groups,
            deadline=job.deadline,
            version=self.version,
            around=_NOTHING if self.tracing is None else self.tracing.around(job, flushes=outlet is not None),
            outlet=outlet,
        )

    def stored_run(self, app: WSGIApplication, key: str, outlet: Outlet | None) -> Run:
        """Return the run of a job that some process of the site has recorded."""
        registry = self.site.registry
        job = registry.get(key)
        work = replay_request(app, registry, key, job.request, {}, multiprocess=True)
        return self.run(job, work, Context(), outlet=outlet)

    def _groups(self, environ: dict[str, Any], owner: str | None) -> Mapping[str, int]:
        """Return the groups of a request's job, with how many jobs of each may run at a time."""
        if not self.rules.limits and self.rules.limit_per_owner is None:
            return NONE
        groups = {f"mark {name}": most for name, mark, most in self.rules.limits if mark(environ)}
        if self.rules.limit_per_owner is not None and owner is not None:
            groups[f"owner {owner}"] = self.rules.limit_per_owner
        return groups

    def _title(self, environ: dict[str, Any]) -> str:
        """Return the title of a request's job."""
        redacted = str if self.redaction is None else self.redaction
        if self.title is None:
            return plain_title(redacted(title_of(environ)))
        try:
            title = str(self.title(environ))
        except Exception as error:  # a bad title is no reason to refuse the job
            _log.error("the title of a job could not be made\n%s", redacted("".join(format_exception(error)).rstrip()))
            title = ""
        return plain_title(redacted(title)) or plain_title(redacted(title_of(environ)))

    def _priority(self, environ: dict[str, Any]) -> Priority:
        """Return the priority of a request's job."""
        for mark, priority in self.rules.priorities:
            if mark(environ):
                return priority
        return Priority.NORMAL

    def _retries(self, environ: dict[str, Any]) -> int:
        """Return how often a request is tried again at most."""
        return next((most for mark, most in self.rules.retries if mark(environ)), 0)

    def _tries(self, environ: Mapping[str, Any], token: str, retries: int) -> Tries:
        """Return the first try of a request, and what is needed for so many more: they are started when nobody who
        knows a token is there, so each gets its own now, which only that of the try before opens."""
        coming = []
        for _ in range(retries if token else 0):
            before, token = token, new_token()
            coming.append(NextTry(sealed(token, before), sealed(before, token), self._kept_of(environ, token)))
        return Tries(1, 1 + retries, tuple(coming))

    def refuse(self, environ: dict[str, Any]) -> Answer | None:
        """Return the answer to a request that must not start a job; None if it may."""
        registry = self.site.registry
        if self._is_inside_another():
            raise ConfigurationError(
                "this BackgroundMiddleware is inside another one, which answers all requests with a token but does not"
                " know the jobs of this one: leave one of them out, or give both the same registry"
            )
        if environ.get("wsgi.multiprocess") and not registry.shared:
            raise ConfigurationError(
                f"the server runs several processes (wsgi.multiprocess is true), and a {type(registry).__name__} is in"
                " the memory of one: the others would not know its tokens. Give the middleware a registry that all"
                ' processes share, registry=SpoolRegistry("/var/lib/…") of bgmiddleware.registries.spool or'
                ' registry=RedisRegistry("redis://…") of bgmiddleware.registries.redis; or serve from one process with'
                " threads (python -m bgmiddleware serve)"
            )
        if any(_SPECULATIVE.search(environ[name]) for name in _PURPOSES if name in environ):
            # The browser discards this answer, and asks again when the user follows the link.
            return problem(environ, 503, "speculative", "A job is only started by a real request.", retry_after(1.0))
        if not 1 <= len(environ.get("HTTP_IDEMPOTENCY_KEY", "-")) <= _LONGEST_IDEMPOTENCY_KEY:
            detail = f"An Idempotency-Key has 1 to {_LONGEST_IDEMPOTENCY_KEY} characters."
            return problem(environ, 400, "bad-idempotency-key", detail)
        if self.refuse_cross_site and environ.get("HTTP_SEC_FETCH_SITE") == "cross-site":
            return problem(environ, 403, "cross-site", "A job can only be started from its own site.")
        return bad_query(environ)

    def _is_inside_another(self) -> bool:
        if len(registries) == 1:
            return False
        # Look on the stack, at each start only: requests that start no job pay nothing.
        frame = sys._getframe()
        while (caller := frame.f_back) is not None:
            frame = caller
            if id(frame.f_code) in entrances:
                other = frame.f_locals["self"].registry
                if other is not self.site.registry:
                    return True
        return False

    def _start(
        self,
        environ: dict[str, Any],
        request: RecordedRequest | None,
        run: Callable[[Job], Run],
        promote_after: float | None,
        *,
        keeps_request: bool = False,
        may_retry: bool = False,
    ) -> Answer:
        """Start a job, or join one that does the same. Answer with its place or with its response.

        *promote_after*: seconds that the client waits for the response; None: it does not wait. *keeps_request*:
        whether the job can be run again. *may_retry*: whether its request can be sent to the app again.
        """
        is_joined, begun = False, None
        try:
            who = self._asking(environ, request)
            token = "" if who.name else new_token()
            job = self.new_job(environ, token, who, request, keeps_request=keeps_request, may_retry=may_retry)
            if who.name:
                promote_after = None if promote_after is None else 0.0  # a job that others may join must stay
                token, job, is_joined = self._begin_or_join(environ, who, job, request, run)
            else:
                job, begun = self.begin(job, request, run)
        except _OtherRequest:
            detail = "This Idempotency-Key was used for another request."
            return problem(environ, 422, "idempotency-key-reused", detail)
        except (QueueFull, RegistryError) as error:
            return _not_started(environ, error)
        try:
            return self._answer_begun(environ, token, job, begun, who.cookie, promote_after, is_joined=is_joined)
        except (JobExpired, JobNotFound):  # it ended, and was evicted before this client got its answer
            if is_joined:  # or it answered the client that started it at once, and was deleted
                return self._start(
                    environ, request, run, promote_after, keeps_request=keeps_request, may_retry=may_retry
                )
            return problem(environ, 410, "expired", "The job has ended and is already deleted.")
        except RegistryError as error:
            _log.error("a job could not be read: %s", error)
            return problem(environ, 503, "registry-error", "The job cannot be read now.", retry_after(5.0))

    def new_job(
        self,
        environ: dict[str, Any],
        token: str,
        who: Asking,
        request: RecordedRequest | None,
        *,
        keeps_request: bool,
        may_retry: bool,
    ) -> Job:
        """Return the job of a request; *token* is empty where something else decides on that later."""
        retries = self._retries(environ) if may_retry else 0
        return Job(
            key_of(token),
            self._title(environ),
            owner=who.owner,
            version=self.version,
            deadline=self.deadline,
            priority=self._priority(environ),
            groups=self._groups(environ, who.owner),
            asked=self._kept_of(environ, token) if token else {},
            request=request.environ if request else {},
            keeps_request=keeps_request,
            tries=self._tries(environ, token, retries) if retries else None,
            fingerprint=who.fingerprint,
            name=who.name,
            keeps_name="HTTP_IDEMPOTENCY_KEY" in environ,
            admitted=not who.name,
        )

    def start_again(
        self,
        visit: Visit,
        job: Job,
        request: RecordedRequest,
        run: Callable[[Job], Run],
        cookie: Headers,
    ) -> Answer:
        """Start a *job* that repeats another one; *visit*: of its own place, by who asked for it."""
        try:
            job, _ = self.begin(job, request, run)
        except (QueueFull, RegistryError) as error:
            return _not_started(visit.environ, error)
        return visit.linked(self._started(visit, job, *cookie))

    def _answer_begun(
        self,
        environ: dict[str, Any],
        token: str,
        job: Job,
        begun: Run | None,
        cookie: Headers,
        promote_after: float | None,
        *,
        is_joined: bool,
    ) -> Answer:
        """Answer with the job's response if it came in time, else with the job's place."""
        visit = self.site.started_visit(environ, token, job)
        if is_joined:
            visit, job = newest(visit, job)
        if promote_after and visit.preferred_wait is None:
            job = self.patience.hold(visit, job, promote_after)
            if visit.has_ended(job):
                return untouched(visit, job)
            return visit.linked(self._started(visit, job, *cookie))
        if promote_after is not None and not job.state.ended:
            now = self.patience.hold(visit, job, 0.0, begun)
            if now.state.ended:
                if is_early_answer(now.response):
                    return answer_ended(visit, now) if is_joined else untouched(visit, now)
                job = now
        return visit.linked(self._answered(visit, job, *cookie))

    def _asking(self, environ: dict[str, Any], request: RecordedRequest | None) -> Asking:
        """Return the owner of the new job, and its name if it can be joined."""
        owns, registry = self.site.owner, self.site.registry
        if request is None or not self._may_join(environ):
            return asking(owns, environ)
        secret = registry.secret() if self.secret is None else self.secret
        return asking_again(owns, environ, request, secret, self.beginnings)

    def begin(self, job: Job, request: RecordedRequest | None, run: Callable[[Job], Run]) -> tuple[Job, Run]:
        """Add the job with its request, and submit it. Keeps nothing if it raises ``QueueFull`` or ``RegistryFull``."""
        registry = self.site.registry
        job = self.ends.expect(job)
        must_hold = registry.shared and self.site.executor.keeps_queue
        lease = LEASE if must_hold else _ADMISSION if registry.shared and not job.admitted else None
        if must_hold:
            job = job.changed(process=self.waiting.process)
        leased = {} if lease is None else {"lease": lease}
        chunks: Iterable[bytes] = () if request is None else request.chunks()
        try:
            if request is not None and 0 < request.size <= SHORT:
                job, chunks = registry.add_request(job, b"".join(chunks), **leased), ()
            else:
                job = registry.add(job, **leased)
        except JobExists as error:
            if error.key != job.key:  # else its messages are those of the job that is there
                self.ends.forget(job)
            raise
        except (QueueFull, RegistryFull):
            self.ends.forget(job)
            raise
        try:
            offset = 0
            for chunk in chunks:
                offset = registry.append(job.key, Channel.REQUEST, offset, chunk)
            begun = run(job)
            if must_hold:
                self.waiting.hold(begun)
            self.site.executor.submit(begun)
        except BaseException:
            registry.discard(job.key)
            self.ends.forget(job)
            if must_hold:
                self.waiting.let_go(job.key)
            raise
        if not job.admitted:
            # If this fails, or the job has already started, its claim admits it.
            with contextlib.suppress(RegistryError, JobNotFound, JobExpired):
                registry.renew(job.key, "", lease=LEASE if must_hold else registry.pending_ttl)
        return job, begun

    def _begin_or_join(
        self,
        environ: Mapping[str, Any],
        who: Asking,
        job: Job,
        request: RecordedRequest | None,
        run: Callable[[Job], Run],
    ) -> tuple[str, Job, bool]:
        """Start the job, unless another job has its name. Return the token, the job, and whether it is the other one.

        Adding the job finds out, atomically, and the registry learns no token.
        """
        until = time.monotonic() + _PATIENCE
        while True:
            salt = secrets.token_hex(16)
            token = who.token(salt)
            try:
                # One at a time: after JobExists there is either a submitted job or none.
                with self.beginnings.beginning:
                    asked = self._kept_of(environ, token)
                    tries = job.tries and self._tries(environ, token, job.tries.of - 1)
                    job = job.changed(key=key_of(token), name_salt=salt, asked=asked, tries=tries)
                    return token, self.begin(job, request, run)[0], False
            except JobExists as error:
                there = self._admitted(error.key, until)
            if there is None:
                continue  # it has just gone: the next round starts a new one
            if there.fingerprint != job.fingerprint:
                raise _OtherRequest
            return who.token(there.name_salt), there, True

    def _kept_of(self, environ: Mapping[str, Any], token: str) -> dict[str, str]:
        redacted = str if self.redaction is None else self.redaction
        kept = kept_of(environ, token, self.site.cut_off(environ.get("QUERY_STRING") or ""), redacted)
        return kept if self.tracing is None else {**kept, **self.tracing.carried(environ)}

    def _admitted(self, key: str, until: float) -> Job | None:
        """Return a job that can be joined; None if there is none. Wait while another process is still submitting it.

        Until it is submitted it may be taken back, for example if the queue is full. No client must learn of it before.
        """
        registry = self.site.registry
        with contextlib.suppress(JobNotFound, JobExpired):
            job = registry.get(key)
            while not job.admitted and not job.state.ended:
                if time.monotonic() >= until:
                    raise QueueFull("the same request is being stored")
                job = registry.wait(key, END, _LOOK_EVERY)
            # A job that ended since this request came can be joined; one that was asked to stop cannot.
            was_stopped = job.cancel_requested_at is not None or job.state is JobState.CANCELLED
            if job.admitted and (job.keeps_name or not was_stopped):
                return job
        return None

    def _answered(self, visit: Visit, job: Job, *cookie: tuple[str, str]) -> Answer:
        """Answer with the response if the client waits for it and it came in time (RFC 7240 §4.3)."""
        job, applied = visit.wait_as_preferred(job)
        if not applied and means_result(visit.environ):
            job = visit.hold(job, END, _LONGEST_WAIT)
            if visit.has_ended(job):
                return answer_ended(visit, job, ("Content-Location", visit.link(_view="result")), *cookie)
        if applied and visit.has_ended(job):
            where = ("Content-Location", visit.link(_view="result"))
            return answer_ended(visit, job, ("Preference-Applied", applied), where, *cookie)
        return self._started(visit, job, *cookie, applied=applied)

    def _started(self, visit: Visit, job: Job, *cookie: tuple[str, str], applied: str = "") -> Answer:
        """Answer with the job's place: a redirect, or for scripts its state."""
        environ = visit.environ
        place = self.site.place(environ.get("QUERY_STRING") or "", visit.token)
        vary = "Accept, Prefer"
        prefers_async = marks.prefers_async(environ)
        preferences = ", ".join(filter(None, ("respond-async" if prefers_async else "", applied)))
        headers = (*((("Preference-Applied", preferences),) if preferences else ()), *cookie)
        # A client that repeats its DELETE where a redirect leads would cancel the job.
        if prefers_async or names_json(environ.get("HTTP_ACCEPT")) or environ["REQUEST_METHOD"] == "DELETE":
            return status_answer(visit, job, "202 Accepted", ("Location", place), *headers, vary=vary)
        return see_other(place, f"Started in the background: see {place}", (*headers, *about(job, vary)))


def _not_started(environ: Mapping[str, Any], error: BackgroundError) -> Answer:
    """Return the answer to a request that could not be stored or submitted; no job was started."""
    if isinstance(error, QueueFull | RegistryFull):
        after = error.retry_after if isinstance(error, QueueFull) else 60.0
        return problem(environ, 503, "queue-full", f"Too busy: {error}.", retry_after(after))
    _log.error("a request could not be stored: %s", error)
    return problem(environ, 503, "registry-error", "The request cannot be stored now.", retry_after(60.0))
