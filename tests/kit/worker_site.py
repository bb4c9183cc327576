"""A site whose jobs run in processes of their own: executors load it as ``tests.kit.worker_site:app``.

``BGMIDDLEWARE_TEST_SITE``: as JSON the URL of its ``registry``, the name of its ``executor``, its ``settings``, and
where its ``collector`` of spans listens, if it has one.
"""

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, ask, current_job, marks, progress, redact, step
from bgmiddleware.executors import open_executor
from bgmiddleware.registries import open_registry
from tests.executors.engine_worker import Worker, working

NAME = "tests.kit.worker_site:app"
VARIABLE = "BGMIDDLEWARE_TEST_SITE"
SECRET = "hunter2-and-more"

shop = logging.getLogger("shop")


def report(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Do what ``PATH_INFO`` says."""
    path = environ["PATH_INFO"]
    if path == "/killed":
        print("before", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if path.startswith("/secrets"):
        tell_secrets()
    if path == "/secrets-and-killed":
        os.write(2, f"the last words: {SECRET}".encode())
        os.kill(os.getpid(), signal.SIGKILL)
    if path == "/asks":
        print("chosen:", ask("Delete 14 rows?", choices=("yes", "no"), timeout=600.0))
        print("typed:", input("and why? "))
    if path == "/spans":
        with step("Reading rows"):
            shop.warning("within")
    if path in ("/raises", "/secrets"):
        raise LookupError(f"no {SECRET}")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(os.getpid()).encode()]


def tell_secrets() -> None:
    """Say a secret in all ways that a job has."""
    job = current_job()
    assert job is not None
    job.title = f"title of {SECRET}"
    print(f"printed {SECRET}")
    sys.stdout.write("in two pieces " + SECRET[:5])
    sys.stdout.flush()
    sys.stdout.write(SECRET[5:] + "\n")
    os.write(1, f"by number {SECRET}\n".encode())
    os.system(f"echo by a child {SECRET}")
    shop.warning("logged %s", SECRET)
    progress(1, 2, f"at {SECRET}")
    with step(f"Reading {SECRET}"):
        progress(1, 2, f"in {SECRET}")


def configured(config: dict[str, Any], **settings: Any) -> BackgroundMiddleware:
    """Return the site of a *config*."""
    options: dict[str, Any] = {"app": NAME} if config["executor"] == "process" else {}
    return BackgroundMiddleware(
        report,
        when=marks.always,
        registry=open_registry(config["registry"]),
        executor=open_executor(config["executor"], **options),
        redact=[SECRET, redact.common()] if config.get("redact") else (),
        **{**config.get("settings", {}), **settings},
    )


@contextlib.contextmanager
def working_for(config: dict[str, Any], **settings: Any) -> Iterator[tuple[BackgroundMiddleware, list[Worker]]]:
    """Have the site of a *config*, with other *settings* in this process than in its workers, which run too."""
    kind = config["executor"].partition(":")[0]
    with contextlib.ExitStack() as stack:
        environ = stack.enter_context(pytest.MonkeyPatch.context())
        environ.setenv(VARIABLE, json.dumps(config))
        workers = []
        if kind == "rq":
            workers = stack.enter_context(working(NAME, ready="Listening on"))
        if kind == "celery":
            options = ("--loglevel", "INFO", "--without-mingle", "--without-gossip", "--concurrency", "1")
            workers = stack.enter_context(working(NAME, *options, ready=" ready."))
        yield stack.enter_context(configured(config, **settings)), workers


def config_of(executor: str, redis_url: str, directory: Path, **more: Any) -> dict[str, Any]:
    """Return the config of a site whose jobs are run by ``process``, ``rq`` or ``celery``. The broker of Celery is in
    ``CELERY_BROKER_URL``."""
    names = {"rq": f"rq:{redis_url}", "celery": "celery:tests.executors.celery_app:app"}
    registry = f"spool:{directory}/jobs" if executor == "process" else redis_url
    return {"registry": registry, "executor": names.get(executor, executor), **more}


def _export_to(collector: str) -> None:
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(collector)))
    trace.set_tracer_provider(provider)


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    config = json.loads(os.environ[VARIABLE])
    if config.get("collector"):
        _export_to(config["collector"])
        logging.basicConfig(format="%(message)s [%(job)s %(trace_id)s %(span_id)s]", stream=sys.stderr)
        from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

        return OpenTelemetryMiddleware(configured(config, tracing=True))
    return configured(config)
