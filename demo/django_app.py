"""Django: ``@login_required`` and the CSRF check run in the foreground, then ``@backgrounder`` lets go.

Settings, views and URLs in one file, without a database; in a project of yours the last line is in its ``wsgi.py``.
"""

import secrets
import time
from collections.abc import Callable

from django.conf import settings

settings.configure(
    SECRET_KEY=secrets.token_hex(),
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        f"{__name__}.signed_in",
    ],
    SESSION_ENGINE="django.contrib.sessions.backends.signed_cookies",
    LOGIN_URL="index",
    USE_TZ=True,
)

from django.contrib.auth.decorators import login_required  # noqa: E402  # Django wants its settings first
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse  # noqa: E402
from django.middleware.csrf import get_token  # noqa: E402
from django.shortcuts import redirect  # noqa: E402
from django.urls import path, reverse  # noqa: E402
from django.utils.html import format_html  # noqa: E402
from django.views.decorators.http import require_POST  # noqa: E402

from bgmiddleware import BackgroundMiddleware, backgrounder, track  # noqa: E402

from . import PAUSE  # noqa: E402

PAGE = """<!DOCTYPE html><meta name="viewport" content="width=device-width"><title>Report</title>
<h1>{title}</h1>
<form method="post" action="{action}"><input type="hidden" name="csrfmiddlewaretoken" value="{token}">
<label>{label} <input name="{name}" value="{value}"></label> <button>Go</button></form>
"""


def signed_in(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Callable[[HttpRequest], HttpResponseBase]:
    """Stand in for ``AuthenticationMiddleware``, which would want a database of users."""
    from django.contrib.auth.models import AnonymousUser, User  # there are no models before all apps are loaded

    def middleware(request: HttpRequest) -> HttpResponseBase:
        name = request.session.get("name")
        request.user = User(username=name) if name else AnonymousUser()
        return get_response(request)

    return middleware


def index(request: HttpRequest) -> HttpResponse:
    if request.user.is_authenticated:
        title, action, label, name, value = f"Hello {request.user}", "report", "Rows", "rows", "10"
    else:
        title, action, label, name, value = "Who are you?", "login", "Name", "name", "demo"
    token = get_token(request)
    return HttpResponse(
        format_html(PAGE, title=title, action=reverse(action), label=label, name=name, value=value, token=token)
    )


@require_POST
def login(request: HttpRequest) -> HttpResponse:
    request.session["name"] = request.POST["name"]
    return redirect("index")


@require_POST
@login_required
@backgrounder
def report(request: HttpRequest) -> HttpResponse:
    rows = int(request.POST.get("rows", "10"))
    for row in track(range(rows), "rows"):
        time.sleep(PAUSE / 2)
        print(f"Row {row + 1} of {rows}, for {request.user}")
    return JsonResponse({"rows": rows, "user": str(request.user)})


urlpatterns = [path("", index, name="index"), path("login", login, name="login"), path("report", report, name="report")]

application = BackgroundMiddleware(get_wsgi_application())
