"""The lines of the output on the live page: numbers and links, parts that fold, times, and playing it back."""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from typing import Any

import pytest

from bgmiddleware import Channel, Job, JobState, MemoryRegistry, step
from bgmiddleware._jobs import key_of, new_token
from tests.conftest import needs
from tests.kit.browsing import Tab
from tests.kit.clients import ended, start
from tests.kit.readers import Clock

needs("playwright.sync_api")
from playwright.sync_api import expect  # noqa: E402  # there may be none

from tests.page.test_page_in_browser import Stage, badge, output  # noqa: E402

pytestmark = pytest.mark.everything


@pytest.fixture
def stage(browser: Any) -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        yield Stage(stack, browser)


def job_of(stage: Stage, work: Callable[[], None], **options: Any) -> str:
    """Return a job that has done *work* and ended."""

    def app(environ: Any, start_response: Any) -> list[bytes]:
        work()
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"done"]

    target = start(stage.open(app, **options).client, "/report", "GET")
    ended(stage.site, target)
    return f"{target}&_view=page"


def numbers(tab: Tab) -> list[str]:
    found: list[str] = tab.page.evaluate(
        "[...document.querySelectorAll('#job-text [data-n]')].map((it) => it.dataset.n)"
    )
    return found


def head(tab: Tab, title: str) -> Any:
    return tab.page.locator(".job-head", has_text=title)


def is_open(tab: Tab, title: str) -> str | None:
    state: str | None = head(tab, title).locator("button").get_attribute("aria-expanded")
    return state


# Numbers and links.


def test_lines_have_numbers_that_are_no_text(stage: Stage) -> None:
    tab = stage.shown(job_of(stage, lambda: print("one\ntwo\n\nthree")))
    tab.until("document.querySelectorAll('[data-n=\"4\"]').length")
    assert numbers(tab) == ["1", "2", "3", "4"]
    assert tab.page.evaluate("document.getElementById('job-text').textContent") == "one\ntwo\n\nthree\n"
    tab.page.evaluate("getSelection().selectAllChildren(document.getElementById('job-text'))")
    assert tab.page.evaluate("getSelection().toString().trim()") == "one\ntwo\n\nthree"
    assert tab.wrong == []


def test_a_link_leads_to_its_lines_and_does_not_follow(stage: Stage) -> None:
    target = job_of(stage, lambda: print("\n".join(f"line {n}" for n in range(1, 301))))
    tab = stage.shown(f"{target}#L40-L42")
    marked = tab.page.locator(".job-marked")
    expect(marked).to_have_text(["line 40", "line 41", "line 42"])
    expect(marked.first).to_be_in_viewport()
    expect(tab.page.get_by_label("Follow")).not_to_be_checked()
    tab.page.evaluate("location.hash = '#L290'")
    expect(marked).to_have_text(["line 290"])
    expect(marked).to_be_in_viewport()
    assert tab.wrong == []


def test_a_click_on_a_number_is_a_link_and_with_shift_it_is_a_range(stage: Stage) -> None:
    tab = stage.shown(job_of(stage, lambda: print("\n".join(f"line {n}" for n in range(1, 9)))))
    tab.until("document.querySelectorAll('[data-n=\"8\"]').length")
    tab.page.locator("[data-n='3']").click(position={"x": 5, "y": 5})
    expect(tab.page).to_have_url(re.compile("#L3$"))
    tab.page.locator("[data-n='5']").click(position={"x": 5, "y": 5}, modifiers=["Shift"])
    expect(tab.page).to_have_url(re.compile("#L3-L5$"))
    expect(tab.page.locator(".job-marked")).to_have_text(["line 3", "line 4", "line 5"])


def test_numbers_count_what_is_not_loaded_and_a_link_there_loads_it(stage: Stage) -> None:
    target = job_of(stage, lambda: print("\n".join(f"{n:07} {'.' * 90}" for n in range(1, 20_001))))
    tab = stage.shown(target)
    tab.until("[...document.querySelectorAll('[data-n]')].at(-1)?.dataset.n === '20000'")
    expect(tab.page.locator("#job-earlier")).to_be_visible()
    tab.page.evaluate("location.hash = '#L120'")
    expect(tab.page.locator(".job-marked")).to_have_text([re.compile("^0000120 ")])
    expect(tab.page.locator(".job-marked")).to_be_in_viewport()
    assert tab.wrong == []


