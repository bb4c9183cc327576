"""Django's test client, with the requests going through the site's WSGI application."""

from typing import Any

from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpResponse
from django.test import Client

from .._middleware import WSGIApplication

__all__ = ["django_client"]


def django_client(application: WSGIApplication, **options: Any) -> Any:
    """Return a ``django.test.Client`` for *application*, the one of ``wsgi.py``: Django's own calls the views without
    it. *options* are those of Django's.

    It logs in as Django's does. An exception of a view is answered by 500, as on a server.
    """
    client: Any = Client(raise_request_exception=False, **options)
    client.handler = _Handler(application)
    return client


class _Handler:
    def __init__(self, application: WSGIApplication) -> None:
        self._application = application

    def __call__(self, environ: dict[str, Any]) -> Any:
        head: list[Any] = []

        def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            head[:] = [status, headers]

        environ |= {"wsgi.multithread": True, "wsgi.multiprocess": False}  # Django says it the other way round
        body: Any = self._application(environ, start_response)
        try:
            content = b"".join(body)
        finally:
            if hasattr(body, "close"):
                body.close()
        code, _, reason = head[0].partition(" ")
        response = HttpResponse(content, status=int(code), reason=reason)
        del response.headers["Content-Type"]
        for name, value in head[1]:
            if name.lower() == "set-cookie":
                response.cookies.load(value)
            else:
                response.headers[name] = value
        response.wsgi_request = WSGIRequest(environ)
        return response
