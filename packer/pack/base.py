"""A pack that carries the bundles of its predecessor as they are, plus what is new.

Who has the predecessor, a registry or a mirror, then needs only the new bundles. A content is
taken from a bundle that travels at least as often as the content's class asks for: a shared one
may lie in the private bundle, but not the other way round. Where too much of what a class has in
old bundles is dead, that class is packed anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import Class, Contents
from packer.artifact.index import Index, frame_counts
from packer.artifact.manifest import Blob
from packer.artifact.opened import OpenedPack
from packer.sources.against import prove
from packer.sources.base import Wanted
from packer.sources.pack import PackSource

MOST_DEAD = 0.3
"""A class is packed anew when more than this part of its old bundles is dead, …"""

DEAD_BYTES = 8 << 20
"""… unless it is less than this, which costs nobody anything."""


@dataclass(frozen=True, slots=True)
class Carried:
    """What of a predecessor goes on. bundles: {title: blob}. index: where the new pack's contents
    lie in them. repacked: names of the classes that are packed anew.
    """

    bundles: dict[str, Blob]
    index: Index
    repacked: tuple[str, ...]


def carry_on(
    base: OpenedPack,
    wanted: Wanted,
    progress: Callable[[int], None],
) -> Carried:
    """Return what of `base` serves the contents of its successor.

    wanted: the contents that the new pack is to carry. Every one that is taken was unpacked
    from its frame and hashed: a frame index is signed by nobody. progress: called with the bytes
    proven since the last call. Raises InputError for a base that cannot be read.
    """
    source = PackSource(f"pack:{base.layout.location}", base.layout, base.map.contents, base.index)
    contents = wanted.contents
    offered = source.find(wanted, deep=False).rows
    index = base.index.renumbered(base.map.contents, contents)
    near = _travels_often_enough(base, index, contents)
    rows = prove(source, contents, np.intersect1d(offered, near), progress=progress)
    index = index.of_contents(rows)
    classes = {title: _class_of(title) for title in base.manifest.bundles()}
    repacked = [one for one in Class if _is_mostly_dead(base, index, contents, one)]
    kept = {
        title: layer
        for title, layer in base.manifest.bundles().items()
        if classes[title] not in repacked
    }
    index = index.only([layer.digest for layer in kept.values()], contents)
    used = {index.bundles[row] for row in np.unique(index.bundle[index.used_frames(contents)])}
    index = index.only(sorted(used), contents)
    return Carried(
        {
            title: Blob(layer.digest, layer.size)
            for title, layer in kept.items()
            if layer.digest in used
        },
        index,
        tuple(one.name.lower() for one in repacked),
    )


def _class_of(title: str) -> Class:
    return Class[title.partition("-")[0].upper()]


def _travels_often_enough(base: OpenedPack, index: Index, contents: Contents) -> NDArray[np.int64]:
    """Return the rows of contents whose bundle is in every copy that must have them."""
    by_digest = {layer.digest: _class_of(title) for title, layer in base.manifest.bundles().items()}
    of_bundle = np.array([by_digest[digest] for digest in index.bundles], dtype=np.uint8)
    last = index.first_frame + frame_counts(contents.size[index.content]) - 1
    # A content goes over several bundles only if they are of one class.
    rows = index.content[of_bundle[index.bundle[last]] <= contents.classes[index.content]]
    return np.asarray(rows, dtype=np.int64)


def _is_mostly_dead(base: OpenedPack, index: Index, contents: Contents, one: Class) -> bool:
    digests = [
        layer.digest for title, layer in base.manifest.bundles().items() if _class_of(title) == one
    ]
    ours = np.isin(index.bundle, [index.bundles.index(digest) for digest in digests])
    used = index.used_frames(contents)
    total = int(index.stored_bytes[ours].sum())
    dead = int(index.stored_bytes[ours & ~used].sum())
    return dead > DEAD_BYTES and dead > MOST_DEAD * total
