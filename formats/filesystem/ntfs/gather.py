"""Structures at many places of a buffer at once."""

from __future__ import annotations

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Column = NDArray[np.int64]
Flags = NDArray[np.bool_]
Rows = NDArray[np.void]

PADDING_BYTES = 72
"""Zeros behind a buffer, so that a header may be read wherever anything begins."""


def padded(data: bytes | Bytes) -> Bytes:
    """Return the bytes with padding behind them."""
    flat = np.frombuffer(data, dtype=np.uint8) if isinstance(data, bytes) else data.reshape(-1)
    result = np.zeros(len(flat) + PADDING_BYTES, dtype=np.uint8)
    result[: len(flat)] = flat
    return result


def gather(buffer: Bytes, positions: Column, layout: np.dtype[np.void]) -> Rows:
    """Return the structure at each position of a padded buffer."""
    chosen = sliding_window_view(buffer, layout.itemsize)[positions]
    return np.ascontiguousarray(chosen).view(layout)[:, 0]


def words_at_every_byte(buffer: Bytes) -> NDArray[np.uint8]:
    """Return a view of a padded buffer whose row i holds the 8 bytes from byte i on."""
    return sliding_window_view(buffer, 8)


def gather_words(words: NDArray[np.uint8], positions: Column) -> Column:
    """Return the signed 64-bit word at each position; words: as from `words_at_every_byte`."""
    return np.ascontiguousarray(words[positions]).view("<i8")[:, 0]
