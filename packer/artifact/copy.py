"""copy: the same signed pack with fewer (or all) of its bundles."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from packer.artifact import manifest as manifests
from packer.artifact.contents import Class
from packer.artifact.index import encode_index
from packer.artifact.layout.base import LayoutWriter
from packer.artifact.layout.open import create_layout
from packer.artifact.manifest import Blob, Descriptor, Entry
from packer.artifact.opened import OpenedPack
from packer.artifact.zstd import compress
from packer.errors import InputError
from packer.progress import Advance, Progress, Silent, ignore

INDEX_LEVEL = 19


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
class CopyReport:
    """What was written and what it leaves out.

    lacking: {class name: (contents, bytes)} that the copy does not carry.
    """

    output: Path
    identity: str
    stored_bytes: int
    lacking: dict[str, tuple[int, int]]


def copy_pack(
    pack: OpenedPack,
    output: str | Path,
    extent: Extent,
    *,
    replace: bool = False,
    progress: Progress | None = None,
) -> CopyReport:
    """Write a copy of a pack; config, map, hints and signature stay the same to the byte.

    Raises InputError when the pack at hand does not hold what the copy shall carry, or holds
    damaged bundles; Error when the output cannot be written.
    """
    progress = progress or Silent()
    source = pack.manifest
    carried = _bundles_of(pack, extent)
    with create_layout(output, replace=replace) as writer:
        stored = sum(layer.size for layer in carried.values())
        with progress.stage("copying", stored) as advance:
            titled: dict[str, Blob] = {}
            for title, layer in carried.items():
                titled[title] = _copy(writer, pack, layer, advance)
        config = _copy(writer, pack, source.config)
        maps = [_copy(writer, pack, layer) for layer in source.maps()]
        hints, signature = source.hints(), source.signature()
        digests = [layer.digest for layer in carried.values()]
        index = pack.index.only(digests, pack.map.contents)
        manifest = manifests.build(
            config=config,
            maps=maps,
            hints=_copy(writer, pack, hints) if hints else None,
            frame_index=writer.add(compress(encode_index(index), INDEX_LEVEL)),
            signature=_copy(writer, pack, signature) if signature else None,
            bundles=titled,
        )
        writer.finish([Entry(manifest, pack.config.ref_name)])
    held = np.zeros(len(pack.map.contents), dtype=bool)
    held[index.content] = True
    return CopyReport(
        Path(output),
        pack.config_digest,
        sum(blob.size for blob in manifest.blobs()),
        _lacking(pack, held),
    )


def _bundles_of(pack: OpenedPack, extent: Extent) -> dict[str, Descriptor]:
    """Return the bundles that a copy carries, after making sure that they are all there."""
    contents = pack.map.contents
    named = {
        title: layer
        for title, layer in pack.manifest.bundles().items()
        if any(title.startswith(one.name.lower()) for one in extent.classes)
    }
    index = pack.index.only([layer.digest for layer in named.values()], contents)
    held = np.zeros(len(contents), dtype=bool)
    held[index.content] = True
    lacking = np.isin(contents.classes, extent.classes) & ~held
    if lacking.any():
        raise InputError(
            f"{pack.layout.location}: holds no complete {extent.value} copy: "
            f"{int(lacking.sum())} contents ({int(contents.size[lacking].sum())} bytes) are absent",
            hint="copy from a fuller copy of this pack",
        )
    return named


def _copy(
    writer: LayoutWriter, pack: OpenedPack, layer: Descriptor, advance: Advance = ignore
) -> Blob:
    return writer.copy(pack.layout, Blob(layer.digest, layer.size), advance)


def _lacking(pack: OpenedPack, held: np.ndarray) -> dict[str, tuple[int, int]]:
    contents = pack.map.contents
    found: dict[str, tuple[int, int]] = {}
    for one in Class:
        rows = (contents.classes == one) & ~held
        if rows.any():
            found[one.name.lower()] = (int(rows.sum()), int(contents.size[rows].sum()))
    return found
