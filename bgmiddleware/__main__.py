"""``python -m bgmiddleware``: serve an app, work for RQ or Celery, look at jobs."""

import argparse
import os
import sys
from collections.abc import Sequence

from ._commands.completion import add_completion_command, completion_of
from ._commands.jobs import add_jobs_command, run_jobs_command
from ._commands.serve import add_serve_command, run_serve_command
from ._commands.work import add_work_command, run_work_command
from ._ground.version import VERSION

__all__ = ["main"]

_RUN = {"serve": run_serve_command, "work": run_work_command, "jobs": run_jobs_command}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command == "completion":
        print(completion_of(parser, options.shell), end="")
        return 0
    return _RUN[options.command](options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=_name(), description=__doc__)
    parser.add_argument("--version", action="version", version=f"bgmiddleware {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    add_serve_command(commands)
    add_work_command(commands)
    add_jobs_command(commands)
    add_completion_command(commands)
    return parser


def _name() -> str:
    """Return what the command is called by: its script, or Python."""
    name = os.path.basename(sys.argv[0])
    return name if name.startswith("bgmiddleware") else "python -m bgmiddleware"


if __name__ == "__main__":
    sys.exit(main())
