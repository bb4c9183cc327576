"""Whether a request that changes something comes from the site itself."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from .problems import Answer, problem

__all__ = ["refused_cross_site"]

_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_PORT = re.compile(r":[0-9]+\Z")
_FORWARDED_HOST = re.compile(r"""(?:^|[;,])\s*host="?([^;,"\s]+)""", re.IGNORECASE)  # RFC 7239 §5.3


def refused_cross_site(environ: Mapping[str, Any]) -> Answer | None:
    """Return the answer to a change that a page of another site asks for; None where none does."""
    if not _is_from_another_site(environ):
        return None
    return problem(environ, 403, "cross-site", "A job can only be changed from its own site.")


def _is_from_another_site(environ: Mapping[str, Any]) -> bool:
    """Whether a browser says that a page of another origin caused this request; programs say nothing."""
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = environ.get("HTTP_ORIGIN")
    if origin is None:
        return False
    try:
        parts = urlsplit(str(origin).lower())
    except ValueError:
        return True
    default = _DEFAULT_PORTS.get(parts.scheme, "")
    return parts.netloc.removesuffix(default) not in {host.removesuffix(default) for host in _own_hosts(environ)}


def _own_hosts(environ: Mapping[str, Any]) -> set[str]:
    """Return what this site is called: by the client, and by proxies where they ask for another host than the browser
    did. No page of another site can make a browser say that."""
    forwarded = str(environ.get("HTTP_X_FORWARDED_HOST", "")).split(",")
    forwarded += _FORWARDED_HOST.findall(str(environ.get("HTTP_FORWARDED", "")))
    hosts = {host.strip().lower() for host in (str(environ.get("HTTP_HOST", "")), *forwarded)} - {""}
    ports = {port.strip() for port in str(environ.get("HTTP_X_FORWARDED_PORT", "")).split(",")} - {""}
    return hosts | {f"{host}:{port}" for host in hosts if not _PORT.search(host) for port in ports}
