"""Source: contents made from what this host has of the predecessor, by the deltas of a pack."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import BLOCK_BYTES, Class, Contents, block_starts
from packer.artifact.deltas import Deltas, apply_patch, as_base
from packer.artifact.hints import Hints
from packer.artifact.opened import OpenedPack
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
from packer.sources.mapped import MappedSource
from packer.sources.pack import PackSource
from packer.sources.store import Store

Rows = NDArray[np.int64]
Place = int
"""A row in the table of deltas."""


def delta_sources(pack: OpenedPack, sources: Sequence[Source]) -> list[DeltaSource]:
    """Return a pack's deltas as a source; none if all of the pack is here, or no base can be.

    sources: those of them that are on this host and find a content by its digest alone may have
    bases.
    """
    by_digest = (Store, MappedSource, PackSource)
    bases = [one for one in sources if one.local and isinstance(one, by_digest)]
    if not bases or not pack.layout.remote or pack.manifest.deltas() is None:
        return []
    return [DeltaSource(pack, bases)]


class DeltaSource:
    """Contents of one pack, for whoever has what its deltas are made against.

    pack: a copy on the network; nothing is fetched before it is asked. bases: sources on this host
    that may have the predecessor's contents; they are asked by digest alone.
    """

    local = False

    def __init__(self, pack: OpenedPack, bases: Sequence[Source]) -> None:
        self.uri = f"deltas of {pack.layout.location}"
        self._pack = pack
        self._bases = bases
        self._base_of: Contents | None = None

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:  # noqa: ARG002
        """Return which wanted contents have a delta whose base a source on this host offers.

        Raises SourceError when the table of deltas cannot be read: nobody signs it, and nobody
        depends on it.
        """
        none = np.empty(0, dtype=np.int64)
        if len(wanted.rows) == 0 or wanted.contents is not self._pack.map.contents:
            return Offers(none, none, none, none)
        deltas = self._deltas()
        places = np.flatnonzero(np.isin(deltas.content, wanted.rows))
        held = np.unique(
            np.concatenate([none, *(self._offered(one, places) for one in self._bases)])
        )
        return Offers(deltas.content[held], deltas.stored_bytes[held], np.full(len(held), -1), none)

    def fetch(self, rows: Rows) -> Iterator[Piece]:
        """Yield contents whose base was really there; the base's bytes are hashed before."""
        deltas = self._deltas()
        places = np.flatnonzero(np.isin(deltas.content, rows))
        for base in self._bases:
            made: list[Place] = []
            for place, patch in self._patches(self._offered(base, places)):
                row = int(deltas.content[place])
                try:
                    for block, data in enumerate(self._make(base, place, patch)):
                        yield Bytes(row, block, data)
                except InputError:
                    continue  # another base or patch: the content is asked for elsewhere
                made.append(place)
            places = np.setdiff1d(places, made)

    def close(self) -> None:
        """Leave the pack and the bases to whoever opened them."""

    def _deltas(self) -> Deltas:
        """Return the table, read when it is first asked for."""
        try:
            deltas = self._pack.deltas
        except Error as error:
            raise SourceError(f"{self.uri}: {error}", hint=error.hint) from error
        if deltas is None:
            raise ValueError("a pack without deltas")
        if self._base_of is None:
            self._base_of = _as_contents(deltas)
        return deltas

    def _offered(self, base: Source, places: Rows) -> Rows:
        assert self._base_of is not None  # made with the table from which the places are
        if len(places) == 0:
            return places
        try:
            return base.find(Wanted(self._base_of, places, _nameless), deep=False).rows
        except SourceError:  # it is asked for whole contents, too, and complained of there
            return np.empty(0, dtype=np.int64)

    def _patches(self, places: Rows) -> Iterator[tuple[Place, bytes]]:
        """Yield patches; neighbours travel together."""
        deltas, layers = self._deltas(), self._pack.manifest.deltas()
        assert layers is not None  # or there were no deltas
        starts, lengths = deltas.offset[places].tolist(), deltas.stored_bytes[places].tolist()
        ranges = list(zip(starts, lengths, strict=True))
        try:
            for number, patch in self._pack.layout.read_many(layers[1].digest, ranges):
                yield int(places[number]), patch
        except Error as error:
            raise SourceError(f"{self.uri}: {error}", hint=error.hint) from error

    def _make(self, base: Source, place: Place, patch: bytes) -> Iterator[bytes]:
        """Return the blocks of a content. Raises InputError when base or patch are others."""
        deltas, what = self._deltas(), f"{self.uri}: delta {place}"
        try:
            held = _read(base, place, int(deltas.base_bytes[place]))
        except (OSError, Error) as error:
            raise InputError(f"{what}: its base cannot be read: {error}") from error
        if hashlib.sha256(held).digest() != bytes(deltas.base_digest[place]):
            raise InputError(f"{what}: its base is not what it was said to be")
        size = int(self._pack.map.contents.size[deltas.content[place]])
        return apply_patch(patch, as_base(held), size, what)


def _read(base: Source, place: Place, size: int) -> bytearray:
    """Return what a source hands over as a base; whether it is right is seen afterwards."""
    data = bytearray(size)
    for piece in base.fetch(np.array([place], dtype=np.int64)):
        if piece.row != place:
            continue
        if isinstance(piece, FileRange):
            for start in range(0, size, BLOCK_BYTES):
                length = min(BLOCK_BYTES, size - start)
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
