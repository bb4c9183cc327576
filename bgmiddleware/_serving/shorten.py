"""Our own scripts as they are served: without comments and blanks, and with short names, since the page has a budget.

It knows what our scripts are written in, not all of JavaScript: every statement has its semicolon, no variable has the
name of a global one that the script uses, comments are lines of ``//``, and there is no ``var``, no label, no ``with``.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, product

__all__ = ["shortened"]

_TOKEN = re.compile(
    r"(?P<blank>\s+|//[^\n]*)"
    r"""|(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')"""
    r"|(?P<word>[A-Za-z_$][\w$]*)"
    r"|(?P<number>\d[\w.]*)"
    r"|(?P<mark>\?\.(?!\d)|=>|\.\.\.|\+\+|--|.)"
)
_PATTERN = re.compile(r"/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\[\n])+/[a-z]*")
_TEMPLATE = re.compile(r"(?:\\.|\$(?!\{)|[^`\\$])*(`|\$\{)", re.DOTALL)
_BEFORE_VALUE = {"return", "typeof", "case", "of", "in", "else", "await", "new", "instanceof"}
_BEFORE_OBJECT = {*"(,=:[?&|", "return", "const", "let", "...", "await", "of"}
_NO_CALL = {"if", "for", "while", "switch"}
_KEYWORDS = {"as", "do", "if", "in", "is", "of"}
_CLOSES = {")": "(", "]": "[", "}": "{"}
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"


@dataclass(slots=True)
class _Token:
    kind: str
    text: str
    within: str = ""
    """What the innermost bracket is: ``(``, ``[``, ``block``, ``object``, ``class``, or nothing."""
    partner: int = 0
    """Of a closing bracket, where its opening one is, and the other way round."""


def shortened(script: str) -> str:
    """Return *script* without what is only for us: with a short name for each variable, function, class and parameter
    that it declares, and with one ``const`` for those that follow each other."""
    said = list(_tokens(script))
    _pair(said)
    names = _names(_declared(said), said)
    for number, token in enumerate(said):
        if token.kind == "word" and token.text in names and not _is_property(said, number):
            short = names[token.text]
            token.text = f"{token.text}:{short}" if _is_shorthand(said, number) else short
    return "".join(_joined(said))


def _tokens(script: str) -> Iterator[_Token]:
    at, last = 0, _Token("mark", ";")
    templates: list[int] = []  # of each that is open, how many braces are open in it
    while at < len(script):
        token = _next(script, at, last, templates)
        at += len(token.text)
        if token.kind != "blank":
            yield token
            last = token


def _next(script: str, at: int, last: _Token, templates: list[int]) -> _Token:
    first = script[at]
    if first == "`" or (first == "}" and templates and templates[-1] == 0):
        text = first + _matched(_TEMPLATE, script, at + 1)[0]
        if first == "}":
            templates.pop()
        if text.endswith("${"):
            templates.append(0)
        return _Token("template", text)
    is_value = last.kind in ("number", "string", "template", "word") or last.text in (")", "]", "}")
    if first == "/" and script[at + 1] != "/" and (not is_value or last.text in _BEFORE_VALUE):
        return _Token("pattern", _matched(_PATTERN, script, at)[0])
    found = _matched(_TOKEN, script, at)
    if templates and found[0] in "{}":
        templates[-1] += 1 if found[0] == "{" else -1
    return _Token(str(found.lastgroup), found[0])


def _matched(pattern: re.Pattern[str], script: str, at: int) -> re.Match[str]:
    found = pattern.match(script, at)
    if found is None:
        raise ValueError(f"not understood: {script[at : at + 40]!r}")
    return found


def _pair(said: list[_Token]) -> None:
    """Say of each token what bracket it is in, and of each bracket where its partner is."""
    opened: list[tuple[int, str]] = []
    for number, token in enumerate(said):
        if (token.kind == "template" and token.text[0] == "}") or (token.kind == "mark" and token.text in _CLOSES):
            token.partner = opened.pop()[0]
            said[token.partner].partner = number
        token.within = opened[-1][1] if opened else ""
        if token.kind == "template" and token.text.endswith("${"):
            opened.append((number, "("))
        elif token.kind == "mark" and token.text in _CLOSES.values():
            opened.append((number, token.text if token.text != "{" else _kind_of_brace(said, number)))


