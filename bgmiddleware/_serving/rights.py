"""What an operator may do with all jobs: what the site's ``authorize`` says, asked once a request."""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

__all__ = ["RIGHTS", "Authorize", "rights_of"]

_log = logging.getLogger("bgmiddleware")

Authorize = Callable[[Mapping[str, Any]], bool | Collection[str]]

RIGHTS = frozenset({"list", "output", "result", "cancel", "keep", "discard", "rerun"})
"""To see which jobs there are, and how they go; to read what they print; to read their responses; to ask them to stop;
to keep them beyond their TTL; to have them forgotten; to run them again."""


def rights_of(authorize: Authorize, environ: Mapping[str, Any]) -> frozenset[str]:
    """Return what the client of a request may do, some of ``RIGHTS``: all for ``True``, none for ``False`` or ``None``.

    What is neither that nor a collection of rights is a mistake of the site: it is logged, and means nothing.
    """
    told = authorize(environ)
    if told is True:
        return RIGHTS
    if told is False or told is None:
        return frozenset()
    names = sorted(RIGHTS)
    if isinstance(told, Collection) and not isinstance(told, str) and all(right in names for right in told):
        return frozenset(told)
    _log.error("authorize returned a %s: expected True, False, or a set of %s", type(told).__name__, ", ".join(names))
    return frozenset()
