"""compact: what nobody can read any more of a disk image is given back to its file system.

The judgement is that of a pack: free blocks of clean file systems, swap, page and hibernation
files of guests that were shut down. Besides, blocks that hold nothing but zeros. No other byte is
touched, and nothing at all where the judgement cannot be made.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from formats.ranges import Ranges, empty_ranges, intersect, subtract, total, union
from packer.density.discard import BATCH_RANGES, MAX_RANGE_BYTES, discard, refuse_unsound
from packer.errors import InputError, InUseError, UsageError
from packer.guest.droppable import CURE_FOR_DIRTY, CURE_FOR_WINDOWS
from packer.guest.judge import judge
from packer.guest.mounts import volume_name
from packer.pack.cut import cut
from packer.progress import Advance, Progress, Silent
from packer.punch import punch_hole
from packer.sources.memory import stamp_of
from packer.sources.partial import SECTOR_BYTES
from packer.survey.disk import Disk, OverlayError, open_disk
from packer.survey.examine import ChildExaminer
from packer.survey.in_use import (
    kept_from_everybody,
    kept_from_qemu,
    refuse_if_in_use,
    refuse_if_replaced_under_somebody,
)
from packer.survey.model import Survey
from packer.survey.overlays import overlays_on
from packer.survey.survey import RAW, survey
from packer.survey.wire import FlatFile

_MIN_BLOCK_BYTES = 4096
_OVERLAYS_SHOWN = 5
_TICK_SECONDS = 0.02
"""Who writes later than that leaves another time stamp: kernels count in ticks of up to 10 ms."""

_Stamp = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class CompactReport:
    """path: as the user names it. disk_bytes: of the guest's disk; used_bytes: what of it is kept,
    in blocks of 4 KiB.

    before_bytes, after_bytes: what the file takes; as it would be, after a dry run. given: (what,
    bytes) of what went. notes: what was left as it is and why, a sentence each.
    """

    path: Path
    container: str
    disk_bytes: int
    used_bytes: int
    before_bytes: int
    after_bytes: int
    given: tuple[tuple[str, int], ...]
    notes: tuple[str, ...]

    @property
    def given_bytes(self) -> int:
        """Return what went."""
        return sum(size for _, size in self.given)


@dataclass(frozen=True, slots=True)
class _Holes:
    """What can go. parts: (what, ranges of the disk), disjoint, each whole units of the container
    that hold something now; unit: in bytes.
    """

    parts: tuple[tuple[str, Ranges], ...]
    disk_bytes: int
    used_bytes: int
    container: str
    notes: tuple[str, ...]

    @property
    def ranges(self) -> Ranges:
        """Return all of it."""
        return union(empty_ranges(), *(ranges for _, ranges in self.parts))


def compact(
    path: str | Path, *, dry_run: bool = False, progress: Progress | None = None
) -> CompactReport:
    """Give back what of a raw or qcow2 image nobody can read any more.

    An interruption leaves a disk that is as good as before. Raises UsageError for what is no disk
    image in one file, InUseError when somebody uses it, when an overlay stands on it or the guest
    was not shut down, InputError when it cannot be read or its file system knows no holes.
    """
    named = Path(path)
    try:
        return _compact(named, _real(named), dry_run, progress or Silent())
    except OSError as error:
        raise InputError(f"{named} cannot be read: {error.strerror or error}") from error


def _compact(named: Path, real: Path, dry_run: bool, progress: Progress) -> CompactReport:
    refuse_if_replaced_under_somebody(real)
    _refuse_overlays(named)
    with kept_from_qemu(real), _opened(named, real) as disk:
        _refuse_container(named, disk)
        status = os.fstat(disk.fds[0])
        holes = _judged(named, disk, progress)
        disk.check_unchanged()
    before = status.st_blocks * SECTOR_BYTES
    given = tuple((what, total(ranges)) for what, ranges in holes.parts)
    after = before - sum(size for _, size in given)
    if not dry_run:
        with progress.stage("giving back", total(holes.ranges)) as advance:
            _give_back(named, real, stamp_of(status), holes, advance)
        after = real.stat().st_blocks * SECTOR_BYTES
    return CompactReport(
        named,
        holes.container,
        holes.disk_bytes,
        holes.used_bytes,
        before,
        after,
        given,
        holes.notes,
    )


def _real(path: Path) -> Path:
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other
        raise UsageError(f"{path}: expected a disk image, found none: {error}") from error
    if stat.S_ISBLK(mode):
        raise UsageError(
            f"{path} is a block device: only disk images are compacted",
            hint="let the guest discard what it does not use: fstrim, Optimize-Volume -ReTrim",
        )
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path}: expected a disk image, found no regular file")
    return real


def _opened(path: Path, real: Path) -> Disk:
    try:
        return open_disk(real)
    except OverlayError as error:
        raise InputError(
            f"{path} is an overlay: what it may give back depends on the file it lies on",
            hint="commit it (qemu-img commit) and compact that file, or make one file of both "
            "(qemu-img convert) and compact the result",
        ) from error


def _refuse_overlays(path: Path) -> None:
    """Raise InUseError if an overlay beside a disk stands on it, or may: what the disk's own file
    system calls free may be in use in there.
    """
    overlays = overlays_on(path)
    if overlays.found:
        names = ", ".join(str(one) for one in overlays.found[:_OVERLAYS_SHOWN])
        raise InUseError(
            f"{path}: overlays stand on it: {names}",
            hint="commit them (qemu-img commit) or delete them first",
        )
    if overlays.unseen:
        raise InUseError(
            f"{path}: whether an overlay stands on it cannot be told: {overlays.unseen[0]}",
            hint="run it as a user who may read what lies beside the disk",
        )


def _refuse_container(path: Path, disk: Disk) -> None:
    if disk.container not in ("raw", "qcow2") or len(disk.files) != 1:
        raise InputError(
            f"{path} is a {disk.container} image; raw and qcow2 images are compacted",
            hint="qemu-img convert -O qcow2 writes a new one without what was compacted away",
        )
    if disk.container == "qcow2":
        refuse_unsound(path, disk.fds[0])


def _judged(path: Path, disk: Disk, progress: Progress) -> _Holes:
    """Return what of a disk can go. Raises InUseError, InputError."""
    if disk.size == 0:
        raise InputError(f"{path}: expected a disk, found an empty file")
    with progress.stage("looking at the disk", 0):
        surveyed = survey(disk)
        judgement = judge(surveyed, disk.source, ChildExaminer(disk, surveyed))
    if judgement.refusals:
        raise InUseError(f"{path}: {judgement.refusals[0]}")
    _refuse_dirty(path, surveyed)
    dropped = union(empty_ranges(), *(one.ranges for one in judgement.dropped))
    pieces = cut(surveyed, disk.source, dropped, progress=progress)
    gone = union(pieces.unused, pieces.dropped, pieces.zero)
    unit = _unit(disk)
    holding = intersect(_inward(gone, unit, disk.size), disk.source.data_ranges(0, disk.size))
    parts: list[tuple[str, Ranges]] = []
    for what, ranges in (
        *((one.what, one.ranges) for one in judgement.dropped),
        ("unused", pieces.unused),
        ("zeros", union(empty_ranges(), holding)),
    ):
        part = intersect(ranges, holding)
        holding = subtract(holding, part)
        if len(part):
            parts.append((what, part))
    return _Holes(
        tuple(parts),
        disk.size,
        disk.size - total(_inward(gone, _MIN_BLOCK_BYTES, disk.size)),
        disk.container,
        tuple(_left_alone(surveyed)),
    )


def _refuse_dirty(path: Path, surveyed: Survey) -> None:
    for volume in surveyed.volumes:
        if volume.kind != RAW and volume.state != "clean":
            cure = CURE_FOR_WINDOWS if volume.kind == "ntfs" else CURE_FOR_DIRTY
            raise InUseError(
                f"{path}: {volume.kind} on {volume_name(volume)} is not clean "
                f"({volume.state_reason})",
                hint=cure,
            )


def _left_alone(surveyed: Survey) -> Iterator[str]:
    for row, volume in enumerate(surveyed.volumes):
        if volume.kind == RAW:
            why = f" ({volume.note})" if volume.note else ""
            yield f"{volume_name(volume)} cannot be read{why}: only its zeros go"
        elif row in surveyed.with_snapshots:
            yield f"{volume_name(volume)} has snapshots, which may read what is free: it stays"


def _unit(disk: Disk) -> int:
    """Return the bytes of which the container gives back all or nothing."""
    if isinstance(disk.opening, FlatFile) and disk.container == "qcow2":
        return disk.opening.columns.cluster_size
    return max(_MIN_BLOCK_BYTES, disk.files[0].stat().st_blksize)


def _inward(ranges: Ranges, unit: int, size: int) -> Ranges:
    """Return the whole units in the ranges; the last one of the disk may be a part."""
    low = -(-ranges[:, 0] // unit) * unit
    high = np.where(ranges[:, 1] == size, size, ranges[:, 1] // unit * unit)
    inside = np.stack([low, high], axis=1)
    return inside[low < high]


def _give_back(path: Path, real: Path, stamp: _Stamp, holes: _Holes, advance: Advance) -> None:
    """Give back what can go, in batches, before each of which it is made sure that nobody uses the
    disk and that it is as it was judged. Raises InUseError, InputError, OSError.
    """
    deed = _punch if holes.container == "raw" else _discard
    for batch in _batches(holes.ranges):
        # Before the file is opened: who has it open to write, if only we, counts as using it.
        refuse_if_in_use([real])
        with _writable(path, real) as fd:
            stamp = deed(path, fd, stamp, batch)
        advance(sum(end - start for start, end in batch))


def _batches(ranges: Ranges) -> Iterator[list[tuple[int, int]]]:
    pieces = [
        (low, min(end, low + MAX_RANGE_BYTES))
        for start, end in ranges.tolist()
        for low in range(start, end, MAX_RANGE_BYTES)
    ]
    for first in range(0, len(pieces), BATCH_RANGES):
        yield pieces[first : first + BATCH_RANGES]


@contextmanager
def _writable(path: Path, real: Path) -> Iterator[int]:
    try:
        fd = os.open(real, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _refuse_changed(path: Path, fd: int, stamp: _Stamp) -> None:
    """Raise InUseError if an open file is not the one that was judged, or has changed since."""
    if stamp_of(os.fstat(fd)) != stamp:
        raise InUseError(
            f"{path} was changed meanwhile",
            hint="shut the guest down, make sure that nothing writes to the disk, and start again",
        )


def _discard(path: Path, fd: int, stamp: _Stamp, batch: list[tuple[int, int]]) -> _Stamp:
    """Discard the ranges; return the stamp that the file has then."""
    _refuse_changed(path, fd, stamp)
    discard(path, fd, batch)
    return stamp_of(os.fstat(fd))


def _punch(path: Path, fd: int, stamp: _Stamp, batch: list[tuple[int, int]]) -> _Stamp:
    """Make the ranges holes of the file; return the stamp that it has then.

    Nobody opens it meanwhile, so nothing changes that is not seen, before or afterwards.
    """
    with kept_from_everybody(path, fd):
        _refuse_changed(path, fd, stamp)
        end_of_file = os.fstat(fd).st_size
        for start, end in batch:
            try:
                punched = punch_hole(fd, start, min(end, end_of_file))
            except OSError as error:
                raise InputError(f"{path}: no hole can be made: {error.strerror}") from error
            if not punched:
                raise InputError(
                    f"{path}: its file system cannot make holes in files",
                    hint="qemu-img convert writes a copy without what is zero",
                )
        time.sleep(_TICK_SECONDS)
        return stamp_of(os.fstat(fd))
