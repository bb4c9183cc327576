"""A clock that the processes of one host have in common, and that nobody sets."""

import contextlib
import os
import re
import time

from .._steady import since_start
from .directory import INDEX, make_file

__all__ = ["HostClock"]

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_OURS = re.compile(r"clock\.[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?:\.[0-9a-f]{16})?")


class HostClock:
    """Gives seconds since the epoch, which go on evenly when the wall clock of the host is set back or forward.

    It is what the wall clock said at the first use of *directory* since the host was started, and the time since then.
    A file there, ``clock.`` and the id of that start, keeps the difference for all processes. Where that cannot be had,
    or before the directory is a spool's, it is the wall clock: nobody shall fail who only asks for the time. Linux
    only. Any thread may call.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._start: float | None = None  # of the host, in seconds since the epoch

    def __call__(self) -> float:
        if self._start is None:
            try:
                self._start = self._common_start()
            except (OSError, ValueError):
                return time.time()
        return self._start + since_start()

    def _common_start(self) -> float:
        with open(_BOOT_ID, encoding="utf-8") as file:
            name = f"clock.{file.read().strip()}"
        path = os.path.join(self._directory, name)
        if not os.path.exists(path):
            os.stat(os.path.join(self._directory, INDEX))  # or it may be somebody else's: nothing is made there
            make_file(path, repr(time.time() - since_start()).encode())
            self._remove_all_but(name)
        with open(path, encoding="utf-8") as file:
            return float(file.read())

    def _remove_all_but(self, name: str) -> None:
        for other in os.listdir(self._directory):
            if _OURS.fullmatch(other) and not other.startswith(name):
                with contextlib.suppress(OSError):
                    os.unlink(os.path.join(self._directory, other))
