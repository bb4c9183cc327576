"""The ``Prefer`` header (RFC 7240)."""

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

__all__ = ["preferences"]

# Possessive throughout: what somebody sends is read once, however odd it is.
_MEMBER = re.compile(r'(?:[^",]++|"(?:[^"\\]++|\\.)*+"?+)++', re.DOTALL)  # what stands between commas
_PREFERENCE = re.compile(
    r"""\s*+([!#$%&'*+.^_`|~0-9A-Za-z-]++)\s*+          # a name
        (?:=\s*+("(?:[^"\\]++|\\.)*+"|[^\s;"]*+)\s*+)?+  # its value
        (?:;.*+)?+                                    # parameters, which no preference of ours has
        """,
    re.VERBOSE | re.DOTALL,
)


_LONGEST_REMEMBERED = 1024


def preferences(header: str) -> Mapping[str, str]:
    """Return the preferences of a header by their lower-case names, of each the first; what cannot be read is skipped.

    An empty value is the same as none (§2).
    """
    # What somebody sends must not fill the memory: the remembered ones are never forgotten.
    return _remembered(header) if len(header) <= _LONGEST_REMEMBERED else _read(header)


def _read(header: str) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for member in _MEMBER.findall(header):
        match = _PREFERENCE.fullmatch(member)
        if match is not None:
            name, value = match.group(1).lower(), match.group(2) or ""
            if value.startswith('"'):
                value = re.sub(r"\\(.)", r"\1", value[1:-1])
            found.setdefault(name, value)
    return MappingProxyType(found)


_remembered = lru_cache(256)(_read)
