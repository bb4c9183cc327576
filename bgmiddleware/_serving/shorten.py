"""Our own scripts as they are served: without comments and blanks, and with short names, since the page has a budget.

It knows what our scripts are written in, not all of JavaScript: every statement has its semicolon, no variable has the
name of a global one that the script uses, comments are lines of ``//``, and there is no ``var``, no label, no ``with``.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import product

__all__ = ["shortened"]

_TOKEN = re.compile(
    r"(?P<blank>\s+|//[^\n]*)"
    r"""|(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')"""
    r"|(?P<word>[A-Za-z_$][\w$]*)"
    r"|(?P<number>\d[\w.]*)"
    r"|(?P<mark>[!=]==|\?\.(?!\d)|=>|\.\.\.|\+\+|--|.)"
)
_PATTERN = re.compile(r"/(?:\\.|\[(?:\\.|[^\]\\\n])*\]|[^/\\\[\n])+/[a-z]*")
_TEMPLATE = re.compile(r"(?:\\.|\$(?!\{)|[^`\\$])*(`|\$\{)", re.DOTALL)
_BEFORE_VALUE = {"return", "typeof", "case", "of", "in", "else", "await", "new", "instanceof"}
_BEFORE_OBJECT = {*"(,=:[?&|", "return", "const", "let", "...", "await", "of"}
_NO_CALL = {"if", "for", "while", "switch"}
_WORDS = {"true": "!0", "false": "!1", "Infinity": "1/0", "undefined": "void 0", "const": "let"}
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
    region: int = 0
    """Which statement of the outermost level, or of the module that all of a file is in, it belongs to."""
    is_outermost: bool = False
    """Whether it is itself at such a level."""


def shortened(script: str, *constants: str, properties: Collection[str] = ()) -> str:
    """Return *script* without what is only for us: with a short name for each variable, function, class and parameter
    that it declares, for the global *constants*, and for those *properties* that are only its own; with ``let`` for
    all, once for those that follow each other."""
    said = list(_tokens(script))
    _pair(said)
    _divide(said)
    declared = [*_declared(said), *((name, True) for name in constants)]
    names = _names(said, declared)
    ours = _names_of_properties(said, properties)
    for number, token in enumerate(said):
        if token.kind == "word" and _is_property(said, number):
            token.text = ours.get(token.text, token.text)
        elif token.kind == "word" and _is_shorthand(said, number) and token.text in {*names, *ours}:
            token.text = f"{ours.get(token.text, token.text)}:{names.get(token.text, token.text)}"
        elif token.kind == "word" and token.text in names:
            token.text = names[token.text]
        elif token.kind == "word" and said[number - 1].text not in (".", "?."):
            token.text = _WORDS.get(token.text, token.text)
        elif token.text in ("===", "!==") and re.match("['\"][a-z]", said[number + 1].text):
            token.text = token.text[:2]  # nothing else is equal to a word
    _drop_parentheses(said)
    begin = ",".join(f"{names[name]}={name}" for name in constants)
    return "".join([f"let {begin};" if begin else "", *_joined(said)])


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


def _divide(said: list[_Token]) -> None:
    """Say of each token which statement it belongs to. No function is in two of them."""
    region, levels = 0, [0]
    depth = 0
    for number, token in enumerate(said):
        if token.kind in ("mark", "template") and token.text[0] in _CLOSES:
            depth -= 1
        token.region, token.is_outermost = region, depth == levels[-1]
        if token.text == "}" and depth == 1 and len(levels) > 1:
            levels.pop()
        if token.is_outermost and token.text in (";", "}"):
            region += 1
        if token.kind in ("mark", "template") and token.text[-1] in "([{":
            depth += 1
        if token.text == "{" and "".join(each.text for each in said[max(0, number - 5) : number]) == "=(()=>":
            levels.append(depth)


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


def _declared(said: list[_Token]) -> Iterator[tuple[str, bool]]:
    """Yield the names that are declared, and whether that is for several statements."""
    for number, token in enumerate(said):
        if token.kind == "word" and token.text in ("function", "class") and said[number + 1].kind == "word":
            yield said[number + 1].text, token.is_outermost
        elif token.text in ("const", "let") and token.kind == "word":
            yield from ((name, token.is_outermost) for name in _declarators(said, number + 1))
        elif token.text == "=>" and said[number - 1].kind == "word":
            yield said[number - 1].text, False
        elif token.text == ")" and _are_parameters(said, number):
            yield from ((name, False) for name in _bound(said, token.partner + 1, number))


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


def _drop_parentheses(said: list[_Token]) -> None:
    """Drop those around a single parameter."""
    for number, token in enumerate(said[:-3]):
        is_single = token.text == "(" and token.partner == number + 2 and said[number + 1].kind == "word"
        if is_single and said[number + 3].text == "=>":
            token.text = said[number + 2].text = ""


def _joined(said: list[_Token]) -> Iterator[str]:
    """Yield the tokens with nothing between them that says nothing."""
    begun = [""]  # by the depth of brackets, the word that the statement began with
    last = ";"
    for number, token in enumerate(said):
        text, behind = token.text, said[number + 1].text if number + 1 < len(said) else ""
        if not text:
            continue
        if token.kind in ("mark", "template"):
            begun = begun[:-1] if text[0] in _CLOSES else begun
            begun = [*begun, ""] if text[-1] in "([{" else begun
        if text == ";" and behind == begun[-1] == "let":
            text = ","
        elif (
            (text == "let" and last == ",")
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


def _is_body(said: list[_Token], number: int) -> bool:
    """Whether a semicolon is all that a loop does."""
    before = said[number - 1]
    return before.text == ")" and said[before.partner - 1].text in _NO_CALL


def _is_of_word(character: str) -> bool:
    return character.isalnum() or character in "_$"


def _names(said: list[_Token], declared: list[tuple[str, bool]]) -> dict[str, str]:
    """Return a short name for each declared one: the same for two that are in no statement together."""
    words = [token for number, token in enumerate(said) if token.kind == "word" and not _is_property(said, number)]
    uses = Counter(token.text for token in words)
    regions: dict[str, set[int]] = {name: set() for name, _ in declared}
    kept: set[str] = {token.text for token in words if token.text not in regions} | _KEYWORDS
    for token in words:
        if token.text in regions:
            regions[token.text].add(token.region)
    for name, is_outermost in declared:
        if is_outermost:
            regions[name].add(-1)
    short_names = [*_LETTERS, *map("".join, product(_LETTERS, repeat=2))]
    names: dict[str, str] = {}
    taken: dict[str, set[int]] = {}
    for name in sorted(regions, key=lambda name: (-uses[name], name)):
        for short in short_names:
            if short not in kept and regions[name].isdisjoint(taken.setdefault(short, set())):
                break
        taken[short] |= regions[name]
        names[name] = short
    return names


def _names_of_properties(said: list[_Token], properties: Collection[str]) -> dict[str, str]:
    """Return a short name, which no property has yet, for each of those that are used."""
    uses = Counter(
        token.text
        for number, token in enumerate(said)
        if token.kind == "word" and (_is_property(said, number) or _is_shorthand(said, number))
    )
    free = (name for name in _LETTERS if name not in uses)
    return dict(zip(sorted(filter(uses.get, properties), key=lambda name: (-uses[name], name)), free, strict=False))
