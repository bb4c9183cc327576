"""Scripts use ``bgmiddleware.client`` against a real server, also one whose connections are cut."""

import contextlib
import http.client
import socket
import threading
import time
import urllib.error
from collections.abc import Iterator
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, current_job, marks, progress
from bgmiddleware.client import JobClient, NoJob
from tests.kit.clients import served
from tests.kit.documents import PAGES, blocks

GO = threading.Event()


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    path = environ["PATH_INFO"]
    status, body = "200 OK", b"a good year"
    match path:
        case "/waits":
            print("waiting")
            assert GO.wait(60)
            print("going on")
        case "/endless":
            print("endless")
            while True:
                current_job().check()
                GO.wait(0.01)
        case "/floods":
            for number in range(40_000):
                print("line", number)
        case "/fails":
            raise ValueError("no such year")
        case "/breaks":
            status = "503 Service Unavailable"
        case "/leads":
            print("about to lead elsewhere")
            GO.wait(60)
            status = "303 See Other"
        case "/echoes":
            body = environ["wsgi.input"].read() + environ.get("HTTP_X_WHO", "").encode()
    progress(1, 2, "half")
    headers = [("Content-Type", "text/plain"), ("Location", "/elsewhere")]
    start_response(status, headers[: 2 if path == "/leads" else 1])
    return [body]


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    mark = marks.none_of(marks.path("/direct"))
    with BackgroundMiddleware(app, when=mark, registry=None) as middleware, served(middleware) as server:
        yield f"http://127.0.0.1:{server.port}"


@pytest.fixture(autouse=True)
def _waits() -> Iterator[None]:
    GO.clear()
    yield
    GO.set()


class Relay:
    """Passes bytes between clients and a server, and cuts connections: the first *cuts* of them after *after* bytes
    of the answer."""

    def __init__(self, port: int, *, cuts: int, after: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._to, self.cuts, self._after = port, cuts, after
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                with client, socket.create_connection(("127.0.0.1", self._to)) as server:
                    self._pass_on(client, server)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        server.sendall(client.recv(65536))
        left = self._after if self.cuts else 10**9
        self.cuts = max(0, self.cuts - 1)
        while left > 0 and (data := server.recv(min(65536, left))):
            client.sendall(data)
            left -= len(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@contextlib.contextmanager
def relayed(site: str, **options: int) -> Iterator[Relay]:
    with contextlib.closing(Relay(int(site.rpartition(":")[2]), **options)) as relay:
        yield relay


def test_a_job_is_started_followed_and_its_response_is_the_apps(site: str) -> None:
    job = JobClient.start(f"{site}/waits?year=2026")
    assert job.url.startswith(f"{site}/waits?year=2026&_t=")
    pieces = job.follow()
    assert next(pieces) == "waiting\n"
    assert job.state()["state"] == "running"
    GO.set()
    assert "".join(pieces) == "going on\n"
    assert job.wait()["state"] == "finished"
    response = job.result()
    assert (response.status, response.text, response.headers["content-type"]) == (200, "a good year", "text/plain")


def test_a_body_and_headers_reach_the_app(site: str) -> None:
    headers = {"X-Who": "ann", "Content-Type": "text/csv"}
    job = JobClient.start(f"{site}/echoes", b"rows of ", headers=headers)
    assert job.result().body == b"rows of ann"
    assert job.headers == {"X-Who": "ann"}


def test_much_output_is_followed_byte_for_byte(site: str) -> None:
    job = JobClient.start(f"{site}/floods")
    assert "".join(job.follow()) == "".join(f"line {number}\n" for number in range(40_000))
    assert "".join(job.follow(7)).startswith("line 1\n")


@pytest.mark.parametrize(
    ("path", "state", "status"), [("/fails", "failed", 500), ("/breaks", "failed", 503), ("/leads", "finished", 303)]
)
def test_a_result_is_what_it_is(site: str, path: str, state: str, status: int) -> None:
    job = JobClient.start(site + path)
    assert path != "/leads" or next(job.follow()) == "about to lead elsewhere\n"
    GO.set()
    assert job.wait()["state"] == state
    assert job.result().status == status


def test_a_job_is_cancelled(site: str) -> None:
    job = JobClient.start(f"{site}/endless")
    assert next(job.follow()) == "endless\n"
    assert job.cancel()["state"] in ("running", "cancelled")
    assert job.wait()["state"] == "cancelled"
    assert job.result().status == 410


def test_an_answer_of_the_app_itself_is_no_job(site: str) -> None:
    with pytest.raises(NoJob, match="the answer is 200") as told:
        JobClient.start(f"{site}/direct")
    assert told.value.response.text == "a good year"


def test_a_wait_ends_in_time(site: str) -> None:
    job = JobClient.start(f"{site}/waits")
    with pytest.raises(TimeoutError, match=r"the job GET /waits did not end within 0\.05 seconds"):
        job.wait(0.05)


def test_an_unknown_job_is_an_error_that_says_no_token(site: str) -> None:
    token = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
    with pytest.raises(urllib.error.HTTPError) as told:
        list(JobClient(f"{site}/x?_t={token}").follow())
    assert told.value.code == 404
    assert token not in f"{told.value} {told.value.filename}"


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "/reports"])
def test_only_http_is_spoken(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected http://… or https://…"):
        JobClient.start(url)


@pytest.mark.everything  # it waits between tries
@pytest.mark.parametrize("after", [0, 50, 1000, 100_000])
def test_output_goes_on_where_a_connection_was_cut(site: str, after: int) -> None:
    url = JobClient.start(f"{site}/floods").url
    JobClient(url).wait()
    with relayed(site, cuts=3, after=after) as relay:
        output = "".join(JobClient(url.replace(site, relay.url)).follow())
        assert relay.cuts == 0
    assert output == "".join(f"line {number}\n" for number in range(40_000))


@pytest.mark.everything
def test_patience_ends(site: str) -> None:
    url = JobClient.start(f"{site}/floods").url
    with relayed(site, cuts=10**6, after=30) as relay:
        begun = time.monotonic()
        with pytest.raises((OSError, http.client.HTTPException)):
            JobClient(url.replace(site, relay.url), patience=0.5).result()
        assert relay.cuts < 10**6
        assert time.monotonic() - begun >= 0.1


def test_the_example_of_the_protocol_works(site: str, capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = [block for block in blocks(PAGES["protocol.rst"], "python") if block.section == "A client"]
    exec(example.text.replace("http://127.0.0.1:8080/wsgi/reports/2026", f"{site}/floods"), {})
    output = capsys.readouterr().out
    assert output.startswith("line 0\nline 1\n")
    assert output.endswith("line 39999\n200 a good year\n")
