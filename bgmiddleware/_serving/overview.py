"""The page of all jobs, for one who looks at it: what stays, and what changes while he does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from string import Template
from typing import Any, NamedTuple

from .._jobs import Job
from . import assets
from .deliveries import Delivery, deliveries_table
from .listing import ROWS, Cursor, Filters, Found, look_for
from .markup import Markup, filled_in
from .plain import plain_page
from .problems import UNSTORED, Answer, Headers
from .rows import Rows, counted
from .shorten import shortened
from .visit import Site

__all__ = ["FRESH", "PAGE_HEADERS", "Drawn", "Look", "answer_overview", "deliveries_of", "drawn_lately", "page_of"]

PAGE_HEADERS: Headers = (("Vary", "Accept, Accept-Language"), *UNSTORED)

FRESH = 1.0
"""For how many seconds those who leave a list open are shown the same, however many they are."""

_FRESH_DELIVERIES = 5.0

_LIST = Template("""<h1>$title</h1>
<p id="pace" hidden data-live="$w_live" data-paced="$w_paced" data-paused="$w_paused" data-every="$every"></p>
$filters$live""")
_LIVE = Template("""<div id="live">
<p role="status">$summary</p>
$failures$troubles$charts$table<nav>$links</nav>
$webhooks</div>
""")
_OLDER = Template('<a href="$link">$word</a>\n')


@dataclass(frozen=True, slots=True)
class Look:
    """What a client with these *rights* looks at: the jobs behind *after* that *filters* match, and the charts."""

    site: Site
    rights: frozenset[str]
    filters: Filters
    after: Cursor | None
    span: str
    language: str

    @property
    def said(self) -> Mapping[str, Any]:
        """The words of the list."""
        words: Mapping[str, Any] = assets.words(self.language)["list"]
        return words

    @property
    def is_plain(self) -> bool:
        """Whether this is the first page of all jobs."""
        return self.after is None and self.filters == Filters()


class Drawn(NamedTuple):
    """The part of the page that changes; and *news*, by which it can be told that it did, in more than how long ago
    something was."""

    html: Markup
    news: object


def answer_overview(look: Look, every: float) -> Answer:
    """Answer with the whole page, which asks for its news *every* so many seconds where nobody tells it."""
    said = {f"w_{name}": look.said[name] for name in ("live", "paced", "paused")}
    rows = Rows(look.site, look.rights, look.filters, look.language)
    parts = {"title": look.said["title"], "filters": rows.filters(), "live": _draw(look).html}
    content = filled_in(_LIST, {**said, **parts, "every": f"{every:.3g}"})
    return page_of(look, content, script=look.after is None)


def page_of(look: Look, content: Markup, *, script: bool = False) -> Answer:
    """Return a page with some *content*, which is kept up to date by a *script*."""
    text = _script() if script else ""
    return plain_page(look.said["title"], content, PAGE_HEADERS, language=look.language, script=text)


def drawn_lately(look: Look) -> Drawn:
    """Return what is new for one who looked before. It is at most a second old: so many cost no more than one."""
    key = look.rights, look.filters, look.after, look.span, look.language
    drawn: Drawn = look.site.lists.of(key, FRESH, lambda: _draw(look))
    return drawn


def _draw(look: Look) -> Drawn:
    found = look_for(look.site.registry, look.filters, look.after)
    rows = Rows(look.site, look.rights, look.filters, look.language)
    values = {
        "summary": _summary(look, found),
        "failures": rows.failures(found.jobs) if look.is_plain else Markup(),
        **_webhooks(look),
        "charts": _charts_of(look) if look.is_plain else Markup(),
        "table": rows.table(found.jobs),
        "links": _links(look, found),
    }
    return Drawn(filled_in(_LIVE, values), [_news(job) for job in found.jobs])


def _news(job: Job) -> tuple[object, ...]:
    return job.key, job.state, job.title, job.reason, job.output_end, job.rerun_as


def deliveries_of(site: Site) -> Sequence[Delivery]:
    """Return how the messages of webhooks go, as of the last seconds."""
    found: Sequence[Delivery] = site.lists.of("deliveries", _FRESH_DELIVERIES, site.deliveries)
    return found


def _webhooks(look: Look) -> dict[str, Markup]:
    """Return the deliveries: those with *troubles* at the top, the others as *webhooks* at the end."""
    deliveries = deliveries_of(look.site) if look.is_plain else ()
    troubled = [delivery for delivery in deliveries if delivery.failing or delivery.given_up]
    well = [delivery for delivery in deliveries if delivery not in troubled]
    now = look.site.registry.clock()
    return {
        "troubles": deliveries_table(troubled, look.said, now, name="troubles"),
        "webhooks": deliveries_table(well, look.said, now, name="webhooks"),
    }


def _charts_of(look: Look) -> Markup:
    return look.site.charts.of(look.site.registry, look.span, look.language, lambda path: Filters(path=path).query())


def _summary(look: Look, found: Found) -> str:
    jobs = counted(len(found.jobs), look.said)
    sort = look.filters.sort
    if sort and found.whole:
        return str(look.said["sorted_all"].format(jobs=jobs, looked=found.looked)) if found.looked > ROWS else jobs
    if found.whole:
        return str(look.said["the_newest"].format(jobs=jobs)) if found.next and look.after is None else jobs
    told = "looked" if not sort else "sorted_oldest" if sort == "created" else "sorted"
    return str(look.said[told].format(jobs=jobs, looked=found.looked))


@cache
def _script() -> str:
    return shortened(assets.static("dashboard.js"))


def _links(look: Look, found: Found) -> Markup:
    filters, said = look.filters, look.said
    links = [] if look.after is None else [filled_in(_OLDER, {"link": filters.query(), "word": said["newest"]})]
    if found.next is not None:
        word = said["following"].format(count=ROWS) if found.whole else said["look_on"]
        links.append(filled_in(_OLDER, {"link": filters.query(before=str(found.next)), "word": word}))
    return Markup("".join(links))
