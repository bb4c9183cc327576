"""Pyramid: a ``permission`` on the view, checked by the security policy before ``@backgrounder`` is reached."""

import time
import warnings
from typing import Any

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "pkg_resources is deprecated")  # Pyramid imports it; users cannot help it
    from pyramid.authentication import extract_http_basic_credentials
    from pyramid.config import Configurator
    from pyramid.httpexceptions import HTTPUnauthorized
    from pyramid.request import Request

from bgmiddleware import BackgroundMiddleware, backgrounder, track

from . import PAUSE


class SecurityPolicy:
    """Knows one user, by HTTP Basic authentication; who is known may do everything."""

    def identity(self, request: Request) -> str | None:
        sent = extract_http_basic_credentials(request)
        return sent.username if sent and tuple(sent) == ("demo", "demo") else None

    def permits(self, request: Request, context: Any, permission: str) -> bool:
        return request.identity is not None


@backgrounder
def report(request: Request) -> dict[str, Any]:
    rows = int(request.params.get("rows", 10))
    for row in track(range(rows), "rows"):
        time.sleep(PAUSE / 2)
        print(f"Row {row + 1} of {rows}, for {request.identity}")
    return {"rows": rows, "user": request.identity}


def ask(request: Request) -> HTTPUnauthorized:
    return HTTPUnauthorized("Sign in as demo, demo.", headers={"WWW-Authenticate": 'Basic realm="demo"'})


with Configurator() as config:
    config.set_security_policy(SecurityPolicy())
    config.add_route("report", "/report")
    config.add_view(report, route_name="report", permission="report", renderer="json")
    config.add_forbidden_view(ask)

application = BackgroundMiddleware(config.make_wsgi_app())
