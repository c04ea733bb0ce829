"""Another host's store on the local network: `store://host:port/`, `store+https://host:port/`.

Asked only for shared contents: no other ever get into a store. See store_protocol for the words.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import BLOCK_BYTES, DIGEST_BYTES, Class, Contents
from packer.errors import Error, UsageError
from packer.sources.base import Bytes, Offers, SourceError, Wanted, sent_offers
from packer.sources.store_protocol import (
    CONTENTS_PATH,
    DEFAULT_PORT,
    HAVE_PATH,
    MOST_DIGESTS,
    MOST_PIECES,
    bitmap_bytes,
    decode_bitmap,
    encode_pieces,
)
from packer.sources.store_protocol import Piece as AskedPiece
from packer.sources.store_token import access_to

if TYPE_CHECKING:
    from packer.transport.post import Poster

Rows = NDArray[np.int64]

BATCH_BYTES = 4 << 20
"""What one question asks for, unless one piece is larger."""

CONNECTIONS = 2
_SCHEMES = {"store": "http", "store+https": "https"}


@dataclass(frozen=True, slots=True)
class _Block:
    """One verifiable piece of a content of the pack."""

    row: int
    block: int
    asked: AskedPiece


class NeighbourSource:
    """`store://HOST:PORT/`. One object answers for one table of contents (one pack).

    Raises UsageError for an address that is none, or whose token is not known here.
    """

    local = False
    near = True

    def __init__(self, uri: str) -> None:
        self._url, address = _address(uri)
        self.uri = f"{uri.partition(':')[0]}://{address}/"
        self._access = access_to(address)
        self._lock = threading.Lock()
        self._opened: Poster | None = None
        self._contents: Contents | None = None
        self._asked = np.empty(0, dtype=bool)
        self._held = np.empty(0, dtype=bool)

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:  # noqa: ARG002 - the same answer
        """Return which shared contents the neighbour holds; each is asked about once."""
        contents, rows = wanted.contents, wanted.rows
        with self._lock:
            if contents is not self._contents:
                self._contents = contents
                self._asked = np.zeros(len(contents), dtype=bool)
                self._held = np.zeros(len(contents), dtype=bool)
            new = rows[(contents.classes[rows] == Class.SHARED) & ~self._asked[rows]]
            for start in range(0, len(new), MOST_DIGESTS):
                part = new[start : start + MOST_DIGESTS]
                self._held[part] = self._have(contents, part)
                self._asked[part] = True
            return sent_offers(rows[self._held[rows]], contents.size)

    def fetch(self, rows: Rows) -> Iterator[Bytes]:
        """Yield the pieces of contents, in any order; what is gone there is left out."""
        contents = self._contents
        if contents is not None:
            yield from self._fetch(contents, _pieces_of(contents, rows))

    def fetch_blocks(self, rows: Rows, blocks: Rows) -> Iterator[Bytes]:
        """Yield these pieces of contents, in any order; what is gone there is left out."""
        contents = self._contents
        if contents is not None:
            yield from self._fetch(contents, zip(rows.tolist(), blocks.tolist(), strict=True))

    def cost_of_blocks(self, rows: Rows, blocks: Rows) -> int:
        """Return how long these pieces are: they are sent as they are."""
        if self._contents is None:
            return 0
        start = blocks * BLOCK_BYTES
        return int(np.minimum(self._contents.size[rows] - start, BLOCK_BYTES).sum())

    def renew(self) -> None:
        """Ask about everything again."""
        with self._lock:
            self._asked[:] = False

    def _fetch(self, contents: Contents, pieces: Iterable[tuple[int, int]]) -> Iterator[Bytes]:
        from packer.transport.calls import Call, in_parallel

        batches = list(_batches(contents, pieces))
        if not batches:
            return
        found = in_parallel(batches, self._ask, Call(), CONNECTIONS, self._url)
        with closing(found):
            while True:
                try:
                    piece = next(found, None)
                except Error as error:
                    raise self._broken(error) from error
                if piece is None:
                    return
                yield piece

    def close(self) -> None:
        """Give back the connections."""
        with self._lock:
            if self._opened is not None:
                self._opened.close()

    def _have(self, contents: Contents, rows: Rows) -> NDArray[np.bool_]:
        question = np.ascontiguousarray(contents.digest[rows]).tobytes()
        try:
            answer = self._poster().post(HAVE_PATH, question, bitmap_bytes(len(rows)))
            return decode_bitmap(answer, len(rows))
        except Error as error:
            raise self._broken(error) from error
        except ValueError as error:
            raise SourceError(f"{self.uri}: {error}; is this a vmpack store?") from error

    def _ask(self, batch: Sequence[_Block]) -> Iterator[Bytes]:
        from packer.transport.response import TransportError

        bits = bitmap_bytes(len(batch))
        most_bytes = bits + sum(one.asked.length for one in batch)
        question = encode_pieces([one.asked for one in batch])
        answer = memoryview(self._poster().post(CONTENTS_PATH, question, most_bytes))
        try:
            held = decode_bitmap(bytes(answer[:bits]), len(batch))
        except ValueError as error:
            raise TransportError(f"{self._url}: {error}") from error
        here = [one for one, bit in zip(batch, held.tolist(), strict=True) if bit]
        if len(answer) != bits + sum(one.asked.length for one in here):
            raise TransportError(f"{self._url}: expected other pieces, found {len(answer)} bytes")
        position = bits
        for one in here:
            yield Bytes(one.row, one.block, answer[position : position + one.asked.length])
            position += one.asked.length

    def _poster(self) -> Poster:
        # Here, because the HTTP libraries take as long to load as all the rest.
        from packer.transport.post import Poster

        if self._opened is None:
            access = self._access
            self._opened = Poster(
                self._url, access.token, certificate=access.certificate, connections=CONNECTIONS
            )
        return self._opened

    def _broken(self, error: Error) -> SourceError:
        return SourceError(f"{self.uri}: {error}", hint=error.hint)


def is_neighbour(uri: str) -> bool:
    """Return whether a URI names a store on the network; `store:/folder` is one of this host."""
    return uri.startswith(("store+https:", "store://")) and not uri.startswith("store:///")


def _address(uri: str) -> tuple[str, str]:
    """Return (URL of the server, "host:port") of `store://host:port/`."""
    try:
        parts = urlsplit(uri)
        port = parts.port or DEFAULT_PORT
    except ValueError:
        parts = urlsplit("")
    sane = parts.scheme in _SCHEMES and parts.hostname and parts.path in ("", "/")
    if not sane or parts.query or parts.fragment or "@" in parts.netloc:
        raise UsageError(f"{uri}: expected an address like store://host:{DEFAULT_PORT}/")
    name = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
    address = f"{name}:{port}"
    return f"{_SCHEMES[parts.scheme]}://{address}", address


def _pieces_of(contents: Contents, rows: Rows) -> Iterator[tuple[int, int]]:
    """Yield (row, block) of all pieces of contents."""
    for row in rows.tolist():
        for block in range(contents.block_count(row)):
            yield row, block


def _batches(contents: Contents, pieces: Iterable[tuple[int, int]]) -> Iterator[list[_Block]]:
    """Yield pieces, (row, block), as lists that are worth one question each."""
    batch: list[_Block] = []
    size = 0
    for row, block in pieces:
        digest = contents.digest[row].tobytes()
        assert len(digest) == DIGEST_BYTES
        start, end = contents.block_bounds(row, block)
        if batch and (size + end - start > BATCH_BYTES or len(batch) == MOST_PIECES):
            yield batch
            batch, size = [], 0
        batch.append(_Block(row, block, AskedPiece(digest, start, end - start)))
        size += end - start
    if batch:
        yield batch
