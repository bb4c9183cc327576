"""Statistics of a table or a text, in one pass over a stream; nothing of the web in here.

``summarize`` is the door. What cannot be summarized raises ``Unreadable`` with a sentence for the person who sent it.
"""

import codecs
import csv
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

__all__ = ["Unreadable", "summarize"]

_SAMPLE = 64 * 1024
_CHUNK = 64 * 1024
_DELIMITERS = ",;\t|"
_MAX_DISTINCT = 100_000
_MAX_COLUMNS = 1000
_MAX_FIELD = 1024 * 1024
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_BOMS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_MAGIC = {
    b"PK\x03\x04": "a ZIP archive (Excel workbooks are: save the sheet as CSV)",
    b"\x1f\x8b": "compressed with gzip (unpack it first)",
    b"%PDF": "a PDF document",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file (save the sheet as CSV)",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
}


class Unreadable(Exception):
    """The file cannot be summarized; the message says why, and what would help."""


@dataclass
class _Column:
    """What is known of one column so far. Numbers and texts are both kept account of: which it is shows at the end."""

    name: str
    count: int = 0
    numbers: int = 0
    total: float = 0
    least: float = math.inf
    most: float = -math.inf
    first: str | None = None
    last: str | None = None
    seen: dict[str, float | None] = field(default_factory=dict)  # each value, and the number that it is

    def add(self, value: str) -> None:
        self.count += 1
        try:
            number = self.seen[value]
        except KeyError:
            number = self._learn(value)
        if number is not None:
            self.numbers += 1
            self.total += number

    def _learn(self, value: str) -> float | None:
        number = float(value) if _NUMBER.fullmatch(value) else None
        if number is not None and not math.isfinite(number):
            number = None
        if number is not None:
            self.least = min(self.least, number)
            self.most = max(self.most, number)
        self.first = value if self.first is None else min(self.first, value)
        self.last = value if self.last is None else max(self.last, value)
        if len(self.seen) < _MAX_DISTINCT:
            self.seen[value] = number
        return number

    def result(self, rows: int) -> dict[str, Any]:
        numeric = 0 < self.numbers == self.count
        return {
            "name": self.name,
            "type": "number" if numeric else "text" if self.count else "empty",
            "count": self.count,
            "empty": rows - self.count,
            "distinct": len(self.seen),
            "distinct_is_exact": len(self.seen) < _MAX_DISTINCT,
            "min": self.least if numeric else self.first,
            "max": self.most if numeric else self.last,
            "mean": self.total / self.count if numeric else None,
        }


class _Counted(io.RawIOBase):
    """A file that says after each read how many bytes of it are read."""

    def __init__(self, file: BinaryIO, report: Callable[[int], None]) -> None:
        self._file = file
        self._report = report
        self._done = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._done += len(data)
        self._report(self._done)
        return len(data)


def summarize(
    file: BinaryIO,
    *,
    report: Callable[[int], None],
    name: str = "",
    kind: str = "auto",
    header: str = "auto",
) -> dict[str, Any]:
    """Return the statistics of *file*, a seekable one, as a value that is JSON.

    *kind* is ``auto``, ``table`` or ``text``, *header* is ``auto``, ``yes`` or ``no``. *report* is told how many bytes
    are read, each time some are. Raises ``Unreadable``.
    """
    if kind not in ("auto", "table", "text") or header not in ("auto", "yes", "no"):
        raise Unreadable("kind must be auto, table or text, and header auto, yes or no.")
    sample = file.read(_SAMPLE)
    file.seek(0)
    notes: list[str] = []
    if not sample:
        return {"kind": "empty", "rows": 0, "columns": [], "notes": ["The file is empty."]}
    encoding = _encoding(file, sample, notes)
    file.seek(0)
    start = sample.decode(encoding, "ignore")
    delimiter = _delimiter(start, name, cut=len(sample) == _SAMPLE)
    if kind == "auto":
        kind = "text" if delimiter is None else "table"
    raw = io.BufferedReader(_Counted(file, report), _CHUNK)
    # Lines are the csv module's business: it knows which line breaks are quoted.
    stream = io.TextIOWrapper(raw, encoding, "replace", newline="" if kind == "table" else None)
    try:
        found = _table(stream, delimiter or ",", header, notes) if kind == "table" else _text(stream)
    finally:
        stream.detach()  # or it would close a file that is not its own
    return {"kind": kind, "encoding": encoding.removesuffix("-sig"), **found, "notes": notes}


