"""``python -m demo [PORT]``: serve all demos on this machine until Ctrl-C."""

import argparse
import sys
from collections.abc import Sequence

from bgmiddleware._server import serve

from .index import Mounts

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m demo", description="Serve the demos of bgmiddleware.")
    parser.add_argument("port", type=_port, nargs="?", default=8080, help="0 for any free one (default: %(default)s)")
    port: int = parser.parse_args(arguments).port
    mounts = Mounts()
    try:
        serve(mounts, port=port)
    except OSError as error:
        print(f"demo: cannot serve on port {port}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # a second one, while jobs get time to end
        pass
    return 0


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return number


if __name__ == "__main__":
    sys.exit(main())
