"""The one seam of `formats`: bytes at offsets.

Everything that is read is a source, and every layer is a source over a source: a disk inside a
container, a partition as a window of the disk, a file as the concatenation of its runs.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from formats.errors import Truncated
from formats.ranges import Ranges, as_ranges, empty_ranges


class Readable(Protocol):
    """`size` bytes that can be read at any offset, from several threads at once."""

    @property
    def size(self) -> int:
        """Length in bytes."""

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes from `offset`.

        Raises Truncated when `[offset, offset + length)` does not lie inside the source.
        """


class Source(Readable, Protocol):
    """Bytes that also know where they hold nothing but zeros."""

    def data_ranges(self, start: int, end: int) -> Ranges:
        """Return the parts of `[start, end)` that may hold anything but zeros.

        Shape (n, 2), int64, bytes, sorted, disjoint. What is left out reads as zeros without
        being read (holes of a sparse file, unallocated clusters).
        """


def check_bounds(structure: str, size: int, offset: int, length: int) -> None:
    """Raise Truncated unless `[offset, offset + length)` lies inside `[0, size)`."""
    if offset < 0 or length < 0 or offset + length > size:
        raise Truncated(
            structure, offset, f"expected {length} bytes, the source ends at byte {size}"
        )


def file_data_ranges(fd: int, start: int, end: int) -> Ranges:
    """Return the parts of `[start, end)` of an open file that are not holes; lseek(2)."""
    found: list[tuple[int, int]] = []
    position = start
    while position < end:
        try:
            data = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data after this position
                break
            return as_ranges([(start, end)])  # the file system knows no holes
        if data >= end:
            break
        position = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        found.append((data, position))
    return as_ranges(found)


class FileSource:
    """A regular file or block device, opened read-only."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.lseek(self.fd, 0, os.SEEK_END)

    def pread(self, offset: int, length: int) -> bytes:
        """See Source."""
        check_bounds(str(self.path), self.size, offset, length)
        data = os.pread(self.fd, length, offset)
        if len(data) == length:
            return data
        pieces = [data]
        while data and (missing := length - sum(map(len, pieces))):
            data = os.pread(self.fd, missing, offset + length - missing)
            pieces.append(data)
        whole = b"".join(pieces)
        if len(whole) != length:
            raise Truncated(str(self.path), offset, f"expected {length} bytes, read {len(whole)}")
        return whole

    def data_ranges(self, start: int, end: int) -> Ranges:
        """See Source."""
        check_bounds(str(self.path), self.size, start, end - start)
        return file_data_ranges(self.fd, start, end)

    def close(self) -> None:
        """Close the file; later reads fail."""
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Window:
    """The bytes `[start, start + size)` of another source."""

    def __init__(self, source: Source, start: int, size: int) -> None:
        check_bounds("window", source.size, start, size)
        self.source = source
        self.start = start
        self.size = size

    def pread(self, offset: int, length: int) -> bytes:
        """See Source."""
        check_bounds("window", self.size, offset, length)
        return self.source.pread(self.start + offset, length)

    def data_ranges(self, start: int, end: int) -> Ranges:
        """See Source."""
        check_bounds("window", self.size, start, end - start)
        return self.source.data_ranges(self.start + start, self.start + end) - self.start


class Memory:
    """Bytes in memory as a source."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)

    def pread(self, offset: int, length: int) -> bytes:
        """See Source."""
        check_bounds("memory", self.size, offset, length)
        return self.data[offset : offset + length]

    def data_ranges(self, start: int, end: int) -> Ranges:
        """See Source."""
        check_bounds("memory", self.size, start, end - start)
        return as_ranges([(start, end)]) if end > start else empty_ranges()


class Runs:
    """A source made of pieces of another one: a file as its extents.

    runs: shape (n, 3), int64: offset in this source, offset in the other (-1: zeros), length;
    sorted and gap-free from 0.
    """

    def __init__(self, source: Source, runs: NDArray[np.int64]) -> None:
        self.source = source
        self.runs = runs
        self._starts = runs[:, 0]
        self.size = int(runs[-1, 0] + runs[-1, 2]) if len(runs) else 0

    def pread(self, offset: int, length: int) -> bytes:
        """See Source."""
        check_bounds("runs", self.size, offset, length)
        pieces: list[bytes] = []
        row = int(np.searchsorted(self._starts, offset, side="right")) - 1
        end = offset + length
        while offset < end:
            start, target, run_length = (int(value) for value in self.runs[row])
            take = min(end, start + run_length) - offset
            if target < 0:
                pieces.append(bytes(take))
            else:
                pieces.append(self.source.pread(target + offset - start, take))
            offset += take
            row += 1
        return b"".join(pieces)

    def data_ranges(self, start: int, end: int) -> Ranges:
        """See Source."""
        check_bounds("runs", self.size, start, end - start)
        used = self.runs[self.runs[:, 1] >= 0]
        bounds = np.stack([used[:, 0], used[:, 0] + used[:, 2]], axis=1)
        clipped = np.clip(bounds, start, end)
        return clipped[clipped[:, 1] > clipped[:, 0]]
