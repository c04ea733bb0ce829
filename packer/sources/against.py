"""What a source provably holds, for `pack --against SOURCE` and for `--dry-run`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import Contents
from packer.sources.base import FileRange, Piece, Source, Wanted
from packer.sources.memory import hash_range

Rows = NDArray[np.int64]


def holds(
    source: Source,
    wanted: Wanted,
    *,
    deep: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Rows:
    """Return which wanted contents the source has: int64, sorted. Every byte is read and hashed.

    progress: called with the bytes proven since the last call. Raises SourceError.
    """
    return prove(source, wanted.contents, source.find(wanted, deep=deep).rows, progress=progress)


def prove(
    source: Source,
    contents: Contents,
    rows: Rows,
    *,
    progress: Callable[[int], None] | None = None,
) -> Rows:
    """Return which of the offered `rows` the source really supplies: int64, sorted.

    Nothing is kept and nothing that was remembered counts, so that a pack never leaves out what
    its user will look for in vain. Raises SourceError when the source breaks.
    """
    proven: set[int] = set()
    parts: dict[int, set[int]] = {}
    for piece in source.fetch(rows):
        row = piece.row
        if row in proven:
            continue
        parts.setdefault(row, set()).update(_proven_blocks(contents, piece))
        if len(parts[row]) == contents.block_count(row):
            del parts[row]
            proven.add(row)
            if progress is not None:
                progress(int(contents.size[row]))
    return np.array(sorted(proven), dtype=np.int64)


def _proven_blocks(contents: Contents, piece: Piece) -> range:
    """Return which blocks of its content a piece proves."""
    row = piece.row
    if isinstance(piece, FileRange):
        try:
            digest = hash_range(piece.fd, piece.offset, int(contents.size[row]))
        except OSError:  # a bad sector proves nothing
            digest = None
        good = digest == contents.digest[row].tobytes()
        return range(contents.block_count(row)) if good else range(0)
    good = hashlib.sha256(piece.data).digest() == contents.block_digest(row, piece.block)
    return range(piece.block, piece.block + 1) if good else range(0)
