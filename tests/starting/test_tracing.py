"""Spans of jobs: what a real SDK of OpenTelemetry exports, also to a real collector."""

import logging
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import (
    BackgroundMiddleware,
    ConfigurationError,
    Job,
    JobState,
    MemoryRegistry,
    RegistryError,
    ThreadExecutor,
    backgrounder,
    current_job,
    marks,
    progress,
    step,
)
from bgmiddleware._jobs import key_of
from bgmiddleware.registries.base import Transition
from tests.conftest import needs
from tests.kit import worker_site
from tests.kit.apps import WAIT
from tests.kit.clients import UUID, InProcess, ended, served, start
from tests.kit.documents import PAGES, ROOT, SHOP, blocks
from tests.kit.redis_server import RedisServer, redis_server, redis_server_of_module  # noqa: F401  # fixtures
from tests.kit.stores import STORES, Stores, opened_stores

needs("opentelemetry.sdk")

from opentelemetry import trace  # noqa: E402
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider  # noqa: E402
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402
from opentelemetry.trace import SpanKind, StatusCode  # noqa: E402

from bgmiddleware import tracing  # noqa: E402

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Spans:
    """A provider, and what it has exported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))

    def of_jobs(self) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name.startswith("job ")]

    def one(self) -> ReadableSpan:
        (span,) = self.of_jobs()
        return span


def attributes_of(span: Any) -> dict[str, Any]:
    return dict(span.attributes or {})


def events_of(span: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(event.name, dict(event.attributes or {})) for event in span.events]


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture(params=STORES)
def stores(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    yield from opened_stores(request, tmp_path)


class Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def logged() -> Iterator[list[Any]]:
    handler = Records()
    loggers = [logging.getLogger("shop"), logging.getLogger("bgmiddleware")]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler.records
    for logger in loggers:
        logger.removeHandler(handler)


def labels_of(record: Any) -> tuple[str, str, str]:
    return record.job, record.trace_id, record.span_id


def ids_of(span: ReadableSpan) -> tuple[str, str]:
    return trace.format_trace_id(span.context.trace_id), trace.format_span_id(span.context.span_id)


shop = logging.getLogger("shop")


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    if environ["PATH_INFO"].startswith("/raise"):
        raise LookupError("of the app")
    with step("Reading rows"):
        shop.warning("in the job", extra={"trace_id": "my own"} if environ["PATH_INFO"] == "/extra" else {})
        thread = threading.Thread(target=shop.warning, args=("in a thread",))
        thread.start()
        thread.join()
        with trace.get_tracer("shop").start_as_current_span("inner"):  # of no provider: it only passes on
            pass
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]


def test_a_job_has_a_span_of_its_requests_trace(stores: Stores, spans: Spans, logged: list[Any]) -> None:
    site = BackgroundMiddleware(
        app, when=marks.always, registry=stores.registry(), tracing=spans.provider, version="7", keep_requests=True
    )
    with site:
        shop.warning("outside")
        with spans.provider.get_tracer("test").start_as_current_span("request") as request:
            target = start(InProcess(site), "/reports/12", traceparent=PARENT, tracestate="of=client")
        job = ended(site, target)
    span, cause = spans.one(), request.get_span_context()
    assert (span.name, span.kind, span.status.status_code) == (
        "job POST /reports/*",
        SpanKind.CONSUMER,
        StatusCode.UNSET,
    )
    assert span.parent is not None
    assert [link.context.span_id for link in span.links] == [span.parent.span_id] == [cause.span_id]
    assert span.context.trace_id == cause.trace_id
    assert attributes_of(span) == {
        "bgmiddleware.job": job.key[:8],
        "bgmiddleware.output": job.output_end,
        "bgmiddleware.state": "finished",
        "bgmiddleware.steps": 1,
        "bgmiddleware.version": "7",
        "http.request.method": "POST",
        "http.response.status_code": 200,
        "url.template": "/reports/*",
    }
    claimed, *others = events_of(span)
    assert (claimed[0], *claimed[1]) == ("claimed", "bgmiddleware.waited")
    assert others == [
        ("step begun", {"bgmiddleware.step": "Reading rows"}),
        ("step ended", {"bgmiddleware.step": "Reading rows", "bgmiddleware.state": "done"}),
        ("ended", {"bgmiddleware.state": "finished"}),
    ]
    assert [record.getMessage() for record in logged] == ["outside", "in the job", "in a thread"]
    assert labels_of(logged[0]) == ("", "", "")
    assert labels_of(logged[1]) == labels_of(logged[2]) == (job.key[:8], *ids_of(span))
    assert target.rpartition("=")[2] not in span.to_json()
    assert not trace.get_current_span().get_span_context().is_valid


@pytest.mark.parametrize(
    ("headers", "links"),
    [
        ({"traceparent": PARENT}, 1),
        ({"traceparent": PARENT, "tracestate": f"of={'x' * 256},more={'x' * 246}"}, 1),
        ({"traceparent": "00-of-nobody-01"}, 0),
        ({}, 0),
    ],
)
def test_without_a_span_of_the_server_the_clients_counts(headers: dict[str, str], links: int, spans: Spans) -> None:
    with BackgroundMiddleware(app, when=marks.always, tracing=spans.provider) as site:
        ended(site, start(InProcess(site), "/", **headers))
    span = spans.one()
    assert [trace.format_trace_id(link.context.trace_id) for link in span.links] == [PARENT.split("-")[1]] * links
    assert (span.parent is not None) == bool(links)


@pytest.mark.parametrize(("length", "kept"), [(256, True), (257, False)])
def test_a_long_tracestate_is_not_carried_and_the_trace_is(length: int, kept: bool, spans: Spans) -> None:
    # 512 characters are carried: "a=", 252 of them, ",b=", and 255 or 256.
    state = f"a={'x' * 252},b={'x' * (length - 1)}"
    with BackgroundMiddleware(app, when=marks.always, tracing=spans.provider) as site:
        job = ended(site, start(InProcess(site), "/", traceparent=PARENT, tracestate=state))
    assert len(state) == 512 + (not kept)
    assert job.asked["traceparent"] == PARENT
    assert job.asked.get("tracestate") == (state if kept else None)


def test_a_job_that_failed_has_its_reason_and_no_more(spans: Spans, logged: list[Any]) -> None:
    with BackgroundMiddleware(app, when=marks.always, tracing=spans.provider, redact=["of the app"]) as site:
        job = ended(site, start(InProcess(site), "/raise"))
    span = spans.one()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "LookupError: [redacted]")
    assert events_of(span)[-1] == (
        "ended",
        {"bgmiddleware.state": "failed", "bgmiddleware.reason": "LookupError: [redacted]"},
    )
    (line,) = logged
    assert line.getMessage().startswith(f"job {job.key[:8]} failed: POST /raise")
    assert labels_of(line) == (job.key[:8], *ids_of(span))


def test_a_cancel_is_an_event_and_no_error(spans: Spans) -> None:
    begun, asked = threading.Event(), threading.Event()

    def waits(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        begun.set()
        assert asked.wait(WAIT)
        progress(1, 2)
        raise AssertionError("it goes on")

    executor = ThreadExecutor(max_workers=1)
    with BackgroundMiddleware(waits, when=marks.always, executor=executor, tracing=spans.provider) as site:
        client = InProcess(site)
        running = start(client, "/running")
        assert begun.wait(WAIT)
        waiting = start(client, "/waiting")
        for target in (waiting, running):
            client.request("DELETE", target)
        asked.set()
        for target in (waiting, running):
            assert ended(site, target).state is JobState.CANCELLED
    found = {span.name: span for span in spans.of_jobs()}
    assert {span.status.status_code for span in found.values()} == {StatusCode.UNSET}
    assert [name for name, _ in events_of(found["job POST /running"])] == ["claimed", "cancel requested", "ended"]
    assert "claimed" not in [name for name, _ in events_of(found["job POST /waiting"])]
    reason = {"bgmiddleware.state": "cancelled", "bgmiddleware.reason": "cancelled on request"}
    assert events_of(found["job POST /running"])[-1][1] == reason


def test_a_job_whose_runner_vanished_has_the_span_that_its_finder_makes(stores: Stores, spans: Spans) -> None:
    registry = stores.registry()
    with BackgroundMiddleware(app, registry=registry, tracing=spans.provider):
        key = key_of("one")
        job = registry.add(Job(key, "one", asked={"method": "GET", "path": "/slow", "traceparent": PARENT}))
        assert registry.claim(key, "somebody else")
        registry.transition(key, ["running"], Transition(JobState.LOST, "somebody else", reason="it vanished"))
        job = registry.get(key)
    span = spans.one()
    assert (span.name, span.status.status_code, span.status.description) == (
        "job GET /slow",
        StatusCode.ERROR,
        "it vanished",
    )
    assert trace.format_trace_id(span.context.trace_id) == PARENT.split("-")[1]
    assert job.started_at is not None
    assert job.ended_at is not None
    assert (span.start_time, span.end_time) == (int(job.started_at * 1e9), int(job.ended_at * 1e9))


def test_the_end_that_another_process_wrote_down_ends_the_span_too(spans: Spans, tmp_path: Path) -> None:
    from bgmiddleware.registries.spool import SpoolRegistry

    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        with SpoolRegistry(tmp_path / "jobs") as other:
            (job,) = other.jobs()
            other.transition(job.key, ["running"], Transition(JobState.LOST, job.runner, reason="given up"))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    registry = SpoolRegistry(tmp_path / "jobs")
    with BackgroundMiddleware(view, when=marks.always, registry=registry, tracing=spans.provider) as site:
        ended(site, start(InProcess(site), "/"))
    assert (spans.one().status.description, tracing._spans) == ("given up", {})


def test_a_registry_that_is_away_leaves_no_span_open(spans: Spans, monkeypatch: pytest.MonkeyPatch) -> None:
    from bgmiddleware import MemoryRegistry

    def away(*arguments: Any, **named: Any) -> Any:
        raise RegistryError("away")

    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        monkeypatch.setattr(registry, "transition", away)
        monkeypatch.setattr(registry, "get", away)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    registry = MemoryRegistry()
    with BackgroundMiddleware(view, when=marks.always, registry=registry, tracing=spans.provider) as site:
        start(InProcess(site), "/")
    span = spans.one()
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "its end could not be read")
    assert tracing._spans == {}


def test_steps_do_not_drive_out_the_other_events(spans: Spans) -> None:
    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        for number in range(60):
            with step(f"Step {number}"):
                pass
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    with BackgroundMiddleware(view, when=marks.always, tracing=spans.provider) as site:
        ended(site, start(InProcess(site), "/"))
    names = [name for name, _ in events_of(spans.one())]
    assert (names[0], names.count("step begun"), names[-1]) == ("claimed", 50, "ended")
    assert attributes_of(spans.one())["bgmiddleware.steps"] == 60


def test_what_else_is_said_of_a_log_record_stays(spans: Spans, logged: list[Any]) -> None:
    with BackgroundMiddleware(app, when=marks.always, tracing=spans.provider) as site:
        job = ended(site, start(InProcess(site), "/extra"))
    assert (logged[0].job, logged[0].trace_id) == (job.key[:8], "my own")


def test_a_decorated_view_has_a_span_too(spans: Spans) -> None:
    @backgrounder
    def view(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        assert current_job() is not None
        with spans.provider.get_tracer("shop").start_as_current_span("inner"):
            pass
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    with BackgroundMiddleware(view, tracing=spans.provider) as site:
        ended(site, start(InProcess(site), "/", "GET"))
    inner, job = spans.exporter.get_finished_spans()
    assert inner.parent is not None
    assert (inner.parent.span_id, inner.context.trace_id) == (job.context.span_id, job.context.trace_id)


@pytest.mark.parametrize("owner", [None, lambda environ: "ada"])
def test_a_job_that_is_run_again_is_of_the_trace_that_asked_for_it(spans: Spans, owner: Any) -> None:
    with BackgroundMiddleware(
        app, when=marks.path("/x"), tracing=spans.provider, keep_requests=True, owner=owner
    ) as site:
        client = InProcess(site)
        target = start(client, "/x", "GET", traceparent=PARENT)
        ended(site, target)
        reply = client.request(
            "POST", target, b"_action=rerun", content_type="application/x-www-form-urlencoded",
            traceparent=PARENT.replace("0af7", "beef"), accept="application/json",
        )  # fmt: skip
        assert reply.status in (202, 303), reply
        ended(site, "/x" + reply["Location"])
    assert [trace.format_trace_id(span.context.trace_id)[:4] for span in spans.of_jobs()] == ["0af7", "beef"]


def test_a_job_runs_though_what_the_site_does_with_its_span_raises(caplog: pytest.LogCaptureFixture) -> None:
    class Raising(SpanProcessor):
        def __init__(self, at: str) -> None:
            self.at = at

        def on_start(self, span: Any, parent_context: Any = None) -> None:
            if self.at == "start":
                raise LookupError("at its start")

        def on_end(self, span: Any) -> None:
            raise LookupError("at its end")

    for at in ("start", "end"):
        provider = TracerProvider()
        provider.add_span_processor(Raising(at))
        with BackgroundMiddleware(app, when=marks.always, tracing=provider) as site:
            assert ended(site, start(InProcess(site), "/")).state is JobState.FINISHED
    said = [record.getMessage() for record in caplog.records if record.name == "bgmiddleware"]
    assert [re.sub("[0-9a-f]{8}", "…", line) for line in said] == [
        "job … has no span",
        "the span of job … could not be ended",
    ]


@pytest.mark.parametrize("wrong", [None, 1, "yes", object()])
def test_what_can_make_no_spans_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"tracing = .*: expected True, False, or a TracerProvider"):
        BackgroundMiddleware(app, tracing=wrong)


WITHOUT = """
import sys
import bgmiddleware
bgmiddleware.BackgroundMiddleware(print, metrics="/_metrics", authorize=print)
assert not [name for name in sys.modules if name.startswith("opentelemetry")]
assert "bgmiddleware.tracing" not in sys.modules
sys.modules["opentelemetry"] = None
try:
    bgmiddleware.BackgroundMiddleware(print, tracing=True)
