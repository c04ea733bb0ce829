"""Choose which shared contents a medium takes when it cannot take them all. No I/O.

What is taken goes in units that make sense alone: one content with its own frames, or one mixed
frame. A unit is worth (chance that the audience lacks it) × (its size) / (bytes it costs to
carry or to fetch); the best ones are taken until the medium is full. Packs on one medium share
what is the same in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import Contents
from packer.artifact.index import Index, frame_counts, offsets_in_bundles

BUNDLE_BYTES = 192 << 20
"""A bundle of a medium is closed when it has grown to this size."""

NOWHERE = -1


@dataclass(frozen=True, slots=True)
class Shelf:
    """What a pack could give to a medium.

    index: its frames, with the contents that may be taken alone. lacking: int64[k], sorted, the
    contents that the medium lacks so far; some of them may lie on no shelf, or on a sister's.
    chance: float64[n], for each content of the pack how likely the audience lacks it, 0 to 1.
    """

    contents: Contents
    index: Index
    lacking: NDArray[np.int64]
    chance: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Taken:
    """Frames of a shelf that a medium takes: int64, in bundle order."""

    shelf: int
    frames: NDArray[np.int64]


class Chooser:
    """Units of several packs, ranked once, taken for any room."""

    def __init__(self, shelves: Sequence[Shelf]) -> None:
        self.shelves = shelves
        keys = [_keys(shelf.contents) for shelf in shelves]
        _, same = np.unique(np.concatenate(keys), return_inverse=True)
        self._id = np.split(same, np.cumsum([len(one) for one in keys])[:-1])
        """For each shelf int64[n]: the same number for the same content in any pack."""
        self._ids = int(same.max(initial=-1)) + 1
        units = [_units(shelf) for shelf in shelves]
        score = np.concatenate([one.score for one in units])
        owner = np.repeat(np.arange(len(units)), [len(one.score) for one in units])
        number = np.concatenate([np.arange(len(one.score)) for one in units])
        best = np.lexsort((number, owner, -score))
        self._ranked = list(zip(owner[best].tolist(), number[best].tolist(), strict=True))
        self._units = units

    def take(self, room_bytes: int) -> list[Taken]:
        """Return the best frames that fit into so many bytes."""
        held = bytearray(self._ids)
        frames: list[list[int]] = [[] for _ in self.shelves]
        for owner, number in self._ranked:
            units = self._units[owner]
            members = self._id[owner][units.members(number)].tolist()
            stored = int(units.stored_bytes[number])
            if stored > room_bytes or all(held[one] for one in members):
                continue
            room_bytes -= stored
            for one in members:
                held[one] = 1
            first = int(units.first_frame[number])
            frames[owner].extend(range(first, first + int(units.frames[number])))
        return [
            Taken(owner, np.array(sorted(some), dtype=np.int64))
            for owner, some in enumerate(frames)
            if some
        ]

    def indexes(self, taken: Sequence[Taken], digests: Sequence[str]) -> list[Index]:
        """Return for each pack where in the medium's bundles its contents lie.

        digests: of the bundles that `bundle_sizes` describes.
        """
        frame = np.full(self._ids, NOWHERE, dtype=np.int64)
        offset = np.zeros(self._ids, dtype=np.int64)
        before = 0
        for one in taken:
            index = self.shelves[one.shelf].index
            place = np.full(len(index.bundle), NOWHERE, dtype=np.int64)
            place[one.frames] = before + np.arange(len(one.frames))
            rows = np.flatnonzero(place[index.first_frame] >= 0)
            ids = self._id[one.shelf][index.content[rows]]
            new = frame[ids] == NOWHERE
            frame[ids[new]] = place[index.first_frame[rows[new]]]
            offset[ids[new]] = index.offset[rows[new]]
            before += len(one.frames)
        stored = self._column(taken, "stored_bytes")
        plain = self._column(taken, "frame_bytes")
        bundle = bundle_numbers(stored)
        at = offsets_in_bundles(bundle, stored)
        found = []
        for number, shelf in enumerate(self.shelves):
            contents = shelf.lacking
            ids = self._id[number][contents]
            here = frame[ids] != NOWHERE
            index = Index(
                tuple(digests),
                bundle,
                at,
                stored,
                plain,
                contents[here],
                frame[ids[here]],
                offset[ids[here]],
            )
            used = np.unique(bundle[index.used_frames(shelf.contents)])
            found.append(index.only([digests[row] for row in used.tolist()], shelf.contents))
        return found

    def bundle_sizes(self, taken: Sequence[Taken]) -> list[int]:
        """Return the sizes in bytes of the bundles that hold what is taken."""
        stored = self._column(taken, "stored_bytes")
        sizes = np.bincount(bundle_numbers(stored), weights=stored).astype(np.int64)
        return [int(size) for size in sizes]

    def _column(self, taken: Sequence[Taken], name: str) -> NDArray[np.int64]:
        columns = [getattr(self.shelves[one.shelf].index, name)[one.frames] for one in taken]
        return np.concatenate([np.empty(0, dtype=np.int64), *columns])


def _keys(contents: Contents) -> NDArray[np.void]:
    """Return what tells contents of several packs apart: void[n], digest and size.

    A digest that has another size in another map is a lie of one of them.
    """
    size = np.ascontiguousarray(contents.size).view(np.uint8).reshape(-1, 8)
    keys = np.ascontiguousarray(np.hstack([contents.digest, size]))
    return keys.view(f"V{keys.shape[1]}").ravel()


def bundle_numbers(stored_bytes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return in which bundle each of these frames lies, when bundles are closed at their limit."""
    numbers, number, filled = [], 0, 0
    for size in stored_bytes.tolist():
        numbers.append(number)
        filled += size
        if filled >= BUNDLE_BYTES:
            number, filled = number + 1, 0
    return np.array(numbers, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class _Units:
    """u units: first_frame, frames (how many), stored_bytes: int64[u]; score: float64[u]; the
    contents of unit i: rows[bounds[i] : bounds[i + 1]] of the pack's contents.
    """

    first_frame: NDArray[np.int64]
    frames: NDArray[np.int64]
    stored_bytes: NDArray[np.int64]
    score: NDArray[np.float64]
    rows: NDArray[np.int64]
    bounds: NDArray[np.int64]

    def members(self, number: int) -> NDArray[np.int64]:
        return self.rows[self.bounds[number] : self.bounds[number + 1]]


def _units(shelf: Shelf) -> _Units:
    index = shelf.index
    order = np.argsort(index.first_frame, kind="stable")
    rows = index.content[order]
    first, begins = np.unique(index.first_frame[order], return_index=True)
    frames = frame_counts(shelf.contents.size[rows[begins]])
    ends = np.concatenate([[0], np.cumsum(index.stored_bytes)])
    stored = ends[first + frames] - ends[first]
    if len(first) == 0:
        nothing = np.empty(0, dtype=np.float64)
        return _Units(first, frames, stored, nothing, rows, np.zeros(1, dtype=np.int64))
    # The contents of a frame are of one package: the audience lacks all of them, or none.
    chance = np.maximum.reduceat(shelf.chance[rows], begins)
    size = np.add.reduceat(shelf.contents.size[rows], begins)
    bounds = np.append(begins, len(rows))
    return _Units(first, frames, stored, chance * size / stored, rows, bounds)
