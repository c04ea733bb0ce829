"""What is known of a disk before it is read: what nobody has written since it was packed.

A VM's disk is its base, a pack that is served, and an overlay. Where the overlay holds nothing,
the base's map says what lies there: such contents need neither be fetched nor hashed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from formats.container.flat import FlatDisk
from formats.ranges import (
    Ranges,
    bytes_inside,
    clip,
    complement,
    from_bits,
    intersect,
    meeting,
    total,
    union,
)
from packer.artifact.contents import BLOCK_BYTES, Class, Contents
from packer.artifact.hints import Hints, Package
from packer.artifact.map import Kind, Map
from packer.artifact.programs import Programs
from packer.columns import Column
from packer.pack.cut import NO_STREAM, Cut
from packer.progress import Progress

UNIT_BYTES = 4096


def changed_ranges(overlay: FlatDisk, progress: Progress) -> Ranges:
    """Return where an overlay differs from what it lies on, in blocks of 4 KiB.

    It holds whole clusters, of which the guest may have written one sector.
    """
    held = complement(overlay.backed, 0, overlay.size)
    below = overlay.backing
    if below is None:
        return held
    found = [clip(held, below.size, overlay.size)]
    with progress.stage("comparing with the base", total(held)) as advance:
        for start, end in clip(held, 0, below.size).tolist():
            for low in range(start, end, BLOCK_BYTES):
                length = min(BLOCK_BYTES, end - low)
                now, before = overlay.pread(low, length), below.pread(low, length)
                if now != before:
                    found.append(from_bits(_differing(now, before), UNIT_BYTES, low))
                advance(length)
    return intersect(union(*found), held)


def _differing(left: bytes, right: bytes) -> NDArray[np.bool_]:
    """Return for each block of two strings of one length whether it differs."""
    filled = -len(left) % UNIT_BYTES
    blocks = (np.frombuffer(one + bytes(filled), dtype=np.uint64) for one in (left, right))
    first, second = (one.reshape(-1, UNIT_BYTES // 8) for one in blocks)
    return np.asarray((first != second).any(axis=1))


class Boot(Enum):
    """What becomes of a pack's boot class when its disk is packed again."""

    BY_RULE = "by rule"
    """It stays, and what rules say of the disk as it is now is added."""
    PROVEN = "proven"
    """It was found by booting: it stays, and what changed goes by rule."""
    FORGOTTEN = "forgotten"
    """It is found anew: nothing is in it, and files that were go by the rules for the others."""


@dataclass(frozen=True, slots=True)
class Earlier:
    """A pack that a disk stands on. changed: ranges of the disk that may differ from it, bytes."""

    map: Map
    hints: Hints
    changed: Ranges
    boot: Boot = Boot.BY_RULE


