"""Verified pieces of contents in memory: what a pack carries itself, and what no store takes."""

from __future__ import annotations

import threading
from collections import OrderedDict

Piece = tuple[int, int]
"""A row of the contents and one of its blocks: the smallest thing that can be proven alone."""


class BlockCache:
    """Pieces in memory, the least recently used forgotten beyond `most_bytes`. Any thread."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held_bytes = 0
        self._lock = threading.Lock()
        self._blocks: OrderedDict[Piece, memoryview] = OrderedDict()

    def get(self, piece: Piece) -> memoryview | None:
        """Return a piece's bytes if they are still here."""
        with self._lock:
            data = self._blocks.get(piece)
            if data is not None:
                self._blocks.move_to_end(piece)
            return data

    def put(self, piece: Piece, data: bytes | memoryview) -> memoryview:
        """Keep a proven piece and return it. It is copied if it is a part of something larger."""
        view = memoryview(bytes(data))
        with self._lock:
            if piece not in self._blocks:
                self._blocks[piece] = view
                self._held_bytes += len(view)
            while self._held_bytes > self._most_bytes and len(self._blocks) > 1:
                self._held_bytes -= len(self._blocks.popitem(last=False)[1])
        return view
