"""Owners: functions of the WSGI environ that name the user who sends a request.

With ``BackgroundMiddleware(app, owner=owners.remote_user)`` only its owner can see a job; to others it looks as if it
did not exist. If the function returns None, anyone with the token can see the job. You can write your own function:
``Callable[[Mapping[str, Any]], str | None]``.
"""

import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ._ground.webob import BaseRequest, SignedSerializer, make_cookie
from .errors import ConfigurationError

__all__ = [
    "CookieOwner",
    "Owner",
    "Proof",
    "cookie",
    "django_user",
    "flask_login",
    "guest",
    "header",
    "pyramid",
    "remote_user",
]

Owner = Callable[[Mapping[str, Any]], str | None]

_LEAST_SECRET = 16
_MOST_COOKIES = 8


def remote_user(environ: Mapping[str, Any]) -> str | None:
    """Return ``REMOTE_USER``, which the server or an outer middleware sets after authentication."""
    return environ.get("REMOTE_USER") or None


def header(name: str) -> Owner:
    """Return a function that reads the owner from a request header, for sites whose proxy authenticates.

    This is safe only if the proxy always sets the header itself: otherwise any client can claim to be anybody.
    """
    key = "HTTP_" + name.upper().replace("-", "_")
    return lambda environ: environ.get(key) or None


def flask_login(app: Any) -> Owner:
    """Return a function that gives the user whom Flask-Login knows: ``current_user.get_id()`` if authenticated.

    *app* is the Flask app. Flask-Login reads the session or its remember cookie, and calls the site's ``user_loader``,
    so a user that is gone or disabled owns nothing. The request's hooks do not run, and the session is not saved.
    """

    def owner(environ: Mapping[str, Any]) -> str | None:
        from flask_login import current_user

        with app.request_context(dict(environ)):
            return str(current_user.get_id()) if current_user.is_authenticated else None

    return owner


def django_user(environ: Mapping[str, Any]) -> str | None:
    """Return the primary key of the user who is logged in to Django, None for others.

    Django itself reads the session and checks it as ``request.user`` does, so a changed password ends it here too. That
    is one query for the user, and one for the session if it is stored in the database; without a session cookie it is
    none.
    """
    from importlib import import_module

    from django.conf import settings
    from django.contrib.auth import get_user
    from django.core.handlers.wsgi import WSGIRequest
    from django.db import close_old_connections

    request: Any = WSGIRequest(dict(environ))
    cookie = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
    if cookie is None:
        return None
    close_old_connections()  # as at the beginning and the end of a request
    try:
        request.session = import_module(settings.SESSION_ENGINE).SessionStore(cookie)
        user = get_user(request)
        return str(user.pk) if user.is_authenticated else None
    finally:
        close_old_connections()


def pyramid(app: Any) -> Owner:
    """Return a function that gives ``request.authenticated_userid``, by the security policy of *app*, which is what
    ``config.make_wsgi_app()`` returns."""

    def owner(environ: Mapping[str, Any]) -> str | None:
        with app.request_context(dict(environ)) as request:
            user = request.authenticated_userid
            return None if user is None else str(user)

    return owner


def cookie(secret: str, *, name: str | None = None) -> "CookieOwner":
    """Return an owner function that identifies browsers by a signed cookie, which a client gets with its first job.

    *secret*: at least 16 characters, the same for all processes of a site. *name*: the prefix of its cookies' names. By
    default it is ``bgmiddleware-`` and a digest of the secret: browsers ignore ports in cookies, so two sites on one
    host must not overwrite each other's. Raises ``ConfigurationError`` for a shorter secret or an invalid name.
    """
    return CookieOwner(secret, name)


class Proof(NamedTuple):
    """What one cookie proves: who its browser is, and the name of the *job* that it began when it had no cookie yet."""

    owner: str
    job: str


def guest(job: str) -> str:
    """Return whose the job of this name is that was begun by somebody without a cookie."""
    return f"guest {job}"


class CookieOwner:
    """Identifies browsers by cookies that they cannot forge (HMAC-SHA512), for sites without users.

    Each new cookie has its own name, so it replaces none: a browser that sends two first requests at once gets two
    cookies, and owns both jobs. From then on the oldest cookie identifies it.
    """

    def __init__(self, secret: str, name: str | None) -> None:
        if not (isinstance(secret, str) and len(secret) >= _LEAST_SECRET):
            raise ConfigurationError(
                f"owners.cookie: expected a secret text of at least {_LEAST_SECRET} characters, such as"
                " secrets.token_hex(32) makes"
            )
        if name is None:
            name = f"bgmiddleware-{hmac.new(secret.encode(), b'name', 'sha256').hexdigest()[:8]}"
        if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name)):
            raise ConfigurationError.of_setting("owners.cookie: name", name, "1 to 64 letters, digits, - and _")
        self._name = name
        self._serializer = SignedSerializer(secret, "bgmiddleware.owner")
        self._is_ours = re.compile(rf"{name}\.[0-9a-f]{{8}}").fullmatch

    def __call__(self, environ: Mapping[str, Any]) -> str | None:
        """Return the owner that the request's cookies prove, None without one."""
        proofs = self.proofs(environ)
        return proofs[0].owner if proofs else None

    def proofs(self, environ: Mapping[str, Any]) -> list[Proof]:
        """Return what the request's cookies prove, at most eight, the oldest first (RFC 6265 §5.4)."""
        if self._name not in environ.get("HTTP_COOKIE", ""):
            return []
        cookies = BaseRequest(dict(environ)).cookies.items()
        ours = [value for name, value in cookies if self._is_ours(name)][:_MOST_COOKIES]
        return [proof for value in ours if (proof := self._proof(value)) is not None]

    def others(self, environ: Mapping[str, Any]) -> str:
        """Return the cookies of the request without ours."""
        pairs = environ.get("HTTP_COOKIE", "").split(";")
        return ";".join(pair for pair in pairs if not self._is_ours(pair.partition("=")[0].strip()))

    def issue(self, environ: Mapping[str, Any], job: str = "") -> tuple[str | None, tuple[tuple[str, str], ...]]:
        """Return a new owner, and the headers that give its client the cookie, which proves also that it began a *job*.

        No owner where another site caused the request: a browser does not send the cookies along then that it has.
        """
        if environ.get("HTTP_SEC_FETCH_SITE") == "cross-site":
            return None, ()
        owner = secrets.token_urlsafe(16)
        cookie = make_cookie(
            f"{self._name}.{secrets.token_hex(4)}",
            self._serializer.dumps([owner, job]),
            secure=environ.get("wsgi.url_scheme") == "https",
            httponly=True,
            samesite="Lax",
        )
        return owner, (("Set-Cookie", cookie),)

    def _proof(self, value: str) -> Proof | None:
        try:
            return Proof(*self._serializer.loads(value.encode()))
        except (TypeError, ValueError):
            return None
