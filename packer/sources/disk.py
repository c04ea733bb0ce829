"""Another VM's disk as a source: `disk:/path/vm.qcow2`, `disk:nbd://…`.

The disk may be running: nothing that comes from here is believed, so what changes while it is
read costs a wrong offer and no more.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from formats.filesystem.model import DATA
from formats.windows.names import fold
from packer.artifact.contents import BLOCK_BYTES, DIGEST_BYTES, Contents
from packer.errors import Error
from packer.sources.base import Offers, Piece, SourceError, Wanted, free_offers, sent_offers
from packer.sources.by_path import names_in_volume
from packer.sources.directory import whole_files
from packer.sources.disk_runs import DiskRuns
from packer.sources.memory import find_rows
from packer.survey.disk import NBD_SCHEMES, Disk, open_disk
from packer.survey.model import CASE_INSENSITIVE, Survey
from packer.survey.survey import survey

Rows = NDArray[np.int64]

HASHED_TOGETHER = 4096
_LOCAL_NBD = "nbd+unix://"


@dataclass(frozen=True, slots=True)
class _Opened:
    """The disk, who owns its bytes, and what hands them out."""

    disk: Disk
    survey: Survey
    reader: DiskRuns


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Streams that may hold contents, sorted by row, one a row; start: bytes into the stream."""

    row: Rows
    stream: Rows
    start: Rows


class DiskSource:
    """`disk:PATH`. One object answers for one table of contents (one pack).

    path: a disk image, a block device or an NBD URI. The disk is opened and surveyed when it is
    first asked.
    """

    def __init__(self, path: str) -> None:
        self.uri = f"disk:{path}"
        self.local = not path.startswith(NBD_SCHEMES) or path.startswith(_LOCAL_NBD)
        self.near = not self.local  # nobody reads a disk through NBD from far away
        self._path = path
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        self._contents: Contents | None = None
        self._candidates = _no_candidates()

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        """Return what files at the hints' paths with the hints' size may hold.

        deep: all files of a wanted size are hashed.
        """
        opened = self._open()
        found = _guess(opened.survey, wanted)
        if deep:
            found = _first_of(self._search(opened, wanted), found)
        with self._lock:
            if wanted.contents is not self._contents:
                self._contents, self._candidates = wanted.contents, _no_candidates()
            self._candidates = _first_of(found, self._candidates)
        if self.local:
            return free_offers(found.row)
        return sent_offers(found.row, wanted.contents.size)

    def fetch(self, rows: Rows) -> Iterator[Piece]:
        """Yield the contents in the order of the disk.

        As a range of the image's file where that is a raw disk and the content lies in one piece,
        else block by block. Raises SourceError when the disk cannot be read any more.
        """
        with self._lock:
            found, contents, opened = self._candidates, self._contents, self._opened
        if contents is None or opened is None:
            return
        places = np.flatnonzero(np.isin(found.row, rows)).tolist()
        runs = {place: self._runs(opened, contents, found, place) for place in places}
        for place in sorted(places, key=lambda one: int(runs[one][0, 1])):
            yield from opened.reader.pieces(contents, int(found.row[place]), runs[place])

    def close(self) -> None:
        """Close the disk."""
        with self._lock:
            if self._opened is not None:
                self._opened.reader.close()
                self._opened.disk.close()
            self._opened = None

    def _open(self) -> _Opened:
        with self._lock:
            if self._opened is None:
                try:
                    disk = open_disk(self._path, allow_in_use=True)
                    try:
                        self._opened = _Opened(disk, survey(disk), DiskRuns(disk, self.uri))
                    except (Error, OSError):
                        disk.close()
                        raise
                except Error as error:
                    raise SourceError(f"{self.uri}: {error}", hint=error.hint) from error
                except OSError as error:
                    raise SourceError(f"{self.uri}: {error.strerror or error}") from error
            return self._opened

    def _runs(
        self, opened: _Opened, contents: Contents, found: _Candidates, place: int
    ) -> NDArray[np.int64]:
        size = int(contents.size[found.row[place]])
        return _runs_of(opened.survey, int(found.stream[place]), int(found.start[place]), size)

    def _search(self, opened: _Opened, wanted: Wanted) -> _Candidates:
        """Return which streams hold wanted contents, by their digests."""
        rows, table = whole_files(wanted), opened.survey
        sizes = np.unique(wanted.contents.size[rows])
        streams = np.flatnonzero(np.isin(table.file_size, sizes) & (table.file_size > 0))

        def digest_of(stream: int) -> bytes:
            size = int(table.file_size[stream])
            runs = _runs_of(table, stream, 0, size)
            hasher = hashlib.sha256()
            for start in range(0, size, BLOCK_BYTES):
                data = opened.reader.read(runs, start, min(start + BLOCK_BYTES, size))
                if data is None:
                    return bytes(DIGEST_BYTES)
                hasher.update(data)
            return hasher.digest()

        with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
            whole = b"".join(pool.map(digest_of, streams.tolist()))
        digest = np.frombuffer(whole, dtype=np.uint8).reshape(-1, DIGEST_BYTES)
        place = find_rows(digest, wanted.contents.digest[rows])
        hit = place >= 0
        return _Candidates(rows[hit], streams[place[hit]], np.zeros(int(hit.sum()), dtype=np.int64))


