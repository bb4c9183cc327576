"""A request that is left for the background ends as its framework ends one; and a ``@background`` function runs in a
request of its own: nothing is held open, and nothing of one user's reaches another."""

import contextlib
import io
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, JobState, ThreadExecutor, background, backgrounder, current_job
from tests.conftest import needs
from tests.kit.clients import InProcess, ended, environ, start
from tests.kit.django_settings import configure_django

HEADERS = [("Content-Type", "text/plain")]
CALLS: list[str] = []


@pytest.fixture(autouse=True)
def _no_calls_yet() -> None:
    CALLS.clear()


@backgrounder
def view() -> str:
    CALLS.append("view")
    return "viewed"


@background
def work() -> str:
    CALLS.append("work")
    return "worked"


def left_by(site: BackgroundMiddleware, path: str = "/report", method: str = "GET", **options: Any) -> Any:
    """Start a job and return it when it has ended."""
    return ended(site, start(InProcess(site), path, method, **options))


def result_of(site: BackgroundMiddleware, path: str, method: str = "GET", body: bytes = b"", **options: str) -> str:
    """Start a job and return what it answers."""
    client = InProcess(site)
    target = start(client, path, method, body, **options)
    ended(site, target)
    return client.request("GET", f"{target}&_view=result").text


def one_thread() -> ThreadExecutor:
    return ThreadExecutor(max_workers=1)


# Falcon.


def falcon_app(independent: bool = True) -> Any:
    falcon = needs("falcon")

    class Session:
        def process_request(self, request: Any, response: Any) -> None:
            CALLS.append("opened")

        def process_response(self, request: Any, response: Any, resource: Any, succeeded: bool) -> None:
            CALLS.append(f"closed {succeeded}")

    class Report:
        @backgrounder
        def on_get(self, request: Any, response: Any) -> None:
            print("for", request.get_param("name"))
            response.text = view()

        def on_post(self, request: Any, response: Any) -> None:
            response.text = work()

    app = falcon.App(middleware=[Session()], independent_middleware=independent)
    app.add_route("/report", Report())
    return app


@pytest.mark.parametrize("independent", [True, False])
def test_falcon_middlewares_process_the_response_of_a_request_that_is_left(independent: bool) -> None:
    with BackgroundMiddleware(falcon_app(independent)) as site:
        client = InProcess(site)
        target = start(client, "/report?name=ada", "GET")
        ended(site, target)
        assert client.request("GET", target).text == "for ada\n"
        assert client.request("GET", f"{target}&_view=result").text == "viewed"
        assert CALLS == ["opened", "closed False", "opened", "view", "closed True"]
        CALLS.clear()
        assert result_of(site, "/report", "POST") == "worked"
        assert CALLS == ["opened", "closed False", "work"]


# Morepath, CherryPy, Dash.


def test_morepath_views_are_left_and_replayed() -> None:
    morepath = needs("morepath")

    class App(morepath.App):  # type: ignore[name-defined,misc]
        pass

    class Report:
        pass

    App.path(path="report")(Report)
    App.view(model=Report)(backgrounder(lambda self, request: "for " + request.GET["name"]))
    morepath.commit(App)
    with BackgroundMiddleware(App()) as site:
        assert result_of(site, "/report?name=ada") == "for ada"


@pytest.mark.parametrize("streamed", [False, True])
def test_cherrypy_handlers_are_left_and_replayed_streamed_ones_too(streamed: bool) -> None:
    cherrypy = needs("cherrypy")
    cherrypy.config.update({"environment": "embedded", "log.screen": False})

    class Root:
        @cherrypy.expose  # type: ignore[untyped-decorator]
        @backgrounder
        def report(self, name: str) -> Iterator[str]:
            print("report for", name)
            yield f"for {name}"

        @cherrypy.expose  # type: ignore[untyped-decorator]
        def leave(self, name: str) -> str:
            return in_request()

    @background
    def in_request() -> str:
        request = cherrypy.request
        return f"{request.method} {request.path_info} {request.params['name']} {request.app is app}"

    app = cherrypy.Application(Root(), "", {"/": {"response.stream": streamed}})
    with BackgroundMiddleware(app) as site:
        assert result_of(site, "/report?name=ada") == "for ada"
        assert result_of(site, "/leave?name=ada") == "GET /leave ada True"
        assert cherrypy.serving.request.app is None


