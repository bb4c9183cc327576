"""Pages beside that of a job: the list of all, the links to one, two runs beside each other. All in one response."""

from .markup import Markup
from .problems import Answer, Headers, whole
from .skeleton import around

__all__ = ["plain_page"]


def plain_page(
    title: str, content: Markup, headers: Headers, *, language: str = "en", looks: str = "", script: str = ""
) -> Answer:
    """Return a page with the style of the list, and with *script* if there is one. *looks*: a class of its own."""
    looks = f"job-list {looks}".rstrip()
    page, policy = around(content, title, sheet="dashboard.css", looks=looks, language=language, script=script)
    return whole("text/html; charset=utf-8", page, (("Content-Security-Policy", policy), *headers))
