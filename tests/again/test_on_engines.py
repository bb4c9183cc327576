"""Jobs that workers of RQ and Celery run ask too, and are run again."""

from pathlib import Path

import pytest

from bgmiddleware import JobState
from tests.again.test_asking import FORM, JSON, answered, asked
from tests.conftest import needs
from tests.kit.clients import InProcess, ended, start
from tests.kit.looking import eventually
from tests.kit.redis_server import RedisServer, redis_server, redis_server_of_module  # noqa: F401  # fixtures
from tests.kit.worker_site import config_of, working_for

needs("rq")
needs("celery")

pytestmark = pytest.mark.everything


@pytest.mark.parametrize("executor", ["rq", "celery"])
def test_a_job_of_a_worker_asks_and_is_run_again(
    executor: str,
    redis_server: RedisServer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", redis_server.url)
    settings = {"answers": True, "keep_requests": True}
    with working_for(config_of(executor, redis_server.url, tmp_path, settings=settings)) as (site, _):
        client = InProcess(site)
        target = start(client, "/asks")
        assert asked(client, target)["question"] == "Delete 14 rows?"
        assert answered(client, target, "perhaps", **JSON).status == 400
        assert answered(client, target, "yes", **JSON).status == 202
        _until_asked(client, target, "and why?")
        assert answered(client, target, "too+many", **JSON).status == 202
        first = ended(site, target)
        reply = client.request("POST", target, b"_action=rerun", **FORM, **JSON)
        assert reply.status == 202
        state = client.request("GET", target, **JSON).json
        assert (reply.json["rerun_of"], state["rerun_as"]) == (state["links"]["self"], reply.json["links"]["self"])
        second = f"/asks{reply.json['links']['self']}"
        assert asked(client, second)["question"] == "Delete 14 rows?"
        assert answered(client, second, "no", **JSON).status == 202
        _until_asked(client, second, "and why?")
        assert answered(client, second, "enough", **JSON).status == 202
        again = ended(site, second)
        said = [client.request("GET", f"{each}&_view=log").text for each in (target, second)]
    assert (first.state, again.state) == (JobState.FINISHED, JobState.FINISHED)
    assert ["chosen: yes" in said[0], "typed: too many" in said[0]] == [True, True], said
    assert ["chosen: no" in said[1], "typed: enough" in said[1]] == [True, True], said


def _until_asked(client: InProcess, target: str, text: str) -> None:
    while asked(client, target)["question"] != text:
        pass


@pytest.mark.parametrize("executor", ["rq", "celery"])
def test_what_failed_in_a_worker_is_tried_again_in_one(
    executor: str,
    redis_server: RedisServer,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", redis_server.url)
    settings = {"retries_per_mark": {"/*": 2}}
    with working_for(config_of(executor, redis_server.url, tmp_path, settings=settings)) as (site, _):
        client = InProcess(site)
        target = start(client, "/raises", method="GET")
        first = ended(site, target)
        assert (first.state, first.awaits_try) == (JobState.FAILED, True)
        eventually(lambda: site.registry.get(first.key).rerun_as)
        second = site.registry.wait(site.registry.get(first.key).rerun_as.partition(":")[0], 2**62, 60.0)
        place = client.request("GET", target, **JSON)["Location"]
    assert (second.state, second.tries and second.tries.number) == (JobState.FAILED, 2)
    assert place.startswith("?_t=")
