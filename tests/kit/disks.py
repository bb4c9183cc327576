"""Small disks."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import PROMISED


@contextmanager
def mounted(point: Path, options: str) -> Iterator[None]:
    """Mount a small file system; only root can."""
    point.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(point)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        if PROMISED:
            pytest.fail("CI=true, and nothing can be mounted")
        pytest.skip("needs root, to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)
