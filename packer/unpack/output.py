"""The disk that is being rebuilt: a partial file that gets its name only when it is right."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import sys
from pathlib import Path
from typing import Self

from formats.ranges import Ranges
from formats.source import file_data_ranges
from packer.clone import Cloner
from packer.durable import sync_directory
from packer.errors import Error, InUseError, UsageError
from packer.file_system import file_system_type
from packer.unpack import settled

_FALLOC_PUNCH = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, linux/falloc.h
_SYNC_WRITE = 2  # SYNC_FILE_RANGE_WRITE, sync_file_range(2)
_libc = ctypes.CDLL(None, use_errno=True)

WRITE_BACK_BYTES = 32 << 20
"""After this much was written the medium begins to take it, so that the last flush is short."""


_OPEN_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Output:
    """`NAME.partial` while it is written, `NAME` after `commit`.

    A partial file of an earlier, interrupted run is taken up again; `resumed` tells so. Another
    process that writes the same file is noticed by its lock. keeps_times: see settled.py; files
    whose blocks are shared lie on the same file system.
    """

    def __init__(self, path: Path, size: int, *, force: bool = False) -> None:
        self.path = path
        self.partial = path.with_name(path.name + ".partial")
        self.size = size
        self._cloner = Cloner()
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name the file to write")
        self._force = force
        self._unflushed_bytes = 0
        self._refuse_existing()
        try:
            self.fd = os.open(self.partial, _OPEN_FLAGS, 0o666)
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
            written = os.pwrite(self.fd, data, offset)
            while written < len(data):
                written += os.pwrite(self.fd, memoryview(data)[written:], offset + written)
        except OSError as error:
            raise _cannot_write(self.partial, error) from error
        self._unflushed_bytes += written
        if self._unflushed_bytes >= WRITE_BACK_BYTES:
            self._unflushed_bytes = 0
            self._begin_write_back()

    def clone(self, fd: int, offset: int, target: int, length: int) -> bool:
        """Share blocks of another file if the file system can; False when bytes must be copied.

        All three numbers are bytes and multiples of CLONE_UNIT_BYTES. Raises Error when the file
        system refuses to write.
        """
        try:
            return self._cloner.clone_blocks(fd, offset, self.fd, target, length)
        except OSError as error:
            raise _cannot_write(self.partial, error) from error

    def _begin_write_back(self) -> None:
        """Let the medium take what is written so far, without waiting; `commit` waits for it.

        Its result does not matter: an error of the medium is told again by the flush.
        """
        if sys.platform == "linux":
            whole = ctypes.c_longlong(0)  # from byte 0, with a length of 0: to the end
            _libc.sync_file_range(self.fd, whole, whole, _SYNC_WRITE)

    def data_ranges(self) -> Ranges:
        """Return the parts of the partial file that are not holes."""
        return file_data_ranges(self.fd, 0, self.size)

    def clear(self, start: int, end: int) -> None:
        """Make `[start, end)` read as zeros, as a hole where the file system can."""
        result = _libc.fallocate(
            self.fd, _FALLOC_PUNCH, ctypes.c_longlong(start), ctypes.c_longlong(end - start)
        )
        if result == 0:
            return
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise _cannot_write(self.partial, OSError(code, os.strerror(code)))
        for offset in range(start, end, 1 << 20):
            self.pwrite(offset, bytes(min(1 << 20, end - offset)))

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

    def _rename(self, finished: Path, fd: int) -> None:
        self._refuse_existing()  # somebody else's disk may have got the name meanwhile
        try:
            os.fsync(fd)
            finished.replace(self.path)
            sync_directory(self.path.parent)
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def _refuse_existing(self) -> None:
        if self.path.exists() and not self._force:
            raise UsageError(f"{self.path}: exists already", hint="--force replaces it")

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


def _cannot_write(path: Path, error: OSError) -> Error:
    hints = {
        errno.ENOSPC: "free some space and run the same command again: it goes on where it stopped",
        errno.EDQUOT: "the quota is used up; free some space and run the same command again",
        errno.EFBIG: "the file system cannot hold a file of this size; choose another one",
    }
    return Error(f"{path}: cannot write: {error.strerror}", hint=hints.get(error.errno or 0, ""))
