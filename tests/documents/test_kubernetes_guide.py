"""docs/how-to/kubernetes.rst: its commands, as real processes, do at SIGTERM what it says."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin

import pytest

from bgmiddleware import JobState
from bgmiddleware.registries import open_registry
from bgmiddleware.registries.base import END
from tests.conftest import needs
from tests.executors.engine_worker import SECONDS
from tests.kit.clients import OverHTTP
from tests.kit.documents import PAGES, ROOT, blocks
from tests.kit.redis_server import RedisServer, redis_server, redis_server_of_module  # noqa: F401  # fixtures

pytestmark = pytest.mark.everything

needs("docutils")
needs("rq")

GUIDE = PAGES["kubernetes.rst"]
SHOP = """
import os, time
def app(environ, start_response):
    print("begun")
    while not os.path.exists("gate"):
        time.sleep(0.05)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"a good quarter\\n"]
"""


@contextlib.contextmanager
def pod(command: list[str], ready: str, directory: Path, url: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run a container's command until it is ready; yield its process and the line that said so."""
    assert command[0] == "python"
    process = subprocess.Popen(
        [sys.executable, "-u", *(word.replace("8080", "0").replace("0.0.0.0", "127.0.0.1") for word in command[1:])],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "REDIS_URL": url},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        said = ""
        while not re.search(ready, said):
            said = process.stdout.readline()
            assert said, "it ended"
        yield process, said
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)


def test_pods_that_are_replaced_disturb_no_job(tmp_path: Path, redis_server: RedisServer) -> None:  # noqa: F811
    (web_module,) = blocks(GUIDE, "python")
    (manifest,) = blocks(GUIDE, "yaml")
    web, worker = map(json.loads, re.findall(r"command: (\[\"python.*\])", manifest.text))
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "web.py").write_text(web_module.text)
    url, serving = redis_server.url, r"Serving on http://127\.0\.0\.1:(\d+)"
    with (
        open_registry(url) as registry,
        pod(worker, "Listening on", tmp_path, url) as (runs, _),
        pod(web, serving, tmp_path, url) as (first, said),
        pod(web, serving, tmp_path, url) as (_, also_said),
    ):
        one, other = (OverHTTP(int(re.findall(serving, line)[0])) for line in (said, also_said))
        told = json.loads(one.request("GET", "/_health").body)
        assert (told["status"], told["registry"], told["workers"]) == ("ok", True, True)
        place = urljoin("/reports/1", dict(one.request("GET", "/reports/1").headers)["Location"])
        (job,) = registry.jobs()
        assert registry.wait(job.key, 0, SECONDS).output_end
        first.send_signal(signal.SIGTERM)
        assert first.wait(SECONDS) == 0
        runs.send_signal(signal.SIGTERM)
        assert json.loads(other.request("GET", place, Accept="application/json").body)["state"] == "running"
        (tmp_path / "gate").touch()
        assert registry.wait(job.key, END, SECONDS).state is JobState.FINISHED
        assert runs.wait(SECONDS) == 0
        assert other.request("GET", f"{place}&_view=result").body == b"a good quarter\n"
