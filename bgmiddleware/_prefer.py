"""The ``Prefer`` header (RFC 7240)."""

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

__all__ = ["preferences"]

_PREFERENCE = re.compile(
    r"""\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)      # a name
        (?:\s*=\s*("(?:[^"\\]|\\.)*"|[^\s,;"]*))?  # its value
        (?:\s*;[^,"]*(?:"(?:[^"\\]|\\.)*"[^,"]*)*)?  # parameters, which no preference of ours has
        \s*(?:,|$)""",
    re.VERBOSE,
)


@lru_cache(256)
def preferences(header: str) -> Mapping[str, str]:
    """Return the preferences of a header by their lower-case names, of each the first; what cannot be read is skipped.

    An empty value is the same as none (§2).
    """
    found: dict[str, str] = {}
    position = 0
    while position < len(header):
        match = _PREFERENCE.match(header, position)
        if match is None:
            comma = header.find(",", position)
            position = len(header) if comma < 0 else comma + 1
            continue
        name, value = match.group(1).lower(), match.group(2) or ""
        if value.startswith('"'):
            value = re.sub(r"\\(.)", r"\1", value[1:-1])
        found.setdefault(name, value)
        position = match.end()
    return MappingProxyType(found)
