"""Source: contents made from what this host has of the predecessor, by the deltas of a pack."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import BLOCK_BYTES, Class, Contents, block_starts
from packer.artifact.deltas import Deltas, apply_patch
from packer.artifact.hints import Hints
from packer.artifact.layout.base import Layout
from packer.artifact.manifest import Descriptor
from packer.errors import Error, InputError
from packer.sources.base import (
    Bytes,
    FileRange,
    Offers,
    Piece,
    Source,
    SourceError,
    Wanted,
)

Rows = NDArray[np.int64]


class DeltaSource:
    """Contents of one pack, for whoever has what its deltas are made against.

    layout, blob: where the patches lie. contents: of the pack. bases: sources on this host that may
    have the predecessor's contents; they are asked by digest alone.
    """

    def __init__(
        self,
        uri: str,
        layout: Layout,
        blob: Descriptor,
        deltas: Deltas,
        contents: Contents,
        bases: Sequence[Source],
    ) -> None:
        self.uri = uri
        self.local = not layout.remote
        self._layout = layout
        self._blob = blob
        self._deltas = deltas
        self._contents = contents
        self._bases = bases
        self._base_of = _as_contents(deltas)

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:  # noqa: ARG002
        """Return which wanted contents have a delta whose base a source on this host offers."""
        none = np.empty(0, dtype=np.int64)
        if wanted.contents is not self._contents:
            return Offers(none, none, none, none)
        places = np.flatnonzero(np.isin(self._deltas.content, wanted.rows))
        held = np.unique(
            np.concatenate([none, *(self._offered(one, places) for one in self._bases)])
        )
        cost = self._deltas.stored_bytes[held] * (not self.local)
        return Offers(self._deltas.content[held], cost, np.full(len(held), -1), none)

    def fetch(self, rows: Rows) -> Iterator[Piece]:
        """Yield contents whose base was really there; the base's bytes are hashed before."""
        places = np.flatnonzero(np.isin(self._deltas.content, rows))
        for base in self._bases:
            made: list[int] = []
            for place, patch in self._patches(self._offered(base, places)):
                data = self._made(base, place, patch)
                if data is None:
                    continue
                made.append(place)
                row = int(self._deltas.content[place])
                for block, start in enumerate(range(0, len(data), BLOCK_BYTES)):
                    yield Bytes(row, block, memoryview(data)[start : start + BLOCK_BYTES])
            places = np.setdiff1d(places, made)

    def close(self) -> None:
        """Leave the layout and the bases to whoever opened them."""

    def _offered(self, base: Source, places: Rows) -> Rows:
        if len(places) == 0:
            return places
        try:
            found = base.find(Wanted(self._base_of, places, _nameless), deep=False)
        except SourceError:  # it is asked for whole contents, too, and complained of there
            return np.empty(0, dtype=np.int64)
        return found.rows

    def _patches(self, places: Rows) -> Iterator[tuple[int, bytes]]:
        """Yield (place, patch); neighbours travel together."""
        starts, lengths = self._deltas.offset[places], self._deltas.stored_bytes[places]
        ranges = list(zip(starts.tolist(), lengths.tolist(), strict=True))
        try:
            for number, patch in self._layout.read_many(self._blob.digest, ranges):
                yield int(places[number]), patch
        except Error as error:
            raise SourceError(f"{self.uri}: {error}", hint=error.hint) from error

    def _made(self, base: Source, place: int, patch: bytes) -> bytes | None:
        """Return a content, made from its base; None when the base is not what it should be."""
        held = self._read(base, place)
        if hashlib.sha256(held).digest() != bytes(self._deltas.base_digest[place]):
            return None
        size = int(self._contents.size[self._deltas.content[place]])
        try:
            return apply_patch(patch, bytes(held), size, f"{self.uri}: delta {place}")
        except InputError:
            return None  # a damaged patch: the content is asked for elsewhere

    def _read(self, base: Source, place: int) -> bytearray:
        """Return what a source hands over as the base; whether it is right is seen afterwards."""
        data = bytearray(int(self._deltas.base_bytes[place]))
        for piece in base.fetch(np.array([place], dtype=np.int64)):
            if piece.row != place:
                continue
            if isinstance(piece, FileRange):
                for start in range(0, len(data), BLOCK_BYTES):
                    length = min(BLOCK_BYTES, len(data) - start)
                    _put(data, start, os.pread(piece.fd, length, piece.offset + start))
            else:
                _put(data, piece.block * BLOCK_BYTES, piece.data)
        return data


def _put(data: bytearray, start: int, piece: bytes | memoryview) -> None:
    """Put a piece in its place; one that reaches past the end would make the whole longer."""
    if 0 <= start <= len(data) - len(piece):
        data[start : start + len(piece)] = piece


def _nameless() -> Hints:
    """Return no hints: bases are asked for by digest."""
    none = np.empty(0, dtype=np.int64)
    return Hints(none, [], none, none, none, ())


def _as_contents(deltas: Deltas) -> Contents:
    """Return the bases as a table of contents; their blocks have no digests of their own."""
    starts = block_starts(deltas.base_bytes)
    return Contents(
        deltas.base_digest,
        deltas.base_bytes,
        np.full(len(deltas.content), Class.SHARED, dtype=np.uint8),
        np.zeros((int(starts[-1]), 32), dtype=np.uint8),
        starts,
    )
