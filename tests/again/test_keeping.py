"""A job is kept beyond its TTL: by its owner, an operator or the command line, and as many as the registry keeps."""

# ruff: noqa: F401  # fixtures are imported by their names

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, JobState, owners
from bgmiddleware.__main__ import main
from bgmiddleware._jobs import key_of
from bgmiddleware.testing.registries import ended as ended_job
from tests.again import asking_site
from tests.kit.clients import OverHTTP, Reply, ended, start
from tests.kit.readers import token_of
from tests.kit.redis_server import redis_server, redis_server_of_module
from tests.kit.stores import STORES, Stores, opened_stores

FORM = {"content_type": "application/x-www-form-urlencoded"}
JSON = {"accept": "application/json"}
HTML = {"accept": "text/html"}


@pytest.fixture(params=STORES)
def opens(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Stores]:
    yield from opened_stores(request, tmp_path)


class Clock:
    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


def app(environ: Any, start_response: Any) -> list[bytes]:
    print("what it printed")
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"its result"]


def posts(client: OverHTTP, target: str, action: str, **headers: str) -> Reply:
    return client.request("POST", target, f"_action={action}".encode(), **{**FORM, **headers})


def test_a_kept_job_is_read_after_its_ttl_and_expires_when_it_is_given_back(opens: Stores) -> None:
    clock = Clock()
    site, client = opens(app, registry=opens.registry(ttl=60.0, clock=clock))
    kept, other = (start(client, path) for path in ("/kept", "/other"))
    for target in (kept, other):
        ended(site, target)
    assert client.request("GET", kept, **JSON).json["kept"] is False
    reply = posts(client, kept, "keep", **JSON)
    assert (reply.status, reply.json["kept"]) == (200, True)
    for _ in range(2):
        clock.ahead += 3600.0
        site.registry.evict()
    assert client.request("GET", other).status == 410
    assert client.request("GET", kept).text == "what it printed\n"
    assert client.request("GET", f"{kept}&_view=result").text == "its result"
    assert posts(client, kept, "unkeep", **JSON).json["kept"] is False
    clock.ahead += 59.0
    assert client.request("GET", kept).status == 200
    clock.ahead += 2.0
    assert client.request("GET", kept).status == 410


def test_the_page_says_that_it_is_kept_and_has_the_button_without_a_script(opens: Stores) -> None:
    site, client = opens(app)
    target = start(client, "/report")
    ended(site, target)
    assert '<button name="_action" value="keep">Keep</button>' in client.request("GET", target, **HTML).text
    reply = posts(client, target, "keep", **HTML)
    assert reply.status == 303
    page = client.request("GET", "/report" + reply["Location"], **HTML).text
    assert '<b id="job-kept">Kept</b> <button name="_action" value="unkeep">Let it expire</button>' in page
    posts(client, target, "unkeep", **HTML)
    assert 'value="keep"' in client.request("GET", target, **HTML).text


def test_where_no_more_are_kept_it_is_a_conflict_until_one_is_given_back(opens: Stores) -> None:
    site, client = opens(app, registry=opens.registry(max_kept=1))
    one, other = (start(client, "/") for _ in range(2))
    for target in (one, other):
        ended(site, target)
        first = posts(client, one, "keep", **JSON)
    assert first.status == 200
    refused = posts(client, other, "keep", **JSON)
    assert (refused.status, refused.json["type"]) == (409, "urn:bgmiddleware:problem:too-many-kept")
    assert client.request("GET", other, **JSON).json["kept"] is False
    posts(client, one, "unkeep")
    assert posts(client, other, "keep", **JSON).json["kept"] is True


def test_where_none_are_kept_none_is_offered(opens: Stores) -> None:
    site, client = opens(app, registry=opens.registry(max_kept=0))
    target = start(client, "/")
    ended(site, target)
    assert 'value="keep"' not in client.request("GET", target, **HTML).text
    assert posts(client, target, "keep", **JSON).status == 409


def test_a_job_that_runs_is_not_kept(opens: Stores) -> None:
    site, client = opens(asking_site.view)
    target = start(client, "/")
    refused = posts(client, target, "keep", **JSON)
    assert (refused.status, refused.json["type"]) == (409, "urn:bgmiddleware:problem:still-running")
    assert posts(client, target, "unkeep", **JSON).json["kept"] is False
    client.request("DELETE", target)
    assert ended(site, target).state is JobState.CANCELLED


def rights(environ: Any) -> set[str]:
    return set(environ.get("HTTP_X_RIGHTS", "").split(",")) - {""}


def test_only_its_owner_and_an_operator_with_the_right_keep_it(opens: Stores) -> None:
    site, client = opens(app, owner=owners.header("X-User"), dashboard="/_jobs", authorize=rights)
    target = start(client, "/", x_user="ada")
    key = ended(site, target).key
    for action in ("keep", "unkeep"):
        for headers in ({"sec_fetch_site": "cross-site"}, {"origin": "http://evil.example"}):
            assert posts(client, target, action, x_user="ada", **headers).status == 403
            assert posts(client, f"/_jobs/{key}", action, x_rights="keep", **headers).status == 403
        assert posts(client, target, action, x_user="eve").status == 404
        assert posts(client, f"/_jobs/{key}", action, x_rights="list,output,cancel,discard").status == 403
    link = posts(client, target, "share", x_user="ada").json["link"]
    assert posts(client, "/" + link, "keep").status == 403
    assert not site.registry.get(key).kept
    assert posts(client, f"/_jobs/{key}", "keep", x_rights="keep").status == 200
    assert site.registry.get(key).kept
    page = client.request("GET", f"/_jobs/{key}", x_rights="list,output", **HTML).text
    assert '<b id="job-kept">Kept</b>' in page
    assert 'value="unkeep"' not in page
    row = client.request("GET", "/_jobs", x_rights="list", **JSON).json["jobs"][0]
    assert row["kept"] is True
    assert "finished, kept" in client.request("GET", "/_jobs", x_rights="list", **HTML).text
    assert posts(client, target, "unkeep", x_user="ada").status == 200
    assert not site.registry.get(key).kept


@pytest.mark.everything
@pytest.mark.parametrize("opens", ["spool", "redis"], indirect=True)
def test_the_command_line_keeps_jobs_too(opens: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    site, client = opens(app, registry=opens.registry(max_jobs=3))
    jobs = [start(client, "/") for _ in range(3)]
    for target in jobs:
        ended(site, target)
    command = ["--registry", opens.url]
    assert main(["jobs", "keep", *command, token_of(jobs[0])]) == 0
    key = key_of(token_of(jobs[0]))
    assert site.registry.get(key).kept
    assert main(["jobs", "show", *command, key]) == 0
    assert json.loads(capsys.readouterr().out)["kept"] is True
    assert main(["jobs", "list", *command]) == 0
    assert [line.endswith("  kept") for line in capsys.readouterr().out.splitlines()] == [False, False, True]
    assert main(["jobs", "unkeep", *command, key]) == 0
    assert not site.registry.get(key).kept


@pytest.mark.everything
@pytest.mark.parametrize("opens", ["spool"], indirect=True)
def test_the_command_line_says_how_many_it_keeps(opens: Stores, capsys: pytest.CaptureFixture[str]) -> None:
    registry = opens.registry(max_kept=200)
    for number in range(101):
        ended_job(registry, f"{number}")
        assert number == 100 or registry.keep(key_of(f"{number}"))
    assert main(["jobs", "keep", "--registry", opens.url, key_of("100")]) == 2
    assert "this command keeps at most 100 jobs, of 268435456 bytes in all" in capsys.readouterr().err
