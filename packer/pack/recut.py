"""Cut a map anew, so that the boot class holds what a guest was seen to read, and no more.

First `slice_contents` says where contents are cut; then, when `name_slices` has hashed the pieces
that are new, `redraw` gives another map and other hints for the same disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from formats.ranges import Ranges, meeting, spread, union
from packer.artifact.contents import (
    BLOCK_BYTES,
    DIGEST_BYTES,
    Class,
    Contents,
    block_starts,
    digest_keys,
)
from packer.artifact.hints import Hints
from packer.artifact.map import Kind, Map
from packer.artifact.programs import Programs
from packer.columns import Column

LEAST_CUT_BYTES = 128 << 10
"""A smaller content stays whole: others find a file more easily than a piece of one."""

LEAST_SLICE_BYTES = 16 << 10
"""What would be left as a smaller piece goes with the touched bytes beside it."""

_APART_BYTES = LEAST_SLICE_BYTES + 1

ReadSlice = Callable[[int, int, int], bytes]
"""(row of the contents, start, end) -> these bytes of it."""


@dataclass(frozen=True, slots=True)
class Slices:
    """Contents cut into n slices, sorted by (content, start), which together are all of them.

    content: int64[n], row in the contents that are cut. start, end: int64[n], bytes of it.
    touched: bool[n], whether the guest read it. whole: bool[n], whether it is all of its content.
    """

    content: Column
    start: Column
    end: Column
    touched: NDArray[np.bool_]
    whole: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Redrawn:
    """Another map of the same disk, and hints to go with it.

    content, start: int64[m], for each content of the new map the one of the old map that it was
    cut out of, and from which byte on.
    """

    map: Map
    hints: Hints
    content: Column
    start: Column


def slice_contents(disk_map: Map, touched: Ranges) -> Slices:
    """Return how to cut the contents of a map along what was touched.

    touched: sorted, disjoint ranges of the disk, bytes. A content below LEAST_CUT_BYTES is touched
    as a whole or not at all.
    """
    size = disk_map.contents.size
    # All contents in one row, so far apart that pieces of two of them never become one.
    origin = np.cumsum(size + _APART_BYTES) - (size + _APART_BYTES)
    pieces = _touched_pieces(disk_map, touched, origin)
    owner = np.searchsorted(origin, pieces[:, 0], side="right") - 1
    begin, end = origin[owner], (origin + size)[owner]
    small = size[owner] < LEAST_CUT_BYTES
    low = np.where(small | (pieces[:, 0] - begin < LEAST_SLICE_BYTES), begin, pieces[:, 0])
    high = np.where(small | (end - pieces[:, 1] < LEAST_SLICE_BYTES), end, pieces[:, 1])
    joined = union(np.stack([low, high + LEAST_SLICE_BYTES], axis=1))
    low, high = joined[:, 0], joined[:, 1] - LEAST_SLICE_BYTES

    cuts = np.unique(np.concatenate([origin, low, np.setdiff1d(high, origin + size)]))
    content = np.searchsorted(origin, cuts, side="right") - 1
    start = cuts - origin[content]
    last = np.append(content[1:] != content[:-1], np.ones(min(1, len(cuts)), dtype=bool))
    until = np.where(last, size[content], np.append(start[1:], start[:1]))
    hit = np.searchsorted(low, cuts, side="right") > np.searchsorted(high, cuts, side="right")
    return Slices(content, start, until, hit, until - start == size[content])


def _touched_pieces(disk_map: Map, touched: Ranges, origin: Column) -> Ranges:
    """Return what of the contents was touched, in bytes of the row of all contents."""
    rows = np.flatnonzero(disk_map.kind == Kind.CONTENT)
    start, end = disk_map.start[rows], disk_map.end[rows]
    row, hit = meeting(start, end, touched)
    shift = (origin[disk_map.content[rows]] + disk_map.offset[rows] - start)[row]
    low = np.maximum(touched[hit, 0], start[row]) + shift
    high = np.minimum(touched[hit, 1], end[row]) + shift
    return union(np.stack([low, high], axis=1))


@dataclass(frozen=True, slots=True)
class Names:
    """What n slices hash to: digest uint8[n, 32]; blocks uint8[b, 32] of those above 1 MiB."""

    digest: NDArray[np.uint8]
    blocks: NDArray[np.uint8]


def name_slices(
    slices: Slices,
    contents: Contents,
    read: ReadSlice,
    *,
    jobs: int,
    progress: Callable[[int], None],
) -> Names:
    """Hash the slices that are not whole contents, whose digests are known.

    progress: called with the bytes hashed since the last call, by any thread; `unnamed_bytes` of
    them in total.
    """
    start = slices.start.tolist()
    end = slices.end.tolist()
    content = slices.content.tolist()

    def name(row: int) -> tuple[bytes, bytes]:
        whole, blocks = hashlib.sha256(), bytearray()
        for low in range(start[row], end[row], BLOCK_BYTES):
            data = read(content[row], low, min(low + BLOCK_BYTES, end[row]))
            whole.update(data)
            if end[row] - start[row] > BLOCK_BYTES:
                blocks += hashlib.sha256(data).digest()
            progress(len(data))
        return whole.digest(), bytes(blocks)

    new = np.flatnonzero(~slices.whole)
    with ThreadPoolExecutor(jobs) as pool:
        named = list(pool.map(name, new.tolist()))
    digest = contents.digest[slices.content]
    digest[new] = _as_digests(one for one, _ in named)
    starts = block_starts(slices.end - slices.start)
    blocks = np.zeros((int(starts[-1]), DIGEST_BYTES), dtype=np.uint8)
    counts = np.diff(starts)
    old = np.flatnonzero(slices.whole)
    _, target = spread(starts[old], counts[old])
    _, source = spread(contents.block_start[slices.content[old]], counts[old])
    blocks[target] = contents.blocks[source]
    _, target = spread(starts[new], counts[new])
    blocks[target] = _as_digests(some for _, some in named)
    return Names(digest, blocks)


def unnamed_bytes(slices: Slices) -> int:
    """Return how many bytes have to be read to name the slices."""
    return int((slices.end - slices.start)[~slices.whole].sum())


def _as_digests(parts: Iterable[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(-1, DIGEST_BYTES)


def redraw(
    disk_map: Map, hints: Hints, slices: Slices, names: Names, classes: NDArray[np.uint8]
) -> Redrawn:
    """Return the map of the slices, with hints.

    classes: uint8[k], of each old content: what the parts of it are that were not touched. Touched
    slices are boot. A content with several owners takes the class that serves all of them: boot if
    any is, else shared if any is, else private.
    """
    _, first, number = np.unique(digest_keys(names.digest), return_index=True, return_inverse=True)
    pieces = _Pieces.of(disk_map, slices)
    # Numbered by where on the disk they first appear.
    _, seen = np.unique(number[pieces.slice], return_index=True)
    order = np.argsort(seen, kind="stable")
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    content_of_slice = place[number] if len(number) else number.astype(np.int64)
    chosen = first[order].astype(np.int64)

    contents = _contents(slices, names, chosen, _classes(slices, content_of_slice, classes))
    redrawn = pieces.map(disk_map, content_of_slice, contents)
    return Redrawn(
        redrawn,
        _hints(hints, slices, content_of_slice),
        slices.content[chosen],
        slices.start[chosen],
    )


@dataclass(frozen=True, slots=True)
class _Pieces:
    """The content ranges of a map, cut where slices are, in disk order.

    slice: int64[p], which slice a piece holds, or a part of it from `offset` on. start, end:
    int64[p], on the disk. All in bytes.
    """

    slice: Column
    start: Column
    end: Column
    offset: Column

    @classmethod
    def of(cls, disk_map: Map, slices: Slices) -> _Pieces:
        rows = np.flatnonzero(disk_map.kind == Kind.CONTENT)
        size = disk_map.contents.size
        origin = np.cumsum(size) - size
        low = origin[disk_map.content[rows]] + disk_map.offset[rows]
        high = low + (disk_map.end - disk_map.start)[rows]
        begin, until = origin[slices.content] + slices.start, origin[slices.content] + slices.end
        row, piece = meeting(low, high, np.stack([begin, until], axis=1))
        inside = np.maximum(begin[piece], low[row])
        start = disk_map.start[rows][row] + inside - low[row]
        length = np.minimum(until[piece], high[row]) - inside
        return cls(piece, start, start + length, inside - begin[piece])

    def map(self, disk_map: Map, content_of_slice: Column, contents: Contents) -> Map:
        """Return the map with these pieces in place of its content ranges."""
        others = disk_map.kind != Kind.CONTENT
        end = np.concatenate([disk_map.end[others], self.end])
        rows = np.argsort(end, kind="stable")
        kind = np.concatenate(
            [disk_map.kind[others], np.full(len(self.end), Kind.CONTENT, dtype=np.uint8)]
        )
        none = np.zeros(int(others.sum()), dtype=np.int64)
        content = np.concatenate([none - 1, content_of_slice[self.slice]])
        offset = np.concatenate([none, self.offset])
        return Map(disk_map.size, end[rows], kind[rows], content[rows], offset[rows], contents)


def _classes(
    slices: Slices, content_of_slice: Column, classes: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    of_slices = np.where(slices.touched, Class.BOOT, classes[slices.content])
    by_rank = np.array([Class.BOOT, Class.SHARED, Class.PRIVATE], dtype=np.uint8)
    rank_of_class = np.argsort(by_rank).astype(np.uint8)
    lowest = np.full(int(content_of_slice.max(initial=-1)) + 1, len(by_rank) - 1, dtype=np.uint8)
    np.minimum.at(lowest, content_of_slice, rank_of_class[of_slices])
    return by_rank[lowest]


def _contents(slices: Slices, names: Names, chosen: Column, classes: NDArray[np.uint8]) -> Contents:
    """Return the contents whose bytes the chosen slices are."""
    size = slices.end - slices.start
    unclassed = np.zeros(len(size), dtype=np.uint8)
    every = Contents(names.digest, size, unclassed, names.blocks, block_starts(size))
    return replace(every.only(chosen), classes=classes)


def _hints(hints: Hints, slices: Slices, content_of_slice: Column) -> Hints:
    """Return the hints of all contents as hints of their slices."""
    first = np.searchsorted(slices.content, hints.content, side="left")
    count = np.searchsorted(slices.content, hints.content, side="right") - first
    row, piece = spread(first, count)
    content = content_of_slice[piece]
    rank = _ranks(hints.path)[row]
    file_offset = hints.file_offset[row] + slices.start[piece]
    order = np.lexsort((file_offset, rank, content))
    row = row[order]
    return Hints(
        content[order],
        [hints.path[one] for one in row.tolist()],
        hints.file_size[row],
        file_offset[order],
        hints.package[row],
        hints.packages,
        _programs(hints.programs, slices, content_of_slice),
    )


def _ranks(paths: list[str]) -> Column:
    """Return int64[h]: numbers that sort as the paths do."""
    number = {path: rank for rank, path in enumerate(sorted(set(paths)))}
    return np.array([number[path] for path in paths], dtype=np.int64)


def _programs(programs: Programs, slices: Slices, content_of_slice: Column) -> Programs:
    """Return the programs that are still one content."""
    first = np.searchsorted(slices.content, programs.content)
    kept = slices.whole[first]
    content, row = np.unique(content_of_slice[first[kept]], return_index=True)
    return Programs(content, programs.timestamp[kept][row], programs.size_of_image[kept][row])
