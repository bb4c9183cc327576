"""The directory of a spool registry: is it one that can be used, and by nobody else?"""

import contextlib
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator

from ...errors import ConfigurationError, RegistryError

__all__ = ["INDEX", "Directory", "make_file"]

INDEX = "index.db"
"""The name of the file that a directory has which was used before."""

_SECRET_BYTES = 32
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH
_UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_OURS = re.compile(
    rf"[0-9a-f]{{2}}|(?:index\.(?:lock|db(?:-wal|-shm|-journal)?)|secret|reserve|clock\.{_UUID})(?:\.[0-9a-f]{{16}})?"
)
# What a new file system has in it. And hidden files: those of a version control, of a file manager.
_UNNOTICED = re.compile(r"lost\+found|\..*", re.DOTALL)
_MOUNTS = "/proc/self/mounts"

# Where locks of one host are not seen by another, or a shared memory map is none.
_NETWORK = frozenset(
    "9p afs beegfs ceph cifs coda fuse.glusterfs fuse.sshfs fuse.s3fs gfs gfs2 glusterfs gpfs lustre ncpfs nfs nfs4 "
    "ocfs2 orangefs pvfs2 smb2 smb3 smbfs".split()
)


_MAKE_IT = "make it by hand, with mode 700, or name another"


class Directory:
    """A directory that belongs to this process's user. Constructing it makes nothing."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        given = os.fspath(path)
        if not isinstance(given, str) or not given.strip() or "\0" in given:
            raise ConfigurationError.of_setting("directory", path, "the path of a directory")
        self.path = os.path.abspath(given)  # the process may change its directory later

    def prepare(self) -> None:
        """Make it (mode 0700) if there is none in its parent; raise ``ConfigurationError`` if it cannot be used.

        Where its group may write to it, that is put right: the kubelet lets the group of a volume do so at each mount.
        """
        if not self.check():
            try:
                os.mkdir(self.path, 0o700)
            except FileExistsError:  # another process was faster
                pass
            except OSError as error:
                raise self._refused(f"it cannot be made: {os.strerror(error.errno or 0)}; {_MAKE_IT}") from error
            self._check_it()
        if _others_may_write(self.path):
            with contextlib.suppress(OSError):
                os.chmod(self.path, 0o700)
            if _others_may_write(self.path):
                raise self._refused(
                    "its group may write to it, and its file system does not let that be changed; name another"
                )

    def check(self) -> bool:
        """Raise ``ConfigurationError`` where it cannot be used, or could not be made; return whether there is one."""
        if os.path.lexists(self.path):
            self._check_it()
            return True
        parent = os.path.dirname(self.path)
        if not os.path.isdir(parent):
            raise self._refused(f"there is no {parent} to make it in; make that first")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise self._refused(f"it cannot be made: {parent} is not writable for this process; {_MAKE_IT}")
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
            raise self._refused(f"{os.strerror(error.errno or 0)}; name another") from error
        user = os.geteuid()
        if not stat.S_ISDIR(status.st_mode):
            raise self._refused("it is no directory; name one")
        if status.st_uid != user:
            reason = f"it belongs to user {status.st_uid}, and this process runs as user {user}"
            if os.access(self.path, os.W_OK | os.X_OK) and not status.st_mode & stat.S_IWOTH:
                reason += f"; name one in it that is not there yet, such as {os.path.join(self.path, 'jobs')}"
            raise self._refused(reason)
        self._check_use(status.st_mode)
        self._check_file_system(self.path)
        if not os.access(self.path, os.R_OK | os.W_OK | os.X_OK):
            raise self._refused(f"it is not writable for this process; chmod 700 {self.path}")

    def _check_use(self, mode: int) -> None:
        """Refuse a directory that has another use: files of others are neither ours to touch nor to close off. And one
        that everybody may write to; what its group may do is put right when it is used."""
        try:
            names = os.listdir(self.path)
        except OSError:  # whoever looks at its modes says why
            return
        own = f"name one of its own, such as {os.path.join(self.path, 'jobs')}"
        others = [name for name in names if not _OURS.fullmatch(name) and not _UNNOTICED.fullmatch(name)]
        if others and INDEX not in names:
            raise self._refused(f"it has another use: there is {min(others)!r} in it; {own}")
        if mode & _WRITABLE and others:
            raise self._refused(f"others may write to it, and there is {min(others)!r} in it; {own}")
        if mode & stat.S_IWOTH:
            remedy = own if mode & stat.S_ISVTX else f"chmod 700 {self.path}"
            raise self._refused(f"others may write to it; {remedy}")

    def _check_file_system(self, path: str) -> None:
        kind = _kind_of_file_system(os.path.realpath(path))
        if kind in _NETWORK:
            raise self._refused(
                f"it is on a network file system ({kind}), where processes of several hosts would spoil it; "
                "take a local directory, or RedisRegistry for several hosts"
            )

    def _refused(self, reason: str) -> ConfigurationError:
        return ConfigurationError(f"directory = {self.path!r}: {reason}")


def _others_may_write(path: str) -> bool:
    return bool(os.stat(path).st_mode & _WRITABLE)


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
