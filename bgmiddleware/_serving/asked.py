"""What is kept of who started a job, to be compared with who reads its response: digests, which only a holder of the
job's token can make."""

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from typing import Any

from .._jobs import Job
from .shared_links import OWN

__all__ = ["asks_with_other_credentials", "delivered_cookies", "kept_of", "pattern_of"]

_CREDENTIALS = "credentials"
_COOKIE = "cookie "


def kept_of(
    environ: Mapping[str, Any], token: str, query: str = "", redacted: Callable[[str], str] = str
) -> dict[str, str]:
    """Return what is kept of a request when its job has ended. *query*: what the job's URL is too short for."""
    path = pattern_of(environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", ""), redacted)
    kept = {"method": environ["REQUEST_METHOD"], "path": path, **_digests(environ, token)}
    if query:
        kept["query"] = query
    return kept


# Numbers, dates, keys and whatever is too long for a word; but "v2" is none of these.
_VARIABLE = re.compile(r"(?<=/)(?:(?!v[0-9]{1,2}(?:/|\Z))[^/]*[0-9][^/]*|[^/]{33,})")
_LONGEST_PATTERN = 100


def pattern_of(path: str, redacted: Callable[[str], str] = str) -> str:
    """Return what a path has in common with others of its kind, by which jobs are counted: each part of it that has a
    digit, or is long, is a ``*``. It has no secrets, which *redacted* takes out."""
    if not path.isascii():
        path = path.encode("latin-1", "replace").decode("utf-8", "replace")
    pattern = _VARIABLE.sub("*", redacted(path))
    if not pattern.isprintable():
        pattern = "".join(character if character.isprintable() else "�" for character in pattern)
    return pattern[:_LONGEST_PATTERN]


def _digests(environ: Mapping[str, Any], token: str) -> dict[str, str]:
    found: dict[str, str] = {}
    credentials, cookies = environ.get("HTTP_AUTHORIZATION"), environ.get("HTTP_COOKIE")
    if not credentials and not cookies:
        return found
    if credentials:
        found[_CREDENTIALS] = credentials
    for pair in (cookies or "").split(";"):
        name, equals, value = pair.strip().partition("=")
        if equals:  # of one name there may be several, for other paths
            found[_COOKIE + name] = found.get(_COOKIE + name, "") + ";" + value
    return {name: _digest(token, text) for name, text in found.items()}


def _digest(token: str, text: str) -> str:
    return hmac.digest(token.encode(), text.encode("latin-1", "replace"), hashlib.sha256)[:12].hex()


def asks_with_other_credentials(environ: Mapping[str, Any], token: str, job: Job) -> bool:
    """Whether a client now proves who it is in another way than when it started the job. Never by the link of an owner:
    the digests are made with the token, which is not known there."""
    if token.startswith(OWN):
        return False
    now = _digests(environ, token).get(_CREDENTIALS)
    return now is not None and now != job.asked.get(_CREDENTIALS)


def delivered_cookies(environ: Mapping[str, Any], token: str, job: Job) -> set[str]:
    """Return the names of the response's cookies that a reader may be given.

    What the app sets follows from what the browser sent when the job began. Where the browser has another value by now,
    or is another one, the cookie would undo what happened since: a login, a logout, what was put into a cart.
    """
    then = {name: digest for name, digest in job.asked.items() if name.startswith(_COOKIE)}
    now = _digests(environ, token)
    if then and all(now.get(name) != digest for name, digest in then.items()):
        return set()  # another browser
    headers = job.response.headers if job.response is not None else ()
    names = {value.partition("=")[0].strip() for name, value in headers if name.lower() == "set-cookie"}
    return {name for name in names if now.get(_COOKIE + name) == then.get(_COOKIE + name)}
