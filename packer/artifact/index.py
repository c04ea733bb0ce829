"""The frame index: where in which bundle a content lies.

It is not signed and not part of a pack's identity: a wrong index costs a fetch, never a wrong
byte, since what comes out of a frame is compared with its content's digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import BLOCK_BYTES, Contents, digest_keys
from packer.columns import PackedColumn, decode_column, decode_table, encode_column
from packer.errors import InputError

SCHEMA = 1
OWN_FRAME_BYTES = 128 << 10
"""A content of at least this size has frames of its own, one for each 1 MiB block."""

MAX_FRAME_BYTES = 4 << 20
"""What a reader unpacks at once at most."""


@dataclass(frozen=True, slots=True)
class Index:
    """Frames and the contents in them, as columns.

    bundles: digests ("sha256:…") of the bundles. Frames (f rows, in bundle order, back to back):
    bundle: int64[f], row in bundles; frame_offset, stored_bytes: int64[f], where the compressed
    frame lies in its bundle; frame_bytes: int64[f], its size unpacked, at most 4 MiB.
    Contents (k rows, sorted): content: int64[k], row in the pack's contents; first_frame:
    int64[k]; offset: int64[k], where the content begins in that frame, unpacked. A content above
    1 MiB goes on in the following frames, one block each.
    """

    bundles: tuple[str, ...]
    bundle: NDArray[np.int64]
    frame_offset: NDArray[np.int64]
    stored_bytes: NDArray[np.int64]
    frame_bytes: NDArray[np.int64]
    content: NDArray[np.int64]
    first_frame: NDArray[np.int64]
    offset: NDArray[np.int64]

    def used_frames(self, contents: Contents) -> NDArray[np.bool_]:
        """Return for each frame whether a content lies in it: bool[f]."""
        count = frame_counts(contents.size[self.content])
        return _contents_in(len(self.bundle), self.first_frame, count) > 0

    def bundle_bytes(self) -> list[int]:
        """Return for each bundle how many bytes of it are frames."""
        sizes = np.zeros(len(self.bundles), dtype=np.int64)
        np.add.at(sizes, self.bundle, self.stored_bytes)
        return [int(size) for size in sizes]

    def of_contents(self, rows: NDArray[np.int64]) -> Index:
        """Return the same frames, with those contents alone."""
        kept = np.isin(self.content, rows)
        return replace(
            self,
            content=self.content[kept],
            first_frame=self.first_frame[kept],
            offset=self.offset[kept],
        )

    def renumbered(self, old: Contents, new: Contents) -> Index:
        """Return where the contents of another table lie: those that are in both, by digest.

        A digest that has another size there is a lie of one of the two tables.
        """
        _, here, there = np.intersect1d(
            digest_keys(old.digest[self.content]), digest_keys(new.digest), return_indices=True
        )
        same = old.size[self.content[here]] == new.size[there]
        found, content = here[same], there[same]
        by_row = np.argsort(content)
        return replace(
            self,
            content=content[by_row],
            first_frame=self.first_frame[found][by_row],
            offset=self.offset[found][by_row],
        )

    def joined(self, other: Index) -> Index:
        """Return both in one; they speak of different bundles and different contents."""
        content = np.concatenate([self.content, other.content])
        by_row = np.argsort(content)
        first = np.concatenate([self.first_frame, other.first_frame + len(self.bundle)])
        return Index(
            (*self.bundles, *other.bundles),
            np.concatenate([self.bundle, other.bundle + len(self.bundles)]),
            np.concatenate([self.frame_offset, other.frame_offset]),
            np.concatenate([self.stored_bytes, other.stored_bytes]),
            np.concatenate([self.frame_bytes, other.frame_bytes]),
            content[by_row],
            first[by_row],
            np.concatenate([self.offset, other.offset])[by_row],
        )

    def only(self, digests: Sequence[str], contents: Contents) -> Index:
        """Return the part that speaks of the given bundles and of contents wholly inside them."""
        named = set(digests)
        kept = [row for row, digest in enumerate(self.bundles) if digest in named]
        number = np.full(len(self.bundles), -1, dtype=np.int64)
        number[kept] = np.arange(len(kept))
        frames = number[self.bundle] >= 0
        frames_before = np.concatenate([[0], np.cumsum(frames)]).astype(np.int64)
        count = frame_counts(contents.size[self.content])
        rows = frames_before[self.first_frame + count] - frames_before[self.first_frame] == count
        return Index(
            tuple(self.bundles[row] for row in kept),
            number[self.bundle[frames]],
            self.frame_offset[frames],
            self.stored_bytes[frames],
            self.frame_bytes[frames],
            self.content[rows],
            frames_before[self.first_frame[rows]],
            self.offset[rows],
        )


def no_frames() -> Index:
    """Return the index of no bundles."""
    none = np.empty(0, dtype=np.int64)
    return Index((), none, none, none, none, none, none, none)


def frame_counts(size: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return over how many frames contents of these sizes (bytes) go."""
    return np.maximum(1, -(-size // BLOCK_BYTES))


class _WireIndex(msgspec.Struct, frozen=True):
    schema: int
    bundles: list[str]
    bundle: PackedColumn
    stored_bytes: PackedColumn
    frame_bytes: PackedColumn
    content_step: PackedColumn
    first_frame: PackedColumn
    offset: PackedColumn


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_WireIndex)


def encode_index(index: Index) -> bytes:
    """Return the index's bytes, uncompressed."""
    return _encoder.encode(
        _WireIndex(
            schema=SCHEMA,
            bundles=list(index.bundles),
            bundle=encode_column(index.bundle),
            stored_bytes=encode_column(index.stored_bytes),
            frame_bytes=encode_column(index.frame_bytes),
            content_step=encode_column(np.diff(index.content, prepend=-1) - 1),
            first_frame=encode_column(index.first_frame),
            offset=encode_column(index.offset),
        )
    )


def decode_index(data: bytes, contents: Contents) -> Index:
    """Return the index that `data` encodes, checked against the pack's contents.

    Raises InputError naming the column that breaks a rule.
    """
    wire = decode_table(_decoder, data, "frame index")
    if wire.schema != SCHEMA:
        raise InputError(f"frame index: expected schema {SCHEMA}, found {wire.schema}")
    _expect(len(set(wire.bundles)) == len(wire.bundles), "bundles: one is named twice")
    # None of the sizes is 0, so they have bytes that bound the rows of every other column.
    stored = decode_column(wire.stored_bytes, "frame index: stored_bytes")
    _expect(
        bool(((stored > 0) & (stored <= 2 * MAX_FRAME_BYTES)).all()), "stored_bytes: out of bounds"
    )
    frame_bytes = decode_column(wire.frame_bytes, "frame index: frame_bytes", len(stored))
    _expect(
        bool(((frame_bytes > 0) & (frame_bytes <= MAX_FRAME_BYTES)).all()),
        f"frame_bytes: not between 1 and {MAX_FRAME_BYTES}",
    )
    bundle = decode_column(wire.bundle, "frame index: bundle", len(stored))
    _expect(bool((bundle < len(wire.bundles)).all()), "bundle: names a bundle that is not listed")
    _expect(bool((np.diff(bundle) >= 0).all()), "bundle: frames are not in bundle order")
    content, first, offset = _decode_places(wire, contents, frame_bytes)
    return Index(
        tuple(wire.bundles),
        bundle,
        offsets_in_bundles(bundle, stored),
        stored,
        frame_bytes,
        content,
        first,
        offset,
    )


def _decode_places(
    wire: _WireIndex, contents: Contents, frame_bytes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return (content, first_frame, offset); see Index."""
    _expect(wire.content_step.rows <= len(contents), "content_step: more rows than contents")
    step = decode_column(wire.content_step, "frame index: content_step")
    _expect(bool((step <= len(contents)).all()), "content_step: out of bounds")
    content = np.cumsum(step + 1) - 1
    _expect(len(content) == 0 or int(content[-1]) < len(contents), "content_step: past the last")
    first = decode_column(wire.first_frame, "frame index: first_frame", len(content))
    offset = decode_column(wire.offset, "frame index: offset", len(content))
    size = contents.size[content]
    count = frame_counts(size)
    _expect(bool((first < len(frame_bytes)).all()), "first_frame: out of bounds")
    _expect(bool((first + count <= len(frame_bytes)).all()), "first_frame: frames are missing")
    single = count == 1
    _expect(
        bool((offset[single] <= (frame_bytes[first[single]] - size[single])).all())
        and bool((offset[~single] == 0).all()),
        "offset: a content reaches past its frame",
    )
    large = _contents_in(len(frame_bytes), first[~single], count[~single])
    _expect(
        int(large.max(initial=0)) <= 1 and not large[first[single]].any(),
        f"first_frame: a content above {BLOCK_BYTES} bytes shares a frame with another",
    )
    _expect(
        _hold_blocks(frame_bytes, first[~single], size[~single]),
        "frame_bytes: a block of a content reaches past its frame",
    )
    return content, first, offset


def _hold_blocks(
    frame_bytes: NDArray[np.int64], first_frame: NDArray[np.int64], size: NDArray[np.int64]
) -> bool:
    """Return whether each block of large contents, which share no frame, fits into its frame."""
    count = frame_counts(size)  # together no more than there are frames
    block = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    block_bytes = np.minimum(np.repeat(size, count) - block * BLOCK_BYTES, BLOCK_BYTES)
    return bool((block_bytes <= frame_bytes[np.repeat(first_frame, count) + block]).all())


def _contents_in(
    frames: int, first_frame: NDArray[np.int64], count: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return how many contents lie in each frame, wholly or in part: int64[frames]."""
    ends = np.zeros(frames + 1, dtype=np.int64)
    np.add.at(ends, first_frame, 1)
    np.add.at(ends, first_frame + count, -1)
    return np.cumsum(ends[:-1])


def offsets_in_bundles(
    bundle: NDArray[np.int64], stored_bytes: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return where each frame begins in its bundle: frames lie back to back."""
    ends = np.cumsum(stored_bytes)
    begins = ends - stored_bytes
    first_of_bundle = np.searchsorted(bundle, bundle, side="left")
    return begins - begins[first_of_bundle] if len(bundle) else begins


def _expect(holds: bool, rule: str) -> None:
    if not holds:
        raise InputError(f"frame index: {rule}")
