"""Reading ahead of the kernel, which compares page by page and waits for each.

Nothing is kept here: the kernel is told what will be wanted, and reads it when it has time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from formats.ranges import spread
from formats.source import file_data_ranges
from packer.density.pairs import Requests

AHEAD_BYTES = 128 << 20
"""How far ahead of the requests is read."""

EARLY_BYTES = 1 << 30
"""What is read of all disks together before anybody knows what is wanted."""

_CHUNK_BYTES = 2 << 20


@contextmanager
def reading_early(fds: Sequence[int]) -> Iterator[None]:
    """Have the first data of files read meanwhile: surveys use the processor, not the storage."""
    ended = threading.Event()
    share = EARLY_BYTES // max(1, len(fds))
    threads = [threading.Thread(target=_read_early, args=(fd, share, ended)) for fd in fds]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def _read_early(fd: int, most_bytes: int, ended: threading.Event) -> None:
    for start, end in file_data_ranges(fd, 0, os.fstat(fd).st_size).tolist():
        for low in range(start, end, _CHUNK_BYTES):
            if most_bytes <= 0 or ended.is_set():
                return
            length = min(end - low, _CHUNK_BYTES)
            os.posix_fadvise(fd, low, length, os.POSIX_FADV_WILLNEED)
            most_bytes -= length


class ReadAhead:
    """Has the kernel read what will be compared, in large pieces and some way ahead."""

    def __init__(self, requests: Requests, fds: Sequence[int]) -> None:
        self._fds = fds
        self._pieces = _pieces(requests)[::-1]
        self._passed_bytes = 0

    def pass_over(self, length: int) -> None:
        """Say that requests of that many bytes come now; they come in their order."""
        self._passed_bytes += length
        near = self._passed_bytes + AHEAD_BYTES
        while self._pieces and self._pieces[-1][0] < near:
            _, disk, start, end = self._pieces.pop()
            os.posix_fadvise(self._fds[disk], start, end - start, os.POSIX_FADV_WILLNEED)


def _pieces(requests: Requests) -> list[tuple[int, int, int, int]]:
    """Return (how many bytes are compared before, disk, start, end) of all to be read, in order.

    What is wanted of a chunk is one piece, from the first such byte to the last.
    """
    if len(requests) == 0:
        return []
    start = np.concatenate([requests.source, requests.target])
    end = start + np.tile(requests.length, 2)
    row, chunk = spread(start // _CHUNK_BYTES, -(-end // _CHUNK_BYTES) - start // _CHUNK_BYTES)
    disk = np.concatenate([requests.source_disk, requests.target_disk])[row]
    before = np.tile(np.cumsum(requests.length) - requests.length, 2)[row]
    low = np.maximum(start[row], chunk * _CHUNK_BYTES)
    high = np.minimum(end[row], (chunk + 1) * _CHUNK_BYTES)
    order = np.lexsort((chunk, disk))
    new = np.ones(len(order), dtype=bool)
    new[1:] = (np.diff(chunk[order]) != 0) | (np.diff(disk[order]) != 0)
    first = np.flatnonzero(new)
    columns = (
        np.minimum.reduceat(before[order], first),
        disk[order][first],
        np.minimum.reduceat(low[order], first),
        np.maximum.reduceat(high[order], first),
    )
    return sorted(zip(*(column.tolist() for column in columns), strict=True))
