"""A pack that was opened: its parts read on demand, each proven by the digest that names it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Self

from packer.artifact import config as configs
from packer.artifact import manifest as manifests
from packer.artifact.config import Config
from packer.artifact.deltas import Deltas, decode_deltas
from packer.artifact.hints import Hints, decode_hints
from packer.artifact.index import Index, decode_index
from packer.artifact.layout.base import Expecting, Layout, read_blob
from packer.artifact.manifest import Blob, Descriptor, Manifest
from packer.artifact.map import Map, decode_map
from packer.artifact.rotation import MAX_STATEMENT_BYTES
from packer.artifact.signature import MAX_ENVELOPE_BYTES
from packer.artifact.zstd import decompress, decompress_proven, most_stored, recorded_size
from packer.errors import InputError

INDEX_ROW_BYTES = 48
DELTA_ROW_BYTES = 64
MAX_INDEX_HEAD_BYTES = 4 << 20
"""Unpacked, a frame index has at most INDEX_ROW_BYTES for each content and each block (three
columns of 8 bytes for frames, three for contents) and MAX_INDEX_HEAD_BYTES for the rest. Nobody
signs it, so what it says of itself must not decide how much memory it gets."""


def packs_of(layout: Layout) -> list[OpenedPack]:
    """Return the packs of a layout, as it lists them; one with several names once.

    Raises InputError when it holds none.
    """
    where = f"{layout.location}: index.json"
    named = manifests.decode_index(layout.index(), where)
    listed: dict[str, tuple[str, Blob]] = {}
    for name, blob in named:
        listed.setdefault(blob.digest, (name, blob))
    if len(listed) < 2:
        manifests.choose(named, None, where)
        return [OpenedPack(layout)]
    found = []
    for one in listed.values():
        found.append(OpenedPack(layout, one[0]))
        found[-1].__dict__["_listed"] = one  # the list need not be read again for each of them
    return found


class OpenedPack:
    """The parts of a pack that lies in a layout. Nothing here decides about trust.

    ref_name: which one of several: "demo:3", or "demo" for its highest version.
    """

    def __init__(self, layout: Layout, ref_name: str | None = None) -> None:
        self.layout = layout
        self._ref_name = ref_name

    @cached_property
    def manifest(self) -> Manifest:
        """Return the copy's table of contents."""
        where, (_, blob) = self.layout.location, self._listed
        self._expect([blob])
        data = read_blob(self.layout, blob.digest, manifests.MAX_MANIFEST_BYTES)
        manifest = manifests.decode(data, f"{where}: manifest")
        self._expect(Blob(one.digest, one.size) for one in manifest.blobs())
        return manifest

    @cached_property
    def _listed(self) -> tuple[str, Blob]:
        where = self.layout.location
        packs = manifests.decode_index(self.layout.index(), f"{where}: index.json")
        return manifests.choose(packs, self._ref_name, where)

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
        config = configs.decode(self.config_bytes, f"{self.layout.location}: config")
        name = self._listed[0]
        # Nobody signs what a layout calls its packs. (A tag without ":" is anybody's own name.)
        if self._ref_name is not None and ":" in name and name != config.ref_name:
            raise InputError(
                f"{self.layout.location}: expected {name}, found {config.ref_name} under that name"
            )
        return config

    @cached_property
    def envelope(self) -> bytes | None:
        """Return the signature envelope, or None for an unsigned copy."""
        layer = self.manifest.signature()
        return read_blob(self.layout, layer.digest, MAX_ENVELOPE_BYTES) if layer else None

    @cached_property
    def rotations(self) -> tuple[bytes, ...]:
        """Return the statements about replaced keys that travel with this copy, not verified."""
        return tuple(
            read_blob(self.layout, layer.digest, MAX_STATEMENT_BYTES)
            for layer in self.manifest.rotations()
        )

    @cached_property
    def map(self) -> Map:
        """Return the map of the pack's disk, as the config names it."""
        if len(self.config.disks) != 1:
            raise InputError(
                f"{self.layout.location}: a pack of {len(self.config.disks)} disks, expected one",
                hint="a newer vmpack may be able to read this pack",
            )
        disk = self.config.disks[0]
        where = f"{self.layout.location}: map"
        frame = self._part(self.manifest.maps()[0], disk.map_size)
        data = decompress_proven(frame, disk.map_size, disk.map, where)
        with self._named():
            disk_map = decode_map(data)
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
        frame = self._part(layer, named.size)
        data = decompress_proven(frame, named.size, named.digest, where)
        with self._named():
            return decode_hints(data, len(self.map.contents))

    @cached_property
    def index(self) -> Index:
        """Return the frame index. It is not signed: what comes out of frames is proven."""
        layer = self.manifest.frame_index()
        where = f"{self.layout.location}: frame index"
        if layer is None:
            raise InputError(f"{where}: this copy carries none")
        contents = self.map.contents
        most = MAX_INDEX_HEAD_BYTES + INDEX_ROW_BYTES * (len(contents) + len(contents.blocks))
        frame = self._part(layer, most)
        size = recorded_size(frame, where)
        if size > most:
            raise InputError(f"{where}: expected at most {most} bytes, the frame says {size}")
        with self._named():
            index = decode_index(decompress(frame, size, "frame index"), contents)
        here = {bundle.digest: bundle.size for bundle in self.manifest.bundles().values()}
        if absent := set(index.bundles) - here.keys():
            raise InputError(
                f"{where}: expected the bundles of this copy only, found {len(absent)} others, "
                f"such as {min(absent)!r:.100}"
            )
        for bundle, size in zip(index.bundles, index.bundle_bytes(), strict=True):
            if size > here[bundle]:
                raise InputError(
                    f"{where}: expected frames of {here[bundle]} bytes in {bundle}, found {size}"
                )
        return index

    @cached_property
    def deltas(self) -> Deltas | None:
        """Return the table of the deltas against a predecessor; None when this copy has none."""
        layers = self.manifest.deltas()
        if layers is None:
            return None
        table, patches = layers
        where = f"{self.layout.location}: deltas"
        contents = self.map.contents
        most = MAX_INDEX_HEAD_BYTES + DELTA_ROW_BYTES * len(contents)
        frame = self._part(table, most)
        size = recorded_size(frame, where)
        if size > most:
            raise InputError(f"{where}: expected at most {most} bytes, the frame says {size}")
        with self._named():
            return decode_deltas(decompress(frame, size, "deltas"), contents, patches.size)

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

    def _expect(self, blobs: Iterable[Blob]) -> None:
        if isinstance(self.layout, Expecting):
            self.layout.expect(blobs)

    def _part(self, layer: Descriptor, unpacked_bytes: int) -> bytes:
        """Return the frame of a part that has at most so many bytes unpacked."""
        return read_blob(self.layout, layer.digest, most_stored(unpacked_bytes))

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say in errors which pack it is."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.layout.location}: {error}", hint=error.hint) from error
