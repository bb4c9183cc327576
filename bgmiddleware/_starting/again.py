"""Runs the request of an ended job again, as a new job: because somebody asks for it, or because it failed."""

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import closing
from contextvars import Context, copy_context
from typing import IO, Any, NamedTuple

from .._jobs import Job, NextTry, Tries, key_of, new_token
from .._running import IN_MEMORY, RecordedRequest, Run, open_request_body, record_request, replay_request
from .._serving import UNSTORED, Answer, Visit, key_in, operators_link, problem, sealed, see_other, stop
from ..errors import JobExists, JobExpired, JobNotFound, RegistryError
from ..registries.base import Registry
from .joining import Asking, asker_of, asking
from .starter import Starter, WSGIApplication

__all__ = ["run_again", "try_again"]

# What a request asks for, whoever sends it. Not the host: the links in what an app answers would lead to one that the
# first client made up. Nor X-Requested-With, by which apps tell requests that no other site can have caused.
_ASKED = frozenset(
    """REQUEST_METHOD SCRIPT_NAME PATH_INFO QUERY_STRING REQUEST_URI RAW_URI CONTENT_TYPE CONTENT_LENGTH
    HTTP_ACCEPT HTTP_ACCEPT_LANGUAGE""".split()
)
# Where the site is, whoever asks: for an operator's runs, which are sent in nobody's name.
_PLACE = frozenset(
    """SERVER_NAME SERVER_PORT SERVER_PROTOCOL HTTP_HOST wsgi.url_scheme HTTP_X_FORWARDED_PROTO HTTP_X_FORWARDED_HOST
    HTTP_X_FORWARDED_PORT HTTP_X_FORWARDED_PREFIX""".split()
)
# What was said of the first job: that it is the same as another one, and how its client waits.
_OF_THE_FIRST = ("HTTP_IDEMPOTENCY_KEY", "HTTP_PREFER")
_OF_A_TRACE = ("HTTP_TRACEPARENT", "HTTP_TRACESTATE")
_OF_A_BODY = ("CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_TRANSFER_ENCODING", "wsgi.input", "wsgi.input_terminated")
# What a form says and a link does not, whoever sends them.
_OF_A_FORM = ("HTTP_ORIGIN", "HTTP_UPGRADE_INSECURE_REQUESTS", "HTTP_X_REQUESTED_WITH")
_COPIED = 256 * 1024


class _Sent(NamedTuple):
    """A request as it is sent again: its *stored* environ, what is *kept* beside it for this process, and in whose name
    (*who*). *is_told*: whether the first job may lead all who see it to the new one."""

    stored: dict[str, str]
    kept: Mapping[str, Any]
    who: Asking
    is_told: bool


def run_again(starter: Starter, app: WSGIApplication, visit: Visit, job: Job) -> Answer:
    """Start the request of an ended *job* again, for the client of a *visit*; answer with the place of the new job.

    Credentials and cookies of the first request are sent again only if its owner asks. An operator's request is sent in
    nobody's name. For all others it is sent with their own.
    """
    environ = visit.environ
    if not job.keeps_request or not job.request:
        return problem(environ, 409, "not-kept", "The request of this job is not kept, so it cannot be run again.")
    if not job.state.ended:
        return problem(environ, 409, "still-running", "The job still runs. Run it again when it has ended.")
    if job.is_tried_again:
        return problem(environ, 409, "still-running", "Another try follows this one. Run the last one again.")
    asker = {name: value for name, value in environ.items() if name not in (*_OF_A_BODY, *_OF_THE_FIRST)}
    refused = starter.refuse(asker)
    if refused is not None:
        return refused
    sent, token = _sent(starter, visit, job, asker), new_token()
    if not visit.is_operators:
        answer = _start(starter, app, visit, job, sent, token, sealed(visit.token, token))
        if sent.is_told and "Location" in dict(answer.headers):
            _tell_earlier(visit, sealed(token, visit.token))
        return answer
    if not _take(visit, job, operators_link(key_of(token))):
        there = key_in(visit.registry.get(job.key).rerun_as) or job.key
        return see_other(there, "Somebody else has just run it again.", UNSTORED)
    try:
        answer = _start(starter, app, visit, job, sent, token, operators_link(job.key))
    except BaseException:  # the registry is away, or has lost the request
        _tell_earlier(visit, job.rerun_as)
        raise
    if "Location" not in dict(answer.headers):
        _tell_earlier(visit, job.rerun_as)
        return answer
    return see_other(key_of(token), "Started in the background.", UNSTORED)  # by its key: nobody gets the token


def try_again(starter: Starter, app: WSGIApplication, job: Job) -> None:
    """Start the next try of the request of a *job* that awaits it. Of all who do so at once one starts it, since its
    key is fixed. Raises ``QueueFull``, ``RegistryFull`` or another ``RegistryError``: then it has not begun."""
    if job.tries is None or not job.tries.coming:
        return
    site, coming = starter.site, job.tries.coming[0]
    with contextlib.suppress(JobExists):  # somebody else started it, and may have been killed before he said so
        if not _is_there(site.registry, coming.key):
            _start_try(starter, app, job, job.tries, coming)
    # Who cancels a job takes its tries away, and then looks for the next one. So it is stopped here, or there.
    with contextlib.suppress(JobNotFound, JobExpired):
        told = site.registry.amend(job.key, lambda now: now.changed(rerun_as=coming.link))
        if told is not None and told.tries is not None and not told.tries.coming:
            stop(site, coming.key)
    _renew_earlier(site.registry, job)