@pytest.mark.parametrize("on_a_loop", [False, True])
def test_dash_callbacks_are_left_and_replayed(on_a_loop: bool) -> None:
    dash = needs("dash")
    import json

    app = dash.Dash("tests", serve_locally=False, use_async=on_a_loop)
    app.layout = dash.html.Div([dash.html.Button(id="button"), dash.html.Div(id="output")])

    @app.callback(dash.Output("output", "children"), dash.Input("button", "n_clicks"))  # type: ignore[untyped-decorator]
    @backgrounder
    def clicked(clicks: int) -> str:
        CALLS.append(f"{clicks} {bool(current_job())}")
        return f"{clicks} clicks"

    body = {
        "output": "output.children",
        "outputs": {"id": "output", "property": "children"},
        "inputs": [{"id": "button", "property": "n_clicks", "value": 3}],
        "changedPropIds": ["button.n_clicks"],
    }
    with BackgroundMiddleware(app.server.wsgi_app) as site:
        text = result_of(
            site, "/_dash-update-component", "POST", json.dumps(body).encode(), content_type="application/json"
        )
        assert json.loads(text)["response"] == {"output": {"children": "3 clicks"}}
    assert CALLS == ["3 True"]


def test_flask_asynchronous_view_is_left_where_it_calls_a_function() -> None:
    flask = needs("flask")
    needs("asgiref")
    app = flask.Flask("tests")

    @background
    def in_request() -> str:
        print("working")
        return f"for {flask.request.args['name']}"

    @app.get("/report")  # type: ignore[untyped-decorator]
    async def report() -> str:
        print("before")
        return in_request()

    with BackgroundMiddleware(app) as site:
        client = InProcess(site)
        target = start(client, "/report?name=ada", "GET")
        ended(site, target)
        assert client.request("GET", target).text == "before\nworking\n"
        assert client.request("GET", f"{target}&_view=result").text == "for ada"


# Bottle, and its request in a function.


def test_bottle_request_can_be_used_in_a_background_function() -> None:
    bottle = needs("bottle")
    app = bottle.Bottle()

    @background
    def in_request() -> str:
        return f"{bottle.request.method} {bottle.request.path} {bottle.request.forms['a']} {bottle.request.url_args}"

    @app.post("/report/<name>")  # type: ignore[untyped-decorator]
    def report(name: str) -> Any:
        assert bottle.request.forms["a"]
        return in_request()

    with BackgroundMiddleware(app) as site:
        kind = "application/x-www-form-urlencoded"
        assert result_of(site, "/report/ada", "POST", b"a=b", content_type=kind) == "POST /report/ada b {'name': 'ada'}"
    bottle.request.bind({})


# Flask and SQLAlchemy.


def test_flask_runs_a_background_function_in_contexts_of_its_own() -> None:
    flask = needs("flask")
    app = flask.Flask("tests")

    @app.before_request  # type: ignore[untyped-decorator]
    def connect() -> None:
        print("connecting")
        flask.g.connection = f"connection {len(CALLS)}"
        CALLS.append(f"opened {flask.g.connection}")

    @app.teardown_appcontext  # type: ignore[untyped-decorator]
    def close(error: BaseException | None) -> None:
        CALLS.append(f"closed {flask.g.connection}")

    @background
    def in_request() -> str:
        CALLS.append(f"work with {flask.g.connection}")
        assert "user" not in flask.g
        return f"{flask.request.endpoint} {flask.request.view_args}"

    @app.get("/report/<name>")  # type: ignore[untyped-decorator]
    def report(name: str) -> Any:
        flask.g.user = name
        return in_request()

    with BackgroundMiddleware(app) as site:
        client = InProcess(site)
        target = start(client, "/report/ada", "GET")
        ended(site, target)
        assert client.request("GET", f"{target}&_view=result").text == "report {'name': 'ada'}"
        assert client.request("GET", target).text == "connecting\n"  # once
    assert CALLS == [
        "opened connection 0",
        "closed connection 0",
        "opened connection 2",
        "work with connection 2",
        "closed connection 2",
    ]


