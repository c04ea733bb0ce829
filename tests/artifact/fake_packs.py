"""Packs whose blobs are filled with recognisable bytes instead of real maps and frames."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from packer.artifact import manifest as manifests
from packer.artifact.config import Config, Disk, HintsRef, encode
from packer.artifact.layout.base import Layout, LayoutWriter, read_blob
from packer.artifact.manifest import Blob, Manifest

REF_NAME = "demo:3"


@dataclass(frozen=True)
class FakePack:
    manifest: Manifest
    manifest_blob: Blob
    blobs: dict[str, bytes]


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def small_config(name: str = "demo", version: int = 3) -> Config:
    disk = Disk(size=1 << 20, sector_size=512, map=sha256(b"map"), map_size=3)
    return Config(name=name, version=version, disks=(disk,), hints=HintsRef(sha256(b"hints"), 5))


def write_pack(
    writer: LayoutWriter, bundles: Sequence[str] = ("boot", "private", "shared-000")
) -> FakePack:
    """Write a pack and finish the layout. Bundle i is 1000 * (i + 1) bytes of value i."""
    blobs: dict[str, bytes] = {}

    def add(data: bytes) -> Blob:
        blob = writer.add(data)
        blobs[blob.digest] = data
        return blob

    titled: dict[str, Blob] = {}
    for row, title in enumerate(bundles):
        data = bytes([row]) * 1000 * (row + 1)
        with writer.stream() as stream:
            stream.write(data[:300])
            stream.write(memoryview(data)[300:])
            assert stream.size == len(data)
            titled[title] = stream.finish()
        blobs[titled[title].digest] = data
    manifest = manifests.build(
        config=add(encode(small_config())),
        maps=[add(b"a map, compressed")],
        hints=add(b"hints, compressed"),
        frame_index=add(b"where what lies, compressed"),
        signature=add(b'{"payload": "", "payloadType": "", "signatures": []}'),
        bundles=titled,
    )
    (blob,) = writer.finish([manifests.Entry(manifest, REF_NAME)])
    blobs[blob.digest] = manifests.encode(manifest)
    return FakePack(manifest, blob, blobs)


def read_everything(layout: Layout) -> tuple[Manifest, dict[str, bytes]]:
    """Read a pack as a user would: index, manifest, then every blob, each verified."""
    _, entry = manifests.choose(manifests.decode_index(layout.index()))
    blobs = {entry.digest: read_blob(layout, entry.digest, manifests.MAX_MANIFEST_BYTES)}
    manifest = manifests.decode(blobs[entry.digest])
    for blob in manifest.blobs():
        blobs[blob.digest] = read_blob(layout, blob.digest, blob.size)
    return manifest, blobs
