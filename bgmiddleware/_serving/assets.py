"""What the page is made of, besides what it says: scripts, styles, templates and words, each read once."""

import base64
import hashlib
import json
import re
from functools import cache
from importlib import resources
from string import Template
from typing import Any

from webob.acceptparse import create_accept_language_header

__all__ = [
    "LANGUAGES",
    "digest",
    "language_of",
    "script",
    "static",
    "stripped_script",
    "stripped_style",
    "style",
    "template",
    "words",
]

LANGUAGES = ("en", "de")
"""What the page can speak; the first is for who asks for none of them."""


@cache
def static(name: str) -> str:
    """Return a file of ours as text."""
    return resources.files(__package__).joinpath("static", name).read_text("utf-8")


def stripped_script(text: str) -> str:
    """Return JavaScript without indentation, empty lines, and comments that are whole lines of ``//``; without the
    spaces around punctuation, where it is sure that they are in no string; and without the ends of lines that say
    nothing.

    It is sure where a line has no template, no backslash, and no slash, so neither a regular expression nor a comment,
    and only one kind of quotes. No string may go over several lines.
    """
    lines = (line.strip() for line in text.splitlines())
    return "".join(_packed(line) for line in lines if line and not line.startswith("//"))


def _packed(line: str) -> str:
    # A comment at its end goes on to the end of the line.
    goes_on = line[-1] in "{;,(" and "//" not in line
    return _without_spaces(line) + ("" if goes_on else "\n")


def _without_spaces(line: str) -> str:
    quotes = {'"', "'"} & set(line)
    if len(quotes) > 1 or _UNSURE & set(line):
        return line
    quote = quotes.pop() if quotes else "\n"
    parts = line.split(quote)
    return quote.join(part if inside % 2 else _AROUND.sub(r"\1\2", part) for inside, part in enumerate(parts))


_UNSURE = set("`/\\")
_AROUND = re.compile(r" ?(!==?|[=(){},;:?<>&|\[\]]) ?|(?<![+-]) ([+*-]) (?![+-])")


def stripped_style(text: str) -> str:
    """Return CSS without comments, and without white space where it says nothing.

    It must not have strings with ``/*``, or with white space beside any of ``{};,:``.
    """
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r"\s*([{};,])\s*|(:)\s+", r"\1\2", text).strip() + "\n"


@cache
def script() -> str:
    """Return the script of the page, its terminal first."""
    return stripped_script(static("terminal.js") + static("page.js"))


@cache
def style() -> str:
    """Return the style of the page."""
    return stripped_style(static("page.css") + static("terminal.css"))


@cache
def template(name: str) -> Template:
    """Return a part of the page, in which its words are to be filled in."""
    return Template(static(name))


@cache
def words(language: str) -> dict[str, Any]:
    """Return what is said in one of ``LANGUAGES``: the ``states``, and the words of the ``page`` and its ``script``."""
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