def _kind_of_brace(said: list[_Token], number: int) -> str:
    before = said[number - 1]
    if said[number - 2].text in ("class", "extends"):
        return "class"
    is_object = before.text in _BEFORE_OBJECT or (before.kind == "template" and before.text.endswith("${"))
    return "object" if is_object else "block"


def _is_property(said: list[_Token], number: int) -> bool:
    token, before = said[number], said[number - 1].text
    behind = said[number + 1].text if number + 1 < len(said) else ""
    if before in (".", "?."):
        return True
    if token.within == "class":
        return (before in ("{", "}", ";") and behind in ("=", "(", ";")) or before in ("get", "set", "async")
    return token.within == "object" and before in ("{", ",", "get") and behind in (":", "(")


def _is_shorthand(said: list[_Token], number: int) -> bool:
    token, before, behind = said[number], said[number - 1].text, said[number + 1].text
    return token.within == "object" and before in ("{", ",") and behind in (",", "}", "=")


def _declared(said: list[_Token]) -> Iterator[str]:
    for number, token in enumerate(said):
        if token.kind == "word" and token.text in ("function", "class") and said[number + 1].kind == "word":
            yield said[number + 1].text
        elif token.text in ("const", "let") and token.kind == "word":
            yield from _declarators(said, number + 1)
        elif token.text == "=>" and said[number - 1].kind == "word":
            yield said[number - 1].text
        elif token.text == ")" and _are_parameters(said, number):
            yield from _bound(said, token.partner + 1, number)


def _are_parameters(said: list[_Token], number: int) -> bool:
    behind = said[number + 1].text
    return behind == "=>" or (behind == "{" and said[said[number].partner - 1].text not in _NO_CALL)


def _declarators(said: list[_Token], at: int) -> Iterator[str]:
    """Yield the names of a declaration that begins there."""
    while True:
        end = said[at].partner + 1 if said[at].text in "[{" else at + 1
        yield from _bound(said, at, end)
        while said[end].text not in (",", ";", "of", ")"):
            end = said[end].partner + 1 if said[end].partner > end else end + 1
        if said[end].text != ",":
            return
        at = end + 1


def _bound(said: list[_Token], at: int, end: int) -> Iterator[str]:
    """Yield the names that are bound in a pattern, or a list of parameters, but none of their default values."""
    while at < end:
        if said[at].text == "=":
            while at < end and said[at].text not in (",", "]", "}"):
                at = said[at].partner + 1 if said[at].partner > at else at + 1
        elif said[at].kind == "word" and not _is_property(said, at):
            yield said[at].text
        at += 1


def _joined(said: list[_Token]) -> Iterator[str]:
    """Yield the tokens with nothing between them that says nothing."""
    begun = [""]  # by the depth of brackets, the word that the statement began with
    last = ";"
    for number, token in enumerate(said):
        text, behind = token.text, said[number + 1].text if number + 1 < len(said) else ""
        if token.kind in ("mark", "template"):
            begun = begun[:-1] if text[0] in _CLOSES else begun
            begun = [*begun, ""] if text[-1] in "([{" else begun
        if text == ";" and behind == begun[-1] in _DECLARING:
            text = ","
        elif (
            (text in _DECLARING and last == ",")
            or (text == ";" and behind == "}" and not _is_body(said, number))
            or (text == "," and behind in _CLOSES)
        ):
            continue
        if last in (";", "{", "}") and token.kind == "word":
            begun[-1] = text
        # Two words, or two signs that would be another one.
        apart = (_is_of_word(last[-1]) and _is_of_word(text[0])) or last[-1] == text[0] in "+-"
        yield f" {text}" if apart else text
        last = text


_DECLARING = ("const", "let")


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character in "_$"


def _is_body(said: list[_Token], number: int) -> bool:
    """Whether a semicolon is all that a loop does."""
    before = said[number - 1]
    return before.text == ")" and said[before.partner - 1].text in _NO_CALL


def _names(declared: Iterable[str], said: list[_Token]) -> dict[str, str]:
    uses = Counter(token.text for token in said if token.kind == "word")
    longer = sorted((name for name in set(declared) if len(name) > 1), key=lambda name: (-uses[name], name))
    short = (
        "".join(letters)
        for length in count(1)
        for letters in product(_LETTERS, repeat=length)
        if "".join(letters) not in uses and "".join(letters) not in _KEYWORDS
    )
    names = dict(zip(longer, short, strict=False))
    return {name: to for name, to in names.items() if len(to) < len(name)}
