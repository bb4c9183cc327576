"""Asking a job to stop, and having it forgotten."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from .._jobs import Job
from .problems import UNSTORED, Answer, problem
from .status import status_answer
from .visit import Visit, job_headers

__all__ = ["answer_cancel", "answer_discard", "is_cross_site"]

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_PORT = re.compile(r":[0-9]+\Z")
_FORWARDED_HOST = re.compile(r"""(?:^|[;,])\s*host="?([^;,"\s]+)""", re.IGNORECASE)  # RFC 7239 §5.3


def answer_cancel(visit: Visit, job: Job, *, by_form: bool) -> Answer:
    """Ask the job to stop and say so: to a form by going back to the page, else by its state.

    Raises nothing where the job has ended: then nothing changes.
    """
    if is_cross_site(visit.environ):
        return problem(visit.environ, 403, "cross-site", "A job can only be cancelled from its own site.")
    visit.registry.request_cancel(visit.key)
    visit.site.executor.stop(visit.key)
    if by_form:
        body = b"See the job.\n"
        headers = (
            ("Location", visit.link()),
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
        )
        return Answer("303 See Other", (*headers, *UNSTORED, *job_headers(job)), [body])
    ended = job.state.ended
    return status_answer(visit, visit.registry.get(visit.key), "200 OK" if ended else "202 Accepted")


def answer_discard(visit: Visit, job: Job) -> Answer:
    """Have an operator's job forgotten, and lead him back to the list; 409 where it runs."""
    if is_cross_site(visit.environ):
        return problem(visit.environ, 403, "cross-site", "A job can only be discarded from its own site.")
    if not job.state.ended or not visit.registry.discard(visit.key):
        return problem(visit.environ, 409, "job-runs", "Only a job that has ended can be discarded. Cancel it first.")
    body = b"See the others.\n"
    content = (("Content-Type", "text/plain; charset=utf-8"), ("Content-Length", str(len(body))))
    return Answer("303 See Other", (("Location", visit.site.path_to_list), *content, *UNSTORED), [body])


def is_cross_site(environ: Mapping[str, Any]) -> bool:
    """Whether a browser says that a page of another origin caused this request; programs say nothing."""
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = environ.get("HTTP_ORIGIN")
    if origin is None:
        return False
    try:
        parts = urlsplit(str(origin).lower())
    except ValueError:
        return True
    default = _DEFAULT_PORTS.get(parts.scheme, "")
    return parts.netloc.removesuffix(default) not in {host.removesuffix(default) for host in _own_hosts(environ)}


def _own_hosts(environ: Mapping[str, Any]) -> set[str]:
    """Return what this site is called: by the client, and by proxies where they ask for another host than the browser
    did. No page of another site can make a browser say that."""
    forwarded = str(environ.get("HTTP_X_FORWARDED_HOST", "")).split(",")
    forwarded += _FORWARDED_HOST.findall(str(environ.get("HTTP_FORWARDED", "")))
    hosts = {host.strip().lower() for host in (str(environ.get("HTTP_HOST", "")), *forwarded)} - {""}
    ports = {port.strip() for port in str(environ.get("HTTP_X_FORWARDED_PORT", "")).split(",")} - {""}
    return hosts | {f"{host}:{port}" for host in hosts if not _PORT.search(host) for port in ports}
