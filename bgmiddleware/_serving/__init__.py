"""What a request that bears a token gets. One room for each view of a job; ``serve`` is the door to all of them."""

import io
import logging
from collections.abc import Iterable
from typing import Any

from .._ground.webob import Request
from .._jobs import Job
from ..errors import ConfigurationError, JobExpired, JobNotFound, RegistryError
from .asked import asks_with_other_credentials, kept_of
from .cancel import answer_cancel
from .cast import answer_cast
from .connections import disconnection_of, threads_of
from .dashboard import Authorize, answer_dashboard
from .events import answer_events
from .external import answer_asset
from .fragment import answer_fragment
from .lines import answer_lines
from .log import answer_log
from .negotiate import View, by_script, choose, means_result, names_json, saves, wants_html
from .page import answer_page
from .parts import PageMaker, PageParts, page_maker
from .problems import UNSTORED, Answer, Headers, StartResponse, bad_query, problem, retry_after
from .result import answer_download, answer_ended, answer_meant, answer_result, ask_anew, is_for_us, refused_for_others
from .status import answer_status, status_answer
from .stored import Stored, conditional
from .times import answer_times
from .viewers import Viewers
from .visit import BadParameter, Site, Visit, about

__all__ = [
    "UNSTORED",
    "Answer",
    "Authorize",
    "Headers",
    "PageMaker",
    "PageParts",
    "Site",
    "StartResponse",
    "Stored",
    "Viewers",
    "Visit",
    "about",
    "answer_dashboard",
    "answer_ended",
    "bad_query",
    "conditional",
    "disconnection_of",
    "is_for_us",
    "kept_of",
    "means_result",
    "names_json",
    "page_maker",
    "problem",
    "retry_after",
    "serve",
    "status_answer",
    "threads_of",
]

_log = logging.getLogger("bgmiddleware")

_VIEWS = {
    View.LOG: answer_log,
    View.STATUS: answer_status,
    View.PAGE: answer_page,
    View.EVENTS: answer_events,
    View.LINES: answer_lines,
    View.TIMES: answer_times,
    View.CAST: answer_cast,
    View.CAST2: answer_cast,
    View.RESULT: answer_result,
    View.SCRIPT: answer_asset,
    View.STYLE: answer_asset,
    View.ICON: answer_asset,
}
_PARTS = (View.SCRIPT, View.STYLE, View.ICON)  # of the page: the same for all jobs
_MAX_FORM = 64 * 1024
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")


def serve(visit: Visit, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a request that bears a token. The app is never called, whatever is wrong with the token."""
    return _answer(visit).send(visit.environ, start_response)


def _answer(visit: Visit) -> Answer:
    environ = visit.environ
    refused = bad_query(environ)
    if refused is not None:
        return refused
    try:
        job = visit.job()
        method = environ["REQUEST_METHOD"]
        by_form = method == "POST" and _form_action(environ) == "cancel"
        if by_form or method == "DELETE":
            wants_page = by_form and choose(environ.get("HTTP_ACCEPT")) is View.PAGE
            return visit.linked(answer_cancel(visit, job, by_form=wants_page))
        answer = _view(visit, job)
        return answer if visit.parameters.get("_view") in _PARTS else visit.linked(answer)
    except JobExpired:
        return problem(
            environ, 410, "expired", "This job has expired; what it said and answered is gone.", again=visit.again
        )
    except JobNotFound:
        return problem(environ, 404, "unknown-job", "There is no such job.", again=visit.again)
    except (RegistryError, ConfigurationError) as error:  # the latter where a process finds no disk at its first use
        _log.error("a job could not be read: %s", error)
        return problem(environ, 503, "registry-error", "The job cannot be read now.", retry_after(5.0))
    except BadParameter as error:
        return problem(environ, 400, "bad-parameter", f"{error}.")


def _view(visit: Visit, job: Job) -> Answer:
    if refused_for_others(job) and asks_with_other_credentials(visit.environ, visit.token, job):
        return ask_anew(visit, job)
    named = visit.parameters.get("_view")
    if named is None and by_script(visit.environ) and wants_html(visit.environ):
        return answer_fragment(visit, job)
    if named is None and saves(visit.environ):
        return answer_download(visit, job)
    if named is None:
        view = choose(visit.environ.get("HTTP_ACCEPT"))
        if view is View.RESULT:
            return answer_meant(visit, job)
    elif named in _VIEWS:
        view = View(named)
    else:
        raise BadParameter(f"_view must be one of {', '.join(_VIEWS)}")
    return _VIEWS[view](visit, job)


def _form_action(environ: Any) -> str | None:
    """Return the ``_action`` of a form; any other body is read and dropped, since some servers need that."""
    try:
        request = Request(environ)
        length = request.content_length or 0  # nothing said: none of our forms, and reading it might never end
        if length > _MAX_FORM:
            return None
        body = environ["wsgi.input"].read(length)
        form = Request({**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))})
        action = form.POST.get("_action") if form.content_type in _FORMS else None
    except Exception:  # WebOb raises what it likes for odd types, charsets and parts: DeprecationWarning, LookupError
        return None
    return action if isinstance(action, str) else None
