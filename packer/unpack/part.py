"""What of a pack's disk is brought together: all of it, or only what a guest needs to start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from packer.artifact.contents import Class
from packer.artifact.hints import Hints
from packer.artifact.map import Kind, Map
from packer.artifact.opened import OpenedPack


@dataclass(frozen=True, slots=True)
class Part:
    """A map, of a pack's disk or of a part of it, with the hints for its own contents.

    What is left out of a part is unused in it.
    """

    map: Map
    hints: Callable[[], Hints]


def whole(pack: OpenedPack) -> Part:
    """Return all of a pack's disk."""
    return Part(pack.map, lambda: pack.hints)


def boot_only(pack: OpenedPack) -> Part:
    """Return the disk with nothing but the boot set, each byte of it at its own address."""
    full = pack.map
    rows = np.flatnonzero(full.contents.classes == Class.BOOT)
    number = np.full(len(full.contents), -1, dtype=np.int64)
    number[rows] = np.arange(len(rows))
    holds = full.kind == Kind.CONTENT
    content = np.full(len(full.kind), -1, dtype=np.int64)
    content[holds] = number[full.content[holds]]
    left_out = holds & (content < 0)
    kind = np.where(left_out, np.uint8(Kind.UNUSED), full.kind)
    offset = np.where(content < 0, 0, full.offset)
    part = Map(full.size, full.end, kind, content, offset, full.contents.only(rows))
    return Part(part, lambda: pack.hints.only(rows))
