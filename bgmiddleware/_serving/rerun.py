"""Running a job again, and the way from one run to the other."""

from collections.abc import Mapping
from string import Template
from typing import Any

from .._jobs import Job
from .links import key_in, unsealed
from .markup import Markup, filled_in
from .problems import Answer
from .shared_links import OWN
from .visit import STAYING, Visit

__all__ = ["answer_rerun", "link_to", "rerun_form", "token_in"]

_FORM = Template("""<form id="job-rerun" method="post"$hidden><button name="_action" value="rerun">$word</button></form>
""")
_LINK = Template('<a href="$link">$word</a>\n')


def answer_rerun(visit: Visit, job: Job, form: Mapping[str, str]) -> Answer:
    """Start the request of the job again, and answer with the place of the new one."""
    return visit.site.rerun(visit, job)


def link_to(visit: Visit, job: Job, link: str) -> str | None:
    """Return a relative reference to where a sealed *link* of a *job* leads: for an operator by its key. None where
    there is none, and where this client's token does not open it."""
    if visit.is_operators:
        return key_in(link) or None if visit.share is None else None
    token = token_in(visit, job, link)
    if token is None:
        return None
    query = visit.site.without_ours(visit.environ.get("QUERY_STRING") or "")
    # From the earlier try of a request everybody is led back here.
    is_earlier_try = link == job.rerun_of and job.tries is not None and job.tries.number > 1
    return visit.site.place(query, token, **(STAYING if is_earlier_try else {}))


def token_in(visit: Visit, job: Job, link: str) -> str | None:
    """Return the token in a sealed *link* of a *job*, or what stands for it in the link of an owner; None where this
    client does not open it."""
    key, _, hidden = link.partition(":")
    if key and job.owner in visit.owners and (visit.token.startswith(OWN) or not hidden):
        return OWN + key
    return unsealed(link, visit.token)


def rerun_form(visit: Visit, job: Job, said: Mapping[str, Any]) -> Markup:
    """Return the button that runs the job again, hidden until it has ended, and the links to its other runs."""
    links = {"earlier_run": link_to(visit, job, job.rerun_of), "later_run": link_to(visit, job, job.rerun_as)}
    html = [filled_in(_LINK, {"link": link, "word": said[word]}) for word, link in links.items() if link is not None]
    if job.keeps_request and visit.may("rerun"):
        hidden = Markup("" if job.state.ended and not job.is_tried_again else " hidden")
        html.append(filled_in(_FORM, {"hidden": hidden, "word": said["rerun"]}))
    return Markup("".join(html))
