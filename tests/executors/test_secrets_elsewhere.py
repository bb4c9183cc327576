"""What is redacted is redacted where the job runs too: in child processes, and in workers of RQ and Celery."""

from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import JobState
from tests.conftest import needs
from tests.kit.clients import InProcess, ended, start
from tests.kit.redis_server import RedisServer, redis_server, redis_server_of_module  # noqa: F401  # fixtures
from tests.kit.worker_site import SECRET, config_of, working_for

needs("rq")
needs("celery")

from redis import Redis  # noqa: E402

pytestmark = pytest.mark.everything

SAID = """\
printed [redacted]
in two pieces [redacted]
by number [redacted]
by a child [redacted]
logged [redacted]
▸ Reading [redacted]
"""


def stored(config: dict[str, Any], redis_url: str, directory: Path) -> bytes:
    """Return all that the registry has, as it is on disk or in the server."""
    if config["registry"].startswith("spool:"):
        return b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
    with Redis.from_url(redis_url) as client:
        client.config_set("rdbcompression", "no")
        return b"".join(client.dump(name) or b"" for name in client.keys("*"))


@pytest.mark.parametrize("executor", ["process", "rq", "celery"])
def test_no_secret_leaves_the_process_that_runs_the_job(
    executor: str,
    redis_server: RedisServer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", redis_server.url)
    config = config_of(executor, redis_server.url, tmp_path, redact=True)
    with working_for(config) as (site, workers):
        client = InProcess(site)
        raised, killed = start(client, "/secrets"), start(client, "/secrets-and-killed")
        job, dead = ended(site, raised), ended(site, killed)
        text, last = (client.request("GET", target, accept="text/plain").text for target in (raised, killed))
        shown = [
            client.request("GET", target, accept=kind).text
            for target in (raised, killed)
            for kind in ("text/html", "application/json", "application/x-ndjson")
        ]
        there = stored(config, redis_server.url, tmp_path)
        said = [worker.said() for worker in workers]
    assert (job.state, job.title, job.reason) == (JobState.FAILED, "title of [redacted]", "LookupError: no [redacted]")
    assert text.startswith(SAID)
    assert "LookupError: no [redacted]" in text.removeprefix(SAID)
    assert job.progress is not None
    assert job.progress.message == "at [redacted]"
    assert job.steps is not None
    (step,) = job.steps.listed
    assert (step.title, step.progress and step.progress.message) == ("Reading [redacted]", "in [redacted]")
    assert dead.state is JobState.LOST
    assert last.startswith(f"{SAID}the last words: [redacted]\n")
    for everything in (*shown, *said, caplog.text, repr(job), repr(dead)):
        assert SECRET not in everything
    assert SECRET.encode() not in there
    assert b"[redacted]" in there
    if workers:
        assert f"job {job.key[:8]} failed: title of [redacted]: LookupError: no [redacted]" in "".join(said)
