"""What failed is tried again: each try is a job of its own, and whoever has the token of one is led to the newest."""

# ruff: noqa: F401  # fixtures are imported by their names

import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import (
    BackgroundMiddleware,
    ConfigurationError,
    JobState,
    MemoryRegistry,
    ThreadExecutor,
    background,
    marks,
    owners,
)
from bgmiddleware import _jobs as jobs
from bgmiddleware._jobs import Job
from bgmiddleware._serving import cancel
from bgmiddleware._starting import again, errands, retrying
from bgmiddleware.client import JobClient
from bgmiddleware.errors import QueueFull
from bgmiddleware.testing.clock import Clock
from tests.again.test_again import FORM, HTML, JSON
from tests.kit.clients import OverHTTP, Reply, ended, start
from tests.kit.looking import eventually
from tests.kit.readers import UNKNOWN, token_of
from tests.kit.redis_server import redis_server, redis_server_of_module
from tests.kit.stores import STORES, Stores, opened_stores

BODY = b"x" * 100_000  # more than is added with a job
ALL = {"/*": 3}


class Told:
    """An app that says what it was asked, and fails until it has been asked so often."""

    def __init__(self, fails: int = 2, status: str = "503 Later") -> None:
        self.asked: list[dict[str, Any]] = []
        self._fails = fails
        self._status = status

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        self.asked.append({**environ, "body": body})
        print("run", len(self.asked))
        status = self._status if len(self.asked) <= self._fails else "200 OK"
        start_response(status, [("Content-Type", "text/plain")])
        return [f"run {len(self.asked)}".encode()]


