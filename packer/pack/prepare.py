"""From an image to its map: survey, judge, cut, hash, classify. Nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from formats.ranges import Ranges, empty_ranges, union
from packer.artifact.contents import Class
from packer.artifact.hints import DPKG, Hints, Package
from packer.artifact.map import Map
from packer.errors import InputError, InUseError
from packer.guest.judge import judge
from packer.guest.model import Judgement
from packer.pack.against import Against
from packer.pack.cut import Cut, cut
from packer.pack.digest import FragmentReader, digest_fragments
from packer.pack.draw import classify, draw, note_hints
from packer.pack.earlier import Boot, Earlier, find_known
from packer.pack.recut import name_slices, redraw, slice_contents, unnamed_bytes
from packer.progress import Progress
from packer.survey.disk import Disk
from packer.survey.examine import ChildExaminer
from packer.survey.model import Survey
from packer.survey.survey import survey

Resolve = Callable[[Sequence[Package]], Sequence[Package]]
"""Packages as the guest's records name them -> the same, with where the mirror keeps them."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A disk that is ready to be packed, with every decision and its reason.

    fragment, start: int64[n], for each content the fragment of the cut that is read for it, and
    from which byte on. unshipped:
    bool[n], contents of the boot set and those that no package of the guest is known to ship,
    whoever else may have them.
    """

    survey: Survey
    judgement: Judgement
    cut: Cut
    map: Map
    hints: Hints
    fragment: NDArray[np.int64]
    start: NDArray[np.int64]
    unshipped: NDArray[np.bool_]
    reader: FragmentReader

    def read(self, row: int, start: int, end: int) -> bytes:
        """Return bytes of a content, read from the image."""
        first = int(self.start[row])
        return self.reader.read(int(self.fragment[row]), first + start, first + end)

    def read_block(self, row: int, block: int) -> bytes:
        """Return one 1 MiB block of a content, read from the image."""
        return self.read(row, *self.map.contents.block_bounds(row, block))


def prepare(
    disk: Disk,
    *,
    keep_free: bool = False,
    drop_snapshots: bool = False,
    incomplete: bool = False,
    against: Sequence[Against] = (),
    resolve: Resolve | None = None,
    earlier: Earlier | None = None,
    jobs: int,
    progress: Progress,
) -> Prepared:
    """Return the prepared disk.

    drop_snapshots: let volume shadow copies go. incomplete: also of a guest that will not start.
    earlier: the pack that the disk stands on; what was not written since keeps its class.
    Raises InUseError for a guest that is hibernated, InputError for a disk that nobody can read,
    or whose guest will not start.
    """
    if disk.size == 0:
        raise InputError(f"{disk.path}: expected a disk, found an empty file")
    surveyed = survey(disk)
    examiner = ChildExaminer(disk, surveyed)
    judgement = judge(surveyed, disk.source, examiner, drop_snapshots=drop_snapshots)
    if judgement.refusals:
        raise InUseError(f"{disk.path}: {judgement.refusals[0]}")
    if judgement.errors and not incomplete:
        raise InputError(
            f"{disk.path}: {judgement.errors[0]}",
            hint="start the guest and let it repair itself; --incomplete packs it as it is",
        )
    if keep_free:
        judgement = replace(judgement, dropped=())
    if resolve is not None and any(one.manager == DPKG for one in judgement.packages):
        with progress.stage("asking the mirrors", 0):
            judgement = replace(judgement, packages=tuple(resolve(judgement.packages)))
    dropped = union(empty_ranges(), *(one.ranges for one in judgement.dropped))
    pieces = cut(surveyed, disk.source, dropped, keep_free=keep_free, progress=progress)
    known = None
    if earlier is not None:
        pieces, known = find_known(pieces, earlier)
    reader = FragmentReader(pieces, disk.source)
    unread = pieces.size if known is None else pieces.size[known.content < 0]
    with progress.stage("hashing", int(unread.sum())) as advance:
        digests = digest_fragments(
            pieces,
            reader,
            judgement.expected,
            known=known,
            with_programs=judgement.guest.family == "windows",
            jobs=jobs,
            progress=advance,
        )
    by_rule = judgement
    if earlier is not None and earlier.boot is Boot.FORGOTTEN:
        by_rule = replace(judgement, boot=np.full_like(judgement.boot, -1))
    classes = classify(surveyed, by_rule, pieces, digests.owned, keep_free=keep_free)
    classes = classes if known is None else known.keep_classes(classes)
    drawing = draw(surveyed.size, pieces, digests, classes)
    hints = note_hints(surveyed, judgement, pieces, drawing, digests.programs)
    unshipped = drawing.map.contents.classes != Class.SHARED
    return Prepared(
        surveyed,
        judgement,
        pieces,
        _shared_with(drawing.map, hints, against),
        hints,
        drawing.fragment,
        np.zeros_like(drawing.fragment),
        unshipped,
        reader,
    )


def _shared_with(disk_map: Map, hints: Hints, against: Sequence[Against]) -> Map:
    """Return the map with private contents that others are known to hold as shared ones."""
    for held_by in against:
        contents = disk_map.contents
        rows = np.flatnonzero(contents.classes == Class.PRIVATE)
        shared = held_by(contents, hints, rows)
        relabelled = contents.classes.copy()
        relabelled[shared] = Class.SHARED
        disk_map = replace(disk_map, contents=replace(contents, classes=relabelled))
    return disk_map


def follow_touched(
    prepared: Prepared, touched: Ranges, *, jobs: int, progress: Progress
) -> tuple[Prepared, NDArray[np.int64]]:
    """Return the disk prepared so that the boot class is what was touched, and where it is from.

    touched: ranges of the disk, bytes. With it int64[n]: for each content the one of `prepared`
    that it was cut out of.
    """
    contents = prepared.map.contents
    slices = slice_contents(prepared.map, touched)
    with progress.stage("hashing what is cut", unnamed_bytes(slices)) as advance:
        names = name_slices(slices, contents, prepared.read, jobs=jobs, progress=advance)
    redrawn = redraw(prepared.map, prepared.hints, slices, names, contents.classes)
    parent = redrawn.content
    return (
        replace(
            prepared,
            map=redrawn.map,
            hints=redrawn.hints,
            fragment=prepared.fragment[parent],
            start=prepared.start[parent] + redrawn.start,
            unshipped=prepared.unshipped[parent],
        ),
        parent,
    )