def test_flask_before_request_that_refuses_the_second_time_stops_no_function() -> None:
    flask = needs("flask")
    app = flask.Flask("tests")
    nonces = {"once"}

    @app.before_request  # type: ignore[untyped-decorator]
    def check() -> None:
        if flask.request.args["nonce"] not in nonces:
            flask.abort(403)
        nonces.discard(flask.request.args["nonce"])

    app.add_url_rule("/report", "report", lambda: work())
    with BackgroundMiddleware(app) as site:
        assert result_of(site, "/report?nonce=once") == "worked"


def test_flask_sqlalchemy_sessions_of_functions_hold_no_connection_and_leave_no_row_to_others(tmp_path: Path) -> None:
    flask, extension = needs("flask"), needs("flask_sqlalchemy")
    app = flask.Flask("tests")
    app.config["SQLALCHEMY_DATABASE_URI"] = f"sqlite:///{tmp_path}/rows.db"
    db = extension.SQLAlchemy(app)

    class Row(db.Model):  # type: ignore[name-defined,misc]
        id = db.Column(db.Integer, primary_key=True)
        who = db.Column(db.String)

    @background
    def fails() -> None:
        db.session.add(Row(who="ghost"))
        raise RuntimeError("no commit")

    @background
    def counts() -> str:
        return str(db.session.query(Row).filter_by(who="ghost").count())

    def note() -> str:
        db.session.add(Row(who="other"))
        db.session.commit()
        return str(db.session.query(Row).filter_by(who="ghost").count())

    for name, function in (("fails", fails), ("counts", counts), ("note", note)):
        app.add_url_rule(f"/{name}", name, lambda function=function: function())
    with app.app_context():
        db.create_all()
    with BackgroundMiddleware(app) as site:
        client = InProcess(site)
        for _ in range(20):
            assert left_by(site, "/fails").state is JobState.FAILED
            assert client.request("GET", "/note").text == "0"
            assert result_of(site, "/counts") == "0"
        with app.app_context():
            assert db.engine.pool.checkedout() == 0
            db.engine.dispose()


def test_a_scoped_session_of_a_thread_is_the_next_jobs_without_what_the_last_one_left(tmp_path: Path) -> None:
    sa = needs("sqlalchemy")
    from sqlalchemy import orm

    engine = sa.create_engine(f"sqlite:///{tmp_path}/rows.db")
    session = orm.scoped_session(orm.sessionmaker(engine))
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE row (who TEXT)"))

    @background
    def leaves(who: str, flushed: bool) -> None:
        session.execute(sa.text("INSERT INTO row VALUES (:who)"), {"who": who})
        if flushed:
            raise RuntimeError("no commit")

    @background
    def commits() -> str:
        session.commit()
        return str(session.execute(sa.text("SELECT count(*) FROM row")).scalar())

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"] == "/leaves":
            leaves("ghost", bool(environ["QUERY_STRING"]))
        return commits()

    with BackgroundMiddleware(app, executor=one_thread()) as site:
        for query in ("", "?raise"):
            left_by(site, f"/leaves{query}")
            assert engine.pool.checkedout() == 0
            assert result_of(site, "/commits") == "0"
    engine.dispose()


# Django.


@pytest.fixture
def django_site(tmp_path: Path) -> Iterator[Any]:
    needs("django")
    configure_django()
    from django.core.signals import request_finished, request_started
    from django.core.wsgi import get_wsgi_application
    from django.db import connections
    from django.test.utils import override_settings

    databases = {
        "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / "rows.db", "ATOMIC_REQUESTS": True},
    }
    urls: Any = types.ModuleType("urls_of_requests")
    signals: list[str] = []

    def began(**_: Any) -> None:
        signals.append("started")

    def finished(**_: Any) -> None:
        signals.append("finished")

    settings_before = connections.settings
    connections.settings = connections.configure_settings(databases)
    with contextlib.suppress(AttributeError):  # of a test before, without a database
        del connections["default"]
    request_started.connect(began)
    request_finished.connect(finished)
    with override_settings(ROOT_URLCONF=urls, MIDDLEWARE=[]):
        yield types.SimpleNamespace(urls=urls, app=get_wsgi_application(), signals=signals, connections=connections)
    request_started.disconnect(began)
    request_finished.disconnect(finished)
    connections.close_all()
    del connections["default"]
    connections.settings = settings_before


