"""What is no job's page: one that says what is wrong, and a line for the script of a page of the site."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from bgmiddleware import MemoryRegistry, ThreadExecutor, progress
from bgmiddleware._serving import result
from tests.conftest import needs
from tests.kit.clients import ended, start
from tests.kit.readers import PLAIN, UNKNOWN, Clock, Opener, Play, answering, opened

html5lib: Any = needs("html5lib")

HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
HTMX = {"accept": "*/*", "hx_request": "true"}
JQUERY = {"accept": "text/html, */*; q=0.01", "x_requested_with": "XMLHttpRequest"}
FETCH = {"accept": "text/html", "sec_fetch_dest": "empty", "sec_fetch_mode": "cors"}


@pytest.fixture(params=["in-process"])
def opens(request: pytest.FixtureRequest) -> Iterator[Opener]:
    yield from opened(request)


def document(text: str) -> Any:
    return html5lib.parse(text, treebuilder="etree", namespaceHTMLElements=False)


def text_of(tree: Any, name: str) -> str:
    return "".join(tree.find(f".//{name}").itertext())


# Pages.


@pytest.mark.parametrize(
    ("language", "title", "again"),
    [("en", "This job does not exist", "Start again"), ("de", "Diesen Auftrag gibt es nicht", "Neu starten")],
)
def test_an_unknown_job_is_a_page_in_the_readers_language(opens: Opener, language: str, title: str, again: str) -> None:
    _, client = opens(answering())
    reply = client.request("GET", f"/a/rows%20b?n=1&_t={UNKNOWN}", **HTML, accept_language=language)
    assert (reply.status, reply["Content-Type"]) == (404, "text/html; charset=utf-8")
    assert reply["Vary"] == "Accept, Accept-Language"
    assert reply["Cache-Control"] == "no-store, no-transform"
    page = document(reply.text)
    assert page.attrib["lang"] == language
    assert text_of(page, "title") == text_of(page, "h1") == title
    link = page.find(".//a")
    assert (link.text, link.attrib["href"]) == (again, "./rows%20b?n=1")


def test_its_policy_allows_its_style_and_nothing_else(opens: Opener) -> None:
    _, client = opens(answering())
    policy = client.request("GET", f"/?_t={UNKNOWN}", **HTML)["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "script" not in policy


def test_an_expired_job_is_a_page_with_a_way_to_start_again(opens: Opener) -> None:
    clock = Clock()
    site, client = opens(answering(), registry=MemoryRegistry(ttl=10.0, clock=clock))
    target = start(client, "/report")
    ended(site, target)
    clock.ahead = 20.0
    reply = client.request("GET", target, **HTML)
    assert reply.status == 410
    page = document(reply.text)
    assert text_of(page, "h1") == "This job has expired"
    assert page.find(".//a").attrib["href"] == "./report"


def test_a_job_without_a_result_says_so_on_a_page(opens: Opener) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        raise ValueError("no <such> thing")

    site, client = opens(app)
    target = start(client, "/report")
    ended(site, target)
    reply = client.request("GET", f"{target}&_view=result", **HTML)
    assert reply.status == 500
    page = document(reply.text)
    assert "ValueError: no <such> thing" in text_of(page, "main")
    assert page.find(".//such") is None
    assert [(link.text, link.attrib["href"]) for link in page.iter("a")] == [
        ("Show the job", target.removeprefix("/report"))
    ]
    target = start(client, "/report?n=1", "GET")
    ended(site, target)
    page = document(client.request("GET", f"{target}&_view=result", **HTML).text)
    assert [(link.text, link.attrib["href"]) for link in page.iter("a")] == [
        ("Show the job", target.removeprefix("/report")),
        ("Start again", "./report?n=1"),
    ]


@pytest.mark.parametrize(("method", "says"), [("GET", "Try again"), ("POST", "Go back and send it again.")])
def test_who_is_refused_because_of_too_much_to_do_can_try_again(opens: Opener, method: str, says: str) -> None:
    play = Play()
    _, client = opens(play, executor=ThreadExecutor(max_workers=1, max_pending=0, drain=0.0))
    start(client, "/report")
    play.begins()
    reply = client.request(method, "/report?n=1", **HTML)
    assert (reply.status, bool(reply["Retry-After"])) == (503, True)
    page = document(reply.text)
    assert text_of(page, "h1") == "Too busy"
    assert says in text_of(page, "main")
    assert [link.attrib["href"] for link in page.iter("a")] == (["./report?n=1"] if method == "GET" else [])


@pytest.mark.parametrize("accept", ["*/*", "text/plain", "application/json"])
def test_others_get_no_page(opens: Opener, accept: str) -> None:
    _, client = opens(answering())
    assert "html" not in client.request("GET", f"/?_t={UNKNOWN}", accept=accept)["Content-Type"]


# Pieces of HTML.


@pytest.mark.parametrize("headers", [HTMX, JQUERY, FETCH], ids=["htmx", "jQuery", "fetch"])
def test_a_script_gets_a_line_about_the_job_and_in_the_end_the_result(opens: Opener, headers: dict[str, str]) -> None:
    play = Play()
    site, client = opens(play)
    target = start(client, "/a/report?n=1")
    play.does(lambda: progress(1, 4))
    reply = client.request("GET", target, **headers)
    assert (reply.status, reply["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "<html" not in reply.text
    assert "<script" not in reply.text
    line = document(reply.text).find(".//div")
    assert "".join(line.itertext()) == "▶ running 25 % Show the job"
    assert line.find("a").attrib["href"] == line.attrib["hx-get"] == target
    assert (line.attrib["hx-target"], line.attrib["hx-swap"]) == ("this", "outerHTML")
    play.answers(b"<p>the report</p>", headers=[("Content-Type", "text/html")])
    ended(site, target)
    assert client.request("GET", target, **headers).text == "<p>the report</p>"


@pytest.mark.parametrize(
    ("status", "said"), [("409 Conflict", "! refused 409 Conflict Open the answer"), ("500 Oops", "✗ failed")]
)
def test_what_was_refused_or_failed_is_a_line_that_asks_no_more(opens: Opener, status: str, said: str) -> None:
    play = Play()
    site, client = opens(play)
    target = start(client, "/report")
    play.prints("begun\n")  # what refuses at once is answered directly
    play.answers(b"sorry", status=status)
    ended(site, target)
    reply = client.request("GET", target, **HTMX)
    line = document(reply.text).find(".//div")
    assert reply.status == 200
    assert "".join(line.itertext()).startswith(said)
    assert "hx-get" not in line.attrib


def test_who_would_swap_a_whole_page_is_sent_to_the_page_of_the_job(opens: Opener) -> None:
    play = Play()
    _, client = opens(play)
    target = start(client, "/a b")
    reply = client.request("GET", target, **HTMX, hx_boosted="true")
    assert (reply.status, reply.body) == (200, b"")
    assert re.sub("%20", " ", reply["HX-Redirect"]) == re.sub("%20", " ", target)


SAVE = {"sec_fetch_mode": "navigate", "sec_fetch_dest": "empty"}


def test_a_link_that_saves_gets_the_result_when_there_is_one(opens: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(result, "_HELD", 0.05)
    play = Play()
    site, client = opens(play)
    target = start(client, "/rows.csv?n=1")
    play.prints("line\n")
    reply = client.request("GET", target, **SAVE)
    assert (reply.status, reply["Location"]) == (303, target.partition("rows.csv")[2])
    play.answers(b"a,b\n")
    ended(site, target)
    assert client.request("GET", target, **SAVE).body == b"a,b\n"


def test_a_link_that_saves_is_refused_where_nobody_can_be_held(opens: Opener) -> None:
    play = Play()
    _, client = opens(play, stream_slots=0)
    target = start(client, "/rows.csv")
    play.begins()
    reply = client.request("GET", target, **SAVE)
    assert (reply.status, bool(reply["Retry-After"])) == (503, True)


def test_a_page_that_a_script_asks_for_by_name_is_one(opens: Opener) -> None:
    site, client = opens(answering(headers=PLAIN[:0]))
    target = start(client, "/report")
    ended(site, target)
    assert "<html" in client.request("GET", f"{target}&_view=page", **FETCH).text


def test_a_script_gets_a_line_about_what_is_wrong(opens: Opener) -> None:
    _, client = opens(answering())
    reply = client.request("GET", f"/?_t={UNKNOWN}", **HTMX)
    assert reply.status == 404
    assert "".join(document(reply.text).find(".//div").itertext()) == "There is no such job."
