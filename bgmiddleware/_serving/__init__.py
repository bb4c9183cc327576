"""What a request that bears a token gets. One room for each view of a job; ``serve`` is the door to all of them."""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .._jobs import Job
from ..errors import ConfigurationError, JobExpired, JobNotFound, RegistryError
from .actions import action_of, answer_action, form_of
from .asked import asks_with_other_credentials, kept_of
from .cancel import stop
from .cast import answer_cast
from .comparing import answer_compare
from .connections import disconnection_of, threads_of
from .dashboard import answer_dashboard
from .deliveries import Delivery
from .events import answer_events
from .external import answer_asset
from .fragment import answer_fragment
from .health import Health
from .lines import answer_lines
from .links import key_in, operators_link, sealed
from .log import answer_log
from .mine import answer_mine
from .negotiate import View, by_script, choose, means_result, names_json, saves, wants_html
from .numbers import Numbers, answer_metrics
from .page import answer_page
from .parts import PageMaker, PageParts, page_maker
from .problems import UNSTORED, Answer, Headers, StartResponse, bad_query, problem, retry_after, see_other
from .result import answer_download, answer_ended, answer_meant, answer_result, ask_anew, is_for_us, refused_for_others
from .rights import Authorize, rights_of
from .shared_links import IN_PLACE_OF_TOKEN
from .sharing import answer_shares
from .status import answer_status, status_answer
from .stored import Stored, compressed, conditional
from .times import answer_times
from .tries import led_on, newest
from .viewers import Viewers
from .visit import BadParameter, Forbidden, Site, Visit, about

__all__ = [
    "IN_PLACE_OF_TOKEN",
    "UNSTORED",
    "Answer",
    "Authorize",
    "Delivery",
    "Headers",
    "Health",
    "Numbers",
    "PageMaker",
    "PageParts",
    "Site",
    "StartResponse",
    "Stored",
    "Viewers",
    "Visit",
    "about",
    "answer_ended",
    "answer_metrics",
    "answer_operator",
    "bad_query",
    "compressed",
    "conditional",
    "disconnection_of",
    "is_for_us",
    "kept_of",
    "key_in",
    "means_result",
    "names_json",
    "operators_link",
    "page_maker",
    "problem",
    "retry_after",
    "sealed",
    "see_other",
    "serve",
    "status_answer",
    "stop",
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
    View.SHARE: answer_shares,
    View.COMPARE: answer_compare,
    View.MINE: answer_mine,
    View.SCRIPT: answer_asset,
    View.STYLE: answer_asset,
    View.CLIENT: answer_asset,
    View.ICON: answer_asset,
}
_REFUSED = {
    "list": "You are not allowed to list jobs.",
    "output": "You are not allowed to read what jobs print.",
    "result": "You are not allowed to read the results of jobs.",
    "answer": "A job's question is for who started it.",
    "rerun": "You are not allowed to run jobs again.",
    "compare": "A job can be compared by who started it.",
    "share": "A job can be shared by who started it.",
    "mine": "The list of one's own jobs is for who started them.",
    "keep": "You are not allowed to keep jobs.",
    "cancel": "You are not allowed to cancel jobs.",
    "discard": "You are not allowed to discard jobs.",
}
_PARTS = (View.SCRIPT, View.STYLE, View.CLIENT, View.ICON)  # the same for all jobs
_RIGHTS = {
    **dict.fromkeys(_VIEWS, "output"),
    View.STATUS: "list",
    View.RESULT: "result",
    View.SHARE: "share",
    View.COMPARE: "compare",
    View.MINE: "mine",
}
"""What an operator needs the right to."""


def serve(visit: Visit, start_response: StartResponse) -> Iterable[bytes]:
    """Answer a request that bears a token. The app is never called, whatever is wrong with the token."""
    return _answer(visit).send(visit.environ, start_response)


def answer_operator(site: Site, environ: Mapping[str, Any], authorize: Authorize) -> Answer:
    """Answer a request for the list of jobs, or below it for the job of a key, by the rights of the client."""
    rights = rights_of(authorize, environ)
    key = site.key_in(environ)
    if not rights or not key:
        return answer_dashboard(site, environ, rights)
    return _answer(site.operator_visit(environ, key, rights))


def _answer(visit: Visit) -> Answer:
    environ = visit.environ
    refused = bad_query(environ)
    if refused is not None:
        return refused
    try:
        job = visit.job()
        answer = led_on(visit, job)
        if answer is not None:
            return answer
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):  # what is asked to be done is done with the newest try
            visit, job = newest(visit, job)
        form = form_of(environ) if environ["REQUEST_METHOD"] == "POST" else {}
        action = action_of(environ, form)
        if action is not None and (action != "discard" or visit.is_operators):
            visit.need(action.removeprefix("un"))  # who may do it may take it back
            answer = answer_action(visit, job, action, form)
            return answer if "Link" in dict(answer.headers) else visit.linked(answer)
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
    except Forbidden as error:
        return problem(environ, 403, "forbidden", _REFUSED[str(error)])


def _view(visit: Visit, job: Job) -> Answer:
    if not visit.is_operators:
        if refused_for_others(job) and asks_with_other_credentials(visit.environ, visit.token, job):
            return ask_anew(visit, job)
        if "_view" not in visit.parameters and by_script(visit.environ) and wants_html(visit.environ):
            return answer_fragment(visit, job)
    right, answer = _chosen(visit)
    visit.need(right)
    return answer(visit, job)


def _chosen(visit: Visit) -> tuple[str, Callable[[Visit, Job], Answer]]:
    """Return how to answer, and the right to that."""
    named = visit.parameters.get("_view")
    if named is None and saves(visit.environ):
        return "result", answer_download
    if named is None:
        view = choose(visit.environ.get("HTTP_ACCEPT"))
        if view is View.RESULT:
            return "result", answer_meant
    elif named in _VIEWS:
        view = View(named)
    else:
        raise BadParameter(f"_view must be one of {', '.join(_VIEWS)}")
    return _RIGHTS[view], _VIEWS[view]
