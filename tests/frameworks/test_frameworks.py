"""The same few views in each framework, behind its own authentication; the same promises in all of them.

A view says what it did in ``CALLS``. Each app exists with an error handler that takes every ``Exception``, and without.
"""

import base64
import functools
import gc
import importlib
import os
import sys
import threading
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from wsgiref.validate import validator

import pytest

from bgmiddleware import (
    BackgroundMiddleware,
    ConfigurationError,
    JobState,
    MemoryRegistry,
    background,
    backgrounder,
    current_job,
    marks,
    progress,
    track,
)
from tests.kit.apps import WAIT
from tests.kit.clients import InProcess, OverHTTP, ended, environ, served, start, target_of
from tests.kit.django_settings import configure_django

SIGNED_IN = {"authorization": "Basic " + base64.b64encode(b"demo:secret").decode()}
CALLS: list[str] = []


# What the views do, whatever the framework.


def write_report(who: str, body: bytes) -> bytes:
    CALLS.append("report")
    print(f"report for {who} by {current_job().key}")
    for step in track(range(3), "steps"):
        print(f"step {step}")
    progress(3, 4, "nearly")
    return f"{who}: ".encode() + body


@background
def longrunning(who: str) -> str:
    CALLS.append("longrunning")
    print(f"running for {who}")
    return f"done for {who}"


def leave(who: str) -> bytes:
    CALLS.append("leave")
    print(f"before {who}")
    text = longrunning(who)
    CALLS.append("stayed")
    return text.encode()


@backgrounder
def nested() -> bytes:
    CALLS.append("nested")
    return _inner_view() + longrunning("nested").encode()


@backgrounder
def _inner_view() -> bytes:
    return b"inner, "


@backgrounder
def fail() -> bytes:
    CALLS.append("fail")
    raise ValueError("odd row")


def slow() -> bytes:
    CALLS.append("slow")
    print("slow, and undecorated")
    return b"slow"


def is_known(user: str | None, password: str | None) -> bool:
    return (user, password) == ("demo", "secret")


# Each framework's app. X-Read makes it read the whole body in the foreground, before it checks who asks.


def plain_app(handles_errors: bool) -> Any:
    def read(environ: dict[str, Any]) -> bytes:
        body: bytes = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        return body

    @backgrounder
    def report(environ: dict[str, Any], body: bytes) -> bytes:
        return write_report("demo", body or read(environ))

    def route(environ: dict[str, Any]) -> bytes:
        match environ["PATH_INFO"]:
            case "/report":
                return report(environ, read(environ) if "HTTP_X_READ" in environ else b"")
            case "/leave":
                return leave("demo")
            case "/nested":
                return nested()
            case "/fail":
                return fail()
            case _:
                return slow()

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        if environ.get("HTTP_AUTHORIZATION") != SIGNED_IN["authorization"]:
            start_response("401 Unauthorized", [("Content-Type", "text/plain")])
            return [b"who are you?"]
        try:
            body = route(environ)
        except Exception:
            if not handles_errors:
                raise
            start_response("500 Internal Server Error", [("Content-Type", "text/plain")], sys.exc_info())
            return [b"handled"]
        start_response("200 OK", [("Content-Type", "text/plain"), ("Set-Cookie", "seen=1; Path=/")])
        return [body]

    return app


def flask_app(handles_errors: bool) -> Any:
    import flask

    app = flask.Flask("frameworks")

    @app.before_request
    def read() -> None:
        if "X-Read" in flask.request.headers:
            flask.request.get_data()

    def login_required(view: Callable[[], Any]) -> Callable[[], Any]:
        @functools.wraps(view)
        def check() -> Any:
            who = flask.request.authorization
            if who is None or not is_known(who.username, who.password):
                flask.abort(401)
            return view()

        return check

    @app.route("/report", methods=["GET", "POST"])
    @login_required
    @backgrounder
    def report() -> Any:
        response = flask.make_response(write_report("demo", flask.request.get_data()))
        response.set_cookie("seen", "1")
        return response

    app.add_url_rule("/leave", "leave", login_required(lambda: leave("demo")))
    app.add_url_rule("/nested", "nested", login_required(nested))
    app.add_url_rule("/fail", "fail", login_required(fail))
    app.add_url_rule("/marked/slow", "slow", login_required(slow))
    if handles_errors:

        @app.errorhandler(Exception)
        def handle(error: Exception) -> Any:
            return "handled", getattr(error, "code", 500)

    return app


