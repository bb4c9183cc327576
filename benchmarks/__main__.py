"""All rows of the budget in one Markdown table, with the budgets beside: ``python -m benchmarks``, under ten minutes.

Each module of this package measures by itself, in a process of its own, one after the other; what is compared takes
turns there. The rows are also written as JSON, and what the modules print goes to standard error. ``--redis URL``
measures that server; by default one is started, where there is a program.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo.fleet import redis, redis_program

from ._measure import ROWS

_MODULES: dict[str, str] = {
    "unmarked": "--rounds 100 --calls 2000",
    "starting": "--rounds 7 --starts 100",
    "shared": "--rounds 3 --starts 60 --jobs 200 --pings 60",
    "printing": "--rounds 60 --calls 10000",
    "slow_readers": "--rounds 7 --pings 50",
    "memory": "--rounds 3",
    "executors": "--jobs 25 --times 20 --lines 20000 --kinds rq celery",
}
_LONGEST = 150.0  # seconds of one module


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all and print the table. The exit status is 0, also where a budget is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(_MODULES)}; default: all")
    parser.add_argument("--json", default="benchmarks.json", metavar="FILE", help="default: %(default)s")
    parser.add_argument("--redis", metavar="URL", help="what is in it is not touched")
    options = parser.parse_args(arguments)
    unknown = set(options.modules) - set(_MODULES)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}")

    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="bgmiddleware-benchmark-") as directory, contextlib.ExitStack() as stack:
        url = options.redis
        program = redis_program()
        if url is None and program is not None and {"shared", "executors"} & set(options.modules or _MODULES):
            with contextlib.redirect_stdout(sys.stderr):
                stack.enter_context(redis(program, directory))
            url = os.environ.get("DEMO_REDIS_URL")
        for name in options.modules or _MODULES:
            rows += _rows_of(name, Path(directory) / f"{name}.rows", url)
    Path(options.json).write_text(json.dumps({"python": sys.version.split()[0], "rows": rows}, indent=1) + "\n")
    print(_table(rows))
    return 0


def _rows_of(name: str, file: Path, url: str | None) -> list[dict[str, Any]]:
    """Run one module; return its rows, and one that says so where it did not come to its end."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *_MODULES[name].split()]
    if name == "shared" and url is not None:
        command += ["--redis", url]
    begun = time.monotonic()
    try:
        subprocess.run(
            command,
            check=True,
            stdout=sys.stderr,
            timeout=_LONGEST,
            env={**os.environ, ROWS: str(file)},
            cwd=Path(__file__).parent.parent,
        )
        failure = ""
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        failure = type(error).__name__
    print(f"[{name}: {time.monotonic() - begun:.0f} s]", file=sys.stderr, flush=True)
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return rows + ([{"what": f"{name} did not come to its end: {failure}", "met": False}] if failure else [])


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| what | floor | ours | budget | |", "|---|--:|--:|--:|---|"]
    for row in rows:
        floor = "" if row.get("floor") is None else f"{row['floor']:.3g}"
        ours = f"{row['value']:.3g}" if "value" in row else ""
        budget = f"{'≥' if row['least'] else '≤'} {row['budget']:g}" if "budget" in row else ""
        lines.append(f"| {row['what']} | {floor} | {ours} | {budget} | {'' if row['met'] else '**MISSED**'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
