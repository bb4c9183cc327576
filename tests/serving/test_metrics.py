"""Numbers for Prometheus: what a scrape reads, by its own parser."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, ConfigurationError, Job, MemoryRegistry, RegistryError, marks
from bgmiddleware._jobs import key_of
from bgmiddleware.registries._trouble import Trouble
from bgmiddleware.registries.spool import SpoolRegistry
from bgmiddleware.testing.clock import Clock
from tests.conftest import needs
from tests.kit.clients import InProcess, ended, start
from tests.kit.documents import ROOT
from tests.kit.processes import gunicorn, running
from tests.kit.servers import open_directory

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
    monkeypatch.setattr(metrics, "MOST_PATHS", 3)
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


def test_metrics_tell_as_many_paths_apart_as_the_history_of_a_day() -> None:
    registry = MemoryRegistry()
    with BackgroundMiddleware(app, registry=registry, metrics="/_metrics", authorize=allowed) as site:
        for number in range(205):
            registry.add(Job(key_of(str(number)), "one", asked={"path": f"/{number}"}))
            registry.request_cancel(key_of(str(number)))
        found = scraped(site)
    told = {name.split('"path": ')[1] for name in found if name.startswith("bgmiddleware_jobs_ended_total")}
    assert len(told) == len(registry.history(0.0).by_path()) == 200


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


def test_viewers_who_are_held_and_refused_are_counted() -> None:
    def said(site: BackgroundMiddleware) -> tuple[float, float]:
        found = scraped(site)
        return found["bgmiddleware_viewers_held{}"], found["bgmiddleware_viewers_refused_total{}"]

    with BackgroundMiddleware(app, metrics="/_metrics", authorize=allowed, stream_slots=1) as site:
        first = site.viewers.take_slot(lambda: False)
        assert said(site) == (1, 0)
        assert site.viewers.take_slot(lambda: False) is None
        assert said(site) == (1, 1)
        site.viewers.give_back(first)
        site.viewers.give_back(first)
        assert said(site) == (0, 1)
        left = site.viewers.take_slot(lambda: True)
        assert site.viewers.take_slot(lambda: False) is not None  # instead of one who has left
        site.viewers.give_back(left)
        assert said(site) == (1, 1)


def test_evictions_are_counted() -> None:
    clock = Clock()
    registry = MemoryRegistry(ttl=10.0, clock=clock)
    with BackgroundMiddleware(
        app, when=marks.path("/x"), registry=registry, metrics="/_metrics", authorize=allowed
    ) as site:
        ended(site, start(InProcess(site), "/x"))
        clock.advance(10.0)
        registry.evict()
        assert scraped(site)["bgmiddleware_jobs_evicted_total{}"] == 1


def test_errors_of_a_registry_and_how_long_it_was_away_are_counted(tmp_path: Path) -> None:
    registry = SpoolRegistry(tmp_path / "jobs")
    clock = Clock()
    registry._store.trouble = Trouble(registry._count, clock)
    with BackgroundMiddleware(
        app, when=marks.path("/x"), registry=registry, metrics="/_metrics", authorize=allowed
    ) as site:
        client = InProcess(site)
        ended(site, start(client, "/x"))
        index = Path(registry._store._index.path)
        index.rename(tmp_path / "away")
        index.mkdir()
        assert client.request("POST", "/x").status == 503
        clock.advance(7.0)
        scraped(site)  # it asks the registry, too
        found = scraped(site)
        assert found["bgmiddleware_registry_up{}"] == 0
        assert found["bgmiddleware_registry_errors_total{}"] >= 2
        assert found["bgmiddleware_registry_away_seconds_total{}"] == 7
        index.rmdir()
        (tmp_path / "away").rename(index)
        clock.advance(4.0)
        assert scraped(site)["bgmiddleware_registry_up{}"] == 1
        clock.advance(100.0)
        found, again = scraped(site), scraped(site)
        assert found["bgmiddleware_registry_away_seconds_total{}"] == 11
        names = [f"bgmiddleware_registry_{name}_total{{}}" for name in ("errors", "away_seconds")]
        assert [found[name] for name in names] == [again[name] for name in names]


CONF = """
from prometheus_client import multiprocess


def child_exit(server, worker):
    multiprocess.mark_process_dead(worker.pid)
"""


@pytest.mark.everything
def test_each_worker_of_gunicorn_answers_with_the_sum_of_all() -> None:
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(open_directory())
        numbers = directory / "numbers"
        numbers.mkdir()
        (directory / "conf.py").write_text(CONF)
        settings = {
            "SITE_REGISTRY": f"spool:{directory}/jobs",
            "SITE_SETTINGS": '{"metrics": "/_metrics", "stream_slots": 1}',
            "PROMETHEUS_MULTIPROC_DIR": str(numbers),
        }
        options = ("-k", "gthread", "--threads", "4", "-c", str(directory / "conf.py"))
        server = stack.enter_context(running(gunicorn(directory, *options, workers=2, **settings)))
        by: Counter[str] = Counter()
        targets = []
        while len(by) < 2 or by.total() < 6:
            reply = server.request("POST", "/x/count?3")
            by[reply["Worker"]] += 1
            targets.append(f"/x/count{reply['Location']}")
        for target in targets:
            server.until(lambda reply: reply.json["state"] == "finished", "GET", target, accept="application/json")

        def scrape() -> tuple[str, dict[str, float]]:
            reply = server.request("GET", "/_metrics", X_User="admin")
            assert reply.status == 200, reply
            return reply["Worker"], samples(reply.text)

        said = server.request("POST", "/x/wait?gate")
        follow = {"accept": "text/plain"}
        with server.stream("GET", f"/x/wait{said['Location']}", **follow) as (_, headers, chunks):
            assert next(chunks)
            seen: set[str] = set()
            while len(seen) < 2:
                worker, found = scrape()
                seen.add(worker)
                ended_there = 'bgmiddleware_jobs_ended_total{"path": "/x/count", "state": "finished"}'
                assert found[ended_there] == len(targets)
                assert found["bgmiddleware_viewers_held{}"] == 1
                assert found['bgmiddleware_jobs{"state": "running"}'] == 1
            os.kill(int(dict(headers)["Worker"]), signal.SIGKILL)
        server.said("Booting worker with pid", 3)
        found = scrape()[1]
        assert found[ended_there] == len(targets)
        assert found["bgmiddleware_viewers_held{}"] == 0
        (directory / "gate").touch()


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
    assert len(asked) >= 13
    assert asked <= there
