"""copy: the same signed packs with fewer (or all) of their bundles."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from packer.artifact import manifest as manifests
from packer.artifact.contents import Class
from packer.artifact.fit import Chooser, Shelf, Taken
from packer.artifact.frames import FrameReader
from packer.artifact.index import Index, encode_index
from packer.artifact.layout.base import Layout, LayoutWriter
from packer.artifact.manifest import Blob, Descriptor, Entry, Manifest
from packer.artifact.opened import OpenedPack
from packer.artifact.zstd import compress
from packer.errors import Error, InputError
from packer.progress import Advance, Progress, Silent
from packer.text import format_bytes

INDEX_LEVEL = 19

MOST_TRIES = 8
"""The size of a frame index follows from what is taken, and what can be taken from its size."""

FULL_ENOUGH = 500
"""A medium of which less than this part is empty is full."""

DIGEST_CHARACTERS = 71
"""Of a bundle's name in a frame index. Until the bundle is written another name stands in for it,
and the index that is compressed then may be longer, by less than this."""


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
    """One pack on its way. bundles: by title; index: of their frames; deltas: (table, patches)."""

    pack: OpenedPack
    bundles: dict[str, Blob]
    index: Index
    deltas: tuple[Blob, Blob] | None

    def blobs(self) -> list[Blob]:
        """Return what is copied as it is."""
        return [
            *map(_blob, self.pack.manifest.kept()),
            *self.bundles.values(),
            *(self.deltas or ()),
        ]


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
    whole, new = _once(parts), chosen.stand_ins() if chosen else []
    writer.check_room([*(blob for _, blob in whole), *new])
    verb = "fetching" if any(pack.layout.remote for pack in packs) else "copying"
    total = sum(blob.size for _, blob in whole) + sum(blob.size for blob in new)
    with progress.stage(verb, total) as advance:
        for layout, blob in whole:
            writer.copy(layout, blob, advance)
        if chosen is not None:
            chosen.write(parts, writer, advance)
    entries = [Entry(_finished(part, writer), part.pack.config.ref_name) for part in parts]
    blobs = writer.finish(entries)
    stored = {blob.digest: blob.size for entry in entries for blob in entry.manifest.blobs()}
    return CopyReport(
        tuple(
            Copied(part.pack.config.ref_name, part.pack.config_digest, blob.digest, _lacking(part))
            for part, blob in zip(parts, blobs, strict=True)
        ),
        writer.medium_bytes([*stored.values(), *(blob.size for blob in blobs)]),
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
    """Return a pack with what its copy carries whole, after making sure of it."""
    contents = pack.map.contents
    bundles = {
        title: _blob(layer)
        for title, layer in pack.manifest.bundles().items()
        if manifests.class_of(title) in extent.classes
    }
    index = pack.index.only([blob.digest for blob in bundles.values()], contents)
    asked = np.flatnonzero(np.isin(contents.classes, extent.classes))
    lacking = np.setdiff1d(asked, index.content)
    if len(lacking):
        absent_bytes = int(contents.size[lacking].sum())
        raise InputError(
            f"{pack.layout.location}: holds no complete {extent.value} copy: "
            f"{len(lacking)} contents ({format_bytes(absent_bytes)}) are absent",
            hint="copy from a fuller copy of this pack",
        )
    deltas = pack.manifest.deltas() if extent is Extent.FULL else None
    return _Part(pack, bundles, index, (_blob(deltas[0]), _blob(deltas[1])) if deltas else None)


def _once(parts: Sequence[_Part]) -> list[tuple[Layout, Blob]]:
    """Return what is copied and from where; what several packs have is there once."""
    found: dict[str, tuple[Layout, Blob]] = {}
    for part in parts:
        for blob in part.blobs():
            layout, other = found.setdefault(blob.digest, (part.pack.layout, blob))
            if other != blob:
                raise InputError(
                    f"{part.pack.layout.location}: blob {blob.digest}: expected {other.size} bytes "
                    f"as {layout.location} says, found {blob.size}",
                    hint="one of these copies is damaged; fetch it again",
                )
    return list(found.values())


def _finished(part: _Part, writer: LayoutWriter) -> Manifest:
    """Write the frame index of a copy; return its manifest."""
    index = writer.add(compress(encode_index(part.index), INDEX_LEVEL))
    return manifests.copy_of(part.pack.manifest, index, part.bundles, deltas=part.deltas)


def _lacking(part: _Part) -> dict[str, tuple[int, int]]:
    contents = part.pack.map.contents
    return contents.by_class(np.setdiff1d(np.arange(len(contents)), part.index.content))


class _Chosen:
    """The shared frames that a medium takes, and the bundles that they make there."""

    def __init__(self, chooser: Chooser, taken: Sequence[Taken]) -> None:
        self._chooser = chooser
        self._taken = taken
        self._sizes = chooser.bundle_sizes(taken)

    def stand_ins(self) -> list[Blob]:
        """Return the bundles, under names that are not theirs: nobody knows those yet."""
        return [Blob(_digest(b"%d" % number), size) for number, size in enumerate(self._sizes)]

    def copies(
        self, parts: Sequence[_Part], bundles: Sequence[Blob]
    ) -> Iterator[tuple[dict[str, Blob], Index]]:
        """Yield for each pack (all bundles of its copy by title, the index of them).

        bundles: those that hold what is taken; a pack has the ones that it uses.
        """
        indexes = self._chooser.indexes(self._taken, [blob.digest for blob in bundles])
        for part, index in zip(parts, indexes, strict=True):
            used = [blob for blob in bundles if blob.digest in index.bundles]
            titled = {f"shared-{number:03d}": blob for number, blob in enumerate(used)}
            yield {**part.bundles, **titled}, part.index.joined(index)

    def write(self, parts: Sequence[_Part], writer: LayoutWriter, advance: Advance) -> None:
        """Write the bundles, every frame proven, and give each part those that it uses."""
        frames = self._frames(parts)
        blobs: list[Blob] = []
        for size in self._sizes:
            with writer.stream() as bundle:
                while bundle.size < size:
                    data = next(frames)
                    bundle.write(data)
                    advance(len(data))
                blobs.append(bundle.finish())
        for part, (bundles, index) in zip(parts, self.copies(parts, blobs), strict=True):
            part.bundles, part.index = bundles, index

    def _frames(self, parts: Sequence[_Part]) -> Iterator[bytes]:
        for one in self._taken:
            index = self._chooser.shelves[one.shelf].index
            yield from FrameReader(parts[one.shelf].pack, index).read(one.frames)


def _choose(parts: Sequence[_Part], writer: LayoutWriter, fit: Fit) -> _Chosen:
    """Return what of the shared bundles fits beside the rest."""
    pairs = zip(parts, fit.chances, strict=True)
    chooser = Chooser([_shelf(part, chance) for part, chance in pairs])
    best = _Chosen(chooser, [])
    least = room = fit.capacity_bytes - _needed(parts, writer, best)
    if room < 0:
        raise Error(
            f"{writer.location}: boot and private contents need "
            f"{format_bytes(fit.capacity_bytes - room)}, the medium has "
            f"{format_bytes(fit.capacity_bytes)}",
            hint="take a larger medium, fewer packs, or a copy with --boot",
        )
    for _ in range(MOST_TRIES):
        tried = _Chosen(chooser, chooser.take(room))
        if tried.stand_ins() == best.stand_ins():
            break  # there is no more to take
        left = fit.capacity_bytes - _needed(parts, writer, tried)
        if 0 <= left < least:
            best, least = tried, left
        if 0 <= left <= fit.capacity_bytes // FULL_ENOUGH:
            break
        # Of too much, less than was taken; there may have been room to spare.
        room = room + left // 2 if left > 0 else left + sum(one.size for one in tried.stand_ins())
    return best


def _shelf(part: _Part, chance: NDArray[np.float64]) -> Shelf:
    """Return what a pack could give, and what the medium lacks of it: all but what is copied."""
    contents, carried = part.pack.map.contents, {blob.digest for blob in part.bundles.values()}
    rest = [digest for digest in part.pack.index.bundles if digest not in carried]
    lacking = np.setdiff1d(np.arange(len(contents)), part.index.content)
    return Shelf(contents, part.pack.index.only(rest, contents), lacking, chance)


def _needed(parts: Sequence[_Part], writer: LayoutWriter, chosen: _Chosen) -> int:
    """Return how large the medium becomes at most with these frames, in bytes."""
    new, tables = chosen.stand_ins(), []
    for part, (bundles, index) in zip(parts, chosen.copies(parts, new), strict=True):
        data = compress(encode_index(index), INDEX_LEVEL)
        size = len(data) + DIGEST_CHARACTERS * len(index.bundles)
        manifest = manifests.copy_of(part.pack.manifest, Blob(_digest(data), size), bundles)
        tables += [size, len(manifests.encode(manifest))]
    sizes = [blob.size for _, blob in _once(parts)] + [blob.size for blob in new]
    return writer.medium_bytes([*sizes, *tables])


def _blob(layer: Descriptor) -> Blob:
    return Blob(layer.digest, layer.size)


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
