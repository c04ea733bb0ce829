"""Real packs of made-up contents: map, hints, bundles and index as `vmpack pack` writes them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from packer.artifact import config as configs
from packer.artifact import manifest as manifests
from packer.artifact.config import Config, Disk, HintsRef, digest
from packer.artifact.contents import BLOCK_BYTES, Class, Contents
from packer.artifact.hints import Hints, Package, encode_hints
from packer.artifact.index import encode_index
from packer.artifact.keys import PrivateKey
from packer.artifact.layout.open import create_layout, open_layout
from packer.artifact.map import Kind, Map, encode_map
from packer.artifact.opened import OpenedPack
from packer.artifact.signature import sign
from packer.artifact.zstd import compress
from packer.pack.bundle import ReadBlock, write_bundles
from tests.artifact.make import contents_of, map_of

LEVELS = dict.fromkeys(Class, 3)
MIB = 1 << 20


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


def no_hints() -> Hints:
    none = np.empty(0, dtype=np.int64)
    return Hints(none, [], none, none, none, ())


def hints_of(
    contents: Contents, places: Sequence[tuple[int, str, int]], packages: Sequence[Package] = ()
) -> Hints:
    """Return hints of (content, path, package) rows."""
    rows = sorted(places)
    content = np.array([row[0] for row in rows], dtype=np.int64)
    return Hints(
        content,
        [row[1] for row in rows],
        contents.size[content],
        np.zeros(len(rows), dtype=np.int64),
        np.array([row[2] for row in rows], dtype=np.int64),
        tuple(packages),
    )


def blocks_of(data: Sequence[bytes]) -> ReadBlock:
    """Return what reads the contents with these bytes, block by block."""
    return lambda row, block: data[row][block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES]


def straight_map(contents: Contents) -> Map:
    """Return the map of a disk that holds each content once, in 4 KiB blocks, zeros between."""
    rows: list[tuple[Kind, int, int, int]] = []
    for row, size in enumerate(contents.size.tolist()):
        rows.append((Kind.CONTENT, size, row, 0))
        rows.append((Kind.ZERO, 8192 - size % 4096, -1, 0))
    return map_of(contents, rows or [(Kind.ZERO, 4096, -1, 0)])


def disk_of(disk_map: Map, data: Sequence[bytes]) -> bytes:
    """Return the disk that a map and the bytes of its contents make."""
    disk = bytearray(disk_map.size)
    for start, end, content, offset in zip(
        disk_map.start.tolist(),
        disk_map.end.tolist(),
        disk_map.content.tolist(),
        disk_map.offset.tolist(),
        strict=True,
    ):
        if content >= 0:
            disk[start:end] = data[content][offset : offset + end - start]
    return bytes(disk)


def write_pack(
    place: str | Path,
    data: Sequence[bytes],
    classes: Sequence[Class],
    *,
    disk_map: Map | None = None,
    hints: Hints | None = None,
    carried: Sequence[Class] = tuple(Class),
    name: str = "demo",
    version: int = 1,
    sources: Sequence[str] = (),
    keys: Sequence[PrivateKey] = (),
    rotations: Sequence[bytes] = (),
    expires: str = "",
    deltas: tuple[bytes, Sequence[bytes]] | None = None,
) -> OpenedPack:
    """Write a pack of these contents and open it. deltas: (table, uncompressed; patches)."""
    contents = contents_of(list(data), list(classes))
    disk_map = disk_map or straight_map(contents)
    hints = hints or no_hints()
    map_bytes, hint_bytes = encode_map(disk_map), encode_hints(hints)
    with create_layout(place) as writer:
        titled, index = write_bundles(
            writer,
            contents,
            hints,
            blocks_of(data),
            wanted=np.isin(contents.classes, carried),
            levels=LEVELS,
            jobs=2,
            progress=lambda _: None,
        )
        config = Config(
            name=name,
            version=version,
            expires=expires,
            disks=(Disk(disk_map.size, 512, digest(map_bytes), len(map_bytes)),),
            hints=HintsRef(digest(hint_bytes), len(hint_bytes)),
            sources=tuple(sources),
        )
        blob = writer.add(configs.encode(config))
        manifest = manifests.build(
            config=blob,
            maps=[writer.add(compress(map_bytes, 3))],
            hints=writer.add(compress(hint_bytes, 3)),
            frame_index=writer.add(compress(encode_index(index), 3)),
            signature=writer.add(sign(blob.digest, list(keys))) if keys else None,
            rotations=[writer.add(data) for data in rotations],
            deltas=(writer.add(compress(deltas[0], 3)), writer.add(b"".join(deltas[1])))
            if deltas
            else None,
            bundles=titled,
        )
        writer.finish([manifests.Entry(manifest, config.ref_name)])
    return OpenedPack(open_layout(place))
