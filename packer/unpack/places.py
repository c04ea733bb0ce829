"""Where on a disk each piece of each content belongs, and whether a disk holds it there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import BLOCK_BYTES, DIGEST_BYTES
from packer.artifact.map import Kind, Map

Pread = Callable[[int, int], bytes | memoryview]
"""(offset, length) -> bytes of a disk."""


class Places:
    """A map turned round: from contents to ranges. Any number of threads."""

    def __init__(self, disk_map: Map) -> None:
        self.map = disk_map
        contents = disk_map.contents
        rows = np.flatnonzero(disk_map.kind == Kind.CONTENT)
        rows = rows[np.lexsort((disk_map.offset[rows], disk_map.content[rows]))]
        bounds = np.searchsorted(disk_map.content[rows], np.arange(len(contents) + 1))
        start = disk_map.start[rows]
        self.first_offset: NDArray[np.int64] = start[bounds[:-1]]
        """int64[contents], where on the disk the first byte of each content lies."""
        self.sizes: list[int] = contents.size.tolist()
        self._bounds: list[int] = bounds.tolist()
        self._start: list[int] = start.tolist()
        self._offset: list[int] = disk_map.offset[rows].tolist()
        self._length: list[int] = (disk_map.end[rows] - start).tolist()
        self._digests = contents.digest.tobytes()
        self._block_digests = contents.blocks.tobytes()
        self._block_start: list[int] = contents.block_start.tolist()

    def blocks(self, row: int) -> Iterator[tuple[int, int, int]]:
        """Yield (block, start, end) of a content's separately verifiable pieces, in bytes."""
        size = self.sizes[row]
        for block, start in enumerate(range(0, size, BLOCK_BYTES)):
            yield block, start, min(start + BLOCK_BYTES, size)

    def targets(self, row: int, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (disk offset, low, high): where bytes [low, high) of a content belong.

        Sorted by low; a content that several files hold has several targets for the same bytes.
        """
        for number in range(self._bounds[row], self._bounds[row + 1]):
            offset = self._offset[number]
            low = max(start, offset)
            high = min(end, offset + self._length[number])
            if low < high:
                yield self._start[number] + low - offset, low, high

    def digest(self, row: int, block: int) -> bytes:
        """Return the SHA-256 that a piece of a content must have."""
        first = self._block_start[row]
        table, place = (
            (self._digests, row)
            if self._block_start[row + 1] == first
            else (self._block_digests, first + block)
        )
        return table[DIGEST_BYTES * place : DIGEST_BYTES * (place + 1)]

    def held(self, pread: Pread, row: int, block: int, start: int, end: int) -> bool:
        """Return whether a disk holds one piece of a content in all places where it belongs."""
        targets = list(self.targets(row, start, end))
        if len(targets) == 1:  # nearly all of them: nothing to put together
            return hashlib.sha256(pread(targets[0][0], end - start)).digest() == self.digest(
                row, block
            )
        whole = bytearray(end - start)
        reach = start
        for target, low, high in targets:
            data = pread(target, high - low)
            seen = min(high, reach) - low
            if seen > 0 and whole[low - start : low - start + seen] != bytes(data[:seen]):
                return False  # two places for the same bytes, and they differ
            if high > reach:
                whole[reach - start : high - start] = data[reach - low :]
                reach = high
        return hashlib.sha256(whole).digest() == self.digest(row, block)
