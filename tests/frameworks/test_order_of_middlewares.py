"""Other middlewares, inside of ours and outside: each row of the table in docs/how-to/middlewares.rst."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, JobState, backgrounder, current_job
from tests.conftest import needs
from tests.kit.clients import OverHTTP, Reply, ended, served, start

PATH = "/shop/report"


@backgrounder
def report(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    print("for", environ["REMOTE_ADDR"], bool(current_job()))
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"done"]


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
    if environ["PATH_INFO"].endswith("/report"):
        return report(environ, start_response)
    start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "0")])
    return []


def nothing(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "0")])
    return []


def proxy_fix(wrapped: Any) -> Any:
    needs("werkzeug")
    from werkzeug.middleware.proxy_fix import ProxyFix

    return ProxyFix(wrapped)


def dispatcher(wrapped: Any) -> Any:
    needs("werkzeug")
    from werkzeug.middleware.dispatcher import DispatcherMiddleware

    return DispatcherMiddleware(nothing, {"/shop": wrapped})


def debugged(wrapped: Any) -> Any:
    needs("werkzeug")
    from werkzeug.debug import DebuggedApplication

    return DebuggedApplication(wrapped)


def whitenoise(wrapped: Any) -> Any:
    needs("whitenoise")
    from whitenoise import WhiteNoise

    return WhiteNoise(wrapped)


def urlmap(wrapped: Any) -> Any:
    needs("paste.urlmap")
    from paste.urlmap import URLMap

    mapped = URLMap()
    mapped["/shop"] = wrapped
    return mapped


def cascade(wrapped: Any) -> Any:
    needs("paste.cascade")
    from paste.cascade import Cascade

    return Cascade([nothing, wrapped])


def errors(wrapped: Any) -> Any:
    needs("paste.exceptions.errormiddleware")
    from paste.exceptions.errormiddleware import ErrorMiddleware

    return ErrorMiddleware(wrapped, {})


def gzipped(wrapped: Any) -> Any:
    needs("paste.gzipper")
    from paste.gzipper import middleware

    return middleware(wrapped)


def translogger(wrapped: Any) -> Any:
    needs("paste.translogger")
    from paste.translogger import TransLogger

    return TransLogger(wrapped, setup_console_handler=False)


def sentry(wrapped: Any) -> Any:
    needs("sentry_sdk")
    from sentry_sdk.integrations.wsgi import SentryWsgiMiddleware

    return SentryWsgiMiddleware(wrapped)


def opentelemetry(wrapped: Any) -> Any:
    needs("opentelemetry.instrumentation.wsgi")
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    return OpenTelemetryMiddleware(wrapped)


OTHERS = [
    proxy_fix,
    dispatcher,
    debugged,
    whitenoise,
    urlmap,
    cascade,
    errors,
    gzipped,
    translogger,
    sentry,
    opentelemetry,
]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("order", ["inside", "outside"])
@pytest.mark.parametrize("other", OTHERS)
def test_a_job_starts_runs_and_is_read(other: Any, order: str) -> None:
    site = BackgroundMiddleware(other(app) if order == "inside" else app)
    with site, served(site if order == "inside" else other(site)) as client:
        forwarded = {"x_forwarded_for": "192.0.2.1", "x_forwarded_proto": "https"}
        target = start(client, f"{PATH}?name=ada", "GET", **forwarded)
        assert ended(site, target).state is JobState.FINISHED
        address = "192.0.2.1" if other is proxy_fix else "127.0.0.1"
        assert client.request("GET", target).text.splitlines()[0] == f"for {address} True"
        assert client.request("GET", f"{target}&_view=result").body == b"done"
        assert client.request("GET", "/shop/other").status == 404
        assert len(site.registry.jobs()) == 1


# Beaker: the session of a client.


def counting(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    session = environ["beaker.session"]
    if environ["PATH_INFO"] == "/report":
        return counted(environ, start_response)
    session["visits"] = 1
    session.save()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b""]


@backgrounder
def counted(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    session = environ["beaker.session"]
    session["visits"] = session.get("visits", 0) + 1
    session.save()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{session['visits']} visits".encode()]


@pytest.mark.parametrize("order", ["inside", "outside"])
def test_a_job_reads_its_beaker_session_and_saves_it_if_beaker_is_inside(order: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        needs("beaker.middleware")
        from beaker.middleware import SessionMiddleware

    settings = {"session.type": "file", "session.data_dir": str(tmp_path)}
    site = BackgroundMiddleware(SessionMiddleware(counting, settings) if order == "inside" else counting)
    with site, served(site if order == "inside" else SessionMiddleware(site, settings)) as client:
        cookie = client.request("GET", "/")["Set-Cookie"].partition(";")[0]

        def result(**headers: str) -> Reply:
            return read(site, client, **headers)

        assert result(cookie=cookie).text == "2 visits"
        if order == "inside":  # outside, the request that is over and its job have one session, and both may save it
            assert result(cookie=cookie).text == "3 visits"
        # The cookie of a session that a job begins comes with its result where Beaker is inside. Outside, the request
        # that started the job is answered already.
        assert ("Set-Cookie" in result()) == (order == "inside")


def read(site: BackgroundMiddleware, client: OverHTTP, **headers: str) -> Reply:
    target = start(client, "/report", "GET", **headers)
    ended(site, target)
    return client.request("GET", f"{target}&_view=result")
