"""Put what a disk holds into this host's store, durably."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import chain, groupby
from pathlib import Path

import numpy as np

from packer.artifact.contents import Contents
from packer.artifact.map import Map
from packer.columns import Column
from packer.durable import sync_directory, sync_file_system
from packer.errors import Error, InUseError
from packer.progress import Advance, Progress
from packer.sources.base import Bytes, FileRange, Piece, Wanted
from packer.sources.mapped import MappedSource
from packer.sources.partial import SECTOR_BYTES
from packer.sources.store import Store
from packer.survey.disk import Disk

BLOCK_BYTES = 4096
"""In which most file systems store a file; an object takes a whole number of these."""


def lacking(store: Store, wanted: Wanted, progress: Progress) -> Wanted:
    """Return what the store lacks of some contents. What it has is read, and removed if wrong.

    The caller leases them before.
    """
    contents, bad = wanted.contents, []
    held = store.find(wanted, deep=False).rows
    with progress.stage("checking the store", int(contents.size[held].sum())) as advance:
        for row in held.tolist():
            size = int(contents.size[row])
            fd = store.open_verified(contents.digest[row].tobytes(), size)
            if fd is None:
                bad.append(row)
            else:
                os.close(fd)
            advance(size)
    absent = np.setdiff1d(wanted.rows, held)
    return wanted.only(np.union1d(absent, np.array(bad, dtype=np.int64)))


def put_contents(
    store: Store,
    disk: Disk,
    disk_map: Map,
    wanted: Wanted,
    added: list[bytes],
    progress: Progress,
) -> None:
    """Put contents of a disk into the store, with shared blocks where the file system can.

    disk_map: of the disk, with the contents that are wanted. added: takes the digests of what was
    put. Raises InUseError when the disk has changed, StoreError when the store cannot be written.
    """
    contents, rows = wanted.contents, wanted.rows
    with closing(MappedSource(disk, disk_map, disk.files[0])) as source:
        source.find(wanted, deep=False)
        put = 0
        with progress.stage("putting into the store", int(contents.size[rows].sum())) as advance:
            for row, pieces in groupby(source.fetch(rows), key=_row_of):
                digest, size = contents.digest[row].tobytes(), int(contents.size[row])
                if not _put(store, digest, size, pieces, advance):
                    break
                added.append(digest)
                put += 1
    if put < len(rows):
        raise InUseError(
            f"{disk.path} was changed while it was read, or is damaged",
            hint="make sure that nothing writes to it, and start again",
        )


def _put(store: Store, digest: bytes, size: int, pieces: Iterator[Piece], advance: Advance) -> bool:
    """Put one content; False when it is not what the map says."""
    first = next(pieces)
    if isinstance(first, FileRange):
        right = store.put_clone(first.fd, first.offset, size, digest)
        advance(size)
        return right
    return store.put(digest, size, _bytes_of(chain([first], pieces), advance))


def _bytes_of(pieces: Iterator[Piece], advance: Advance) -> Iterator[bytes | memoryview]:
    for piece in pieces:
        assert isinstance(piece, Bytes)
        yield piece.data
        advance(len(piece.data))


def forget_pages(store: Store, contents: Contents, rows: Column) -> int:
    """Have the kernel forget what it remembers of objects, so that the next reader reads the disk.

    They are durable by then. Returns how many bytes they take.
    """
    taken = 0
    for row in rows.tolist():
        fd = store.open_object(contents.digest[row].tobytes(), int(contents.size[row]))
        if fd is not None:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            taken += os.fstat(fd).st_blocks * SECTOR_BYTES
            os.close(fd)
    return taken


@contextmanager
def durable(folder: Path) -> Iterator[None]:
    """Make durable what is written meanwhile to the file system of a folder. Raises Error."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Error(f"{folder}: cannot be read: {error.strerror}") from error
    try:
        yield
        _sync(folder, fd)
    finally:
        os.close(fd)


def _sync(folder: Path, fd: int) -> None:
    try:
        sync_file_system(fd)
        sync_directory(folder)
    except OSError as error:
        raise Error(f"{folder}: cannot be made durable: {error.strerror or error}") from error


def forget_file(path: Path) -> None:
    """Make a file durable and have the kernel forget what it remembers of it. Raises Error."""
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    except OSError as error:
        raise Error(f"{path}: cannot be made durable: {error.strerror}") from error


def _row_of(piece: Piece) -> int:
    return piece.row