def test_the_sixteen_colours_are_those_of_the_style(stage: Stage) -> None:
    tab = stage.shown(job_of(stage, lambda: print("\x1b[31;107mred\x1b[0m")))
    looks = "(({color, backgroundColor}) => [color, backgroundColor])(getComputedStyle(document.querySelector('.fg1')))"
    style = (resources.files("bgmiddleware._serving") / "static" / "terminal.css").read_text()
    assert ".fg1{color:light-dark(#a40e26," in style
    assert ".bg15{background:light-dark(#eff2f5," in style
    assert tab.page.evaluate(looks) == ["rgb(164, 14, 38)", "rgb(239, 242, 245)"]


# Folds.


def steps() -> None:
    with step("Install"):
        print("package\n" * 40)
    with step("Test"):
        with contextlib.suppress(ValueError), step("Unit"):
            print("test\n" * 40)
            raise ValueError
        with step("Lint"):
            print("file\n" * 40)
    print("last words")


def test_finished_steps_are_closed_and_failed_ones_are_open(stage: Stage) -> None:
    tab = stage.shown(job_of(stage, steps))
    expect(head(tab, "Lint")).to_have_attribute("data-took", re.compile(r"^✓ \d"))
    expect(head(tab, "Unit")).to_have_attribute("data-took", re.compile(r"^✗ \d"))
    opened = {title: is_open(tab, title) for title in ("Install", "Test", "Unit", "Lint")}
    assert opened == {"Install": "false", "Test": "true", "Unit": "true", "Lint": "false"}
    expect(output(tab).get_by_text("package").first).not_to_be_visible()
    head(tab, "Install").click()
    expect(output(tab).get_by_text("package").first).to_be_visible()
    head(tab, "Install").locator("button").press("Enter")
    assert is_open(tab, "Install") == "false"
    assert tab.wrong == []


def test_what_is_on_one_screen_is_not_folded(stage: Stage) -> None:
    def short() -> None:
        with step("Install"):
            print("package\n" * 3)
        print("more")

    tab = stage.shown(job_of(stage, short))
    expect(head(tab, "Install").locator("button")).to_have_attribute("aria-expanded", "true")


def test_a_step_closes_when_the_next_one_begins_while_the_reader_follows(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun())
    opened = contextlib.ExitStack()
    stage.play.does(lambda: opened.enter_context(step("Install")))
    stage.play.prints("package\n" * 60)
    expect(head(tab, "Install").locator("button")).to_have_attribute("aria-expanded", "true")
    stage.play.does(opened.close)
    stage.play.prints("more\nand more\n")
    expect(head(tab, "Install").locator("button")).to_have_attribute("aria-expanded", "false")
    stage.play.answers()
    expect(badge(tab)).to_have_text("✓ finished")
    assert tab.wrong == []


def test_search_and_links_open_what_is_folded(stage: Stage) -> None:
    target = job_of(stage, steps)
    tab = stage.shown(target)
    expect(head(tab, "Install").locator("button")).to_have_attribute("aria-expanded", "false")
    tab.page.get_by_role("searchbox").fill("package")
    expect(head(tab, "Install").locator("button")).to_have_attribute("aria-expanded", "true")
    other = stage.shown(f"{target}#L7")
    expect(other.page.locator(".job-marked")).to_be_in_viewport()
    assert is_open(other, "Install") == "true"


