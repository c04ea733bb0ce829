"""Source: an installation medium of Windows: an ISO image, a folder where one is mounted, a .wim.

What is loose on it is matched by path and size like the files of any tree. Most is in Windows
images (sources/install.wim), or on media up to 2003 in compressed files (I386/NTDLL.DL_): those are
separate sources, which are asked in this order.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from formats.filesystem.iso9660 import Entry
from packer.file_system import file_system_type
from packer.sources.base import (
    Learning,
    Offers,
    Piece,
    Source,
    SourceError,
    Wanted,
    free_offers,
)
from packer.sources.directory import DirectorySource
from packer.sources.image_files import ImageFiles
from packer.sources.memory import Memory
from packer.sources.packed_files import PackedFile, PackedFiles, copy_file
from packer.sources.tree import Tree
from packer.sources.wim import SIGNATURES, Wim, find_wimlib
from packer.sources.wim_source import WimSource
from packer.text import format_bytes

Rows = NDArray[np.int64]

SPARE_BYTES = 256 << 20
"""What a copy of a Windows image leaves free on its file system."""

_COPY_SUFFIX = ".copy.wim"
_DISC_TYPES = ("iso9660", "udf")

_INSTALL = re.compile(r"(/[^/]+)?/sources/install\.(wim|esd|swm)", re.IGNORECASE | re.ASCII)
"""Also below x86/ and x64/, on media for both."""

_log = logging.getLogger(__name__)


class MediumSource:
    """`medium:PATH`. One object answers for one table of contents (one pack).

    folder: where a Windows image is copied to if it lies inside an ISO image; created when needed.
    Raises SourceError when there is nothing at PATH, InputError when it is no medium.
    """

    local = True
    sequential = True

    def __init__(self, path: Path, folder: Path, memory: Memory | None = None) -> None:
        self.uri = f"medium:{path}"
        self._copies: list[IO[bytes]] = []
        self._owner: dict[int, Source] = {}
        self._told: set[str] = set()
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                self._parts = self._of_folder(path, memory)
            elif not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
                raise SourceError(f"{self.uri}: neither a file, a folder nor a device")
            elif _begins_like_wim(path):
                self._parts = [WimSource(self.uri, _opener(path))]
            else:
                self._parts = self._of_image(path, folder)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise SourceError(f"{self.uri}: {reason}") from error

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        """Return what the parts of the medium offer, each content by the first that does.

        A part that cannot be used is noted, once.
        """
        rows = wanted.rows
        for part in self._parts:
            try:
                found = part.find(wanted.only(rows), deep=deep).rows
            except SourceError as error:
                self._tell(error)
                continue
            self._owner.update(dict.fromkeys(found.tolist(), part))
            rows = np.setdiff1d(rows, found)
        return free_offers(np.setdiff1d(wanted.rows, rows))

    def fetch(self, rows: Rows) -> Iterator[Piece]:
        """Yield the pieces of the contents, part by part. Raises SourceError."""
        for part in self._parts:
            mine = [row for row in rows.tolist() if self._owner.get(row) is part]
            if mine:
                yield from part.fetch(np.array(mine, dtype=np.int64))

    def learn(self, rows: Rows, *, ok: bool) -> None:
        """Pass on what the receiver found out about contents fetched from here."""
        for part in self._parts:
            mine = [row for row in rows.tolist() if self._owner.get(row) is part]
            if mine and isinstance(part, Learning):
                part.learn(np.array(mine, dtype=np.int64), ok=ok)

    def close(self) -> None:
        """Close the medium; copies vanish."""
        for part in self._parts:
            part.close()
        for copy in self._copies:
            copy.close()

    def _of_folder(self, path: Path, memory: Memory | None) -> list[Source]:
        """Return the parts of a mounted medium.

        What desktops mount, they mount for one user alone; a pressed disc has no secrets of theirs.
        """
        public = _mounted_as(path) in _DISC_TYPES
        loose = DirectorySource(path, memory, public=public)
        try:
            tree = Tree(path, explicit=True, public=public)
            try:
                listed = tree.walk(None)
            finally:
                tree.close()
            packed = [
                PackedFile(name, int(size), _reader(path / name[1:]))
                for name, size in zip(listed.path, listed.stamp[:, 2].tolist(), strict=True)
                if name.endswith("_")
            ]
            images = [name for name in listed.path if _INSTALL.fullmatch(name)]
            wims = [WimSource(self.uri, _opener(path / name[1:])) for name in sorted(images)]
        except BaseException:
            loose.close()
            raise
        return [loose, PackedFiles(self.uri, packed), *wims]

    def _of_image(self, path: Path, folder: Path) -> list[Source]:
        """Return the parts of an ISO image."""
        image = ImageFiles(path, self.uri)
        packed = [
            PackedFile(name, file.size, _reader_in(image, file))
            for name, file in image.files.items()
            if name.endswith("_")
        ]
        names = sorted(name for name in image.files if _INSTALL.fullmatch(name))
        wims = [
            WimSource(self.uri, self._copier(image, name, folder))
            for name in names
            if not name.lower().endswith(".swm")
        ]
        if len(wims) < len(names) or not (wims or packed):
            found = f"{names[0]} in parts" if names else "no Windows image (sources/install.wim)"
            _log.warning(
                "%s: %s in this ISO image; mount it and name the folder: medium:/mnt/windows",
                self.uri,
                found,
            )
        return [image, PackedFiles(self.uri, packed), *wims]

    def _copier(self, image: ImageFiles, name: str, folder: Path) -> Callable[[], Wim]:
        """Return what copies a Windows image out of an ISO image: wimlib-imagex reads files."""

        def copied() -> Wim:
            find_wimlib()  # before anything is copied for it
            file = image.files[name]
            shown = f"{name} ({format_bytes(file.size)})"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                if shutil.disk_usage(folder).free < file.size + SPARE_BYTES:
                    raise SourceError(
                        f"no room in {folder} for a copy of {shown}",
                        hint="mount the ISO image and name the folder: medium:/mnt/windows",
                    )
                _log.warning(
                    "%s: copies %s to %s for as long as this runs; none is needed of an image that "
                    "is mounted and named as a folder", self.uri, shown, folder,
                )  # fmt: skip
                copy = _new_copy(folder)
                self._copies.append(copy)
                copy_file(_reader_in(image, file), file.size, copy)
            except OSError as error:
                raise SourceError(f"{folder}: {error.strerror or error}") from error
            return Wim(Path(copy.name))

        return copied

    def _tell(self, error: SourceError) -> None:
        text = f"{error}; {error.hint}" if error.hint else str(error)
        if text not in self._told:
            self._told.add(text)
            _log.warning("%s", text)


def _opener(path: Path) -> Callable[[], Wim]:
    """Return what opens a Windows image that is a file of this host."""
    return lambda: Wim(path)


def _new_copy(folder: Path) -> IO[bytes]:
    """Return an empty file that vanishes when it is closed; copies of runs that died vanish now.

    wimlib-imagex opens it by its name, so it must have one. A copy in use is locked.
    Raises OSError.
    """
    for old in folder.glob(f"*{_COPY_SUFFIX}"):
        with suppress(OSError), old.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            old.unlink()
    copy = tempfile.NamedTemporaryFile(dir=folder, suffix=_COPY_SUFFIX)  # noqa: SIM115
    fcntl.flock(copy, fcntl.LOCK_EX)
    return copy


def _mounted_as(folder: Path) -> str:
    """Return the type of the file system on which a folder lies."""
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return file_system_type(fd)
    finally:
        os.close(fd)


def _begins_like_wim(path: Path) -> bool:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.pread(fd, 8, 0) in SIGNATURES
    finally:
        os.close(fd)


def _reader(path: Path) -> Callable[[int, int], bytes]:
    """Return what reads a file of a mounted medium."""

    def read(offset: int, length: int) -> bytes:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return os.pread(fd, length, offset)
            finally:
                os.close(fd)
        except OSError as error:
            raise SourceError(f"{path}: {error.strerror}") from error

    return read


def _reader_in(image: ImageFiles, file: Entry) -> Callable[[int, int], bytes]:
    """Return what reads a file of an ISO image."""
    return lambda offset, length: image.read(file, offset, min(length, file.size - offset))
