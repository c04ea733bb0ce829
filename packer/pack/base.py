"""A pack that carries the bundles of its predecessor as they are, plus what is new.

Who has the predecessor, a registry or a mirror, then needs only the new bundles. A content is
taken from a bundle that travels at least as often as the content's class asks for: a shared one
may lie in the private bundle, but not the other way round. Where too much of what a class has in
old bundles is dead, that class is packed anew. A bundle in which something lies that is no frame
stays behind.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from packer.artifact.contents import Class, Contents
from packer.artifact.index import Index, frame_counts
from packer.artifact.manifest import Blob, class_of
from packer.artifact.opened import OpenedPack
from packer.progress import Progress
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
    lie in them.
    """

    bundles: dict[str, Blob]
    index: Index


def carry_on(
    base: OpenedPack, wanted: Wanted, progress: Progress, *, anew: Collection[Class] = ()
) -> Carried:
    """Return what of `base` serves the contents of its successor.

    wanted: the contents that the new pack is to carry. anew: classes whose bundles stay behind,
    besides those that are mostly dead. Every one that is taken was unpacked
    from its frame and hashed: a frame index is signed by nobody. Raises InputError for a base that
    cannot be read.
    """
    source = PackSource(f"pack:{base.layout.location}", base.layout, base.map.contents, base.index)
    contents, classes = wanted.contents, _classes(base)
    index = base.index.only(_whole_bundles(base), base.map.contents)
    index = index.renumbered(base.map.contents, contents)
    near = _travel_often_enough(index, contents, classes)
    index = index.of_contents(np.intersect1d(near, source.find(wanted, deep=False).rows))
    behind = {*anew, *_mostly_dead(index, contents, classes)}
    index = index.only([one for one in index.bundles if classes[one] not in behind], contents)
    total = int(contents.size[index.content].sum())
    with progress.stage("comparing with the base", total) as advance:
        index = index.of_contents(prove(source, contents, index.content, progress=advance))
    used = np.unique(index.bundle[index.used_frames(contents)])
    index = index.only([index.bundles[row] for row in used.tolist()], contents)
    bundles = {
        title: Blob(layer.digest, layer.size)
        for title, layer in base.manifest.bundles().items()
        if layer.digest in index.bundles
    }
    return Carried(bundles, index)


def _whole_bundles(base: OpenedPack) -> list[str]:
    """Return the bundles that are frames from end to end: of anything else nobody knows what it is,
    and what it weighs would count as dead nowhere.
    """
    size = {layer.digest: layer.size for layer in base.manifest.bundles().values()}
    held = zip(base.index.bundles, base.index.bundle_bytes(), strict=True)
    return [digest for digest, frame_bytes in held if frame_bytes == size[digest]]


def _classes(base: OpenedPack) -> dict[str, Class]:
    """Return with which class each bundle travels; with that which travels least if it has two."""
    found: dict[str, Class] = {}
    for title, layer in base.manifest.bundles().items():
        one = class_of(title)
        found[layer.digest] = max(one, found.get(layer.digest, one))
    return found


def _of_frames(index: Index, classes: dict[str, Class]) -> NDArray[np.int64]:
    """Return with which class each frame travels: int64[f]."""
    return np.array([classes[one] for one in index.bundles], dtype=np.int64)[index.bundle]


def _travel_often_enough(
    index: Index, contents: Contents, classes: dict[str, Class]
) -> NDArray[np.int64]:
    """Return the contents all of whose frames are in every copy that must have them."""
    ends = index.first_frame + frame_counts(contents.size[index.content])
    spans = np.stack([index.first_frame, ends], axis=1).ravel()
    of_frames = np.append(_of_frames(index, classes), Class.BOOT)
    seldom = np.maximum.reduceat(of_frames, spans)[::2]
    return index.content[seldom <= contents.classes[index.content]]


def _mostly_dead(index: Index, contents: Contents, classes: dict[str, Class]) -> list[Class]:
    """Return the classes of whose old bundles too much is used by nothing any more."""
    dead, of_frames = _dead_bytes(index, contents), _of_frames(index, classes)
    found = []
    for one in Class:
        dead_bytes = int(dead[of_frames == one].sum())
        most = max(DEAD_BYTES, MOST_DEAD * int(index.stored_bytes[of_frames == one].sum()))
        if dead_bytes > most:
            found.append(one)
    return found


def _dead_bytes(index: Index, contents: Contents) -> NDArray[np.int64]:
    """Return about how much of each stored frame is of contents that nobody uses: int64[f].

    By what they take unpacked: a frame that holds one live file among hundreds is mostly dead.
    """
    size = contents.size[index.content]
    single = frame_counts(size) == 1
    live = np.zeros(len(index.bundle), dtype=np.int64)
    np.add.at(live, index.first_frame[single], size[single])
    large = index.of_contents(index.content[~single]).used_frames(contents)
    live[large] = index.frame_bytes[large]
    live = np.minimum(live, index.frame_bytes)
    return index.stored_bytes - index.stored_bytes * live // index.frame_bytes
