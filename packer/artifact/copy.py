"""copy: the same signed packs with fewer (or all) of their bundles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from packer.artifact import manifest as manifests
from packer.artifact.contents import BLOCK_BYTES, Class
from packer.artifact.fit import Chooser, Shelf, Taken
from packer.artifact.index import Index, encode_index, frame_counts
from packer.artifact.layout.base import LayoutWriter
from packer.artifact.manifest import Blob, Descriptor, Entry, Manifest
from packer.artifact.opened import OpenedPack
from packer.artifact.zstd import compress, decompress
from packer.errors import Error, InputError
from packer.progress import Advance, Progress, Silent
from packer.text import format_bytes

INDEX_LEVEL = 19

FRAMES_AT_ONCE = 64
"""So many frames, of at most 1 MiB each in shared bundles, are in memory at a time."""

MOST_TRIES = 8
"""The size of a frame index follows from what is taken, and what can be taken from its size."""


class Extent(Enum):
    """How much of a pack a copy carries."""

    BOOT = "boot"
    THIN = "thin"
    FULL = "full"

    @property
    def classes(self) -> tuple[Class, ...]:
        """Return the classes whose contents are carried."""
        return {
            Extent.BOOT: (Class.BOOT,),
            Extent.THIN: (Class.BOOT, Class.PRIVATE),
            Extent.FULL: (Class.BOOT, Class.PRIVATE, Class.SHARED),
        }[self]


@dataclass(frozen=True, slots=True)
class Fit:
    """A medium to fill: boot and private contents, then as many shared ones as fit.

    capacity_bytes: of the whole medium. chances: for each pack float64[n], how likely the audience
    lacks each of its contents, 0 to 1.
    """

    capacity_bytes: int
    chances: Sequence[NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Copied:
    """One pack of a copy: its name, its identity, and what the copy does not carry of it.

    lacking: {class name: (contents, bytes)}. manifest: the digest of the copy's table of contents.
    """

    ref_name: str
    identity: str
    manifest: str
    lacking: dict[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What was written. medium_bytes: of the whole layout."""

    packs: tuple[Copied, ...]
    medium_bytes: int


@dataclass(slots=True)
class _Part:
    """One pack on its way: what is known of its copy so far."""

    pack: OpenedPack
    carried: dict[str, Descriptor]
    index: Index
    titled: dict[str, Blob] = field(default_factory=dict)
    deltas: tuple[Blob, Blob] | None = None


def copy_packs(
    packs: Sequence[OpenedPack],
    writer: LayoutWriter,
    extent: Extent | Fit,
    *,
    progress: Progress | None = None,
) -> CopyReport:
    """Write copies of packs into one layout; what they have in common is there once.

    Config, map, hints and signature stay the same to the byte. Raises InputError when a pack at
    hand does not hold what its copy shall carry, or holds damaged bundles, or two packs have the
    same name and version; Error when they do not fit or the output cannot be written.
    """
    progress = progress or Silent()
    _check_names(packs)
    least = Extent.THIN if isinstance(extent, Fit) else extent
    parts = [_part(pack, least) for pack in packs]
    chosen = _choose(parts, writer, extent) if isinstance(extent, Fit) else None
    whole = {layer.digest: layer for part in parts for layer in part.carried.values()}
    total = sum(layer.size for layer in whole.values())
    total += sum(chosen.sizes) if chosen else 0
    if extent is Extent.FULL:
        total += sum(one.size for pack in packs for one in pack.manifest.deltas() or ())
    writer.check_room([Blob(layer.digest, layer.size) for layer in whole.values()])
    verb = "fetching" if any(pack.layout.remote for pack in packs) else "copying"
    with progress.stage(verb, total) as advance:
        for digest, layer in whole.items():
            part = next(one for one in parts if layer in one.carried.values())
            blob = writer.copy(part.pack.layout, Blob(digest, layer.size), advance)
            for one in parts:
                one.titled |= {t: blob for t, other in one.carried.items() if other == layer}
        for part in parts if extent is Extent.FULL else ():
            part.deltas = _copy_deltas(part.pack, writer, advance)
        if chosen is not None:
            chosen.write(parts, writer, advance)
    entries = [Entry(_write_tables(part, writer), part.pack.config.ref_name) for part in parts]
    manifest_blobs = writer.finish(entries)
    stored = {blob.digest: blob.size for entry in entries for blob in entry.manifest.blobs()}
    sizes = [*stored.values(), *(blob.size for blob in manifest_blobs)]
    return CopyReport(
        tuple(
            Copied(part.pack.config.ref_name, part.pack.config_digest, blob.digest, _lacking(part))
            for part, blob in zip(parts, manifest_blobs, strict=True)
        ),
        writer.medium_bytes(sizes),
    )


