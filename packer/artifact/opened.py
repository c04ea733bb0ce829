"""A pack that was opened: its parts read on demand, each proven by the digest that names it."""

from __future__ import annotations

from functools import cached_property
from typing import Self

from packer.artifact import config as configs
from packer.artifact import manifest as manifests
from packer.artifact.config import Config
from packer.artifact.hints import Hints, decode_hints
from packer.artifact.index import Index, decode_index
from packer.artifact.layout.base import Layout, read_blob
from packer.artifact.manifest import Descriptor, Manifest
from packer.artifact.map import Map, decode_map
from packer.artifact.signature import MAX_ENVELOPE_BYTES
from packer.artifact.zstd import decompress, decompress_proven, recorded_size
from packer.errors import InputError

MAX_PART_BYTES = 1 << 31
"""No map, hints or index is larger than this, packed or unpacked."""


class OpenedPack:
    """The parts of the pack that lies in a layout. Nothing here decides about trust."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    @cached_property
    def manifest(self) -> Manifest:
        """Return the copy's table of contents."""
        where = self.layout.location
        blob = manifests.decode_index(self.layout.index(), f"{where}: index.json")
        data = read_blob(self.layout, blob.digest, manifests.MAX_MANIFEST_BYTES)
        return manifests.decode(data, f"{where}: manifest")

    @cached_property
    def config_bytes(self) -> bytes:
        """Return the config as it was signed."""
        return read_blob(self.layout, self.config_digest, configs.MAX_CONFIG_BYTES)

    @property
    def config_digest(self) -> str:
        """Return the pack's identity."""
        return self.manifest.config.digest

    @cached_property
    def config(self) -> Config:
        """Return the config."""
        return configs.decode(self.config_bytes, f"{self.layout.location}: config")

    @cached_property
    def envelope(self) -> bytes | None:
        """Return the signature envelope, or None for an unsigned copy."""
        layer = self.manifest.signature()
        return read_blob(self.layout, layer.digest, MAX_ENVELOPE_BYTES) if layer else None

    @cached_property
    def map(self) -> Map:
        """Return the map of the pack's disk, as the config names it."""
        if len(self.config.disks) != 1:
            raise InputError(
                f"{self.layout.location}: a pack of {len(self.config.disks)} disks, expected one",
                hint="a newer vmpack may be able to read this pack",
            )
        disk = self.config.disks[0]
        frame = self._part(self.manifest.maps()[0])
        where = f"{self.layout.location}: map"
        disk_map = decode_map(
            decompress_proven(frame, self._bounded(disk.map_size), disk.map, where)
        )
        if disk_map.size != disk.size:
            raise InputError(
                f"{where}: expected a disk of {disk.size} bytes as the config says, "
                f"found {disk_map.size}"
            )
        return disk_map

    @cached_property
    def hints(self) -> Hints:
        """Return the hints, as the config names them."""
        layer = self.manifest.hints()
        where = f"{self.layout.location}: hints"
        if layer is None:
            raise InputError(f"{where}: this copy carries none", hint="name a fuller copy")
        named = self.config.hints
        data = decompress_proven(self._part(layer), self._bounded(named.size), named.digest, where)
        return decode_hints(data, len(self.map.contents))

    @cached_property
    def index(self) -> Index:
        """Return the frame index. It is not signed: what comes out of frames is proven."""
        layer = self.manifest.frame_index()
        where = f"{self.layout.location}: frame index"
        if layer is None:
            raise InputError(f"{where}: this copy carries none")
        data = self._part(layer)
        size = self._bounded(recorded_size(data, where))
        return decode_index(decompress(data, size, where), self.map.contents)

    def share_map(self, other: OpenedPack) -> None:
        """Use the map of another copy of the same pack instead of reading it again.

        Raises ValueError when it is another pack.
        """
        if other.config_digest != self.config_digest:
            raise ValueError("copies of two different packs")
        self.__dict__["map"] = other.map

    def close(self) -> None:
        """Close the layout."""
        self.layout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _part(self, layer: Descriptor) -> bytes:
        return read_blob(self.layout, layer.digest, MAX_PART_BYTES)

    def _bounded(self, size: int) -> int:
        if not 0 < size <= MAX_PART_BYTES:
            raise InputError(
                f"{self.layout.location}: a part of {size} bytes, expected at most {MAX_PART_BYTES}"
            )
        return size
