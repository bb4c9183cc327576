"""What the page is made of, besides what it says: scripts, styles, templates and words, each read once."""

import base64
import hashlib
import json
import re
from functools import cache
from importlib import resources
from string import Template
from typing import Any

from .._ground.webob import create_accept_language_header

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
    spaces around punctuation, where it is sure that they are in no string; without the ends of lines that say nothing;
    and with one ``const`` for those that are lines below each other.

    It is sure up to the first slash of a line, which may begin a regular expression or a comment, and where no template
    is in another. No string may go over several lines, and every statement that is no block needs its semicolon.
    """
    stripped = (line.strip() for line in text.splitlines())
    lines = [line for line in stripped if line and not line.startswith("//")]
    return "".join(map(_packed, lines, ["", *lines], [*lines[1:], ""]))


def _packed(line: str, before: str, behind: str) -> str:
    text = _without_spaces(line)
    if _goes_on(before, line):
        text = text.removeprefix("const").lstrip()
    if _goes_on(line, behind):
        return text.removesuffix(";") + ","
    if "//" in line:
        # A comment at its end goes on to the end of the line.
        return text + "\n"
    if behind.startswith(("}", ")", "]")) and not _HEAD.match(line):
        return text.rstrip(",;")
    return text if line[-1] in "{};,([" else text + "\n"


def _goes_on(line: str, behind: str) -> bool:
    return "//" not in line and line[-1:] == ";" and line.startswith("const ") and behind.startswith("const ")


# What may have nothing but a semicolon for a body.
_HEAD = re.compile("(for|while|if|else)\\b")


def _without_spaces(line: str) -> str:
    before, slash, behind = line.partition("/")
    if before.count("`") > 2:
        return line
    parts = _STRING.split(before)
    # A string that is not at its end yet.
    if slash and set(parts[-1]) & set("\"'`"):
        return line
    sure = (part if inside % 2 else _AROUND.sub(r"\1\2", part) for inside, part in enumerate(parts))
    return "".join([*sure, slash, behind])


_STRING = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|`[^`]*`)""")
_AROUND = re.compile(r" ?(=>|[!=]==?|[=(){},;:?<>&|\[\]])(?: (?![+*%-] ))?|(?<![+-]) ([+*%-]) (?![+-])")


def stripped_style(text: str) -> str:
    """Return CSS without comments, and without white space where it says nothing.

    It must not have strings with ``/*``, or with white space beside any of ``{};,:>``.
    """
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r"\s*([{};,>])\s*|(:)\s+", r"\1\2", text).replace(";}", "}").strip() + "\n"


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
