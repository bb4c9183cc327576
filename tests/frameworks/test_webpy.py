"""web.py, where the decorators come from: what its handlers use is there in a job."""

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, JobState, ThreadExecutor, background, backgrounder, current_job
from tests.conftest import needs
from tests.kit.apps import WAIT
from tests.kit.clients import InProcess, OverHTTP, ended, served, start

web = needs("web")
needs("web.session")

FORM = {"content_type": "application/x-www-form-urlencoded"}
IN_JOBS: list[bool] = []
MAY_LEAVE = threading.Event()


@background
def longrunning(name: str = "") -> str:
    IN_JOBS.append(bool(current_job()))
    print("working for", web.input(name=name).name)
    return f"{web.ctx.method} {web.ctx.fullpath}"


@background
def away() -> None:
    assert MAY_LEAVE.wait(WAIT)
    raise web.seeother("/there")


@background
def visits() -> str:
    session = web.config.tests_session
    session.visits += 1
    return f"{session.visits} visits"


class index:  # noqa: N801
    @backgrounder
    def GET(self) -> str:  # noqa: N802
        IN_JOBS.append(bool(current_job()))
        print("Started")
        return longrunning()


class only:  # noqa: N801
    def GET(self) -> str:  # noqa: N802
        print("Started")
        return longrunning()

    def POST(self) -> str:  # noqa: N802
        return longrunning(web.input().name)


class form:  # noqa: N801
    @backgrounder
    def POST(self) -> str:  # noqa: N802
        web.header("X-Form", "yes")
        return f"{web.input().name} from {web.ctx.ip} at {web.ctx.path}"


class elsewhere:  # noqa: N801
    @backgrounder
    def GET(self) -> None:  # noqa: N802
        assert MAY_LEAVE.wait(WAIT)
        raise web.seeother("/there")

    def POST(self) -> None:  # noqa: N802
        away()


class counted:  # noqa: N801
    @backgrounder
    def GET(self) -> str:  # noqa: N802
        return f"{web.config.tests_session.visits} visits"

    def POST(self) -> str:  # noqa: N802
        web.config.tests_session.visits += 1
        return visits()


class page:  # noqa: N801
    @backgrounder
    def GET(self) -> Any:  # noqa: N802
        return web.template.Template("$def with (name)\nHello $name")(web.input().name)


class fails:  # noqa: N801
    @backgrounder
    def GET(self) -> str:  # noqa: N802
        raise ValueError("odd row")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[BackgroundMiddleware]:
    IN_JOBS.clear()
    MAY_LEAVE.clear()
    web.config.debug = False
    urls = ("/", index, "/only", only, "/form", form, "/away", elsewhere, "/counted", counted, "/page", page)
    app = web.application((*urls, "/fails", fails), {}, autoreload=False)
    with tempfile.TemporaryDirectory(dir=tmp_path) as directory:
        web.config.tests_session = web.session.Session(app, web.session.DiskStore(directory), initializer={"visits": 0})
        with BackgroundMiddleware(app.wsgifunc(), executor=ThreadExecutor(max_workers=1)) as site:
            yield site
        del web.config.tests_session


@pytest.fixture
def client(site: BackgroundMiddleware) -> Iterator[OverHTTP]:
    # No validator is around it: web.py leaves the Content-Type to its handlers, and these have none.
    with served(site) as client:
        yield client


def result(
    site: BackgroundMiddleware, client: OverHTTP, path: str, method: str = "GET", body: bytes = b"", **more: str
) -> Any:
    target = start(client, path, method, body, **more)
    ended(site, target)
    return client.request("GET", f"{target}&_view=result")


@pytest.mark.parametrize("path", ["/", "/only"])
def test_the_example_of_2008(site: BackgroundMiddleware, client: OverHTTP, path: str) -> None:
    target = start(client, f"{path}?name=ada", "GET")
    assert ended(site, target).state is JobState.FINISHED
    assert client.request("GET", target).text == "Started\nworking for ada\n"
    assert client.request("GET", f"{target}&_view=result").text == f"GET {path}?name=ada"
    assert all(IN_JOBS)


def test_a_form_a_header_and_the_context(site: BackgroundMiddleware, client: OverHTTP) -> None:
    reply = result(site, client, "/form", "POST", b"name=ada", **FORM, remote_addr="192.0.2.1")
    assert reply.text.startswith("ada from ")
    assert reply.text.endswith(" at /form")
    assert reply["X-Form"] == "yes"
    assert result(site, client, "/only", "POST", b"name=grace", **FORM).text == "POST /only"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_seeother_is_the_result_of_a_job(site: BackgroundMiddleware, client: OverHTTP, method: str) -> None:
    target = start(client, "/away", method)
    MAY_LEAVE.set()
    ended(site, target)
    reply = client.request("GET", f"{target}&_view=result")
    assert reply.status == 303
    assert reply["Location"].endswith("/there")
    assert [job.state for job in site.registry.jobs()] == [JobState.FINISHED]


def test_a_session_is_the_clients_own_and_what_a_job_writes_is_kept(
    site: BackgroundMiddleware, client: OverHTTP
) -> None:
    first = result(site, client, "/counted")
    assert first.text == "0 visits"
    cookie = first["Set-Cookie"].partition(";")[0]
    assert result(site, client, "/counted", "POST", cookie=cookie).text == "2 visits"
    assert result(site, client, "/counted", cookie=cookie).text == "2 visits"
    assert result(site, client, "/counted").text == "0 visits"


def test_a_template(site: BackgroundMiddleware, client: OverHTTP) -> None:
    assert result(site, client, "/page?name=ada").text.strip() == "Hello ada"


def test_an_error_is_a_failed_job(site: BackgroundMiddleware, client: OverHTTP) -> None:
    target = start(client, "/fails", "GET")
    assert ended(site, target).state is JobState.FAILED


def test_nothing_of_a_request_stays_in_its_thread(site: BackgroundMiddleware) -> None:
    client = InProcess(site)
    for path in ("/?name=ada", "/only?name=ada"):
        ended(site, start(client, path, "GET"))
        assert "path" not in web.ctx
