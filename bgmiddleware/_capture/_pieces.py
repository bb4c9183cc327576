"""What was written, as bytes to be stored, and which of them came on stderr."""

from collections.abc import Callable, Iterator
from itertools import groupby

from .._jobs import MOST_ERROR_RANGES

__all__ = ["ErrorRanges", "ErrorText", "both", "decoded", "pieces_of", "runs_of"]

_PIECE = 256 * 1024  # characters that become bytes at a time: a copy of what is larger would double its memory


class ErrorText(str):
    """A text that was written to stderr."""

    __slots__ = ()


class ErrorRanges:
    """Which bytes of an output came on stderr: the first 500 ranges, and those that continue the last of them."""

    def __init__(self) -> None:
        self._ranges: list[list[int]] = []

    def add(self, begin: int, end: int) -> None:
        """Add a range behind the last one."""
        if self._ranges and self._ranges[-1][1] == begin:
            self._ranges[-1][1] = end
        elif len(self._ranges) < MOST_ERROR_RANGES:
            self._ranges.append([begin, end])

    def __str__(self) -> str:
        return ",".join(f"{begin}-{end}" for begin, end in self._ranges)


def runs_of(batch: list[str | bytes]) -> Iterator[tuple[bool, list[str | bytes]]]:
    """Yield the parts of a batch that came on one stream, and whether that is stderr."""
    for is_error, run in groupby(batch, lambda text: text.__class__ is ErrorText):
        yield is_error, list(run)


def pieces_of(batch: list[str | bytes]) -> Iterator[bytes]:
    """Yield what was written as bytes; what is large in pieces, one at a time."""
    large = batch.pop() if len(batch[-1]) > _PIECE else ""  # who writes so much has it stored at once: it is the last
    text: str | bytes
    try:
        text = "".join(batch)  # type: ignore[arg-type]
    except TypeError:  # some writes went to .buffer
        text = b"".join(map(_encoded, batch))
    for whole in (text, large):
        for begin in range(0, len(whole), _PIECE):
            yield _encoded(whole[begin : begin + _PIECE])


def _encoded(part: str | bytes) -> bytes:
    return part if isinstance(part, bytes) else str.encode(part, "utf-8", "backslashreplace")


def decoded(write: Callable[[str], int]) -> Callable[[bytes], None]:
    """Return what writes bytes as text. No method of an output, which would hold itself by it."""

    def store(data: bytes) -> None:
        write(data.decode("utf-8", "backslashreplace"))

    return store


def both(store: Callable[[bytes], None], tee: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Return what gives bytes to *store*, then to *tee*."""

    def store_and_tee(data: bytes) -> None:
        store(data)
        tee(data)

    return store_and_tee