def _encoding(file: BinaryIO, sample: bytes, notes: list[str]) -> str:
    for magic, what in _MAGIC.items():
        if sample.startswith(magic):
            raise Unreadable(f"This file is {what}. Expected text or CSV.")
    for bom, encoding in _BOMS.items():
        if sample.startswith(bom):
            return encoding
    if b"\0" in sample:
        raise Unreadable("This is a binary file: it has zero bytes. Expected text or CSV.")
    controls = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in sample)
    if controls > len(sample) / 20:
        raise Unreadable("This is a binary file: it is full of control characters. Expected text or CSV.")
    if _is_utf8(file):
        return "utf-8"
    notes.append("It is no UTF-8, so it was read as Windows-1252 (Western European): accents may be wrong.")
    return "cp1252"


def _is_utf8(file: BinaryIO) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while chunk := file.read(_CHUNK):
            decoder.decode(chunk)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _delimiter(start: str, name: str, *, cut: bool) -> str | None:
    """Return what separates the columns: what makes rows of one width; None if nothing does and the name says nothing.

    *cut*: the last line of *start* may end anywhere. It does not count then, unless it is the only one.
    """
    lines = list(io.StringIO(start, newline=""))
    lines = ((lines[:-1] or lines) if cut else lines)[:50]
    best, best_score = None, 0.0
    for delimiter in _DELIMITERS:
        try:
            widths = Counter(len(row) for row in csv.reader(lines, delimiter=delimiter) if row)
        except csv.Error:
            continue
        if not widths:
            continue
        width, rows = widths.most_common(1)[0]
        agreement = rows / widths.total()
        if width > 1 and (agreement, width) > (best_score, 1):
            best, best_score = delimiter, agreement
    named = name.lower().endswith((".csv", ".tsv", ".tab"))
    if named:
        return best or ("," if name.lower().endswith(".csv") else "\t")
    return best if best_score > 0.9 and len(lines) > 1 else None


def _table(stream: io.TextIOWrapper, delimiter: str, header: str, notes: list[str]) -> dict[str, Any]:
    csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader(stream, delimiter=delimiter, strict=True)
    columns: list[_Column] = []
    rows = ragged = 0
    for number, cells in enumerate(_rows(reader)):
        if number == 0:
            if len(cells) > _MAX_COLUMNS:
                raise Unreadable(f"The table has {len(cells)} columns; {_MAX_COLUMNS} is the most that is looked at.")
            named = header == "yes" or (header == "auto" and _is_header(cells))
            notes.append(f"The first row was taken for {'the header' if named else 'data: columns have numbers'}.")
            columns = [_Column((named and cell.strip()) or f"column {i}") for i, cell in enumerate(cells, 1)]
            width = len(cells)
            if named:
                continue
        if len(cells) != width:
            ragged += 1
            if ragged == 1:
                notes.append(f"Line {reader.line_num} is the first that has {len(cells)} cells instead of {width}.")
            while len(columns) < min(len(cells), _MAX_COLUMNS):
                columns.append(_Column(f"column {len(columns) + 1}"))
        rows += 1
        for column, cell in zip(columns, cells, strict=False):
            value = cell.strip()
            if value:
                column.add(value)
    return {
        "delimiter": delimiter,
        "rows": rows,
        "ragged_rows": ragged,
        "columns": [column.result(rows) for column in columns],
    }


def _rows(reader: Any) -> Iterator[list[str]]:
    """Yield the rows that are not blank lines. Raises ``Unreadable``, naming the line."""
    begins_at = 1
    try:
        for cells in reader:
            begins_at = reader.line_num + 1
            if cells:
                yield cells
    except csv.Error as error:
        raise Unreadable(
            f"The row that begins in line {begins_at} cannot be read: {error}. Is a quote not closed, or not doubled?"
            " It can still be summarized as text."
        ) from error


def _is_header(cells: list[str]) -> bool:
    """Whether a first row looks like names: all there, all different, none a number."""
    names = [cell.strip() for cell in cells]
    return all(names) and len(set(names)) == len(names) and not any(_NUMBER.fullmatch(name) for name in names)


def _text(stream: io.TextIOWrapper) -> dict[str, Any]:
    words: Counter[str] = Counter()
    lines = empty = characters = longest = 0
    for line in stream:
        lines += 1
        characters += len(line)
        text = line.rstrip("\n")
        longest = max(longest, len(text))
        empty += not text.strip()
        words.update(word.lower() for word in _WORD.findall(text))
    return {
        "lines": lines,
        "empty_lines": empty,
        "longest_line": longest,
        "characters": characters,
        "words": words.total(),
        "distinct_words": len(words),
        "most_frequent_words": [{"word": word, "count": count} for word, count in words.most_common(20)],
    }
