"""Compares multipart bodies by their parts, because a client makes up a new boundary each time."""

import hashlib
import re
from collections.abc import Iterator

__all__ = ["digest_of_parts", "split_boundary"]

_BOUNDARY = re.compile(r""";\s*+boundary\s*+=\s*+(?:"([^"]{1,200})"|([^\s;,"]{1,200}))""", re.IGNORECASE)
_LONGEST_HEAD = 64 * 1024
_HEAD_OF_PART = re.compile(rb"[ \t]*\r\n")


class _Malformed(Exception):
    """The body has no valid parts: compare its bytes."""


def split_boundary(content_type: str) -> tuple[str, bytes]:
    """Return a multipart type without its boundary, and the boundary; for any other type the boundary is empty."""
    found = _BOUNDARY.search(content_type) if content_type[:10].lower() == "multipart/" else None
    if found is None:
        return content_type, b""
    rest = content_type[: found.start()] + content_type[found.end() :]
    return rest, (found[1] or found[2]).encode("latin-1", "replace")


def digest_of_parts(chunks: Iterator[bytes], boundary: bytes) -> bytes | None:
    """Return a digest of the headers and contents of the parts in *chunks*, in order; None if there are no parts.

    Reads *chunks* one by one: neither a part nor the body is in memory as a whole.
    """
    try:
        return _Parts(chunks, b"\r\n--" + boundary).digest()
    except _Malformed:
        return None


class _Parts:
    def __init__(self, chunks: Iterator[bytes], delimiter: bytes) -> None:
        self._chunks = chunks
        self._delimiter = delimiter
        self._buffer = b"\r\n"  # the first delimiter may be at the very beginning

    def digest(self) -> bytes:
        whole = hashlib.sha256()
        self._content()  # what comes before the first part has no meaning
        while not self._is_at_end():
            head = self._head()
            whole.update(hashlib.sha256(head).digest() + self._content())
        return whole.digest()

    def _more(self) -> None:
        chunk = next(self._chunks, b"")
        if not chunk:
            raise _Malformed
        self._buffer += chunk

    def _content(self) -> bytes:
        """Read past the next delimiter. Return a digest of what comes before it."""
        content = hashlib.sha256()
        begin = 0
        while True:
            found = self._buffer.find(self._delimiter, begin)
            if found < 0:
                # The end of the buffer may be the beginning of a delimiter.
                done = max(0, len(self._buffer) - len(self._delimiter) + 1)
                content.update(self._buffer[:done])
                self._buffer, begin = self._buffer[done:], 0
                self._more()
                continue
            behind = found + len(self._delimiter)
            if len(self._buffer) < behind + 2:
                self._more()
            elif self._buffer[behind : behind + 2] == b"--" or _HEAD_OF_PART.match(self._buffer, behind):
                content.update(self._buffer[:found])
                self._buffer = self._buffer[behind:]
                return content.digest()
            else:
                begin = found + 1  # it only begins like a delimiter

    def _is_at_end(self) -> bool:
        return self._buffer.startswith(b"--")

    def _head(self) -> bytes:
        """Read the headers of a part. Return them sorted, because libraries may change their order."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _LONGEST_HEAD:
                raise _Malformed
            self._more()
        lines = self._buffer[:end].split(b"\r\n")[1:]
        # Keep the second line break: it belongs to the delimiter if the part is empty.
        self._buffer = self._buffer[end + 2 :]
        fields = (line.partition(b":") for line in lines)
        return b"\n".join(sorted(name.strip().lower() + b":" + value.strip() for name, _, value in fields))
