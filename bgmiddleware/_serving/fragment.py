"""A job within a page of the site: for a script that asks for HTML, such as htmx, and puts it into an element."""

from string import Template
from urllib.parse import quote

from .._jobs import Job, JobState
from . import assets
from .icons import LOOKS, look_of
from .markup import Markup, filled_in
from .negotiate import View
from .problems import Answer, whole
from .readable import readable
from .result import answer_ended
from .tries import note_of_tries
from .visit import Visit, about

__all__ = ["answer_fragment"]

_FRAGMENT = Template(
    '<div class="bgmiddleware-job" role="status" data-job="$state"$live>$symbol $word $note'
    ' <a href="$page">$link</a></div>\n'
)
# htmx asks again, and puts what it gets in the place of this element alone, whatever it inherits.
_LIVE = Template(' hx-get="$page" hx-trigger="load delay:1s" hx-target="this" hx-swap="outerHTML" hx-push-url="false"')


def answer_fragment(visit: Visit, job: Job) -> Answer:
    """Answer with a line about the job, and in the end with its result; an answer that is a refusal is only linked,
    since scripts show none.

    Whoever would put it in the place of a whole page (htmx' ``hx-boost``) is sent to the job's own page.
    """
    # Not relative: it is resolved against the page that it is put into.
    path = quote((visit.environ.get("SCRIPT_NAME", "") + visit.environ.get("PATH_INFO", "")).encode("latin-1"))
    page = path + visit.link()
    headers = about(job, "Accept, Accept-Language, HX-Request, HX-Boosted, X-Requested-With, Sec-Fetch-Dest")
    if "HTTP_HX_BOOSTED" in visit.environ:
        return Answer("200 OK", (("HX-Redirect", page), ("Content-Type", "text/plain"), *headers), [b""])
    if look_of(job) == JobState.FINISHED:
        return answer_ended(visit, job)
    return whole("text/html; charset=utf-8", _fragment(visit, job, page), headers)


def _fragment(visit: Visit, job: Job, page: str) -> str:
    said = assets.words(assets.language_of(visit.environ.get("HTTP_ACCEPT_LANGUAGE")))
    look = look_of(job)
    percent = job.current_progress.percent if job.current_progress is not None else None
    note = job.reason if job.state.ended else "" if percent is None else f"{percent:.0f} %"
    if look == "refused" and job.response is not None:
        note = job.response.status
    note = " · ".join(filter(None, [note, note_of_tries(visit, job, said["script"])]))
    values = {
        "state": look,
        "live": Markup() if visit.has_ended(job) else filled_in(_LIVE, {"page": page}),
        "symbol": LOOKS[look][0],
        "word": said["states"][look],
        "note": readable(note),
        "page": f"{page}&_view={View.RESULT}" if look == "refused" else page,
        "link": said["advice"]["open" if look == "refused" else "watch"],
    }
    return filled_in(_FRAGMENT, values)
