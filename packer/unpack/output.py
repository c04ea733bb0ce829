"""The disk that is being rebuilt: a partial file that gets its name only when it is right."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from formats.ranges import Ranges
from formats.source import file_data_ranges
from packer.clone import Cloner
from packer.durable import sync_directory
from packer.errors import Error, InUseError, UsageError
from packer.file_system import file_system_type
from packer.punch import punch_hole
from packer.survey.in_use import refuse_if_replaced_under_somebody
from packer.unpack import settled

_SYNC_WAIT_BEFORE, _SYNC_WRITE = 1, 2  # SYNC_FILE_RANGE_…, sync_file_range(2)
_libc = ctypes.CDLL(None, use_errno=True)

WRITE_BACK_BYTES = 32 << 20
"""After this much was written the medium begins to take it, so that the last flush is short."""


_ACCESS_LIST = "system.posix_acl_access"  # acl(5); a new file may have got its folder's
_ATTRIBUTES = (_ACCESS_LIST, "security.selinux")

_OPEN_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Target(Protocol):
    """A disk that contents are put into, by several threads at once; offsets and lengths in bytes.

    resumed: whether it may hold contents already. keeps_times: see settled.py; files whose blocks
    are shared lie on the same file system. shared_fd: an open file that other files can share
    blocks with; None if bytes must be copied.
    """

    resumed: bool
    keeps_times: bool
    shared_fd: int | None

    def pread(self, offset: int, length: int) -> bytes:
        """Return what it holds; `[offset, offset + length)` lies within the disk."""

    def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data`. Raises Error when it cannot be written."""

    def clone(self, fd: int, offset: int, target: int, length: int) -> bool:
        """Share blocks of another file; False when bytes must be copied."""

    def data_ranges(self) -> Ranges:
        """Return the parts that may hold anything but zeros."""

    def clear(self, start: int, end: int) -> None:
        """Make `[start, end)` read as zeros."""


@dataclass(frozen=True, slots=True)
class Replaced:
    """The file whose name a new disk takes over, and its lists of access and attributes.

    status: its mode and owner are those of the new one. check: called right before the rename;
    raises Error when the old file must stay after all.
    """

    status: os.stat_result
    check: Callable[[], None]


