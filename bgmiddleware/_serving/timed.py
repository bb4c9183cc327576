"""When each part of a job's output came, in which step, and on which stream."""

from bisect import bisect_right
from collections.abc import Iterator

from .._jobs import MOST_ERROR_RANGES, Job, Step
from ..registries.base import END, Piece, Registry

__all__ = ["Came", "Streams", "span", "step_at"]


class Came:
    """When output came, for who reads it from *offset* on."""

    def __init__(self, registry: Registry, key: str, offset: int) -> None:
        self._registry = registry
        self._key = key
        self._times = iter(registry.times(key, offset))
        self._end, self._at = next(self._times, (offset, 0))

    def at(self, offset: int) -> int:
        """Return by how many milliseconds since the job began the byte at *offset* had come: of bytes of which nothing
        is known yet, those before them. Offsets must not go back."""
        while self._end <= offset:
            following = next(self._times, None)
            if following is None:
                self._times = iter(self._registry.times(self._key, offset))
                following = next(self._times, None)
                if following is None:
                    break
            self._end, self._at = following
        return self._at

    def parts(self, piece: Piece) -> Iterator[tuple[Piece, int]]:
        """Yield a piece in parts that came at one time each, and when."""
        offset = piece.offset
        while offset < piece.end:
            at = self.at(offset)
            end = min(self._end, piece.end) if self._end > offset else piece.end
            yield Piece(offset, piece.data[offset - piece.offset : end - piece.offset]), at
            offset = end


def step_at(job: Job, offset: int) -> Step | None:
    """Return the innermost step in which the byte at *offset* was printed."""
    listed = () if job.steps is None else job.steps.listed
    number: int | None = bisect_right(listed, offset, key=lambda step: step.start) - 1
    if number == -1:
        return None
    while number is not None:
        step = listed[number]
        if step.end is None or offset < step.end:
            return step
        number = step.parent
    return None


class Streams:
    """On which stream each byte of a job's output came."""

    def __init__(self, job: Job) -> None:
        self._ranges = job.error_ranges
        ranges = self._ranges or ()
        # What came behind so many ranges is not known.
        self._known = ranges[-1][1] if len(ranges) >= MOST_ERROR_RANGES else END

    def at(self, offset: int) -> str | None:
        """Return ``stdout`` or ``stderr`` for the byte at *offset*; None where nobody knows."""
        if self._ranges is None or offset >= self._known:
            return None
        number = bisect_right(self._ranges, offset, key=lambda each: each[0]) - 1
        return "stderr" if number >= 0 and offset < self._ranges[number][1] else "stdout"


def span(seconds: float, digits: int = 0) -> str:
    """Return a duration in its two largest units; what is shorter than ten seconds with so many *digits*."""
    if seconds < 10:
        return f"{max(0.0, seconds):.{digits}f} s"
    whole = int(seconds)
    for size, unit, part, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}{f' {rest} {smaller}' if rest else ''}"
    return f"{whole} s"
