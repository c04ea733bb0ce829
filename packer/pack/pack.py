"""pack: an installed disk becomes a signed pack."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from msgspec import UnsetType
from numpy.typing import NDArray

from formats.container.flat import FlatDisk
from formats.ranges import Ranges, empty_ranges
from packer.artifact import config as configs
from packer.artifact import manifest as manifests
from packer.artifact.config import Boots, Config
from packer.artifact.contents import Class, Contents, digest_keys
from packer.artifact.deltas import encode_deltas
from packer.artifact.hints import encode_hints
from packer.artifact.index import Index, encode_index, no_frames
from packer.artifact.keys import PrivateKey
from packer.artifact.layout.base import LayoutWriter
from packer.artifact.layout.open import create_layout
from packer.artifact.manifest import Blob, Entry, Manifest
from packer.artifact.map import Kind, encode_map
from packer.artifact.opened import OpenedPack
from packer.artifact.rotation import check_carried
from packer.artifact.signature import sign
from packer.artifact.zstd import compress
from packer.guest.privacy import Review, sift
from packer.pack.against import Against
from packer.pack.base import Carried, carry_on
from packer.pack.bundle import write_bundles
from packer.pack.clean import open_cleaned
from packer.pack.delta import Gain, write_deltas
from packer.pack.describe import APT, describe, unlisted_bytes
from packer.pack.earlier import Boot, Earlier, changed_ranges
from packer.pack.prepare import Prepared, Resolve, follow_touched, prepare
from packer.pack.published import demand_nothing_private, find_published
from packer.progress import Progress, Silent
from packer.sources.base import Wanted
from packer.survey.disk import Disk

TABLE_LEVEL = 19
"""zstd level of map, hints and index: small, and in every copy."""

LEVELS = {Class.BOOT: 12, Class.PRIVATE: 12, Class.SHARED: 6}
"""zstd level of each class: boot and private travel in every copy, shared contents seldom.

