"""The live page in a real Chromium, against a real server: what a person sees, and what the page never does."""

import contextlib
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bgmiddleware import (
    BackgroundMiddleware,
    Channel,
    Job,
    JobState,
    MemoryRegistry,
    ThreadExecutor,
    marks,
    progress,
)
from bgmiddleware._jobs import key_of
from tests.conftest import needs
from tests.kit.browsing import Tab
from tests.kit.clients import OverHTTP, ended, served, start
from tests.kit.readers import PLAIN, Clock, Play, answering, token_of

needs("playwright.sync_api")
from playwright.sync_api import expect  # noqa: E402  # there may be none

pytestmark = pytest.mark.everything

expect.set_options(timeout=10_000)

MARKUP = "</pre></script></title><script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)>"


class Stage:
    """A site on a real server, and tabs that look at it."""

    def __init__(self, stack: contextlib.ExitStack, browser: Any) -> None:
        self._stack = stack
        self._browser = browser
        self.play = Play()
        stack.callback(lambda: [self.play.answers() for _ in range(20)])

    def open(self, app: Any = None, around: Callable[[Any], Any] = lambda app: app, **options: Any) -> "Stage":
        """Serve *app* (None: the play), with *around* it what stands between the middleware and the server."""
        options = {"when": marks.always, "executor": ThreadExecutor(drain=0.0), **options}
        self.site = self._stack.enter_context(BackgroundMiddleware(app or self.play, **options))
        self.client: OverHTTP = self._stack.enter_context(served(around(self.site), patience=0.0))
        return self

    def tab(self, **options: Any) -> Tab:
        tab = Tab(self._browser, **options)
        self._stack.callback(tab.close)
        return tab

    def url(self, target: str) -> str:
        return f"http://127.0.0.1:{self.client.port}{target}"

    def begun(self, path: str = "/report") -> str:
        target = start(self.client, path)
        self.play.begins()
        return target

    def shown(self, target: str, **options: Any) -> Tab:
        """Return a tab that shows a job's page, live."""
        tab = self.tab(**options)
        tab.page.goto(self.url(target))
        expect(tab.page.locator("#job")).to_have_class(re.compile("job-live"))
        return tab


@pytest.fixture
def stage(browser: Any) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        yield Stage(stack, browser)


def output(tab: Tab) -> Any:
    return tab.page.locator("#job-text")


def seen_to_end(tab: Tab, state: str = "finished") -> None:
    """Wait until the page has done all that it does by itself at the end of a job."""
    expect(badge(tab)).to_contain_text(state)
    tab.until(f"JSON.parse(localStorage['bgmiddleware-jobs']).some(([, job]) => job.state === '{state}')")


def badge(tab: Tab) -> Any:
    return tab.page.locator("#job-badge")


# A job from its start to its end.


@pytest.mark.parametrize("slots", [2, 0], ids=["streamed", "polled"])
def test_a_job_is_shown_as_it_goes_on_and_its_result_is_opened(stage: Stage, slots: int) -> None:
    stage.open(stream_slots=slots)
    tab = stage.tab()
    tab.page.goto(stage.url("/"))  # starts one
    page, play = tab.page, stage.play
    play.prints("line 1\n")
    expect(output(tab)).to_have_text("line 1")
    expect(badge(tab)).to_have_text("▶ running")
    expect(page).to_have_title("▶ GET /")
    expect(page.locator("#job-progress:indeterminate")).to_have_count(1)
    play.does(lambda: progress(1, 4, "rows"))
    expect(page).to_have_title("25% GET /")
    expect(page.locator("#job-note")).to_contain_text("25 % · rows · 1 of 4")
    expect(page.locator("#job-progress")).to_have_js_property("value", 25)
    expect(page.locator("#job-status")).to_have_text("25 %")
    play.prints("\x1b[32mline\x1b[0m 2\n")
    expect(output(tab)).to_have_text("line 1\nline 2")
    expect(output(tab).locator(".fg2")).to_have_text("line")
    play.answers(b"the report")
    expect(badge(tab)).to_have_text("✓ finished")
    expect(page.locator("#job-status")).to_have_text("finished")
    expect(page.locator("#job-sign")).to_contain_text("The result opens in")
    expect(page.locator("body")).to_have_text("the report")
    page.go_back()
    expect(badge(tab)).to_have_text("✓ finished")
    seen_to_end(tab)
    assert page.locator("#job-sign").is_hidden(), "who comes back stays"
    assert (tab.wrong, tab.dialogs) == ([], [])


def test_who_stays_stays(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun())
    stage.play.prints("line\n")
    stage.play.answers()
    tab.page.get_by_role("button", name="Stay here").click()
    expect(tab.page.locator("#job-sign")).to_be_hidden()
    expect(tab.page.get_by_role("link", name="Open the result")).to_be_visible()
    assert tab.wrong == []


@pytest.mark.parametrize("disturbed", ["selects", "searches", "looks at the details", "scrolls"])
def test_who_reads_is_not_carried_away(stage: Stage, disturbed: str) -> None:
    tab = stage.open().shown(stage.begun())
    stage.play.prints("some line\n" * 200)
    expect(output(tab)).to_contain_text("some line")
    if disturbed == "selects":
        tab.page.evaluate("getSelection().selectAllChildren(document.getElementById('job-text'))")
    elif disturbed == "searches":
        tab.page.get_by_role("searchbox").fill("line")
    elif disturbed == "looks at the details":
        tab.page.locator("#job-details summary").click()
    else:
        tab.page.mouse.move(600, 500)
        tab.page.mouse.wheel(0, -2000)
        expect(tab.page.get_by_label("Follow")).not_to_be_checked()
    stage.play.answers()
    seen_to_end(tab)
    assert tab.page.locator("#job-sign").is_hidden()


