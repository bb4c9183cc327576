"""Time that goes on evenly, whatever somebody sets the wall clock to."""

import sys
import time

__all__ = ["SteadyClock", "since_start"]


def since_start() -> float:
    """Return the seconds since the host was started. Linux only."""
    # Not the monotonic clock: that stands still while the host sleeps, and a TTL does not.
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SteadyClock:
    """Gives seconds since the epoch: what the wall clock said at the first call, and the time since then.

    Where there is no Linux it is the wall clock. Any thread may call.
    """

    def __init__(self) -> None:
        self._start: float | None = None  # of the host, in seconds since the epoch

    def __call__(self) -> float:
        if sys.platform != "linux":
            return time.time()
        if self._start is None:
            self._start = time.time() - since_start()
        return self._start + since_start()