def test_keys_go_from_step_to_step_and_to_both_ends(stage: Stage) -> None:
    tab = stage.shown(job_of(stage, lambda: [steps(), print("x\n" * 100)]))
    expect(head(tab, "Lint")).to_have_count(1)
    page = tab.page
    page.keyboard.press("g")
    assert page.evaluate("document.getElementById('job-output').scrollTop") == 0
    page.keyboard.press("n")
    expect(head(tab, "Install").locator("button")).to_be_focused()
    page.keyboard.press("n")
    expect(head(tab, "Test").locator("button")).to_be_focused()
    page.keyboard.press("n")
    expect(head(tab, "Unit").locator("button")).to_be_focused()
    page.keyboard.press("p")
    expect(head(tab, "Test").locator("button")).to_be_focused()
    expect(page.get_by_label("Follow")).not_to_be_checked()
    page.keyboard.press("G")
    expect(page.get_by_label("Follow")).to_be_checked()
    page.keyboard.press("/")
    page.keyboard.type("ng")
    expect(page.get_by_role("searchbox")).to_have_value("ng")


GROUPS = """\
::group::Build \x1b[32mwheels\x1b[0m
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


def test_groups_of_other_tools_fold_and_differences_do_not(stage: Stage) -> None:
    target = job_of(stage, lambda: print(GROUPS, end=""))
    tab = stage.shown(target)
    expect(tab.page.locator(".job-head > div")).to_have_text(["Build wheels", "Database", "Notify"])
    head(tab, "Build").click()
    expect(output(tab).get_by_text("wheel", exact=True)).not_to_be_visible()
    expect(output(tab).get_by_text("::endgroup::")).not_to_be_visible()
    expect(output(tab).get_by_text("ready")).to_be_visible()
    log = stage.client.request("GET", target.replace("_view=page", "_view=log"))
    assert log.body.decode() == GROUPS, "curl sees what was printed"
    assert tab.wrong == []


def test_one_click_leads_to_the_failure(stage: Stage) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        steps()
        raise ValueError("no such thing")

    target = start(stage.open(app).client, "/report", "GET")
    ended(stage.site, target)
    tab = stage.shown(f"{target}&_view=page")
    tab.page.keyboard.press("g")
    tab.page.get_by_role("button", name="Go to the failure").click()
    expect(output(tab).get_by_text("Traceback")).to_be_in_viewport()


# What came on stderr.


def spoken() -> None:
    print("out\n" * 300, end="")
    print("first error\nsecond error", file=sys.stderr)
    with step("Install"):
        print("package\n" * 300, end="")
        sys.stdout.write("mixed ")
        print("line", file=sys.stderr)
        print("third error", file=sys.stderr)
        print("package\n" * 300, end="")
    print("last words")


def test_what_came_on_stderr_is_marked_and_can_be_all_that_is_shown(stage: Stage) -> None:
    tab = stage.shown(job_of(stage, spoken))
    only = tab.page.get_by_label("Only stderr")
    expect(head(tab, "Install").locator("button")).to_have_attribute("aria-expanded", "false")
    only.focus()
    tab.page.keyboard.press("Space")
    marked = output(tab).locator("[data-stderr]")
    expect(marked).to_have_text(["first error", "second error", "third error"])
    for number, line in enumerate(marked.all()):
        expect(line).to_be_in_viewport()
        expect(line).to_have_css("border-left-width", "3px")
        assert line.get_attribute("data-n") == ["301", "302", "605"][number]
    visible = "[...document.querySelectorAll('#job-text > div > div')].filter((it) => it.checkVisibility()).length"
    assert tab.page.evaluate(visible) == 3
    only.press("Space")
    expect(output(tab).get_by_text("last words")).to_be_in_viewport()
    expect(head(tab, "Install").locator("button")).to_have_attribute("aria-expanded", "false")
    assert tab.wrong == []


def test_who_goes_to_another_line_sees_all_again(stage: Stage) -> None:
    tab = stage.shown(job_of(stage, spoken))
    only = tab.page.get_by_label("Only stderr")
    only.check()
    tab.page.evaluate("location.hash = '#L605'")
    expect(tab.page.locator(".job-marked")).to_have_text("third error")
    expect(only).to_be_checked()
    tab.page.evaluate("location.hash = '#L12'")
    expect(tab.page.locator(".job-marked")).to_be_in_viewport()
    expect(only).not_to_be_checked()


def test_there_is_no_filter_where_nothing_came_on_stderr(stage: Stage) -> None:
    tab = stage.shown(job_of(stage, lambda: print("one")))
    tab.until("document.querySelectorAll('[data-n=\"1\"]').length")
    expect(tab.page.get_by_label("Only stderr")).not_to_be_visible()


def test_a_job_that_ends_while_one_looks_has_its_marks_then(stage: Stage) -> None:
    tab = stage.open().shown(stage.begun())
    stage.play.does(lambda: print("an error", file=sys.stderr))
    expect(output(tab)).to_contain_text("an error")
    expect(tab.page.get_by_label("Only stderr")).not_to_be_visible()
    stage.play.answers()
    expect(tab.page.get_by_label("Only stderr")).to_be_visible()
    expect(output(tab).locator("[data-stderr]")).to_have_text("an error")


# Times.


PRINTED = [("first\n", 1000), ("second\n", 131_000), ("third\n", 132_500), ("fourth\n", 133_000)]


def paused(stage: Stage) -> str:
    """Return an ended job that printed nothing for 130 seconds."""
    clock = Clock()
    registry = MemoryRegistry(clock=clock)
    stage.open(registry=registry)
    token = new_token()
    key = registry.add(Job(key_of(token), "GET /report")).key
    registry.claim(key, "runner")
    end = 0
    for text, at in PRINTED:
        times = [(end + len(text), at)]
        end = registry.append(key, Channel.OUTPUT, end, text.encode(), runner="runner", times=times)
    clock.ahead += 140.0
    registry.finish(key, "runner", JobState.FINISHED)
    return f"/report?_t={token}&_view=page"


def test_times_are_shown_on_a_switch_which_is_remembered_and_silence_always(stage: Stage) -> None:
    tab = stage.shown(paused(stage))
    expect(output(tab).locator("[data-quiet]")).to_have_attribute("data-quiet", "nothing printed for 2 min 10 s")
    assert tab.page.locator("[data-t]").count() == 0
    tab.page.get_by_label("Times").select_option("since the start")
    expect(output(tab).locator("[data-n='2']")).to_have_attribute("data-t", "02:11.0")
    expect(output(tab).locator("[data-n='4']")).to_have_attribute("data-t", "02:13.0")
    expect(tab.page.locator("#job-strip")).to_be_visible()
    tab.page.reload()
    expect(tab.page.get_by_label("Times")).to_have_value("1")
    expect(output(tab).locator("[data-n='2']")).to_have_attribute("data-t", "02:11.0")
    assert tab.wrong == []


def test_a_job_is_played_back_as_it_came_but_for_its_silence(stage: Stage) -> None:
    tab = stage.shown(paused(stage))
    expect(output(tab)).to_contain_text("fourth")
    tab.page.get_by_role("button", name="Replay").click()
    expect(output(tab)).to_have_text("first")
    tab.page.get_by_role("button", name="16×").click()
    expect(output(tab)).to_contain_text("fourth")
    expect(tab.page.locator("#job-sign")).to_be_hidden()
    tab.page.get_by_role("button", name="Replay").click()
    expect(output(tab)).to_have_text("first")
    tab.page.get_by_role("button", name="Stop").click()
    expect(output(tab)).to_contain_text("fourth")
    assert tab.wrong == []


def test_the_steps_shares_of_the_time_are_a_bar(stage: Stage) -> None:
    tab = stage.shown(job_of(stage, steps))
    parts = tab.page.locator("#job-shares button")
    expect(parts).to_have_text([re.compile(r"^Install \d+ %$"), re.compile(r"^Test \d+ %$")])
    parts.last.click()
    expect(head(tab, "Test")).to_be_in_viewport()


# What the page asks for.


def test_the_times_of_an_output_begin_where_one_asks(stage: Stage) -> None:
    target = job_of(stage, lambda: print("one\ntwo\nthree"), stream_slots=0)

    def asked(offset: int) -> Any:
        where = target.replace("_view=page", f"_view=times&_offset={offset}")
        return json.loads(stage.client.request("GET", where).body)

    whole = asked(0)
    assert (whole["offset"], whole["line"], whole["times"][-1][0]) == (0, 1, 14)
    assert asked(4)["line"] == 2
    assert asked(99) == {"offset": 14, "line": 4, "times": [], "stderr": []}
