"""The live page's terminal: what is right is decided by a reference, wherever nothing better is intended."""

import random
import re
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.kit.documents import ROOT
from tests.page.terminals import RECORDINGS, both, node, ours, progress

pytestmark = pytest.mark.everything

STATIC = ROOT / "bgmiddleware" / "_serving" / "static"

Lines = list[str]

# The differences that are intended: an output, our lines, the reference's lines, and why.
DIFFERENCES = {
    "tabs": ("a\tb", ["a\tb"], ["a       b"], "who copies a table wants its tabs"),
    "reset": (
        "kept\x1bcnew",
        ["kept", "new"],
        ["new"],
        "a log does not lose what was said; for CSI 2 J the reference is told so (scrollOnEraseInDisplay)",
    ),
    "bidi": ("a\u202eb", ["aU+202Eb"], ["a\u202eb"], "what turns the order of text about is named instead"),
    "long line": (
        "x" * 8193,
        ["x" * 8192, "x"],
        ["x" * 8193],
        "a line that is too long for the browser is split; the reference wraps it, and these tests join it again",
    ),
    "wrapping": (
        "x" * 600 + "\ry",
        ["y" + "x" * 599],
        ["x" * 512 + "y" + "x" * 87],
        "our lines are not wrapped at some width: the carriage returns to the beginning",
    ),
    "string without an end": (
        "\x1b]0;title\nshown\n",
        ["", "shown"],
        [],
        "a string ends with its line, else a log broken off in one would swallow all that follows",
    ),
    "broken sequence": (
        "\x1b[3\nHello",
        ["", "Hello"],
        ["", "", "ello"],
        "a sequence that is broken off takes nothing with it",
    ),
    "C1": ("\x9b31mred", ["31mred"], ["red"], "in UTF-8 these are no controls; nobody sends them"),
    "mark after a sequence": ("e\x1b[1m\u0301", ["e\u0301"], ["e"], "it is the mark of the letter all the same"),
    "many marks": (
        "a" + "\u0301" * 20,
        ["a" + "\u0301" * 16 + " " + "\u0301" * 4],
        ["a" + "\u0301" * 20],
        "thousands of marks on one letter take a browser minutes",
    ),
    "other screen": ("a\n\x1b[?1049hb\x1b[?1049l", ["a", "b"], ["a"], "what was shown is kept"),
    "both screens": (
        "a\n\x1b[?1049h\x1b[Hb\nc\x1b[?1049ld",
        ["a", "b", "c", "d"],
        ["a", "d"],
        "what was shown on the other screen is kept, and nothing is written over it",
    ),
    "old names of the other screen": (
        "a\x1b[?1;47hb\x1b[?47lc\x1b[?1047;25hd\x1b[?1047le",
        ["a", "b", "c", "d", "e"],
        ["a c e"],
        "as above",
    ),
    "the other screen, entered and left twice": (
        "a\x1b[?1049h\x1b[?1049hb\r\x1b[?1049l\x1b[?1049lc",
        ["a", "b", "c"],
        ["ac"],
        "a second time means nothing",
    ),
    "home and erase": (
        "a\nb\n\x1b[H\x1b[Jc\n\x1b[1;1H\x1b[?25l\x1b[0Jd",
        ["a", "b", "c", "d"],
        ["d"],
        "so the screen is cleared where TERM is linux, vt100 or screen: what was said scrolls off, as by CSI 2 J",
    ),
    "frames": (
        "step 1\nstep 2\n\x1b[Hframe 1\n\x1b[Hframe 2\n",
        ["step 1", "step 2", "frame 2"],
        ["frame 2", "step 2"],
        "who draws frames writes over their own, not over what was printed before",
    ),
    "line drawing": ("\x1b(0qq\x1b(B", ["qq"], ["──"], "nobody sends these since there is UTF-8"),
    "insert line": ("a\nb\x1b[1A\x1b[Lc", ["ac", "b"], ["c", "a", "b"], "full-screen programs do that, jobs do not"),
    "scroll up": ("a\nb\x1b[S", ["a", "b"], ["b"], "full-screen programs do that, jobs do not"),
    "reverse at the top": ("a\x1bMb", ["ab"], [" b", "a"], "full-screen programs do that, jobs do not"),
    "repeat": ("-\x1b[3b", ["-"], ["----"], "full-screen programs do that, jobs do not"),
    "newer emoji": (
        "\U0001fae0\rab",
        ["ab"],
        ["ab"],
        "the widths are those of the browser's Unicode, the reference's of Unicode 11",
    ),
}


