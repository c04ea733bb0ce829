"""Source: package files lying around (deb:/var/cache/apt/archives), and how one is searched.

A package file is read once, front to back. What a member is for is decided by its size and then
by its digest alone: so it does not matter that the guest has /usr/lib where the package says /lib,
that a path was diverted, or that a control member lies at /var/lib/dpkg/info/NAME.postinst.
"""

from __future__ import annotations

import errno
import hashlib
import heapq
import logging
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from formats.errors import FormatError
from formats.package.deb import Readable, members
from packer.artifact.hints import DPKG, Package
from packer.sources.base import Bytes, Offers, Piece, SourceError, Wanted, free_offers
from packer.transport.ranges import Asked, cut_ranges

Rows = NDArray[np.int64]
Window = tuple[int, int]
"""[start, end) of a file, bytes: one piece of a content."""

CHUNK_BYTES = 1 << 18

MAX_OPEN_WINDOWS = 64
"""Pieces of one member that may overlap, at most 1 MiB each: only hints that lie need more."""

MAX_FILES = 200_000
"""Package files below one folder that are looked at; a whole mirror's architecture has 65,000."""

MAX_UNPACKED_BYTES = 32 << 30
"""Of one package; the largest in Debian have 5 GB. It bounds time, memory is bounded anyway."""

INFO_FOLDER = "/var/lib/dpkg/info/"

_log = logging.getLogger(__name__)


class PackageFileError(Exception):
    """A package file that cannot be read; the next one is tried. Stays among these sources."""


class Search:
    """Pieces of contents that are looked for in package files; what was found is crossed off."""

    def __init__(self, wanted: Wanted, rows: Rows) -> None:
        self._contents = wanted.contents
        self._left = {row: wanted.contents.block_count(row) for row in rows.tolist()}
        self._found: set[tuple[int, int]] = set()
        self._by_size: dict[int, dict[Window, dict[bytes, list[tuple[int, int]]]]] = {}
        hints = wanted.hints
        which = np.isin(hints.content, rows)
        places = np.stack([hints.content, hints.file_size, hints.file_offset], axis=1)[which]
        # Each place once: a large file may have very many names.
        for row, file_size, file_offset in np.unique(places, axis=0).tolist():
            self._add(row, file_size, file_offset)

    def _add(self, row: int, file_size: int, file_offset: int) -> None:
        if file_offset < 0 or file_offset + int(self._contents.size[row]) > file_size:
            return
        windows = self._by_size.setdefault(file_size, {})
        for block in range(self._contents.block_count(row)):
            start, end = self._contents.block_bounds(row, block)
            pieces = windows.setdefault((file_offset + start, file_offset + end), {})
            wanted = pieces.setdefault(self._contents.block_digest(row, block), [])
            if (row, block) not in wanted:
                wanted.append((row, block))

    def lacks(self, rows: Iterable[int]) -> bool:
        """Return whether any piece of these contents is still looked for."""
        return any(row in self._left for row in rows)

    def wants(self, size: int) -> bool:
        """Return whether a file of this size may hold something."""
        return any(self._by_size.get(size, {}).values())

    def take(self, size: int, chunks: Iterable[bytes]) -> Iterator[Bytes]:
        """Yield the pieces that a file of this size holds, from its bytes in order."""
        windows = self._by_size.get(size, {})
        open_ones = [window for window, pieces in windows.items() if pieces]
        asked = [(*window, number) for number, window in enumerate(sorted(open_ones))]
        for number, data in cut_ranges(chunks, 0, _bounded(asked)):
            digest = hashlib.sha256(data).digest()
            for row, block in windows[asked[number][:2]].pop(digest, ()):
                if self._cross_off(row, block):
                    yield Bytes(row, block, data)

    def _cross_off(self, row: int, block: int) -> bool:
        """Note a found piece; False when it was found elsewhere before."""
        if row not in self._left or (row, block) in self._found:
            return False
        self._found.add((row, block))
        self._left[row] -= 1
        if self._left[row] == 0:
            del self._left[row]
        return True


def _bounded(asked: list[Asked]) -> list[Asked]:
    """Leave out what would need more than MAX_OPEN_WINDOWS pieces in memory at a time."""
    kept: list[Asked] = []
    ends: list[int] = []
    for one in asked:
        while ends and ends[0] <= one[0]:
            heapq.heappop(ends)
        if len(ends) < MAX_OPEN_WINDOWS:
            heapq.heappush(ends, one[1])
            kept.append(one)
    return kept


