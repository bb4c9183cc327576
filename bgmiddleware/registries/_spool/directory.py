"""The directory of a spool registry: is it one that can be used, and by nobody else?"""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator

from ...errors import ConfigurationError, RegistryError

__all__ = ["Directory", "make_file"]

_SECRET_BYTES = 32
_MOUNTS = "/proc/self/mounts"

# Where locks of one host are not seen by another, or a shared memory map is none.
_NETWORK = frozenset(
    "9p afs beegfs ceph cifs coda fuse.glusterfs fuse.sshfs fuse.s3fs gfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 "
    "ocfs2 orangefs pvfs2 smb2 smb3 smbfs".split()
)


class Directory:
    """A directory that belongs to this process's user. Constructing it makes nothing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        given = os.fspath(path)
        if not isinstance(given, str) or not given.strip() or "\0" in given:
            raise ConfigurationError.of_setting("directory", path, "the path of a directory")
        self.path = os.path.abspath(given)  # the process may change its directory later

    def prepare(self) -> None:
        """Make it (mode 0700) if there is none in its parent; raise ``ConfigurationError`` if it cannot be used."""
        if self.check():
            return
        try:
            os.mkdir(self.path, 0o700)
        except FileExistsError:  # another process was faster
            pass
        except OSError as error:
            raise self._refused(f"it cannot be made: {os.strerror(error.errno or 0)}") from error
        self._check_it()

    def check(self) -> bool:
        """Raise ``ConfigurationError`` where it cannot be used, or could not be made; return whether there is one."""
        if os.path.lexists(self.path):
            self._check_it()
            return True
        parent = os.path.dirname(self.path)
        if not os.path.isdir(parent):
            raise self._refused(f"there is no {parent} to make it in")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise self._refused(f"it cannot be made: {parent} is not writable for this process")
        self._check_file_system(parent)
        return False

    def secret(self) -> bytes:
        """Return the bytes of its file ``secret``, which the first who asks makes."""
        path = os.path.join(self.path, "secret")
        with contextlib.suppress(FileNotFoundError):
            return _read_secret(path)
        make_file(path, secrets.token_bytes(_SECRET_BYTES))
        return _read_secret(path)

    def _check_it(self) -> None:
        try:
            status = os.stat(self.path)
        except OSError as error:
            raise self._refused(os.strerror(error.errno or 0)) from error
        user = os.geteuid()
        if not stat.S_ISDIR(status.st_mode):
            raise self._refused("it is no directory")
        if status.st_uid != user:
            raise self._refused(f"it belongs to user {status.st_uid}, and this process runs as user {user}")
        if status.st_mode & 0o022:
            raise self._refused(f"others may write to it; chmod 700 {self.path}")
        self._check_file_system(self.path)
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            raise self._refused("it is not writable for this process")

    def _check_file_system(self, path: str) -> None:
        kind = _kind_of_file_system(os.path.realpath(path))
        if kind in _NETWORK:
            raise self._refused(
                f"it is on a network file system ({kind}), where processes of several hosts would spoil it; "
                "take a local directory, or RedisRegistry for several hosts"
            )

    def _refused(self, reason: str) -> ConfigurationError:
        return ConfigurationError(f"directory = {self.path!r}: {reason}")


def make_file(path: str, data: bytes = b"") -> None:
    """Make a file with *data*, for this user only, unless there is one: of all who do so at once, one does."""
    if os.path.lexists(path):
        return
    # Written whole under another name, then linked, so nobody sees half. And what is there is never opened: to close a
    # file gives up all that this process has locked in it, SQLite's connections of other threads too.
    own = f"{path}.{secrets.token_hex(8)}"
    number = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(number, "wb") as file:
            file.write(data)
        with contextlib.suppress(FileExistsError):
            os.link(own, path)
    finally:
        os.unlink(own)


def _read_secret(path: str) -> bytes:
    with open(path, "rb") as file:
        data = file.read()
    if len(data) != _SECRET_BYTES:
        raise RegistryError(f"{path} was changed by somebody else")
    return data


def _kind_of_file_system(path: str) -> str | None:
    """Return the name of the file system that *path* is on; None where nobody says."""
    try:
        with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as file:
            mounts = dict(_mounts(file))
    except OSError:
        return None
    while path not in mounts and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return mounts.get(path)


def _mounts(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        fields = line.split()
        # Spaces and the like are written as octal numbers. What was mounted last at a place is what is seen.
        point = fields[1]
        for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
            point = point.replace(code, character)
        yield point, fields[2]
