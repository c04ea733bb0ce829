"""Prove a disk by what its medium holds, after it was written.

The disk is read once, in order, in large windows, because every medium is fastest so; a content is
hashed from the window that it lies in, and what of it lies elsewhere is read by itself.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from formats.ranges import clip, intersect, union
from packer.artifact.contents import BLOCK_BYTES
from packer.artifact.hints import Hints
from packer.artifact.map import Kind, Map
from packer.errors import Error, MismatchError
from packer.media.medium import ALIGNMENT_BYTES, Medium, is_zero
from packer.progress import Advance, Progress
from packer.unpack.places import Places
from packer.unpack.unpack import path_of

WINDOW_BYTES = 16 << 20
_OVERLAP_BYTES = BLOCK_BYTES
"""A piece is no longer than this, so one that begins in a window and is whole ends in it."""

DAMAGE_SHOWN = 20


@dataclass(frozen=True, slots=True, order=True)
class Damage:
    """`[start, end)` of a disk that is not as it was written; row: of the content, or -1: zeros."""

    start: int
    end: int
    row: int


def read_back(
    fd: int,
    disk_map: Map,
    *,
    head: bytes | bytearray = b"",
    end: int | None = None,
    jobs: int,
    progress: Progress,
) -> list[Damage]:
    """Return what of a disk the medium does not hold as the map says, sorted.

    fd: of the file or device. head: the first bytes of the disk, which are not on the medium yet
    and count as they are given. end: where to stop, in bytes of the disk. What is in no content
    must read as zeros.
    """
    try:
        medium = Medium(fd)
    except OSError as error:
        raise Error(f"cannot be read back: {error.strerror}") from error
    try:
        reader = _Reader(medium, disk_map, head)
        end = disk_map.size if end is None else min(end, disk_map.size)
        with (
            progress.stage("reading back", end) as advance,
            ThreadPoolExecutor(jobs) as pool,
        ):
            starts = range(0, end, WINDOW_BYTES)
            parts = list(pool.map(lambda start: reader.check(start, end, advance), starts))
    finally:
        medium.close()
    return _joined(sorted({one for part in parts for one in part}))


def mismatch(where: str, damage: Sequence[Damage], disk_map: Map, hints: Hints) -> MismatchError:
    """Return the error that says what does not read back, and what lies there."""
    lines = []
    for one in damage[:DAMAGE_SHOWN]:
        what = "zeros"
        if one.row >= 0:
            what = f"{disk_map.contents.name(one.row)}  {path_of(hints, one.row)}"
        lines.append(f"  [{one.start}, {one.end})  expected {what}")
    if len(damage) > DAMAGE_SHOWN:
        lines.append(f"  … and {len(damage) - DAMAGE_SHOWN} more")
    total = sum(one.end - one.start for one in damage)
    return MismatchError(
        f"{where}: {total:,} bytes do not read back as they were written, the first at byte "
        f"{damage[0].start:,}\n" + "\n".join(lines),
        hint="the medium fails, or is smaller than it says; it is left as one that nothing takes "
        "for a disk. The same command writes what is wrong once more",
    )


def _joined(damage: Sequence[Damage]) -> list[Damage]:
    """Return damage with neighbours made one where only zeros were expected."""
    found: list[Damage] = []
    for one in damage:
        if found and one.row == found[-1].row == -1 and found[-1].end == one.start:
            one = Damage(found.pop().start, one.end, -1)
        found.append(one)
    return found


class _Reader:
    """Checks windows of a disk, each in any thread."""

    def __init__(self, medium: Medium, disk_map: Map, head: bytes | bytearray) -> None:
        self._medium = medium
        self._map = disk_map
        self._head = head
        self._places = Places(disk_map)
        self._row, self._block, self._offset = _pieces_in_order(disk_map)
        bounds = np.stack([disk_map.start, disk_map.end], axis=1)
        empty = union(bounds[disk_map.kind != Kind.CONTENT])
        self._filled = intersect(empty, medium.data_ranges(disk_map.size))
        self._memory = threading.local()

    def check(self, start: int, end: int, advance: Advance) -> list[Damage]:
        """Return what is wrong with what begins in the window at `start`; see `read_back`."""
        end = min(start + WINDOW_BYTES, end)
        low, high = np.searchsorted(self._offset, [start, end]).tolist()
        zeros = clip(self._filled, start, end).tolist()
        damage: list[Damage] = []
        if low < high or zeros:
            reach = min(end + _OVERLAP_BYTES, self._map.size) if low < high else end
            pread = self._window(start, reach)
            for row, block in zip(
                self._row[low:high].tolist(), self._block[low:high].tolist(), strict=True
            ):
                damage += self._check_piece(pread, row, block)
            for first, last in zeros:
                damage += _check_zeros(pread, first, last)
        advance(end - start)
        return damage

    def _window(self, start: int, end: int) -> Callable[[int, int], memoryview]:
        """Return a way to read the disk that has `[start, end)` in memory."""
        if not hasattr(self._memory, "window"):
            size = WINDOW_BYTES + _OVERLAP_BYTES + 2 * ALIGNMENT_BYTES
            self._memory.window = mmap.mmap(-1, size)
        try:
            window = self._overlaid(start, end - start, self._memory.window)
        except OSError:  # a bad sector somewhere in it: each piece is tried by itself
            return self._overlaid

        def pread(offset: int, length: int) -> memoryview:
            if start <= offset and offset + length <= end:
                return window[offset - start : offset - start + length]
            return self._overlaid(offset, length)

        return pread

    def _overlaid(self, offset: int, length: int, into: mmap.mmap | None = None) -> memoryview:
        data = self._medium.read(offset, length, into)
        inside = min(len(self._head) - offset, length)
        if inside > 0:
            data[:inside] = self._head[offset : offset + inside]
        return data

    def _check_piece(
        self, pread: Callable[[int, int], memoryview], row: int, block: int
    ) -> list[Damage]:
        first = block * BLOCK_BYTES
        last = min(first + BLOCK_BYTES, self._places.sizes[row])
        try:
            if self._places.held(pread, row, block, first, last):
                return []
        except OSError:  # it cannot be read, which is wrong enough
            pass
        return [
            Damage(target, target + high - low, row)
            for target, low, high in self._places.targets(row, first, last)
        ]


def _check_zeros(pread: Callable[[int, int], memoryview], start: int, end: int) -> list[Damage]:
    damage = []
    for low in range(start, end, BLOCK_BYTES):
        high = min(low + BLOCK_BYTES, end)
        try:
            wrong = not is_zero(pread(low, high - low))
        except OSError:
            wrong = True
        if wrong:
            damage.append(Damage(low, high, -1))
    return damage


def _pieces_in_order(
    disk_map: Map,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return (content, block of it, where it begins on the disk) of each piece, by the last.

    One that lies in several places, or in parts, counts where one of them begins.
    """
    contents = disk_map.contents
    blocks = np.maximum(1, np.diff(contents.block_start)).astype(np.int64)
    row = np.repeat(np.arange(len(contents), dtype=np.int64), blocks)
    block = np.arange(len(row), dtype=np.int64) - np.repeat(np.cumsum(blocks) - blocks, blocks)
    ranges = np.flatnonzero(disk_map.kind == Kind.CONTENT)
    ranges = ranges[np.lexsort((disk_map.offset[ranges], disk_map.content[ranges]))]
    # Contents are laid end to end, so that one search finds each piece among all ranges.
    base = np.cumsum(contents.size) - contents.size
    laid = base[disk_map.content[ranges]] + disk_map.offset[ranges]
    wanted = base[row] + block * BLOCK_BYTES
    at = np.searchsorted(laid, wanted, side="right") - 1
    offset = disk_map.start[ranges][at] + wanted - laid[at]
    offset = np.clip(offset, 0, disk_map.size - 1)
    order = np.argsort(offset, kind="stable")
    return row[order], block[order], offset[order]
