"""Marks: which requests go to the background.

A mark is a function of the WSGI environ that returns true or false: ``Callable[[Mapping[str, Any]], bool]``. Any thread
may call it, for every request, so it must be fast and must not change the environ. This module has the common ones; you
can write your own.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ._ground.prefer import preferences
from ._ground.screens import EVERY, Screen, screen_of, screen_of_globs, screened, united
from ._jobs import KEY_LENGTH
from .errors import ConfigurationError

__all__ = [
    "Mark",
    "all_of",
    "always",
    "any_of",
    "exactly",
    "header",
    "navigation",
    "never",
    "none_of",
    "path",
    "prefers_async",
    "query",
]

Environ = Mapping[str, Any]
Mark = Callable[[Environ], bool]

_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})


def path(*globs: str, methods: Iterable[str] | None = None, parts: bool = False) -> Mark:
    """Mark requests whose whole ``PATH_INFO`` matches one of *globs*; case matters.

    ``*`` stands for any characters (``/`` too), ``?`` for one, ``[…]`` for one of a set. Globs use the characters of
    the URL after decoding (UTF-8). *methods*: only these HTTP methods; by default GET, POST, PUT, PATCH and DELETE.
    *parts*: also requests of a page for its parts, which :func:`navigation` leaves out. Raises ``ConfigurationError``
    if there is no glob, if a glob does not begin with ``/`` or ``*``, or if *methods* is one ``str``.
    """
    if not globs:
        raise ConfigurationError("path() needs at least one glob, such as '/reports/*'")
    for glob in globs:
        if not glob.startswith(("/", "*")):
            raise ConfigurationError.of_setting("path", glob, "a glob that begins with '/' or '*'")
    if isinstance(methods, str):  # an iterable of letters, none of which is a method
        raise ConfigurationError.of_setting("methods", methods, f"a list, such as [{methods.upper()!r}]")
    wanted = _METHODS if methods is None else frozenset(method.upper() for method in methods)

    def may_start(environ: Environ) -> bool:
        return environ.get("REQUEST_METHOD", "GET") in wanted and (parts or navigation(environ))

    return _of_globs(globs, may_start)


def under(*globs: str) -> Mark:
    """Mark all requests whose path matches one of *globs*, by whatever method and for whatever use."""
    return _of_globs(globs, _any)


def _of_globs(globs: tuple[str, ...], others: Mark) -> Mark:
    """Return the mark of what matches one of *globs* and is marked by *others* too, which is asked of few requests."""
    path_matches = _by_path(globs)

    def path_marks(environ: Environ) -> bool:
        return path_matches(environ.get("PATH_INFO", "")) and others(environ)

    screened(path_marks, screen_of_globs(globs))
    return path_marks


def _by_path(globs: tuple[str, ...]) -> Callable[[str], bool]:
    """Return whether a path, as PEP 3333 spells it, matches one of *globs*."""
    if not any(map(_is_pattern, globs)):
        return frozenset(map(_as_wsgi, globs)).__contains__
    if not any(_is_pattern(glob[:-1]) or not glob.endswith("*") for glob in globs):
        prefixes = tuple(_as_wsgi(glob[:-1]) for glob in globs)
        return lambda path: path.startswith(prefixes)
    matches = re.compile("|".join(fnmatch.translate(glob) for glob in globs)).match
    return lambda path: matches(_of_wsgi(path)) is not None


def _is_pattern(text: str) -> bool:
    return any(character in text for character in "*?[")


def exactly(path: str) -> Mark:
    """Mark requests for exactly this path, without wildcards."""
    wanted = _as_wsgi(path)

    def is_wanted(environ: Environ) -> bool:
        return environ.get("PATH_INFO") == wanted

    screened(is_wanted, Screen(words=(wanted,)))
    return is_wanted


def with_keys(path: str) -> Mark:
    """Mark requests for exactly this path, and for what a job's key names below it."""
    wanted = _as_wsgi(path)
    below = wanted.removesuffix("/") + "/"
    is_key = re.compile(f"[0-9a-f]{{{KEY_LENGTH}}}").fullmatch

    def is_wanted(environ: Environ) -> bool:
        asked = environ.get("PATH_INFO", "")
        return asked == wanted or (asked.startswith(below) and is_key(asked[len(below) :]) is not None)

    screened(is_wanted, Screen(words=(wanted,)))
    return is_wanted


