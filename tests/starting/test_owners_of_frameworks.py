"""Who is logged in, says the framework itself: Flask-Login, Django and Pyramid, with their real sessions."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, marks, owners
from bgmiddleware.testing import InlineExecutor, follow
from tests.conftest import needs
from tests.kit.documents import ROOT, STRICT

webtest = needs("webtest")
MARK = marks.path("/reports/*")


def check(site: BackgroundMiddleware, forget: Callable[[str], object]) -> None:
    """Ann's job is hers: on each way in, also for an EventSource, and no more after her logout. *forget* ends the
    account of a user."""
    ann, bob, nobody = (webtest.TestApp(site) for _ in range(3))
    for client, name in ((ann, "ann"), (bob, "bob")):
        client.get(f"/login?user={name}")
    response = ann.get("/reports/2026")
    job = follow(ann, response)
    assert (job.state, job.output, job.response.text) == ("finished", "for ann\n", "a good year")
    assert [each.owner for each in site.registry.jobs()] == ["ann"]
    url = response.location
    for accept in ("text/html", "application/json", "text/event-stream", "text/plain"):
        seen = {"Accept": accept}
        assert ann.get(url, headers=seen).status_int == 200
        for other in (bob, nobody):
            assert other.get(url, headers=seen, status="*").status_int == 404
    assert bob.delete(url, status="*").status_int == 404
    ann.get("/logout")
    assert ann.get(url, headers={"Accept": "text/event-stream"}, status="*").status_int == 404
    ann.get("/login?user=ann")
    assert ann.get(url).status_int == 200
    forget("ann")
    assert ann.get(url, status="*").status_int == 404
    anonymous = follow(nobody, nobody.get("/reports/2026"))
    assert anonymous.output == "for nobody\n"


def test_flask_login_says_whose_a_job_is() -> None:
    flask, flask_login = needs("flask"), needs("flask_login")
    app = flask.Flask("shop")
    app.secret_key = "for a test"
    manager = flask_login.LoginManager(app)
    users = {"ann", "bob"}

    class User(flask_login.UserMixin):  # type: ignore[misc, name-defined]
        def __init__(self, name: str) -> None:
            self.id = name

    manager.user_loader(lambda name: User(name) if name in users else None)

    @app.route("/login")
    def login() -> str:
        flask_login.login_user(User(flask.request.args["user"]))
        return ""

    @app.route("/logout")
    def logout() -> str:
        flask_login.logout_user()
        return ""

    @app.route("/reports/<int:year>")
    def report(year: int) -> str:
        user = flask_login.current_user
        print("for", user.get_id() if user.is_authenticated else "nobody")
        return "a good year"

    app.wsgi_app = BackgroundMiddleware(
        app.wsgi_app, when=MARK, owner=owners.flask_login(app), executor=InlineExecutor()
    )
    check(app.wsgi_app, users.discard)


def test_pyramid_says_whose_a_job_is() -> None:
    pyramid_config = needs("pyramid.config")
    from pyramid.authentication import AuthTktCookieHelper
    from pyramid.response import Response

    users = {"ann", "bob"}
    cookies = AuthTktCookieHelper("for a test")

    class Policy:
        def authenticated_userid(self, request: Any) -> str | None:
            identity = cookies.identify(request)
            return identity["userid"] if identity and identity["userid"] in users else None

        def remember(self, request: Any, user: str, **more: Any) -> Any:
            return cookies.remember(request, user)

        def forget(self, request: Any, **more: Any) -> Any:
            return cookies.forget(request)

    def report(request: Any) -> Any:
        print("for", request.authenticated_userid or "nobody")
        return Response("a good year")

    with pyramid_config.Configurator() as config:
        config.set_security_policy(Policy())
        for path, view in {
            "/login": lambda request: Response(headerlist=cookies.remember(request, request.params["user"])),
            "/logout": lambda request: Response(headerlist=cookies.forget(request)),
            "/reports/{year}": report,
        }.items():
            config.add_route(path, path)
            config.add_view(view, route_name=path)
        site = config.make_wsgi_app()
    app = BackgroundMiddleware(site, when=MARK, owner=owners.pyramid(site), executor=InlineExecutor())
    check(app, users.discard)


DJANGO = """
import sys

import django
from django.conf import settings

settings.configure(
    SECRET_KEY="for a test",
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF="__main__",
    INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
    USE_TZ=True,
)
django.setup()
from django.contrib.auth import login, logout
from django.contrib.auth.models import User
from django.core.management import call_command
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpResponse
from django.test.utils import CaptureQueriesContext
from django.urls import path

from bgmiddleware import BackgroundMiddleware, owners
from bgmiddleware.testing import InlineExecutor
from tests.kit.clients import environ
from tests.starting.test_owners_of_frameworks import MARK, check


def log_in(request):
    login(request, User.objects.get(username=request.GET["user"]), "django.contrib.auth.backends.ModelBackend")
    return HttpResponse()


def log_out(request):
    logout(request)
    return HttpResponse()


def report(request, year):
    print("for", request.user.username or "nobody")
    return HttpResponse("a good year")


def named(environ):
    key = owners.django_user(environ)
    return key and User.objects.get(pk=key).username


def forget(name):
    user = User.objects.get(username=name)
    user.set_password("another")  # as the user does who suspects a thief
    user.save()


urlpatterns = [path("login", log_in), path("logout", log_out), path("reports/<int:year>", report)]
call_command("migrate", verbosity=0)
for name in ("ann", "bob"):
    User.objects.create_user(name, password="secret")
site = BackgroundMiddleware(get_wsgi_application(), when=MARK, owner=named, executor=InlineExecutor())
check(site, forget)
with CaptureQueriesContext(connection, ) as queries:
    assert owners.django_user(environ("GET", "/")) is None
assert len(queries) == 0
"""


@pytest.mark.everything
def test_django_says_whose_a_job_is() -> None:
    needs("django")
    command = [sys.executable, *STRICT, "-c", DJANGO]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
