"""Hash every fragment of a cut disk: what each one is called, and whether a package owns it."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from formats.source import Source
from packer.artifact.contents import BLOCK_BYTES, DIGEST_BYTES, block_starts
from packer.pack.cut import Cut

BATCH_BYTES = 16 << 20
BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Digests:
    """digest: uint8[f, 32], SHA-256 of each fragment. blocks: uint8[b, 32], of each 1 MiB of
    fragments above that, in row order; block_start: int64[f + 1]. owned: bool[f], whether the
    fragment is a whole file whose MD5 is the one its package's record gives.
    """

    digest: NDArray[np.uint8]
    blocks: NDArray[np.uint8]
    block_start: NDArray[np.int64]
    owned: NDArray[np.bool_]


class FragmentReader:
    """Reads fragments of a cut disk; any number of threads."""

    def __init__(self, cut: Cut, source: Source) -> None:
        self._source = source
        # Arrays of Python: single numbers are had faster than from NumPy's, in a fifth of a list's
        # memory.
        self._bounds = array("q", cut.extent_bounds().tobytes())
        self._offset = array("q", cut.offset.tobytes())
        self._disk_offset = array("q", cut.disk_offset.tobytes())
        self._length = array("q", cut.length.tobytes())

    def read(self, fragment: int, start: int, end: int) -> bytes:
        """Return the bytes `[start, end)` of a fragment."""
        pieces: list[bytes] = []
        for row in range(self._bounds[fragment], self._bounds[fragment + 1]):
            low = max(start, self._offset[row])
            high = min(end, self._offset[row] + self._length[row])
            if low < high:
                place = self._disk_offset[row] + low - self._offset[row]
                pieces.append(self._source.pread(place, high - low))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def blocks(self, fragment: int, size: int) -> Iterator[bytes]:
        """Yield a fragment in pieces of 1 MiB."""
        for start in range(0, size, BLOCK_BYTES):
            yield self.read(fragment, start, min(start + BLOCK_BYTES, size))


def digest_fragments(
    cut: Cut,
    reader: FragmentReader,
    expected_md5: Sequence[bytes | None],
    *,
    jobs: int,
    progress: Callable[[int], None],
) -> Digests:
    """Return the digests of all fragments.

    expected_md5: for each stream of the survey, the MD5 its package's record gives.
    progress: called with the bytes hashed since the last call, by any thread.
    """
    sizes: list[int] = cut.size.tolist()
    streams: list[int] = cut.stream.tolist()
    extents_of_stream = np.bincount(cut.stream[cut.stream >= 0], minlength=len(expected_md5))
    whole = (extents_of_stream == 1).tolist()

    def expected(row: int) -> bytes | None:
        stream = streams[row]
        return expected_md5[stream] if stream >= 0 and whole[stream] else None

    def hash_rows(bounds: tuple[int, int]) -> tuple[bytes, bytes, list[bool]]:
        digests, blocks, owned = [], [], []
        for row in range(*bounds):
            digest, block_digests, is_owned = _hash(
                reader, row, sizes[row], expected(row), progress
            )
            digests.append(digest)
            blocks.append(block_digests)
            owned.append(is_owned)
        progress(sum(size for size in sizes[bounds[0] : bounds[1]] if size <= BLOCK_BYTES))
        return b"".join(digests), b"".join(blocks), owned

    parts: list[tuple[bytes, bytes, list[bool]]] = []
    with ThreadPoolExecutor(jobs) as pool:
        parts.extend(pool.map(hash_rows, _batches(sizes)))
    digest = np.frombuffer(b"".join(part[0] for part in parts), dtype=np.uint8)
    blocks = np.frombuffer(b"".join(part[1] for part in parts), dtype=np.uint8)
    owned = np.array([one for part in parts for one in part[2]], dtype=bool)
    return Digests(
        digest.reshape(-1, DIGEST_BYTES),
        blocks.reshape(-1, DIGEST_BYTES),
        block_starts(cut.size),
        owned,
    )


def _hash(
    reader: FragmentReader,
    row: int,
    size: int,
    expected_md5: bytes | None,
    progress: Callable[[int], None],
) -> tuple[bytes, bytes, bool]:
    """Return (digest, digests of blocks, whether owned); tell the progress of a large fragment."""
    whole = hashlib.sha256()
    md5 = hashlib.md5(usedforsecurity=False)
    blocks: list[bytes] = []
    for piece in reader.blocks(row, size):
        whole.update(piece)
        if size > BLOCK_BYTES:
            blocks.append(hashlib.sha256(piece).digest())
            progress(len(piece))
        if expected_md5 is not None:
            md5.update(piece)
    return whole.digest(), b"".join(blocks), md5.digest() == expected_md5


def _batches(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Return [first, end) rows of batches that are small enough to keep every thread busy."""
    cuts, filled = [0], 0
    for row, size in enumerate(sizes):
        filled += size
        if filled >= BATCH_BYTES or row + 1 - cuts[-1] >= BATCH_ROWS:
            cuts.append(row + 1)
            filled = 0
    if cuts[-1] != len(sizes):
        cuts.append(len(sizes))
    return list(pairwise(cuts))
