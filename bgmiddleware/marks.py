"""Which requests go to the background.

A mark is a function of the WSGI environ that says yes or no: ``Callable[[Mapping[str, Any]], bool]``. It is called for
every request, by any thread, so it must be quick and must not change the environ. These are ready made; write your own
as you like.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ._prefer import preferences
from .errors import ConfigurationError

__all__ = ["Mark", "all_of", "always", "any_of", "exactly", "header", "none_of", "path", "prefers_async", "query"]

Environ = Mapping[str, Any]
Mark = Callable[[Environ], bool]


def path(*globs: str, methods: Iterable[str] | None = None) -> Mark:
    """Mark requests whose ``PATH_INFO`` matches one of *globs*, as a whole and with upper and lower case told apart.

    ``*`` stands for any characters (``/`` too), ``?`` for one, ``[…]`` for one of a set. Globs are in the characters
    of the URL after decoding (UTF-8). *methods*: only for these HTTP methods. Raises ``ConfigurationError`` if there
    is no glob, or one that does not begin with ``/`` or ``*``, or *methods* is one ``str``.
    """
    if not globs:
        raise ConfigurationError("path() needs at least one glob, such as '/reports/*'")
    for glob in globs:
        if not glob.startswith(("/", "*")):
            raise ConfigurationError.of_setting("path", glob, "a glob that begins with '/' or '*'")
    if isinstance(methods, str):  # an iterable of letters, none of which is a method
        raise ConfigurationError.of_setting("methods", methods, f"a list, such as [{methods.upper()!r}]")
    matches = _of_globs(globs)
    if methods is None:
        return matches
    wanted = frozenset(method.upper() for method in methods)
    return lambda environ: matches(environ) and environ["REQUEST_METHOD"] in wanted


def _of_globs(globs: tuple[str, ...]) -> Mark:
    # This runs for every request of the site. A prefix is a third faster than a regular expression, and nearly all
    # globs are one.
    prefixes = tuple(_as_wsgi(glob[:-1]) for glob in globs if glob.endswith("*") and not _is_pattern(glob[:-1]))
    if len(prefixes) == len(globs) == 1:
        return _of_prefix(prefixes[0])
    if len(prefixes) == len(globs):
        return lambda environ: bool(environ.get("PATH_INFO", "").startswith(prefixes))
    matches = re.compile("|".join(fnmatch.translate(glob) for glob in globs)).match
    return lambda environ: matches(_of_wsgi(environ.get("PATH_INFO", ""))) is not None


def _of_prefix(prefix: str) -> Mark:
    if not prefix:
        return always
    # What begins with "/a" lies between "/a" and "/b": two comparisons, which make no new string.
    behind = prefix[:-1] + chr(ord(prefix[-1]) + 1)

    def path_begins(environ: Environ) -> bool:
        try:
            return prefix <= environ["PATH_INFO"] < behind  # type: ignore[no-any-return]  # two str
        except KeyError:  # an empty one may be left out
            return False

    return path_begins


def _is_pattern(text: str) -> bool:
    return any(character in text for character in "*?[")


def exactly(path: str) -> Mark:
    """Mark requests for this path and no other, with no character standing for others."""
    wanted = _as_wsgi(path)
    return lambda environ: environ.get("PATH_INFO") == wanted


def _as_wsgi(text: str) -> str:
    """Return how PEP 3333 spells *text* in an environ: its UTF-8 bytes as latin-1."""
    return text.encode("utf-8").decode("latin-1")


def _of_wsgi(text: str) -> str:
    """Return what a *text* of an environ says: one ``?`` stands for one character, not for one of its bytes."""
    return text if text.isascii() else text.encode("latin-1", "replace").decode("utf-8", "replace")


def prefers_async(environ: Environ) -> bool:
    """Mark requests that say ``Prefer: respond-async`` (RFC 7240 §4.1)."""
    return "HTTP_PREFER" in environ and "respond-async" in preferences(environ["HTTP_PREFER"])


def header(name: str, value: str | None = None) -> Mark:
    """Mark requests that bear the header *name*, with exactly this *value* if one is given."""
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
    """Mark every request: also what browsers ask for beside it, as ``/favicon.ico``. To leave those out there is
    ``all_of(always, none_of(exactly("/favicon.ico")))``."""
    return True


def any_of(*marks: Mark) -> Mark:
    """Mark what at least one of *marks* marks; the first that does ends the search."""
    if len(marks) == 1:
        return marks[0]
    if len(marks) == 2:  # without a loop: this runs for every request of the site
        first, second = marks
        return lambda environ: first(environ) or second(environ)
    return lambda environ: any(mark(environ) for mark in marks)


def all_of(*marks: Mark) -> Mark:
    """Mark what each of *marks* marks."""
    return lambda environ: all(mark(environ) for mark in marks)


def none_of(*marks: Mark) -> Mark:
    """Mark what none of *marks* marks."""
    return lambda environ: not any(mark(environ) for mark in marks)
