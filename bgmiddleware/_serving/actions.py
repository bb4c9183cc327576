"""What a reader may do with a job by a form: ``_action`` of a POST says what. One door, with one check."""

import io
from collections.abc import Callable, Mapping
from typing import Any

from .._ground.webob import Request
from .._jobs import Job
from .cancel import answer_cancel, answer_discard
from .kept import answer_keep, answer_unkeep
from .negotiate import View, choose
from .problems import UNSTORED, Answer, see_other
from .question import answer_answer
from .rerun import answer_rerun
from .same_site import refused_cross_site
from .sharing import answer_share, answer_unshare
from .visit import Visit, job_headers

__all__ = ["ACTIONS", "action_of", "answer_action", "fields_of", "form_of"]

_MAX_FORM = 64 * 1024
_FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")

Form = Mapping[str, str]

ACTIONS: dict[str, Callable[[Visit, Job, Form], Answer]] = {
    "cancel": lambda visit, job, form: answer_cancel(visit, job),
    "answer": answer_answer,
    "rerun": answer_rerun,
    "share": answer_share,
    "unshare": answer_unshare,
    "keep": answer_keep,
    "unkeep": answer_unkeep,
    "discard": lambda visit, job, form: answer_discard(visit, job),
}


def form_of(environ: Mapping[str, Any]) -> Form:
    """Return the texts of a form, of each name the last."""
    return dict(fields_of(environ))


def fields_of(environ: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the texts of a form; any other body is read and dropped, since some servers need that."""
    try:
        request = Request(dict(environ))
        length = request.content_length or 0  # nothing said: none of our forms, and reading it might never end
        if length > _MAX_FORM:
            return []
        body = environ["wsgi.input"].read(length)
        form = Request({**environ, "wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))})
        fields = form.POST.items() if form.content_type in _FORMS else ()
        return [(name, value) for name, value in fields if isinstance(value, str)]
    except Exception:  # WebOb raises what it likes for odd types, charsets and parts: DeprecationWarning, LookupError
        return []


def action_of(environ: Mapping[str, Any], form: Form) -> str | None:
    """Return what a request with this form asks to be done with its job; None: nothing, it only looks."""
    if environ["REQUEST_METHOD"] == "DELETE":
        return "cancel"
    action = form.get("_action", "answer" if "_answer" in form else "")
    return action if action in ACTIONS else None


def answer_action(visit: Visit, job: Job, action: str, form: Form) -> Answer:
    """Do what is asked, unless a page of another site asks it. Say so: to a person by going back to the page, else by
    the job's state."""
    refused = refused_cross_site(visit.environ)
    if refused is not None:
        return refused
    answer = ACTIONS[action](visit, job, form)
    by_person = visit.environ["REQUEST_METHOD"] == "POST" and choose(visit.environ.get("HTTP_ACCEPT")) is View.PAGE
    if not (by_person and answer.status.startswith("2")):
        return answer
    back = visit.link(_view=View.SHARE) if action in ("share", "unshare") else visit.link()
    return see_other(back, "See the job.", (*UNSTORED, *job_headers(job)))
