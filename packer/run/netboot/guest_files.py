"""Files of a guest that every copy of its pack carries: those of the boot set, by guest path."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from packer.artifact.contents import BLOCK_BYTES, Class
from packer.artifact.opened import OpenedPack
from packer.errors import InputError, MissingError
from packer.progress import Advance, ignore
from packer.sources.base import Bytes, Wanted
from packer.unpack.unpack import carrier_of


class BootFiles:
    """The boot set of a pack as files; what is read is proven."""

    def __init__(self, pack: OpenedPack) -> None:
        self._pack = pack
        hints = pack.hints
        boot = np.flatnonzero(pack.map.contents.classes[hints.content] == Class.BOOT)
        self._size: dict[str, int] = {}
        self._pieces: dict[str, list[tuple[int, int]]] = {}
        for place in boot.tolist():
            path = hints.path[place]
            self._size[path] = int(hints.file_size[place])
            piece = (int(hints.file_offset[place]), int(hints.content[place]))
            self._pieces.setdefault(path, []).append(piece)

    @property
    def paths(self) -> list[str]:
        """Return all of them, sorted."""
        return sorted(self._size)

    def size(self, path: str) -> int:
        """Return the bytes that a file has. Raises KeyError when the path is none of `paths`."""
        return self._size[path]

    def read(self, path: str, max_bytes: int, advance: Advance = ignore) -> bytes:
        """Return the bytes of a file. Raises InputError for one above `max_bytes`.

        Raises KeyError when the path is none of `paths`, MissingError when this copy of the pack
        does not hold it.
        """
        size = self._size[path]
        if size > max_bytes:
            raise InputError(f"{path}: expected at most {max_bytes:,} bytes, found {size:,}")
        pieces = self._pieces[path]
        self._check_parts(path, size)
        contents = self._read_contents([row for _, row in pieces], advance)
        data = bytearray(size)  # what lies in no content is a hole
        for offset, row in pieces:
            data[offset : offset + len(contents[row])] = contents[row]
        return bytes(data)

    def _check_parts(self, path: str, size: int) -> None:
        """Raise InputError for parts that are more than their file, before any is read."""
        length = self._pack.map.contents.size
        for offset, row in self._pieces[path]:
            if (end := offset + int(length[row])) > size:
                raise InputError(f"{path}: of {size:,} bytes, a part ends at {end:,}")
        total = sum(int(length[row]) for row in {row for _, row in self._pieces[path]})
        if total > size:
            raise InputError(f"{path}: of {size:,} bytes, its parts have {total:,}")

    def _read_contents(self, wanted: Sequence[int], advance: Advance) -> dict[int, bytearray]:
        """Return contents by row, each piece proven. Raises MissingError."""
        pack, rows = self._pack, np.unique(np.array(wanted, dtype=np.int64))
        contents = pack.map.contents
        source = carrier_of(pack)
        offered = source.find(Wanted(contents, rows, lambda: pack.hints), deep=False).rows
        found = {row: bytearray(int(contents.size[row])) for row in rows.tolist()}
        lacking = {(row, block) for row in found for block in range(contents.block_count(row))}
        for piece in source.fetch(offered):
            if not isinstance(piece, Bytes) or (piece.row, piece.block) not in lacking:
                continue
            digest = contents.block_digest(piece.row, piece.block)
            if hashlib.sha256(piece.data).digest() == digest:
                start = piece.block * BLOCK_BYTES
                found[piece.row][start : start + len(piece.data)] = piece.data
                lacking.discard((piece.row, piece.block))
                advance(len(piece.data))
        if lacking:
            row, block = min(lacking)
            raise MissingError(
                f"{pack.layout.location}: block {block} of {contents.name(row)}, which every copy "
                "should carry, is missing or damaged",
                hint="get this copy of the pack once more",
            )
        return found
