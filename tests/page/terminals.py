"""Our terminal and the one that it is compared with, @xterm/headless, both run by node."""

import fcntl
import functools
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.conftest import missing

HERE = Path(__file__).parent / "terminal"
RECORDINGS = {path.stem: path.read_bytes().decode() for path in sorted((HERE / "fixtures").glob("*.txt"))}


@functools.cache
def installed() -> bool:
    """Return whether npm has installed what ``terminal/package.json`` names."""
    program = HERE / "node_modules" / "@xterm" / "headless"
    npm = shutil.which("npm")
    if program.is_dir() or npm is None:
        return program.is_dir()
    command = [npm, "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
    with (HERE / "package.json").open() as one_at_a_time:  # several processes may run tests
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        return program.is_dir() or subprocess.run(command, cwd=HERE, capture_output=True, timeout=300).returncode == 0


def node_program() -> str:
    """Return where node is."""
    program = shutil.which("node")
    if program is None:
        missing("node")
    assert program is not None
    return program


def node(request: Any, *, reference: bool = True) -> Any:
    """Return the answer of compare.cjs."""
    program = node_program()
    if reference and not installed():
        missing("@xterm/headless, from npm")
    done = subprocess.run(
        [program, "compare.cjs"], cwd=HERE, input=json.dumps(request), capture_output=True, text=True, timeout=1200
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def ours(*outputs: Sequence[str], raw: bool = False) -> list[list[str]]:
    """Return for each output, given in pieces, the lines of our terminal: with looks, and tabs as blanks, or raw."""
    answer: list[list[str]] = node([[pieces, "ours", {"raw": raw}] for pieces in outputs], reference=False)
    return answer


# The reference underlines links, those too that we refuse to make; so it is given none.
_LINKS = re.compile(r"\x1b\]8;[^\x07\x1b]*(?:\x07|\x1b\\)")


def both(*outputs: str) -> list[tuple[list[str], list[str]]]:
    """Return for each output the lines, with their looks, of ours and of the reference."""
    jobs = [job for output in outputs for job in ([[output], "ours", {}], [[_LINKS.sub("", output)], "reference", {}])]
    lines = node(jobs)
    return list(zip(lines[::2], lines[1::2], strict=True))


def progress(*pieces: str) -> list[tuple[dict[str, Any] | None, int | None]]:
    """Return after each piece of an output what its lines tell of progress, and what it reports by OSC 9;4."""
    (answers,) = node([[pieces, "progress", {}]], reference=False)
    return [(seen, reported) for seen, reported in answers]