def test_django_ends_the_request_that_is_left_and_rolls_its_transaction_back(django_site: Any) -> None:
    from django.db import connection
    from django.http import HttpResponse
    from django.urls import path

    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE row (who TEXT)")
    connection.close()
    held: list[Any] = []

    def add(who: str) -> int:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO row VALUES (%s)", [who])
            return int(cursor.execute("SELECT count(*) FROM row").fetchone()[0])

    @background
    def fails() -> None:
        assert connection.in_atomic_block
        add("of a job that fails")
        raise RuntimeError("no commit")

    @background
    def adds() -> str:
        held.append(connection.connection)
        return str(add("of a job"))

    def leave(function: Callable[[], Any]) -> Any:
        def of_request(request: Any) -> Any:
            add("of the foreground")
            return function()

        return of_request

    django_site.urls.urlpatterns = [
        path("fails", leave(fails)),
        path("adds", leave(adds)),
        path("count", lambda request: HttpResponse(str(add("of a request")))),
    ]
    with BackgroundMiddleware(django_site.app, executor=one_thread()) as site:
        assert left_by(site, "/fails").reason == "RuntimeError: no commit"
        assert connection.connection is None  # of this thread, which was the foreground's
        assert django_site.signals == ["started", "finished"] * 2
        assert result_of(site, "/adds") == "1"
        assert result_of(site, "/adds") == "2"
        assert held[0] is not held[1]  # each was closed
        assert InProcess(site).request("GET", "/count").text == "3"


def test_django_middlewares_process_a_response_of_a_request_that_is_left(django_site: Any) -> None:
    from django.core.wsgi import get_wsgi_application
    from django.http import HttpResponse
    from django.test.utils import override_settings
    from django.urls import path
    from django.utils.deprecation import MiddlewareMixin

    class Noting(MiddlewareMixin):  # type: ignore[misc]
        def process_request(self, request: Any) -> None:
            CALLS.append("request")

        def process_response(self, request: Any, response: Any) -> Any:
            CALLS.append(f"response {response.status_code}")
            return response

    class Bare:
        def __init__(self, get_response: Any) -> None:
            self.get_response = get_response

        def process_response(self, request: Any, response: Any) -> Any:
            CALLS.append(f"bare {response.status_code}")
            return response

        def __call__(self, request: Any) -> Any:
            return self.process_response(request, self.get_response(request))

    this: Any = sys.modules[__name__]
    this.Noting, this.Bare = Noting, Bare
    django_site.urls.urlpatterns = [path("report", lambda request: HttpResponse(view()))]
    with override_settings(MIDDLEWARE=[f"{__name__}.Noting", f"{__name__}.Bare"]):
        app = get_wsgi_application()
    with BackgroundMiddleware(app) as site:
        assert result_of(site, "/report") == "viewed"
    assert CALLS[:3] == ["request", "bare 303", "response 303"]
    assert CALLS[3:] == ["request", "view", "bare 200", "response 200"]


# Pyramid.