def _check_names(packs: Sequence[OpenedPack]) -> None:
    seen: dict[str, OpenedPack] = {}
    for pack in packs:
        other = seen.setdefault(pack.config.ref_name, pack)
        if other is not pack:
            raise InputError(
                f"{pack.layout.location}: expected a pack that is not there yet, found another "
                f"{pack.config.ref_name}",
                hint="packs in one place need different names or versions",
            )


def _part(pack: OpenedPack, extent: Extent) -> _Part:
    """Return a pack with the bundles that its copy carries whole, after making sure of them."""
    contents = pack.map.contents
    carried = {
        title: layer
        for title, layer in pack.manifest.bundles().items()
        if Class[title.partition("-")[0].upper()] in extent.classes
    }
    index = pack.index.only([layer.digest for layer in carried.values()], contents)
    held = np.zeros(len(contents), dtype=bool)
    held[index.content] = True
    lacking = np.isin(contents.classes, extent.classes) & ~held
    if lacking.any():
        raise InputError(
            f"{pack.layout.location}: holds no complete {extent.value} copy: "
            f"{int(lacking.sum())} contents ({int(contents.size[lacking].sum())} bytes) are absent",
            hint="copy from a fuller copy of this pack",
        )
    return _Part(pack, carried, index)


def _write_tables(part: _Part, writer: LayoutWriter) -> Manifest:
    """Write what is no bundle; return the copy's manifest."""
    pack = part.pack
    for one in pack.manifest.kept():
        writer.copy(pack.layout, Blob(one.digest, one.size))
    index = writer.add(compress(encode_index(part.index), INDEX_LEVEL))
    return manifests.copy_of(pack.manifest, index, part.titled, deltas=part.deltas)


def _copy_deltas(
    pack: OpenedPack, writer: LayoutWriter, advance: Advance
) -> tuple[Blob, Blob] | None:
    layers = pack.manifest.deltas()
    if layers is None:
        return None
    table, patches = (
        writer.copy(pack.layout, Blob(one.digest, one.size), advance) for one in layers
    )
    return table, patches


def _lacking(part: _Part) -> dict[str, tuple[int, int]]:
    contents = part.pack.map.contents
    held = np.zeros(len(contents), dtype=bool)
    held[part.index.content] = True
    found: dict[str, tuple[int, int]] = {}
    for one in Class:
        rows = (contents.classes == one) & ~held
        if rows.any():
            found[one.name.lower()] = (int(rows.sum()), int(contents.size[rows].sum()))
    return found


@dataclass(frozen=True, slots=True)
class _Chosen:
    """The shared frames that a medium takes. sizes: of its bundles, bytes."""

    chooser: Chooser
    shelves: list[Shelf]
    taken: list[Taken]
    sizes: list[int]

    def write(self, parts: Sequence[_Part], writer: LayoutWriter, advance: Advance) -> None:
        """Write the bundles, every frame proven, and tell each part of those that it uses."""
        frames = self._frames(parts)
        blobs: list[Blob] = []
        for size in self.sizes:
            with writer.stream() as bundle:
                while bundle.size < size:
                    data = next(frames)
                    bundle.write(data)
                    advance(len(data))
                blobs.append(bundle.finish())
        digests = [blob.digest for blob in blobs]
        for part, index in zip(parts, self.chooser.indexes(self.taken, digests), strict=True):
            used = [blob for blob in blobs if blob.digest in index.bundles]
            part.titled |= {f"shared-{number:03d}": blob for number, blob in enumerate(used)}
            part.index = part.index.joined(index)

    def _frames(self, parts: Sequence[_Part]) -> Iterator[bytes]:
        for one in self.taken:
            pack, shelf = parts[one.shelf].pack, self.shelves[one.shelf]
            for start in range(0, len(one.frames), FRAMES_AT_ONCE):
                yield from _read_frames(pack, shelf, one.frames[start : start + FRAMES_AT_ONCE])