@pytest.mark.parametrize("touched", ["a key", "the mouse", "the wheel"])
def test_whoever_touches_anything_stays(stage: Stage, touched: str) -> None:
    tab = stage.open().shown(stage.begun())
    stage.play.prints("line\n")
    stage.play.answers()
    expect(tab.page.locator("#job-sign")).to_contain_text("The result opens in")
    if touched == "a key":
        tab.page.keyboard.press("Shift")
    elif touched == "the mouse":
        tab.page.mouse.click(600, 500)
    else:
        tab.page.mouse.move(600, 500)
        tab.page.mouse.wheel(0, 1)
    expect(tab.page.locator("#job-sign")).to_be_hidden()
    expect(badge(tab)).to_have_text("✓ finished")


def test_without_output_there_is_nothing_to_read_and_the_result_opens_at_once(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun())
    tab.page.evaluate(
        "new MutationObserver(() => document.getElementById('job-sign').textContent && (localStorage.said = 'counted'))"
        ".observe(document.getElementById('job-sign'), {childList: true})"
    )
    stage.play.answers(b"the report")
    expect(tab.page.locator("body")).to_have_text("the report")
    assert tab.page.evaluate("localStorage.said ?? null") is None


def test_a_file_is_saved_at_once_and_the_page_stays(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun())
    stage.play.prints("row 1\n")
    expect(output(tab)).to_have_text("row 1")
    with tab.page.expect_download() as download:
        stage.play.answers(b"a,b\n", headers=[("Content-Disposition", 'attachment; filename="rows.csv"'), *PLAIN])
    assert download.value.suggested_filename == "rows.csv"
    expect(badge(tab)).to_have_text("✓ finished")
    expect(output(tab)).to_have_text("row 1")


def test_a_job_that_ended_before_its_page_was_there_opens_its_result(stage: Stage) -> None:
    stage.open(answering(b"the answer", output=b"line\n"))
    tab = stage.tab()
    tab.page.goto(stage.url("/quick"))
    expect(tab.page.locator("body")).to_have_text("the answer")
    tab.page.go_back()
    expect(badge(tab)).to_have_text("✓ finished")
    expect(output(tab)).to_have_text("line")
    seen_to_end(tab)
    tab.page.reload()
    expect(output(tab)).to_have_text("line")
    assert tab.wrong == []


def test_a_quick_job_that_failed_stays_and_says_why(stage: Stage) -> None:
    stage.open(answering(b"sorry", status="500 Internal Server Error", output=b"line\n"))
    tab = stage.tab()
    tab.page.goto(stage.url("/quick"))
    expect(badge(tab)).to_have_text("✗ failed")
    seen_to_end(tab, "failed")
    expect(output(tab)).to_have_text("line")


def test_what_was_refused_is_no_success(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun())
    stage.play.answers(b"sorry", status="403 No <b>Way</b>")
    expect(badge(tab)).to_have_text("! refused: 403 No <b>Way</b>")
    expect(tab.page).to_have_title("! refused: 403 No <b>Way</b> · POST /report")
    assert "sienna" in tab.page.locator("#job-icon").get_attribute("href")
    expect(tab.page.locator("#job-status")).to_have_text("refused: 403 No <b>Way</b>")
    seen_to_end(tab, "refused")
    assert tab.page.locator("#job-sign").is_hidden()
    expect(tab.page.locator("#job-save")).to_be_hidden()
    tab.page.get_by_role("link", name="Open the result").click()
    expect(tab.page.locator("body")).to_have_text("sorry")


def test_who_was_asked_to_stop_and_goes_on_is_said_to(stage: Stage) -> None:
    clock = Clock()
    stage.open(registry=MemoryRegistry(clock=clock), stream_slots=0)
    target = stage.begun()
    stage.client.request("DELETE", target)
    clock.ahead += 40.0
    tab = stage.shown(target)
    expect(tab.page.locator("#job-note")).to_have_text(re.compile(r"^Asked to stop 4\d s ago, but still running\.$"))


def test_a_slash_searches_and_escape_closes(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun())
    page = tab.page
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("a/b")
    expect(page.get_by_role("searchbox")).to_have_value("a/b")
    page.keyboard.press("Escape")
    expect(page.get_by_role("searchbox")).to_have_value("")
    expect(page.locator("#job-output")).to_be_focused()
    page.locator("#job-details summary").click()
    expect(page.locator("#job-details")).to_have_attribute("open", "")
    page.keyboard.press("Escape")
    expect(page.locator("#job-details")).not_to_have_attribute("open", "")


def test_a_job_opened_after_its_end_stays_on_its_page(stage: Stage) -> None:
    stage.open(answering(b"body", output=b"line 1\n"))
    target = start(stage.client, "/")
    ended(stage.site, target)
    tab = stage.shown(target)
    expect(output(tab)).to_have_text("line 1")
    seen_to_end(tab)
    assert tab.page.locator("#job-sign").is_hidden()
    expect(tab.page.locator("#job-cancel")).to_be_hidden()
    expect(tab.page.locator("#job-progress")).to_have_js_property("value", 100)
    tab.page.get_by_role("link", name="Open the result").click()
    expect(tab.page.locator("body")).to_have_text("body")
    tab.page.go_back()
    expect(badge(tab)).to_have_text("✓ finished")
    assert tab.wrong == []


def test_a_failed_job_shows_why_and_opens_nothing(stage: Stage) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        stage.play(environ, lambda *_: None)
        raise ValueError("no <such> thing")

    tab = stage.open(app).shown(stage.begun())
    stage.play.answers()
    expect(badge(tab)).to_have_text("✗ failed")
    expect(tab.page.locator("#job-note")).to_have_text("ValueError: no <such> thing")
    expect(output(tab)).to_contain_text("Traceback")
    expect(tab.page).to_have_title("✗ POST /report")
    seen_to_end(tab, "failed")
    assert tab.page.locator("#job-sign").is_hidden()
    expect(tab.page.locator("#job-result")).to_be_hidden()


