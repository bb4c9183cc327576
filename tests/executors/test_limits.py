"""How long a job may run, and how many of an owner or a path at a time; and what its state says of the queue."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, ConfigurationError, Executor, JobState, ThreadExecutor, owners
from bgmiddleware._jobs import key_of
from bgmiddleware.registries.base import END
from tests.kit.apps import WAIT, Stage
from tests.kit.clients import ended, start
from tests.kit.readers import BOTH, Client, Opener, opened


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture(params=BOTH)
def opens(request: pytest.FixtureRequest) -> Iterator[Opener]:
    yield from opened(request)


@pytest.fixture
def open_site(opens: Opener, stage: Stage) -> Iterator[Callable[..., tuple[BackgroundMiddleware, Client]]]:
    yield functools.partial(opens, stage)
    stage.go(1000)


def state(client: Client, target: str, **headers: str) -> dict[str, Any]:
    document = client.request("GET", f"{target}&_view=status", **headers).json
    assert isinstance(document, dict)
    return document


def test_only_so_many_jobs_of_a_path_run_at_a_time_and_the_others_say_that_they_wait(open_site, stage):
    site, client = open_site(limit_per_mark={"/slow/reindex": 1})
    first = start(client, "/slow/reindex?1")
    stage.entered()
    second, third = start(client, "/slow/reindex?1"), start(client, "/slow/reindex?1")
    other = start(client, "/slow/other?1")
    stage.entered()
    assert (state(client, other)["state"], state(client, other)["queue"]) == ("running", None)
    assert [state(client, target)["queue"] for target in (second, third)] == [{"position": 1}, {"position": 2}]
    stage.go(4)
    for target in (first, second, third, other):
        assert ended(site, target).state is JobState.FINISHED
    assert state(client, second)["receipt"]["queue_wait"] > 0


def test_those_of_a_higher_priority_run_first_and_the_first_glob_that_fits_counts(open_site, stage):
    priorities = {"/slow/low/but/high": "high", "/slow/low/*": "low", "/slow/high": "high"}
    site, client = open_site(priority_per_mark=priorities, executor=ThreadExecutor(max_workers=1, drain=0.0))
    running = start(client, "/slow?1")
    stage.entered()
    waiting = [start(client, f"/slow{path}?0") for path in ("/low/1", "/", "/low/but/high", "/high", "/low/2")]
    said = [(state(client, target)["priority"], state(client, target)["queue"]["position"]) for target in waiting]
    assert said == [("low", 4), ("normal", 3), ("high", 1), ("high", 2), ("low", 5)]
    stage.go()
    began = [ended(site, waiting[number]).started_at for number in (2, 3, 1, 0, 4)]
    assert began == sorted(began)
    assert ended(site, running).state is JobState.FINISHED


def test_of_one_whose_group_is_full_the_priority_is_kept(open_site, stage):
    executor = ThreadExecutor(max_workers=2, drain=0.0)
    site, client = open_site(priority_per_mark={"/slow/a": "high"}, limit_per_mark={"/slow/a": 1}, executor=executor)
    first, other = start(client, "/slow/a?1"), start(client, "/slow?2")
    stage.entered()
    stage.entered()
    later, waiting = start(client, "/slow/b?0"), start(client, "/slow/a?0")
    assert [state(client, target)["queue"] for target in (waiting, later)] == [{"position": 1}, {"position": 2}]
    stage.go(3)
    began = [ended(site, target).started_at for target in (first, waiting)]
    assert began == sorted(began)
    for target in (other, later):
        assert ended(site, target).state is JobState.FINISHED


def test_only_so_many_jobs_of_an_owner_run_at_a_time(open_site, stage):
    site, client = open_site(limit_per_owner=1, owner=owners.header("X-User"))
    first = start(client, "/slow?1", x_user="ann")
    stage.entered()
    second = start(client, "/slow?1", x_user="ann")
    other = start(client, "/slow?1", x_user="bob")
    stage.entered()
    assert state(client, other, x_user="bob")["state"] == "running"
    assert state(client, second, x_user="ann")["state"] == "pending"
    stage.go(3)
    for target in (first, second, other):
        assert ended(site, target).state is JobState.FINISHED


@pytest.mark.parametrize("by", ["owner", "mark"])
def test_those_that_wait_for_their_own_limit_take_no_place_of_others(open_site, stage, by):
    limits = {"limit_per_owner": 2} if by == "owner" else {"limit_per_mark": {"/slow/ada": 2}}
    executor = ThreadExecutor(max_workers=3, max_pending=4, drain=0.0)
    site, client = open_site(owner=owners.header("X-User"), executor=executor, **limits)
    hers = [start(client, "/slow/ada?1", x_user="ada") for _ in range(2 + 4)]
    for _ in range(2):
        stage.entered()
    refused = client.request("POST", "/slow/ada?1", x_user="ada")
    assert (refused.status, refused["Retry-After"]) == (503, "5")
    assert refused.text == f"Too busy: of one {by} 2 may run at a time, and 4 are waiting.\n"
    his = [start(client, "/slow/bob?1", x_user=f"bob {number}") for number in range(1 + 4)]
    stage.entered()
    assert state(client, his[0], x_user="bob 0")["state"] == "running"
    refused = client.request("POST", "/slow/bob?1", x_user="bob")
    assert refused.text == "Too busy: 3 jobs are running and 4 are waiting.\n"
    stage.go(len(hers) + len(his))
    for target in (*hers, *his):
        assert ended(site, target).state is JobState.FINISHED
    again = [start(client, "/slow/ada?1", x_user="ada") for _ in range(2 + 4)]
    stage.go(len(again))
    for target in again:
        assert ended(site, target).state is JobState.FINISHED


def test_a_job_of_two_groups_waits_for_both(open_site, stage):
    site, client = open_site(
        owner=owners.header("X-User"),
        limit_per_owner=1,
        limit_per_mark={"/slow/x": 1},
        executor=ThreadExecutor(drain=0.0),
    )
    ada = start(client, "/slow/x?1", x_user="ada")
    stage.entered()
    bob = start(client, "/slow/x?1", x_user="bob")
    also_ada = [start(client, f"/slow/{path}?1", x_user="ada") for path in ("x", "y")]
    also_bob = start(client, "/slow/y?1", x_user="bob")
    stage.entered()
    assert state(client, also_bob, x_user="bob")["state"] == "running", "of bob the first waits for the other group"
    stage.go(5)
    for target in (ada, bob, *also_ada, also_bob):
        assert ended(site, target).state is JobState.FINISHED
    assert not site.executor._held
    assert not site.executor._entered


@pytest.mark.parametrize("number", [0, 1])
def test_one_that_waits_for_its_own_limit_can_be_cancelled_and_the_next_takes_its_place(open_site, stage, number):
    site, client = open_site(
        owner=owners.header("X-User"), limit_per_owner=1, executor=ThreadExecutor(max_pending=2, drain=0.0)
    )
    first = start(client, "/slow?1", x_user="ada")
    stage.entered()
    waiting = [start(client, "/slow?1", x_user="ada") for _ in range(2)]
    assert client.request("DELETE", waiting[number], x_user="ada").json["state"] == "cancelled"
    waiting[number] = start(client, "/slow?1", x_user="ada")
    stage.go(3)
    for target in (first, *waiting):
        assert ended(site, target).state is JobState.FINISHED


def test_those_that_wait_for_their_own_limit_are_lost_when_the_server_shuts_down(open_site, stage):
    site, client = open_site(owner=owners.header("X-User"), limit_per_owner=1, executor=ThreadExecutor(drain=0.0))
    start(client, "/slow?1", x_user="ada")
    stage.entered()
    waiting = [start(client, "/slow?1", x_user="ada") for _ in range(3)]
    site.executor.shutdown(0.0)
    for target in waiting:
        job = ended(site, target)
        assert (job.state, job.reason) == (JobState.LOST, "server shut down")


def test_where_nothing_may_wait_nothing_waits_for_its_own_limit_either(open_site, stage):
    _, client = open_site(
        owner=owners.header("X-User"), limit_per_owner=1, executor=ThreadExecutor(max_pending=0, drain=0.0)
    )
    start(client, "/slow?1", x_user="ada")
    stage.entered()
    assert client.request("POST", "/slow?1", x_user="ada").status == 503
    assert client.request("POST", "/slow?1", x_user="bob").status == 303


def test_jobs_of_nobody_in_particular_are_not_limited_by_owner(open_site, stage):
    site, client = open_site(limit_per_owner=1, owner=owners.header("X-User"))
    targets = [start(client, "/slow?1") for _ in range(2)]
    for _ in targets:
        stage.entered()
    stage.go(2)
    for target in targets:
        ended(site, target)


def test_a_deadline_ends_a_job_that_prints_on(open_site, stage):
    site, client = open_site(deadline=0.05)
    target = start(client, "/slow?1000")
    job = site.registry.get(key_of(target.rpartition("=")[2]))
    while not job.state.ended:
        stage.go()
        job = site.registry.wait(job.key, END, 0.005)
    assert state(client, target)["reason"] == "it ran longer than its deadline of 0.05 s"
    reply = client.request("GET", f"{target}&_view=result")
    assert (reply.status, job.state) == (410, JobState.CANCELLED)


def test_a_job_knows_the_version_that_took_it_and_the_one_that_ran_it(open_site, stage):
    site, client = open_site(version="2026.11")
    target = start(client, "/slow?0")
    job = ended(site, target, WAIT)
    assert (job.version, state(client, target)["receipt"]["version"]) == ("2026.11", "2026.11")


def test_a_stored_job_runs_from_what_the_registry_has_of_it(open_site, stage):
    site, client = open_site(executor=(kept := KeptRuns()))
    target = start(client, "/slow?1", body=b"abc")
    (key,) = kept.keys
    stage.go()
    assert not site.stored_run(key)()
    assert ended(site, target).state is JobState.FINISHED
    assert client.request("GET", f"{target}&_view=result").body == b"you sent: abc"
    assert not site.stored_run(key)(), "it ran already"
    assert len(stage.calls) == 1


class KeptRuns(Executor):
    """An executor that only notes which jobs it was given."""

    in_process = True

    def __init__(self) -> None:
        self.keys: list[str] = []

    def submit(self, run: Any) -> None:
        self.keys.append(run.key)

    def stop(self, key: str) -> None:
        """Nothing runs."""

    def shutdown(self, drain: float | None = None) -> None:
        """Nothing runs."""


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"deadline": 0.0}, "deadline"),
        ({"deadline": -1.0}, "deadline"),
        ({"deadline": float("nan")}, "deadline"),
        ({"limit_per_owner": 0}, "limit_per_owner"),
        ({"limit_per_mark": {"/a": 0}}, "limit_per_mark"),
        ({"priority_per_mark": {"/a": "urgent"}}, "priority_per_mark"),
        ({"priority_per_mark": {"/a": "High"}}, "priority_per_mark"),
        ({"secret": "15 characters.."}, "secret"),
    ],
)
def test_a_bad_limit_is_refused_by_name(options, name, stage):
    with pytest.raises(ConfigurationError, match=f"^{name} = ") as refused:
        BackgroundMiddleware(stage, **options)
    assert "15 characters.." not in str(refused.value)


def test_the_least_that_each_limit_may_be_is_accepted(stage):
    BackgroundMiddleware(stage, deadline=0.001, limit_per_owner=1, limit_per_mark={"/a": 1}, secret="16 characters...")