class Output:
    """`NAME.partial` while it is written, `NAME` after `commit`.

    A partial file of an earlier, interrupted run is taken up again; `resumed` tells so. Another
    process that writes the same file is noticed by its lock.
    """

    def __init__(
        self, path: Path, size: int, *, force: bool = False, replaced: Replaced | None = None
    ) -> None:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name the file to write")
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self.size = size
        self._cloner = Cloner()
        self._force = force or replaced is not None
        self._replaced = replaced
        self._unflushed_bytes = 0
        self._refuse_existing()
        try:
            self.fd = os.open(self.partial, _OPEN_FLAGS, 0o600 if replaced else 0o666)
        except OSError as error:
            raise _cannot_write(self.partial, error) from error
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between opening and locking, another one may have given it its final name.
            if not os.path.samestat(os.fstat(self.fd), self.partial.lstat()):
                raise FileNotFoundError(errno.ENOENT, "renamed meanwhile")
        except OSError as error:
            os.close(self.fd)
            raise InUseError(
                f"{self.partial}: another vmpack is writing it",
                hint="wait for it, or write to another name",
            ) from error
        self.resumed = os.fstat(self.fd).st_size > 0
        try:
            self._keep_owner(self.fd)
        except Error:
            os.close(self.fd)
            if not self.resumed:
                self.discard()
            raise
        self.shared_fd: int | None = self.fd
        self.keeps_times = file_system_type(self.fd) in settled.TYPES
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            os.close(self.fd)
            raise _cannot_write(self.partial, error) from error

    def pread(self, offset: int, length: int) -> bytes:
        """Return what the partial file holds; `length` stays within the disk."""
        return os.pread(self.fd, length, offset)

    def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of `data`. Raises Error when the file system refuses (full, read-only)."""
        try:
            write_at(self.fd, offset, data)
        except OSError as error:
            raise _cannot_write(self.partial, error) from error
        self._unflushed_bytes += len(data)
        if self._unflushed_bytes >= WRITE_BACK_BYTES:
            self._unflushed_bytes = 0
            write_back(self.fd)

    def clone(self, fd: int, offset: int, target: int, length: int) -> bool:
        """Share blocks of another file if the file system can; False when bytes must be copied.

        All three numbers are bytes and multiples of CLONE_UNIT_BYTES. Raises Error when the file
        system refuses to write.
        """
        try:
            return self._cloner.clone_blocks(fd, offset, self.fd, target, length)
        except OSError as error:
            raise _cannot_write(self.partial, error) from error

    def data_ranges(self) -> Ranges:
        """Return the parts of the partial file that are not holes."""
        return file_data_ranges(self.fd, 0, self.size)

    def clear(self, start: int, end: int) -> None:
        """Make `[start, end)` read as zeros, as a hole where the file system can."""
        try:
            if punch_hole(self.fd, start, end):
                return
        except OSError as error:
            raise _cannot_write(self.partial, error) from error
        for offset in range(start, end, 1 << 20):
            self.pwrite(offset, bytes(min(1 << 20, end - offset)))

    def flush(self) -> None:
        """Wait until all that was written is on stable storage."""
        try:
            os.fsync(self.fd)
        except OSError as error:
            raise _cannot_write(self.partial, error) from error

    def commit(self) -> None:
        """Give the finished disk its name; it is on stable storage when this returns."""
        self._rename(self.partial, self.fd)

    def commit_other(self, finished: Path) -> None:
        """Give the name to another file instead, one made from this disk, and drop this one."""
        fd = os.open(finished, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._rename(finished, fd)
        finally:
            os.close(fd)
        self.discard()

    def make_beside(self, path: Path) -> None:
        """Make an empty file that may be read by those who may read this disk, and no others."""
        try:
            fd = os.open(path, _OPEN_FLAGS | os.O_EXCL, 0o600 if self._replaced else 0o666)
        except OSError as error:
            raise _cannot_write(path, error) from error
        try:
            self._keep_owner(fd)
        finally:
            os.close(fd)

    def _keep_owner(self, fd: int) -> None:
        """Give an open file mode, owner and attributes of the file that it replaces, if it replaces
        one. Its owner may write to it until it is finished, so that another run can go on.
        """
        if self._replaced is None:
            return
        status = self._replaced.status
        try:
            os.fchown(fd, status.st_uid, status.st_gid)
            _copy_attributes(self.path, fd)
            # Last: a change of owner clears bits, and a list of access changes them.
            os.fchmod(fd, stat.S_IMODE(status.st_mode) | stat.S_IRUSR | stat.S_IWUSR)
        except OSError as error:
            raise Error(
                f"{self.path} belongs to user {status.st_uid} and group {status.st_gid}; "
                f"the new disk cannot: {error.strerror}",
                hint="run this as root, or as the owner of the disk",
            ) from error

    def _rename(self, finished: Path, fd: int) -> None:
        try:
            if self._replaced is not None:
                os.fchmod(fd, stat.S_IMODE(self._replaced.status.st_mode))
            os.fsync(fd)
        except OSError as error:
            raise _cannot_write(finished, error) from error
        # After the flush, which can take minutes, and right before the rename.
        self._refuse_existing()  # somebody else's disk may have got the name meanwhile
        if self._replaced is not None:
            self._replaced.check()
        try:
            finished.replace(self.path)
            sync_directory(self.path.parent)
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def _refuse_existing(self) -> None:
        if not self.path.exists():
            return
        if not self._force:
            raise UsageError(f"{self.path}: exists already", hint="--force replaces it")
        if self._replaced is None and self.path.is_file() and not self.path.is_symlink():
            with contextlib.suppress(PermissionError):  # then nobody can tell
                refuse_if_replaced_under_somebody(self.path)

    def discard(self) -> None:
        """Remove the partial file."""
        self.partial.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the partial file; what it holds stays for a later run."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _copy_attributes(path: Path, fd: int) -> None:
    """Give an open file the list of access of another one, or none, its label and attributes.

    Raises OSError when the list of access cannot be had: others could read or write the file.
    """
    names = [one for one in _attributes(path) if one in _ATTRIBUTES or one.startswith("user.")]
    if _ACCESS_LIST not in names and _ACCESS_LIST in _attributes(fd):
        os.removexattr(fd, _ACCESS_LIST)
    for name in names:
        try:
            os.setxattr(fd, name, os.getxattr(path, name))
        except OSError:
            if name == _ACCESS_LIST:
                raise


def _attributes(file: Path | int) -> list[str]:
    try:
        return os.listxattr(file)
    except OSError:  # the file system has none
        return []


def write_at(fd: int, offset: int, data: bytes | memoryview) -> None:
    """Write all of `data`. Raises OSError."""
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, memoryview(data)[written:], offset + written)


def write_back(fd: int, *, wait: bool = False) -> None:
    """Let the medium take what is written so far; the flush at the end waits for it.

    wait: for what was let go by an earlier call. Errors are told again by the flush.
    """
    if sys.platform == "linux":
        whole = ctypes.c_longlong(0)  # from byte 0, with a length of 0: to the end
        _libc.sync_file_range(fd, whole, whole, _SYNC_WRITE | (_SYNC_WAIT_BEFORE if wait else 0))


def _cannot_write(path: Path, error: OSError) -> Error:
    hints = {
        errno.ENOSPC: "free some space and run the same command again: it goes on where it stopped",
        errno.EDQUOT: "the quota is used up; free some space and run the same command again",
        errno.EFBIG: "the file system cannot hold a file of this size; choose another one",
    }
    return Error(f"{path}: cannot write: {error.strerror}", hint=hints.get(error.errno or 0, ""))