def test_a_job_is_cancelled_after_a_question(stage: Stage) -> None:
    target = stage.open().begun()
    tab = stage.shown(target)
    page = tab.page
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Let it run").click()
    assert stage.client.request("GET", f"{target}&_view=status").json["cancel_requested_at"] is None
    page.get_by_role("button", name="Cancel", exact=True).click()
    page.get_by_role("button", name="Cancel the job").click()
    expect(page.locator("#job-note")).to_have_text("Cancelling: the job stops the next time it prints.")
    expect(page.locator("#job-cancel")).to_be_hidden()
    stage.play.answers()
    expect(badge(tab)).to_have_text(re.compile("cancelled|finished"))
    assert (tab.wrong, tab.dialogs) == ([], [])


def test_a_job_that_was_cancelled_is_started_again(stage: Stage) -> None:
    target = start(stage.open().client, "/report?n=1", "GET")
    stage.play.begins()
    tab = stage.shown(target)
    again = tab.page.get_by_role("link", name="Start again")
    expect(again).to_be_hidden()
    stage.client.request("DELETE", target)
    stage.play._steps.put(lambda: print("never"))
    expect(badge(tab)).to_have_text("■ cancelled")
    expect(tab.page.locator("#job-progress")).to_be_hidden()
    again.click()
    stage.play.prints("once more\n")
    expect(output(tab)).to_have_text("once more")
    assert tab.page.url.partition("&_t=")[0] == stage.url("/report?n=1")
    assert tab.wrong == []


def test_a_form_that_is_redirected_late_is_offered_again(stage: Stage) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/form":
            return stage.play(environ, start_response)
        start_response("200 OK", [("Content-Type", "text/html")])
        return [
            b"<title>form</title><form action='/form' method='post'><input name='a' value='1'><button>Send</button>"
        ]

    tab = stage.open(app, when=marks.path("/form")).tab()
    tab.page.goto(stage.url("/"))
    tab.page.get_by_role("button", name="Send").click()
    stage.play.prints("looking\n")
    expect(output(tab)).to_have_text("looking")
    stage.play.answers(b"", status="308 Permanent Redirect", headers=[("Location", "/form/")])
    expect(badge(tab)).to_have_text("✗ failed")
    expect(tab.page.locator("#job-note")).to_contain_text("redirects it to /form/: send it there again")
    tab.page.get_by_role("link", name="Open the form").click()
    expect(tab.page).to_have_title("form")
    assert tab.page.url == stage.url("/form/")
    assert tab.wrong == []


def test_a_waiting_job_is_cancelled_at_once(stage: Stage) -> None:
    stage.open(executor=ThreadExecutor(max_workers=1, drain=0.0)).begun("/first")
    tab = stage.shown(start(stage.client, "/second"))
    expect(badge(tab)).to_have_text("… waiting")
    expect(tab.page.locator("#job-nothing")).to_have_text("No output yet.")
    tab.page.get_by_role("button", name="Cancel", exact=True).click()
    tab.page.get_by_role("button", name="Cancel the job").click()
    expect(badge(tab)).to_have_text("■ cancelled")
    expect(tab.page.locator("#job-nothing")).to_have_text("There was no output.")


def test_a_lost_job_says_so(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun())
    stage.play.prints("still here\n")
    stage.site.shutdown(0.0)
    expect(badge(tab)).to_have_text("? lost")
    expect(tab.page.locator("#job-note")).to_have_text("server shut down")
    expect(output(tab)).to_have_text("still here")


# A server that goes away.


def test_after_a_restart_the_page_goes_on_where_it_was(stage: Stage) -> None:
    stage.open()
    with served(stage.site, patience=0.0) as client:
        stage.client = client
        tab = stage.shown(stage.begun())
        stage.play.prints("before ☃\n")
        expect(output(tab)).to_have_text("before ☃")
    expect(tab.page.locator("#job-sign")).to_have_text("⚠ Connection lost. Trying again …")
    stage.play.prints("meanwhile\n")
    with served(stage.site, port=client.port, patience=0.0):
        expect(output(tab)).to_have_text("before ☃\nmeanwhile")
        expect(tab.page.locator("#job-sign")).to_be_hidden()
        stage.play.prints("after\n")
        expect(output(tab)).to_have_text("before ☃\nmeanwhile\nafter")
        stage.play.answers()
        expect(badge(tab)).to_have_text("✓ finished")
    assert (tab.wrong, tab.dialogs) == ([], [])


def test_a_server_that_knows_the_job_no_more_leaves_what_was_read(stage: Stage) -> None:
    stage.open()
    with served(stage.site, patience=0.0) as client:
        stage.client = client
        tab = stage.shown(stage.begun())
        stage.play.prints("before\n")
        expect(output(tab)).to_have_text("before")
    with BackgroundMiddleware(answering()) as other, served(other, port=client.port):
        expect(badge(tab)).to_have_text("– expired")
    expect(tab.page.locator("#job-sign")).to_contain_text("no longer has this job")
    expect(output(tab)).to_have_text("before")
    for gone in ("cancel", "result", "download"):
        assert tab.page.locator(f"#job-{gone}").is_hidden()
    assert (tab.wrong, tab.dialogs) == ([], [])


def test_an_output_that_is_shorter_after_a_crash_is_read_again(stage: Stage) -> None:
    stage.open()
    with served(stage.site, patience=0.0) as client:
        stage.client = client
        target = stage.begun()
        tab = stage.shown(target)
        stage.play.prints("written down\nnot yet written down\n")
        expect(output(tab)).to_contain_text("not yet")
    registry, key = MemoryRegistry(), key_of(token_of(target))
    registry.add(Job(key, "POST /report"))
    registry.claim(key, "runner")
    registry.append(key, Channel.OUTPUT, 0, b"written down\n", runner="runner")
    with BackgroundMiddleware(answering(), registry=registry) as site, served(site, port=client.port, patience=0.0):
        expect(output(tab)).to_have_text("written down")
    assert tab.wrong == []


