"""How likely the audience of a medium lacks a content: what `copy --fit` takes first."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from packer.artifact.hints import NO_PACKAGE
from packer.artifact.opened import OpenedPack
from packer.pack.against import Against

LISTED = 0.4
"""A file of a package that the distribution's mirrors list, and have besides. Of a guest's files an
up-to-date host of the same release lacks 18 %, one that is some updates behind 60 %."""

UNLISTED = 0.8
"""A file that no mirror was found to list: only who has the same thing installed has it."""

KERNEL = 0.9
"""A file of a kernel: a host seldom runs the guest's very version."""

_KERNELS = ("linux-image-", "linux-modules-")


def chances(pack: OpenedPack, against: Sequence[Against]) -> NDArray[np.float64]:
    """Return for each content how likely the audience lacks it: float64[n], 0 to 1.

    against: what is known of some hosts of the audience; the part of them that lacks a content is
    its chance. Without any, the chance follows from the package that ships it.
    """
    contents, hints = pack.map.contents, pack.hints
    rows = np.arange(len(contents), dtype=np.int64)
    if against:
        lacking = np.full(len(contents), float(len(against)))
        for held_by in against:
            lacking[held_by(contents, hints, rows)] -= 1
        return lacking / len(against)
    of_package = np.array(
        [
            KERNEL if one.name.startswith(_KERNELS) else LISTED if one.filename else UNLISTED
            for one in hints.packages
        ]
        + [UNLISTED],  # NO_PACKAGE is the last one
        dtype=np.float64,
    )
    assert NO_PACKAGE == -1
    chance = np.ones(len(contents))
    # Who has one of the packages that ship a content has the content.
    np.minimum.at(chance, hints.content, of_package[hints.package])
    chance[np.setdiff1d(rows, hints.content)] = UNLISTED
    return chance
