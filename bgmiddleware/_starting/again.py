"""Runs the request of an ended job again, as a new job."""

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import closing
from contextvars import copy_context
from typing import IO

from .._jobs import Job, new_token
from .._recording import IN_MEMORY, RecordedRequest, record_request
from .._running import Run, open_request_body, replay_request
from .._serving import Answer, Visit, problem, sealed
from ..errors import JobExpired, JobNotFound, RegistryError
from ..registries.base import Registry
from .joining import Asking, asker_of, asking
from .starter import Starter, WSGIApplication

__all__ = ["run_again"]

# What a request asks for, whoever sends it. Not the host: the links in what an app answers would lead to one that the
# first client made up. Nor X-Requested-With, by which apps tell requests that no other site can have caused.
_ASKED = frozenset(
    """REQUEST_METHOD SCRIPT_NAME PATH_INFO QUERY_STRING REQUEST_URI RAW_URI CONTENT_TYPE CONTENT_LENGTH
    HTTP_ACCEPT HTTP_ACCEPT_LANGUAGE""".split()
)
# What was said of the first job: that it is the same as another one, and how its client waits.
_OF_THE_FIRST = ("HTTP_IDEMPOTENCY_KEY", "HTTP_PREFER")
_OF_A_TRACE = ("HTTP_TRACEPARENT", "HTTP_TRACESTATE")
_OF_A_BODY = ("CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_TRANSFER_ENCODING", "wsgi.input", "wsgi.input_terminated")
# What a form says and a link does not, whoever sends them.
_OF_A_FORM = ("HTTP_ORIGIN", "HTTP_UPGRADE_INSECURE_REQUESTS", "HTTP_X_REQUESTED_WITH")
_COPIED = 256 * 1024


def run_again(starter: Starter, app: WSGIApplication, visit: Visit, job: Job) -> Answer:
    """Start the request of an ended *job* again, for the client of a *visit*; answer with the place of the new job.

    Credentials and cookies of the first request are sent again only if its owner asks. For all others the request is
    sent with their own.
    """
    environ = visit.environ
    if not job.keeps_request or not job.request:
        return problem(environ, 409, "not-kept", "The request of this job is not kept, so it cannot be run again.")
    if not job.state.ended:
        return problem(environ, 409, "still-running", "The job still runs. Run it again when it has ended.")
    asker = {name: value for name, value in environ.items() if name not in (*_OF_A_BODY, *_OF_THE_FIRST)}
    refused = starter.refuse(asker)
    if refused is not None:
        return refused
    is_owner = job.owner is not None and job.owner in visit.owners
    sender = record_request(asker)
    stored = _replayed(job, starter.site.without_tokens(sender.environ), is_owner=is_owner)
    who = Asking(job.owner) if is_owner else asking(starter.site.owner, asker)
    in_process = starter.site.executor.in_process
    kept = sender.kept if in_process else {}
    multiprocess = not in_process or bool(environ.get("wsgi.multiprocess"))

    def run(new: Job) -> Run:
        work = replay_request(app, visit.registry, new.key, stored, kept, multiprocess=multiprocess)
        return starter.run(new, work, copy_context())

    size = int(stored.get("CONTENT_LENGTH") or 0)
    with tempfile.SpooledTemporaryFile(IN_MEMORY) as body:
        _copy_body(visit.registry, job, size, body)
        token, request = new_token(), RecordedRequest(stored, kept, body, size)
        link = sealed(visit.token, token)
        new = starter.new_job(dict(stored), token, who, request, keeps_request=True, rerun_of=link)
        there = {**environ, "QUERY_STRING": stored.get("QUERY_STRING", "")}
        answer = starter.start_again(starter.site.started_visit(there, token, new.key), new, request, run, who.cookie)
    # A job that nobody owns shows itself to whoever has its token. A link would give all who have that of the first job
    # what was answered to the credentials of who ran it again.
    is_told = new.owner is not None or _is_the_same_client(job.request, sender)
    if is_told and "Location" in dict(answer.headers):
        _tell_earlier(visit, sealed(token, visit.token))
    return answer


def _copy_body(registry: Registry, job: Job, size: int, copy: IO[bytes]) -> None:
    try:
        with closing(open_request_body(registry, job.key, size)) as source:
            shutil.copyfileobj(source, copy, _COPIED)
    except OSError as error:
        raise RegistryError("the request of the job is not there any more") from error


def _replayed(job: Job, sender: Mapping[str, str], *, is_owner: bool) -> dict[str, str]:
    """Return the environ of the request: as the first one was for its owner, else as this client sends it; but it is
    of the trace that it is sent in now."""
    stored = {name: value for name, value in job.request.items() if name not in (*_OF_THE_FIRST, *_OF_A_TRACE)}
    if is_owner:
        return {**stored, **{name: sender[name] for name in _OF_A_TRACE if name in sender}}
    asked = {name: value for name, value in stored.items() if name in _ASKED}
    return {**{name: value for name, value in sender.items() if name not in _ASKED}, **asked}


def _is_the_same_client(first: Mapping[str, str], sender: RecordedRequest) -> bool:
    """Whether the app could not tell the client from the one of the *first* request."""
    told, unknown = asker_of(sender)
    before, _ = asker_of(RecordedRequest(first, {}, sender.body, 0))
    now, then = ([sign for sign in signs if sign[0] not in _OF_A_FORM] for signs in (told, before))
    return not unknown and now == then


def _tell_earlier(visit: Visit, link: str) -> None:
    with contextlib.suppress(RegistryError, JobNotFound, JobExpired):  # the new one knows the way back anyway
        visit.registry.amend(visit.key, lambda job: job.changed(rerun_as=link))