def test_a_404_of_somebody_else_is_no_end(stage: Stage) -> None:
    stage.open()
    with served(stage.site, patience=0.0) as client:
        stage.client = client
        tab = stage.shown(stage.begun())
    with served(answering(b"starting", status="404 Not Found"), port=client.port):
        expect(tab.page.locator("#job-sign")).to_have_text("⚠ Connection lost. Trying again …")
    with served(stage.site, port=client.port, patience=0.0):
        expect(tab.page.locator("#job-sign")).to_be_hidden()
        expect(badge(tab)).to_have_text("▶ running")


# The output.


@pytest.mark.parametrize("slots", [2, 0], ids=["streamed", "polled"])
def test_characters_arrive_whole_wherever_they_were_cut(stage: Stage, slots: int) -> None:
    stage.open(stream_slots=slots)
    tab = stage.shown(stage.begun())
    text = "aé☃𝄞"
    for byte in text.encode():
        stage.play.prints_bytes(bytes([byte]))
    stage.play.prints_bytes(b"\n\xff\n")
    expect(output(tab)).to_have_text(f"{text}\n�")
    stage.play.answers()
    expect(badge(tab)).to_have_text("✓ finished")
    expect(output(tab)).to_have_text(f"{text}\n�")


def test_what_was_dropped_is_said_where_it_is_missing(stage: Stage) -> None:
    stage.open(answering(output=b"a" * 500 + b"b" * 1000 + b"c" * 500), registry=MemoryRegistry(max_output=1000))
    target = start(stage.client, "/")
    ended(stage.site, target)
    gap = "[… 1KB of output were dropped here: 500 to 1,500 …]"
    expect(output(stage.shown(target))).to_have_text(f"{'a' * 500}\n{gap}\n{'c' * 500}")


NUMBERS = b"".join(b"%06d%s\n" % (number, b"." * 93) for number in range(20_000))


def test_a_long_output_opens_at_its_end_and_can_be_loaded_whole(stage: Stage) -> None:
    stage.open(answering(output=NUMBERS))
    target = start(stage.client, "/")
    ended(stage.site, target)
    tab = stage.shown(target)
    expect(output(tab)).to_contain_text("019999")
    first = int(tab.page.evaluate("document.getElementById('job-text').textContent.slice(0, 6)"))
    assert 9_000 < first < 10_000, "the last mebibyte, from the begin of a line"
    earlier = tab.page.locator("#job-earlier")
    expect(earlier).to_contain_text("The first 951KB are not shown.")
    tab.page.get_by_role("button", name="Load all").evaluate("(button) => button.scrollIntoView()")
    tab.page.get_by_role("button", name="Load all").click()
    expect(earlier).to_be_hidden()
    tab.until("document.getElementById('job-text').textContent.includes('019999')")
    assert tab.page.evaluate("document.getElementById('job-text').textContent.slice(0, 6)") == "000000"
    assert tab.page.evaluate("document.getElementById('job-output').scrollTop") < 10, "it begins at its begin"
    assert tab.wrong == []


def test_following_yields_to_the_reader_and_comes_back(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun())
    page = tab.page
    at_end = "(({scrollTop, scrollHeight, clientHeight}) => scrollHeight - scrollTop - clientHeight < 30)"
    at_end += "(document.getElementById('job-output'))"
    stage.play.prints("".join(f"line {number}\n" for number in range(1000)))
    expect(output(tab)).to_contain_text("line 999")
    tab.until(at_end)
    page.mouse.move(600, 500)
    page.mouse.wheel(0, -3000)
    expect(page.get_by_label("Follow")).not_to_be_checked()
    before = page.evaluate("document.getElementById('job-output').scrollTop")
    stage.play.prints("more\n")
    expect(output(tab)).to_contain_text("more")
    assert page.evaluate("document.getElementById('job-output').scrollTop") == before
    page.get_by_role("button", name="To the end").click()
    expect(page.get_by_label("Follow")).to_be_checked()
    tab.until(at_end)
    stage.play.prints("".join(f"and {number}\n" for number in range(1000)))
    expect(output(tab)).to_contain_text("and 999")
    tab.until(at_end)
    expect(page.get_by_label("Follow")).to_be_checked()


def test_the_keys_scroll_the_output_from_wherever_the_reader_is(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun())
    stage.play.prints("line\n" * 1000)
    expect(output(tab)).to_contain_text("line")
    tab.until("document.getElementById('job-output').scrollTop > 0")
    tab.page.keyboard.press("Home")
    tab.until("document.getElementById('job-output').scrollTop === 0")
    expect(tab.page.get_by_label("Follow")).not_to_be_checked()
    tab.page.keyboard.press("End")
    expect(tab.page.get_by_label("Follow")).to_be_checked()


def test_search_finds_across_colours_and_makes_no_element(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun())
    page = tab.page
    stage.play.prints("one \x1b[31mtw\x1b[32mo thr\x1b[0mee\n" + "x\n" * 500 + "TWO THREE\nend\n")
    expect(output(tab)).to_contain_text("end")
    before = page.evaluate("document.querySelectorAll('*').length")
    page.get_by_role("searchbox").fill("two three")
    expect(page.locator("#job-matches")).to_have_text("2/2")
    found = "[...CSS.highlights.get('job-found')].map(String)"
    assert page.evaluate(found) == ["two three", "TWO THREE"]
    assert page.evaluate("[...CSS.highlights.get('job-here')].map(String)") == ["TWO THREE"]
    page.keyboard.press("Enter")
    expect(page.locator("#job-matches")).to_have_text("1/2")
    in_sight = "(() => { const {top} = [...CSS.highlights.get('job-here')][0].getBoundingClientRect();"
    in_sight += " return top > 0 && top < innerHeight; })()"
    tab.until(in_sight)
    page.get_by_role("button", name="Previous match").click()
    expect(page.locator("#job-matches")).to_have_text("2/2")
    tab.until(in_sight)
    page.get_by_role("searchbox").fill("nothing like it")
    expect(page.locator("#job-matches")).to_have_text("0/0")
    page.get_by_role("searchbox").fill("")
    expect(page.locator("#job-matches")).to_have_text("")
    assert page.evaluate(found) == []
    assert page.evaluate("document.querySelectorAll('*').length") == before
    assert page.evaluate("find('TWO THREE')"), "the browser's own search finds it too"


