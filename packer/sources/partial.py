"""Contents of which a store holds some blocks only: `partial/`.

    FOLDER/partial/DIGEST.KEY   64 hex digits of the content; 16 of the SHA-256 of its block digests

A sparse file as long as the content, mode 0600. Nobody notes which blocks are in it: a block is
there if its bytes have its digest, which whoever needs it finds out by hashing. Only what was
proven is ever written, so any number of processes may fill one file at once, and one that is
killed leaves nothing wrong behind. A complete one becomes an object, unless the content is private:
objects are offered to neighbours, these are not.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from packer.artifact.contents import Contents
from packer.sources.store_files import (
    CREATE_FLAGS,
    OPEN_FLAGS,
    PARTIAL,
    make_folders,
    names,
    store_errors,
)

KEY_DIGITS = 16
TOUCH_AFTER_SECONDS = 86_400
SECTOR_BYTES = 512
"""What st_blocks counts, whatever the file system."""

_NAME = re.compile(rf"([0-9a-f]{{64}})\.[0-9a-f]{{{KEY_DIGITS}}}")
_UPDATE_FLAGS = OPEN_FLAGS & ~os.O_RDONLY | os.O_RDWR
_NOT_A_FILE = {errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENOTDIR}
_NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True, slots=True)
class PartialObject:
    """Some of a content. size: bytes on the disk; used_ns: when it last changed or was opened."""

    path: Path
    digest: bytes
    size: int
    used_ns: int


class Partials:
    """The partial objects of the store in `folder`. Raises StoreError when they cannot be had."""

    def __init__(self, folder: Path) -> None:
        self._store = folder
        self._folder = folder / PARTIAL

    def path_of(self, contents: Contents, row: int) -> Path:
        """Return where the partial object of a content lies or would lie."""
        first, end = contents.block_start[row : row + 2].tolist()
        digests = contents.blocks[first:end] if first < end else contents.digest[row]
        key = hashlib.sha256(digests.tobytes()).hexdigest()[:KEY_DIGITS]
        return self._folder / f"{contents.digest[row].tobytes().hex()}.{key}"

    def open(self, contents: Contents, row: int, *, create: bool) -> int | None:
        """Return a descriptor of a content's partial object, for writing if it can be written.

        None when there is none and `create` is not asked for. What is not a file of ours, or of
        another size, is removed.
        """
        path, size = self.path_of(contents, row), int(contents.size[row])
        with store_errors(self._store):
            fd = self._open_existing(path, size)
            return self._create(path, size) if fd is None and create else fd

    def list(self) -> Iterator[PartialObject]:
        """Yield all of them by name; files with other names are none of the store's."""
        with store_errors(self._store):
            for name in names(self._folder, _NAME):
                path = self._folder / name
                with suppress(FileNotFoundError):
                    status = path.lstat()
                    if stat.S_ISREG(status.st_mode):
                        held = status.st_blocks * SECTOR_BYTES
                        digest = bytes.fromhex(name.partition(".")[0])
                        yield PartialObject(path, digest, held, status.st_mtime_ns)

    def remove(self, one: PartialObject) -> None:
        """Remove one; a process that has it open goes on with what it has."""
        with store_errors(self._store):
            one.path.unlink(missing_ok=True)

    def _open_existing(self, path: Path, size: int) -> int | None:
        try:
            fd = _open(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in _NOT_A_FILE:
                raise
            _put_away(path)
            return None
        status = os.fstat(fd)
        # Size 0: somebody else is making it just now, or was killed before it had its size.
        ours = stat.S_ISREG(status.st_mode) and status.st_nlink == 1
        if not ours or status.st_size not in (0, size):
            os.close(fd)
            _put_away(path)
            return None
        if status.st_size == 0:
            os.truncate(fd, size)
        elif time.time() - status.st_mtime > TOUCH_AFTER_SECONDS:
            with suppress(OSError):
                os.utime(fd)
        return fd

    def _create(self, path: Path, size: int) -> int:
        try:
            fd = os.open(path, CREATE_FLAGS, 0o600)
        except FileNotFoundError:
            make_folders(self._store)
            fd = os.open(path, CREATE_FLAGS, 0o600)
        except FileExistsError:  # another process was quicker
            fd = _open(path)
        os.truncate(fd, size)
        return fd


def block_is_there(fd: int, contents: Contents, row: int, block: int) -> bool:
    """Return whether an open file holds a block of a content, by hashing it. Raises OSError."""
    start, end = contents.block_bounds(row, block)
    data = os.pread(fd, end - start, start)
    return hashlib.sha256(data).digest() == contents.block_digest(row, block)


def _open(path: Path) -> int:
    try:
        return os.open(path, _UPDATE_FLAGS)
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
        return os.open(path, OPEN_FLAGS)


def _put_away(path: Path) -> None:
    """Remove what lies where a partial object should; a folder is left, and in the way."""
    with suppress(IsADirectoryError, FileNotFoundError):
        path.unlink()