@pytest.fixture(params=STORES)
def opens(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    yield from opened_stores(request, tmp_path)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets for how many seconds each next try waits."""
    return lambda seconds: monkeypatch.setattr(jobs, "_PAUSES", (seconds,))


@pytest.fixture
def at_once(pauses: Callable[[float], None]) -> None:
    pauses(0.0)


@pytest.fixture
def later(pauses: Callable[[float], None]) -> None:
    pauses(1000.0)


def followed(client: OverHTTP, target: str, **headers: str) -> tuple[str, Reply]:
    """Return what a client gets that follows redirects, and from where."""
    while True:
        reply = client.request("GET", target, **headers)
        if reply.status != 303:
            return target, reply
        target = target.partition("?")[0] + reply["Location"]


def state_of(client: OverHTTP, target: str, **headers: str) -> Any:
    return followed(client, f"{target}&_view=status", **headers)[1].json


def over(client: OverHTTP, target: str, **headers: str) -> Any:
    """Wait until no try follows any more; return the state of the newest."""
    states: list[Any] = []

    def is_over() -> bool:
        states[:] = [state_of(client, target, **headers)]
        return bool(states[0]["retry"]["is_over"])

    eventually(is_over)
    return states[0]


def awaited(site: BackgroundMiddleware, target: str) -> Job:
    """Wait until the job has failed, and its next try is awaited; return it."""
    job = ended(site, target)
    assert job.awaits_try
    return job


def test_what_failed_is_tried_again_and_its_token_leads_to_the_newest(opens: Stores, at_once: None) -> None:
    app = Told()
    _site, client = opens(app, retries_per_mark=ALL)
    bore = {"cookie": "a=b", "authorization": "Bearer ada", "idempotency_key": "once", "content_type": "text/csv"}
    first = start(client, "/report?year=2026", method="PUT", body=BODY, **bore)
    state = over(client, first)
    assert (state["state"], state["retry"]["try"], state["retry"]["of"]) == ("finished", 3, 4)
    assert (state["retry"]["next_at"], state["retry"]["next_in"], state["rerun_as"]) == (None, None, None)
    for asked in app.asked:
        assert (asked["REQUEST_METHOD"], asked["QUERY_STRING"], asked["body"]) == ("PUT", "year=2026", BODY)
        assert {
            name: asked[key]
            for name, key in {
                "cookie": "HTTP_COOKIE",
                "authorization": "HTTP_AUTHORIZATION",
                "content_type": "CONTENT_TYPE",
                "idempotency_key": "HTTP_IDEMPOTENCY_KEY",
            }.items()
        } == bore
    newest, result = followed(client, f"{first}&_view=result&_wait=1")
    assert (result.status, result.text) == (200, "run 3")
    assert token_of(newest) != token_of(first)
    assert newest.endswith("&_view=result&_wait=1")
    for headers in (HTML, JSON, {}):
        assert token_of(followed(client, first, **headers)[0]) == state["token"]
    assert "run 3" in followed(client, f"{first}&_view=log")[1].text
    assert "run 3" in followed(client, f"{first}&_view=events")[1].text
    again = client.request("PUT", "/report?year=2026", BODY, **bore)  # it is the same request
    assert token_of("/report" + again["Location"]) == token_of(newest)
    for waits in ({"prefer": "wait=20"}, {"accept": "image/png"}):
        reply = client.request("PUT", "/report?year=2026", BODY, **bore, **waits)
        assert (reply.status, reply.text) == (200, "run 3")
    assert len(app.asked) == 3


def test_the_earlier_tries_stay(opens: Stores, at_once: None) -> None:
    _site, client = opens(Told(fails=1), retries_per_mark=ALL)
    first = start(client, "/report?a=1", method="GET")
    state = over(client, first)
    newest, page = followed(client, first, **HTML)
    earlier = f"/report{state['rerun_of']}"
    assert earlier == f"{first}&_follow=no"
    assert f'<a href="{state["rerun_of"].replace("&", "&amp;")}">Earlier run</a>' in page.text
    assert client.request("GET", f"{earlier}&_view=result").status == 503
    page = client.request("GET", earlier, **HTML)
    assert page.status == 200
    assert "Later run" in page.text
    state = client.request("GET", f"{earlier}&_view=status").json
    assert state["state"] == "failed"
    assert "/report" + state["rerun_as"] == newest
    assert all("_follow=no" in link for link in state["links"].values() if link)
    assert "run 1\n" in client.request("GET", f"{first}&_view=log&_offset=0").text  # who reads on in its bytes
    assert "un 1\n" in client.request("GET", f"{first}&_view=log", range="bytes=1-").text
    assert followed(client, f"{first}&_view=result", range="bytes=1-")[1].text == "un 2"  # the only one that was there
    assert "[try 1 of 4 failed: the app answered 503 Later]" in client.request("GET", f"{earlier}&_view=log").text


def test_until_the_next_try_begins_all_views_say_when(opens: Stores, later: None) -> None:
    site, client = opens(Told(), retries_per_mark=ALL)
    first = start(client, "/report", method="GET")
    job = awaited(site, first)
    reply = client.request("GET", f"{first}&_view=status")
    retry = reply.json["retry"]
    assert (retry["try"], retry["of"], retry["is_over"]) == (1, 4, False)
    assert 750 <= retry["next_at"] - job.ended_at <= 1250
    assert 0 < retry["next_in"] <= 1250
    assert "Job-Poll" in reply
    assert reply.json["links"]["rerun"] is None
    page = client.request("GET", first, **HTML).text.partition("<script")[0]
    assert "Try 2 of 4 begins in " in page
    assert 'http-equiv="refresh"' in page
    assert '<form id="job-cancel" method="post">' in page
    assert "job-rerun" not in page
    reply = client.request("GET", f"{first}&_view=result")
    assert (reply.status, "Retry-After" in reply) == (202, True)
    assert client.request("GET", first, accept="image/png").status == 503
    fragment = client.request("GET", first, hx_request="true", **HTML).text
    assert "Try 2 of 4 begins in " in fragment
    assert "hx-get" in fragment
    assert client.request("GET", f"{first}&_follow=no&_view=result").status == 503
    assert client.request("GET", f"{first}&_follow=maybe&_view=result").status == 400


def test_a_client_that_waits_for_the_response_is_not_given_that_of_a_try_that_failed(
    opens: Stores, later: None
) -> None:
    for options in ({}, {"promote_after": 60.0}):
        _site, client = opens(Told(fails=99), retries_per_mark=ALL, registry=opens.registry(), **options)
        for headers in (JSON, {"prefer": "wait=20", **JSON}, {"prefer": "respond-async, wait=20"}):
            reply = client.request("GET", "/", **headers)
            assert reply.status == 202
            assert reply.json["retry"]["is_over"] is False
            assert "wait" not in dict(reply.headers).get("Preference-Applied", "")


def test_who_waits_for_the_result_is_led_to_the_next_try_when_that_begins(
    opens: Stores, pauses: Callable[[float], None]
) -> None:
    pauses(1000.0)
    site, client = opens(Told(fails=1), retries_per_mark=ALL)
    first = start(client, "/", method="GET")
    job = awaited(site, first)
    assert client.request("GET", f"{first}&_view=result&_wait=0.3").status == 202
    begun = threading.Timer(0.5, again.try_again, (site._starter, site.app, job))
    begun.start()
    reply = client.request("GET", f"{first}&_view=result&_wait=30")
    begun.join()
    assert (reply.status, "_wait=30" in reply["Location"]) == (303, True)
    assert followed(client, f"{first}&_view=result&_wait=30")[1].text == "run 2"


def test_a_cancel_while_a_try_is_awaited_is_the_end(opens: Stores, later: None) -> None:
    app = Told()
    site, client = opens(app, retries_per_mark=ALL)
    first = start(client, "/", method="GET")
    key = awaited(site, first).key
    assert site.registry.get(key).request
    reply = client.request("DELETE", first, **JSON)
    assert (reply.status, reply.json["state"], reply.json["retry"]["is_over"]) == (200, "failed", True)
    assert reply.json["retry"]["next_at"] is None
    assert client.request("GET", f"{first}&_view=result").status == 503
    assert site.registry.get(key).request == {}
    again.try_again(site._starter, app, site.registry.get(key))  # a message that was on its way
    assert len(site.registry.jobs()) == len(app.asked) == 1


def test_a_cancel_by_the_first_token_stops_the_newest_try(opens: Stores, at_once: None) -> None:
    runs, go = threading.Event(), threading.Event()

    def app(environ: Any, start_response: Any) -> list[bytes]:
        if not go.is_set():
            go.set()
            raise LookupError("the first time")
        runs.set()
        while True:
            print("runs")
            go.wait(0.01)

    site, client = opens(app, retries_per_mark=ALL)
    first = start(client, "/", method="GET")
    assert runs.wait(60)
    eventually(lambda: site.registry.jobs()[1].rerun_as)
    assert client.request("DELETE", first, **JSON).status == 202
    state = over(client, first)
    assert (state["state"], state["retry"]["try"]) == ("cancelled", 2)
    assert len(site.registry.jobs()) == 2


@pytest.mark.parametrize("ends", ["raises", "answers"])
def test_a_job_that_fails_since_it_was_asked_to_stop_is_not_tried_again(at_once: None, ends: str) -> None:
    runs = threading.Event()

    def app(environ: Any, start_response: Any) -> list[bytes]:
        runs.set()
        try:
            while True:
                print("runs")
        except BaseException:
            if ends == "raises":
                raise LookupError("it cannot clean up") from None
            start_response("503 Later", [("Content-Type", "text/plain")])
            return [b"stopped"]

    with BackgroundMiddleware(app, when=marks.always, retries_per_mark=ALL) as site:
        client = _client(site)
        first = start(client, "/", method="GET")
        assert runs.wait(60)
        client.request("DELETE", first, **JSON)
        job = ended(site, first)
        assert (job.state, job.is_tried_again, job.request) == (JobState.FAILED, False, {})
        assert state_of(client, first)["retry"]["is_over"]


def test_who_cancels_a_job_that_fails_just_then_stops_its_tries(later: None, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()

    def app(environ: Any, start_response: Any) -> list[bytes]:
        go.wait(60)
        raise LookupError("the first time")

    with BackgroundMiddleware(app, when=marks.always, retries_per_mark=ALL) as site:
        client = _client(site)
        first = start(client, "/", method="GET")
        stops = cancel.stop

        def failed_first(site_: Any, key: str) -> None:
            go.set()
            ended(site, first)
            stops(site_, key)

        monkeypatch.setattr(cancel, "stop", failed_first)
        reply = client.request("DELETE", first, **JSON)
        assert (reply.status, reply.json["state"], reply.json["retry"]["is_over"]) == (202, "failed", True)


def test_who_cancels_just_when_the_next_try_begins_stops_it(
    opens: Stores, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, client = opens(Told(), retries_per_mark=ALL, executor=ThreadExecutor(max_workers=1, drain=0.0))
    first = start(client, "/", method="GET")
    job = awaited(site, first)
    begins = again._start_try

    def cancelled_first(*arguments: Any) -> None:
        assert client.request("DELETE", first, **JSON).json["retry"]["is_over"]
        begins(*arguments)

    monkeypatch.setattr(again, "_start_try", cancelled_first)
    stopped: list[str] = []
    monkeypatch.setattr(again, "stop", lambda site, key: stopped.append(key))
    site._try_again(job)
    assert stopped == [job.tries.coming[0].key if job.tries else ""]


@pytest.mark.parametrize(
    ("method", "path", "status", "tries"),
    [
        ("GET", "/report", "503 Later", 2),
        ("PUT", "/report", "500 Oh", 2),
        ("DELETE", "/report", "503 Later", 2),
        ("POST", "/report", "503 Later", 1),
        ("PATCH", "/report", "503 Later", 1),
        ("POST", "/import", "503 Later", 2),
        ("GET", "/other", "503 Later", 1),
        ("GET", "/report", "404 Not Found", 1),
        ("PUT", "/report", "308 Permanent Redirect", 1),
    ],
)
def test_only_what_is_idempotent_and_may_succeed_later_is_tried_again(
    at_once: None, method: str, path: str, status: str, tries: int
) -> None:
    app = Told(fails=9, status=status)
    rules = {"/report": 1, "POST /import": 1}
    with BackgroundMiddleware(app, when=marks.always, retries_per_mark=rules, promote_after=0.0) as site:
        reply = _client(site).request(method, path)
        if reply.status in (202, 303) and "_t=" in reply["Location"]:
            eventually(lambda: len(site.registry.jobs()) == tries and site.registry.jobs()[0].state.ended)
            assert not site.registry.jobs()[0].is_tried_again
    assert len(app.asked) == tries


def _client(site: BackgroundMiddleware) -> Any:
    from tests.kit.clients import InProcess

    return InProcess(site)


def test_a_function_and_what_is_over_its_deadline_are_not_tried_again(at_once: None) -> None:
    @background
    def fail() -> str:
        raise LookupError("in the function")

    def app(environ: Any, start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/function":
            fail()
        while True:
            print("on and on")

    when = marks.path("/endless")
    with BackgroundMiddleware(app, when=when, retries_per_mark=ALL, deadline=0.1) as site:
        failed = ended(site, start(_client(site), "/function", method="GET"))
        cancelled = ended(site, start(_client(site), "/endless", method="GET"))
        assert (failed.state, failed.tries) == (JobState.FAILED, None)
        assert (cancelled.state, cancelled.is_tried_again) == (JobState.CANCELLED, False)


def test_each_try_waits_longer_and_all_end_within_the_ttl() -> None:
    coming = tuple(jobs.NextTry("80000000:", "", {}) for _ in range(10))
    waits = [jobs.Tries(number, 11, coming).pause(3600.0) for number in range(1, 8)]
    assert waits[:4] == pytest.approx([5, 30, 180, 600], rel=1e-6)
    assert waits[4:] == [waits[3]] * 3
    few, many = ([jobs.Tries(1, 2, (jobs.NextTry(f"{key}:", "", {}),)).pause(3600.0)] for key in ("0" * 8, "f" * 8))
    assert few + many == [3.75, 6.25]
    assert jobs.Tries(4, 11, coming).pause(60.0) == pytest.approx(30.0)


def test_the_first_token_leads_to_the_newest_try_for_longer_than_its_ttl(later: None) -> None:
    clock = Clock()
    app = Told(fails=9)
    registry = MemoryRegistry(clock=clock, ttl=60.0)
    with BackgroundMiddleware(app, when=marks.always, retries_per_mark=ALL, registry=registry) as site:
        first = start(_client(site), "/", method="PUT", idempotency_key="once")
        awaited(site, first)
        for number in (2, 3, 4):
            clock.advance(45)  # each waits for half of the TTL, and 12 % more or less
            eventually(lambda: len(app.asked) == number and registry.jobs()[0].state.ended)  # noqa: B023
            eventually(lambda: registry.jobs()[1].rerun_as)
            assert state_of(_client(site), first)["retry"]["try"] == number
        again = _client(site).request("PUT", "/", idempotency_key="once")
        assert token_of("/" + again["Location"]) == state_of(_client(site), first)["token"]
        assert len(app.asked) == 4


def test_of_many_who_start_the_next_try_at_once_one_does(opens: Stores, later: None) -> None:
    app = Told()
    registry = opens.registry()
    sites = [opens(app, retries_per_mark=ALL, registry=registry)[0] for _ in range(2)]
    client = opens(app, retries_per_mark=ALL, registry=registry)[1]
    first = start(client, "/", method="GET")
    job = awaited(sites[0], first)
    threads = [threading.Thread(target=site._try_again, args=(job,)) for site in sites * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: registry.jobs()[0].state.ended)
    assert len(registry.jobs()) == len(app.asked) == 2
    assert registry.jobs()[0].awaits_try
    second = state_of(client, first)
    assert (second["retry"]["try"], second["retry"]["is_over"]) == (2, False)


def test_who_was_killed_before_he_said_that_the_next_try_began_is_completed_by_another(
    opens: Stores, later: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Told()
    site, client = opens(app, retries_per_mark=ALL)
    first = start(client, "/", method="GET")
    job = awaited(site, first)
    site._try_again(job)
    eventually(lambda: len(app.asked) == 2 and site.registry.jobs()[0].state.ended)
    before = site.registry.outbox("retries").size()
    site.registry.amend(job.key, lambda now: now.changed(rerun_as="", request=job.request))
    assert state_of(client, first)["retry"]["try"] == 2  # it is there, whoever says so
    site._try_again(job)
    assert site.registry.get(job.key).rerun_as
    assert (len(app.asked), site.registry.outbox("retries").size()) == (2, before)


def test_a_try_waits_for_room_and_is_given_up_with_its_request(
    pauses: Callable[[float], None], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    caplog.set_level("INFO", "bgmiddleware")
    with BackgroundMiddleware(
        Told(), when=marks.always, retries_per_mark=ALL, registry=MemoryRegistry(clock=clock)
    ) as site:
        first = start(_client(site), "/", method="GET")
        job = awaited(site, first)
        full: list[Job] = []

        def submit(run: Any) -> None:
            full.append(run)
            raise QueueFull("full")

        monkeypatch.setattr(site.executor, "submit", submit)
        clock.advance(7)
        eventually(lambda: "is tried again later, when there is room: full" in caplog.text)
        assert site.registry.jobs() == [site.registry.get(job.key)]
        assert site.registry.get(job.key).awaits_try
        asked = len(full)
        monkeypatch.undo()
        clock.advance(3600)
        eventually(lambda: f"job {job.key[:8]} is not tried again: it is gone" in caplog.text)
        assert asked == 1
        assert site.registry.outbox("retries").size() == 0


def test_where_too_many_wait_a_job_runs_once(
    later: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("bgmiddleware.registries._outbox.MOST", 1)
    with BackgroundMiddleware(Told(), when=marks.always, retries_per_mark=ALL) as site:
        first, second = (ended(site, start(_client(site), "/", method="GET")) for _ in range(2))
    assert (first.is_tried_again, second.is_tried_again) == (True, False)
    assert f"job {second.key[:8]}: it is not tried again, too many messages wait" in caplog.text


def test_tries_belong_to_the_owner_and_nobody_else_learns_of_them(opens: Stores, later: None) -> None:
    app = Told()
    site, client = opens(app, retries_per_mark=ALL, owner=owners.header("X-User"))
    first = start(client, "/", method="GET", x_user="ada")
    job = awaited(site, first)
    site._try_again(job)
    eventually(lambda: site.registry.jobs()[0].state.ended and len(app.asked) == 2)
    newest, _ = followed(client, first, x_user="ada")
    assert token_of(newest) != token_of(first)
    assert site.registry.jobs()[0].owner == "ada"
    for target in (first, newest, f"{first}&_view=result", f"{first}&_follow=no", f"/?_t=own.{job.key}"):
        for method in ("GET", "DELETE") if "_view" in target else ("GET", "DELETE", "POST"):
            theirs, nobodys = (client.request(method, each, x_user="eve") for each in (target, f"/?_t={UNKNOWN}"))
            assert (theirs.status, theirs.body) == (404, nobodys.body)
    assert site.registry.jobs()[0].awaits_try
    mine = followed(client, f"/?_t=own.{job.key}&_view=status", x_user="ada")[1].json
    assert (mine["retry"]["try"], mine["token"]) == (2, f"own.{site.registry.jobs()[0].key}")
    assert client.request("DELETE", f"/?_t=own.{job.key}", x_user="ada", **JSON).json["retry"]["is_over"]


@pytest.mark.parametrize("scope", ["output", "result", "both"])
def test_a_shared_link_shows_its_job_and_leads_no_further(opens: Stores, later: None, scope: str) -> None:
    site, client = opens(Told(), retries_per_mark=ALL)
    first = start(client, "/", method="GET")
    job = awaited(site, first)
    link = "/" + client.request("POST", first, f"_action=share&_scope={scope}".encode(), **FORM, **JSON)["Location"]
    site._try_again(job)
    eventually(lambda: len(site.registry.jobs()) == 2 and site.registry.jobs()[0].state.ended)
    (second,) = (each for each in site.registry.jobs() if each.key != job.key)
    newest, _ = followed(client, first)
    state = client.request("GET", f"{link}&_view=status").json
    assert (state["state"], state["retry"], state["rerun_as"], state["rerun_of"]) == ("failed", None, None, None)
    for view in ("", "&_view=status", "&_view=log", "&_view=events", "&_view=result", "&_follow=no"):
        for headers in (HTML, JSON, {}):
            reply = client.request("GET", link + view, **headers)
            assert reply.status != 303
            for secret in (token_of(first), token_of(newest), *(each.key for each in site.registry.jobs())):
                assert secret not in reply.text + str(reply.headers)
    for method in ("DELETE", "POST"):
        client.request(method, link, b"_action=cancel", **FORM)
    assert site.registry.get(second.key).awaits_try


def test_an_operator_sees_each_try_and_stops_them_by_their_right(opens: Stores, later: None) -> None:
    rights: set[str] = {"list", "output"}
    options = {"dashboard": "/jobs", "authorize": lambda environ: rights, "keep_requests": True}
    site, client = opens(Told(), retries_per_mark=ALL, when=marks.path("/report"), **options)
    first = start(client, "/report", method="GET")
    job = awaited(site, first)
    place = f"/jobs/{job.key}"
    state = client.request("GET", f"{place}?&_view=status").json
    assert state["retry"]["is_over"] is False
    assert client.request("POST", place, b"_action=cancel", **FORM).status == 403
    rights |= {"rerun", "cancel"}
    assert client.request("POST", place, b"_action=rerun", **FORM, **JSON).status == 409
    site._try_again(job)
    assert client.request("GET", place, **HTML).status == 200  # each job is one
    newest = site.registry.jobs()[0]
    eventually(lambda: site.registry.get(newest.key).state.ended)
    reply = client.request("POST", place, b"_action=rerun", **FORM, **JSON)  # of one that another one follows
    assert (reply.status, reply.json["detail"]) == (409, "Another try follows this one. Run the last one again.")
    assert client.request("GET", f"{place}?&_view=status").json["links"]["rerun"] is None
    assert JobClient(f"http://127.0.0.1:{client.port}{first}").state()["retry"]["try"] == 2
    reply = client.request("POST", f"/jobs/{newest.key}", b"_action=cancel", **FORM, **JSON)
    assert reply.json["retry"]["is_over"]
    assert not site.registry.get(newest.key).awaits_try


def test_operators_stop_the_tries_of_many_jobs_and_do_not_run_these_again(opens: Stores, later: None) -> None:
    options = {"dashboard": "/jobs", "authorize": lambda environ: True, "keep_requests": True}
    site, client = opens(Told(fails=9), retries_per_mark=ALL, when=marks.path("/report"), **options)
    keys = [awaited(site, start(client, "/report", method="GET")).key for _ in range(2)]
    chosen = "&".join(f"key={key}" for key in keys)
    client.request("POST", "/jobs", f"_action=rerun&_sure=1&{chosen}".encode(), **FORM)
    assert len(site.registry.jobs()) == 2
    client.request("POST", "/jobs", f"_action=cancel&_sure=1&{chosen}".encode(), **FORM)
    assert [site.registry.get(key).is_tried_again for key in keys] == [False, False]
    client.request("POST", "/jobs", f"_action=rerun&_sure=1&{chosen}".encode(), **FORM)
    assert len(site.registry.jobs()) == 4


def test_where_the_rules_are_taken_out_nobody_waits_for_the_next_try(opens: Stores, later: None) -> None:
    registry = opens.registry()
    site, client = opens(Told(), retries_per_mark=ALL, registry=registry)
    first = start(client, "/", method="GET")
    awaited(site, first)
    _site, client = opens(Told(), registry=registry)
    assert client.request("GET", f"{first}&_view=status").json["retry"] is None
    assert client.request("GET", f"{first}&_view=result").status == 503
    assert JobClient(f"http://127.0.0.1:{client.port}{first}").wait(60)["state"] == "failed"


def test_a_request_that_is_only_tried_again_cannot_be_run_again(opens: Stores, later: None) -> None:
    site, client = opens(Told(fails=1), retries_per_mark=ALL)
    first = start(client, "/", method="GET")
    job = awaited(site, first)
    assert job.request
    site._try_again(job)
    state = over(client, first)
    assert site.registry.get(job.key).request == site.registry.jobs()[0].request == {}
    for target in (first, f"{first}&_follow=no"):
        reply = client.request("POST", target, b"_action=rerun", **FORM, **JSON)
        assert (reply.status, reply.json["type"]) == (409, "urn:bgmiddleware:problem:not-kept")
    assert state["links"]["rerun"] is None


def test_what_is_run_again_by_hand_is_tried_again_too(opens: Stores, at_once: None) -> None:
    app = Told(fails=4)
    _site, client = opens(app, retries_per_mark={"/": 1}, keep_requests=True)
    first = start(client, "/", method="GET")
    assert over(client, first)["retry"]["try"] == 2
    second = "/" + client.request("POST", first, b"_action=rerun", **FORM, **JSON)["Location"]
    state = over(client, second)
    assert (state["state"], state["retry"]["try"], len(app.asked)) == ("failed", 2, 4)


def test_the_client_for_scripts_follows_all_tries(opens: Stores, at_once: None) -> None:
    _site, client = opens(Told(), retries_per_mark=ALL)
    url = f"http://127.0.0.1:{client.port}"
    job = JobClient.start(f"{url}/report", method="PUT", data=b"x")
    assert "".join(job.follow()) == "run 1\nrun 2\nrun 3\n"
    job = JobClient.start(f"{url}/report", method="PUT", data=b"x")
    assert job.wait(60)["state"] == "finished"
    job = JobClient(f"{url}{start(client, '/report', method='PUT')}")
    assert job.result(60).text == "run 5"
    assert job.state()["state"] == "finished"


def test_what_is_told_of_an_end_says_whether_it_is_the_last(at_once: None) -> None:
    from bgmiddleware.hooks import message_of

    told: list[Job] = []
    with BackgroundMiddleware(Told(fails=1), when=marks.always, retries_per_mark=ALL, on_end=told.append) as site:
        start(_client(site), "/", method="GET")
        eventually(lambda: len(told) == 2)
    import json

    first, last = (json.loads(message_of(job))["data"]["retry"] for job in told)
    assert (first, last) == ({"try": 1, "of": 4, "is_over": False}, {"try": 2, "of": 4, "is_over": True})


@pytest.mark.parametrize(
    "wrong",
    [
        {"/*": 0},
        {"/*": 11},
        {"/*": True},
        {"/*": "3"},
        {"report": 1},
        {"FETCH /*": 1},
        {"get /*": 1},
        {1: 1},
        3,
        ["/*"],
    ],
)
def test_rules_that_are_none_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^retries_per_mark = .*a whole number from 1 to 10"):
        BackgroundMiddleware(Told(), retries_per_mark=wrong)


# A process that is killed while the next try waits.

_KILLED = """
import os, signal, sys
from bgmiddleware import BackgroundMiddleware, marks
from bgmiddleware.registries import open_registry
from tests.again.test_retries import ALL, Told
from tests.kit.clients import InProcess, ended, start
from tests.kit.looking import eventually
site = BackgroundMiddleware(Told(), when=marks.always, registry=open_registry(sys.argv[1]), retries_per_mark=ALL)
target = start(InProcess(site), "/", method="GET")
job = ended(site, target)
eventually(lambda: site.registry.outbox("retries").first()[2] == "{}")
print(target, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.everything
@pytest.mark.parametrize("opens", ["spool", "redis"], indirect=True)
def test_another_process_goes_on_where_one_was_killed_while_a_try_was_awaited(opens: Stores) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, opens.url], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    target = done.stdout.strip()
    site, client = opens(Told(fails=0), retries_per_mark=ALL)
    state = over(client, target)  # a visit is enough
    assert (state["state"], state["retry"]["try"]) == ("finished", 2)
    assert len(site.registry.jobs()) == 2


_KILLED_RUNNING = """
import os, signal, sys, threading
from bgmiddleware import BackgroundMiddleware, marks
from bgmiddleware._starting import errands
from bgmiddleware.registries import open_registry
from tests.kit.clients import InProcess, start
printed = threading.Event()
def app(environ, start_response):
    printed.wait()
    os.kill(os.getpid(), signal.SIGKILL)
errands._LOOK_AGAIN = 0.05, 0.05
site = BackgroundMiddleware(app, when=marks.always, registry=open_registry(sys.argv[1]), retries_per_mark={"/*": 3})
target = start(InProcess(site), "/", method="GET")
print(target, flush=True)
printed.set()
threading.Event().wait()
"""


@pytest.mark.everything
@pytest.mark.parametrize("opens", ["spool", "redis"], indirect=True)
def test_what_a_killed_process_ran_is_tried_again_by_one_that_starts_no_jobs(
    opens: Stores, at_once: None, housekeeping: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errands, "_LOOK_AGAIN", (0.05, 0.05))
    command = [sys.executable, "-c", _KILLED_RUNNING, opens.url]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    target = done.stdout.strip()
    site, client = opens(Told(fails=0), retries_per_mark=ALL)
    site.registry.tidy_every = 0.05
    job = site.registry.get(jobs.key_of(token_of(target)))
    site.registry.renew(job.key, job.runner, lease=0.01)
    state = over(client, target)
    assert (state["state"], state["retry"]["try"]) == ("finished", 2)


@pytest.mark.everything
@pytest.mark.parametrize("opens", ["spool", "redis"], indirect=True)
def test_what_a_process_lost_when_it_was_shut_down_is_tried_again_by_another(opens: Stores, at_once: None) -> None:
    runs = threading.Event()

    def endless(environ: Any, start_response: Any) -> list[bytes]:
        runs.set()
        while True:
            print("runs")
            runs.wait(0.01)

    site, client = opens(endless, retries_per_mark=ALL)
    first = start(client, "/", method="PUT", body=BODY)
    assert runs.wait(60)
    site.shutdown(0.0)
    assert site.registry.get(jobs.key_of(token_of(first))).state is JobState.LOST
    app = Told(fails=0)
    _site, client = opens(app, retries_per_mark=ALL)
    assert over(client, first)["state"] == "finished"
    assert app.asked[0]["body"] == BODY
