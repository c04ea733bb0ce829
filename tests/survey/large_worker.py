"""The real worker with an ext reader that finds a million files of one block each."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np

from formats.filesystem.model import FileSystem, Streams, plain
from formats.source import Source
from packer.survey import worker

FILES = 1_000_000
BLOCK = 4096


def read(source: Source) -> FileSystem:
    rows = np.arange(FILES, dtype=np.int64)
    streams = Streams(
        inode=rows + 11,
        size=rows % BLOCK + 1,
        valid=rows % BLOCK + 1,
        form=plain(FILES),
        stream=rows,
        file_offset=np.zeros(FILES, dtype=np.int64),
        disk_offset=(rows + 1) * BLOCK,
        length=np.full(FILES, BLOCK, dtype=np.int64),
        kind=np.zeros(FILES, dtype=np.uint8),
    )
    names = tuple(
        (row, f"/usr/share/some/folder/of/usual/depth/file-{row}") for row in range(FILES)
    )
    return FileSystem("ext4", BLOCK, "large", "", "clean", streams=streams, names=names)


def main(parent: int) -> None:
    worker.READERS = tuple(
        replace(one, read=read) if one.name == "ext" else one for one in worker.READERS
    )
    worker.main(parent)
    sys.exit(1)