def test_lines_are_wrapped_or_not(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun())
    stage.play.prints("x" * 2000 + "\n")
    expect(output(tab)).to_contain_text("x")
    wide = "document.getElementById('job-output').scrollWidth > innerWidth"
    assert not tab.page.evaluate(wide)
    tab.page.get_by_label("Wrap lines").uncheck()
    tab.until(wide)


# Hostile input.


def test_hostile_input_is_only_text(stage: Stage) -> None:
    stage.open()
    target = stage.begun(
        "/%3C/title%3E%3Cscript%3Ealert(0)%3C/script%3E?q=%3C/script%3E%3Cscript%3Ealert(4)%3C/script%3E"
    )
    tab = stage.shown(target)
    page, play = tab.page, stage.play
    made = "[...new Set([...document.querySelectorAll('*')].map((element) => element.localName))].sort().join()"
    before = page.evaluate(made)
    play.prints(f"{MARKUP}\n\x1b]8;;javascript:alert(5)\x07link\x1b]8;;\x07 \x1b]52;c;aGk=\x07 \u202egpj.exe\n")
    play.prints_bytes(b"\xff\xfe\xc3(\x9b31m \x90$q\x9c end\n")
    play.does(lambda: progress(1, 2, MARKUP + "\u202e"))
    expect(output(tab)).to_contain_text(MARKUP)
    expect(output(tab)).to_contain_text("end")
    expect(page.locator("#job-note")).to_contain_text(MARKUP + "[U+202E]")
    title = "50% POST /</title><script>alert(0)</script>?q=</script><script>alert(4)</script>"
    expect(page).to_have_title(title)
    assert set(page.evaluate(made).split(",")) - set(before.split(",")) <= {"span"}
    assert page.evaluate("document.querySelectorAll('#job-text a, #job-text [style*=url]').length") == 0
    tab.page.locator("#job-details summary").click()
    play.answers()
    seen_to_end(tab)
    page.reload()
    expect(output(tab)).to_contain_text(MARKUP)
    assert (tab.wrong, tab.dialogs) == ([], [])


# Without a script.


def test_without_a_script_all_that_matters_works(stage: Stage) -> None:
    stage.open()
    tab = stage.tab(java_script_enabled=False)
    target = stage.begun()
    tab.page.goto(stage.url(target))
    stage.play.prints("line 1\n")
    expect(output(tab)).to_have_text("line 1")  # it asked for itself again
    expect(badge(tab)).to_have_text("▶ running")
    expect(tab.page.locator("#job-menu")).to_be_hidden()
    tab.page.get_by_role("button", name="Cancel", exact=True).click()
    expect(tab.page.locator("#job-note")).to_have_text("Cancelling: the job stops the next time it prints.")
    stage.play.answers(b"the report")
    ended(stage.site, target)
    tab.page.goto(stage.url(target))
    expect(tab.page.get_by_role("link", name="Download log")).to_be_visible()
    assert tab.wrong == []


def test_without_a_script_the_result_is_a_link(stage: Stage) -> None:
    stage.open(answering(b"the report", output=b"line\n" * 500 + b"end\n"))
    target = start(stage.client, "/")
    ended(stage.site, target)
    tab = stage.tab(java_script_enabled=False)
    tab.page.goto(stage.url(target))
    end = tab.page.locator("#job-text")
    assert end.bounding_box()["y"] < 0, "it is seen from its end"
    tab.page.get_by_role("link", name="Open the result").click()
    expect(tab.page.locator("body")).to_have_text("the report")


# Transport.


def test_all_tabs_of_a_browser_share_one_stream(stage: Stage) -> None:
    stage.open(stream_slots=8)
    target = stage.begun()
    first = stage.shown(target)
    held = stage.site._site.viewers._held
    first.until("true")
    others = [first.another() for _ in range(3)]
    for page in others:
        page.goto(stage.url(target))
        expect(page.locator("#job")).to_have_class(re.compile("job-live"))
    stage.play.prints("for all\n")
    for page in (first.page, *others):
        expect(page.locator("#job-text")).to_have_text("for all")
        assert len(held) <= 1
    stage.play.answers()
    for page in (first.page, *others):
        expect(page.locator("#job-badge")).to_have_text("✓ finished")
    assert first.wrong == []


def test_on_plain_http_it_works_without_locks_clipboard_and_notifications(stage: Stage) -> None:
    stage.open()
    tab = stage.tab()
    tab.context.add_init_script(
        """for (const name of ["locks", "clipboard"])
            Object.defineProperty(Navigator.prototype, name, {value: undefined});
        delete window.Notification;"""
    )
    target = stage.begun()
    tab.page.goto(stage.url(target))
    stage.play.prints("line 1\n")
    expect(output(tab)).to_have_text("line 1")
    expect(tab.page.get_by_label("Notify me")).to_be_hidden()
    tab.page.get_by_role("button", name="Copy link").click()
    assert tab.dialogs == ["Copy link"]
    stage.play.answers()
    expect(badge(tab)).to_have_text("✓ finished")
    assert tab.wrong == []