@pytest.mark.parametrize("hook", [None, "pyramid_tm.explicit_manager"])
def test_pyramid_transactions_end_with_the_foreground_and_begin_anew_in_the_job(
    tmp_path: Path, hook: str | None
) -> None:
    needs("pyramid_tm")
    sa, zope_sqlalchemy = needs("sqlalchemy"), needs("zope.sqlalchemy")
    from pyramid.config import Configurator
    from pyramid.response import Response
    from pyramid.threadlocal import get_current_request
    from sqlalchemy import orm

    engine = sa.create_engine(f"sqlite:///{tmp_path}/rows.db", connect_args={"timeout": 2, "check_same_thread": False})
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE row (who TEXT)"))

    def session_of(request: Any) -> Any:
        session = orm.Session(engine)
        zope_sqlalchemy.register(session, transaction_manager=request.tm)
        return session

    def add(session: Any, who: str) -> None:
        session.execute(sa.text("INSERT INTO row VALUES (:who)"), {"who": who})
        zope_sqlalchemy.mark_changed(session)

    def audit(handler: Any, registry: Any) -> Any:
        def tween(request: Any) -> Any:
            add(request.db, "audit")
            return handler(request)

        return tween

    this = sys.modules[__name__]
    this.audit = audit  # type: ignore[attr-defined]

    @backgrounder
    def report(request: Any) -> Any:
        add(request.db, "report")
        return Response("reported")

    @background
    def adds(request: Any) -> str:
        current = get_current_request()
        add((current if request.matchdict["name"] == "ada" else request).db, "job")
        return f"{current.path} {current.matchdict['name']} {current is request}"

    @background
    def fails(request: Any) -> None:
        add(request.db, "ghost")
        raise RuntimeError("no commit")

    @background
    def cancels(request: Any) -> None:
        from bgmiddleware import JobCancelled

        add(request.db, "ghost")
        raise JobCancelled

    with Configurator(settings={"tm.manager_hook": hook} if hook else {}) as config:
        config.include("pyramid_tm")
        config.add_tween(f"{__name__}.audit", under="pyramid_tm.tm_tween_factory")
        config.add_request_method(session_of, "db", reify=True)
        for name, called in (("report", report), ("adds", adds), ("fails", fails), ("cancels", cancels)):
            config.add_route(name, f"/{name}/{{name}}")
            config.add_view(lambda request, called=called: called(request), route_name=name)
    with BackgroundMiddleware(config.make_wsgi_app(), executor=one_thread()) as site:
        assert result_of(site, "/report/ada") == "reported"
        assert result_of(site, "/adds/ada") == "/adds/ada ada False"
        assert result_of(site, "/adds/grace") == "/adds/grace grace False"
        assert left_by(site, "/fails/ada").state is JobState.FAILED
        assert left_by(site, "/cancels/ada").state is JobState.CANCELLED
        assert engine.pool.checkedout() == 0
        with engine.begin() as connection:
            rows = sorted(who for (who,) in connection.execute(sa.text("SELECT who FROM row")))
        assert rows == ["audit", "job", "job", "report"]
    engine.dispose()


def test_pyramid_transaction_of_a_replayed_job_that_is_cancelled_is_aborted() -> None:
    needs("pyramid_tm")
    from pyramid.config import Configurator

    from bgmiddleware import JobCancelled

    class Synchronizer:
        def beforeCompletion(self, transaction: Any) -> None: ...  # noqa: N802

        def afterCompletion(self, transaction: Any) -> None:  # noqa: N802
            CALLS.append("ended")

        def newTransaction(self, transaction: Any) -> None: ...  # noqa: N802

    synchronizer = Synchronizer()

    @backgrounder
    def report(request: Any) -> Any:
        request.tm.registerSynch(synchronizer)
        CALLS.append("begun")
        raise JobCancelled

    with Configurator() as config:
        config.include("pyramid_tm")
        config.add_route("report", "/report")
        config.add_view(report, route_name="report")
    with BackgroundMiddleware(config.make_wsgi_app()) as site:
        assert left_by(site).state is JobState.CANCELLED
    assert CALLS == ["begun", "ended"]


# OpenTelemetry and Sentry.


@pytest.mark.parametrize("outside", [False, True])
def test_a_trace_of_opentelemetry_ends_and_is_nobody_elses(outside: bool) -> None:
    needs("opentelemetry.instrumentation.wsgi")
    from opentelemetry import trace
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["PATH_INFO"] == "/report":
            view()
        start_response("200 OK", HEADERS)
        return [b""]

    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    site = BackgroundMiddleware(app if outside else OpenTelemetryMiddleware(app, tracer_provider=provider))
    called = OpenTelemetryMiddleware(site, tracer_provider=provider) if outside else site
    with site:
        client = InProcess(called)
        ended(site, start(client, "/report", "GET", traceparent=parent))
        assert not trace.get_current_span().get_span_context().is_valid
        client.request("GET", "/other")
    spans = exporter.get_finished_spans()
    assert [span.status.is_ok for span in spans] == [True] * len(spans)
    assert len(spans) == (2 if outside else 3)
    assert spans[-1].parent is None


