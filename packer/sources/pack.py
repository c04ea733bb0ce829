"""Source: the bundles of a pack, wherever its layout lies (file, folder, stick, web directory)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import BLOCK_BYTES, Contents, digest_keys
from packer.artifact.index import Index, frame_counts
from packer.artifact.layout.base import Layout, Receiving, Renewing
from packer.artifact.zstd import decompress
from packer.errors import Error, InputError
from packer.sources.base import Bytes, Offers, Piece, SourceError, Wanted

Rows = NDArray[np.int64]


class PackSource:
    """Contents out of frames.

    contents, index: of the pack whose bundles these are; it may be another pack, or another
    version, than the one that is being rebuilt: contents are matched by digest.
    """

    def __init__(self, uri: str, layout: Layout, contents: Contents, index: Index) -> None:
        self.uri = uri
        self._layout = layout
        self._contents = contents
        self._index = index
        self._wanted: Contents | None = None
        self._entry = np.empty(0, dtype=np.int64)
        self._row_of_entry = np.empty(0, dtype=np.int64)
        self._by_frame = np.argsort(index.first_frame, kind="stable")
        self._begin = index.first_frame[self._by_frame]
        self._held = self._bundles_here()

    @property
    def local(self) -> bool:
        """Whether the layout can be read without network."""
        return not self._layout.remote

    @property
    def received_bytes(self) -> int:
        """How many bytes came so far, wanted or not; see Receiving."""
        return self._layout.received_bytes if isinstance(self._layout, Receiving) else 0

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:  # noqa: ARG002
        """Return which contents lie in the bundles that this copy holds."""
        self._match(wanted.contents)
        entry = self._entry[wanted.rows]
        rows = wanted.rows[entry >= 0]
        entry = entry[entry >= 0]
        first = self._index.first_frame[entry]
        size = wanted.contents.size[rows]
        count = frame_counts(size)
        alone = self._index.frame_bytes[first] == np.minimum(size, BLOCK_BYTES)
        stored = np.concatenate([[0], np.cumsum(self._index.stored_bytes)])
        cost = np.where(alone, stored[first + count] - stored[first], 0)
        shared_frames, group = np.unique(first[~alone], return_inverse=True)
        groups = np.full(len(rows), -1, dtype=np.int64)
        groups[~alone] = group
        group_bytes = self._index.stored_bytes[shared_frames]
        if self.local:
            cost, group_bytes = np.zeros_like(cost), np.zeros_like(group_bytes)
        return Offers(rows, cost, groups, group_bytes)

    def fetch(self, rows: Rows) -> Iterator[Piece]:
        """Yield the pieces of the given contents, frame by frame in bundle order."""
        entry = self._entry[rows]
        count = frame_counts(self._contents.size[self._index.content[entry]])
        frame = np.repeat(self._index.first_frame[entry], count)
        frame += np.arange(len(frame)) - np.repeat(np.cumsum(count) - count, count)
        yield from self._fetch_frames(frame, np.repeat(np.arange(len(rows)), count), rows, entry)

    def fetch_blocks(self, rows: Rows, blocks: Rows) -> Iterator[Bytes]:
        """Yield the given pieces, and all other wanted contents that lie in the same frames."""
        index, entry = self._index, self._entry
        frames = np.unique(index.first_frame[entry[rows]] + blocks)
        frame, members = self._entries_in(frames)
        row = self._row_of_entry[members]
        frame, members, row = frame[row >= 0], members[row >= 0], row[row >= 0]
        yield from self._fetch_frames(frame, np.arange(len(row)), row, members)

    def cost_of_blocks(self, rows: Rows, blocks: Rows) -> int:
        """Return how long the frames are in which these pieces lie; 0 if they do not travel."""
        frames = np.unique(self._index.first_frame[self._entry[rows]] + blocks)
        return 0 if self.local else int(self._index.stored_bytes[frames].sum())

    def renew(self) -> None:
        """Look again which bundles are there."""
        if isinstance(self._layout, Renewing):
            self._layout.renew()
        self._held = self._bundles_here()
        self._wanted = None

    def close(self) -> None:
        """Close the layout."""
        self._layout.close()

    def _bundles_here(self) -> NDArray[np.bool_]:
        sizes = map(self._layout.blob_size, self._index.bundles)
        return np.array([size is not None for size in sizes], dtype=bool)

    def _entries_in(self, frames: Rows) -> tuple[Rows, Rows]:
        """Return (frame, entry) of what begins in frames, or goes on there. frames: sorted."""
        low = np.searchsorted(self._begin, frames)
        high = np.searchsorted(self._begin, frames, side="right")
        alone = low == high  # no content begins there: one goes on, whose entry is the one before
        low = np.where(alone, low - 1, low)
        count = high - low
        place = np.repeat(low, count) + np.arange(count.sum())
        place -= np.repeat(np.cumsum(count) - count, count)
        return np.repeat(frames, count), self._by_frame[place]

    def _fetch_frames(self, frame: Rows, owner: Rows, rows: Rows, entry: Rows) -> Iterator[Bytes]:
        """Yield the pieces in frames. frame, owner: that a part of `rows[owner]` lies in `frame`.

        entry: where in the index each of `rows` is.
        """
        index = self._index
        order = np.argsort(frame, kind="stable")
        frames, begins = np.unique(frame[order], return_index=True)
        members = np.split(owner[order], begins[1:])
        bundle_of_frame = index.bundle[frames]
        absent: SourceError | None = None
        for bundle in np.unique(bundle_of_frame).tolist():
            places = np.flatnonzero(bundle_of_frame == bundle)
            try:
                yield from self._fetch_bundle(bundle, frames[places], places, members, rows, entry)
            except SourceError as error:
                if self._layout.blob_size(index.bundles[bundle]) is not None:
                    raise
                # Its manifest names it, and it is not there; the others may be.
                absent = absent or error
                self._held[bundle] = False
                self._wanted = None
        if absent is not None:
            raise absent

    def _fetch_bundle(
        self,
        bundle: int,
        frames: Rows,
        places: Rows,
        members: list[Rows],
        rows: Rows,
        entry: Rows,
    ) -> Iterator[Bytes]:
        index = self._index
        ranges = list(
            zip(
                index.frame_offset[frames].tolist(),
                index.stored_bytes[frames].tolist(),
                strict=True,
            )
        )
        stored = self._stored(index.bundles[bundle], ranges)
        while True:
            try:
                number, data = next(stored)
            except StopIteration:
                return
            except Error as error:
                raise SourceError(f"{self.uri}: {error}", hint=error.hint) from error
            frame = int(frames[number])
            try:
                plain = memoryview(decompress(data, int(index.frame_bytes[frame]), self.uri))
            except InputError:
                continue  # a damaged frame: its contents are asked for elsewhere
            for member in members[int(places[number])].tolist():
                row, at = int(rows[member]), int(entry[member])
                block = frame - int(index.first_frame[at])
                offset = int(index.offset[at]) if block == 0 else 0
                size = int(self._contents.size[index.content[at]])
                length = min(BLOCK_BYTES, size - block * BLOCK_BYTES)
                yield Bytes(row, block, plain[offset : offset + length])

    def _stored(self, bundle: str, ranges: list[tuple[int, int]]) -> Iterator[tuple[int, bytes]]:
        """Yield what the layout does; some layouts refuse when they are asked, others later."""
        yield from self._layout.read_many(bundle, ranges)

    def _match(self, wanted: Contents) -> None:
        """Find, for each wanted content, its row in this pack's index (-1: not here)."""
        if self._wanted is wanted:
            return
        held = np.full(len(self._contents), -1, dtype=np.int64)
        first = self._index.first_frame
        count = frame_counts(self._contents.size[self._index.content])
        here = np.concatenate([[0], np.cumsum(self._held[self._index.bundle])])
        present = here[first + count] - here[first] == count
        held[self._index.content[present]] = np.flatnonzero(present)
        if wanted is self._contents:
            self._entry = held
        else:
            self._entry = np.full(len(wanted), -1, dtype=np.int64)
            own = digest_keys(self._contents.digest)
            if len(own):
                order = np.argsort(own)
                keys = digest_keys(wanted.digest)
                match = order[np.minimum(np.searchsorted(own[order], keys), len(own) - 1)]
                # A digest that is the same for another size is a lie of this pack's map.
                same = (own[match] == keys) & (self._contents.size[match] == wanted.size)
                self._entry[same] = held[match[same]]
        row_of_entry = np.full(len(self._index.content), -1, dtype=np.int64)
        found = np.flatnonzero(self._entry >= 0)
        row_of_entry[self._entry[found]] = found
        self._row_of_entry = row_of_entry
        self._wanted = wanted
