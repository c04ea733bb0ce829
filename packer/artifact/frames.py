"""Stored frames as they are, each proven before it is handed on: nobody signs a frame index."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from packer.artifact.index import Index, frame_counts
from packer.artifact.opened import OpenedPack
from packer.artifact.zstd import decompress
from packer.errors import InputError

BYTES_AT_ONCE = 32 << 20
"""So much of what is stored is asked for at a time, and is in memory then."""


class FrameReader:
    """Reads frames of a pack. index: where its contents lie in them."""

    def __init__(self, pack: OpenedPack, index: Index) -> None:
        self._pack = pack
        self._index = index
        self._entry = np.argsort(index.first_frame, kind="stable")
        """Rows of the index by the frame in which a content begins, which is in `_begin`."""
        self._begin = index.first_frame[self._entry]

    def read(self, frames: NDArray[np.int64]) -> Iterator[bytes]:
        """Yield stored frames in their order. frames: int64[k], sorted.

        Raises InputError for a frame that does not hold what the index says.
        """
        ends = np.cumsum(self._index.stored_bytes[frames])
        for some in np.split(frames, np.flatnonzero(np.diff(ends // BYTES_AT_ONCE)) + 1):
            stored = dict(self._stored(some))
            for frame in some.tolist():
                self._prove(frame, stored[frame])
                yield stored.pop(frame)

    def _stored(self, frames: NDArray[np.int64]) -> Iterator[tuple[int, bytes]]:
        """Yield (frame, its stored bytes), not proven, in any order."""
        index = self._index
        for bundle in np.unique(index.bundle[frames]).tolist():
            here = frames[index.bundle[frames] == bundle]
            offsets, lengths = index.frame_offset[here].tolist(), index.stored_bytes[here].tolist()
            ranges = list(zip(offsets, lengths, strict=True))
            for row, data in self._pack.layout.read_many(index.bundles[bundle], ranges):
                yield int(here[row]), data

    def _prove(self, frame: int, stored: bytes) -> None:
        index, contents = self._index, self._pack.map.contents
        bundle = index.bundles[int(index.bundle[frame])]
        where = f"{self._pack.layout.location}: bundle {bundle}"
        plain = decompress(stored, int(index.frame_bytes[frame]), where)
        for entry in self._entries(frame):
            row, block = int(index.content[entry]), frame - int(index.first_frame[entry])
            start, end = contents.block_bounds(row, block)
            offset = int(index.offset[entry])
            data = plain[offset : offset + end - start]
            if hashlib.sha256(data).digest() != contents.block_digest(row, block):
                raise InputError(
                    f"{where}: expected {contents.name(row)} in it, found other bytes",
                    hint="the copy is damaged; fetch it again or copy from another one",
                )

    def _entries(self, frame: int) -> list[int]:
        """Return the rows of the index that speak of a frame: those that begin there, or the large
        one that goes on there.
        """
        low, high = np.searchsorted(self._begin, [frame, frame + 1]).tolist()
        if low == high > 0:
            before = int(self._entry[low - 1])
            size = self._pack.map.contents.size[self._index.content[before : before + 1]]
            if frame < self._index.first_frame[before] + frame_counts(size)[0]:
                low -= 1
        return [int(entry) for entry in self._entry[low:high]]
