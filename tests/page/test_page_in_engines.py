"""The page in three engines: Chromium, Firefox and WebKit. What any browser must do; the rest is tried in Chromium."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, ThreadExecutor, marks, progress
from tests.kit import engines
from tests.kit.clients import OverHTTP, served, start
from tests.kit.engines import Engine, until
from tests.kit.readers import PLAIN, Play

pytestmark = pytest.mark.everything

BADGE = "return document.getElementById('job-badge').textContent === '{}'"
TEXT = "return document.getElementById('job-text').textContent"
BODY = "return document.body.innerText.trim()"


@pytest.fixture(scope="module", params=engines.ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with engines.opened(request.param) as engine:
        yield engine


class Stage:
    """A site on a real server, whose job does as it is told."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self.play = Play()
        stack.callback(lambda: [self.play.answers() for _ in range(20)])
        site = stack.enter_context(BackgroundMiddleware(self, when=marks.always, executor=ThreadExecutor(drain=0.0)))
        self.client: OverHTTP = stack.enter_context(served(site, patience=0.0))
        self.quick: tuple[str, bytes] | None = None

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"] == "/favicon.ico":
            start_response("404 Not Found", PLAIN)
            return [b"none"]
        if self.quick is None:
            return self.play(environ, start_response)
        status, body = self.quick
        start_response(status, PLAIN)
        return [body]

    def url(self, target: str) -> str:
        return f"http://127.0.0.1:{self.client.port}{target}"

    def begun(self) -> str:
        target = start(self.client, "/report")
        self.play.begins()
        return self.url(target)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        yield Stage(stack)


def test_a_job_is_shown_as_it_goes_on_and_its_result_is_opened(engine: Engine, stage: Stage) -> None:
    engine.go(stage.begun())
    stage.play.prints("\x1b[31mline\x1b[0m 1 https://example.com/\n")
    until(engine, f"{TEXT} === 'line 1 https://example.com/\\n'")
    assert engine.run("return document.querySelector('#job-text a').href") == "https://example.com/"
    assert engine.run("return document.querySelector('#job-text .fg1').textContent") == "line"
    stage.play.does(lambda: progress(1, 4, "rows"))
    until(engine, "return document.title === '25% POST /report'")
    assert engine.run("return document.getElementById('job-progress').value") == 25
    stage.play.answers(b"the report")
    until(engine, BADGE.format("✓ finished"))
    until(engine, "return document.getElementById('job-sign').textContent.includes('The result opens in')")
    until(engine, f"{BODY} === 'the report'")
    engine.back()
    until(engine, BADGE.format("✓ finished"))
    until(engine, f"{TEXT}.startsWith('line 1')")


def test_who_touches_a_key_stays(engine: Engine, stage: Stage) -> None:
    engine.go(stage.begun())
    stage.play.prints("line\n")
    until(engine, f"{TEXT} === 'line\\n'")
    stage.play.answers()
    until(engine, "return !document.getElementById('job-sign').hidden")
    engine.press("a")
    until(engine, "return document.getElementById('job-sign').hidden")
    assert engine.run(BADGE.format("✓ finished"))


def test_a_quick_job_opens_its_result_and_back_leads_to_its_page(engine: Engine, stage: Stage) -> None:
    stage.quick = "200 OK", b"the answer"
    engine.go(stage.url("/quick"))
    until(engine, f"{BODY} === 'the answer'")
    engine.back()
    until(engine, BADGE.format("✓ finished"))
    until(engine, "return document.getElementById('job').classList.contains('job-live')")
    assert engine.run("return document.getElementById('job-sign').hidden")


def test_what_was_refused_is_no_success(engine: Engine, stage: Stage) -> None:
    engine.go(stage.begun())
    until(engine, BADGE.format("▶ running"))
    stage.play.answers(b"sorry", status="409 Conflict")
    until(engine, BADGE.format("! refused: 409 Conflict"))
    assert engine.run("return document.title") == "! refused: 409 Conflict · POST /report"
    engine.click("#job-result")
    until(engine, f"{BODY} === 'sorry'")


def test_a_job_is_cancelled_after_a_question(engine: Engine, stage: Stage) -> None:
    engine.go(stage.begun())
    until(engine, "return document.getElementById('job').classList.contains('job-live')")
    engine.click("#job-cancel button")
    until(engine, "return document.getElementById('job-ask').open")
    engine.click("#job-ask [value=cancel]")
    until(engine, "return document.getElementById('job-note').textContent.startsWith('Cancelling')")


def test_a_slash_searches_and_escape_closes(engine: Engine, stage: Stage) -> None:
    engine.go(stage.begun())
    stage.play.prints("one two one\n")
    until(engine, f"{TEXT}.startsWith('one')")
    engine.press("/")
    until(engine, "return document.activeElement.id === 'job-search'")
    for key in "one":
        engine.press(key)
    until(engine, "return document.getElementById('job-matches').textContent === '2/2'")
    engine.press("Escape")
    until(engine, "return document.getElementById('job-search').value === ''")
    engine.click("#job-details summary")
    until(engine, "return document.getElementById('job-details').open")
    engine.press("Escape")
    until(engine, "return !document.getElementById('job-details').open")


def test_a_job_that_is_not_there_is_a_page(engine: Engine, stage: Stage) -> None:
    engine.go(stage.url("/report?_t=6b9f2e1c-0000-4000-8000-000000000000"))
    until(engine, "return document.title === 'This job does not exist'")
    assert engine.run("return document.querySelector('main a').getAttribute('href')") == "./report"
