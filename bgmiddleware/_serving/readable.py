"""Terminal output for who has no terminal: the text that a person would see."""

import re
import unicodedata

__all__ = ["readable"]

# CSI, OSC and the other string sequences, and the two-character escapes (ECMA-48 §5).
_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\|(?=\n)|$)"
    r"|\x1b[ -/]*[0-~]?"
)
# A line in which the cursor goes back.
_REWRITTEN = re.compile(r"^.*(?:[\r\b]|\x1b\[[\d;]*[DG`]).*$", re.MULTILINE)
# What such a line is made of: text, or what moves the cursor, or erases, within the line.
_PARTS = re.compile(r"(?P<text>[^\r\b\x1b]+)|[\r\b]|\x1b\[(?P<number>\d*)(?P<move>[CDGKP`])|" + _ESCAPES.pattern)
_COLUMNS = 512
_CONTROLS = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127, *range(128, 160)))
_BIDI = {code: f"[U+{code:04X}]" for code in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))}
_SHOWN = {chr(code): shown or "" for code, shown in {**_CONTROLS, **_BIDI}.items()}
# Not str.translate(): of text that is not ASCII it takes twenty times as long.
_NOT_SHOWN = re.compile(f"[{re.escape(''.join(_SHOWN))}]")


def readable(text: str) -> str:
    """Return terminal output as the text that a person would see: without escapes and controls, of a line that was
    written over (with carriage returns, backspaces, or by moving within it) only the last state, and with
    bidirectional overrides made visible."""
    text = re.sub(r"\r+\n", "\n", text)
    text = _REWRITTEN.sub(lambda line: _last_state(line[0]), text)
    return _NOT_SHOWN.sub(lambda found: _SHOWN[found[0]], _ESCAPES.sub("", text))


def _last_state(line: str) -> str:
    """Return what stands in a line at last. A character takes the columns that a terminal gives it."""
    cells: list[str] = []
    column = 0
    for part in _PARTS.finditer(line):
        if part["text"]:
            put = _cells_of(_untabbed(part["text"], column).translate(_CONTROLS))
            cells += " " * (column - len(cells))
            cells[column : column + len(put)] = put
            column += len(put)
        elif part["move"]:
            column = _moved(cells, column, part["move"], part["number"])
        elif part[0] == "\r":
            column = 0
        elif part[0] == "\b":
            column = max(0, column - 1)
    return "".join(cells).rstrip(" ")


def _moved(cells: list[str], column: int, move: str, number: str) -> int:
    """Do what a control sequence asks for to the *cells*; return the column where the cursor is then."""
    count = min(int(number[:4] or 0), _COLUMNS)
    if move == "K":
        _erase(cells, column, count)
    elif move == "P":
        del cells[column : column + (count or 1)]
    elif move == "C":
        return max(column, min(column + (count or 1), _COLUMNS))
    elif move == "D":
        return max(0, column - (count or 1))
    else:
        return max(0, count - 1)
    return column


def _erase(cells: list[str], column: int, mode: int) -> None:
    if mode in (0, 2):
        del cells[column if mode == 0 else 0 :]
    elif mode == 1:
        cells[: column + 1] = " " * min(column + 1, len(cells))


def _untabbed(text: str, column: int) -> str:
    return (" " * (column % 8) + text).expandtabs(8)[column % 8 :] if "\t" in text else text


def _cells_of(text: str) -> list[str]:
    """Return a cell for each column of *text*; an empty one for the second column of a wide character."""
    if text.isascii():
        return list(text)
    cells: list[str] = []
    for character in text:
        if unicodedata.combining(character) or character in "\u200d\ufe0f":
            if cells:
                cells[-1] += character
            continue
        cells.append(character)
        if unicodedata.east_asian_width(character) in "WF":
            cells.append("")
    return cells
