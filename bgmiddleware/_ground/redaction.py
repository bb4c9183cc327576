"""Replace secrets in texts, and in a stream of bytes that comes in any pieces."""

import codecs
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["LONGEST", "REDACTED", "Form", "Redaction", "Redactor"]

REDACTED = "[redacted]"

LONGEST = 8192
"""The longest secret that is found, in characters; and how much of an unfinished line is held back at least."""

_LINE = re.compile(r"[^\r\n]+")


class _Found(NamedTuple):
    """Where a match is in a text, and where in it the secret is."""

    begin: int
    end: int
    secret: tuple[int, int]


class Form:
    """A well-known form of secrets: the text *anchor*, then the *atoms*: each a pattern of one character, and how many
    of those there are at least and at most. A group ``secret`` in *full* says what is replaced; empty: all of it.

    From the atoms follows what may be the beginning of a match. *full* overrides what a whole match is.
    """

    def __init__(self, anchor: str, *atoms: tuple[str, int, int], full: str = "") -> None:
        self._anchor = anchor
        whole = "".join(f"{one}{{{least},{most}}}" for one, least, most in atoms)
        self._whole = re.compile(re.escape(anchor) + (full or whole))
        beginning = ""
        for one, least, most in reversed(atoms):
            beginning = f"(?:{one}{{{least},{most}}}{beginning}|{one}{{0,{max(0, least - 1)}}})"
        self._beginning = re.compile(beginning + r"\Z")

    def found(self, text: str) -> Iterator[_Found]:
        if self._anchor in text:
            yield from map(_found, self._whole.finditer(text))

    def held(self, text: str) -> int:
        """Return where the first match may begin that the end of *text* cuts; its length: nowhere."""
        anchor = self._anchor
        at = text.find(anchor, max(0, len(text) - LONGEST))
        while at >= 0:
            if self._beginning.match(text, at + len(anchor)):
                return at
            at = text.find(anchor, at + 1)
        return _cut(text, anchor)


@dataclass(frozen=True, repr=False)
class Redaction:
    """What is to be replaced by ``[redacted]``: *values* wherever they are, *patterns* within a line, and *forms*.

    Where a match has a group named ``secret``, only that is replaced. Any thread may call.
    """

    values: tuple[str, ...] = ()
    patterns: tuple[re.Pattern[str], ...] = ()
    forms: tuple[Form, ...] = ()

    def __repr__(self) -> str:
        return f"Redaction({len(self.values)} values, {len(self.patterns)} patterns, {len(self.forms)} forms)"

    def __call__(self, text: str) -> str:
        """Return *text* without secrets."""
        return _replaced(text, self._found(text))

    def stream(self, store: Callable[[bytes], None]) -> "Redactor":
        """Return what passes bytes on to *store* without secrets."""
        return Redactor(self, store)

    def passed(self, text: str) -> tuple[str, str]:
        """Return what can be passed on of *text*, without secrets; and what must wait for what comes after it."""
        hold = min(
            (
                *(_cut(text, value) for value in self.values),
                *(form.held(text) for form in self.forms),
                _line(text, len(text)) if self.patterns else len(text),
            ),
            default=len(text),
        )
        is_too_long = len(text) - hold > 2 * LONGEST
        if hold == 0 and not is_too_long:
            return "", text
        if is_too_long:
            hold = len(text) - LONGEST
        # The last line is looked at only if it must be passed on now.
        end = len(text) if is_too_long or not self.patterns else _line(text, len(text))
        found = self._found(text, end)
        hold = self._settled(text, found, hold, is_too_long)
        return _replaced(text[:hold], [match for match in found if match.end <= hold]), text[hold:]

    def _settled(self, text: str, found: list[_Found], hold: int, is_too_long: bool) -> int:
        """Return where to cut, so that nothing that was found is cut, and no line in which patterns are looked for."""
        before = -1
        while before != hold:
            before = hold
            if self.patterns and not is_too_long:
                hold = _line(text, hold)
            for begin, end, _ in found:
                if begin < hold < end:
                    hold = begin if len(text) - begin <= 2 * LONGEST else end
        return hold

    def _found(self, text: str, end: int | None = None) -> list[_Found]:
        found: list[_Found] = []
        for value in self.values:
            at = text.find(value)
            while at >= 0:
                found.append(_Found(at, at + len(value), (at, at + len(value))))
                at = text.find(value, at + 1)
        for form in self.forms:
            found.extend(form.found(text))
        if self.patterns:
            for line in _LINE.finditer(text, 0, len(text) if end is None else end):
                for pattern in self.patterns:
                    found.extend(_found(match, line.start()) for match in pattern.finditer(line[0]))
        return found


class Redactor:
    """Passes bytes on to *store* without secrets, whatever pieces they come in. Not for several threads at once.

    What may be the beginning of a secret waits for what comes after it, or for :meth:`end`. Where there are patterns,
    so does a line that has no end yet.
    """

    def __init__(self, redaction: Redaction, store: Callable[[bytes], None]) -> None:
        self._redaction = redaction
        self._store = store
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._held = ""

    @property
    def holds(self) -> bool:
        """Whether something waits."""
        return bool(self._held)

    def store(self, data: bytes) -> None:
        text, self._held = self._redaction.passed(self._held + self._decode(data))
        self._pass_on(text)

    def end(self) -> None:
        """Pass on what waits: nothing comes after it."""
        text, self._held = self._held + self._decode(b"", True), ""
        self._pass_on(self._redaction(text))

    def _pass_on(self, text: str) -> None:
        if text:
            self._store(text.encode("utf-8", "surrogateescape"))


def _found(match: "re.Match[str]", offset: int = 0) -> _Found:
    begin, end = match.span()
    secret = match.span("secret") if "secret" in match.re.groupindex else (-1, -1)
    if secret[0] < 0:  # of several alternatives this has none
        secret = begin, end
    return _Found(begin + offset, end + offset, (secret[0] + offset, secret[1] + offset))


def _cut(text: str, value: str) -> int:
    """Return where in *text* the longest beginning of *value* begins that *text* ends with; its length: there is none.

    Not where all of it is there.
    """
    at = text.find(value[0], max(0, len(text) - len(value) + 1))
    while at >= 0:
        if value.startswith(text[at:]):
            return at
        at = text.find(value[0], at + 1)
    return len(text)


def _line(text: str, end: int) -> int:
    """Return where the line begins that *end* is in."""
    return max(text.rfind("\n", 0, end), text.rfind("\r", 0, end)) + 1


def _replaced(text: str, found: Iterable[_Found]) -> str:
    """Replace the secrets. Those that overlap are one."""
    parts, done = [], 0
    begin = end = -1
    for first, last in sorted(match.secret for match in found):
        if first >= last:
            continue
        if first < end:
            end = max(end, last)
            continue
        if end > 0:
            parts += [text[done:begin], REDACTED]
            done = end
        begin, end = first, last
    if end > 0:
        parts += [text[done:begin], REDACTED]
        done = end
    return "".join([*parts, text[done:]]) if parts else text
