"""What steps tell: how much longer a job takes, and in the end what took how long."""

import json
from dataclasses import replace
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, Job, JobState, MemoryRegistry, Progress, Step, Steps, StepState
from bgmiddleware._jobs import key_of, new_token
from bgmiddleware._serving.estimates import Estimate, Estimates
from bgmiddleware.testing.registries import Clock
from tests.kit.clients import InProcess

RUNNER = "the runner"


def steps(**begun: float) -> Steps:
    """Return steps that began after these seconds each."""
    return Steps(tuple(Step(title.rstrip("_"), begun=int(1000 * at)) for title, at in begun.items()))


def run(registry: MemoryRegistry, clock: Clock, seconds: float, told: Steps) -> None:
    key = registry.add(Job(key_of(new_token()), "GET /report")).key
    registry.claim(key, RUNNER)
    registry.renew(key, RUNNER, steps=told)
    clock.advance(seconds)
    registry.finish(key, RUNNER, JobState.FINISHED)


@pytest.mark.parametrize(
    ("told", "estimate"),
    [
        (None, Estimate(100.0, 200.0, 2)),
        (steps(read=0.0), Estimate(100.0, 200.0, 2)),
        (steps(read=0.0, write=50.0), Estimate(60.0, 70.0, 2)),  # as they took 10 and 20 seconds from there on
        (steps(read=0.0, write=50.0, check=80.0), Estimate(85.0, 85.0, 1)),  # as only one of them had it
        (steps(read=0.0, write=50.0, new=55.0), Estimate(60.0, 70.0, 2)),
        (steps(read=0.0, read_=30.0), Estimate(100.0, 200.0, 2)),  # a second time, as none of them
    ],
)
def test_a_job_takes_as_long_from_its_step_on_as_others_did(told: Steps | None, estimate: Estimate) -> None:
    clock = Clock()
    with MemoryRegistry(clock=clock) as registry:
        run(registry, clock, 100.0, steps(read=0.0, write=90.0))
        run(registry, clock, 200.0, steps(read=0.0, write=180.0, check=195.0))
        job = Job(key_of("one"), "GET /report", state=JobState.RUNNING, steps=told)
        found = Estimates().of(registry, job)
    assert found is not None
    assert found == tuple(pytest.approx(number) for number in estimate)


def test_events_tell_the_steps_again_when_one_began_or_ended() -> None:
    token = new_token()
    with MemoryRegistry() as registry, BackgroundMiddleware(lambda *_: [], registry=registry) as app:
        key = registry.add(Job(key_of(token), "GET /report")).key
        registry.claim(key, RUNNER)
        target = f"/report?_t={token}&_view=events"
        begun, told = Step("read"), []
        registry.renew(key, RUNNER, steps=Steps((begun,)))
        with InProcess(app).stream("GET", target) as (_, _, chunks):
            for step in (replace(begun, progress=Progress(1, 2)), replace(begun, state=StepState.DONE, ended=7), None):
                event = next(chunk for chunk in chunks if b"event: status" in chunk)
                told.append(json.loads(event.partition(b"data: ")[2]).get("steps"))
                if step is not None:
                    registry.renew(key, RUNNER, steps=Steps((step,)))
    assert [steps and steps[0]["state"] for steps in told] == ["running", None, "done"]


def test_the_receipt_says_what_share_of_the_time_each_step_took() -> None:
    clock = Clock()
    token = new_token()
    with MemoryRegistry(clock=clock) as registry, BackgroundMiddleware(lambda *_: [], registry=registry) as app:
        client = InProcess(app)

        def receipt() -> Any:
            return client.request("GET", f"/report?_t={token}&_view=status").json["receipt"]

        key = registry.add(Job(key_of(token), "GET /report")).key
        registry.claim(key, RUNNER)
        done = StepState.DONE
        told = (Step("read", None, done, 0, 7500), Step("row", 0, done, 0, 7000), Step("write", None, begun=7500))
        registry.renew(key, RUNNER, steps=Steps(told))
        clock.advance(10.0)
        assert receipt()["steps"] == []
        registry.finish(key, RUNNER, JobState.FINISHED)
        assert receipt()["steps"] == [{"title": "read", "share": 0.75}, {"title": "write", "share": 0.25}]
