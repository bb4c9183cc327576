"""The page docs/reference/command-line.rst, made of the command line's own parser.

``python -m tests.kit.command_line`` writes it.
"""

import argparse
import textwrap
from collections.abc import Iterator

from bgmiddleware.__main__ import _parser
from tests.kit.documents import DOCS

PAGE = DOCS / "reference" / "command-line.rst"
_INTRODUCTION = """\
The command line
================

``bgmiddleware`` and ``python -m bgmiddleware`` are the same. ``python -m tests.kit.command_line`` makes this page of
what ``--help`` says. `Settings <settings.rst>`_ has the defaults in a table.
"""


def page() -> str:
    """Return the page as the parser would have it now."""
    return "\n".join([_INTRODUCTION, *_commands(_parser(), "bgmiddleware")])


def _commands(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help for choice in action._choices_actions}
            for command, inner in action.choices.items():
                yield from _command(inner, f"{name} {command}", helps.get(command) or "")
                yield from _commands(inner, f"{name} {command}")


def _command(parser: argparse.ArgumentParser, name: str, summary: str) -> Iterator[str]:
    yield f"{name}\n{'-' * len(name)}\n"
    yield _filled(f"{summary[:1].upper()}{summary[1:]}.")
    for group in parser._action_groups:
        actions = [one for one in group._group_actions if not isinstance(one, argparse._SubParsersAction)]
        described = [one for one in actions if one.dest != "help" and one.help != argparse.SUPPRESS]
        if described and group.title not in ("positional arguments", "options"):
            yield f"{(group.title or '')[:1].upper()}{(group.title or '')[1:]}:\n"
            if group.description:
                yield _filled(group.description)
        for action in described:
            yield f"``{_spelled(action)}``"
            yield _filled(_escaped((action.help or "") % {**vars(action), "prog": name}), "    ")


def _spelled(action: argparse.Action) -> str:
    value = action.metavar or action.dest.upper()
    if not action.option_strings:
        return str(value)
    shown = ", ".join(action.option_strings)
    return shown if action.nargs == 0 else f"{shown} {value}"


def _filled(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, break_on_hyphens=False, initial_indent=indent, subsequent_indent=indent) + "\n"


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in r"*`|\_" else letter for letter in text)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
