"""Pieces of a blob that came before their turn, in a file that is read once."""

from __future__ import annotations

import os

from packer.artifact.layout.base import COPY_BYTES
from packer.punch import punch_hole


class Waiting:
    """Pieces of at most COPY_BYTES by row, in the file of a descriptor; OSError is the caller's.

    They take room only until they are taken, so with what went out before them they take no more
    than the blob does. Where files have no holes (FAT), the room is that of pieces that come next.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._places: dict[int, tuple[int, int]] = {}
        self._free: list[int] = []

    def __contains__(self, row: int) -> bool:
        return row in self._places

    def put(self, row: int, data: bytes) -> None:
        """Keep a piece, unless it came before."""
        if row in self:
            return
        offset = self._free.pop() if self._free else len(self._places) * COPY_BYTES
        self._places[row] = offset, len(data)
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._fd, rest, offset)
            rest, offset = rest[written:], offset + written

    def take(self, row: int) -> bytes:
        """Return a piece and give back the room that it took."""
        offset, length = self._places.pop(row)
        data = os.pread(self._fd, length, offset)
        punch_hole(self._fd, offset, offset + length)
        self._free.append(offset)
        return data
