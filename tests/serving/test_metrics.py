"""Numbers for Prometheus: what a scrape reads, by its own parser."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, ConfigurationError, Job, MemoryRegistry, RegistryError, marks
from bgmiddleware._jobs import key_of
from bgmiddleware.testing.clock import Clock
from tests.conftest import needs
from tests.kit.clients import InProcess, ended, start
from tests.kit.documents import ROOT

needs("prometheus_client")

from prometheus_client import CollectorRegistry, generate_latest  # noqa: E402
from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from bgmiddleware import metrics  # noqa: E402


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    print("twelve bytes")
    start_response("500 Oh No" if environ["PATH_INFO"] == "/bad" else "200 OK", [("Content-Type", "text/plain")])
    return [b"done"]


def samples(text: str) -> dict[str, float]:
    """Return each sample as ``name{label=value,…}``."""
    return {
        sample.name + json.dumps(sample.labels, sort_keys=True): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(site: BackgroundMiddleware) -> dict[str, float]:
    reply = InProcess(site).request("GET", "/_metrics")
    assert reply.status == 200
    assert dict(reply.headers)["Content-Type"].startswith("text/plain; version=")
    return samples(reply.body.decode())


def allowed(environ: Any) -> bool:
    return "HTTP_X_STRANGER" not in environ


def test_a_scrape_has_what_ended_and_what_waits() -> None:
    clock = Clock()
    registry = MemoryRegistry(clock=clock)
    with BackgroundMiddleware(
        app, when=marks.path("/x", "/bad"), registry=registry, metrics="/_metrics", authorize=allowed
    ) as site:
        ended(site, start(InProcess(site), "/x"))
        ended(site, start(InProcess(site), "/bad"))
        registry.add(Job(key_of("one"), "one", asked={"path": "/slow"}))
        clock.advance(7.0)
        assert registry.claim(key_of("one"), "runner")
        registry.add(Job(key_of("two"), "two"))
        clock.advance(20.0)
        found = scraped(site)
        assert found["bgmiddleware_registry_up{}"] == 1
        assert found['bgmiddleware_jobs{"state": "pending"}'] == 1
        assert found['bgmiddleware_jobs{"state": "running"}'] == 1
        assert found["bgmiddleware_queue_oldest_seconds{}"] == 20.0
        assert found['bgmiddleware_jobs_ended_total{"path": "/x", "state": "finished"}'] == 1
        assert found['bgmiddleware_jobs_ended_total{"path": "/bad", "state": "failed"}'] == 1
        assert found['bgmiddleware_job_output_bytes_total{"path": "/x"}'] == 13
        registry.request_cancel(key_of("two"))
        registry.transition(key_of("one"), ["running"], metrics_end())
        found = scraped(site)
        assert found['bgmiddleware_job_run_seconds_sum{"path": "/slow"}'] == 20.0
        assert found['bgmiddleware_job_run_seconds_bucket{"le": "10.0", "path": "/slow"}'] == 0
        assert found['bgmiddleware_job_run_seconds_bucket{"le": "30.0", "path": "/slow"}'] == 1
        assert found['bgmiddleware_job_wait_seconds_sum{"path": "/slow"}'] == 7.0
        assert found['bgmiddleware_jobs_ended_total{"path": "other", "state": "cancelled"}'] == 1
        assert found['bgmiddleware_jobs{"state": "pending"}'] == 0


def metrics_end() -> Any:
    from bgmiddleware import JobState
    from bgmiddleware.registries.base import Transition

    return Transition(JobState.FINISHED, "runner")


def test_only_who_may_list_jobs_sees_the_numbers() -> None:
    with BackgroundMiddleware(app, metrics="/_metrics", authorize=allowed) as site:
        assert InProcess(site).request("GET", "/_metrics", X_Stranger="1").status == 403
        assert InProcess(site).request("POST", "/_metrics").status == 405
    with pytest.raises(ConfigurationError, match="metrics is set without authorize"):
        BackgroundMiddleware(app, metrics="/_metrics")


def test_paths_that_clients_make_up_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MOST_PATHS", 2)
    registry = MemoryRegistry()
    with BackgroundMiddleware(app, registry=registry, metrics="/_metrics", authorize=allowed) as site:
        for name in "abcd":
            registry.add(Job(key_of(name), name, asked={"path": f"/{name}"}))
            registry.request_cancel(key_of(name))
        found = scraped(site)
    paths = {
        re.findall(r'"path": "([^"]*)"', name)[0] for name in found if name.startswith("bgmiddleware_jobs_ended_t")
    }
    assert paths == {"/a", "/b", "other"}


def test_a_registry_that_is_away_is_a_number_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*arguments: Any) -> Any:
        raise RegistryError("away")

    registry = MemoryRegistry()
    monkeypatch.setattr(registry, "history", away)
    with BackgroundMiddleware(app, registry=registry, metrics="/_metrics", authorize=allowed) as site:
        found = scraped(site)
    assert found["bgmiddleware_registry_up{}"] == 0
    assert not any(name.startswith("bgmiddleware_jobs{") for name in found)


def test_a_site_adds_them_to_its_own() -> None:
    own = CollectorRegistry()
    with BackgroundMiddleware(app, when=marks.always) as site:
        metrics.register(site, own)
        ended(site, start(InProcess(site), "/x"))
        found = samples(generate_latest(own).decode())
    assert found['bgmiddleware_jobs_ended_total{"path": "/x", "state": "finished"}'] == 1


_PROCESS = """
import sys
from bgmiddleware import BackgroundMiddleware, Job, marks
from bgmiddleware._jobs import key_of
from bgmiddleware.registries import open_registry
from bgmiddleware.testing.clients import InProcess
registry = open_registry(sys.argv[1])
site = BackgroundMiddleware(lambda e, s: [], registry=registry, metrics="/_metrics", authorize=lambda environ: True)
for name in sys.argv[2]:
    registry.add(Job(key_of(name), name, asked={"path": "/x"}))
    registry.request_cancel(key_of(name))
print(InProcess(site).request("GET", "/_metrics").body.decode())
"""


@pytest.mark.everything
def test_several_processes_add_up_what_they_count_and_not_what_the_registry_says(tmp_path: Path) -> None:
    (tmp_path / "numbers").mkdir()
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "numbers")}
    said = ""
    for names in ("ab", "cde"):
        command = [sys.executable, "-c", _PROCESS, f"spool:{tmp_path / 'jobs'}", names]
        said = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = samples(said)
    assert found['bgmiddleware_jobs_ended_total{"path": "/x", "state": "cancelled"}'] == 5
    assert found['bgmiddleware_jobs{"state": "pending"}'] == 0


def test_the_dashboard_for_grafana_asks_for_numbers_that_there_are() -> None:
    dashboard = json.loads((ROOT / "docs" / "reference" / "grafana.json").read_text())
    with BackgroundMiddleware(app, when=marks.path("/x"), metrics="/_metrics", authorize=allowed) as site:
        ended(site, start(InProcess(site), "/x"))
        there = {name.partition("{")[0] for name in scraped(site)}
    there.add("bgmiddleware_job_output_dropped_bytes_total")  # there is none before something was dropped
    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"bgmiddleware_\w+", target["expr"])
    }
    assert len(asked) >= 8
    assert asked <= there
