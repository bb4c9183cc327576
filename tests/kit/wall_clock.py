"""A wall clock that tests set while processes run: of those processes alone, not of the machine.

Debian's libfaketime cannot be taken: Python's ``time.sleep`` fails with it (``EINVAL``).
"""

import shutil
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import PROMISED


class WallClock:
    """The clock of all processes that are started with ``environ``; skips where there is no C compiler."""

    def __init__(self, directory: Path) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            if PROMISED:
                pytest.fail("CI=true, and there is no C compiler")
            pytest.skip("needs a C compiler")
        self._file = directory / "wall-clock"
        self.set(0)
        library = directory / "wall_clock.so"
        source = Path(__file__).with_suffix(".c")
        subprocess.run(
            [
                compiler,
                "-shared",
                "-fPIC",
                "-O1",
                "-o",
                library,
                source,
            ],
            check=True,
        )
        self.environ = {"WALL_CLOCK": str(self._file), "LD_PRELOAD": str(library)}

    def set(self, seconds: int) -> None:
        """From now on the clock is so many seconds ahead of the machine's, or behind it."""
        self._ahead = seconds
        with self._file.open("r+b" if self._file.exists() else "wb") as file:  # never emptied: it is mapped
            file.write(struct.pack("@l", seconds))

    def __call__(self) -> float:
        """Return what these processes take for the time."""
        return time.time() + self._ahead