def bottle_app(handles_errors: bool) -> Any:
    import bottle

    app = bottle.Bottle()

    @app.hook("before_request")
    def read() -> None:
        if "X-Read" in bottle.request.headers:
            bottle.request.body.read()

    login_required = bottle.auth_basic(is_known)

    @app.route("/report", method=["GET", "POST"])
    @login_required
    @backgrounder
    def report() -> Any:
        bottle.response.set_cookie("seen", "1")
        return write_report("demo", bottle.request.body.read())

    app.route("/leave", callback=login_required(lambda: leave("demo")))
    app.route("/nested", callback=login_required(nested))
    app.route("/fail", callback=login_required(fail))
    app.route("/marked/slow", callback=login_required(slow))
    if handles_errors:
        app.error(500)(lambda error: "handled")
    return app


def django_app(handles_errors: bool) -> Any:
    configure_django()
    from django.conf import settings
    from django.contrib.auth.decorators import login_required
    from django.contrib.auth.models import AnonymousUser, User
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpRequest, HttpResponse
    from django.middleware.csrf import get_token
    from django.test.utils import override_settings
    from django.urls import path
    from django.views.decorators.csrf import csrf_exempt

    def signed_in(get_response: Any) -> Any:
        def middleware(request: HttpRequest) -> Any:
            if "X-Read" in request.headers:
                _ = request.body
            known = request.headers.get("Authorization") == SIGNED_IN["authorization"]
            request.user = User(username="demo") if known else AnonymousUser()
            return get_response(request)

        def process_exception(request: HttpRequest, error: Exception) -> Any:
            return HttpResponse("handled", status=500)

        if handles_errors:
            middleware.process_exception = process_exception  # type: ignore[attr-defined]
        return middleware

    @login_required
    @backgrounder
    def report(request: HttpRequest) -> HttpResponse:
        response = HttpResponse(write_report(request.user.username, request.body), content_type="text/plain")
        response.set_cookie("seen", "1")
        return response

    @login_required
    @backgrounder
    def form(request: HttpRequest) -> HttpResponse:
        CALLS.append("form")
        return HttpResponse(f"{request.POST['rows']} {request.FILES['file'].read().decode()}")

    def token(request: HttpRequest) -> HttpResponse:
        return HttpResponse(get_token(request))

    def view(function: Callable[[], bytes]) -> Any:
        return login_required(lambda request: HttpResponse(function()))

    urls: Any = types.ModuleType("framework_urls")
    urls.urlpatterns = [
        path("report", csrf_exempt(report)),
        path("form", form),
        path("token", token),
        path("leave", view(lambda: leave("demo"))),
        path("nested", view(nested)),
        path("fail", view(fail)),
        path("marked/slow", view(slow)),
    ]
    # Handlers read their middleware now, and the URLs at each request.
    settings.ROOT_URLCONF = urls
    this = sys.modules[__name__]
    this.django_signed_in = signed_in  # type: ignore[attr-defined]
    middleware = ["django.middleware.csrf.CsrfViewMiddleware", f"{__name__}.django_signed_in"]
    with override_settings(MIDDLEWARE=middleware):
        return get_wsgi_application()