except ImportError as error:
    print(error)
"""


def test_nothing_is_imported_before_a_site_asks_for_it() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "tracing needs the extra opentelemetry: pip install 'bgmiddleware[opentelemetry]'\n"


def test_middlewares_that_share_a_registry_make_one_span_of_each_job(spans: Spans) -> None:
    with MemoryRegistry() as registry:
        options: dict[str, Any] = {"when": marks.always, "registry": registry, "tracing": spans.provider}
        sites = [BackgroundMiddleware(app, **options), BackgroundMiddleware(lambda *given: app(*given), **options)]
        with sites[0], sites[1]:
            for site in sites:
                ended(site, start(InProcess(site), "/x"))
            waits = registry.add(Job(key_of("never runs"), "POST /x"))
            registry.request_cancel(waits.key)
    states = [attributes_of(span)["bgmiddleware.state"] for span in spans.of_jobs()]
    assert states == ["finished", "finished", "cancelled"]


def test_the_hook_hides_all_that_stands_for_a_token_also_in_headers(
    spans: Spans, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("opentelemetry.instrumentation.wsgi")
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    monkeypatch.setenv("OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST", "referer")
    with BackgroundMiddleware(app, when=marks.path("/x")) as site:
        called = OpenTelemetryMiddleware(site, request_hook=tracing.hide_tokens, tracer_provider=spans.provider)
        token, key, shared = "3f0c" * 2 + "-0000-4000-8000-" + "0" * 12, "5eed" * 8, "share." + "s" * 100
        for query in (f"_t={token}", f"_t=own.{key}", f"_t={shared}"):
            InProcess(called).request("GET", f"/y?a=1&{query}", referer=f"https://shop.example/x?{query}&b=1")
    told = [span.to_json() for span in spans.exporter.get_finished_spans()]
    for text, hidden, shown in zip(told, (token, key, shared), (key_of(token)[:8], key[:8], "share"), strict=True):
        assert hidden not in text
        assert f"https://shop.example/x?_t={shown}&b=1" in text
        assert f"/y?a=1&_t={shown}" in text or f"a=1&_t={shown}" in text


def test_a_middleware_outside_sees_no_token_with_the_hook(spans: Spans) -> None:
    needs("opentelemetry.instrumentation.wsgi")
    from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware

    with BackgroundMiddleware(app, when=marks.path("/x"), tracing=spans.provider) as site:
        called = OpenTelemetryMiddleware(site, request_hook=tracing.hide_tokens, tracer_provider=spans.provider)
        target = start(InProcess(called), "/x?a=1")
        job = ended(site, target)
        InProcess(called).request("GET", target, accept="application/json")
    request, *_, look = spans.exporter.get_finished_spans()
    assert f"_t={job.key[:8]}" in look.to_json()
    assert not any(target.rpartition("=")[2] in span.to_json() for span in spans.exporter.get_finished_spans())
    assert spans.one().context.trace_id == request.context.trace_id


# A collector, and the processes that export to it.


class Collector:
    """Takes spans by OTLP over HTTP, as a collector does. Its spans are those of protobuf."""

    def __init__(self) -> None:
        self._came = threading.Condition()
        self._spans: list[Any] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        assert (environ["REQUEST_METHOD"], environ["PATH_INFO"]) == ("POST", "/v1/traces")
        sent = ExportTraceServiceRequest.FromString(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        with self._came:
            for resource in sent.resource_spans:
                for scope in resource.scope_spans:
                    self._spans += [span for span in scope.spans if scope.scope.name == "bgmiddleware"]
            self._came.notify_all()
        start_response("200 OK", [("Content-Type", "application/x-protobuf")])
        return [b""]

    def spans(self, count: int) -> dict[str, Any]:
        """Wait until so many came; return them by their names."""
        with self._came:
            assert self._came.wait_for(lambda: len(self._spans) >= count, WAIT), self._spans
            assert len(self._spans) == count, self._spans
            return {span.name: span for span in self._spans}


def attributes_sent(span: Any) -> dict[str, str]:
    return {pair.key: pair.value.string_value for pair in span.attributes}


@pytest.mark.everything
@pytest.mark.parametrize("executor", ["process", "rq", "celery"])
def test_a_collector_sees_the_jobs_of_other_processes(
    executor: str,
    redis_server: RedisServer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spans: Spans,
) -> None:
    needs("opentelemetry.proto")
    monkeypatch.setenv("CELERY_BROKER_URL", redis_server.url)
    collector = Collector()
    with served(collector) as server:
        url = f"http://127.0.0.1:{server.port}/v1/traces"
        config = worker_site.config_of(executor, redis_server.url, tmp_path, collector=url)
        with worker_site.working_for(config, tracing=spans.provider) as (site, _):
            client = InProcess(site)
            target = start(client, "/spans", traceparent=PARENT)
            job = ended(site, target)
            ran = collector.spans(1)["job POST /spans"]
            output = client.request("GET", target, accept="text/plain").text
            failed = ended(site, start(client, "/raises", traceparent=PARENT))
            killed = ended(site, start(client, "/killed"))
            # A process that is killed ends no span: who found it dead makes one.
            found = collector.spans(2 if executor == "process" else 3)
    assert (job.state, failed.state, killed.state) == (JobState.FINISHED, JobState.FAILED, JobState.LOST)
    assert ran.trace_id.hex() == PARENT.split("-")[1]
    assert [link.span_id.hex() for link in ran.links] == [ran.parent_span_id.hex()] == [PARENT.split("-")[2]]
    assert attributes_sent(ran)["bgmiddleware.job"] == job.key[:8]
    assert [event.name for event in ran.events] == ["claimed", "step begun", "step ended", "ended"]
    assert f"within [{job.key[:8]} {ran.trace_id.hex()} {ran.span_id.hex()}]" in output
    assert found["job POST /raises"].status.message == "LookupError: no hunter2-and-more"
    if executor == "process":  # it was found by this process, which exports to its own memory
        assert spans.one().status.description == killed.reason
    else:
        assert found["job POST /killed"].status.message == killed.reason
    assert not re.search(UUID, str(found) + str(ran))


@pytest.mark.everything
def test_the_example_of_the_guide_exports_to_a_collector(tmp_path: Path) -> None:
    needs("opentelemetry.proto")
    texts = [block.text for block in blocks(PAGES["tracing.rst"], "python")]
    script = "\n".join(
        [
            SHOP,
            *texts,
            "from bgmiddleware.testing.clients import InProcess, ended, start",
            "target = start(InProcess(app), '/reports/1')",
            "ended(app.wsgi, target)",
            "assert InProcess(app).request('GET', target).status == 200",
            "logging.warning('outside')",
        ]
    )
    collector = Collector()
    with served(collector) as server:
        environ = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{server.port}"}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environ, cwd=ROOT, capture_output=True, text=True, check=True
        )
        (span,) = collector.spans(1).values()
    assert span.name == "job POST /reports/*"
    assert span.parent_span_id
    assert "WARNING outside [ ]" in done.stderr