Level 19 takes ten times as long for 1 % of a thin pack: most of that is compressed already.
"""


@dataclass(frozen=True, slots=True)
class PackOptions:
    """What an author can say about a pack.

    version: of this name, an integer that grows. expires: the last day on which it is good, or "".
    sources: URIs where missing contents can be had. rotations: statements about replaced keys that
    travel with it. thin: leave shared contents out. base: the pack whose bundles are carried on.
    delta: add patches against the base's files. keep_free: keep what the guest's file systems call
    free. drop_snapshots: leave volume shadow copies out. incomplete: pack a guest that will not
    start. on_base: the disk is the base's, or an overlay on it (see packer.pack.earlier); of shared
    contents the pack carries what the base's copy does. touched: ranges of the disk (bytes) that
    boots were seen to read, which become the boot class. boots: what the config says of that.
    allow, strict: see packer.guest.privacy.sift and demand_nothing_private. review: is told
    what looks private before anything is packed.
    """

    name: str
    version: int = 1
    expires: str = ""
    sources: Sequence[str] = ()
    rotations: Sequence[bytes] = ()
    thin: bool = False
    base: OpenedPack | None = None
    delta: bool = False
    keep_free: bool = False
    drop_snapshots: bool = False
    incomplete: bool = False
    on_base: bool = False
    touched: Ranges | None = None
    boots: Boots | None = None
    clean: str | None = None
    against: Sequence[Against] = ()
    resolve: Resolve | None = None
    allow: Sequence[str] = ()
    strict: bool = False
    review: Callable[[Review], None] | None = None
    backing: str | Path | None = None
    replace: bool = False
    levels: dict[Class, int] = field(default_factory=lambda: dict(LEVELS))
    jobs: int = field(default_factory=lambda: os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class PackReport:
    """What was written.

    identity: the digest of the config, "sha256:…". stored_bytes: of the whole layout;
    bundles: {title: bytes}. carried_bytes: of bundles that are the base's. unused_bytes,
    zero_bytes: of the disk. unlisted_bytes: of shared contents that no mirror lists. signers:
    fingerprints. removed: what was taken out of the guest before packing, a line each. privacy:
    what of the contents looks private. gain: by deltas.
    """

    output: Path
    identity: str
    config: Config
    stored_bytes: int
    bundles: dict[str, int]
    carried_bytes: int
    unused_bytes: int
    zero_bytes: int
    unlisted_bytes: int
    signers: tuple[str, ...]
    removed: tuple[str, ...]
    warnings: tuple[str, ...]
    privacy: Review
    gain: Gain

    @property
    def nobody_named(self) -> bool:
        """Return whether contents are left out that no source is named to have."""
        carried = any(title.startswith("shared") for title in self.bundles)
        left_out = self.config.totals.shared.count > 0 and not carried
        lacking = not self.config.sources or (
            self.config.sources == (APT,) and self.unlisted_bytes > 0
        )
        return left_out and lacking


def pack(
    image: str | Path,
    output: str | Path,
    options: PackOptions,
    keys: Sequence[PrivateKey],
    progress: Progress | None = None,
) -> PackReport:
    """Pack a disk image.

    Raises UsageError for a name, version or source that cannot be, InUseError when something uses
    the image or it changes meanwhile, InputError when it cannot be read, PolicyError for what
    looks private if `strict`, Error when the output cannot be written. Nothing appears under the
    final name before it is complete.
    """
    progress = progress or Silent()
    configs.check_author(
        options.name, options.version, (*options.sources, APT), expires=options.expires
    )
    check_carried(options.rotations, [key.public for key in keys])
    with (
        create_layout(output, replace=options.replace) as writer,
        open_cleaned(
            image,
            options.clean,
            backing=options.backing,
            drop_snapshots=options.drop_snapshots,
            progress=progress,
        ) as (disk, removed),
    ):
        prepared = prepare(
            disk,
            keep_free=options.keep_free,
            drop_snapshots=options.drop_snapshots,
            incomplete=options.incomplete,
            against=options.against,
            resolve=options.resolve,
            earlier=_earlier(disk, options, progress),
            jobs=options.jobs,
            progress=progress,
        )
        wanted = _wanted(prepared.map.contents, options)
        privacy = _review(prepared, wanted, options)
        if options.touched is not None:
            prepared, parent = follow_touched(
                prepared, options.touched, jobs=options.jobs, progress=progress
            )
            wanted = wanted[parent] | (prepared.map.contents.classes != Class.SHARED)
        written = _write_contents(writer, prepared, wanted, options, progress)
        disk.check_unchanged()
        config, manifest = _write_tables(writer, prepared, written, options, keys)
        writer.finish([Entry(manifest, config.ref_name)])
    return PackReport(
        Path(output),
        manifest.config.digest,
        config,
        sum(blob.size for blob in manifest.blobs()),
        {title: blob.size for title, blob in written.bundles.items()},
        written.carried_bytes,
        prepared.map.bytes_of_kind(Kind.UNUSED),
        prepared.map.bytes_of_kind(Kind.ZERO),
        unlisted_bytes(prepared),
        tuple(key.public.fingerprint for key in keys),
        removed,
        tuple(config.warnings),
        privacy,
        written.gain,
    )


@dataclass(frozen=True, slots=True)
class _Written:
    """The contents of a pack, as they lie in the layout. bundles: by title, those of the base
    first. deltas: (table, patches).
    """

    bundles: dict[str, Blob]
    index: Index
    carried_bytes: int
    deltas: tuple[Blob, Blob] | None
    gain: Gain


def _earlier(disk: Disk, options: PackOptions, progress: Progress) -> Earlier | None:
    """Return what is known of a disk that stands on the base."""
    base = options.base
    if not options.on_base or base is None:
        return None
    boot = Boot.BY_RULE if isinstance(base.config.boots, UnsetType) else Boot.PROVEN
    if options.touched is not None:
        boot = Boot.FORGOTTEN
    changed = empty_ranges()
    if isinstance(disk.source, FlatDisk):
        changed = changed_ranges(disk.source, progress)
    return Earlier(base.map, base.hints, changed, boot)


def _wanted(contents: Contents, options: PackOptions) -> NDArray[np.bool_]:
    """Return which contents the pack is to carry: bool[n]."""
    wanted = np.asarray(contents.classes != Class.SHARED)
    base = options.base
    if options.thin:
        return wanted
    if base is None or not options.on_base or len(base.index.content) == len(base.map.contents):
        return np.ones(len(contents), dtype=bool)
    held = digest_keys(base.map.contents.digest[base.index.content])
    return np.asarray(wanted | np.isin(digest_keys(contents.digest), held))


def _review(prepared: Prepared, wanted: NDArray[np.bool_], options: PackOptions) -> Review:
    """Tell the author what looks private, before anything is packed."""
    published = find_published(prepared, wanted, keep_free=options.keep_free)
    privacy = sift(published, options.allow)
    if options.strict:
        demand_nothing_private(privacy)
    if options.review:
        options.review(privacy)
    return privacy


def _write_contents(
    writer: LayoutWriter,
    prepared: Prepared,
    wanted: NDArray[np.bool_],
    options: PackOptions,
    progress: Progress,
) -> _Written:
    """Write the wanted contents: the base's bundles, new ones, patches."""
    contents = prepared.map.contents
    # What is no longer boot must not go on in the boot bundle, which all copies carry.
    anew = () if options.touched is None else (Class.BOOT,)
    carried = _carry_on(options.base, writer, prepared, wanted, anew, progress)
    new = wanted.copy()
    new[carried.index.content] = False
    with progress.stage("compressing", int(contents.size[new].sum())) as advance:
        titled, index = write_bundles(
            writer,
            contents,
            prepared.hints,
            prepared.read_block,
            wanted=new,
            taken=tuple(carried.bundles),
            levels=options.levels,
            jobs=options.jobs,
            progress=advance,
        )
    index = carried.index.joined(index)
    carried_bytes = sum(blob.size for blob in carried.bundles.values())
    deltas, gain = None, Gain(0, 0, 0)
    if options.delta and options.base is not None:
        deltas, gain = _write_deltas(options.base, writer, prepared, index, new, progress)
    return _Written({**carried.bundles, **titled}, index, carried_bytes, deltas, gain)