def pyramid_app(handles_errors: bool) -> Any:
    from pyramid.authentication import extract_http_basic_credentials
    from pyramid.config import Configurator
    from pyramid.response import Response

    class Policy:
        def identity(self, request: Any) -> str | None:
            if "X-Read" in request.headers:
                _ = request.body
            sent = extract_http_basic_credentials(request)
            return sent.username if sent and is_known(*sent) else None

        def permits(self, request: Any, context: Any, permission: str) -> bool:
            return request.identity is not None

    @backgrounder
    def report(context: Any, request: Any) -> Any:
        response = Response(write_report(request.identity, request.body), content_type="text/plain")
        response.set_cookie("seen", "1")
        return response

    with Configurator() as config:
        config.set_security_policy(Policy())
        for name, target, view in (
            ("report", "/report", report),
            ("leave", "/leave", lambda request: Response(leave("demo"))),
            ("nested", "/nested", lambda request: Response(nested())),
            ("fail", "/fail", lambda request: Response(fail())),
            ("slow", "/marked/slow", lambda request: Response(slow())),
        ):
            config.add_route(name, target)
            config.add_view(view, route_name=name, permission="use")
        if handles_errors:
            config.add_exception_view(lambda error, request: Response("handled", 500), context=ValueError)
            config.add_exception_view(
                lambda error, request: Response("handled", getattr(error, "code", 500)), context=Exception
            )
    return config.make_wsgi_app()


APPS = {
    "plain": (plain_app, "sys", 401),
    "flask": (flask_app, "flask", 401),
    "bottle": (bottle_app, "bottle", 401),
    "django": (django_app, "django", 302),
    "pyramid": (pyramid_app, "pyramid", 403),
}


def needs(module: str) -> None:
    """Skip where a framework is not installed; fail where it was promised."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{module} is not installed, and CI promises it")
        pytest.skip(f"{module} is not installed: pip install bgmiddleware[test]")


@dataclass
class Site:
    """An app, the middleware around it, the status with which it refuses strangers, and what its answers wait for."""

    bare: Any
    app: BackgroundMiddleware
    refusal: int
    may_answer: threading.Event


@pytest.fixture(autouse=True)
def _no_calls_yet() -> None:
    CALLS.clear()


class Unseekable:
    """What gunicorn, uWSGI and others have for ``wsgi.input``: it can be read, once."""

    def __init__(self, body: bytes) -> None:
        self._left = body

    def read(self, size: int = -1) -> bytes:
        cut = len(self._left) if size is None or size < 0 else size
        data, self._left = self._left[:cut], self._left[cut:]
        return data

    def readline(self, size: int = -1) -> bytes:
        end = self._left.find(b"\n") + 1 or len(self._left)
        return self.read(end if size is None or size < 0 else min(end, size))

    def readlines(self, hint: int = -1) -> list[bytes]:
        return list(self)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")


def checked(app: Any) -> Any:
    """Put a validator around *app*, which finds what we do wrong when we call it.

    It wants ``read(size)``, as PEP 3333 does; Werkzeug calls ``read()`` where ``wsgi.input_terminated`` is promised.
    """

    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        checked_input = environ["wsgi.input"]
        environ["wsgi.input"] = Unseekable(b"".join(iter(lambda: checked_input.read(65536), b"")))
        return app(environ, start_response)

    return validator(call)


def built(name: str, handles_errors: bool) -> Site:
    factory, module, refusal = APPS[name]
    needs(module)
    bare = factory(handles_errors)
    # The validator checks how we call the app; the one in InProcess checks how we answer the server.
    validated = checked(bare) if name == "flask" else validator(bare)
    may_answer = threading.Event()
    may_answer.set()

    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        assert may_answer.wait(WAIT)
        return validated(environ, start_response)

    app = BackgroundMiddleware(call, when=marks.any_of(marks.prefers_async, marks.path("/marked/*")))
    return Site(bare, app, refusal, may_answer)


# Both put a body that is not small into a temporary file, and leave closing it to the garbage collector.
LEAVES_FILES = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
NAMES = [pytest.param(name, marks=[LEAVES_FILES] if name in ("bottle", "pyramid") else []) for name in APPS]


@pytest.fixture(scope="module", autouse=True)
def _quick_collections() -> Iterator[None]:
    """Let the collections below look only at what the tests made."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(params=NAMES)
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site whose errors are handled by a handler for every ``Exception``: it must not take us for one."""
    site = built(request.param, handles_errors=True)
    with site.app:
        yield site
    if request.param == "bottle":
        sys.modules["bottle"].request.bind({})  # it keeps the last request of each thread
    if request.param in ("bottle", "pyramid"):
        gc.collect()  # now, while the filter holds


@pytest.fixture(params=APPS)
def bare_site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site that leaves errors to its framework."""
    site = built(request.param, handles_errors=False)
    with site.app:
        yield site


