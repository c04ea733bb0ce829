"""From an image to its map: survey, judge, cut, hash, classify. Nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from formats.ranges import empty_ranges, union
from packer.artifact.contents import BLOCK_BYTES, Class
from packer.artifact.hints import DPKG, Hints, Package
from packer.artifact.map import Map
from packer.errors import InputError, InUseError
from packer.guest.judge import judge
from packer.guest.model import Judgement
from packer.pack.against import Against
from packer.pack.cut import Cut, cut
from packer.pack.digest import FragmentReader, digest_fragments
from packer.pack.draw import classify, draw, note_hints
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

    fragment: int64[n], for each content the fragment of the cut that is read for it. unshipped:
    bool[n], contents of the boot set and those that no package of the guest is known to ship,
    whoever else may have them.
    """

    survey: Survey
    judgement: Judgement
    cut: Cut
    map: Map
    hints: Hints
    fragment: NDArray[np.int64]
    unshipped: NDArray[np.bool_]
    reader: FragmentReader

    def read_block(self, row: int, block: int) -> bytes:
        """Return one 1 MiB block of a content, read from the image."""
        start = block * BLOCK_BYTES
        end = min(start + BLOCK_BYTES, int(self.map.contents.size[row]))
        return self.reader.read(int(self.fragment[row]), start, end)


def prepare(
    disk: Disk,
    *,
    keep_free: bool = False,
    drop_snapshots: bool = False,
    incomplete: bool = False,
    against: Sequence[Against] = (),
    resolve: Resolve | None = None,
    jobs: int,
    progress: Progress,
) -> Prepared:
    """Return the prepared disk.

    drop_snapshots: let volume shadow copies go. incomplete: also of a guest that will not start.
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
    reader = FragmentReader(pieces, disk.source)
    with progress.stage("hashing", int(pieces.size.sum())) as advance:
        digests = digest_fragments(
            pieces,
            reader,
            judgement.expected,
            with_programs=judgement.guest.family == "windows",
            jobs=jobs,
            progress=advance,
        )
    classes = classify(surveyed, judgement, pieces, digests.owned, keep_free=keep_free)
    drawing = draw(surveyed.size, pieces, digests, classes)
    hints = note_hints(surveyed, judgement, pieces, drawing, digests.programs)
    disk_map = drawing.map
    unshipped = disk_map.contents.classes != Class.SHARED
    for held_by in against:
        contents = disk_map.contents
        rows = np.flatnonzero(contents.classes == Class.PRIVATE)
        shared = held_by(contents, hints, rows)
        relabelled = contents.classes.copy()
        relabelled[shared] = Class.SHARED
        disk_map = replace(disk_map, contents=replace(contents, classes=relabelled))
    return Prepared(
        surveyed, judgement, pieces, disk_map, hints, drawing.fragment, unshipped, reader
    )