def _carry_on(
    base: OpenedPack | None,
    writer: LayoutWriter,
    prepared: Prepared,
    wanted: NDArray[np.bool_],
    anew: Collection[Class],
    progress: Progress,
) -> Carried:
    """Copy what is carried on of a base; nothing without one."""
    if base is None:
        return Carried({}, no_frames())
    asked = Wanted(prepared.map.contents, np.flatnonzero(wanted), prepared.hints)
    carried = carry_on(base, asked, progress, anew=anew)
    blobs = list(dict.fromkeys(carried.bundles.values()))
    total = sum(blob.size for blob in blobs)
    writer.check_room(blobs)
    with progress.stage("copying from the base", total) as advance:
        for blob in blobs:
            writer.copy(base.layout, blob, advance)
    return carried


def _write_deltas(
    base: OpenedPack,
    writer: LayoutWriter,
    prepared: Prepared,
    index: Index,
    new: NDArray[np.bool_],
    progress: Progress,
) -> tuple[tuple[Blob, Blob] | None, Gain]:
    """Write deltas against the base, if there is one that gains anything."""
    with writer.stream() as patches:
        deltas, gain = write_deltas(patches, base, prepared, index, new, progress)
        if gain.contents == 0:
            return None, gain
        table = writer.add(compress(encode_deltas(deltas), TABLE_LEVEL))
        return (table, patches.finish()), gain


def _write_tables(
    writer: LayoutWriter,
    prepared: Prepared,
    written: _Written,
    options: PackOptions,
    keys: Sequence[PrivateKey],
) -> tuple[Config, Manifest]:
    """Write map, hints, frame index and config, and sign."""
    map_bytes, hint_bytes = encode_map(prepared.map), encode_hints(prepared.hints)
    config = describe(
        prepared,
        options.name,
        options.version,
        options.sources,
        map_bytes,
        hint_bytes,
        expires=options.expires,
        boots=options.boots,
    )
    blob = writer.add(configs.encode(config))
    manifest = manifests.build(
        config=blob,
        maps=[writer.add(compress(map_bytes, TABLE_LEVEL))],
        hints=writer.add(compress(hint_bytes, TABLE_LEVEL)),
        frame_index=writer.add(compress(encode_index(written.index), TABLE_LEVEL)),
        signature=writer.add(sign(blob.digest, keys)) if keys else None,
        rotations=[writer.add(data) for data in options.rotations],
        deltas=written.deltas,
        bundles=written.bundles,
    )
    return config, manifest