def _as_wsgi(text: str) -> str:
    """Return how PEP 3333 spells *text* in an environ: its UTF-8 bytes as latin-1."""
    return text.encode("utf-8").decode("latin-1")


def _of_wsgi(text: str) -> str:
    """Return what a *text* of an environ says: one ``?`` stands for one character, not for one of its bytes."""
    return text if text.isascii() else text.encode("latin-1", "replace").decode("utf-8", "replace")


def navigation(environ: Environ) -> bool:
    """Mark requests of a person or a program for a page, by ``Sec-Fetch-Mode`` and ``Sec-Fetch-Dest`` of browsers.

    Nobody can watch the job of an image, a style, a script, a frame or the page's own ``fetch``. Requests without these
    headers are marked: programs send none, nor do browsers to a site without TLS.
    """
    mode, destination = environ.get("HTTP_SEC_FETCH_MODE"), environ.get("HTTP_SEC_FETCH_DEST")
    if mode is None:
        return destination in (None, "document")
    # Of a link with the attribute "download", and of what a service worker passes on, the destination is empty.
    return mode == "navigate" and destination in (None, "document", "empty")


def prefers_async(environ: Environ) -> bool:
    """Mark requests with ``Prefer: respond-async`` (RFC 7240 §4.1)."""
    return "HTTP_PREFER" in environ and "respond-async" in preferences(environ["HTTP_PREFER"])


screened(prefers_async, Screen(header="HTTP_PREFER"))


def header(name: str, value: str | None = None) -> Mark:
    """Mark requests that have the header *name*, with exactly this *value* if one is given."""
    key = name.upper().replace("-", "_")
    if key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if value is None:  # PEP 3333 lets a server have them empty where the client sent none
            return lambda environ: bool(environ.get(key))
    else:
        key = f"HTTP_{key}"

    def has_header(environ: Environ) -> bool:
        return key in environ if value is None else bool(environ.get(key) == value)

    screened(has_header, Screen(header=key))
    return has_header


def query(name: str) -> Mark:
    """Mark requests whose query string has the parameter *name*, with any value or none. *name* needs no escaping."""
    if not name or not name.isascii() or re.search(r"[&=#%+\s]", name):
        raise ConfigurationError.of_setting("query", name, "a name of plain ASCII characters")
    named = re.compile(rf"(?:^|&){re.escape(name)}(?=[=&]|$)").search
    return lambda environ: named(environ.get("QUERY_STRING", "")) is not None


def always(environ: Environ) -> bool:
    """Mark every request, but for ``/favicon.ico``, which browsers request by themselves."""
    return environ.get("PATH_INFO") != "/favicon.ico"


def _any(environ: Environ) -> bool:
    return True


def never(environ: Environ) -> bool:
    """Mark no request: for sites that use the decorators only, or whose app answers ``Prefer: respond-async``."""
    return False


screened(never, Screen())


def any_of(*marks: Mark) -> Mark:
    """Mark requests that at least one of *marks* marks; the first match ends the search."""
    if len(marks) == 1:
        return marks[0]

    def is_any(environ: Environ) -> bool:
        for mark in marks:  # noqa: SIM110  # a generator costs more than the marks
            if mark(environ):
                return True
        return False

    screened(is_any, united([screen_of(mark) for mark in marks]))
    return is_any


def all_of(*marks: Mark) -> Mark:
    """Mark requests that all of *marks* mark."""
    if len(marks) == 1:
        return marks[0]

    def is_all(environ: Environ) -> bool:
        for mark in marks:  # noqa: SIM110  # a generator costs more than the marks
            if not mark(environ):
                return False
        return True

    # What it is true for passes the screens of all of them: any one will do.
    screened(is_all, next((screen for mark in marks if (screen := screen_of(mark)) is not EVERY), EVERY))
    return is_all


def none_of(*marks: Mark) -> Mark:
    """Mark requests that none of *marks* marks."""
    is_any = any_of(*marks)
    return lambda environ: not is_any(environ)
