"""A disk whose map is known as a source: what a pack was unpacked to, or made from.

The map says where each content lies, metadata of file systems included; so nothing is surveyed,
searched or guessed, and no hints are needed. Nothing is believed either: what the guest has
written to since has another digest.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import Contents
from packer.artifact.map import Kind, Map
from packer.sources.base import Offers, Piece, Wanted, free_offers
from packer.sources.disk_runs import DiskRuns
from packer.sources.memory import find_rows
from packer.survey.disk import Disk

Rows = NDArray[np.int64]


class MappedSource:
    """The contents of an open disk, by digest. One object answers for one table of contents.

    disk: belongs to the caller. disk_map: of what the disk held; it may hold less by now. path: how
    the user names the disk.
    """

    local = True

    def __init__(self, disk: Disk, disk_map: Map, path: Path) -> None:
        self.uri = f"disk:{path}"
        self._held = disk_map.contents
        self._extents = _Extents(disk_map)
        self._reader = DiskRuns(disk, self.uri)
        self._wanted: Contents | None = None
        self._entry: Rows = np.empty(0, dtype=np.int64)

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:  # noqa: ARG002 - the map has it all
        """Return which wanted contents the map names."""
        if wanted.contents is not self._wanted:
            entry = find_rows(self._held.digest, wanted.contents.digest)
            # A digest that is the same for another size is a lie of one of the two maps.
            same = self._held.size[entry] == wanted.contents.size if len(self._held) else entry >= 0
            self._entry = np.where(same, entry, -1)
            self._wanted = wanted.contents
        return free_offers(wanted.rows[self._entry[wanted.rows] >= 0])

    def fetch(self, rows: Rows) -> Iterator[Piece]:
        """Yield the contents in the order of the disk; raise SourceError when it breaks."""
        if self._wanted is None:
            return
        entry = self._entry[rows]
        for place in np.argsort(self._extents.first_offset[entry], kind="stable").tolist():
            runs = self._extents.runs(int(entry[place]))
            yield from self._reader.pieces(self._wanted, int(rows[place]), runs)

    def close(self) -> None:
        """Close what was opened here; the disk stays open."""
        self._reader.close()


class _Extents:
    """Where each content of a map lies. first_offset: int64[contents], bytes of the disk."""

    def __init__(self, disk_map: Map) -> None:
        start = disk_map.start
        rows = np.flatnonzero(disk_map.kind == Kind.CONTENT)
        length = (disk_map.end - start)[rows]
        # Of several places for the same bytes the longest first: it may be all that is needed.
        order = np.lexsort((-length, disk_map.offset[rows], disk_map.content[rows]))
        rows = rows[order]
        self._length = length[order]
        self._offset = disk_map.offset[rows]
        self._start = start[rows]
        contents = np.arange(len(disk_map.contents) + 1)
        self._bounds = np.searchsorted(disk_map.content[rows], contents)
        self.first_offset: Rows = self._start[self._bounds[:-1]]

    def runs(self, row: int) -> NDArray[np.int64]:
        """Return a content as runs of the disk; see formats.source.Runs."""
        span = slice(self._bounds[row], self._bounds[row + 1])
        runs: list[list[int]] = []
        position = 0
        for offset, length, start in zip(
            self._offset[span].tolist(),
            self._length[span].tolist(),
            self._start[span].tolist(),
            strict=True,
        ):
            rest = offset + length - position
            if rest <= 0:  # another place of bytes that were found already
                continue
            target = start + length - rest
            if runs and runs[-1][1] + runs[-1][2] == target:
                runs[-1][2] += rest
            else:
                runs.append([position, target, rest])
            position += rest
        return np.array(runs, dtype=np.int64)
