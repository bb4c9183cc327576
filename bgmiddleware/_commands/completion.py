"""``completion``: print what makes a shell complete our commands and options, which the parser knows."""

import argparse
from collections.abc import Iterator

__all__ = ["SHELLS", "add_completion_command", "completion_of"]

_BASH = """\
_bgmiddleware() {{
  local words=""
  case "$COMP_CWORD:${{COMP_WORDS[1]}}:${{COMP_WORDS[2]}}" in
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _bgmiddleware bgmiddleware
"""
_FISH = """\
function __bgmiddleware_words
  set -l before (commandline -opc)
  set -l place (count $before)
  switch "$place:$before[2]:$before[3]"
{cases}
  end
end
complete -c bgmiddleware -a '(__bgmiddleware_words)'
"""
SHELLS = {
    "bash": (_BASH, '    {place}) words="{words}" ;;'),
    "zsh": ("autoload -U +X bashcompinit && bashcompinit\n" + _BASH, '    {place}) words="{words}" ;;'),
    "fish": (_FISH, "    case '{place}'\n      string split ' ' -- '{words}'"),
}
"""For each shell what is printed, and what is in it for each place; zsh takes that of bash."""


def add_completion_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``completion`` to the command line."""
    parser = commands.add_parser(
        "completion", help="print what makes a shell complete commands and options", description=__doc__
    )
    parser.add_argument("shell", metavar="SHELL", choices=list(SHELLS), help="bash, fish or zsh")


def completion_of(parser: argparse.ArgumentParser, shell: str) -> str:
    """Return the completion of a command line for a *shell*, one of ``SHELLS``."""
    script, case = SHELLS[shell]
    return script.format(
        cases="\n".join(case.format(place=place, words=" ".join(words)) for place, words in _cases(parser))
    )


def _cases(parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[str]]]:
    """Yield for each place, as how many words there are and the first two of them, what can come there."""
    commands = _commands(parser)
    yield "1:*", [*commands, *_options(parser)]
    for name, command in commands.items():
        actions = _commands(command)
        if actions:
            yield f"2:{name}:*", [*actions, *_options(command)]
        for action, inner in actions.items():
            yield f"*:{name}:{action}", _options(inner)
        if not actions:
            yield f"*:{name}:*", _options(command)


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def _options(parser: argparse.ArgumentParser) -> list[str]:
    named = [action for action in parser._actions if action.help != argparse.SUPPRESS]
    choices = [str(choice) for action in named if not action.option_strings for choice in _choices(action)]
    return [*choices, *(option for action in named for option in action.option_strings if option.startswith("--"))]


def _choices(action: argparse.Action) -> list[str]:
    return [] if isinstance(action, argparse._SubParsersAction) else list(action.choices or ())