@pytest.fixture(scope="module")
def compared() -> dict[str, tuple[Lines, Lines]]:
    """Every recording as we draw it and as the reference does."""
    return dict(zip(RECORDINGS, both(*RECORDINGS.values()), strict=True))


def test_what_redraws_its_last_lines_leaves_no_copies() -> None:
    assert edge("1\n2\n\x1b[2A\x1b[J3\n4\n\x1b[2A\r\x1b[0J5\n6\n") == ["5", "6"]


def test_the_other_screen_gives_back_the_style_that_it_was_entered_with() -> None:
    ((first, second, third),) = ours(["\x1b[31ma\x1b[?1049h\x1b[32mb\x1b[?1049lc"])
    assert (first, second, third) == ("⟦1⟧a", "⟦2⟧b", "⟦1⟧c")


@pytest.mark.parametrize("name", [name for name in RECORDINGS if name != "clear"])
def test_a_recording_looks_as_in_the_reference(compared: dict[str, tuple[Lines, Lines]], name: str) -> None:
    mine, reference = compared[name]
    assert mine == reference
    assert mine


def test_what_was_cleared_stays_in_the_log() -> None:
    assert edge(RECORDINGS["clear"]) == ["one", "two", "three", "four"]


def test_a_log_of_100000_lines_looks_as_in_the_reference() -> None:
    log = "".join(f"\x1b[3{n % 8}m{n:06}\x1b[0m GET /{n % 97}\n" for n in range(100_000))
    ((mine, reference),) = both(log)
    assert len(mine) == 100_000
    assert mine == reference


@pytest.fixture(scope="module")
def differing() -> dict[str, list[Lines]]:
    """Our lines and the reference's, of each output that is meant to differ."""
    outputs = [output for output, *_ in DIFFERENCES.values()]
    lines = node([[[output], whose, {"raw": True}] for output in outputs for whose in ("ours", "reference")])
    return {name: lines[2 * index : 2 * index + 2] for index, name in enumerate(DIFFERENCES)}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_an_intended_difference_is_one(differing: dict[str, list[Lines]], name: str) -> None:
    _, mine, reference, why = DIFFERENCES[name]
    assert differing[name] == [mine, reference], why


def pieces(text: str, chance: random.Random) -> Iterator[str]:
    """Cut a text into pieces of random lengths, most of them short."""
    while text:
        length = chance.choice([1, 1, 2, 3, 7, 50, 1000])
        yield text[:length]
        text = text[length:]


def utf16(text: str) -> str:
    """Return the text as JavaScript sees it, so that it can be cut in the middle of a character."""
    return "".join(
        chr(unit)
        for high, low in zip(*[iter(text.encode("utf-16-le", "surrogatepass"))] * 2, strict=True)
        for unit in [high | low << 8]
    )


def test_any_division_of_the_output_gives_the_same() -> None:
    chance = random.Random(20)
    outputs = [
        *RECORDINGS.values(),
        *(output for output, *_ in DIFFERENCES.values()),
        *(
            "👨‍👩‍👧 🎉" * 300,
            "𝐀𝐀𝐀\x1b[1D🎉\x1b[1Dx\r\n" * 50,
            "\x1b]8;;https://example.com/\x1b\\link\x1b]8;;\x07 \x1bP1;2q###\x1b\\ after" * 50,
        ),
    ]
    whole = ours(*([output] for output in outputs))
    for _ in range(4):
        divided = ours(*(list(pieces(utf16(output), chance)) for output in outputs))
        assert divided == whole


