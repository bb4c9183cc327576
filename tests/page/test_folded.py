"""The output as the server puts it on the page: steps and groups fold, and stderr is marked, before any script runs."""

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import pytest

from bgmiddleware import BackgroundMiddleware, Channel, Job, JobState, MemoryRegistry, marks, step
from bgmiddleware._jobs import key_of, new_token
from bgmiddleware.testing import InlineExecutor
from tests.kit.browsing import Tab
from tests.kit.clients import InProcess, ended, served, start
from tests.kit.readers import Play

RUNNER = "the runner"


class Outline(HTMLParser):
    """What is in the element of the output: a string for each head and each line, with how deep it is folded."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.said: list[str] = []
        self.heads: dict[str, bool] = {}
        self.errors = ""
        self._depth = 0
        self._in: list[str] = []
        self._is_open = self._is_error = False
        found = re.search(r'(<(pre|div) id="job-text".*?</\2>)\s*</div>\s*</div>', page, re.DOTALL)
        assert found is not None
        self.feed(found[1])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in.append(tag)
        self._depth += tag == "details"
        if tag == "details":
            self._is_open = "open" in dict(attrs)
        if tag == "span":
            self._is_error = "data-stderr" in dict(attrs)

    def handle_endtag(self, tag: str) -> None:
        self._in.pop() if self._in else None
        self._depth -= tag == "details"
        self._is_error = self._is_error and tag != "span"

    def handle_data(self, data: str) -> None:
        if "small" in self._in:
            self.said[-1] += re.sub(r"[\d.]+ s", "N s", data)
        elif "summary" in self._in:
            self.said.append(f"{'-' if self._is_open else '+'} {data}")
            self.heads[data] = self._is_open
        else:
            self.errors += data if self._is_error else ""
            self.said += [f"{'  ' * self._depth}{line}" for line in data.splitlines()]


def page_of(work: Callable[[], object], **options: Any) -> str:
    """Return the page of a job that did *work* and ended."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        work()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    with BackgroundMiddleware(app, when=marks.always, executor=InlineExecutor(), **options) as site:
        client = InProcess(site)
        return client.request("GET", f"{start(client, '/')}&_view=page").text


def steps(lines: int = 60) -> None:
    print("first words")
    with step("Install"):
        print("package\n" * lines, end="")
    with step("Test"):
        with contextlib.suppress(ValueError), step("Unit"):
            print("test")
            raise ValueError
        with step("Lint"):
            print("file\nfile")
    print("last words")


def test_finished_steps_are_closed_and_failed_ones_are_open() -> None:
    outline = Outline(page_of(steps))
    assert [line for line in outline.said if "package" not in line] == [
        "first words",
        "+ Install ✓ N s",
        "- Test ✓ N s",
        "-   Unit ✗ N s",
        "    test",
        "+   Lint ✓ N s",
        "    file",
        "    file",
        "last words",
    ]
    assert outline.said.count("  package") == 60


def test_what_is_on_one_screen_is_not_folded() -> None:
    assert set(Outline(page_of(lambda: steps(3))).heads.values()) == {True}


def test_an_output_without_parts_is_plain_text() -> None:
    page = page_of(lambda: print("one\ntwo <three>"))
    assert '<pre id="job-text" class="terminal">one\ntwo &lt;three&gt;\n</pre>' in page
    assert '<label id="job-only" hidden>' in page


GROUPS = """\
::group::Build \x1b[32mwheels\x1b[0m
wheel
wheel
::endgroup::
\x1b[0Ksection_start:1560896352:db[collapsed=true]\r\x1b[0KDatabase
ready
section_end:1560896353:db\r\x1b[0K--- Deploy
host 1
+++ Notify
mail
--- a/file
+++ b/file
-old
--- Logging error ---
"""