def _renew_earlier(registry: Registry, job: Job) -> None:
    """Let the TTL of all tries before a *job* begin anew: who has the token of one is to find the newest."""
    with contextlib.suppress(JobNotFound, JobExpired):
        earlier: Job | None = job
        while earlier is not None and earlier.tries is not None and earlier.tries.number > 1:
            earlier = registry.amend(key_in(earlier.rerun_of), lambda now: now)


def _is_there(registry: Registry, key: str) -> bool:
    try:
        registry.get(key)
    except (JobNotFound, JobExpired):
        return False
    return True


def _start_try(starter: Starter, app: WSGIApplication, job: Job, tries: Tries, coming: NextTry) -> None:
    """Start the try that is *coming* after a *job*: the same request of the same owner, with all that it bore."""
    registry, stored, size = starter.site.registry, dict(job.request), int(job.request.get("CONTENT_LENGTH") or 0)
    multiprocess = not starter.site.executor.in_process or registry.shared

    def run(new: Job) -> Run:
        work = replay_request(app, registry, new.key, stored, {}, multiprocess=multiprocess)
        return starter.run(new, work, Context())

    with tempfile.SpooledTemporaryFile(IN_MEMORY) as body:
        _copy_body(registry, job, size, body)
        request = RecordedRequest(stored, {}, body, size)
        new = starter.new_job(stored, "", Asking(job.owner), request, keeps_request=job.keeps_request, may_retry=False)
        tries = Tries(tries.number + 1, tries.of, tries.coming[1:])
        new = new.changed(key=coming.key, asked=coming.asked, rerun_of=coming.back, tries=tries, keeps_name=False)
        starter.begin(new, request, run)


def _sent(starter: Starter, visit: Visit, job: Job, asker: dict[str, Any]) -> _Sent:
    """Return the request of a *job* as the client of a *visit* sends it again."""
    sender = record_request(asker)
    clean = starter.site.without_tokens(sender.environ)
    stored = {name: value for name, value in job.request.items() if name not in (*_OF_THE_FIRST, *_OF_A_TRACE)}
    traced = {name: clean[name] for name in _OF_A_TRACE if name in clean}  # the new job is of the trace that asked
    asked = {name: value for name, value in stored.items() if name in _ASKED}
    if visit.is_operators:
        # Not with the operator's own credentials: whoever makes a request that fails would have it done by them. Nor
        # with what middlewares know of the operator, nor from an address that the app may trust.
        stored = {**{name: value for name, value in clean.items() if name in _PLACE}, **asked, **traced}
        return _Sent(stored, {}, Asking(job.owner), is_told=True)
    kept = sender.kept if starter.site.executor.in_process else {}
    if job.owner is not None and job.owner in visit.owners:
        return _Sent({**stored, **traced}, kept, Asking(job.owner), is_told=True)
    stored = {**{name: value for name, value in clean.items() if name not in _ASKED}, **asked}
    who = asking(starter.site.owner, asker)
    # A job that nobody owns shows itself to whoever has its token. A link would give all who have that of the first job
    # what was answered to the credentials of who ran it again.
    return _Sent(stored, kept, who, is_told=who.owner is not None or _is_the_same_client(job.request, sender))


def _start(
    starter: Starter, app: WSGIApplication, visit: Visit, job: Job, sent: _Sent, token: str, rerun_of: str
) -> Answer:
    """Start the new job, and answer as to who gets its token."""
    stored = sent.stored
    multiprocess = not starter.site.executor.in_process or bool(visit.environ.get("wsgi.multiprocess"))

    def run(new: Job) -> Run:
        work = replay_request(app, visit.registry, new.key, stored, sent.kept, multiprocess=multiprocess)
        return starter.run(new, work, copy_context())

    size = int(stored.get("CONTENT_LENGTH") or 0)
    with tempfile.SpooledTemporaryFile(IN_MEMORY) as body:
        _copy_body(visit.registry, job, size, body)
        request = RecordedRequest(stored, sent.kept, body, size)
        new = starter.new_job(dict(stored), token, sent.who, request, keeps_request=True, may_retry=True)
        new = new.changed(rerun_of=rerun_of)
        there = {**visit.environ, "QUERY_STRING": stored.get("QUERY_STRING", "")}
        return starter.start_again(starter.site.started_visit(there, token, new), new, request, run, sent.who.cookie)


def _copy_body(registry: Registry, job: Job, size: int, copy: IO[bytes]) -> None:
    try:
        with closing(open_request_body(registry, job.key, size)) as source:
            shutil.copyfileobj(source, copy, _COPIED)
    except OSError as error:
        raise RegistryError("the request of the job is not there any more") from error


def _is_the_same_client(first: Mapping[str, str], sender: RecordedRequest) -> bool:
    """Whether the app could not tell the client from the one of the *first* request."""
    told, unknown = asker_of(sender)
    before, _ = asker_of(RecordedRequest(first, {}, sender.body, 0))
    now, then = ([sign for sign in signs if sign[0] not in _OF_A_FORM] for signs in (told, before))
    return not unknown and now == then


def _take(visit: Visit, job: Job, link: str) -> bool:
    """Say in the *job* as what it is run again; false where somebody else did so since it was read: of two who confirm
    the same, one runs it again."""

    def changed(now: Job) -> Job | None:
        return now.changed(rerun_as=link) if now.rerun_as == job.rerun_as else None

    return visit.registry.amend(job.key, changed) is not None


def _tell_earlier(visit: Visit, link: str) -> None:
    with contextlib.suppress(RegistryError, JobNotFound, JobExpired):  # the new one knows the way back anyway
        visit.registry.amend(visit.key, lambda job: job.changed(rerun_as=link))
