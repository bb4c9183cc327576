"""Servers with several processes: whichever of them answers, it answers as the one that runs the job."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.kit.clients import Reply
from tests.kit.processes import TRIES, Server, running
from tests.kit.redis_server import redis_server_of_module  # noqa: F401  # a fixture
from tests.kit.servers import gevent, gthread, mod_wsgi, open_directory, sync, uwsgi

pytestmark = pytest.mark.everything

_unique = itertools.count()
LINES = "".join(f"line {number}\n" for number in range(5000))


PRELOAD = "--preload"
SITES = [
    *itertools.product((sync, gthread, gevent), ((), (PRELOAD,)), ("spool", "redis")),
    *itertools.product((uwsgi,), ((),), ("spool", "redis")),
    (mod_wsgi, (), "spool"),  # it runs in the system's Python, which has no client of Redis
]


def _title(site: object) -> str:
    serve, options, kept = site  # type: ignore[misc]
    return " ".join((serve.__name__, *options, kept))


@pytest.fixture(scope="module", params=SITES, ids=_title)
def site(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, site: Any) -> Iterator[Server]:
    serve, options, kept = site
    with open_directory() as directory:
        registry = f"spool:{directory}/jobs"
        if kept == "redis":
            registry = str(request.getfixturevalue("redis_server_of_module").url)
        settings = {"SITE_REGISTRY": registry, "SITE_SETTINGS": '{"single_flight": true}'}
        with running(serve(directory, *options, **settings)) as served:
            yield served


@pytest.fixture
def gate(server: Server) -> Iterator[Callable[[], str]]:
    """Give names of files that views wait for; ``open`` makes one."""
    names: list[str] = []

    def gate() -> str:
        names.append(f"gate-{next(_unique)}")
        return names[-1]

    yield gate
    for name in names:
        opened(server, name)


def opened(server: Server, name: str) -> None:
    (server.directory / name).touch()


def by_another(server: Server, worker: str, method: str, target: str, **headers: str) -> Reply:
    """Repeat a request until another process than *worker* answers it."""
    with ThreadPoolExecutor(4) as pool:
        for _ in range(TRIES // 4):
            # Several at once: where nobody else asks, the worker that is awake takes them all.
            replies = [pool.submit(server.request, method, target, **headers) for _ in range(4)]
            for each in replies:
                if each.result()["Worker"] != worker:
                    return each.result()
    raise AssertionError(f"only {worker} answers")


def started(server: Server, path: str, **headers: str) -> tuple[str, str]:
    """Start a job; return its target, and the process that took it and runs it."""
    with server.stream("POST", path, **headers) as (status, sent, _):
        assert status in (202, 303)
        found = dict(sent)
    return path.partition("?")[0] + found["Location"], found["Worker"]


def followed(server: Server, target: str, **headers: str) -> tuple[str, set[str]]:
    """Read the output to its end, page by page; return it, and the processes that answered."""
    text, offset, workers = "", 0, set[str]()
    for _ in range(TRIES):
        reply = server.request("GET", f"{target}&_view=log&_offset={offset}&_wait=1", **headers)
        assert int(reply["Job-Offset"]) == offset
        offset = int(reply["Job-Next-Offset"])
        text += reply.text
        workers.add(reply["Worker"])
        if reply["Job-State"] == "finished" and not reply.text:
            return text, workers
    raise AssertionError(f"it has no end: {text[-200:]}")


def test_all_of_a_job_is_had_from_another_worker_whole_and_in_order(server: Server) -> None:
    target, runner = started(server, f"/x/count?5000&{next(_unique)}")
    state = server.ended(target)
    assert state["state"] == "finished"
    assert state["receipt"]["runner"].endswith(f":{runner}")
    assert by_another(server, runner, "GET", f"{target}&_view=log").text == LINES
    assert by_another(server, runner, "GET", target, Accept="text/html").status == 200
    result = by_another(server, runner, "GET", f"{target}&_view=result")
    assert (result.status, result.text, result["Ran-In"]) == (200, "5000 lines\n", runner)


def test_a_running_job_is_followed_from_whichever_worker_answers(server: Server, gate: Callable[[], str]) -> None:
    name = gate()
    target, runner = started(server, f"/x/wait?{name}")
    server.begun(target)
    reply = by_another(server, runner, "GET", f"{target}&_view=log&_offset=0&_wait=1")
    assert reply["Job-State"] == "running"
    assert by_another(server, runner, "GET", f"{target}&_view=result").status == 202
    opened(server, name)
    text, _ = followed(server, target)
    assert text == "begun\nended\n"
    assert server.request("GET", f"{target}&_view=result")["Ran-In"] == runner


def test_what_comes_is_streamed_by_workers_that_have_threads(
    server: Server, site: Any, gate: Callable[[], str]
) -> None:
    name = gate()
    target, _ = started(server, f"/x/wait?{name}")
    server.begun(target)
    has_threads = site[0] is not sync
    with server.stream("GET", f"{target}&_view=log") as (status, sent, chunks):
        assert status == 200
        first = next(chunks)
        assert first == b"begun\n"
        headers = Reply(status, sent, b"")
        assert ("Retry-After" in headers) is not has_threads
        opened(server, name)
        if has_threads:
            assert b"".join(chunks) == b"ended\n"
        else:
            assert _rest_of_what_breaks_off(chunks) == b""
            assert int(headers["Job-Next-Offset"]) == len(first) < int(headers["Content-Length"])
    assert server.ended(target)["state"] == "finished"


def _rest_of_what_breaks_off(chunks: Iterator[bytes]) -> bytes:
    rest = b""
    with contextlib.suppress(ConnectionResetError):
        for chunk in chunks:
            rest += chunk
    return rest


def test_a_cancel_reaches_the_worker_that_runs_the_job(server: Server) -> None:
    target, runner = started(server, f"/x/stay?{next(_unique)}")
    server.begun(target, "still here\n")
    assert by_another(server, runner, "DELETE", target).status == 202
    state = server.ended(target)
    assert (state["state"], state["reason"]) == ("cancelled", "cancelled on request")
    assert (server.directory / "interrupted").exists()
    assert by_another(server, runner, "GET", f"{target}&_view=result").status == 410


def test_an_identical_request_joins_the_job_of_another_worker(server: Server, gate: Callable[[], str]) -> None:
    name = gate()
    target, runner = started(server, f"/x/wait?{name}")
    joined = by_another(server, runner, "POST", f"/x/wait?{name}")
    assert joined.status == 303
    assert "/x/wait" + joined["Location"] == target
    opened(server, name)
    server.ended(target)
    again, _ = started(server, f"/x/wait?{name}")
    assert again != target


def test_identical_requests_at_once_all_join_one_job(server: Server, gate: Callable[[], str]) -> None:
    # Under gevent with --preload this stops workers for ever where a lock from before the fork is held too long.
    for _ in range(5):
        name = gate()
        with ThreadPoolExecutor(12) as pool:
            begun = [pool.submit(started, server, f"/x/wait?{name}") for _ in range(12)]
            assert len({each.result()[0] for each in begun}) == 1
        opened(server, name)


def test_many_may_wait_at_once(server: Server, gate: Callable[[], str]) -> None:
    name = gate()
    target, _ = started(server, f"/x/wait?{name}")
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(server.request, "GET", f"{target}&_view=status&_wait=1") for _ in range(24)]
        assert {each.result().json["state"] for each in waiting} <= {"pending", "running"}
    opened(server, name)


def test_an_idempotency_key_is_known_to_every_worker(server: Server) -> None:
    key = f"key-{next(_unique)}"
    target, runner = started(server, "/x/count?3", Idempotency_Key=key)
    server.ended(target)
    again = by_another(server, runner, "POST", "/x/count?3", Idempotency_Key=key)
    assert "/x/count" + again["Location"] == target
    assert by_another(server, runner, "POST", "/x/count?4", Idempotency_Key=key).status == 422


def test_a_job_is_its_owners_in_every_worker(server: Server) -> None:
    target, runner = started(server, f"/x/count?1&{next(_unique)}", X_User="ada")
    server.ended(target, X_User="ada")
    assert by_another(server, runner, "GET", f"{target}&_view=log").status == 404
    assert by_another(server, runner, "GET", f"{target}&_view=log", X_User="bob").status == 404
    assert by_another(server, runner, "GET", f"{target}&_view=log", X_User="ada").text == "line 0\n"


def test_every_worker_lists_the_jobs_of_all(server: Server, gate: Callable[[], str]) -> None:
    name = gate()
    target, runner = started(server, f"/x/wait?{name}")
    server.begun(target)
    listed = by_another(server, runner, "GET", "/_jobs", X_User="admin", Accept="text/html")
    assert "POST /x/wait" in listed.text
    assert by_another(server, runner, "GET", "/_jobs", X_User="ada").status == 403


def test_what_is_not_marked_goes_to_the_app(server: Server) -> None:
    reply = server.request("GET", "/fast")
    assert (reply.text, reply["Ran-In"]) == ("fast\n", reply["Worker"])


REFUSED = [(sync, ()), (sync, (PRELOAD,)), (uwsgi, ()), (mod_wsgi, ())]


@pytest.mark.parametrize(("serve", "options"), REFUSED)
def test_a_registry_that_processes_cannot_share_is_refused_at_the_first_marked_request(
    serve: Callable[..., Server], options: tuple[str, ...]
) -> None:
    with open_directory() as directory, running(serve(directory, *options)) as server:
        assert server.request("GET", "/fast").status == 200
        refused = server.request("POST", "/x/count?1")
        assert refused.status == 500
        said = r"the server runs several processes .*, and a MemoryRegistry is in the memory of one: .*"
        for text in (refused.text, server.said(said)[0]):
            assert 'SpoolRegistry("/var/lib/' in text
        assert server.request("GET", "/fast").status == 200
