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

# What every path has that matches a glob, in whatever way its bytes are read: so ASCII only.
_HEAD = re.compile(r"\A[^*?\[\x80-\U0010ffff]*")
_TAIL = re.compile(r"[^*?\]\x80-\U0010ffff]*\Z")


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
    """Return the mark of what matches one of *globs* and is marked by *others* too."""
    # This runs for every request of the site, and nearly all globs are a prefix or a path: neither needs a regular
    # expression, and *others* is asked of few requests.
    if not any(map(_is_pattern, globs)):
        return _of_paths(frozenset(map(_as_wsgi, globs)), others)
    prefixes = tuple(_as_wsgi(glob[:-1]) for glob in globs if glob.endswith("*") and not _is_pattern(glob[:-1]))
    if len(prefixes) == len(globs) == 1:
        return _of_prefix(prefixes[0], others)
    if len(prefixes) == len(globs):
        return lambda environ: environ.get("PATH_INFO", "").startswith(prefixes) and others(environ)
    return _of_patterns(globs, others)


def _of_paths(paths: frozenset[str], others: Mark) -> Mark:
    if len(paths) > 1:
        return lambda environ: environ.get("PATH_INFO") in paths and others(environ)
    (wanted,) = paths
    return lambda environ: environ.get("PATH_INFO") == wanted and others(environ)


def _of_patterns(globs: tuple[str, ...], others: Mark) -> Mark:
    matches = re.compile("|".join(fnmatch.translate(glob) for glob in globs)).match

    def path_matches(environ: Environ) -> bool:
        return matches(_of_wsgi(environ.get("PATH_INFO", ""))) is not None and others(environ)

    # A path that matches begins or ends as one of the globs does: most do neither, and are not looked at further.
    begin = tuple(_HEAD.findall(glob)[0] for glob in globs)
    heads = tuple(filter(None, begin))
    tails = tuple(_TAIL.findall(glob)[0] for glob, head in zip(globs, begin, strict=True) if not head)
    if not all(tails):
        return path_matches

    def path_may_match(environ: Environ) -> bool:
        try:
            path = environ["PATH_INFO"]
        except KeyError:  # an empty one may be left out
            return False
        return (path.startswith(heads) or path.endswith(tails)) and path_matches(environ)

    if tails:
        return path_may_match
    return lambda environ: environ.get("PATH_INFO", "").startswith(heads) and path_matches(environ)


def _of_prefix(prefix: str, others: Mark) -> Mark:
    if not prefix:
        return others
    # What begins with "/a" lies between "/a" and "/b": two comparisons, which make no new string.
    behind = prefix[:-1] + chr(ord(prefix[-1]) + 1)

    def path_begins(environ: Environ) -> bool:
        try:
            return prefix <= environ["PATH_INFO"] < behind and others(environ)
        except KeyError:  # an empty one may be left out
            return False

    return path_begins


def _is_pattern(text: str) -> bool:
    return any(character in text for character in "*?[")


def exactly(path: str) -> Mark:
    """Mark requests for exactly this path, without wildcards."""
    wanted = _as_wsgi(path)
    return lambda environ: environ.get("PATH_INFO") == wanted


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


def header(name: str, value: str | None = None) -> Mark:
    """Mark requests that have the header *name*, with exactly this *value* if one is given."""
    key = name.upper().replace("-", "_")
    if key in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if value is None:  # PEP 3333 lets a server have them empty where the client sent none
            return lambda environ: bool(environ.get(key))
    else:
        key = f"HTTP_{key}"
    if value is None:
        return lambda environ: key in environ
    return lambda environ: environ.get(key) == value


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


def any_of(*marks: Mark) -> Mark:
    """Mark requests that at least one of *marks* marks; the first match ends the search."""
    if len(marks) == 1:
        return marks[0]
    # This runs for every request of the site: without a loop, and without a call that nearly always says no.
    if len(marks) == 2:
        first, second = marks
        if first is prefers_async:
            return lambda environ: ("HTTP_PREFER" in environ and prefers_async(environ)) or second(environ)
        return lambda environ: first(environ) or second(environ)

    def is_any(environ: Environ) -> bool:
        for mark in marks:  # noqa: SIM110  # a generator costs more than the marks
            if mark(environ):
                return True
        return False

    return is_any


def all_of(*marks: Mark) -> Mark:
    """Mark requests that all of *marks* mark."""
    if len(marks) == 1:
        return marks[0]
    if len(marks) == 2:
        first, second = marks
        return lambda environ: first(environ) and second(environ)

    def is_all(environ: Environ) -> bool:
        for mark in marks:  # noqa: SIM110  # a generator costs more than the marks
            if not mark(environ):
                return False
        return True

    return is_all


def none_of(*marks: Mark) -> Mark:
    """Mark requests that none of *marks* marks."""
    is_any = any_of(*marks)
    return lambda environ: not is_any(environ)
