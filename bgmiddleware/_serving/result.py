"""The app's own response, as often as it is asked for."""

import time
from urllib.parse import quote

from .._jobs import Channel, Job, JobState, RecordedResponse
from ..registries.base import END
from .asked import delivered_cookies
from .problems import Answer, Headers, problem, see_other
from .status import status_answer
from .stored import TOO_MANY, Stored, conditional, entity_tag
from .tries import led_on
from .visit import PATIENCE, Visit, about, job_headers

__all__ = [
    "answer_download",
    "answer_ended",
    "answer_meant",
    "answer_result",
    "ask_anew",
    "is_for_us",
    "refused_for_others",
]

_CHALLENGES = (401, 407)
_BODYLESS = (204, 304)
_HELD = 20.0
"""Seconds that a download is held at a time: browsers follow twenty redirects, and servers end what takes 30."""
_NO_BODY = ("Content-Type", "text/plain; charset=utf-8")
_FOR_ITS_CLIENT = {"set-cookie", "www-authenticate", "proxy-authenticate", "clear-site-data"}
# What somebody's request came to is no page of an operator's session: its scripts do not run there.
_HARMLESS = ("Content-Security-Policy", "sandbox")
_VALIDATORS = {"etag", "last-modified"}
# The server in front sends a file in place of the body, and evaluates conditions and ranges by itself.
_SENT_BY_PROXY = {"x-accel-redirect", "x-sendfile", "x-lighttpd-send-file", "x-litespeed-location", "x-reproxy-url"}


def answer_result(visit: Visit, job: Job) -> Answer:
    """Answer with the response that the job recorded; while it runs with 202, after the time that the client grants:
    ``_wait``, or ``Prefer: wait=N`` (RFC 7240 §4.3). ``_wait`` is for its next try, too."""
    until = time.monotonic() + visit.wait
    job = visit.hold(job, END, visit.wait)
    job = visit.hold_for_try(job, until - time.monotonic())
    there = led_on(visit, job)
    if there is not None:
        return there
    job, preference = visit.wait_as_preferred(job)
    applied = (("Preference-Applied", preference),) if preference else ()
    if not visit.has_ended(job):
        return status_answer(visit, job, "202 Accepted", *applied)
    return answer_ended(visit, job, *applied)


def answer_meant(visit: Visit, job: Job) -> Answer:
    """Answer a client that can use nothing but the app's response: with that, when it is there."""
    job = visit.hold(job, END, PATIENCE)
    if visit.has_ended(job):
        return answer_ended(visit, job)
    said = problem(visit.environ, 503, "not-ready", "The job is not done yet.", *job_headers(job))
    return visit.polled(said)


def refused_for_others(job: Job) -> bool:
    """Whether the response is a challenge: it says something about the credentials of who asked, and of nobody else."""
    return job.state.ended and job.response is not None and job.response.code in _CHALLENGES


def ask_anew(visit: Visit, job: Job) -> Answer:
    """Answer a client that now has other credentials than the request that was challenged: it asks again, by itself
    where there was no body."""
    if job.asked.get("method") != "GET":
        detail = "The request was refused, and its body is not kept. Send it again, with these credentials."
        return problem(visit.environ, 409, "challenged", detail, *job_headers(job))
    query = visit.site.without_ours(visit.environ.get("QUERY_STRING") or "") or job.asked.get("query", "")
    path = visit.environ.get("PATH_INFO", "").rpartition("/")[2]
    # From the last part of the path on: right behind every proxy, whatever it does to host and path.
    location = "./" + quote(path, safe="!$&'()*+,;=:@", encoding="latin-1") + ("?" + query if query else "")
    return see_other(location, "Ask again with these credentials.", about(job))


