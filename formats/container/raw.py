"""A raw image: the file is the disk."""

from __future__ import annotations

import numpy as np

from formats.container.flat import FlatDisk, no_compressed, no_runs
from formats.source import Source

SECTOR_BYTES = 512  # BDRV_SECTOR_SIZE, qemu include/block/block.h


def open_raw(source: Source) -> FlatDisk:
    """Return the disk of a raw image.

    A file that is no multiple of 512 bytes is a disk of the next multiple whose tail reads as
    zeros, which is what a guest of qemu sees (qemu `block.c`, `bdrv_co_refresh_total_sectors`).
    """
    size = -(-source.size // SECTOR_BYTES) * SECTOR_BYTES
    runs = np.array([[0, 0, source.size]], dtype=np.int64) if source.size else no_runs()
    return FlatDisk(source, size, runs, no_compressed(), SECTOR_BYTES, "deflate")
