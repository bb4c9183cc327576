"""SIGTERM: what runs gets time to end under each server that gives it; what does not end is lost, and says so."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from bgmiddleware._jobs import key_of
from bgmiddleware.registries import open_registry
from tests.conftest import needs
from tests.processes import Server, gunicorn, running

Serve = Callable[..., Server]


def started(server: Server, path: str) -> str:
    reply = server.request("POST", path)
    assert reply.status == 303, (reply, server.log)
    return path.partition("?")[0] + reply["Location"]


def end_of(directory: Path, target: str) -> tuple[str, str, bytes]:
    """Return state, reason and output of a job, as they outlived the server."""
    with open_registry(f"spool:{directory}/jobs") as registry:
        key = key_of(target.partition("_t=")[2])
        job = registry.get(key)
        return job.state, job.reason, b"".join(piece.data for piece in registry.follow(key))


def sync(directory: Path, **site: str) -> Server:
    return gunicorn(directory, "-k", "sync", **site)


def gthread(directory: Path, **site: str) -> Server:
    return gunicorn(directory, "-k", "gthread", "--threads", "4", **site)


def gevent(directory: Path, **site: str) -> Server:
    needs("gevent")
    return gunicorn(directory, "-k", "gevent", **site)


@pytest.fixture(params=[sync, gthread, gevent])
def serve(request: pytest.FixtureRequest) -> Serve:
    needs("gunicorn")
    return request.param  # type: ignore[no-any-return]


def test_a_running_job_gets_time_to_end(serve: Serve, tmp_path: Path) -> None:
    with running(serve(tmp_path, SITE_REGISTRY=f"spool:{tmp_path}/jobs", SITE_DRAIN="20")) as server:
        target = started(server, "/x/wait?gate")
        server.begun(target)
        server.send(signal.SIGTERM)
        server.said("Handling signal: term")
        (tmp_path / "gate").touch()
        assert server.wait() == 0
    assert end_of(tmp_path, target) == ("finished", "", b"begun\nended\n")


def test_a_job_that_does_not_end_in_time_is_lost_and_what_it_printed_is_kept(serve: Serve, tmp_path: Path) -> None:
    with running(serve(tmp_path, SITE_REGISTRY=f"spool:{tmp_path}/jobs", SITE_DRAIN="0.1")) as server:
        target = started(server, "/x/wait?never")
        server.begun(target)
        assert server.end() == 0
    assert end_of(tmp_path, target) == ("lost", "server shut down", b"begun\n")
