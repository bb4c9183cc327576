"""SIGTERM: what runs gets time to end under each server that gives it; what does not end is lost, and says so."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit.processes import Server, running
from tests.kit.readers import sent
from tests.kit.servers import gevent, gthread, mod_wsgi, open_directory, sync, uwsgi, waitress

pytestmark = pytest.mark.everything

Serve = Callable[..., Server]


SERVERS = {
    sync: "Handling signal: term",
    gthread: "Handling signal: term",
    gevent: "Handling signal: term",
    uwsgi: "SIGINT/SIGTERM received",
    waitress: "SIGTERM",
    mod_wsgi: "Stopping process 'site'",
}


@pytest.fixture
def directory() -> Iterator[Path]:
    with open_directory() as path:
        yield path


every_server = pytest.mark.parametrize("serve", SERVERS)


def end_of(serve: Serve, directory: Path, target: str) -> tuple[str, str, str]:
    """Start the server again; return state, reason and output of a job."""
    with running(serve(directory, SITE_REGISTRY=f"spool:{directory}/jobs")) as server:
        state = server.ended(target)
        return state["state"], state["reason"], server.request("GET", f"{target}&_view=log&_offset=0").text


@every_server
def test_a_running_job_gets_time_to_end(serve: Serve, directory: Path) -> None:
    drain = "2" if serve is mod_wsgi else "20"
    with running(serve(directory, SITE_REGISTRY=f"spool:{directory}/jobs", SITE_DRAIN=drain)) as server:
        target = server.started("/x/wait?gate")
        server.begun(target)
        server.send(signal.SIGTERM)
        server.said(SERVERS[serve])
        (directory / "gate").touch()
        assert server.wait() == 0
    assert end_of(serve, directory, target) == ("finished", "", "begun\nended\n")


VIEWS = "log", "events", "result&_wait=30"


@pytest.mark.parametrize(
    ("serve", "view"), [*((uwsgi, view) for view in VIEWS), (gthread, "log"), (waitress, "log"), (mod_wsgi, "log")]
)
def test_a_running_job_gets_time_to_end_also_where_somebody_watches(serve: Serve, directory: Path, view: str) -> None:
    drain = "2" if serve is mod_wsgi else "20"
    with running(serve(directory, SITE_REGISTRY=f"spool:{directory}/jobs", SITE_DRAIN=drain)) as server:
        target = server.started("/x/wait?gate")
        server.begun(target)
        with sent(server.port, f"GET {target}&_view={view} HTTP/1.1\r\nHost: x\r\n\r\n".encode()) as connection:
            if "_wait" not in view:
                assert connection.recv(1), "it is held"
            server.send(signal.SIGTERM)
            server.said(SERVERS[serve])
            (directory / "gate").touch()
            assert server.wait() == 0
    assert end_of(serve, directory, target) == ("finished", "", "begun\nended\n")


@every_server
def test_a_job_that_does_not_end_in_time_is_lost_and_what_it_printed_is_kept(serve: Serve, directory: Path) -> None:
    with running(serve(directory, SITE_REGISTRY=f"spool:{directory}/jobs", SITE_DRAIN="0.1")) as server:
        target = server.started("/x/wait?never")
        server.begun(target)
        assert server.end() == 0
    assert end_of(serve, directory, target) == ("lost", "server shut down", "begun\n")