def test_groups_of_other_tools_fold_and_differences_do_not() -> None:
    outline = Outline(page_of(lambda: print(GROUPS + "more\n" * 50, end="")))
    # The same as the script makes of it, see test_lines_in_browser.
    assert [line for line in outline.said if "more" not in line] == [
        "+ Build wheels ✓ N s",
        "  wheel",
        "  wheel",
        "+ Database ✓ N s",
        "  ready",
        "--- Deploy",
        "host 1",
        "- Notify ✓ N s",
        "  mail",
        "--- a/file",
        "+++ b/file",
        "-old",
        "--- Logging error ---",
    ]


def test_what_came_on_stderr_is_marked_and_can_be_all_that_is_shown() -> None:
    def work() -> None:
        print("out")
        print("error <1>\nerror 2", file=sys.stderr)
        with step("Install"):
            print("out")
            print("error 3", file=sys.stderr)

    page = page_of(work)
    assert Outline(page).errors == "error <1>\nerror 2\nerror 3\n"
    assert '<label id="job-only"><input id="job-errors" type="checkbox"> Only stderr</label>' in page
    assert Outline(page_of(work, redact=["secret"])).errors == "", "where nobody knows it"


def test_hostile_marks_make_no_deep_page_and_no_markup() -> None:
    page = page_of(lambda: print("::group::<b>\n" * 3000, end=""))
    outline = Outline(page)
    assert page.count("<details") - 2 == 40, "the page has two of its own"
    assert "<b>" not in page
    assert len(outline.said) == 3000


def paused() -> Iterator[tuple[MemoryRegistry, str, str]]:
    with MemoryRegistry(clock=lambda: 1_700_000_000.0) as registry:
        token = new_token()
        key = registry.add(Job(key_of(token), "GET /report")).key
        registry.claim(key, RUNNER)
        end = 0
        for text, at in (
            ("::group::One\n", 1000),
            ("line\n", 3500),
            ("::endgroup::\n", 4000),
            ("::group::Two\n", 5000),
        ):
            times = [(end + len(text), at)]
            end = registry.append(key, Channel.OUTPUT, end, text.encode(), runner=RUNNER, times=times)
        yield registry, key, f"/report?_t={token}&_view=page"


@pytest.mark.parametrize(("state", "sign"), [(JobState.FINISHED, "✓"), (JobState.FAILED, "✗"), (None, "…")])
def test_a_group_took_from_its_first_line_to_its_last(state: JobState | None, sign: str) -> None:
    for registry, key, target in paused():
        if state is not None:
            registry.finish(key, RUNNER, state)
        with BackgroundMiddleware(lambda *_: [], registry=registry) as site:
            page = InProcess(site).request("GET", target).text
        assert "<summary>One <small>✓ 3.0 s</small></summary>" in page
        assert f"<summary>Two <small>{sign} 0.0 s</small></summary>" in page


def test_while_the_job_runs_all_is_open() -> None:
    play = Play()
    with BackgroundMiddleware(play, when=marks.always) as site:
        client = InProcess(site)
        target = start(client, "/")
        play.does(steps)
        assert set(Outline(client.request("GET", f"{target}&_view=page").text).heads.values()) == {True}
        play.answers()


# In a browser without a script.


def test_folds_and_the_filter_work_without_a_script(browser: Any) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        steps()
        with step("Warn"):
            print("a warning", file=sys.stderr)
            print("line\nline")
        print("an error", file=sys.stderr)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    with BackgroundMiddleware(app, when=marks.always) as site, served(site) as client:
        target = start(client, "/")
        ended(site, target)
        tab = Tab(browser, java_script_enabled=False)
        page = tab.page
        page.goto(f"http://127.0.0.1:{client.port}{target}&_view=page")
        package, error = page.get_by_text("package"), page.get_by_text("an error")
        assert (package.is_visible(), error.is_visible()) == (False, True)
        assert not page.get_by_text("a warning").is_visible()
        page.locator("summary", has_text="Install").press("Enter")
        assert package.is_visible()
        page.get_by_label("Only stderr").press("Space")
        assert (package.is_visible(), error.is_visible()) == (False, True)
        assert page.get_by_text("a warning").is_visible(), "though it is in what is closed"
        assert error.evaluate("(it) => getComputedStyle(it).borderLeftWidth") == "3px"
        assert tab.wrong == []
        tab.close()
