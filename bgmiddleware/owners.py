"""Whose job is it? Functions of the WSGI environ that name the user who sends a request.

``BackgroundMiddleware(app, owner=owners.remote_user)``: a job is then visible to its owner only; to others it looks as
if there were none. Where the function returns None, nobody in particular, a job is visible to whoever has its token.
Write your own as you like: ``Callable[[Mapping[str, Any]], str | None]``.
"""

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from webob.cookies import SignedCookieProfile
from webob.request import BaseRequest

from .errors import ConfigurationError

__all__ = ["CookieOwner", "Owner", "cookie", "header", "remote_user"]

Owner = Callable[[Mapping[str, Any]], str | None]

_LEAST_SECRET = 16


def remote_user(environ: Mapping[str, Any]) -> str | None:
    """Return ``REMOTE_USER``, as the server or a middleware outside of this one has set it after authentication."""
    return environ.get("REMOTE_USER") or None


def header(name: str) -> Owner:
    """Return a function that takes the owner from a request header, for sites whose proxy authenticates.

    Only safe where that proxy always sets the header itself: else any client may say who it is.
    """
    key = "HTTP_" + name.upper().replace("-", "_")
    return lambda environ: environ.get(key) or None


def cookie(secret: str, *, name: str = "bgmiddleware") -> "CookieOwner":
    """Return an owner that is a browser: a signed cookie, which a client is given when it starts its first job.

    *secret*: at least 16 characters, the same for all processes of a site. Raises ``ConfigurationError`` for less.
    """
    return CookieOwner(secret, name)


class CookieOwner:
    """Tells browsers apart by a cookie that they cannot forge (HMAC-SHA512), for sites without users."""

    def __init__(self, secret: str, name: str) -> None:
        if not (isinstance(secret, str) and len(secret) >= _LEAST_SECRET):
            raise ConfigurationError(f"owners.cookie: the secret must be a text of at least {_LEAST_SECRET} characters")
        self._profiles = {
            secure: SignedCookieProfile(
                secret, "bgmiddleware.owner", name, secure=secure, httponly=True, samesite="Lax"
            )
            for secure in (False, True)
        }

    def __call__(self, environ: Mapping[str, Any]) -> str | None:
        """Return the owner that the request's cookie proves, None without one."""
        value = self._profile(environ).bind(BaseRequest(dict(environ))).get_value()
        return value if isinstance(value, str) else None

    def issue(self, environ: Mapping[str, Any]) -> tuple[str, tuple[tuple[str, str], ...]]:
        """Return a new owner, and the headers that give its client the cookie."""
        owner = secrets.token_urlsafe(16)
        return owner, tuple(self._profile(environ).bind(BaseRequest(dict(environ))).get_headers(owner))

    def _profile(self, environ: Mapping[str, Any]) -> SignedCookieProfile:
        return self._profiles[environ.get("wsgi.url_scheme") == "https"]
