"""The outbox of a spool: a directory with a file for each text, whose name begins with when it is due."""

import contextlib
import os
import secrets

from .._outbox import MOST, Outbox
from .store import storage_errors

__all__ = ["SpoolOutbox"]

_DIGITS = 16  # of milliseconds


class SpoolOutbox(Outbox):
    """Texts in *directory*, which is made when it is needed. To take one is to rename it: one process can."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    def put(self, id: str, at: float, text: str) -> bool:  # noqa: A002
        with storage_errors():
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            names = self._names()
            there = [name for name in names if name.partition(".")[2] == id]
            if not there and len(names) >= MOST:
                return False
            new = self._path(f"new-{secrets.token_hex(8)}")
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
                file.write(text)
            name = _name(at, id)
            os.rename(new, self._path(name))  # first, so that a process that is killed here loses nothing
            for other in there:
                if other != name:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self._path(other))
            return True

    def take(self, now: float, lease: float) -> tuple[str, str] | None:
        with storage_errors():
            for name in self._names():
                if int(name[:_DIGITS]) > 1000 * now:
                    return None
                id = name.partition(".")[2]  # noqa: A001
                taken = self._path(_name(now + lease, id))
                with contextlib.suppress(FileNotFoundError):  # somebody else took it
                    os.rename(self._path(name), taken)
                    with open(taken, encoding="utf-8") as file:
                        return id, file.read()
        return None

    def first(self) -> tuple[str, float, str] | None:
        with storage_errors():
            for name in self._names():
                with contextlib.suppress(FileNotFoundError), open(self._path(name), encoding="utf-8") as file:
                    return name.partition(".")[2], int(name[:_DIGITS]) / 1000, file.read()
        return None

    def remove(self, id: str) -> None:  # noqa: A002
        with storage_errors():
            for name in self._names():
                if name.partition(".")[2] == id:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self._path(name))

    def size(self) -> int:
        with storage_errors():
            return len(self._names())

    def _names(self) -> list[str]:
        """Return the names of the texts, of what is due first."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(name for name in os.listdir(self._directory) if name[:_DIGITS].isdigit())
        return []

    def _path(self, name: str) -> str:
        return os.path.join(self._directory, name)


def _name(at: float, id: str) -> str:  # noqa: A002
    return f"{max(0, int(1000 * at)):0{_DIGITS}d}.{id}"