# What programs send, and what has one meaning only.
_MOVES = [f"\x1b[{n}{move}" for n in ("", 1, 2, 5, 30) for move in "ABCDEFGd"]
_MOVES += ["\x1b[2;1H", "\x1b[5;9H", "\x1b[9;40f"]
_ERASES = [f"\x1b[{erase}" for erase in "K 1K 2K J 1J 2J 3X 2P 9P".split()] + ["\x1b[2K\rabcdef\x1b[3G\x1b[3@"]
_OTHERS = ["\r", "\n", "\r\n", "\b", "\v", "\f", "\x00", *(f"\x1b{code}" for code in "7 8 [s [u D E [?25l".split())]
_WORDS = ["a", "bc ", "word", "日本", "🎉", "e\u0301", "한", "─█", "x" * 9, "Größe", "👨\u200d👩", "☀\ufe0f", "  "]
_LOOKS = "m 0m 1m 2m 3m 4m 7m 9m 21m 22m 24m 27m 31m 42m 39m 49m 95m 103m 1;38;5;208m 38;2;1;2;3m 48:2::9:8:7m".split()
_LOOKS += "38:5:99m 48;5;250;3m 38;5;9m 58;5;1;4m".split()


def chaos(chance: random.Random) -> str:
    """Return a short output that does everything in no order."""
    kinds = [_MOVES, _ERASES, _OTHERS, _WORDS, _WORDS, [f"\x1b[{look}" for look in _LOOKS]]
    return "".join(chance.choice(chance.choice(kinds)) for _ in range(80))


def test_no_order_of_sequences_looks_other_than_in_the_reference() -> None:
    chance = random.Random(4)
    outputs = [chaos(chance) for _ in range(500)]
    for output, (mine, reference) in zip(outputs, both(*outputs), strict=True):
        if "\x1b[2J" in output:
            # What is cleared scrolls off down to its last text; whether a blank that was jumped over is text is open.
            mine, reference = ([line for line in lines if line] for lines in (mine, reference))
        assert mine == reference, f"of {output!r}"


def test_widths_differ_only_about_what_is_newer_than_the_reference() -> None:
    import unicodedata

    # Some of them were given another width later: hexagrams, and a few marks that Unicode 11 had wrong.
    revised = {*range(0x4DC0, 0x4E00), *range(0x31E4, 0x31E6), 0x1734, 0x1171E, 0x1F93B, 0x1F946}
    old = unicodedata.ucd_3_2_0
    for code, mine, theirs in node("widths"):
        known = old.category(chr(code)) != "Cn"
        assert not known or code in revised, f"U+{code:04X}: {mine}, not {theirs}"


def edge(output: str) -> Lines:
    """Return our lines of one output, as they are."""
    (lines,) = ours([output], raw=True)
    return lines


def test_a_hundred_lines_can_be_rewritten_and_not_one_more() -> None:
    lines = "".join(f"{n}\n" for n in range(200))
    assert edge(f"{lines}\x1b[99AX")[100:103] == ["100", "X01", "102"]
    assert edge(f"{lines}\x1b[9999AX")[100:103] == ["100", "X01", "102"]


def test_the_cursor_makes_no_lines_below_the_screen() -> None:
    assert edge("a\x1b[9999Bb") == ["a", *[""] * 98, " b"]
    assert edge("\x1b[9999;9999Hb" * 50) == [*[""] * 99, " " * 511 + "b" * 50]


def test_the_cursor_is_not_moved_beyond_column_512_but_text_goes_on() -> None:
    assert edge("\x1b[9999Cb") == [" " * 511 + "b"]
    assert edge("x" * 600 + "\x1b[9Cb") == ["x" * 600 + "b"]


