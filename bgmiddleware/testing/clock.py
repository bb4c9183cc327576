"""Time that a test turns by hand."""

__all__ = ["Clock"]


class Clock:
    """A clock that stands still until it is told: ``MemoryRegistry(clock=Clock())``. Calling it returns seconds since
    the epoch. Any thread."""

    def __init__(self, now: float = 1_700_000_000.25) -> None:
        self.now: float = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        """Let *seconds* pass; return the time that it is then."""
        self.now += seconds
        return self.now
