"""What a job is called: by its request, by the site, and by its own code."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from bgmiddleware import ConfigurationError, current_job
from bgmiddleware._running.recording import plain_title, title_of
from tests.kit.clients import ended, start
from tests.kit.readers import Opener, Play, answering, opened


@pytest.fixture(params=["in-process", "processes"])
def opens(request: pytest.FixtureRequest) -> Iterator[Opener]:
    yield from opened(request)


@pytest.fixture(params=["in-process"])
def opens_here(request: pytest.FixtureRequest) -> Iterator[Opener]:
    yield from opened(request)


@pytest.mark.parametrize(
    ("query", "title"),
    [
        ("", "GET /rows"),
        ("year=2026&name=J%C3%BCrgen+X", "GET /rows?year=2026&name=Jürgen X"),
        ("api_key=abc&x=1", "GET /rows?api_key=…&x=1"),
        ("x=1;csrf-token=abc&Password2=d&code=e", "GET /rows?x=1;csrf-token=…&Password2=…&code=…"),
        ("author=Ada&keyword=x&country_code=de&design=2", "GET /rows?author=Ada&keyword=x&country_code=de&design=2"),
        ("a%0Ab=%FF", "GET /rows?a b=\N{REPLACEMENT CHARACTER}"),
        ("x" * 2000, "GET /rows?" + "x" * 989 + "…"),
    ],
)
def test_a_title_is_method_path_and_query_without_secrets(query: str, title: str) -> None:
    environ = {"REQUEST_METHOD": "GET", "PATH_INFO": "/rows", "QUERY_STRING": query}
    assert plain_title(title_of(environ)) == title


def title(client: Any, target: str) -> str:
    title: str = client.request("GET", f"{target}&_view=status").json["title"]
    return title


def test_a_site_says_what_its_jobs_are_called(opens_here: Opener) -> None:
    _, client = opens_here(answering(), title=lambda environ: f" Report of\n{environ['PATH_INFO'][1:]} ")
    assert title(client, start(client, "/2026")) == "Report of 2026"


def test_a_job_whose_title_cannot_be_made_has_the_usual_one(
    opens_here: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    _, client = opens_here(answering(), title=lambda environ: environ["nothing"])
    with caplog.at_level(logging.ERROR, "bgmiddleware"):
        assert title(client, start(client, "/2026?a=1")) == "POST /2026?a=1"
    assert "the title of a job could not be made" in caplog.text


def test_a_title_that_is_no_function_is_refused(opens_here: Opener) -> None:
    with pytest.raises(ConfigurationError, match="title"):
        opens_here(answering(), title="Report")


def test_a_job_can_call_itself_something(opens: Opener) -> None:
    play = Play()
    site, client = opens(play)
    target = start(client, "/rows")
    play.does(lambda: setattr(current_job(), "title", "Rows\nof <Ada>" + "x" * 2000))
    play.answers()
    ended(site, target)
    assert title(client, target) == "Rows of <Ada>" + "x" * 986 + "…"


def test_outside_of_a_job_there_is_nothing_to_call() -> None:
    current_job().title = "x"  # type: ignore[misc]
    assert current_job().title == ""
