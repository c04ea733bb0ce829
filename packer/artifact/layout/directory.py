"""A layout as a directory: oci-layout, index.json, blobs/sha256/HEX.

Reading opens regular files only and follows no symbolic link below the directory that the user
named: a medium from a stranger must not make a reader open a device, a pipe or a file elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from packer.artifact.layout.base import (
    MAX_INDEX_BYTES,
    MAX_LAYOUT_FILE_BYTES,
    blob_hex,
    check_range,
    most_index_bytes,
)
from packer.artifact.layout.extras import PAGE_NAME, Extra, Page
from packer.artifact.layout.staging import StagedWriter, refuse_existing, writing
from packer.artifact.manifest import OCI_LAYOUT, Blob, Entry, check_oci_layout
from packer.durable import sync_directory
from packer.errors import InputError

CLUSTER_BYTES = 32 << 10
"""What a file on a stick is rounded up to: FAT32 and exFAT of up to 32 GB come so formatted."""

NAME_BYTES = 256
"""What a name of 64 characters takes in a folder of FAT or exFAT."""

_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_FOLDER = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


class DirectoryLayout:
    """Reads a layout that is a directory; safe to use from several threads.

    index_name: of the file that is read as its index.json. Raises InputError when the directory
    is no OCI layout.
    """

    remote = False

    def __init__(self, path: Path, index_name: str = "index.json") -> None:
        self.location = str(path)
        self._index_name = index_name
        folders: list[int] = []
        try:
            folders.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            check_oci_layout(
                self._read_file(folders[0], "oci-layout", MAX_LAYOUT_FILE_BYTES),
                f"{path}/oci-layout",
            )
            folders.append(_open_spelled("blobs", _OPEN_FOLDER, folders[0]))
            self._blobs = _open_spelled("sha256", _OPEN_FOLDER, folders[1])
        except (OSError, InputError) as error:
            for fd in folders:
                os.close(fd)
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{path}: expected a folder with an OCI layout, found otherwise: {error}"
            ) from error
        os.close(folders[1])
        self._root: int = folders[0]

    def index(self) -> bytes:
        """Return the bytes of index.json."""
        return self._read_file(self._root, self._index_name, MAX_INDEX_BYTES)

    def blob_size(self, digest: str) -> int | None:
        """Return the size of a blob in bytes, or None when it is not there."""
        fd = self._open(digest)
        if fd is None:
            return None
        try:
            return os.fstat(fd).st_size
        finally:
            os.close(fd)

    def read(self, digest: str, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes of a blob from `offset`, not verified."""
        ((_row, data),) = self.read_many(digest, [(offset, length)])
        return data

    def read_many(
        self, digest: str, ranges: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (row, bytes) for each (offset, length), in the order of the offsets."""
        fd = self._open(digest)
        try:
            size = None if fd is None else os.fstat(fd).st_size
            for offset, length in ranges:
                check_range(self.location, digest, size, offset, length)
            for row in sorted(range(len(ranges)), key=lambda row: ranges[row]):
                assert fd is not None  # check_range refused any range of a blob that is absent
                yield row, self._pread(fd, digest, *ranges[row])
        finally:
            if fd is not None:
                os.close(fd)

    def close(self) -> None:
        """Close the directory."""
        os.close(self._blobs)
        os.close(self._root)

    def _open(self, digest: str) -> int | None:
        try:
            return self._open_file(self._blobs, blob_hex(digest, self.location))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{self.location}: blob {digest}: {error.strerror}") from error

    def _open_file(self, folder: int, name: str) -> int:
        fd = _open_spelled(name, _OPEN_FILE, folder)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise InputError(f"{self.location}: {name}: expected a regular file, found another")
        return fd

    def _read_file(self, folder: int, name: str, max_bytes: int) -> bytes:
        try:
            with os.fdopen(self._open_file(folder, name), "rb") as file:
                data = file.read(max_bytes + 1)
        except OSError as error:
            raise InputError(
                f"{self.location}: expected the {name} of an OCI layout, "
                f"found none that can be read: {error.strerror}"
            ) from error
        if len(data) > max_bytes:
            raise InputError(f"{self.location}: {name}: expected at most {max_bytes} bytes")
        return data

    def _pread(self, fd: int, digest: str, offset: int, length: int) -> bytes:
        pieces: list[bytes] = []
        while length:
            try:
                data = os.pread(fd, length, offset)
            except OSError as error:
                raise InputError(
                    f"{self.location}: blob {digest}: cannot read {length} bytes "
                    f"at byte {offset}: {error.strerror}"
                ) from error
            check_range(self.location, digest, offset + len(data), offset, min(length, 1))
            pieces.append(data)
            offset += len(data)
            length -= len(data)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _open_spelled(name: str, flags: int, folder: int) -> int:
    """Open a name in a folder, as it is or as a medium shows it that knows capitals only."""
    for spelling in (name, name.upper(), f"{name.upper()};1"):
        with contextlib.suppress(FileNotFoundError):
            return os.open(spelling, flags, dir_fd=folder)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


class DirectoryWriter(StagedWriter):
    """Writes a layout that is a new directory; it appears whole, by one rename.

    page, extras: files beside the layout. Raises UsageError when the name is taken.
    """

    def __init__(
        self, path: Path, *, extras: Sequence[Extra] = (), page: Page | None = None
    ) -> None:
        refuse_existing(path)
        self._extras = tuple(extras)
        self._page = page
        super().__init__(path, replace=False, durable=True, single_file=False)

    def medium_bytes(self, blob_sizes: Sequence[int]) -> int:
        """Return what files of these sizes take on a medium with clusters of CLUSTER_BYTES."""
        return folder_bytes(blob_sizes, self._extras, self._page)

    def finish(self, packs: Sequence[Entry]) -> tuple[Blob, ...]:
        """Write manifests and index.json, make all of it durable, rename it into place."""
        staging = self._open_staging()
        blobs = staging.seal(packs)
        with writing(self._path):
            for extra in with_page(staging.root, self._extras, self._page):
                staging.add_extra(extra)
            staging.forget_fetched()
            for folder in staging.folders():
                sync_directory(folder)
            refuse_existing(self._path)
            staging.root.rename(self._path)
            self._staging = None
            sync_directory(self._path.parent)
        return blobs


def with_page(
    root: Path, extras: Sequence[Extra], page: Page | None, index_name: str = "index.json"
) -> tuple[Extra, ...]:
    """Return the extra files of a layout that lies complete in a folder, its page first."""
    if page is None:
        return tuple(extras)
    with contextlib.closing(DirectoryLayout(root, index_name)) as layout:
        return Extra(PAGE_NAME, page.make(layout, extras)), *extras


def folder_bytes(blob_sizes: Sequence[int], extras: Sequence[Extra], page: Page | None) -> int:
    """Return what a layout takes at most on a medium with clusters of CLUSTER_BYTES."""
    blobs = len(blob_sizes)
    own = (most_index_bytes(blobs), len(OCI_LAYOUT), page.most_bytes(blobs) if page else 0)
    files = (*blob_sizes, *own, *(one.size for one in extras))
    clusters = sum(-(-size // CLUSTER_BYTES) for size in files)
    folders = 3 + len({one.name.rpartition("/")[0] for one in extras})
    return CLUSTER_BYTES * (clusters + folders + len(files) * NAME_BYTES // CLUSTER_BYTES)