def answer_download(visit: Visit, job: Job) -> Answer:
    """Answer a browser that will save what it gets: with the result, when there is one. Until then it is held, and sent
    here again; that it shows as a download that goes on."""
    begun = time.monotonic()
    job = visit.hold(job, END, _HELD)
    if visit.has_ended(job):
        return answer_ended(visit, job)
    if time.monotonic() - begun < _HELD:
        return visit.refused("Too many wait for results: try again.")
    return Answer("303 See Other", (("Location", visit.link()), _NO_BODY, ("Content-Length", "0"), *about(job)), [b""])


def answer_ended(visit: Visit, job: Job, *added: tuple[str, str]) -> Answer:
    """Answer with the response of a job that has ended, or say why there is none; and with the headers that are
    *added*."""
    if job.response is not None and job.response.complete and job.state in (JobState.FINISHED, JobState.FAILED):
        return _replay(visit, job, job.response, *added)
    environ, headers, watch, again = visit.environ, (*job_headers(job), *added), visit.link(), visit.again_of(job)
    if job.state is JobState.CANCELLED:
        return problem(environ, 410, "cancelled", "The job was cancelled.", *headers, again=again, watch=watch)
    if job.state is JobState.LOST:
        detail = f"The job was lost: {job.reason}."
        return problem(environ, 502, "lost", detail, *headers, again=again, watch=watch)
    detail = f"The job failed: {job.reason}. Its output says more."
    return problem(environ, 500, "failed", detail, *headers, again=again, watch=watch)


def _replay(visit: Visit, job: Job, response: RecordedResponse, *added: tuple[str, str]) -> Answer:
    """Answer with the recorded *response* and what is *added*; a 200 as its conditions and its range ask.

    Its cookies go once, and to who started the job: they may be somebody's session.
    """
    content = Stored(visit.registry, job.key, Channel.BODY, 0, job.body_end)
    if response.code not in _BODYLESS and not content.is_held(visit):
        return visit.refused(TOO_MANY)
    headers = (*_headers(visit, job, response, content), *job_headers(job), *added)
    if is_for_us(response):
        return conditional(visit.environ, headers, content, response.status)
    return Answer(response.status, headers, () if response.code in _BODYLESS else content.begun(visit.environ))


def _headers(visit: Visit, job: Job, response: RecordedResponse, content: Stored) -> Headers:
    names = {name.lower() for name, _ in response.headers}
    left_out = {"content-length"}
    cookies = set()
    if "set-cookie" in names:
        content.begun(visit.environ)  # what cannot be answered must not take the cookies along
    if "set-cookie" in names and not visit.is_operators:
        cookies = delivered_cookies(visit.environ, visit.token, job)
        if not (cookies and _is_first_reader(visit)):
            left_out.add("set-cookie")
    if visit.is_operators:
        left_out |= _FOR_ITS_CLIENT
    headers = [
        (name, value)
        for name, value in response.headers
        if name.lower() not in left_out and (name.lower() != "set-cookie" or value.partition("=")[0].strip() in cookies)
    ]
    if response.code not in _BODYLESS:
        # Known now, even if the app did not say; and where it was wrong, the connection would be broken by it.
        headers.append(("Content-Length", str(job.body_end)))
    if visit.is_operators:
        headers.append(_HARMLESS)
    if "cache-control" not in names:
        headers.append(("Cache-Control", "private, no-cache"))
    if is_for_us(response):
        if names.isdisjoint(_VALIDATORS):
            headers.append(("ETag", entity_tag(job, Channel.BODY)))
        if "accept-ranges" not in names:
            headers.append(("Accept-Ranges", "bytes"))
    return tuple(headers)


def is_for_us(response: RecordedResponse) -> bool:
    """Whether conditions and ranges are ours to evaluate."""
    return response.code == 200 and _SENT_BY_PROXY.isdisjoint(name.lower() for name, _ in response.headers)


def _is_first_reader(visit: Visit) -> bool:
    return visit.environ["REQUEST_METHOD"] != "HEAD" and visit.registry.take_cookies(visit.key)
