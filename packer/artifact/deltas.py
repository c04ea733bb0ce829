"""Deltas: zstd patches that make contents of a pack out of contents of its predecessor.

They save whoever has the predecessor's bytes from fetching the new ones whole. Like the frame
index they are signed by nobody and prove nothing: the base that a patch is applied to is hashed
before, and what comes out is compared with its content's digest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import pyzstd
from numpy.typing import NDArray

from packer.artifact.contents import BLOCK_BYTES, DIGEST_BYTES, Contents
from packer.artifact.zstd import most_stored, recorded_size
from packer.columns import PackedColumn, decode_column, decode_table, encode_column
from packer.errors import InputError

SCHEMA = 1
MAX_DELTA_BYTES = 2 << 30
"""The largest content, and the largest base, of a delta: zstd looks back no further."""

MIN_BASE_BYTES = 8
"""zstd takes no shorter prefix."""

_MIN_WINDOW_LOG, _MAX_WINDOW_LOG = 10, 31


@dataclass(frozen=True, slots=True)
class Deltas:
    """k patches, back to back in one blob, as columns.

    content: int64[k], row in the pack's contents, sorted and distinct. base_digest: uint8[k, 32],
    SHA-256 of what the patch is applied to; base_bytes: int64[k], its size. stored_bytes:
    int64[k], the patch's size.
    """

    content: NDArray[np.int64]
    base_digest: NDArray[np.uint8]
    base_bytes: NDArray[np.int64]
    stored_bytes: NDArray[np.int64]

    @property
    def offset(self) -> NDArray[np.int64]:
        """Return where each patch begins in the blob: int64[k], bytes."""
        return np.cumsum(self.stored_bytes) - self.stored_bytes


class _WireDeltas(msgspec.Struct, frozen=True):
    schema: int
    content_step: PackedColumn
    base_digest: bytes
    base_bytes: PackedColumn
    stored_bytes: PackedColumn


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_WireDeltas)


def encode_deltas(deltas: Deltas) -> bytes:
    """Return the table's bytes, uncompressed."""
    return _encoder.encode(
        _WireDeltas(
            schema=SCHEMA,
            content_step=encode_column(np.diff(deltas.content, prepend=-1) - 1),
            base_digest=np.ascontiguousarray(deltas.base_digest).tobytes(),
            base_bytes=encode_column(deltas.base_bytes),
            stored_bytes=encode_column(deltas.stored_bytes),
        )
    )


def decode_deltas(data: bytes, contents: Contents, blob_bytes: int) -> Deltas:
    """Return the table that `data` encodes, checked against the pack's contents.

    blob_bytes: the size of the blob that holds the patches. Raises InputError naming the column
    that breaks a rule.
    """
    wire = decode_table(_decoder, data, "deltas")
    if wire.schema != SCHEMA:
        raise InputError(f"deltas: expected schema {SCHEMA}, found {wire.schema}")
    _expect(wire.content_step.rows <= len(contents), "content_step: more rows than contents")
    step = decode_column(wire.content_step, "deltas: content_step")
    _expect(bool((step <= len(contents)).all()), "content_step: out of bounds")
    content = np.cumsum(step + 1) - 1
    _expect(len(content) == 0 or int(content[-1]) < len(contents), "content_step: past the last")
    _expect(len(wire.base_digest) == DIGEST_BYTES * len(content), "base_digest: not 32 bytes each")
    base_bytes = decode_column(wire.base_bytes, "deltas: base_bytes", len(content))
    stored = decode_column(wire.stored_bytes, "deltas: stored_bytes", len(content))
    bounds = f"not between {MIN_BASE_BYTES} and {MAX_DELTA_BYTES}"
    _expect(bool((base_bytes >= MIN_BASE_BYTES).all()), f"base_bytes: {bounds}")
    _expect(bool((base_bytes <= MAX_DELTA_BYTES).all()), f"base_bytes: {bounds}")
    _expect(bool((contents.size[content] <= MAX_DELTA_BYTES).all()), "content: too large")
    _expect(
        bool(((stored > 0) & (stored <= [most_stored(s) for s in contents.size[content]])).all()),
        "stored_bytes: out of bounds",
    )
    _expect(int(stored.sum()) <= blob_bytes, "stored_bytes: more than the blob holds")
    digest = np.frombuffer(wire.base_digest, dtype=np.uint8).reshape(-1, DIGEST_BYTES)
    return Deltas(content, digest, base_bytes, stored)


def as_base(data: bytes | bytearray) -> pyzstd.ZstdDict:
    """Return bytes as what patches are made against and applied to: a copy of them."""
    return pyzstd.ZstdDict(data, is_raw=True)


def make_patch(base: pyzstd.ZstdDict, new: bytes | bytearray, level: int) -> bytes:
    """Return the patch that makes `new` out of `base`; the same bytes on every host."""
    return pyzstd.compress(
        new,
        {
            pyzstd.CParameter.compressionLevel: level,
            pyzstd.CParameter.windowLog: _window_log(len(base), len(new)),
            pyzstd.CParameter.enableLongDistanceMatching: 1,
            pyzstd.CParameter.contentSizeFlag: 1,
            pyzstd.CParameter.checksumFlag: 0,
            pyzstd.CParameter.nbWorkers: 0,
        },
        zstd_dict=base.as_prefix,
    )


def apply_patch(patch: bytes, base: pyzstd.ZstdDict, size_bytes: int, what: str) -> Iterator[bytes]:
    """Yield the `size_bytes` that a patch makes out of `base`, in blocks of 1 MiB.

    what: names the patch in errors. Raises InputError when it makes something of another size, or
    asks for more memory than that takes. What comes out is not proven.
    """
    if recorded_size(patch, what) != size_bytes:
        raise InputError(f"{what}: expected {size_bytes} bytes, the patch makes another number")
    decompressor = pyzstd.ZstdDecompressor(
        zstd_dict=base.as_prefix,
        option={pyzstd.DParameter.windowLogMax: _window_log(len(base), size_bytes)},
    )
    for start in range(0, size_bytes, BLOCK_BYTES):
        length = min(BLOCK_BYTES, size_bytes - start)
        try:
            block = decompressor.decompress(patch, length)
        except (pyzstd.ZstdError, EOFError) as error:
            raise InputError(f"{what}: not a patch of this base ({error})") from error
        if len(block) != length:
            raise InputError(f"{what}: expected {size_bytes} bytes, the patch ends before")
        yield block
        patch = b""  # the decompressor has taken all of it
    if not decompressor.eof or decompressor.unused_data:
        raise InputError(f"{what}: expected the end of the patch, found more")


def _window_log(base_bytes: int, new_bytes: int) -> int:
    """Return the window that reaches from the end of the new bytes to the begin of the base."""
    return min(max((base_bytes + new_bytes).bit_length(), _MIN_WINDOW_LOG), _MAX_WINDOW_LOG)


def _expect(holds: bool, rule: str) -> None:
    if not holds:
        raise InputError(f"deltas: {rule}")
