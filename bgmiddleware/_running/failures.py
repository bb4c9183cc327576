"""Say in the server's log that a job failed: one line for each, whoever made a failure of it."""

import contextlib
import logging
import re

__all__ = ["log_failed", "one_line", "raised_in"]

_log = logging.getLogger("bgmiddleware")

_LONGEST = 500
# How Python begins a traceback, also in a group of exceptions; the line that names the exception is the first behind it
# that is not indented, but for the bar that a group draws.
_BEGINNING = re.compile(r"^([ +|]*)(?:\+ )?(?:Exception Group )?Traceback \(most recent call last\):[ \t]*\r?$", re.M)
_NAMED = re.compile(r"^[ |]*(?!\s)([A-Za-z_][\w.]*(?::.*)?)\r?$", re.M)
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")


def log_failed(key: str, title: str, reason: str, error: BaseException | None = None, *, trace: str = "") -> None:
    """Log one error, with the traceback of *error*, or *trace* as it is. What the app's handlers raise is theirs:
    neither the job nor its worker may end of it."""
    with contextlib.suppress(Exception):
        _log.error("job %s failed: %s: %s%s", key[:8], one_line(title), one_line(reason), trace, exc_info=error)


def one_line(text: str) -> str:
    """Return a text with what is not printable written out: a client chooses paths, and must not write log lines."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def raised_in(output: str) -> str:
    """Return the last line of the last traceback in the output of a job, empty where there is none: frameworks that
    answer 500 print one, or log it."""
    text = _ESCAPES.sub("", output)
    beginnings = list(_BEGINNING.finditer(text))
    if not beginnings:
        return ""
    beginning = beginnings[-1]
    for line in text[beginning.end() :].splitlines()[1:]:
        rest = line[len(beginning[1]) :] if line.startswith(beginning[1]) else line.lstrip(" |")
        if rest[:1].strip() and _NAMED.match(rest):
            return rest.strip()[:_LONGEST]
    return ""
