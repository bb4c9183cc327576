"""What a person sees who asked for something that is not there: a page, or within a page of the site a line of it."""

from collections.abc import Mapping
from string import Template
from typing import Any
from urllib.parse import quote

from . import assets
from .markup import Markup, filled_in
from .readable import readable
from .skeleton import around

__all__ = ["problem_fragment", "problem_page", "reference"]

_CONTENT = Template("""<p class="job-code">$status</p>
<h1>$title</h1>
<p lang="$detail_language">$detail</p>
<p>$advice</p>
""")
_LINK = Template('<a class="job-button" href="$link">$word</a>')
_FRAGMENT = Template('<div class="bgmiddleware-job" role="status"><p>$detail</p></div>\n')


def problem_page(
    environ: Mapping[str, Any], status: str, kind: str, detail: str, again: str | None, watch: str | None
) -> tuple[str, str]:
    """Return a page that says what is wrong, in the reader's language, and its policy.

    *again*: the URL at which what was a job can be started again; *watch*: that of its page. Neither: there was no job,
    but the request itself can be sent again.
    """
    language = assets.language_of(environ.get("HTTP_ACCEPT_LANGUAGE"))
    said = assets.words(language)
    title, text = said["problems"].get(kind, ""), said["details"].get(kind, "")
    title = title or status.partition(" ")[2]
    values = {
        "detail_language": language if text else assets.LANGUAGES[0],
        "title": title,
        "status": status,
        "detail": text or readable(" ".join(detail.split())),
        "advice": _advice(environ, said["advice"], again, watch),
    }
    return around(filled_in(_CONTENT, values), title, sheet="problem.css", looks="job-problem", language=language)


def _advice(environ: Mapping[str, Any], said: Mapping[str, str], again: str | None, watch: str | None) -> str:
    links = [(link, said[word]) for word, link in (("watch", watch), ("again", again)) if link is not None]
    if links:
        return Markup("\n".join(filled_in(_LINK, {"link": link, "word": word}) for link, word in links))
    if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
        return filled_in(_LINK, {"link": reference(environ, environ.get("QUERY_STRING") or ""), "word": said["retry"]})
    return said["send_again"]


def reference(environ: Mapping[str, Any], query: str) -> str:
    """Return a reference to the URL of the request, with this *query*: relative, for a proxy may have put something
    before its path."""
    name = quote(str(environ.get("PATH_INFO", "")).rpartition("/")[2].encode("latin-1", "replace"))
    return f"./{name}{'?' if query else ''}{query}"


def problem_fragment(detail: str) -> str:
    """Return the same as a piece of HTML, for a script that puts it into a page of its own."""
    return filled_in(_FRAGMENT, {"detail": readable(" ".join(detail.split()))})
