"""Files of the store: names, locks, copies, rules of collection, errors in words."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from packer.clone import Cloner
from packer.sources.base import SourceError

OBJECTS, TEMPORARY, LEASES, PARTIAL = "sha256", "tmp", "leases", "partial"
"""The folders of a store."""

OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
COPY_STEP_BYTES = 1 << 20

_HINTS = {
    errno.ENOSPC: "free some space, or make the store smaller with vmpack store gc",
    errno.EDQUOT: "your quota is used up: make the store smaller with vmpack store gc",
    errno.EACCES: "the store belongs to the user who made it",
    errno.EPERM: "the store belongs to the user who made it",
    errno.EROFS: "the store needs a folder that can be written",
}


class StoreError(SourceError):
    """The store cannot be written, read or locked."""


@contextmanager
def store_errors(folder: Path) -> Iterator[None]:
    """Turn what the operating system says against a store into a StoreError with a hint."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"store {folder}: {error.strerror or error}", hint=_HINTS.get(error.errno or 0, "")
        ) from error


def check_folder(folder: Path) -> None:
    """Raise StoreError when something else than a folder lies where a store is expected."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise StoreError(
            f"store {folder}: expected a folder, found something else",
            hint="--store FOLDER names another store",
        )


def make_folders(folder: Path) -> None:
    """Make a store; what it holds may be private, so nobody else may look into it."""
    check_folder(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in (TEMPORARY, OBJECTS, LEASES, PARTIAL):
        (folder / name).mkdir(mode=0o700, exist_ok=True)


@contextmanager
def locked(folder: Path, kind: int) -> Iterator[None]:
    """Hold a store's lock: fcntl.LOCK_SH to lease, LOCK_EX to collect. Makes the store."""
    make_folders(folder)
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, kind)
        yield
    finally:
        os.close(fd)


def is_locked(path: Path) -> bool:
    """Return whether a process holds a lock on a file of ours."""
    fd = os.open(path, OPEN_FLAGS)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


class Collectable(Protocol):
    """Something that can be removed, because it can be had again."""

    @property
    def size(self) -> int:
        """Return how many bytes it has."""

    @property
    def used_ns(self) -> int:
        """Return when it was last used, nanoseconds since 1970."""


_Thing = TypeVar("_Thing", bound=Collectable)


def named_by_rules(
    free: Sequence[_Thing],
    total_bytes: int,
    max_bytes: int | None,
    older_than_seconds: float | None,
) -> list[_Thing]:
    """Return which of the free things, the least recently used first, are to go.

    total_bytes: of all things, also those that are not free. max_bytes: how many may stay.
    """
    old_ns = -1 if older_than_seconds is None else time.time_ns() - int(older_than_seconds * 1e9)
    gone: list[_Thing] = []
    for one in free:
        too_much = max_bytes is not None and total_bytes > max_bytes
        if too_much or one.used_ns < old_ns:
            gone.append(one)
            total_bytes -= one.size
    return gone


def names(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    """Return the names in a folder that have the right form, sorted; none if it is not there."""
    try:
        with os.scandir(folder) as entries:
            return sorted(one.name for one in entries if pattern.fullmatch(one.name))
    except (FileNotFoundError, NotADirectoryError):
        return []


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data` at the descriptor's position. Raises OSError."""
    view = memoryview(data).cast("B")
    while view:
        view = view[os.write(fd, view) :]


def copy_range(cloner: Cloner, fd: int, offset: int, length: int, target: int) -> bytes | None:
    """Fill the empty file `target` with a range of another; return the SHA-256 of what is there.

    As many whole blocks as the file system shares are shared, and read there: the other file may
    change at any time. None when it cannot be read. Raises OSError when the target cannot be.
    """
    done = _shareable(fd, offset, length, target)
    if done == 0 or not cloner.clone_blocks(fd, offset, target, 0, done):
        done = 0
    hasher = hashlib.sha256()
    for start in range(0, done, COPY_STEP_BYTES):
        hasher.update(os.pread(target, min(COPY_STEP_BYTES, done - start), start))
    os.lseek(target, done, os.SEEK_SET)
    while done < length:
        try:
            data = os.pread(fd, min(COPY_STEP_BYTES, length - done), offset + done)
        except OSError:  # a bad sector of the source is no trouble of the target's
            return None
        if not data:
            return None
        hasher.update(data)
        write_all(target, data)
        done += len(data)
    return hasher.digest()


def _shareable(fd: int, offset: int, length: int, target: int) -> int:
    """Return how many bytes of a range are whole blocks, or reach the end of their file."""
    block_bytes = os.fstatvfs(target).f_bsize
    if offset % block_bytes:
        return 0
    at_the_end = offset + length == os.fstat(fd).st_size
    return length if at_the_end else length - length % block_bytes