@dataclass(frozen=True, slots=True)
class Known:
    """content: int64[f], for each fragment of a cut the content that it is known to be, or -1.

    contents, programs: of the pack that is known. boot: what becomes of its boot class.
    """

    content: Column
    contents: Contents
    programs: Programs
    boot: Boot

    def keep_classes(self, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the classes (uint8[f]) with those that known fragments had before.

        classes: by rule, when nothing is known.
        """
        kept = self.content >= 0
        before = np.append(self.contents.classes, Class.PRIVATE)[self.content]
        if self.boot is Boot.FORGOTTEN:
            classes = np.where(classes == Class.BOOT, Class.PRIVATE, classes)
            kept &= before != Class.BOOT
        elif self.boot is Boot.BY_RULE:
            kept &= classes != Class.BOOT
        return np.where(kept, before, classes).astype(np.uint8)


def keeps_free(disk_map: Map) -> bool:
    """Return whether a pack was made with `--keep-free`, or might as well have been."""
    return not np.isin(disk_map.kind, (Kind.UNUSED, Kind.DROPPED)).any()


def recalled(
    known: Sequence[Package], ask: Callable[[Sequence[Package]], Sequence[Package]] | None = None
) -> Callable[[Sequence[Package]], Sequence[Package]]:
    """Return what finds where mirrors keep packages: as an earlier pack has it.

    ask: who is asked about the packages that it does not have.
    """
    by_key = {_key_of(one): one for one in known if one.filename}

    def resolve(packages: Sequence[Package]) -> Sequence[Package]:
        found = [by_key.get(_key_of(one), one) for one in packages]
        new = [row for row, one in enumerate(found) if not one.filename]
        if ask is not None and new:
            for row, one in zip(new, ask([found[row] for row in new]), strict=True):
                found[row] = one
        return found

    return resolve


def _key_of(package: Package) -> tuple[str, str, str, str]:
    return package.manager, package.name, package.version, package.architecture


def find_known(cut: Cut, earlier: Earlier) -> tuple[Cut, Known]:
    """Return the cut with what is known of its fragments.

    Where the earlier pack has several contents for what is one fragment here (a profile has cut
    its files), the fragment is cut alike; when the boot class is forgotten it is not known instead.
    Then neither are files of the boot class: whether others have them was never asked.
    """
    content, part = _parts(cut, earlier)
    if earlier.boot is Boot.FORGOTTEN:
        alone = np.bincount(part.fragment, minlength=len(cut.size)) == 1
        boot = np.append(earlier.map.contents.classes == Class.BOOT, np.zeros(1, dtype=bool))
        asked = boot[content] & (cut.stream[part.fragment] != NO_STREAM)
        content = np.where(alone[part.fragment] & ~asked, content, -1)
    known = np.ones(len(cut.size), dtype=bool)
    np.logical_and.at(known, part.fragment, content >= 0)
    rows = known[part.fragment]
    pieces, number = _cut_at(cut, part.fragment[rows], part.start[rows])
    found = np.full(len(pieces.size), -1, dtype=np.int64)
    found[number] = content[rows]
    return pieces, Known(found, earlier.map.contents, earlier.hints.programs, earlier.boot)


@dataclass(frozen=True, slots=True)
class _Parts:
    """Where in fragments contents of another map begin, in the order of fragment and start."""

    fragment: Column
    start: Column


def _parts(cut: Cut, earlier: Earlier) -> tuple[Column, _Parts]:
    """Return (int64[p]: the content that each part wholly is, or -1; the parts)."""
    disk = earlier.map
    end = cut.disk_offset + cut.length
    extent, row = meeting(cut.disk_offset, end, np.stack([disk.start, disk.end], axis=1))
    low = np.maximum(cut.disk_offset[extent], disk.start[row])
    length = np.minimum(end[extent], disk.end[row]) - low
    fragment, content = cut.fragment[extent], disk.content[row]
    position = cut.offset[extent] + low - cut.disk_offset[extent]
    inside = disk.offset[row] + low - disk.start[row]
    # Pieces of one content that go on where the one before ended are one part.
    key = np.stack([fragment, content, position - inside], axis=1)
    begins = np.ones(len(key), dtype=bool)
    begins[1:] = (key[1:] != key[:-1]).any(axis=1)
    first = np.flatnonzero(begins)
    part = _Parts(fragment[first], position[first])
    if len(first) == 0:
        return part.start, part
    held = content[first]
    size = np.append(disk.contents.size, 0)[held]
    whole = (held >= 0) & (inside[first] == 0) & (np.add.reduceat(length, first) == size)
    written = bytes_inside(earlier.changed, low, low + length)
    whole &= np.add.reduceat(written, first) == 0
    return np.where(whole, held, -1), part


def _cut_at(cut: Cut, fragment: Column, position: Column) -> tuple[Cut, Column]:
    """Return (the cut with fragments cut at these bytes of them, the fragment that begins there).

    fragment, position: int64[p], distinct; so are the numbers that are returned.
    """
    origin = np.cumsum(cut.size) - cut.size
    places = origin[fragment] + position
    begin = np.union1d(origin, places)
    until = np.append(begin, cut.size.sum())[1:]
    owner = np.searchsorted(origin, begin, side="right") - 1
    low = origin[cut.fragment] + cut.offset
    high = low + cut.length
    extent, piece = meeting(low, high, np.stack([begin, until], axis=1))
    start = np.maximum(low[extent], begin[piece])
    disk_offset = cut.disk_offset[extent] + start - low[extent]

    # Fragments are numbered by where on the disk they first appear.
    lowest = np.full(len(begin), np.iinfo(np.int64).max)
    np.minimum.at(lowest, piece, disk_offset)
    order = np.argsort(lowest, kind="stable")
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order))
    offset = start - begin[piece]
    rows = np.lexsort((offset, number[piece]))
    pieces = Cut(
        cut.unused,
        cut.dropped,
        cut.zero,
        cut.stream[owner[order]],
        (cut.file_offset[owner] + begin - origin[owner])[order],
        (until - begin)[order],
        number[piece][rows],
        offset[rows],
        disk_offset[rows],
        (np.minimum(high[extent], until[piece]) - start)[rows],
    )
    return pieces, number[np.searchsorted(begin, places)]