def test_a_line_is_split_at_8192_columns() -> None:
    assert [len(line) for line in edge("x" * 8192 + "\n" + "y" * 8193)] == [8192, 8192, 1]
    assert [len(line) for line in edge("x" * 8191 + "日" + "y")] == [8191, 2]
    assert [len(line) for line in edge("\t" * 1025)] == [1024, 1]


def test_after_3000_changes_of_style_the_rest_of_a_line_is_plain() -> None:
    ((line,),) = ours(["\x1b[31ma\x1b[32mb" * 1600])
    assert line.count("⟦") == 3001
    assert line.endswith("⟦⟧" + "ab" * 100)


def test_a_string_of_any_length_is_swallowed_and_the_next_line_is_not() -> None:
    assert edge("a\x1b]" + "x" * 100_000 + "\x07b\n\x1bP" + "y" * 100_000 + "\nc") == ["ab", "", "c"]


def test_sequences_of_any_length_end_somewhere() -> None:
    assert edge("a\x1b[" + "1" * 5000 + "mb\nc")[-1] == "c"
    assert edge("a\x1b[" + ";" * 256 + "mb") == ["ab"]


@pytest.mark.parametrize(
    ("output", "percent"),
    [
        ("\r 45%|████▌     | 9/20 [00:01<00:01]", 45),
        ("download ━━━━━━━━╸━━━━━━━━━━━━  40% 0:00:10", 40),
        ("tests/test_a.py .....      [ 12%]", 12),
        ("[ 45%] Building C object", 45),
        ("[3/4] RUN make", 75),
        ("[########            ]  40%", 40),
        ("Füllen |████████████▌   | ▃▅▇ 21/40 [52%] in 0s", 52),
        ("1/8\r2/8", 25),
        ("rows 12 of 48\rrows 24 of 48", 50),
        ("1.5/20.0 MB\r5.0/20.0 MB", 25),
        ("512 kB/1.2 MB\r600 kB/1.2 MB", None),
        ("10%\r99.5% of it", 99.5),
        ("\x1b[2Kstep 1/4\x1b[1G\x1b[2Kstep 2/4", 50),
        ("step 1/4\n\x1b[1A\x1b[2Kstep 3/4\n", 75),
        ("50% sample:   7%|7         | 7/100 [00:00<00:09]", 7),
        ("\rFortschritt: 12,5 %\rFortschritt: 45,5 %", 45.5),
        ("1,5\xa0%\r2,5\xa0%", 2.5),
        ("done: 20 percent\rdone: 30 percent", 30),
        ("tamam: %20\rtamam: %30", 30),
        ("7％\r8％", 8),
        ("rows 1,234/4,936\rrows 2,468/4,936", 50),
        ("45% of files, CPU 93%\r46% of files, CPU 12%", 46),
        ("epoch 1/4 acc 91%\repoch 2/4 acc 93%", 50),
        ("[2/4] 2 workers\r[3/4] 2 workers", 75),
        ("[11/28] Building", 1100 / 28),
        ("11/28 ━━━━━━━━ 00:10\r14/28 ━━━━━━━━━ 00:10", 50),
        ("[----------]   0%", 0),
        ("[==>       ]  25%", 25),
        # These only talk.
        ("[11/28] 10:00 the backup begins", None),
        ("[11/28] Sat 10:00:01 begins", None),
        ("11/28 10:00:01 backup\r11/28 10:00:02 backup", None),
        ("28/11, 9:05 am\r28/11, 9:06 am", None),
        ("CPU 93% MEM 45% 10:00:01\rCPU 91% MEM 45% 10:00:02", None),
        ("cpu0: 93.0%\rcpu0: 91.0%", None),
        ("93% CPU, 45% memory\r91% CPU, 45% memory", None),
        ("Mem[|||||  1.2G/7.8G]\rMem[|||||  1.3G/7.8G]", None),
        ("loss 3%\rloss 2%", None),
        ("%d items\r%s items", None),
        ("|users|93%|", None),
        ("[-----] 45% of users affected", None),
        ("[*****] 20% off", None),
        ("1,234%\r2,234%", None),
        ("up -5%\rup +6%", None),
        ("3/4 of all people", None),
        ("the disk is 93% full", None),
        ("on 25/11/2026", None),
        ("at 25/11/2026\rat 26/11/2026", None),
        ("a/1/2\rb/1/2", None),
        ("5/4\r6/4", None),
        ("0/0\r0/0", None),
        ("100 it/s\r200 it/s", None),
        ("150%\r1150%", None),
    ],
)
def test_progress_is_read_from_lines_that_show_it(output: str, percent: float | None) -> None:
    ((seen, reported),) = progress(output)
    assert (seen and seen["percent"]) == percent
    assert reported is None


