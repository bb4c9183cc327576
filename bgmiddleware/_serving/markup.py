"""How values come into HTML: escaped, unless they are HTML that we wrote."""

import html
from collections.abc import Mapping
from string import Template

__all__ = ["Markup", "filled_in"]


class Markup(str):
    """HTML that was written by us, or in which all that was not is escaped."""

    __slots__ = ()


def filled_in(template: Template, values: Mapping[str, str]) -> Markup:
    """Return a template with its slots filled in: what is no ``Markup`` is escaped where it is put, quotes too."""
    return Markup(template.substitute({name: _escaped(value) for name, value in values.items()}))


def _escaped(value: str) -> Markup:
    return value if isinstance(value, Markup) else Markup(html.escape(value))
