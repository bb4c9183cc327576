"""The live page's terminal in a real Chromium, under a policy that allows nothing: what it makes of output that is
hostile, or much, and that the browser's own tools work on it."""

import base64
import hashlib
import random
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import PROMISED
from tests.kit.browsing import Tab
from tests.kit.clients import served
from tests.kit.documents import ROOT
from tests.page.terminals import RECORDINGS, ours

pytestmark = pytest.mark.everything

STATIC = ROOT / "bgmiddleware" / "_serving" / "static"
STYLE = (STATIC / "terminal.css").read_text() + "html { color-scheme: dark; font: 16px monospace }"
SCRIPT = (
    (STATIC / "terminal.js").read_text()
    + """
const told = [];
const terminal = new Terminal(document.querySelector('main'), {
  onprogress: (progress) => told.push(progress), earlier: (count) => `${count} are not shown`,
});
// One that is never drawn should not keep the tests for ever.
const late = (resolve, reject) => setTimeout(reject, 120_000, 'not drawn');
const drawn = () => Promise.race([terminal.drawn, new Promise(late)]);
"""
)


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY = (
    f"default-src 'none'; script-src {digest(SCRIPT)}; style-src {digest(STYLE)}; connect-src 'self';"
    " img-src data:;"
    " require-trusted-types-for 'script'; trusted-types 'none'"
)
PAGE = f"""<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Terminal</title>
<link rel="icon" href="data:,">
<style>{STYLE}</style></head><body><main></main><script>{SCRIPT}</script></body></html>"""

# All that a terminal may make, with all that it may have.
STRANGE = """() => [...document.querySelectorAll('main *')].flatMap((element) => {
  const allowed = {DIV: ['class'], SPAN: ['class', 'style'], A: ['href', 'target', 'rel']}[element.tagName];
  if (!allowed) return [element.tagName];
  return element.getAttributeNames().filter((name) => !allowed.includes(name));
})"""


class Stage:
    """A tab with a terminal, and the server that it has it from."""

    def __init__(self, tab: Tab, url: str, outputs: dict[str, bytes]) -> None:
        self.tab = tab
        self.page = tab.page
        self._outputs = outputs
        self.page.goto(url)

    def draw(self, output: str | bytes) -> str:
        """Return the text of the page after this output is in it."""
        self._outputs["/output"] = output.encode() if isinstance(output, str) else output
        script = "async () => { terminal.write(await (await fetch('output')).text()); await drawn() }"
        self.page.evaluate(script)
        return str(self.page.evaluate("terminal.text()"))

    def evaluate(self, script: str) -> Any:
        """Return what a script in the page returns."""
        return self.page.evaluate(script)


@pytest.fixture
def stage(browser: Any) -> Iterator[Stage]:
    """An empty terminal; in the end nothing of it was strange, forbidden, or wrong."""
    outputs = {"/": PAGE.encode()}

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        found = outputs[environ["PATH_INFO"]]
        headers = [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(found)))]
        start_response("200 OK", [*headers, ("Content-Security-Policy", POLICY)])
        return [found]

    # waitress would put what is longer into a file, and leave that open.
    with served(app, outbuf_overflow=64 << 20) as client:
        tab = Tab(browser)
        try:
            stage = Stage(tab, f"http://127.0.0.1:{client.port}/", outputs)
            yield stage
            assert stage.evaluate(STRANGE) == []
            assert tab.dialogs == []
            assert tab.wrong == []
        finally:
            tab.close()


