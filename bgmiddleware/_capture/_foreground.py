"""What a watched request prints to in the foreground, as long as it has printed nothing."""

from collections.abc import Callable
from typing import Any

from ._output import ForegroundOutput
from ._streams import current
from ._system import write_late

__all__ = ["UNPRINTED"]


class _Unprinted:
    """One object for all requests, which the first print of one replaces by an output of its own."""

    job = pending = printed = None
    assigned: dict[str, Any] = {}  # noqa: RUF012  # of no job, so nothing is put into it
    batch = 0

    def out(self, text: str) -> int:
        return self._made().out(text)

    def err(self, text: str) -> int:
        return self._made().err(text)

    def write_bytes(self, data: bytes, original: Callable[[bytes], int]) -> int:
        return self._made().write_bytes(data, original)

    def flush(self) -> None:
        """Do nothing: the stand-in flushes the original."""

    def fileno(self, name: str = "stdout") -> int | None:
        return None

    def drain_soon(self) -> None:
        """Do nothing: there is nothing."""

    def _made(self) -> ForegroundOutput:
        # In the context of the request, whose end puts back what was there before it.
        output = ForegroundOutput(write_late("stdout"), write_late("stderr"))
        current.set(output)
        return output


UNPRINTED: Any = _Unprinted()
