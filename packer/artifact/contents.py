"""Contents: immutable byte strings named by their SHA-256, as columns."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 1 << 20
"""Contents above this size are also listed as one SHA-256 per block of this size."""

DIGEST_BYTES = 32


class Class(IntEnum):
    """Who needs or can have a content; ordered by what a copy takes first."""

    BOOT = 0
    PRIVATE = 1
    SHARED = 2


@dataclass(frozen=True, slots=True)
class Contents:
    """n contents as columns.

    digest: uint8[n, 32]; size: int64[n], bytes, at least 1; classes: uint8[n], see Class;
    blocks: uint8[b, 32], SHA-256 of each 1 MiB block of each content above 1 MiB, in row order.
    """

    digest: NDArray[np.uint8]
    size: NDArray[np.int64]
    classes: NDArray[np.uint8]
    blocks: NDArray[np.uint8]
    block_start: NDArray[np.int64]
    """int64[n + 1]: row i has the rows [block_start[i], block_start[i + 1]) of `blocks`."""

    def __len__(self) -> int:
        return len(self.size)

    def name(self, row: int) -> str:
        """Return the content's name, "sha256:" and 64 hex digits."""
        return "sha256:" + bytes(self.digest[row]).hex()

    def block_count(self, row: int) -> int:
        """Return in how many separately verifiable pieces the content comes, at least 1."""
        return max(1, int(self.block_start[row + 1] - self.block_start[row]))

    def block_digest(self, row: int, block: int) -> bytes:
        """Return the SHA-256 that piece `block` of the content must have (32 bytes)."""
        if self.block_start[row + 1] == self.block_start[row]:
            return bytes(self.digest[row])
        return bytes(self.blocks[int(self.block_start[row]) + block])

    def block_bounds(self, row: int, block: int) -> tuple[int, int]:
        """Return [start, end) of piece `block` within the content, in bytes."""
        start = block * BLOCK_BYTES
        return start, min(start + BLOCK_BYTES, int(self.size[row]))

    def by_class(self, rows: NDArray[np.int64]) -> dict[str, tuple[int, int]]:
        """Return {class name: (contents, bytes)} of some rows, without classes that have none."""
        parts = {one.name.lower(): rows[self.classes[rows] == one] for one in Class}
        return {
            name: (len(part), int(self.size[part].sum()))
            for name, part in parts.items()
            if len(part)
        }

    def only(self, rows: NDArray[np.int64]) -> Contents:
        """Return some of the contents as a table of their own, in the order of `rows`."""
        size = self.size[rows]
        starts = block_starts(size)
        blocks = np.repeat(self.block_start[rows] - starts[:-1], np.diff(starts))
        blocks += np.arange(len(blocks))
        return Contents(self.digest[rows], size, self.classes[rows], self.blocks[blocks], starts)


def block_starts(size: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, for a column of content sizes, where each one's block digests begin: int64[n + 1]."""
    counts = np.where(size > BLOCK_BYTES, -(-size // BLOCK_BYTES), 0)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def digest_keys(digest: NDArray[np.uint8]) -> NDArray[np.void]:
    """Return digests (uint8[n, 32]) as one column void[n] that sorts and compares as a whole."""
    return np.ascontiguousarray(digest).view(f"V{DIGEST_BYTES}").ravel()