MARKUP = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)><svg/onload=alert(3)>"


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        (MARKUP, MARKUP),
        ("{{ 7 * 7 }} ${7 * 7} <% x %> &lt;b&gt; <!-- x", "{{ 7 * 7 }} ${7 * 7} <% x %> &lt;b&gt; <!-- x"),
        ("\x1b]8;;javascript:alert(1)\x07click\x1b]8;;\x07", "click"),
        ("\x1b]8;;data:text/html,<script>alert(1)</script>\x07click\x1b]8;;\x07", "click"),
        ("\x1b]8;;https://ok.example/\"onclick=alert(1)'\x07click\x1b]8;;\x07", "click"),
        ("\x1b]8;;https://[\x07click\x1b]8;;\x07", "click"),
        ("\x1b]52;c;aGVsbG8=\x07\x1b]0;title\x07\x1b]1337;File=:AAAA\x07.", "."),
        ("\x1bP1$r0m\x1b\\\x1b_apc\x1b\\\x1b^pm\x1b\\\x1bXsos\x1b\\.", "."),
        ("\x1b[?1049h\x1b[?25l\x1b[>c\x1b[6n\x1b[21t\x1b[c\x1bZ\x05.", "."),
        ("user\u202etxt.exe \u2066\u200f\u061c", "userU+202Etxt.exe U+2066U+200FU+061C"),
        (b"a\xff\xfe\xc3(\xf0\x9f\x8e", "a\ufffd\ufffd\ufffd(\ufffd"),
        ("a\x00b\x7fc\x08\x08d", "adc"),
        ("\ud83c\udf89 \U000e0041 \ufeff.", "\U0001f389 \U000e0041 \ufeff."),
    ],
)
def test_hostile_output_is_only_text(stage: Stage, output: str | bytes, shown: str) -> None:
    if isinstance(output, str):
        output = output.encode("utf-16", "surrogatepass").decode("utf-16")
    assert stage.draw(output) == shown
    assert stage.evaluate("document.title") == "Terminal"
    assert stage.evaluate("document.scripts.length") == 1


MUCH = {
    "a line of 10 MB": "x" * 10_000_000,
    "10 MB of one JSON value": '{"key": [1, 2, 3]}, ' * 500_000,
    "two million colours on a line": "\x1b[31ma\x1b[32mb" * 1_000_000,
    "200,000 jumps of the cursor": "\x1b[99999;99999H\x1b[99999Bx" * 200_000,
    "200,000 looks and places": "".join(f"\x1b[{n % 100};{n % 500}H\x1b[38;5;{n % 256}mx" for n in range(200_000)),
    "a million marks": "a" + "\u0301" * 1_000_000,
    "a million words over each other": "word\r" * 1_000_000,
    "a string of 5 MB": "\x1b]0;" + "x" * 5_000_000,
    "a million empty lines": "\n" * 1_000_000,
    "100,000 links": "\x1b]8;;https://a.example/\x07a\x1b]8;;https://b.example/\x07b" * 50_000 + "\x1b]8;;\x07",
    "a parameter of 100,000 digits": "\x1b[" + "1" * 100_000 + "m",
    "100,000 cleared screens": "x\x1b[2J\x1b[H" * 100_000,
}


@pytest.mark.parametrize("what", MUCH)
def test_it_is_drawn_to_its_end(stage: Stage, what: str) -> None:
    assert stage.draw(MUCH[what] + "\nEND").endswith("\nEND")
    # Whatever it was, what is kept is bounded.
    assert stage.evaluate("document.querySelectorAll('main > div').length") <= 401


