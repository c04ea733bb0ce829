"""Want-lists: what somebody lacks of a pack, for whoever can get it for them.

A want-list is a copy of the pack without bundles, and one layer more: which contents are wanted.
So config, signature, map and hints travel with it, and whoever fills it can tell that the pack's
author named each of these contents, and where they may be found. Which rows are wanted is signed
by nobody: a changed list asks for other contents of the same pack, never for anything else.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from packer.artifact import manifest as manifests
from packer.artifact.copy import INDEX_LEVEL
from packer.artifact.index import Index, encode_index, no_frames
from packer.artifact.layout.base import LayoutWriter, read_blob
from packer.artifact.layout.open import create_layout, open_layout
from packer.artifact.manifest import Blob, Entry
from packer.artifact.opened import OpenedPack
from packer.artifact.zstd import compress, decompress, most_stored, recorded_size
from packer.columns import PackedColumn, decode_column, decode_table, encode_column
from packer.errors import InputError, UsageError

SCHEMA = 1
WANT_ROW_BYTES = 8
MAX_WANT_HEAD_BYTES = 1024
"""Unpacked, a list has at most WANT_ROW_BYTES for each content of the pack, and so much besides."""

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class WantReport:
    """What was written. stored_bytes: of the list; content_bytes: of the contents it asks for."""

    output: Path
    ref_name: str
    identity: str
    contents: int
    content_bytes: int
    stored_bytes: int


class _WireWant(msgspec.Struct, frozen=True):
    schema: int
    config: str
    content_step: PackedColumn


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_WireWant)


def encode_want(config_digest: str, rows: Rows) -> bytes:
    """Return the list's bytes, uncompressed. rows: int64[k] of the contents, sorted, distinct."""
    step = encode_column(np.diff(rows, prepend=-1) - 1)
    return _encoder.encode(_WireWant(SCHEMA, config_digest, step))


def decode_want(data: bytes, config_digest: str, contents: int) -> Rows:
    """Return which contents are wanted of a pack that has so many: int64[k], sorted, distinct.

    Raises InputError naming what breaks a rule.
    """
    wire = decode_table(_decoder, data, "want-list")
    if wire.schema != SCHEMA:
        raise InputError(f"want-list: expected schema {SCHEMA}, found {wire.schema}")
    if wire.config != config_digest:
        raise InputError(
            f"want-list: config: expected this pack's, {config_digest}, found {wire.config!r:.100}"
        )
    rows = wire.content_step.rows
    if not 1 <= rows <= contents:
        raise InputError(f"want-list: content_step: expected 1 to {contents} rows, found {rows}")
    step = decode_column(wire.content_step, "want-list: content_step")
    # Each step before their sum, which would wrap around.
    if bool((step > contents).any()) or int((step + 1).sum()) > contents:
        raise InputError(f"want-list: content_step: past the last of {contents} contents")
    return np.cumsum(step + 1) - 1


def wanted_rows(pack: OpenedPack) -> Rows:
    """Return which contents a want-list, or what fills one, asks for: int64[k], sorted.

    Raises InputError when it is neither, or damaged.
    """
    where = pack.layout.location
    layer = pack.manifest.want()
    if layer is None:
        raise InputError(
            f"{where}: expected a want-list, found a pack without one",
            hint="vmpack unpack PACK -o DISK --want LIST writes one where contents are missing",
        )
    contents = len(pack.map.contents)
    most = MAX_WANT_HEAD_BYTES + WANT_ROW_BYTES * contents
    frame = read_blob(pack.layout, layer.digest, most_stored(most))
    size = recorded_size(frame, f"{where}: want-list")
    if size > most:
        raise InputError(f"{where}: want-list: expected at most {most} bytes, found {size}")
    try:
        return decode_want(decompress(frame, size, "want-list"), pack.config_digest, contents)
    except InputError as error:
        raise InputError(f"{where}: {error}", hint=error.hint) from error


def write_want(pack: OpenedPack, rows: Rows, output: str | Path) -> WantReport:
    """Write a list of wanted contents of a pack: a file, or a folder if the name ends in "/".

    rows: int64[k], sorted, distinct, at least one. An older list of the same pack is replaced.
    Raises UsageError when anything else has that name, Error when it cannot be written.
    """
    refuse_other(output, pack)
    with create_layout(output, replace=True) as writer:
        entry = write_tables(pack, rows, no_frames(), {}, writer)
        writer.finish([entry])
    return WantReport(
        Path(output),
        pack.config.ref_name,
        pack.config_digest,
        len(rows),
        int(pack.map.contents.size[rows].sum()),
        sum(blob.size for blob in entry.manifest.blobs()),
    )


def refuse_other(output: str | Path, pack: OpenedPack) -> None:
    """Raise UsageError when anything but an older want-list of the same pack has that name."""
    if not str(output):
        raise UsageError("a want-list needs a name", hint="such as missing.want")
    if not os.path.lexists(output):
        return
    try:
        with OpenedPack(open_layout(output)) as old:
            manifest = old.manifest
    except InputError:
        manifest = None
    same = manifest is not None and manifest.config.digest == pack.config_digest
    if manifest is None or not same or manifest.want() is None or manifest.bundles():
        raise UsageError(
            f"{output}: exists already and is no want-list of this pack", hint="choose another name"
        )


def write_tables(
    pack: OpenedPack,
    rows: Rows,
    index: Index,
    bundles: Mapping[str, Blob],
    writer: LayoutWriter,
) -> Entry:
    """Write what is no bundle of a want-list, or of what fills one; return it as a pack.

    rows: what is wanted. index, bundles: what is there of it.
    """
    for one in pack.manifest.kept():
        writer.copy(pack.layout, Blob(one.digest, one.size))
    frame_index = writer.add(compress(encode_index(index), INDEX_LEVEL))
    want = writer.add(compress(encode_want(pack.config_digest, rows), INDEX_LEVEL))
    manifest = manifests.copy_of(pack.manifest, frame_index, bundles, want=want)
    return Entry(manifest, pack.config.ref_name)