def _choose(parts: Sequence[_Part], writer: LayoutWriter, fit: Fit) -> _Chosen:
    """Return what of the shared bundles fits beside the rest."""
    shelves = []
    for part, chance in zip(parts, fit.chances, strict=True):
        pack, carried = part.pack, {layer.digest for layer in part.carried.values()}
        rest = [digest for digest in pack.index.bundles if digest not in carried]
        shelves.append(Shelf(pack.map.contents, pack.index.only(rest, pack.map.contents), chance))
    chooser = Chooser(shelves)
    room = fit.capacity_bytes - _needed(parts, writer, chooser, [])
    if room < 0:
        least = format_bytes(fit.capacity_bytes - room)
        raise Error(
            f"{writer.location}: boot and private contents need {least}, "
            f"the medium has {format_bytes(fit.capacity_bytes)}",
            hint="take a larger medium, fewer packs, or a copy with --boot",
        )
    best: list[Taken] = []
    for _ in range(MOST_TRIES):
        taken = chooser.take(room)
        left = fit.capacity_bytes - _needed(parts, writer, chooser, taken)
        if left >= 0:
            best = taken
        if left >= 0 and left <= fit.capacity_bytes // 500:
            break
        room += left if left < 0 else left // 2
    return _Chosen(chooser, shelves, best, chooser.bundle_sizes(best))


def _needed(
    parts: Sequence[_Part], writer: LayoutWriter, chooser: Chooser, taken: Sequence[Taken]
) -> int:
    """Return how large the medium becomes with these frames, in bytes."""
    sizes = {
        layer.digest: layer.size
        for part in parts
        for layer in (*part.pack.manifest.kept(), *part.carried.values())
    }
    new = chooser.bundle_sizes(taken)
    stand_ins = ["sha256:" + hashlib.sha256(b"%d" % n).hexdigest() for n in range(len(new))]
    tables: list[int] = []
    for part, index in zip(parts, chooser.indexes(taken, stand_ins), strict=True):
        data = compress(encode_index(part.index.joined(index)), INDEX_LEVEL)
        used = {f"shared-{n:03d}": Blob(d, BLOCK_BYTES << 8) for n, d in enumerate(index.bundles)}
        titled = {title: Blob(one.digest, one.size) for title, one in part.carried.items()}
        blob = Blob("sha256:" + hashlib.sha256(data).hexdigest(), len(data))
        manifest = manifests.copy_of(part.pack.manifest, blob, {**titled, **used})
        tables += [len(data), len(manifests.encode(manifest))]
    return writer.medium_bytes([*sizes.values(), *new, *tables])


def _read_frames(pack: OpenedPack, shelf: Shelf, frames: NDArray[np.int64]) -> Iterator[bytes]:
    """Yield stored frames in their order, after proving what is in them."""
    index = shelf.index
    stored: dict[int, bytes] = {}
    for bundle in np.unique(index.bundle[frames]).tolist():
        here = frames[index.bundle[frames] == bundle]
        ranges = list(
            zip(index.frame_offset[here].tolist(), index.stored_bytes[here].tolist(), strict=True)
        )
        for row, data in pack.layout.read_many(index.bundles[bundle], ranges):
            stored[int(here[row])] = data
    for frame in frames.tolist():
        _prove(pack, index, frame, stored[frame])
        yield stored[frame]


def _prove(pack: OpenedPack, index: Index, frame: int, stored: bytes) -> None:
    """Raise InputError unless a frame holds what the index says: nobody signs an index."""
    where = f"{pack.layout.location}: bundle {index.bundles[int(index.bundle[frame])]}"
    contents = pack.map.contents
    plain = decompress(stored, int(index.frame_bytes[frame]), where)
    count = frame_counts(contents.size[index.content])
    reaches = (index.first_frame <= frame) & (frame < index.first_frame + count)
    for place in np.flatnonzero(reaches).tolist():
        row, block = int(index.content[place]), frame - int(index.first_frame[place])
        start, end = contents.block_bounds(row, block)
        offset = int(index.offset[place])
        data = plain[offset : offset + end - start]
        if hashlib.sha256(data).digest() != contents.block_digest(row, block):
            raise InputError(
                f"{where}: expected {contents.name(row)} in it, found other bytes",
                hint="the copy is damaged; fetch it again or copy from another one",
            )
