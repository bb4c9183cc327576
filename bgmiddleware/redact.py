"""What is never stored or shown: ``redact=`` of the middleware, see ``docs/explanation/security.rst``."""

import fnmatch
import json
import os
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

from ._ground.redaction import LONGEST, Form, Redaction
from .errors import ConfigurationError

__all__ = ["Redaction", "common", "environment", "redaction_of"]

SHORTEST = 4
SHORTEST_OF_ENVIRONMENT = 8


def environment(*globs: str) -> Redaction:
    """Return the values of the environment variables that *globs* name, such as ``"*_TOKEN"``, as they are now.

    A value of fewer than eight characters is left out: ``1`` or ``true`` would be found everywhere.
    """
    if not globs or not all(isinstance(glob, str) for glob in globs):
        raise ConfigurationError.of_setting("redact.environment", globs, 'names of variables, such as "*_TOKEN"')
    values = [
        value
        for name, value in os.environ.items()
        if len(value) >= SHORTEST_OF_ENVIRONMENT and any(fnmatch.fnmatchcase(name, glob) for glob in globs)
    ]
    return Redaction(values=tuple(spelling for value in values for spelling in _spellings(value)))


def common() -> Redaction:
    """Return secrets of well-known forms: keys of AWS, tokens of GitHub, GitLab, Slack and Stripe, JSON Web Tokens,
    ``Bearer`` and ``Basic`` credentials, passwords in URLs, private keys (PEM)."""
    return Redaction(forms=_FORMS)


def redaction_of(rules: object) -> Redaction | None:
    """Return what a middleware's option ``redact`` says: a list of texts, of compiled patterns, and of what the
    functions above return. None: nothing. Raises ``ConfigurationError``, which shows no value."""
    if isinstance(rules, str | bytes) or not isinstance(rules, Iterable):
        raise ConfigurationError.of_setting("redact", type(rules).__name__, f"a list of {_RULES}")
    values: list[str] = []
    patterns: list[re.Pattern[str]] = []
    forms: list[Form] = []
    for rule in rules:
        if isinstance(rule, Redaction):
            values += rule.values
            patterns += rule.patterns
            forms += rule.forms
        elif isinstance(rule, re.Pattern) and isinstance(rule.pattern, str):
            if rule.match(""):
                raise ConfigurationError.of_setting("redact", rule.pattern, "patterns that do not match empty texts")
            patterns.append(rule)
        elif isinstance(rule, str) and len(rule) >= SHORTEST:
            values += _spellings(rule)
        else:
            shown = f"a text of {len(rule)} characters" if isinstance(rule, str) else type(rule).__name__
            raise ConfigurationError.of_setting("redact", shown, f"{_RULES}; a text has at least {SHORTEST} characters")
    if not (values or patterns or forms):
        return None
    return Redaction(tuple(dict.fromkeys(values)), tuple(patterns), tuple(forms))


_RULES = "texts, compiled patterns of text, redact.environment(…), redact.common()"


def _spellings(value: str) -> list[str]:
    """Return a value as it is, and as URLs, tracebacks and JSON have it."""
    if len(value) > LONGEST // 3:  # so that its longest spelling is found too
        raise ConfigurationError.of_setting(
            "redact", f"a text of {len(value)} characters", f"at most {LONGEST // 3} characters"
        )
    spelled = [
        value,
        quote(value, safe=""),
        quote(value),
        quote_plus(value),
        repr(value)[1:-1],
        json.dumps(value)[1:-1],
    ]
    return list(dict.fromkeys(spelled))


def _text(text: str) -> list[tuple[str, int, int]]:
    return [(re.escape(character), 1, 1) for character in text]


_MANY = 1000
_WORD = "[A-Za-z0-9_-]"
_BASE64 = "[A-Za-z0-9+/=]"
_BEFORE_END = r"(?:(?!-----)[\s\S])"
_ASSIGNED = [("[\"']", 0, 1), (r"\s", 0, 3), ("[=:]", 1, 1), (r"\s", 0, 3), ("[\"']", 0, 1)]
_ASSIGNMENT = r"[\"']?\s{0,3}[=:]\s{0,3}[\"']?"
_KEY = r"[A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"

_FORMS = (
    Form("AKIA", ("[A-Z0-9]", 16, 16)),
    Form("ASIA", ("[A-Z0-9]", 16, 16)),
    *(
        Form(name, *_ASSIGNED, ("[A-Za-z0-9/+]", 40, 40), full=_ASSIGNMENT + "(?P<secret>[A-Za-z0-9/+]{40})")
        for name in ("aws_secret_access_key", "AWS_SECRET_ACCESS_KEY", "SecretAccessKey")
    ),
    *(Form(f"gh{kind}_", ("[A-Za-z0-9]", 36, 255)) for kind in "pousr"),
    Form("github_pat_", ("[A-Za-z0-9_]", 22, 255)),
    Form("glpat-", (_WORD, 20, 255)),
    *(Form(f"xox{kind}-", ("[A-Za-z0-9-]", 10, 255)) for kind in "abeprs"),
    *(Form(f"{kind}k_live_", ("[A-Za-z0-9]", 16, 255)) for kind in "rs"),
    Form("eyJ", (_WORD, 10, _MANY), *_text("."), (_WORD, 10, 2 * _MANY), *_text("."), (_WORD, 10, _MANY)),
    *(
        Form(
            f"{word} ",
            ("[A-Za-z0-9._~+/=-]", 16, 2 * _MANY),
            full="(?P<secret>[A-Za-z0-9._~+/=-]{16,2000})",
        )
        for word in ("Bearer", "bearer", "BEARER")
    ),
    *(
        Form(f"{word}: Basic ", (_BASE64, 8, _MANY), full=f"(?P<secret>{_BASE64}{{8,1000}})")
        for word in ("Authorization", "authorization")
    ),
    Form(
        "://",
        (r"[^\s:/@?#]", 0, 100),
        *_text(":"),
        (r"[^\s/@]", 1, 500),
        *_text("@"),
        full=r"[^\s:/@?#]{0,100}:(?P<secret>[^\s/@]{1,500})@",
    ),
    Form(
        "-----BEGIN ",
        ("[A-Z0-9 ]", 0, 40),
        *_text("PRIVATE KEY"),
        ("[A-Z ]", 0, 6),
        *_text("-----"),
        (_BEFORE_END, 0, LONGEST - 200),
        *_text("-----END "),
        ("[A-Z0-9 ]", 0, 60),
        *_text("-----"),
        full=_KEY
        + rf"(?:{_BEFORE_END}{{0,{LONGEST - 200}}}-----END [A-Z0-9 ]{{0,60}}-----|(?:\s+{_BASE64}{{32,100}})*)",
    ),
)
