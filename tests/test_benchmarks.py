"""The benchmarks run; what they measure is not judged here."""

import subprocess
import sys

import pytest

from tests.conftest import needs
from tests.documents import ROOT


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("unmarked --rounds 2 --calls 10", "with decorators (watched)"),
        ("printing --rounds 2 --calls 10 --lines 100", "lines a second"),
        ("page --rounds 1 --lines 20000", "page without the output"),
        ("terminal --lines 500 --share 0.001", "The terminal"),
    ],
)
def test_a_benchmark_prints_its_table(command: str, said: str) -> None:
    needs("werkzeug")
    needs("playwright")
    name, *arguments = command.split()
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
    assert "budget" in done.stdout
