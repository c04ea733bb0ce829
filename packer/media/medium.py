"""Read what a medium holds, not what the kernel remembers of it.

O_DIRECT: the kernel writes out what is waiting, and then takes every byte from the device. To drop
the cache first and read through it (BLKFLSBUF, posix_fadvise) proves less, because the kernel may
keep pages that somebody else uses, and says nothing; it remains for file systems that have no
O_DIRECT. With 1 MiB and more at a time, both are equally fast.
"""

from __future__ import annotations

import errno
import mmap
import os

import numpy as np

from formats.ranges import Ranges, as_ranges
from formats.source import file_data_ranges

ALIGNMENT_BYTES = 4096
"""O_DIRECT wants memory, offsets and lengths in sectors; no device has larger ones."""


class Medium:
    """The bytes of an open file or block device as its medium has them. Any number of threads."""

    def __init__(self, fd: int) -> None:
        # Opened again: what is written through the other descriptor must stay buffered.
        path = f"/proc/self/fd/{fd}"
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def read(self, offset: int, length: int, into: mmap.mmap | None = None) -> memoryview:
        """Return exactly `length` bytes from `offset`.

        into: memory to use, of at least length + 2 × ALIGNMENT_BYTES; what was returned from it
        before is gone then. Raises OSError.
        """
        low = offset - offset % ALIGNMENT_BYTES
        whole = -(-(offset + length - low) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        memory = memoryview(into if into is not None else mmap.mmap(-1, max(whole, 1)))
        wanted, position = offset + length - low, 0
        while position < wanted:
            count = os.preadv(self._fd, [memory[position:whole]], low + position)
            before, position = position, position + count
            if position < wanted:  # a signal, or the end: go on in whole units
                position -= position % ALIGNMENT_BYTES
                if position == before:
                    raise OSError(errno.EIO, f"ends at byte {low + position}")
        return memory[offset - low : wanted]

    def data_ranges(self, end: int) -> Ranges:
        """Return the parts of `[0, end)` that may hold anything but zeros."""
        return file_data_ranges(self._fd, 0, end) if end else as_ranges([])

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


def read_medium(fd: int, offset: int, length: int) -> bytes:
    """Return bytes of an open file or block device as its medium has them. Raises OSError."""
    medium = Medium(fd)
    try:
        return bytes(medium.read(offset, length))
    finally:
        medium.close()


def is_zero(data: bytes | memoryview) -> bool:
    """Return whether all bytes are zero."""
    words = len(data) // 8 * 8
    return not (np.frombuffer(data[:words], dtype=np.uint64).any() or any(data[words:]))
