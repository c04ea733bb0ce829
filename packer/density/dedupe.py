"""dedupe: equal files in existing disks share their blocks, in place, while guests run.

Two rounds. Files that several guests call the same and that are equally long are handed to the
kernel at once, which reads both anyway. What is left and equally long is hashed: first its first
4 KiB, then all of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from packer.columns import Column
from packer.density.digest import HEAD_BYTES, digest_units
from packer.density.member import Member, Surveyed, islands, look_at, open_members
from packer.density.pairs import alike, pair_up, phase, plan
from packer.density.read_ahead import reading_early
from packer.density.settled import Settled
from packer.density.sharing import share_all
from packer.density.units import NO_NAME, Names, Units, join
from packer.errors import InputError
from packer.file_system import file_system_type
from packer.progress import Progress, Silent
from packer.survey.survey import RAW

_WHOLE = 1 << 62


@dataclass(frozen=True, slots=True)
class SharedDisk:
    """gained_bytes: share blocks with another place since this run, or could; shared_bytes: of
    equal files that did before. Counted for the disk that gives its own blocks up.
    """

    path: Path
    gained_bytes: int
    shared_bytes: int


@dataclass(frozen=True, slots=True)
class DedupeReport:
    """disks: in the order they were named. differing: files that seemed to be equal and were not,
    or not any more. unchanged: whether nothing had changed since the last run. notes: what could
    not be shared and why, a sentence each.
    """

    disks: tuple[SharedDisk, ...]
    differing: int
    unchanged: bool
    notes: tuple[str, ...]

    @property
    def gained_bytes(self) -> int:
        """Return what all disks have gained."""
        return sum(disk.gained_bytes for disk in self.disks)

    @property
    def shared_bytes(self) -> int:
        """Return what was shared before."""
        return sum(disk.shared_bytes for disk in self.disks)


def dedupe(
    paths: Sequence[str | Path],
    *,
    dry_run: bool = False,
    again: bool = False,
    eager: bool = True,
    settled: Settled | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> DedupeReport:
    """Let equal files in several disks share their blocks; no byte of any disk changes.

    Disks may be in use. An interruption leaves shared what was shared. dry_run: only say what
    could be gained, which reads more, as all is hashed. again: look also at disks that have not
    changed since they were compared. eager: read ahead as long as it is not known of what.
    settled: what is remembered of earlier runs.

    Raises InputError for what is no disk image or lies where blocks cannot be shared, UsageError
    for a disk that is named twice.
    """
    progress, settled = progress or Silent(), settled or Settled()
    with ExitStack() as stack:
        members = open_members([Path(path) for path in paths], stack)
        stamps = [member.stamp() for member in members]
        known = [False] * len(members) if again or dry_run else settled.among(stamps)
        job = _Job(members, np.array(known), dry_run, eager, jobs or os.cpu_count() or 1, progress)
        if all(known):
            return job.report(unchanged=True)
        try:
            job.run()
        except OSError as error:
            raise InputError(f"a disk cannot be read any more: {error}") from error
        if not dry_run:
            settled.remember(
                stamps[number]
                for number in sorted(job.compared)
                if stamps[number] == members[number].stamp()
            )
        return job.report()


@dataclass(slots=True)
class _Job:
    """One run; the counts grow. compared: numbers of the members that were read, and of which the
    kernel refused nothing.
    """

    members: list[Member]
    known: NDArray[np.bool_]
    dry_run: bool
    eager: bool
    jobs: int
    progress: Progress
    gained: Column = field(init=False)
    shared: Column = field(init=False)
    differing: int = 0
    notes: list[str] = field(default_factory=list)
    compared: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.gained = np.zeros(len(self.members), dtype=np.int64)
        self.shared = np.zeros(len(self.members), dtype=np.int64)

    def run(self) -> None:
        found = self._look()
        for island in islands(self.members):
            if len(island) == 1 < len(self.members):
                path = self.members[island[0]].path
                self.notes.append(f"{path} lies alone on its file system")
            self._note_btrfs(self.members[island[0]])
            readable = [number for number in island if number in found]
            units = join([found[number] for number in readable], disks=readable)
            self.compared.update(readable)
            self._share(units, self.members[island[0]].block)

    def report(self, *, unchanged: bool = False) -> DedupeReport:
        rows = zip(self.members, self.gained.tolist(), self.shared.tolist(), strict=True)
        disks = tuple(SharedDisk(member.path, gained, shared) for member, gained, shared in rows)
        return DedupeReport(disks, self.differing, unchanged, tuple(self.notes))

    def _look(self) -> dict[int, Units]:
        """Return the units of each disk. What cannot be read is noted, unless that is all.

        Raises InputError.
        """
        names = Names()
        with (
            self.progress.stage("looking at the disks", 0),
            reading_early([member.fd for member in self.members] if self.eager else []),
            ThreadPoolExecutor(self.jobs) as pool,
        ):
            looks = [pool.submit(look_at, member, names) for member in self.members]
            try:
                wait(looks)
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        errors = [look.exception() for look in looks]
        for error in errors:
            if error is not None and (not isinstance(error, InputError) or all(errors)):
                raise error
        self.notes += [str(error) for error in errors if error is not None]
        found = {number: look.result() for number, look in enumerate(looks) if not errors[number]}
        for number, one in found.items():
            self._note_uneven(self.members[number], one)
        return {number: one.units for number, one in found.items()}

    def _note_btrfs(self, member: Member) -> None:
        if file_system_type(member.fd) == "btrfs":
            self.notes.append(
                f"{member.path.parent}: btrfs frees an extent when nothing of it is used any more; "
                "of large extents, as fresh copies have them, little comes free"
            )

    def _note_uneven(self, member: Member, one: Surveyed) -> None:
        for volume in one.survey.volumes:
            if volume.start % member.block and volume.kind != RAW:
                self.notes.append(
                    f"{member.path}: partition {volume.number} begins at byte {volume.start}, no "
                    f"multiple of {member.block}: its files share blocks only with those of "
                    "volumes that lie as unevenly"
                )

    def _share(self, units: Units, block: int) -> None:
        """Share what is equal among the disks of one file system."""
        aligned = phase(units, block)
        everything = np.flatnonzero(aligned >= 0)
        sources = targets = everything[:0]
        if not self.dry_run:
            rows = everything[units.name[everything] != NO_NAME]
            keys = [units.name, units.offset, units.size, aligned]
            known = self.known[units.disk[rows]]
            sources, targets = pair_up([key[rows] for key in keys], rows, known)
            same = self._ask(units, sources, targets, block)
            sources, targets = sources[same], targets[same]
        left = np.setdiff1d(everything, targets)
        firsts, seconds = self._equal(units, left, aligned)
        same = self._ask(units, firsts, seconds, block)
        self.differing += int((~same).sum())
        # What shares the blocks of a second follows it to those of the first, or they stay.
        place = np.arange(len(units.size))
        place[seconds[same]] = firsts[same]
        moved = place[sources] != sources
        self._ask(units, place[sources[moved]], targets[moved], block, count=False)

    def _equal(self, units: Units, rows: Column, aligned: Column) -> tuple[Column, Column]:
        """Return (sources, targets) of those units that have equal digests."""
        known = self.known[units.disk]
        keys = [units.size, aligned]
        rows = rows[alike([key[rows] for key in keys], known[rows])]
        keys.append(self._digests(units, rows, HEAD_BYTES))
        rows = rows[alike([key[rows] for key in keys], known[rows])]
        long = rows[units.size[rows] > HEAD_BYTES]
        keys.append(self._digests(units, long, _WHOLE))
        return pair_up([key[rows] for key in keys], rows, known[rows])

    def _digests(self, units: Units, rows: Column, most_bytes: int) -> Column:
        """Return numbers of digests: int64[u], 0 where none was asked for."""
        total = int(np.minimum(units.size[rows], most_bytes).sum())
        found = np.zeros(len(units.size), dtype=np.int64)
        fds = [member.fd for member in self.members]
        with self.progress.stage("hashing", total) as advance:
            found[rows] = digest_units(
                units, fds, rows, most_bytes, jobs=self.jobs, advance=advance
            )
        return found

    def _ask(
        self, units: Units, sources: Column, targets: Column, block: int, *, count: bool = True
    ) -> NDArray[np.bool_]:
        """Share pairs of units where they are equal; return which pairs were.

        count: whether that is told: it gains nothing for what shared blocks with others before.
        """
        todo = plan(units, sources, targets, block)
        requests = todo.requests
        disks = len(self.members)
        if count:
            self.shared += np.bincount(units.disk[todo.unit], todo.shared, disks).astype(np.int64)
        if self.dry_run:
            found = np.bincount(requests.target_disk, requests.length, disks)
            self.gained += found.astype(np.int64)
            return np.ones(len(targets), dtype=bool)
        with self.progress.stage("sharing", int(requests.length.sum())) as advance:
            done = share_all(requests, [member.fd for member in self.members], block, advance)
        if count:
            self.gained += done.gained
        for number in done.refused:
            self.compared.clear()  # another time it may not
            self.notes.append(f"the kernel refused to share some blocks: {os.strerror(number)}")
        return ~np.isin(targets, done.unequal)
