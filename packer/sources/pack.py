"""Source: the bundles of a pack, wherever its layout lies (file, folder, stick, web directory)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import BLOCK_BYTES, Contents, digest_keys
from packer.artifact.index import Index, frame_counts
from packer.artifact.layout.base import Layout
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
        self._held = np.array(
            [layout.blob_size(digest) is not None for digest in index.bundles], dtype=bool
        )

    @property
    def local(self) -> bool:
        """Whether the layout can be read without network."""
        return not self._layout.remote

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
        index = self._index
        entry = self._entry[rows]
        count = frame_counts(self._contents.size[index.content[entry]])
        frame = np.repeat(index.first_frame[entry], count)
        frame += np.arange(len(frame)) - np.repeat(np.cumsum(count) - count, count)
        order = np.argsort(frame, kind="stable")
        owner = np.repeat(np.arange(len(rows)), count)[order]
        frames, begins = np.unique(frame[order], return_index=True)
        members = np.split(owner, begins[1:])
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

    def close(self) -> None:
        """Close the layout."""
        self._layout.close()

    def _fetch_bundle(
        self,
        bundle: int,
        frames: Rows,
        places: Rows,
        members: list[Rows],
        rows: Rows,
        entry: Rows,
    ) -> Iterator[Piece]:
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
        self._wanted = wanted