def rows_by_package(wanted: Wanted) -> dict[int, Rows]:
    """Return {row in hints.packages: sorted wanted contents it ships}, the fullest one first."""
    hints = wanted.hints
    of_dpkg = np.array([one.manager == DPKG for one in hints.packages] + [False])  # and NO_PACKAGE
    which = np.flatnonzero(of_dpkg[hints.package] & np.isin(hints.content, wanted.rows))
    made = [_is_generated(hints.path[row]) for row in which.tolist()]
    which = which[~np.array(made, dtype=bool)]
    which = which[np.argsort(hints.package[which], kind="stable")]
    packages, starts = np.unique(hints.package[which], return_index=True)
    parts = np.split(hints.content[which], starts[1:])
    groups = {
        package: np.unique(part) for package, part in zip(packages.tolist(), parts, strict=False)
    }
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


def _is_generated(path: str) -> bool:
    """Return whether dpkg writes this file itself, so that no package holds it."""
    return path.startswith(INFO_FOLDER) and path.endswith((".list", "/format"))


def read_package(path: Path, search: Search, rows: Iterable[int]) -> Iterator[Piece]:
    """Yield the wanted pieces that a package file holds; stop when `rows` are complete.

    Raises PackageFileError when the file cannot be read or is none; pieces before that stand.
    """
    expected = list(rows)
    try:
        with _open_regular(path) as file:
            for member in members(file, max_bytes=MAX_UNPACKED_BYTES):
                if search.wants(member.size):
                    yield from search.take(member.size, _chunks(member.file))
                    if not search.lacks(expected):
                        return
    except (OSError, FormatError) as error:
        raise PackageFileError(f"{path}: {error}") from error


def file_names(package: Package) -> tuple[str, ...]:
    """Return the names that a package's file may have: apt writes an epoch's colon as %3a.

    Mirrors leave the epoch out.
    """
    version = package.version
    versions = [version.replace(":", "%3a"), version.replace(":", "%3A"), version]
    versions.append(version.partition(":")[2] or version)
    names = (f"{package.name}_{one}_{package.architecture}.deb" for one in versions)
    return tuple(dict.fromkeys(names))


class DebSource:
    """Package files in a folder, found by their names; their contents by size and digest.

    Looks deep: also below the folder, as in a copy of a mirror. Raises SourceError when the folder
    cannot be listed.
    """

    local = True

    def __init__(self, folder: Path) -> None:
        self.uri = f"deb:{folder}"
        self._folder = folder
        self._lock = threading.Lock()
        self._files: dict[bool, dict[str, list[Path]]] = {}
        self._wanted: Wanted | None = None
        self._places: dict[int, tuple[Path, ...]] = {}

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        """Return the wanted contents whose package has a file here; nothing is opened yet."""
        with self._lock:
            files = self._listed(deep)
            groups = rows_by_package(wanted)
            places = {
                package: tuple(
                    path
                    for name in file_names(wanted.hints.packages[package])
                    for path in files.get(name, ())
                )
                for package in groups
            }
            self._wanted = wanted
            self._places.update({package: paths for package, paths in places.items() if paths})
        here = [rows for package, rows in groups.items() if places[package]]
        return free_offers(np.unique(np.concatenate(here)) if here else np.empty(0, dtype=np.int64))

    def fetch(self, rows: Rows) -> Iterator[Piece]:
        """Yield the pieces found in package files, file by file."""
        with self._lock:
            wanted, places = self._wanted, dict(self._places)
        if wanted is None:
            return
        search = Search(wanted, rows)
        for package, expected in rows_by_package(wanted.only(rows)).items():
            for path in places.get(package, ()):
                if not search.lacks(expected.tolist()):
                    break
                try:
                    yield from read_package(path, search, expected.tolist())
                except PackageFileError as error:
                    _log.warning("%s: left out: %s", self.uri, error)

    def close(self) -> None:
        """Nothing is open."""

    def _listed(self, deep: bool) -> Mapping[str, list[Path]]:
        if deep not in self._files:
            found: dict[str, list[Path]] = {}
            try:
                for count, path in enumerate(_package_files(self._folder, deep)):
                    if count >= MAX_FILES:
                        _log.warning("%s: only %d files are looked at", self.uri, MAX_FILES)
                        break
                    found.setdefault(path.name, []).append(path)
            except OSError as error:
                raise SourceError(f"{self.uri}: {error.strerror}") from error
            self._files[deep] = found
        return self._files[deep]


def _package_files(folder: Path, deep: bool) -> Iterator[Path]:
    """Yield the *.deb of a folder and, if deep, of those below; links are not followed."""
    pending = [folder]
    while pending:
        here = pending.pop()
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.name.endswith(".deb") and entry.is_file(follow_symlinks=False):
                    yield here / entry.name
                elif deep and entry.is_dir(follow_symlinks=False) and os.access(entry, os.R_OK):
                    pending.append(here / entry.name)


def _open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; a device, pipe or link that took its place is refused."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "is no regular file")
    return os.fdopen(fd, "rb")


def _chunks(file: Readable) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