def noting(app: Any, queries: list[str]) -> Any:
    """Return *app*, noting what is asked."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Any:
        queries.append(environ["QUERY_STRING"])
        return app(environ, start_response)

    return middleware


def test_who_polls_says_how_long_it_waited_and_waits_longer_while_nothing_comes(stage: Stage) -> None:
    queries: list[str] = []
    stage.open(around=lambda app: noting(app, queries), stream_slots=0)
    tab = stage.shown(stage.begun())
    said = "performance.getEntriesByType('resource').filter(({name}) => name.includes('_every=')).length"
    tab.until(f"{said} >= 7")
    first, *others = [float(query.rpartition("_every=")[2]) for query in queries if "_every=" in query][:7]
    assert first == 0.0
    for quiet, waited in enumerate(others, 1):
        longer = max(1.0, 1.3 ** (quiet - 4))
        assert 0.89 <= waited / longer <= 1.11, "the second that the server said, then longer each time, and by chance"
    assert tab.wrong == []


@pytest.mark.parametrize("how", ["keeps", "cuts"])
def test_something_between_that_spoils_streams_leaves_the_page_polling(stage: Stage, how: str) -> None:
    queries: list[str] = []

    def spoiling(app: Any) -> Any:
        def middleware(environ: dict[str, Any], start_response: Any) -> Any:
            queries.append(environ["QUERY_STRING"])
            iterable = app(environ, start_response)
            if "_view=events" not in environ["QUERY_STRING"]:
                return iterable
            try:
                return [b"".join(iterable) if how == "keeps" else b"retry: 1000\n\n"]
            finally:
                iterable.close()

        return middleware

    stage.open(around=spoiling)
    tab = stage.shown(stage.begun())
    for number in range(3):
        stage.play.prints(f"line {number}\n")
        expect(output(tab)).to_contain_text(f"line {number}")
    assert sum("_view=events" in query for query in queries) == 1, "it is not tried again and again"
    stage.play.answers()
    expect(badge(tab)).to_have_text("✓ finished")
    assert tab.wrong == []


def test_a_second_browser_gets_a_slot_of_its_own_or_polls(stage: Stage) -> None:
    stage.open(stream_slots=1)
    target = stage.begun()
    tabs = [stage.shown(target) for _ in range(3)]
    for number in range(3):
        stage.play.prints(f"line {number}\n")
    for tab in tabs:
        expect(output(tab)).to_have_text("line 0\nline 1\nline 2")
        assert tab.wrong == []


# What it knows.


def test_the_place_in_the_queue_and_the_receipt_are_shown(stage: Stage) -> None:
    stage.open(executor=ThreadExecutor(max_workers=1, drain=0.0), stream_slots=0, version="<b>2026</b>")
    first = stage.begun("/first")
    start(stage.client, "/second")
    waiting = stage.shown(start(stage.client, "/third"))
    expect(waiting.page.locator("#job-note")).to_have_text("Number 2 in the queue")
    running = stage.shown(first)
    running.page.locator("#job-details summary").click()
    details = running.page.locator("#job-details dl")
    expect(details).to_contain_text(f"Run by{socket.gethostname()}:{os.getpid()}")
    expect(details).to_contain_text("Version<b>2026</b>")


def test_without_progress_earlier_runs_tell_how_long_it_takes(stage: Stage) -> None:
    clock = Clock()
    stage.open(registry=MemoryRegistry(clock=clock))
    for seconds in (35.0, 52.0):
        target = stage.begun()
        clock.ahead += seconds
        stage.play.answers()
        ended(stage.site, target)
    tab = stage.shown(stage.begun())
    note = tab.page.locator("#job-note")
    expect(note).to_have_text(re.compile(r"^about \d\d s left; the last 2 took 35 s–52 s$"))
    expect(tab.page.locator("#job-progress:indeterminate")).to_have_count(1)
    stage.play.does(lambda: progress(1, 2))
    expect(note).to_contain_text("50 % · 1 of 2")
    expect(note).not_to_contain_text("the last 2 took")


def test_what_is_left_is_estimated_from_how_far_it_came(stage: Stage) -> None:
    clock = Clock()
    stage.open(registry=MemoryRegistry(clock=clock), stream_slots=0)
    target = stage.begun()
    clock.ahead += 30.0
    stage.play.does(lambda: progress(25, 100))
    tab = stage.shown(target)
    expect(tab.page.locator("#job-note")).to_have_text(re.compile(r"^25 % · 25 of 100 · about 1 min 3\d s left$"))


def test_a_bar_that_begins_again_is_estimated_anew(stage: Stage) -> None:
    clock = Clock()
    stage.open(registry=MemoryRegistry(clock=clock), stream_slots=0)
    tab = stage.shown(stage.begun())
    for percent in (60, 10):
        stage.play.prints(f"\r{percent:3}%|█         | {percent}/100 [00:04<00:06]")
        expect(tab.page).to_have_title(f"{percent}% POST /report")
    clock.ahead += 40.0
    stage.play.prints("\r 60%|█         | 60/100 [00:04<00:06]")
    expect(tab.page.locator("#job-note")).to_have_text(re.compile(r"^60 % · about 3\d s left$"))


def test_progress_is_read_from_the_output_until_the_job_says_some(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun())
    stage.play.prints("\r 40%|████      | 4/10 [00:04<00:06]")
    expect(tab.page).to_have_title("40% POST /report")
    expect(tab.page.locator("#job-progress")).to_have_js_property("value", 40)
    stage.play.does(lambda: progress(3, 4))
    expect(tab.page).to_have_title("75% POST /report")


def test_each_step_is_announced_once(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun())
    tab.page.evaluate(
        "window.said = []; new MutationObserver(() => said.push(document.getElementById('job-status').textContent))"
        ".observe(document.getElementById('job-status'), {childList: true})"
    )
    for done in (24, 25, 80, 30, 100):
        stage.play.does(lambda done=done: progress(done, 100))
        expect(tab.page).to_have_title(f"{done}% POST /report")
    stage.play.prints("line\n")
    stage.play.answers()
    expect(badge(tab)).to_have_text("✓ finished")
    assert tab.page.evaluate("said") == ["25 %", "75 %", "finished"]


def test_details_and_icon_follow_the_state(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun())
    icon = tab.page.locator("#job-icon")
    assert "royalblue" in icon.get_attribute("href")
    stage.play.prints("line\n")
    stage.play.answers(status="201 Created")
    expect(badge(tab)).to_have_text("✓ finished")
    assert "green" in icon.get_attribute("href")
    expect(tab.page.locator("#job-note")).to_have_text("201 Created")
    tab.page.locator("#job-details summary").click()
    details = tab.page.locator("#job-details dl")
    for said in ("Started", "Ended", "Waited for", "Took", "Output5B", "Answer201 Created"):
        expect(details).to_contain_text(said)


# What a reader can do.


def test_the_link_is_copied(stage: Stage) -> None:
    target = stage.open().begun()
    tab = stage.shown(target + "&_view=page")
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.page.get_by_role("button", name="Copy link").click()
    expect(tab.page.get_by_role("button", name="Copied")).to_be_visible()
    assert tab.page.evaluate("navigator.clipboard.readText()") == stage.url(target)


def test_the_result_is_offered_for_download_before_the_log(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun("/reports/2026"))
    links = tab.page.get_by_role("link", name="Download")
    expect(links).to_have_text(["Download log"])
    stage.play.prints("line\n")
    stage.play.answers(b"the report")
    expect(links).to_have_text(["Download result", "Download log"])
    with tab.page.expect_download() as download:
        links.first.click()
    assert Path(download.value.path()).read_bytes() == b"the report"


def test_the_output_is_downloaded_raw(stage: Stage, tmp_path: Path) -> None:
    raw = b"\x1b[31mred\x1b[0m\r\n\xff\n"
    stage.open(answering(output=raw))
    target = start(stage.client, "/reports/2026")
    ended(stage.site, target)
    tab = stage.shown(target)
    with tab.page.expect_download() as download:
        tab.page.get_by_role("link", name="Download log").click()
    download.value.save_as(tmp_path / "saved")
    assert (tmp_path / "saved").read_bytes() == raw
    assert download.value.suggested_filename == "reports-2026.log"


# A tab that is not looked at, and what it would tell its user. A headless browser has neither.
HIDING = """
window.told = [];
window.Notification = class {
  static requestPermission = async () => "granted";
  constructor(title, {body}) { told.push(`${title}: ${body}`); }
};
window.hide = () => {
  Object.defineProperty(document, "hidden", {value: true, configurable: true});
  document.dispatchEvent(new Event("visibilitychange"));
};
"""


@pytest.mark.parametrize(
    ("asked", "hidden", "told"),
    [(True, True, ["✓ POST /report: finished"]), (True, False, []), (False, True, [])],
    ids=["told", "not when it can be seen", "not when nobody asked"],
)
def test_who_asked_is_told_of_the_end_when_the_page_is_hidden(
    stage: Stage, asked: bool, hidden: bool, told: list[str]
) -> None:
    tab = stage.open().tab()
    tab.context.add_init_script(HIDING)
    tab.page.goto(stage.url(stage.begun()))
    tab.page.get_by_label("Notify me").set_checked(asked)
    if hidden:
        tab.page.evaluate("hide()")
    stage.play.prints("line\n")
    stage.play.answers()
    seen_to_end(tab)
    assert tab.page.evaluate("told") == told
    assert tab.wrong == []


def test_a_hidden_tab_gives_its_stream_to_others_and_goes_on(stage: Stage) -> None:
    tab = stage.open().tab()
    tab.context.add_init_script(HIDING)
    tab.page.goto(stage.url(stage.begun()))
    stage.play.prints("line 1\n")
    expect(output(tab)).to_have_text("line 1")
    tab.until("performance.getEntriesByType('resource').some(({name}) => name.includes('_view=status'))")
    tab.page.evaluate("hide()")
    stage.play.prints("line 2\n")
    expect(output(tab)).to_have_text("line 1\nline 2")
    until = time.monotonic() + 120
    while stage.site._site.viewers._held:  # the server notices a moment later
        assert time.monotonic() < until
        tab.page.wait_for_timeout(20)
    assert tab.wrong == []


def test_the_list_of_jobs_is_bounded_and_leads_to_this_site_only(stage: Stage) -> None:
    target = stage.open().begun()
    tab = stage.shown(target)
    tab.page.evaluate(
        """localStorage["bgmiddleware-jobs"] = JSON.stringify([
            ...Array.from({length: 100}, (_, n) => [`/${n}`, {title: `job ${n}`, at: n, state: "finished"}]),
            ["https://evil.example/", {title: "evil", at: 1, state: "finished"}],
            ["//evil.example/", {title: "evil", at: 1, state: "finished"}],
            ["javascript:alert(1)", {title: "script", at: 1, state: "finished"}],
        ])"""
    )
    tab.page.reload()
    tab.until("JSON.parse(localStorage['bgmiddleware-jobs']).length === 20")
    assert "evil" not in tab.page.evaluate("localStorage['bgmiddleware-jobs']")
    tab.page.evaluate("localStorage['bgmiddleware-jobs'] = '{nonsense'")
    tab.page.reload()
    expect(badge(tab)).to_have_text("▶ running")
    assert tab.wrong == []


# Looks.


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_in_both_schemes(stage: Stage, scheme: str) -> None:
    tab = stage.open().shown(stage.begun(), color_scheme=scheme)
    page = tab.page
    page.locator("#job-details summary").click()
    dark = page.evaluate("getComputedStyle(document.getElementById('job-output')).backgroundColor")
    assert (int(re.findall(r"\d+", dark)[0]) < 64) == (scheme == "dark")
    for state in ("pending", "running", "finished", "refused", "failed", "cancelled", "lost", "expired"):
        page.evaluate(f"document.getElementById('job').dataset.job = '{state}'")
        assert page.evaluate(CONTRASTS) == []


# The texts whose contrast to what is behind them is less than WCAG 2.2 wants of text: 4.5.
CONTRASTS = """
(() => {
  const rgb = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [R, G, B] = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * R + 0.7152 * G + 0.0722 * B;
  };
  const behind = (element) => {
    const colour = rgb(getComputedStyle(element).backgroundColor);
    return colour[3] === 0 && element.parentElement ? behind(element.parentElement) : colour;
  };
  const weak = [];
  for (const element of document.querySelectorAll("#job *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.checkVisibility()) continue;
    const [a, b] = [light(rgb(getComputedStyle(element).color)), light(behind(element))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < 4.5) weak.push(`${element.id || element.className || element.localName}: ${contrast}`);
  }
  return weak;
})()
"""


def test_on_a_narrow_screen_the_tools_are_folded_and_nothing_sticks_out(stage: Stage) -> None:
    target = stage.open().begun("/" + "a-long-path-" * 20)
    tab = stage.shown(target, is_mobile=True, has_touch=True)
    tab.page.set_viewport_size({"width": 360, "height": 640})
    stage.play.does(lambda: progress(1, 2, "a-long-message-" * 20))
    expect(tab.page.locator("#job-note")).to_contain_text("a-long-message")
    expect(tab.page.get_by_role("searchbox")).to_be_hidden()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360
    tab.page.get_by_text("Menu").click()
    expect(tab.page.get_by_role("searchbox")).to_be_visible()
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 360
    tab.page.set_viewport_size({"width": 1000, "height": 640})
    expect(tab.page.get_by_role("searchbox")).to_be_visible()


def test_who_wants_less_motion_gets_none(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun(), reduced_motion="reduce")
    assert tab.page.evaluate("document.getAnimations().length") == 0


def test_everything_can_be_reached_by_keyboard_and_has_a_name(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun())
    reached: list[str] = []
    for _ in range(20):
        tab.page.keyboard.press("Tab")
        tag, shown = tab.page.evaluate(
            "(({id, localName, innerText}) => [localName === 'body' ? 'body' : id || innerText,"
            " getComputedStyle(document.activeElement).outlineStyle !== 'none'"
            " || document.activeElement.matches('#job-output:focus-visible')])(document.activeElement)"
        )
        if tag in reached or tag == "body":
            break
        assert shown, f"that {tag} has the focus cannot be seen"
        reached.append(tag)
    assert reached == [
        *(
            "Cancel",
            "job-download",
            "Share",
            "job-search",
            "job-follow",
            "job-wrap",
            "job-notify",
            "job-times",
            "job-copy",
        ),
        *("Details", "My jobs", "job-output"),
    ]
    snapshot = tab.page.locator("body").aria_snapshot()
    for named in (
        *('button "Cancel"', 'searchbox "Search"', 'checkbox "Follow" [checked]', 'checkbox "Notify me"'),
        *(
            "status",
            'link "Download log"',
            'log "Output"',
            'progressbar "Progress"',
            'heading "POST /report" [level=1]',
            "status",
        ),
    ):
        assert named in snapshot, snapshot


def test_it_speaks_the_readers_language(stage: Stage) -> None:
    stage.open()
    target = stage.begun()
    tab = stage.tab(locale="de-DE")
    tab.page.goto(stage.url(target))
    expect(badge(tab)).to_have_text("▶ läuft")
    stage.play.prints("line\n")
    stage.play.answers()
    expect(badge(tab)).to_have_text("✓ fertig")
    expect(tab.page.locator("#job-sign")).to_contain_text("Das Ergebnis öffnet sich in")
    assert tab.page.evaluate("document.documentElement.lang") == "de"


# Other sites' policies and pages.


def with_policy(app: Any) -> Any:
    """Return *app* behind a proxy that allows everything of this site, and nothing inline."""

    def middleware(environ: dict[str, Any], start_response: Any) -> Any:
        def start(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            return start_response(status, [*headers, ("Content-Security-Policy", "default-src 'self'")], *exc_info)

        return app(environ, start)

    return middleware


def test_external_assets_work_where_nothing_inline_is_allowed(stage: Stage) -> None:
    stage.open(around=with_policy, assets="external")
    tab = stage.shown(stage.begun("/a/b"))
    stage.play.prints("\x1b[38;5;208morange\x1b[0m\n")
    expect(output(tab)).to_have_text("orange")
    assert tab.page.evaluate("getComputedStyle(document.querySelector('#job header')).display") == "grid"
    stage.play.answers()
    expect(badge(tab)).to_have_text("✓ finished")
    assert tab.wrong == []


def test_without_them_such_a_site_has_the_page_without_script_and_style(stage: Stage) -> None:
    stage.open(answering(b"the report", output=b"line\n"), around=with_policy)
    target = start(stage.client, "/")
    ended(stage.site, target)
    tab = stage.tab()
    tab.page.goto(stage.url(target))
    expect(output(tab)).to_have_text("line")
    tab.page.get_by_role("link", name="Open the result").click()
    expect(tab.page.locator("body")).to_have_text("the report")
    assert any("violation" in message for message in tab.wrong), "which is why there are external ones"


def test_a_page_of_the_sites_own_is_as_live(stage: Stage) -> None:
    def page(parts: Any) -> str:
        return f"<!DOCTYPE html><head>{parts.head}</head><body><h1>The shop</h1>{parts.body}</body>"

    tab = stage.open(page=page).shown(stage.begun())
    stage.play.prints("line 1\n")
    expect(output(tab)).to_have_text("line 1")
    expect(tab.page.get_by_role("heading", name="The shop")).to_be_visible()
    stage.play.answers()
    expect(badge(tab)).to_have_text("✓ finished")
    assert tab.wrong == []


def test_the_state_of_the_job_is_what_the_page_ends_with(stage: Stage) -> None:
    target = stage.open().begun()
    tab = stage.shown(target)
    stage.play.prints("line\n")
    stage.play.answers()
    expect(badge(tab)).to_have_text("✓ finished")
    assert ended(stage.site, target).state is JobState.FINISHED
    assert token_of(target) in tab.page.url
