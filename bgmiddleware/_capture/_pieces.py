"""What was written, as bytes to be stored."""

from collections.abc import Callable, Iterator

__all__ = ["both", "decoded", "pieces_of"]

_PIECE = 256 * 1024  # characters that become bytes at a time: a copy of what is larger would double its memory


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