@pytest.fixture(params=["unseekable", "waitress"])
def client(request: pytest.FixtureRequest, site: Site) -> Iterator[InProcess | OverHTTP]:
    """Over HTTP, and in-process with a ``wsgi.input`` that has no ``seek`` (the validator's)."""
    if request.param == "unseekable":
        yield InProcess(site.app)
    else:
        with served(site.app) as over_http:
            yield over_http


TEXT = {"content_type": "text/plain"}
BODIES = {"none": b"", "small": b"a=1&b=2", "large": b"0123456789abcdef" * 40_000}


def test_a_stranger_starts_nothing(site: Site, client: InProcess | OverHTTP) -> None:
    reply = client.request("POST", "/report", b"body", **TEXT)
    assert reply.status == site.refusal
    assert site.app.registry.jobs() == []
    assert CALLS == []


@pytest.mark.parametrize("read", [False, True], ids=["body unread", "body read before"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_the_view_runs_once_as_a_job_and_sees_the_whole_body(
    site: Site, client: InProcess | OverHTTP, body: bytes, read: bool
) -> None:
    options = {"x_read": "1"} if read else {}
    target = start(client, "/report", body=body, **TEXT, **SIGNED_IN, **options)
    job = ended(site.app, target)
    assert job.state is JobState.FINISHED
    assert CALLS == ["report"]
    assert len(site.app.registry.jobs()) == 1
    result = client.request("GET", f"{target}&_view=result")
    assert (result.status, result.body) == (200, b"demo: " + body)


def test_the_redirect_is_a_303_that_scripts_get_as_202(site: Site, client: InProcess | OverHTTP) -> None:
    assert client.request("POST", "/report", b"a", **TEXT, **SIGNED_IN).status == 303
    assert client.request("POST", "/report", b"a", accept="application/json", **TEXT, **SIGNED_IN).status == 202


def test_a_job_knows_itself_and_says_how_far_it_is(site: Site, client: InProcess | OverHTTP) -> None:
    target = start(client, "/report", "GET", **SIGNED_IN)
    job = ended(site.app, target)
    assert client.request("GET", target).text == f"report for demo by {job.key}\nstep 0\nstep 1\nstep 2\n"
    status = client.request("GET", target, accept="application/json").json
    assert status["progress"] == {"done": 3, "total": 4, "percent": 75.0, "message": "nearly"}


def test_headers_and_cookies_of_the_response_come_with_the_result(site: Site, client: InProcess | OverHTTP) -> None:
    target = start(client, "/report", "GET", **SIGNED_IN)
    ended(site.app, target)
    result = client.request("GET", f"{target}&_view=result")
    assert result["Set-Cookie"].strip().startswith("seen=1")
    assert result["Content-Type"].startswith("text/")


def test_a_background_function_begins_with_what_the_view_printed(site: Site, client: InProcess | OverHTTP) -> None:
    target = start(client, "/leave", "GET", **SIGNED_IN)
    assert ended(site.app, target).state is JobState.FINISHED
    assert client.request("GET", target).text == "before demo\nrunning for demo\n"
    assert client.request("GET", f"{target}&_view=result").text == "done for demo"
    assert CALLS == ["leave", "longrunning"]


def test_a_path_mark_needs_nothing_of_the_framework(site: Site, client: InProcess | OverHTTP) -> None:
    target = start(client, "/marked/slow", "GET", **SIGNED_IN)
    assert ended(site.app, target).state is JobState.FINISHED
    assert client.request("GET", target).text == "slow, and undecorated\n"
    assert client.request("GET", f"{target}&_view=result").body == b"slow"
    assert CALLS == ["slow"]


def test_a_path_mark_runs_even_the_refusal_as_a_job(site: Site, client: InProcess | OverHTTP) -> None:
    site.may_answer.clear()
    target = start(client, "/marked/slow", "GET")
    site.may_answer.set()
    assert ended(site.app, target).state is JobState.FINISHED
    assert client.request("GET", f"{target}&_view=result").status == site.refusal
    assert CALLS == []


def test_a_path_mark_lets_the_refusal_through_if_it_comes_at_once(site: Site, client: InProcess | OverHTTP) -> None:
    reply = client.request("GET", "/marked/slow")
    if reply.status == 303:  # a busy machine is not always in time
        target = target_of(reply, "/marked/slow")
        ended(site.app, target)
        reply = client.request("GET", f"{target}&_view=result")
    else:
        assert site.app.registry.jobs() == []
    assert reply.status == site.refusal
    assert CALLS == []


def test_decorators_inside_a_job_just_call(site: Site, client: InProcess | OverHTTP) -> None:
    target = start(client, "/nested", "GET", **SIGNED_IN)
    ended(site.app, target)
    assert client.request("GET", f"{target}&_view=result").body == b"inner, done for nested"
    assert CALLS == ["nested", "longrunning"]
    assert len(site.app.registry.jobs()) == 1


def test_decorators_outside_of_a_middleware_just_call(site: Site) -> None:
    client = InProcess(site.bare)
    report = client.request("POST", "/report", b"body", **TEXT, **SIGNED_IN)
    assert (report.status, report.body) == (200, b"demo: body")
    assert client.request("GET", "/leave", **SIGNED_IN).body == b"done for demo"
    assert CALLS == ["report", "leave", "longrunning", "stayed"]


def test_a_view_that_raises_is_a_failed_job_whose_error_is_handled(site: Site, client: InProcess | OverHTTP) -> None:
    target = start(client, "/fail", "GET", **SIGNED_IN)
    job = ended(site.app, target)
    assert (job.state, job.reason.lower()) == (JobState.FAILED, "the app answered 500 internal server error")
    result = client.request("GET", f"{target}&_view=result")
    assert (result.status, result.body) == (500, b"handled")
    assert CALLS == ["fail"]


def test_a_view_that_raises_is_a_failed_job_whose_output_says_why(bare_site: Site) -> None:
    client = InProcess(bare_site.app)
    target = start(client, "/fail", "GET", **SIGNED_IN)
    assert ended(bare_site.app, target).state is JobState.FAILED
    assert "ValueError: odd row" in client.request("GET", target).text
    assert client.request("GET", f"{target}&_view=result").status == 500


@pytest.mark.parametrize("decorator", [background, backgrounder])
def test_a_coroutine_function_is_refused_when_it_is_decorated(decorator: Any) -> None:
    async def view() -> None: ...

    with pytest.raises(ConfigurationError, match=r"coroutine function .*view"):
        decorator(view)


@pytest.mark.parametrize("read", [False, True], ids=["body unread", "body read before"])
def test_an_input_without_seek_is_replayed_as_a_whole(site: Site, read: bool) -> None:
    body = b"line\n" * 100_000
    call = environ("POST", "/report", b"", **TEXT, **SIGNED_IN)
    call |= {"wsgi.input": Unseekable(body), "CONTENT_LENGTH": str(len(body))} | ({"HTTP_X_READ": "1"} if read else {})
    head: list[Any] = []
    b"".join(site.app(call, lambda *arguments: head.extend(arguments)))
    assert head[0] == "303 See Other"
    target = "/report" + dict(head[1])["Location"]
    ended(site.app, target)
    assert InProcess(site.app).request("GET", f"{target}&_view=result").body == b"demo: " + body
    assert CALLS == ["report"]


# What only one framework has.


def test_django_checks_the_csrf_token_of_a_form_first_and_the_job_sees_its_file() -> None:
    site = built("django", handles_errors=False)
    boundary = "simple-boundary"
    with site.app, served(site.app) as client:
        page = client.request("GET", "/token")
        cookie = page["Set-Cookie"].partition(";")[0]

        def post(token: str) -> Any:
            file = 'name="file"; filename="a.csv"\r\nContent-Type: text/csv'
            fields = {'name="csrfmiddlewaretoken"': token, 'name="rows"': "7", file: "ab\r\n" * 50_000}
            body = "".join(
                f"--{boundary}\r\nContent-Disposition: form-data; {name}\r\n\r\n{value}\r\n"
                for name, value in fields.items()
            )
            return client.request(
                "POST",
                "/form",
                f"{body}--{boundary}--\r\n".encode(),
                content_type=f"multipart/form-data; boundary={boundary}",
                cookie=cookie,
                **SIGNED_IN,
            )

        assert post("forged").status == 403
        assert site.app.registry.jobs() == []
        reply = post(page.text)
        assert reply.status == 303
        target = "/form" + reply["Location"]
        assert ended(site.app, target).state is JobState.FINISHED
        assert client.request("GET", f"{target}&_view=result").text == "7 " + "ab\r\n" * 50_000
    assert CALLS == ["form"]


def flask_site() -> Any:
    needs("flask")
    import flask

    return flask, flask.Flask("flask_only")


def test_flask_request_and_session_can_be_used_in_a_background_function() -> None:
    flask, app = flask_site()
    app.secret_key = "secret"

    @background
    def count() -> dict[str, Any]:
        print(f"for {flask.request.args['name']}, who is {flask.session['user']} in {flask.current_app.name}")
        return {"name": flask.request.form["name"], "path": flask.request.path}

    @app.post("/count")
    def view() -> Any:
        flask.session["user"] = "ada"
        assert flask.request.form
        return count()

    with BackgroundMiddleware(app) as wrapped:
        client = InProcess(wrapped)
        kind = "application/x-www-form-urlencoded"
        target = start(client, "/count?name=query", body=b"name=form", content_type=kind)
        ended(wrapped, target)
        assert client.request("GET", target).text == "for query, who is ada in flask_only\n"
        assert client.request("GET", f"{target}&_view=result").json == {"name": "form", "path": "/count"}


def test_flask_session_of_the_client_is_there_when_the_view_is_replayed_and_its_changes_come_back() -> None:
    flask, app = flask_site()
    app.secret_key = "secret"

    @app.get("/sign-in")
    def sign_in() -> str:
        flask.session["user"] = "ada"
        return ""

    @app.get("/report")
    @backgrounder
    def report() -> str:
        flask.session["reports"] = 1
        return f"{flask.session['user']}"

    @app.get("/session")
    def session() -> Any:
        return dict(flask.session)

    with BackgroundMiddleware(app) as wrapped:
        client = InProcess(wrapped)
        cookie = client.request("GET", "/sign-in")["Set-Cookie"].partition(";")[0]
        target = start(client, "/report", "GET", cookie=cookie)
        ended(wrapped, target)
        result = client.request("GET", f"{target}&_view=result", cookie=cookie)
        assert result.text == "ada"
        changed = result["Set-Cookie"].partition(";")[0]
        assert client.request("GET", "/session", cookie=changed).json == {"user": "ada", "reports": 1}


def test_flask_gives_the_replayed_request_an_application_context_of_its_own() -> None:
    flask, app = flask_site()
    opened: list[str] = []

    def connection() -> str:
        if "connection" not in flask.g:
            flask.g.connection = f"connection {len(opened)}"
            opened.append(flask.g.connection)
        return str(flask.g.connection)

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        CALLS.append(f"closed {flask.g.connection}")

    @app.before_request
    def check() -> None:
        connection()

    @app.get("/report")
    @backgrounder
    def report() -> str:
        return connection()

    with BackgroundMiddleware(app) as wrapped:
        client = InProcess(wrapped)
        target = start(client, "/report", "GET")
        ended(wrapped, target)
        assert client.request("GET", f"{target}&_view=result").text == "connection 1"
    assert CALLS == ["closed connection 0", "closed connection 1"]


def test_flask_idiom_of_wrapping_wsgi_app_works_with_its_test_client() -> None:
    _, app = flask_site()

    @app.get("/report")
    @backgrounder
    def report() -> str:
        CALLS.append("report")
        return "done"

    with BackgroundMiddleware(app.wsgi_app) as wrapped:
        app.wsgi_app = wrapped
        with app.test_client() as client:
            reply = client.get("/report")
            assert reply.status_code == 303
            target = "/report" + reply.headers["Location"]
            ended(wrapped, target)
            assert client.get(f"{target}&_view=result").text == "done"
    assert CALLS == ["report"]


def test_a_webob_request_gets_the_redirect_of_a_decorated_view() -> None:
    from webob import Request

    @backgrounder
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    with BackgroundMiddleware(app) as wrapped:
        assert Request.blank("/").get_response(wrapped).status_code == 303


def test_pyramid_view_of_one_argument_stays_one_of_one_argument() -> None:
    needs("pyramid")
    from pyramid.config import Configurator
    from pyramid.response import Response

    @backgrounder
    def report(request: Any) -> Any:
        return Response(f"for {request.params['name']}")

    with Configurator() as config:
        config.add_route("report", "/report")
        config.add_view(report, route_name="report")
    with BackgroundMiddleware(config.make_wsgi_app()) as wrapped:
        client = InProcess(wrapped)
        target = start(client, "/report?name=ada", "GET")
        ended(wrapped, target)
        assert client.request("GET", f"{target}&_view=result").text == "for ada"


def test_pyramid_method_of_a_view_class_can_be_decorated() -> None:
    needs("pyramid")
    from pyramid.config import Configurator
    from pyramid.response import Response

    class Reports:
        def __init__(self, request: Any) -> None:
            self.request = request

        @backgrounder
        def all(self) -> Any:
            CALLS.append("all")
            return Response(f"for {self.request.params['name']}")

    with Configurator() as config:
        config.add_route("all", "/all")
        config.add_view(Reports, attr="all", route_name="all")
    with BackgroundMiddleware(config.make_wsgi_app()) as wrapped:
        client = InProcess(wrapped)
        target = start(client, "/all?name=ada", "GET")
        ended(wrapped, target)
        assert client.request("GET", f"{target}&_view=result").text == "for ada"
    assert CALLS == ["all"]


def test_bottle_response_set_before_the_decorator_does_not_leak_into_the_next_request() -> None:
    needs("bottle")
    import bottle

    app = bottle.Bottle()

    @app.hook("before_request")
    def greet() -> None:
        bottle.response.set_header("X-Greeting", bottle.request.path)

    @app.get("/report")
    @backgrounder
    def report() -> str:
        return "report"

    @app.get("/other")
    def other() -> str:
        return "other"

    with BackgroundMiddleware(app) as wrapped:
        client = InProcess(wrapped)
        target = start(client, "/report", "GET")
        assert client.request("GET", "/other")["X-Greeting"] == "/other"
        ended(wrapped, target)
        assert client.request("GET", f"{target}&_view=result")["X-Greeting"] == "/report"


def test_a_plain_wsgi_application_itself_can_be_decorated() -> None:
    @backgrounder
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterator[bytes]:
        CALLS.append("app")
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"from "
        yield b"a generator"

    with BackgroundMiddleware(validator(app), registry=MemoryRegistry(ttl=60.0)) as wrapped:
        client = InProcess(wrapped)
        target = start(client, "/", "GET")
        ended(wrapped, target)
        assert client.request("GET", f"{target}&_view=result").text == "from a generator"
    assert CALLS == ["app"]