def test_of_nested_bars_the_outermost_counts() -> None:
    nested = RECORDINGS["tqdm_nested"]
    told = progress(*(nested[at : at + 20] for at in range(0, len(nested), 20)))
    percents = [seen["percent"] for seen, _ in told if seen]
    assert sorted({*percents}) == [0, 25, 50, 75, 100]
    assert percents == sorted(percents)


def test_of_bars_one_after_the_other_the_one_that_moves_counts() -> None:
    bars = progress("\r50%|#|", "\r100%|#|\n", "\r10%|#|", "\r20%|#|")
    assert [seen and seen["percent"] for seen, _ in bars] == [50, 100, 10, 20]


def test_what_goes_on_after_a_bar_is_not_at_its_end() -> None:
    told = progress("\r50%|#|", "\nplain", "\r", "\x1b[1A\r100%|#|\n", "", "and now?\n")
    assert [seen and seen["percent"] for seen, _ in told] == [50, 50, 50, 100, 100, None]


def test_progress_can_be_reported() -> None:
    told = progress(
        "\x1b]9;4;1;30\x07", "\x1b]9;4;2;40\x1b\\", "\x1b]9;4;3\x07", "\x1b]9;4;1;500\x07", "\x1b]9;4;0\x07"
    )
    assert [reported for _, reported in told] == [30, 40, None, 100, None]


def luminance(colour: str) -> float:
    """Return the relative luminance of #rgb or #rrggbb, as WCAG defines it."""
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    channels = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted([luminance(one), luminance(other)])
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", [1, 2], ids=["light", "dark"])
def test_each_of_the_sixteen_colours_is_legible_on_the_page_and_on_each_other(theme: int) -> None:
    style = (STATIC / "terminal.css").read_text()
    pair = r":\s*light-dark\((#\w+), ?(#\w+)\)"
    page = re.search(r"\.terminal \{[^}]*background" + pair, style)
    text = re.search(r"\.terminal \{[^}]*?color" + pair, style)
    fronts = [match[theme] for match in re.finditer(r"\.fg\d+\{color" + pair, style)]
    backs = [match[theme] for match in re.finditer(r"\.bg\d+\{background" + pair, style)]
    assert page
    assert text
    assert (len(fronts), len(backs)) == (16, 16)
    for front in [text[theme], *fronts]:
        for back in [page[theme], *backs]:
            assert contrast(front, back) >= 4.5, f"{front} on {back}"


def test_the_script_can_be_served_without_comments_and_indentation() -> None:
    script = (STATIC / "terminal.js").read_text()
    lines = [line.strip() for line in script.splitlines()]
    assert not [line for line in lines if "/*" in line or re.search(r"[;{}] //", line)]
    assert not [line for line in lines if line.count("`") % 2]
    # A line that begins so would go on with the one before it: nothing is left to the insertion of semicolons.
    for before, line in pairwise(line for line in lines if line and not line.startswith("//")):
        assert not re.match(r"[(\[`/+-]", line) or re.search(r"[;{},(\[]$|=>$", before), line
