"""The lazy disk: a pack's map with whoever has its contents behind it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from packer.artifact.map import Map
from packer.run.disk.export import Part
from packer.run.disk.kept import Span
from packer.run.disk.resolve import Resolver

TOUCHED_BYTES = 64 << 10
"""How exactly it is known what clients have read."""


MOST_RANGES = 4096
"""Of the map, in one step: more would keep all other clients waiting."""


class LazyDisk:
    """The disk of a map as an Export; see there. Zero, unused and dropped ranges are zeros."""

    def __init__(self, disk_map: Map, resolver: Resolver) -> None:
        self.size = disk_map.size
        self._resolver = resolver
        # Views give plain numbers, quicker than columns do and smaller than lists.
        self._end = disk_map.end.data
        self._content = disk_map.content.data
        # Where on the disk each range's content would begin if all of it lay there.
        self._origin = (disk_map.start - disk_map.offset).data
        empty = disk_map.content < 0
        last = np.append(empty[1:] != empty[:-1], True)
        self._extent_end = disk_map.end[last].data
        self._extent_empty = empty[last].data
        self._touched = bytearray(-(-self.size // TOUCHED_BYTES))

    def read_now(self, offset: int, length: int) -> list[Part] | None:
        """Return the bytes if they are proven and in memory; see Export."""
        self._touch(offset, length)
        if self._is_in_crumbs(offset, length):
            return None
        parts: list[Part] = []
        for row, start, count in self._spans(offset, length):
            if row < 0:
                parts.append(count)
                continue
            found = self._resolver.read_now(row, start, count)
            if found is None:
                return None
            parts += found
        return parts

    async def read(self, offset: int, length: int) -> list[Part]:
        """Return the bytes, brought from wherever they are; see Export."""
        at_hand = self.read_now(offset, length)
        if at_hand is not None:
            return at_hand
        if self._is_in_crumbs(offset, length):
            half = length // 2
            halves = [(offset, half), (offset + half, length - half)]
            parts = [part for one in halves for part in await self.read(*one)]
            return [b"".join(bytes(part) for part in parts)]
        return await self._resolver.read(list(self._spans(offset, length)))

    def _is_in_crumbs(self, offset: int, length: int) -> bool:
        first = bisect_right(self._end, offset)
        return bisect_left(self._end, offset + length, first) - first >= MOST_RANGES

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Yield (length, whether it reads as zeros); see Export."""
        end = offset + length
        number = bisect_right(self._extent_end, offset)
        while offset < end:
            stop = min(self._extent_end[number], end)
            yield stop - offset, self._extent_empty[number]
            offset, number = stop, number + 1

    def touched(self) -> NDArray[np.int64]:
        """Return what was read: sorted ranges of the disk, int64[k, 2] in bytes, 64 KiB exact."""
        marks = np.frombuffer(self._touched, dtype=np.int8)
        edges = np.flatnonzero(np.diff(marks, prepend=0, append=0))
        return np.minimum(edges.reshape(-1, 2) * TOUCHED_BYTES, self.size).astype(np.int64)

    def forget_touched(self) -> None:
        """Begin anew to note what is read."""
        self._touched[:] = bytes(len(self._touched))

    def _spans(self, offset: int, length: int) -> Iterator[Span]:
        """Yield the parts of contents that lie one after the other in a part of the disk."""
        end = offset + length
        number = bisect_right(self._end, offset)
        while offset < end:
            stop = min(self._end[number], end)
            yield self._content[number], offset - self._origin[number], stop - offset
            offset, number = stop, number + 1

    def _touch(self, offset: int, length: int) -> None:
        first, end = offset // TOUCHED_BYTES, -(-(offset + length) // TOUCHED_BYTES)
        self._touched[first:end] = b"\x01" * (end - first)