def test_each_recording_becomes_the_same_text_however_it_comes(stage: Stage) -> None:
    chance = random.Random(9)
    for recording, lines in zip(
        RECORDINGS.values(), ours(*([text] for text in RECORDINGS.values()), raw=True), strict=True
    ):
        cuts = sorted(chance.randrange(len(recording)) for _ in range(4))
        parts = [recording[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        # Some of them come while the one before is being drawn, and some after.
        waits = [chance.random() < 0.5 for _ in parts]
        script = """async ([parts, waits]) => {
          terminal.clear();
          for (const [index, part] of parts.entries()) {
            terminal.write(part);
            if (waits[index]) await drawn();
          }
          await drawn();
          return terminal.text();
        }"""
        text = stage.page.evaluate(script, [parts, waits])
        assert [line.rstrip() for line in text.rstrip().split("\n")] == [line.rstrip() for line in lines]


def test_links_lead_to_web_sites_and_say_where(stage: Stage) -> None:
    link = "\x1b]8;id=1;{}\x07{}\x1b]8;;\x07\n".format
    drawn = stage.draw(
        link("https://docs.example/a b", "the \x1b[1mdocs")
        + link("https://evil.example/", "bank.example")
        + link("https://evil.example/", "ba\x1b[1mnk.exam\x1b[31mple")
        + link("https://evil.example/", "https://bank.example/login")
        + link("https://same.example/", "see same.example, or not")
        + link("https://same.example/path", "https://same.example/index.html")
        + link("https://far.example/", "x" * 300)
        + "plain https://plain.example/a?b=(c). and http://<\n"
    )
    assert drawn.split("\n") == [
        "the docs",
        *["bank.example [→ evil.example]"] * 2,
        "https://bank.example/login [→ evil.example]",
        "see same.example, or not",
        "https://same.example/index.html",
        "x" * 300 + " [→ far.example]",
        "plain https://plain.example/a?b=(c). and http://<",
    ]
    links = stage.evaluate("[...document.links].map(({href, target, rel, text}) => [href, target, rel, text])")
    safe = ["_blank", "noopener noreferrer nofollow"]
    assert links[0] == ["https://docs.example/a%20b", *safe, "the docs"]
    assert links[-1] == ["https://plain.example/a?b=(c", *safe, "https://plain.example/a?b=(c"]
    assert len(links) == 8


def test_looks_become_classes_and_colours(stage: Stage) -> None:
    stage.draw(
        "\x1b[1;3;4;9;31;44mall\x1b[0;38;5;208mpalette\x1b[0;48;2;1;2;3mtrue\x1b[0;7minverse\x1b[32mgreen\x1b[0m plain"
    )
    spans = stage.evaluate(
        "[...document.querySelectorAll('main span')].map((span) => {"
        " const {color, backgroundColor} = getComputedStyle(span);"
        " return [span.textContent, span.className, color, backgroundColor]})"
    )
    light, dark = "rgb(230, 237, 243)", "rgb(13, 17, 23)"
    assert spans == [
        ["all", "bold italic underline strike fg1 bg4", "rgb(255, 138, 128)", "rgb(11, 47, 102)"],
        ["palette", "", "rgb(255, 135, 0)", "rgba(0, 0, 0, 0)"],
        ["true", "", light, "rgb(1, 2, 3)"],
        ["inverse", "inverse", dark, light],
        ["green", "bg2", light, "rgb(3, 58, 22)"],
    ]


def test_of_more_lines_than_a_page_can_bear_the_last_are_shown(stage: Stage) -> None:
    lines = stage.draw("".join(f"line {n}\n" for n in range(150_000))).split("\n")
    assert lines[-1] == "line 149999"
    assert 75_000 <= len(lines) <= 100_000
    note = stage.evaluate("document.querySelector('main > .earlier').textContent")
    assert note == f"{150_000 - len(lines)} are not shown"
    stage.evaluate("terminal.clear()")
    assert stage.draw("again") == "again"
    assert stage.evaluate("document.querySelector('main').textContent") == "again\n"


def test_chunks_that_nobody_sees_have_a_height_but_no_layout(stage: Stage) -> None:
    stage.draw("line\n" * 5000)
    heights = stage.evaluate("[...document.querySelectorAll('main > div')].map((chunk) => chunk.offsetHeight)")
    assert len(heights) == 20
    assert min(heights) > 1000


def test_the_browser_finds_and_selects_what_is_out_of_sight(stage: Stage) -> None:
    text = stage.draw("".join(f"\x1b[3{n % 8}mline {n}\x1b[0m of many\n" for n in range(2000)))
    assert stage.evaluate("window.find('line 1234 of')")
    stage.evaluate("getSelection().selectAllChildren(document.querySelector('main'))")
    assert stage.evaluate("getSelection().toString()").rstrip() == text


def test_what_is_selected_stays_so_while_output_comes(stage: Stage) -> None:
    stage.draw("".join(f"line {n}\n" for n in range(150)))
    stage.evaluate("window.find('line 140')")
    stage.draw("more\n" * 1000)
    assert stage.evaluate("getSelection().toString()") == "line 140"


def test_a_line_is_redrawn_in_its_place_and_no_other_is_touched(stage: Stage) -> None:
    stage.draw("above\n 10%|\x1b[32m#\x1b[0m|\nbelow\n")
    stage.evaluate("""() => {
      window.changed = [];
      new MutationObserver((records) => changed.push(...records.flatMap(({addedNodes, removedNodes}) =>
        [...addedNodes, ...removedNodes].map((node) => node.textContent)))
      ).observe(document.querySelector('main'), {childList: true, characterData: true, subtree: true});
    }""")
    assert stage.draw("\x1b[2A\r 20%|\x1b[32m##\x1b[0m|") == "above\n 20%|##|\nbelow"
    assert stage.evaluate("changed.some((text) => /above|below/.test(text))") is False
    assert stage.evaluate("changed.includes('##')") is True


def test_in_a_hidden_page_it_goes_on(stage: Stage) -> None:
    stage.evaluate("""() => {
      window.frames_ = [];
      window.requestAnimationFrame = (callback) => frames_.push(callback);
      Object.defineProperty(document, 'hidden', {get: () => window.hidden});
      window.hidden = false;
    }""")
    stage.evaluate("terminal.write('begun while it was seen\\n')")
    # It is hidden before the frame that it was given comes.
    stage.evaluate("() => { window.hidden = true; document.dispatchEvent(new Event('visibilitychange')) }")
    stage.evaluate("drawn()")
    assert stage.draw("line\n" * 50_000).endswith("line")
    assert stage.evaluate("terminal.text()").startswith("begun while it was seen\nline")


def test_progress_is_told_once_as_it_changes(stage: Stage) -> None:
    for output, told in [
        ("\r 10%|#  |", [{"percent": 10, "text": "10%|#  |"}]),
        ("\r 10%|#  |", []),
        ("\r100%|###|\n", [{"percent": 100, "text": "100%|###|"}]),
        ("\x1b]9;4;1;42\x07", [{"percent": 42, "text": ""}]),
        ("\x1b]9;4;0\x07", [{"percent": 100, "text": "100%|###|"}]),
        ("plain\n", [None]),
    ]:
        stage.evaluate("told.length = 0")
        stage.draw(output)
        # What it looks at it looks at a moment later: after that it is sure that there is no more.
        stage.evaluate("new Promise((resolve) => setTimeout(resolve, 150))")
        assert stage.evaluate("told") == told


def test_clearing_tells_that_nothing_is_known(stage: Stage) -> None:
    stage.draw("\r 10%|#  |")
    stage.tab.until("told.length === 1")
    stage.evaluate("terminal.clear()")
    assert stage.evaluate("told.at(-1)") is None
    assert stage.evaluate("terminal.text()") == ""


# Rows below each other, with the same columns: as rich, tqdm and others would print them.
TABLES = {
    "Chinese and Japanese": [
        "│ 日本語のとても長い名前 │ 状態 │",
        "│ plain                  │ good │",
        "│ \x1b[1;4m漢字\x1b[0m and \x1b[2m漢字\x1b[0m          │ \x1b[32m完了\x1b[0m │",
    ],
    "Korean": ["| 한국어 텍스트 | x |", "| plain         | x |", "| 한a국b어      | x |"],
    "emoji": ["│ ✅ 🚀🚀🚀 │", "│ plain     │", "│ 🎉a❌b🎉c │"],
    "emoji of several characters": ["┃ 👍🏽 ┃", "┃ abcd ┃", "┃ 🇩🇪🇫🇷 ┃"],
    "emoji that are narrow": ["┃ ⚠\ufe0f  ┃", "┃ ab ┃", "┃ ✔x ┃"],
    "wide forms": ["┃ ＡＢＣ！ ┃", "┃ abcdefgh ┃", "┃ 、。「」 ┃"],
    "blanks": ["名前  x", "abcd  x", "🎉🎉  x"],
    "tabs": ["名前名前\tx", "abcdefgh\tx", "名前🎉\t\tx"],
    "bars": ["日本 🚀: 50%|█████     | 1/2", "plain x: 50%|█████     | 1/2", "✅✅✅x: 50%|█████     | 1/2"],
    "links": [f"\x1b]8;;http://a.example/\x07{name}\x1b]8;;\x07  │" for name in ("漢字🎉", "abcdef")],
}

# Where the last character of each line ends, in pixels.
ENDS = """() => {
  const walker = document.createTreeWalker(document.querySelector('main'), NodeFilter.SHOW_TEXT);
  const ends = [];
  while (walker.nextNode()) {
    const node = walker.currentNode;
    for (let end; (end = node.data.indexOf('\\n', end + 1)) > 0;) {
      const range = new Range();
      range.setStart(node, end - 1);
      range.setEnd(node, end);
      ends.push(range.getBoundingClientRect().right);
    }
  }
  return ends;
}"""


@pytest.fixture(scope="module")
def glyphs() -> None:
    """Fonts that have wide characters; without them a browser draws boxes, of no width that could be known."""
    command = shutil.which("fc-list")
    for language in (":lang=ja", ":lang=ko", ":charset=1f389"):
        there = command and subprocess.run([command, language], capture_output=True, check=True).stdout
        if not there:
            assert not PROMISED, f"CI=true promises fonts with {language}"
            pytest.skip(f"needs fonts with {language}")


@pytest.mark.usefixtures("glyphs")
@pytest.mark.parametrize("size", ["16px", "13.6px"])
@pytest.mark.parametrize("what", TABLES)
def test_columns_behind_wide_characters_are_below_each_other(stage: Stage, what: str, size: str) -> None:
    stage.evaluate(f"document.documentElement.style.fontSize = '{size}'")
    rows = TABLES[what]
    stage.draw("\n".join(rows))
    ends = stage.evaluate(ENDS)
    assert len(ends) == len(rows)
    assert max(ends) - min(ends) <= 1


@pytest.mark.usefixtures("glyphs")
def test_what_is_held_to_its_columns_is_found_and_copied(stage: Stage) -> None:
    text = stage.draw("\n".join(TABLES["Chinese and Japanese"] + TABLES["emoji"]))
    for wanted in ("漢字 and 漢字", "長い名前 │", "│ ✅ 🚀", "🎉a❌b"):
        assert stage.evaluate(f"getSelection().empty(), window.find('{wanted}')"), wanted
    stage.evaluate("getSelection().selectAllChildren(document.querySelector('main'))")
    assert stage.evaluate("getSelection().toString()").rstrip() == text


@pytest.mark.usefixtures("glyphs")
def test_only_lines_with_columns_have_elements_for_them(stage: Stage) -> None:
    spans = "document.querySelectorAll('main span').length"
    stage.draw("普通のログの行です 🎉 for all\n" * 1000 + "日本語" * 100 + "|\n")
    assert stage.evaluate(spans) == 0
    stage.draw("日本語日本語|\n")
    assert stage.evaluate(spans) == 1


def test_a_line_that_is_split_has_no_more_elements_than_a_whole_one(stage: Stage) -> None:
    stage.draw("\x1b[31ma\x1b[32mb" * 100_000 + "\n\x1b[31mafter")
    assert stage.evaluate("document.querySelectorAll('main span').length") == 3001
    assert stage.evaluate("[...document.querySelectorAll('main span')].at(-1).textContent") == "after"