class Events:
    """What Sentry would have been sent."""

    def __init__(self) -> None:
        self.types: list[str] = []

    def transport(self) -> Any:
        from sentry_sdk.transport import Transport

        events = self

        class Kept(Transport):  # type: ignore[misc,unused-ignore]
            def capture_envelope(self, envelope: Any) -> None:
                for item in envelope.items:
                    values = ((item.payload.json or {}).get("exception") or {}).get("values")
                    if values:  # the last one is what was raised, after what it came of
                        events.types.append(values[-1]["type"])

        return Kept


def sentry_wsgi() -> Any:
    from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        text = odd() if environ["PATH_INFO"] == "/odd" else view()
        start_response("200 OK", HEADERS)
        return [text.encode()]

    return SentryWsgiMiddleware(app), None


def sentry_flask() -> Any:
    from sentry_sdk.integrations.flask import FlaskIntegration

    app = needs("flask").Flask("tests")
    app.add_url_rule("/report", "report", lambda: view())
    app.add_url_rule("/odd", "odd", lambda: odd())
    return app, FlaskIntegration()


def sentry_bottle() -> Any:
    from sentry_sdk.integrations.bottle import BottleIntegration

    app = needs("bottle").Bottle()
    app.get("/report", callback=lambda: view())
    app.get("/odd", callback=lambda: odd())
    return app, BottleIntegration()


def sentry_falcon() -> Any:
    from sentry_sdk.integrations.falcon import FalconIntegration

    class Resource:
        def __init__(self, function: Any) -> None:
            self._function = function

        def on_get(self, request: Any, response: Any) -> None:
            response.text = self._function()

    app = needs("falcon").App()
    app.add_route("/report", Resource(view))
    app.add_route("/odd", Resource(odd))
    return app, FalconIntegration()


def sentry_pyramid() -> Any:
    needs("pyramid")
    from pyramid.config import Configurator
    from pyramid.response import Response
    from sentry_sdk.integrations.pyramid import PyramidIntegration

    with Configurator() as config:
        for name, called in (("report", view), ("odd", odd)):
            config.add_route(name, f"/{name}")
            config.add_view(lambda request, called=called: Response(called()), route_name=name)
    return config, PyramidIntegration()


@backgrounder
def odd() -> str:
    raise ValueError("a real error")


@pytest.mark.parametrize("make", [sentry_wsgi, sentry_flask, sentry_bottle, sentry_falcon, sentry_pyramid])
def test_sentry_is_told_of_a_real_error_once_and_of_a_start_never(make: Any) -> None:
    sentry_sdk = needs("sentry_sdk")
    events = Events()
    app, integration = make()
    from sentry_sdk.integrations.dedupe import DedupeIntegration

    sentry_sdk.init(
        dsn="http://key@127.0.0.1:9/1",
        transport=events.transport(),
        integrations=[DedupeIntegration(), *([integration] if integration else [])],
        auto_enabling_integrations=False,
        default_integrations=False,
    )
    try:
        app = app.make_wsgi_app() if make is sentry_pyramid else app
        with BackgroundMiddleware(app) as site:
            assert left_by(site).state is JobState.FINISHED
            assert events.types == []
            assert left_by(site, "/odd").state is JobState.FAILED
            assert events.types == ["ValueError"]
    finally:
        sentry_sdk.init()


def test_a_large_body_that_cannot_be_kept_is_no_reason_to_refuse_a_function() -> None:
    bottle = needs("bottle")
    app = bottle.Bottle()

    @background
    def count(size: int) -> str:
        return f"{size} bytes, and {len(bottle.request.body.read())} here"

    @app.post("/report")  # type: ignore[untyped-decorator]
    def report() -> Any:
        return count(len(bottle.request.body.read()))

    with BackgroundMiddleware(app, max_body=10) as site:
        client = InProcess(site)
        call = environ("POST", "/report", b"x" * 1000)
        call["wsgi.input"] = io.BytesIO(b"x" * 1000)
        head: list[Any] = []
        b"".join(site(call, lambda *arguments: head.extend(arguments)))
        target = "/report" + dict(head[1])["Location"]
        ended(site, target)
        assert client.request("GET", f"{target}&_view=result").text == "1000 bytes, and 0 here"
    bottle.request.bind({})
