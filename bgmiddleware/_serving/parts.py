"""What a page is made of: by us, or by a site with looks of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import Template
from typing import Any

from ..errors import ConfigurationError
from .markup import Markup, filled_in

__all__ = ["PageMaker", "PageParts", "page_maker"]


@dataclass(frozen=True, slots=True)
class PageParts:
    """What a site makes the page of a job of, if it has its own ``page=``.

    *head* and *body* are HTML: what has to be in the ``<head>``, and all of the live view, for anywhere in the
    ``<body>``. *language* is that of their words, ``en`` or ``de``. *status* is what a script is told of the job
    (``_view=status``), and *output* the end of what it printed, at most 64 KiB: both are not escaped.
    """

    head: str
    body: str
    language: str
    status: Mapping[str, Any]
    output: str


PageMaker = Callable[[PageParts], str]


def page_maker(page: PageMaker | Template | None) -> PageMaker:
    """Return the function that makes a whole page of its parts: *page*, or what fills in that template; None: ours.

    A template may have ``$head``, ``$body``, ``$language``, ``$title``, ``$state`` and ``$output``, and must have the
    first two. Raises ``ConfigurationError`` for another one, and for what is neither.
    """
    if page is None:
        page = _OURS
    if not isinstance(page, Template):
        if not callable(page):
            raise ConfigurationError.of_setting("page", page, "a function of PageParts, or a string.Template")
        return page
    template, names = page, set(page.get_identifiers())
    if not page.is_valid() or not {"head", "body"} <= names <= _NAMES:
        raise ConfigurationError.of_setting(
            "page", page.template, f"a template with $head and $body, and of others only {_OTHERS}"
        )
    return lambda parts: filled_in(template, _values(parts))


_NAMES = {"head", "body", "language", "title", "state", "output"}
_OTHERS = "$language, $title, $state, $output"

_OURS = Template("""<!DOCTYPE html>
<html lang="$language">
<head>
$head</head>
<body class="job-page">
<main>
$body</main>
</body>
</html>
""")


def _values(parts: PageParts) -> dict[str, str]:
    return {
        "head": Markup(parts.head),
        "body": Markup(parts.body),
        "language": parts.language,
        "title": parts.status["title"],
        "state": parts.status["state"],
        "output": parts.output,
    }
