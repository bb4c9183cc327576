"""What the page is made of, besides what it says: scripts, styles, templates and words, each read once."""

import base64
import hashlib
import json
from functools import cache
from importlib import resources
from string import Template
from typing import Any

from webob.acceptparse import create_accept_language_header

__all__ = ["LANGUAGES", "digest", "language_of", "script", "static", "stripped", "style", "template", "words"]

LANGUAGES = ("en", "de")
"""What the page can speak; the first is for who asks for none of them."""

_COMMENTS = {"js": ("//", ""), "css": ("/*", "*/")}


@cache
def static(name: str) -> str:
    """Return a file of ours as text."""
    return resources.files(__package__).joinpath("static", name).read_text("utf-8")


def stripped(text: str, kind: str) -> str:
    """Return a script (*kind* ``js``) or a style (``css``) without comments that are whole lines, empty lines and
    indentation. Nothing else is touched, so there is nothing to be understood of the language; but a string must not
    go over several lines."""
    begin, end = _COMMENTS[kind]
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not (line.startswith(begin) and line.endswith(end))) + "\n"


@cache
def script() -> str:
    """Return the script of the page, its terminal first."""
    return stripped(static("terminal.js") + static("page.js"), "js")


@cache
def style() -> str:
    """Return the style of the page."""
    return stripped(static("page.css") + static("terminal.css"), "css")


@cache
def template(name: str) -> Template:
    """Return a part of the page, in which its words are to be filled in."""
    return Template(static(name))


@cache
def words(language: str) -> dict[str, Any]:
    """Return what the page says in one of ``LANGUAGES``: ``states``, and what is for the ``page`` and its ``script``."""
    found: dict[str, Any] = json.loads(static(f"{language}.json"))
    return found


def language_of(accept_language: str | None) -> str:
    """Return the language for an ``Accept-Language`` header (RFC 4647, "lookup")."""
    accepted = create_accept_language_header(accept_language)
    return str(accepted.lookup(list(LANGUAGES), default=LANGUAGES[0]))


@cache
def digest(text: str) -> str:
    """Return the SHA-256 of a text, as content security policies write it."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
