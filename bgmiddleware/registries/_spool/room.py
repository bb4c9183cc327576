"""Room on the disk of a spool directory, kept for its index: it must always be possible to write down how a job ended,
and to forget one so that its bytes are given back."""

import contextlib
import errno
import os

__all__ = ["Room", "check_room", "log_pages"]

_MOST = 16 * 1024 * 1024
_LEAST = 256 * 1024
_PAGE = 4096
_MOST_PAGES = 1000  # what SQLite does by itself


def _kept_free(system: os.statvfs_result) -> int:
    """Return how many bytes of a disk are left for the index: an eighth of a small one."""
    return min(_MOST, max(_LEAST, system.f_blocks * system.f_frsize // 8))


def _free(system: os.statvfs_result) -> int:
    return system.f_bavail * system.f_frsize


def check_room(number: int, size: int) -> None:
    """Raise ``OSError`` where *size* bytes more, in an open file, would leave less than the index needs."""
    system = os.fstatvfs(number)
    if _free(system) - size < _kept_free(system):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def log_pages(directory: str) -> int:
    """Return after how many pages the write-ahead log of the index is to be copied back, so that it and the database
    grow by less than the reserve meanwhile."""
    return max(16, min(_MOST_PAGES, _kept_free(os.statvfs(directory)) // 4 // _PAGE))


class Room:
    """What is kept free on the disk of *directory*. Half of it is taken by a file, ``reserve``: so it is there where
    others fill the disk too, and is given back when the index needs it."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._path = os.path.join(directory, "reserve")

    def is_low(self) -> bool:
        """Whether there is less than the index needs, and some output of a new job."""
        system = os.statvfs(self._directory)
        return _free(system) < _kept_free(system) * 9 // 8

    def keep(self) -> None:
        """Make the file again, where there is room for it."""
        if os.path.lexists(self._path):
            return
        system = os.statvfs(self._directory)
        size = _kept_free(system) // 2
        if _free(system) < _kept_free(system) + size:
            return
        with contextlib.suppress(FileExistsError):
            number = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                _allocate(number, size)
            except OSError:  # somebody else was faster, or may not write so large a file
                self.give_back()
            finally:
                os.close(number)

    def spare(self) -> None:
        """Give the file back where there is not as much room as it takes: the index is about to be written."""
        system = os.statvfs(self._directory)
        if _free(system) < _kept_free(system) // 2:
            self.give_back()

    def give_back(self) -> None:
        """Remove the file."""
        with contextlib.suppress(OSError):
            os.unlink(self._path)


def _allocate(number: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(number, 0, size)
        return
    while size > 0:
        size -= os.write(number, bytes(min(size, 1024 * 1024)))
