"""Reading ahead of the kernel, which compares page by page and waits for each.

Nothing is kept here: the kernel is told what will be wanted, and reads it when it has time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
        self._places = list(
            zip(
                requests.source_disk.tolist(),
                requests.source.tolist(),
                requests.target_disk.tolist(),
                requests.target.tolist(),
                requests.length.tolist(),
                strict=True,
            )
        )
        self._asked: set[tuple[int, int]] = set()
        self._next = 0
        self._ahead_bytes = 0

    def pass_over(self, first: int, end: int) -> None:
        """Say that the requests [first, end) come now, each once and in their order."""
        while self._next < len(self._places) and (
            self._next < end or self._ahead_bytes < AHEAD_BYTES
        ):
            source_disk, source, target_disk, target, length = self._places[self._next]
            self._read(source_disk, source, length)
            self._read(target_disk, target, length)
            self._ahead_bytes += length
            self._next += 1
        self._ahead_bytes -= sum(place[-1] for place in self._places[first:end])

    def _read(self, disk: int, offset: int, length: int) -> None:
        for chunk in range(offset // _CHUNK_BYTES, (offset + length - 1) // _CHUNK_BYTES + 1):
            if (disk, chunk) not in self._asked:
                self._asked.add((disk, chunk))
                start = chunk * _CHUNK_BYTES
                os.posix_fadvise(self._fds[disk], start, _CHUNK_BYTES, os.POSIX_FADV_WILLNEED)
