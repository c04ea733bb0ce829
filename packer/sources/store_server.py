"""What a host's store says to its neighbours; see store_protocol for the words.

Read-only. It opens nothing but objects of the store, by digests of 32 bytes: no name, path or
pattern comes from a client. Objects got their names after their digest was compared, and whoever
receives their bytes compares it again.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Iterator, Sequence
from http import HTTPStatus

from packer.artifact.contents import DIGEST_BYTES
from packer.sources.store import Store
from packer.sources.store_protocol import (
    CONTENTS_PATH,
    HAVE_PATH,
    MOST_DIGESTS,
    MOST_PIECES,
    PIECE_BYTES,
    Piece,
    decode_digests,
    decode_pieces,
    encode_bitmap,
)
from packer.transport.http_server import Answer, Refusal, Request

CHUNK_BYTES = 1 << 18
_MOST_BODY_BYTES = {
    HAVE_PATH: MOST_DIGESTS * DIGEST_BYTES,
    CONTENTS_PATH: MOST_PIECES * PIECE_BYTES,
}


class StoreHandler:
    """Answers whoever knows the token. token: not empty."""

    def __init__(self, store: Store, token: str) -> None:
        self._store = store
        self._expected = f"Bearer {token}".encode("ascii")

    def most_body_bytes(self, request: Request) -> int:
        """Return how large the body may be. Who has no token learns nothing, not even what is."""
        given = request.headers.get("authorization", "").encode("ascii")
        if not hmac.compare_digest(given, self._expected):
            raise Refusal(HTTPStatus.UNAUTHORIZED, {"WWW-Authenticate": "Bearer"})
        if request.path not in _MOST_BODY_BYTES:
            raise Refusal(HTTPStatus.NOT_FOUND)
        if request.method != "POST":
            raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, {"Allow": "POST"})
        if "content-length" not in request.headers:
            raise Refusal(HTTPStatus.LENGTH_REQUIRED)
        return _MOST_BODY_BYTES[request.path]

    def answer(self, request: Request, body: bytes) -> Answer:
        """Return what is here of what is asked for. Raises Refusal, StoreError."""
        try:
            if request.path == HAVE_PATH:
                return self._have(decode_digests(body))
            return self._contents(decode_pieces(body))
        except ValueError as error:
            raise Refusal(HTTPStatus.BAD_REQUEST) from error

    def _have(self, digests: Sequence[bytes]) -> Answer:
        bitmap = encode_bitmap([self._store.size_of(one) is not None for one in digests])
        return Answer(len(bitmap), iter([bitmap]))

    def _contents(self, pieces: Sequence[Piece]) -> Answer:
        sizes = {digest: self._store.size_of(digest) for digest in {one.digest for one in pieces}}
        bits = [one.offset + one.length <= (sizes[one.digest] or 0) for one in pieces]
        here = [one for one, held in zip(pieces, bits, strict=True) if held]
        bitmap = encode_bitmap(bits)
        length = len(bitmap) + sum(one.length for one in here)
        return Answer(length, _joined(bitmap, self._read(here, sizes)))

    def _read(self, pieces: Sequence[Piece], sizes: dict[bytes, int | None]) -> Iterator[bytes]:
        """Yield the bytes of pieces; ends early when an object was removed or shortened."""
        for one in pieces:
            fd = self._store.open_object(one.digest, sizes[one.digest] or 0)
            if fd is None:
                return
            try:
                position, end = one.offset, one.offset + one.length
                while position < end:
                    data = os.pread(fd, min(CHUNK_BYTES, end - position), position)
                    if not data:
                        return
                    position += len(data)
                    yield data
            except OSError:
                return
            finally:
                os.close(fd)


def _joined(first: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the same bytes in larger chunks: each is handed from thread to thread."""
    waiting = bytearray(first)
    for data in pieces:
        waiting += data
        if len(waiting) >= CHUNK_BYTES:
            yield bytes(waiting)
            waiting.clear()
    if waiting:
        yield bytes(waiting)
