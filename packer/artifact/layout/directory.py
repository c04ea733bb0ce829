"""A layout as a directory: oci-layout, index.json, blobs/sha256/HEX.

Reading opens regular files only and follows no symbolic link below the directory that the user
named: a medium from a stranger must not make a reader open a device, a pipe or a file elsewhere.
"""

from __future__ import annotations

import os
import shutil
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
from packer.artifact.layout.staging import (
    StagedWriter,
    refuse_existing,
    temporary_name,
    writing,
)
from packer.artifact.manifest import OCI_LAYOUT, Blob, Entry, check_oci_layout
from packer.durable import sync_directory
from packer.errors import InputError, UsageError

CLUSTER_BYTES = 32 << 10
"""What a file on a stick is rounded up to: FAT32 and exFAT of up to 32 GB come so formatted."""

NAME_BYTES = 256
"""What a name of 64 characters takes in a folder of FAT or exFAT."""

_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_FOLDER = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC


class DirectoryLayout:
    """Reads a layout that is a directory; safe to use from several threads.

    Raises InputError when the directory is no OCI layout.
    """

    remote = False

    def __init__(self, path: Path) -> None:
        self.location = str(path)
        folders: list[int] = []
        try:
            folders.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            check_oci_layout(
                self._read_file(folders[0], "oci-layout", MAX_LAYOUT_FILE_BYTES),
                f"{path}/oci-layout",
            )
            folders.append(os.open("blobs", _OPEN_FOLDER, dir_fd=folders[0]))
            self._blobs = os.open("sha256", _OPEN_FOLDER, dir_fd=folders[1])
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
        return self._read_file(self._root, "index.json", MAX_INDEX_BYTES)

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
        fd = os.open(name, _OPEN_FILE, dir_fd=folder)
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


class DirectoryWriter(StagedWriter):
    """Writes a layout that is a directory; it appears whole, by one rename.

    replace: whether an existing layout of that name is replaced; a folder that is no layout never
    is. Raises UsageError when the name is taken.
    """

    def __init__(self, path: Path, *, replace: bool = False) -> None:
        if not replace:
            refuse_existing(path)
        elif path.is_symlink() or (path.exists() and not (path / "oci-layout").is_file()):
            raise UsageError(
                f"{path} exists and is no OCI layout", hint="choose another name, or remove it"
            )
        super().__init__(path, replace=replace, durable=True)

    def medium_bytes(self, blob_sizes: Sequence[int]) -> int:
        """Return what files of these sizes take on a medium with clusters of CLUSTER_BYTES."""
        files = (*blob_sizes, most_index_bytes(len(blob_sizes)), len(OCI_LAYOUT))
        clusters = sum(-(-size // CLUSTER_BYTES) for size in files)
        folders = 3 + len(files) * NAME_BYTES // CLUSTER_BYTES
        return CLUSTER_BYTES * (clusters + folders)

    def finish(self, packs: Sequence[Entry]) -> tuple[Blob, ...]:
        """Write manifests and index.json, make all of it durable, rename it into place."""
        staging = self._open_staging()
        blobs = staging.seal(packs)
        with writing(self._path):
            for folder in (staging.root / "blobs" / "sha256", staging.root / "blobs", staging.root):
                sync_directory(folder)
            self._rename(staging.root)
            self._staging = None
            sync_directory(self._path.parent)
        return blobs

    def _rename(self, root: Path) -> None:
        if not self._replace or not self._path.exists():
            refuse_existing(self._path)
            root.rename(self._path)
            return
        old = temporary_name(self._path)
        self._path.rename(old)
        try:
            root.rename(self._path)
        except OSError:
            old.rename(self._path)
            raise
        shutil.rmtree(old, ignore_errors=True)
