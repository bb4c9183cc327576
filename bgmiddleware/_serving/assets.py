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
from .shorten import shortened

__all__ = [
    "LANGUAGES",
    "SCRIPTS",
    "digest",
    "language_of",
    "script",
    "static",
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


def stripped_style(text: str) -> str:
    """Return CSS without comments, and without white space where it says nothing.

    It must not have strings with ``/*``, or with white space beside any of ``{};,:>``.
    """
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    return re.sub(r"\s*([{};,>]|!important)\s*|(:)\s+", r"\1\2", text).replace(";}", "}").strip() + "\n"


SCRIPTS = ("terminal.js", "texts.js", "page.js", "lines.js", "begin.js")
"""The files that the script of the page is made of."""

_CONSTANTS = ("Math", "Object", "addEventListener", "document", "location", "null", "performance", "setTimeout")
# What is no property of anything that the browser or the server gives us, and no text names it.
_PROPERTIES = (
    "cells chunk chunks createGauge createScreen cut dirty div drawn dressed erase explode first head held hides look"
    " most node number ondraw onprogress pack pieces rewritten touched was weight"
).split()


@cache
def script() -> str:
    """Return the script of the page, its terminal first."""
    colours = f"const COLOURS = '{_colours()}';"
    script = "".join([colours, *map(static, SCRIPTS)])
    return shortened(script, *_CONSTANTS, properties=_PROPERTIES)


@cache
def style() -> str:
    """Return the style of the page, but for the terminal's sixteen colours: the script has them."""
    return stripped_style(static("page.css") + _COLOUR.sub("", static("terminal.css")))


_COLOUR = re.compile(r"\.(?:fg|bg)\d+\{\w+:light-dark\(#(\w+),#(\w+)\)\}\n")


def _colours() -> str:
    """Return the colours of the terminal, of text and then of what is behind it: each for light, then for dark."""
    found = [colour for pair in _COLOUR.findall(static("terminal.css")) for colour in pair]
    return "".join(colour if len(colour) == 6 else "".join(letter * 2 for letter in colour) for colour in found)


@cache
def template(name: str) -> Template:
    """Return a part of the page, in which its words are to be filled in."""
    return Template(static(name).replace(">\n<", "><"))


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
