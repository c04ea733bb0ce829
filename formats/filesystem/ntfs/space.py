"""Which clusters are free, by $Bitmap."""

from __future__ import annotations

import numpy as np

from formats.filesystem.ntfs.gather import Flags
from formats.ranges import Ranges, empty_ranges, from_bits, union
from formats.source import Source

PIECE_BYTES = 512 << 10


def read_free(bitmap: Source, clusters: int, cluster_size: int) -> Ranges:
    """Return the clusters whose bit is 0, as bytes of the volume.

    bitmap: at least one bit for each of the clusters, the lowest bit of a byte first.
    """
    free: list[Ranges] = [empty_ranges()]
    for first in range(0, clusters, PIECE_BYTES * 8):
        count = min(PIECE_BYTES * 8, clusters - first)
        used = read_bits(bitmap, first, count)
        free.append(from_bits(~used, cluster_size, first * cluster_size))
    return union(*free)


def read_bits(bitmap: Source, first: int, count: int) -> Flags:
    """Return `count` bits from bit `first`, which begins a byte."""
    data = np.frombuffer(bitmap.pread(first // 8, -(-count // 8)), dtype=np.uint8)
    return np.unpackbits(data, count=count, bitorder="little").view(np.bool_)
