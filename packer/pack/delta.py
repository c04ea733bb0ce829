"""Make deltas: patches against a predecessor's contents, where they save enough."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyzstd
from numpy.typing import NDArray

from packer.artifact.contents import Contents, digest_keys
from packer.artifact.deltas import MAX_DELTA_BYTES, MIN_BASE_BYTES, Deltas, as_base, make_patch
from packer.artifact.hints import Hints
from packer.artifact.index import Index, frame_counts
from packer.artifact.layout.base import BlobWriter
from packer.artifact.map import Kind, Map
from packer.artifact.opened import OpenedPack
from packer.pack.prepare import Prepared
from packer.progress import Progress
from packer.sources.base import Bytes, SourceError, Wanted
from packer.sources.pack import PackSource

LEVEL = 12

LEAST_STORED_BYTES = 4 << 10
"""A content that takes less than this in its bundle is not worth a patch and a row in a table."""

WORTH = 0.75
"""A patch is kept if it is smaller than this part of what the content takes in its bundle."""


@dataclass(frozen=True, slots=True)
class Gain:
    """What deltas save somebody who has the predecessor.

    contents: how many have a delta; stored_bytes: what those take in bundles; delta_bytes: what
    their patches take.
    """

    contents: int
    stored_bytes: int
    delta_bytes: int


def write_deltas(
    blob: BlobWriter,
    base: OpenedPack,
    prepared: Prepared,
    index: Index,
    new: NDArray[np.bool_],
    progress: Progress,
) -> tuple[Deltas, Gain]:
    """Write patches for new contents into `blob`.

    index: where the new pack's contents lie. new: bool[n], contents that are in no bundle of the
    base. A content's base is what the predecessor has at the same path, or, for metadata of file
    systems, at the same place of the disk. Bases that the base pack does not carry make no delta,
    nor do contents that the predecessor has anywhere: who has its bytes has these.
    """
    contents, held = prepared.map.contents, base.map.contents
    stored = _stored_bytes(index, contents)
    unknown = ~np.isin(digest_keys(contents.digest), digest_keys(held.digest))
    pairs = list(_pairs(base, prepared, new & unknown & (stored >= LEAST_STORED_BYTES)))
    source = PackSource(f"pack:{base.layout.location}", base.layout, held, base.index)
    rows: list[int] = []
    bases: list[int] = []
    sizes: list[int] = []
    total = sum(int(contents.size[row]) for row, _ in pairs)
    with progress.stage("making deltas", total) as advance:
        for row, candidate in pairs:
            patch = _patch(source, base, candidate, prepared, row)
            if patch is not None and len(patch) < WORTH * stored[row]:
                blob.write(patch)
                rows.append(row)
                bases.append(candidate)
                sizes.append(len(patch))
            advance(int(contents.size[row]))
    deltas = Deltas(
        np.array(rows, dtype=np.int64),
        held.digest[np.array(bases, dtype=np.int64)],
        held.size[np.array(bases, dtype=np.int64)],
        np.array(sizes, dtype=np.int64),
    )
    return deltas, Gain(len(rows), int(stored[rows].sum()), sum(sizes))


def _stored_bytes(index: Index, contents: Contents) -> NDArray[np.int64]:
    """Return about what each content takes in its bundle: int64[n], 0 for none."""
    count = frame_counts(contents.size[index.content])
    ends = np.concatenate([[0], np.cumsum(index.stored_bytes)])
    stored = ends[index.first_frame + count] - ends[index.first_frame]
    plain = np.concatenate([[0], np.cumsum(index.frame_bytes)])
    whole = plain[index.first_frame + count] - plain[index.first_frame]
    found = np.zeros(len(contents), dtype=np.int64)
    found[index.content] = stored * (contents.size[index.content] / whole)
    return found


def _pairs(
    base: OpenedPack, prepared: Prepared, wanted: NDArray[np.bool_]
) -> Iterator[tuple[int, int]]:
    """Yield (content, the content of the base that it may be made from), by content."""
    contents, held, hints = prepared.map.contents, base.map.contents, prepared.hints
    begins = {start: row for row, start in _begins(base.map).items()}
    metadata = _begins(prepared.map)
    at_path = dict(zip(_names(base.hints), base.hints.content.tolist(), strict=True))
    names = _names(hints)
    for row in np.flatnonzero(wanted).tolist():
        places = hints.of(row)
        found = (at_path.get(names[place]) for place in places)
        candidate = next((one for one in found if one is not None), None)
        if not places:
            candidate = begins.get(metadata[row])
        if candidate is None:
            continue
        new_bytes, old_bytes = int(contents.size[row]), int(held.size[candidate])
        if max(new_bytes, old_bytes) <= MAX_DELTA_BYTES and old_bytes >= MIN_BASE_BYTES:
            yield row, candidate


def _begins(disk_map: Map) -> dict[int, int]:
    """Return {content: where on the disk its first byte lies, in bytes}."""
    rows = np.flatnonzero((disk_map.kind == Kind.CONTENT) & (disk_map.offset == 0))[::-1]
    return dict(zip(disk_map.content[rows].tolist(), disk_map.start[rows].tolist(), strict=True))


def _names(hints: Hints) -> list[tuple[str, int]]:
    """Return for each place of a content its file and the byte of it where the content begins."""
    return list(zip(hints.path, hints.file_offset.tolist(), strict=True))


def _patch(
    source: PackSource, base: OpenedPack, candidate: int, prepared: Prepared, row: int
) -> bytes | None:
    """Return what makes a content out of one of the base; None when the base does not hold that.

    Nothing of either stays in memory, which is why this is a function of its own.
    """
    old = _read_base(source, base, candidate)
    return None if old is None else make_patch(old, _read_new(prepared, row), LEVEL)


def _read_base(source: PackSource, base: OpenedPack, row: int) -> pyzstd.ZstdDict | None:
    """Return a content out of the base's bundles, proven; None when they do not hold it."""
    contents, rows = base.map.contents, np.array([row], dtype=np.int64)
    whole = bytearray(int(contents.size[row]))
    try:
        if len(source.find(Wanted(contents, rows, base.hints), deep=False).rows) == 0:
            return None
        for piece in source.fetch(rows):
            assert isinstance(piece, Bytes)
            start, end = contents.block_bounds(row, piece.block)
            whole[start:end] = piece.data
    except SourceError:
        return None
    right = hashlib.sha256(whole).digest() == bytes(contents.digest[row])
    return as_base(whole) if right else None


def _read_new(prepared: Prepared, row: int) -> bytearray:
    """Return a content of the new disk."""
    contents = prepared.map.contents
    whole = bytearray(int(contents.size[row]))
    for block in range(contents.block_count(row)):
        start, end = contents.block_bounds(row, block)
        whole[start:end] = prepared.read_block(row, block)
    return whole
