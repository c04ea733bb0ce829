"""verify: prove a disk against a pack."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from formats.ranges import Ranges, as_ranges, intersect, union
from formats.source import Source, Window
from packer.artifact.contents import BLOCK_BYTES
from packer.artifact.map import Kind, Map
from packer.errors import MismatchError
from packer.progress import Progress, Silent
from packer.survey.disk import open_disk
from packer.unpack.places import Places

CHUNK_ROWS = 256


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What a disk was found to be. All ranges in bytes of the disk.

    proven_bytes: of contents that are right. wrong: ranges of the disk that are not what the pack
    says. ignored: unused and dropped ranges, whose bytes the pack says nothing about (empty when
    the comparison was exact).
    """

    disk_bytes: int
    proven_bytes: int
    zero_bytes: int
    wrong: Ranges
    unused: Ranges
    dropped: Ranges

    @property
    def right(self) -> bool:
        """Whether the disk is what the pack says."""
        return len(self.wrong) == 0


def verify(
    disk: str | Path,
    disk_map: Map,
    *,
    exact: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Compare a disk, in any container, with a pack's map.

    exact: unused and dropped ranges must read as zeros too, as `unpack` leaves them; else they
    are ignored. Raises MismatchError when the size differs, but for a block device that is larger,
    whose rest is ignored; wrong bytes are in the report.
    """
    with open_disk(disk, allow_in_use=True) as opened:
        source: Source = opened.source
        if source.size > disk_map.size and Path(disk).is_block_device():
            source = Window(source, 0, disk_map.size)
        if source.size != disk_map.size:
            raise MismatchError(
                f"{disk}: expected a disk of {disk_map.size} bytes, found {source.size}"
            )
        return compare(source, disk_map, exact=exact, jobs=jobs, progress=progress)


def compare(
    source: Source,
    disk_map: Map,
    *,
    exact: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> VerifyReport:
    """Compare an open disk of the map's size with the map; see verify."""
    progress = progress or Silent()
    wrong, proven = _wrong_contents(source, disk_map, jobs or os.cpu_count() or 1, progress)
    empty = [Kind.ZERO, *([Kind.UNUSED, Kind.DROPPED] if exact else [])]
    wrong_zeros = _filled(source, union(*(disk_map.ranges_of_kind(kind) for kind in empty)))
    return VerifyReport(
        disk_map.size,
        proven,
        disk_map.bytes_of_kind(Kind.ZERO),
        union(wrong, wrong_zeros),
        union(disk_map.ranges_of_kind(Kind.UNUSED)),
        union(disk_map.ranges_of_kind(Kind.DROPPED)),
    )


def _wrong_contents(
    source: Source, disk_map: Map, jobs: int, progress: Progress
) -> tuple[Ranges, int]:
    places = Places(disk_map)
    rows = np.argsort(places.first_offset, kind="stable").tolist()

    def check(first: int) -> tuple[list[tuple[int, int]], int]:
        wrong: list[tuple[int, int]] = []
        proven = done = 0
        for row in rows[first : first + CHUNK_ROWS]:
            for block, start, end in places.blocks(row):
                done += end - start
                if places.held(source.pread, row, block, start, end):
                    proven += end - start
                else:
                    wrong.extend(
                        (target, target + high - low)
                        for target, low, high in places.targets(row, start, end)
                    )
        advance(done)
        return wrong, proven

    with (
        progress.stage("verifying", int(disk_map.contents.size.sum())) as advance,
        ThreadPoolExecutor(jobs) as pool,
    ):
        parts = list(pool.map(check, range(0, len(rows), CHUNK_ROWS)))
    found = [one for part, _ in parts for one in part]
    return union(as_ranges(found)), sum(proven for _, proven in parts)


def _filled(source: Source, zero: Ranges) -> Ranges:
    """Return the 1 MiB pieces of `zero` that hold anything but zeros."""
    found: list[tuple[int, int]] = []
    for low, high in intersect(source.data_ranges(0, source.size), zero).tolist():
        for start in range(low, high, BLOCK_BYTES):
            end = min(start + BLOCK_BYTES, high)
            if np.frombuffer(source.pread(start, end - start), dtype=np.uint8).any():
                found.append((start, end))
    return as_ranges(found)