def _no_candidates() -> _Candidates:
    none = np.empty(0, dtype=np.int64)
    return _Candidates(none, none, none)


def _first_of(preferred: _Candidates, others: _Candidates) -> _Candidates:
    """Return one candidate a row, of `preferred` where both have one."""
    row = np.concatenate([preferred.row, others.row])
    rows, first = np.unique(row, return_index=True)
    stream = np.concatenate([preferred.stream, others.stream])[first]
    return _Candidates(rows, stream, np.concatenate([preferred.start, others.start])[first])


def _guess(table: Survey, wanted: Wanted) -> _Candidates:
    """Return the streams with a name that a hint gives and the size it gives."""
    hints, contents = wanted.hints, wanted.contents
    which = np.flatnonzero(np.isin(hints.content, wanted.rows))
    content, start = hints.content[which], hints.file_offset[which]
    # Hints may contradict the contents: they are as untrusted as any other part of a pack.
    room = hints.file_size[which] - contents.size[content]  # compared with: a sum could wrap around
    sane = (start >= 0) & (start <= room)
    which = which[sane]
    streams = _Named(table, np.unique(hints.file_size[which]))
    sizes = hints.file_size.tolist()
    found: list[tuple[int, int]] = []
    for place in which.tolist():
        for name in names_in_volume(hints.path[place]):
            stream = streams.find(name, sizes[place])
            if stream is not None:
                found.append((place, stream))
                break
    pairs = np.array(found, dtype=np.int64).reshape(-1, 2)
    columns = hints.content[pairs[:, 0]], pairs[:, 1], hints.file_offset[pairs[:, 0]]
    return _first_of(_Candidates(*columns), _no_candidates())


class _Named:
    """The streams of some sizes by path and size, in any case where the file system ignores it."""

    def __init__(self, table: Survey, sizes: NDArray[np.int64]) -> None:
        size = table.file_size[table.name_stream]
        names = np.flatnonzero(np.isin(size, sizes)).tolist()
        streams, all_sizes = table.name_stream.tolist(), size.tolist()
        kinds = [volume.kind in CASE_INSENSITIVE for volume in table.volumes]
        caseless = np.array(kinds, dtype=bool)[table.volume[table.name_stream]].tolist()
        self._exact: dict[tuple[str, int], int] = {}
        self._folded: dict[tuple[str, int], int] = {}
        # Volumes may have names in common: the first volume's stays, as the root is usually first.
        for one in reversed(names):
            self._exact[table.name[one], all_sizes[one]] = streams[one]
            if caseless[one]:
                self._folded[fold(table.name[one]), all_sizes[one]] = streams[one]

    def find(self, name: str, size: int) -> int | None:
        stream = self._exact.get((name, size))
        return self._folded.get((fold(name), size)) if stream is None else stream


def _runs_of(table: Survey, stream: int, start: int, size: int) -> NDArray[np.int64]:
    """Return where `size` bytes of a stream from `start` lie: see formats.source.Runs."""
    rows = table.extents_of(stream)
    runs: list[list[int]] = []
    position, end = start, start + size
    valid = int(table.valid_size[stream])

    def append(target: int, length: int) -> None:
        last = runs[-1] if runs else None
        follows = last is not None and (
            last[1] + last[2] == target if last[1] >= 0 and target >= 0 else last[1] == target
        )
        if last is not None and follows:
            last[2] += length
        else:
            runs.append([position - start, target, length])

    for file_offset, disk_offset, length, kind in zip(
        table.file_offset[rows].tolist(),
        table.disk_offset[rows].tolist(),
        table.length[rows].tolist(),
        table.kind[rows].tolist(),
        strict=True,
    ):
        low, high = max(position, file_offset), min(end, file_offset + length, valid)
        if low >= high:
            continue
        if position < low:
            append(-1, low - position)
            position = low
        append(disk_offset + low - file_offset if kind == DATA else -1, high - low)
        position = high
    if position < end:
        append(-1, end - position)
    return np.array(runs, dtype=np.int64).reshape(-1, 3)
