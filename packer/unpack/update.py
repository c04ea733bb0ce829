"""update: a disk of one version becomes that of another, and is whole at every moment.

The new disk is unpacked beside the old one, which is its first source, and takes its name when
every byte is proven. So any version leads to any other, without anything prepared for that.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from packer.artifact.contents import digest_keys
from packer.artifact.map import Kind, Map
from packer.artifact.opened import OpenedPack
from packer.clone import CLONE_UNIT_BYTES, Cloner
from packer.errors import Error, InUseError, MismatchError, TrustError, UsageError
from packer.progress import Progress
from packer.sources.base import Source
from packer.sources.disk import DiskSource
from packer.sources.mapped import MappedSource
from packer.sources.memory import stamp_of
from packer.sources.store import Store
from packer.survey.disk import Disk, open_disk
from packer.survey.in_use import kept_from_qemu, refuse_if_replaced_under_somebody
from packer.survey.overlays import overlays_on
from packer.text import format_bytes
from packer.unpack.output import Replaced
from packer.unpack.record import DiskRecords, Record
from packer.unpack.unpack import FORMATS, UnpackReport, unpack
from packer.unpack.verify import VerifyReport, compare

OVERLAYS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class OldDisk:
    """A disk that may be replaced, as long as `old_disk` holds it: nobody uses it.

    path: as the user names it. real: the file itself. overlays: further folders in which overlays
    may lie. force: also if not all of them can be looked at. notes: what could not be.
    """

    path: Path
    real: Path
    overlays: tuple[Path, ...]
    force: bool
    status: os.stat_result
    disk: Disk
    record: Record | None
    records: DiskRecords
    notes: tuple[str, ...]

    def check(self) -> None:
        """Raise InUseError if somebody has changed or begun to use it since."""
        _refuse_overlays(self.path, self.overlays, force=self.force)
        self.disk.check_unchanged()
        self.disk.close()  # a server of our own would be taken for somebody
        refuse_if_replaced_under_somebody(self.real)


@dataclass(frozen=True, slots=True)
class Version:
    """What a disk is, or was before somebody wrote to it. disk_map: None if nobody knows it."""

    name: str
    number: int
    identity: str
    disk_map: Map | None

    @property
    def label(self) -> str:
        """Return how the pack is called: "demo:1"."""
        return f"{self.name}:{self.number}"


@dataclass(frozen=True, slots=True)
class Held:
    """What a disk holds. version: None if nobody knows it. whole: whether it is just that."""

    version: Version | None
    whole: bool


@dataclass(frozen=True, slots=True)
class UpdateReport:
    """before, after: "demo:1", "demo:2"; before is "" if nobody knows what the disk was.

    unpacked: None when the disk was of that version already. note: why the disk is not remembered,
    or "".
    """

    disk: Path
    before: str
    after: str
    unpacked: UnpackReport | None
    note: str


@contextmanager
def old_disk(
    path: Path,
    *,
    overlays: Sequence[Path] = (),
    force: bool = False,
    records: DiskRecords | None = None,
) -> Iterator[OldDisk]:
    """Open a disk that is to be replaced and keep QEMU from writing to it meanwhile.

    overlays: further folders in which overlays on it may lie. force: also if not all files there
    can be looked at. Raises InUseError when somebody uses it or an overlay stands on it, UsageError
    when it is no disk image in one file.
    """
    records = records or DiskRecords()
    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead to each other
        raise UsageError(f"{path}: expected a disk image, found none: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise UsageError(f"{path}: expected a disk image, found no regular file")
    refuse_if_replaced_under_somebody(real)
    unseen = _refuse_overlays(path, overlays, force=force)
    record = records.find(real)
    # The guest may have written any container's magic to the start of a raw disk.
    same_file = record is not None and record.stamp[:2] == stamp_of(status)[:2]
    container = record.container if record and same_file else None
    with (
        kept_from_qemu(real),
        open_disk(real, allow_in_use=True, container=container) as disk,
    ):
        if len(disk.files) > 1:
            raise UsageError(
                f"{path} consists of {len(disk.files)} files, which do not change at once",
                hint="unpack the new version under another name, with this disk as --from",
            )
        yield OldDisk(path, real, tuple(overlays), force, status, disk, record, records, unseen)


def identify(
    old: OldDisk,
    pack: OpenedPack,
    *,
    was: OpenedPack | None = None,
    force: bool = False,
    allow_older: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> Held:
    """Return what a disk holds, proven: by its stamp, or by hashing all of it.

    was: what it was unpacked from, if this host has not kept that. force: also if somebody has
    written to it, or nobody knows what it was. Raises MismatchError and UsageError for these two,
    UsageError if it is a disk of another name, TrustError if the pack is older.
    """

    def whole(version: Version) -> Held:
        _check_successor(old.path, version, pack, force=force, allow_older=allow_older)
        return Held(version, whole=True)

    candidates = [_version_of(was)] if was else []
    record = old.record
    if record is not None:
        kept = Version(record.name, record.version, record.identity, old.records.map_of(record))
        if record.is_unchanged(old.real):
            return whole(kept)
        candidates.append(kept)
    for one in candidates[:1]:  # what it should be; that it was another once does not count
        _check_successor(old.path, one, pack, force=force, allow_older=allow_older)
    # A run that ended between the rename and its record has left a disk of the new version.
    known = [one for one in candidates if one.disk_map is not None]
    wrong: list[tuple[Version, VerifyReport | None]] = []
    for one in (*known, _version_of(pack)):
        report = _compare(old, one.disk_map, jobs, progress)
        if report is not None and report.right:
            return whole(one)
        wrong.append((one, report))
    if force:
        return Held(known[0] if known else None, whole=False)
    if known:
        raise _changed(old.path, *wrong[0])
    raise UsageError(
        f"{old.path}: this host does not know what it should be, so nothing tells whether a guest "
        "has written to it",
        hint="--was PACK names the pack that it was unpacked from; --force replaces it whatever "
        "it is",
    )


def source_of(old: OldDisk, held: Held) -> Source:
    """Return the disk as a source of contents; the caller closes it."""
    if held.version is not None and held.version.disk_map is not None:
        return MappedSource(old.disk, held.version.disk_map, old.path)
    return DiskSource(str(old.path))


def update(
    old: OldDisk,
    held: Held,
    pack: OpenedPack,
    sources: Sequence[Source],
    *,
    store: Store | None = None,
    container: str | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> UpdateReport:
    """Make a disk what a pack says. Whom to trust was decided before.

    held: what `identify` has found. sources: who else is asked. container: of the new disk; the
    old one's if None. Raises what `unpack` raises, InUseError when somebody has begun to use the
    old disk; it stays as it is then.
    """
    before = held.version.label if held.version else ""
    report: UnpackReport | None = None
    container = container or old.disk.container
    same = held.whole and held.version is not None and held.version.identity == pack.config_digest
    if not same or container != old.disk.container:
        if container not in FORMATS:
            raise UsageError(
                f"{old.path} is a {container} image, which cannot be written",
                hint=f"choose another kind: --format {FORMATS[0]}",
            )
        with closing(source_of(old, held)) as first:
            _demand_space(old, held, pack.map, container)
            report = unpack(
                pack,
                old.real,
                [first, *sources],
                store=store,
                container=container,
                replaced=Replaced(old.status, old.check),
                jobs=jobs,
                progress=progress,
            )
    else:
        old.disk.check_unchanged()  # what was hashed is what is remembered
    note = old.records.remember(old.real, container, pack)
    return UpdateReport(old.path, before, pack.config.ref_name, report, note)


def _refuse_overlays(path: Path, folders: Sequence[Path], *, force: bool) -> tuple[str, ...]:
    """Raise InUseError if overlays stand on a disk, or may, unless that is forced; return what
    could not be looked at.
    """
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"{folder}: expected a folder with overlays, found none")
    overlays = overlays_on(path, folders)
    if overlays.found:
        names = [str(one) for one in overlays.found[:OVERLAYS_SHOWN]]
        more = len(overlays.found) - len(names)
        raise InUseError(
            f"{path} is the backing file of {', '.join(names)}{f' and {more} more' if more else ''}"
            ", which would be destroyed",
            hint="unpack the new version under another name, or delete the overlay if nobody needs "
            "it",
        )
    if overlays.unseen and not force:
        more = len(overlays.unseen) - 1
        raise InUseError(
            f"cannot tell whether an overlay stands on {path}: {overlays.unseen[0]}"
            f"{f', and {more} more' if more else ''}",
            hint="run this as somebody who may read that; if none stands on this disk: --force",
        )
    return tuple(f"overlays on {path} were not looked for in {one}" for one in overlays.unseen)


def _version_of(pack: OpenedPack) -> Version:
    return Version(pack.config.name, pack.config.version, pack.config_digest, pack.map)


def _check_successor(
    path: Path, version: Version, pack: OpenedPack, *, force: bool, allow_older: bool
) -> None:
    config = pack.config
    if version.name != config.name and not force:
        raise UsageError(
            f"{path} is {version.label}, and {pack.layout.location} is {config.ref_name}",
            hint="a disk is updated to another version of the same name; --force does it all the "
            "same",
        )
    same = version.name == config.name and version.identity != pack.config_digest
    if same and version.number >= config.version and not allow_older:
        raise TrustError(
            f"{path} is {version.label}, and {pack.layout.location} is "
            f"{'another' if version.number == config.version else 'the older'} {config.ref_name}",
            hint="an old version may have known holes; to go back all the same: --allow-older",
        )


def _compare(
    old: OldDisk, disk_map: Map | None, jobs: int | None, progress: Progress | None
) -> VerifyReport | None:
    """Compare the disk with a map; None if it cannot even be that by its size."""
    if disk_map is None or disk_map.size != old.disk.size:
        return None
    return compare(old.disk.source, disk_map, jobs=jobs, progress=progress)


def _changed(path: Path, version: Version, report: VerifyReport | None) -> MismatchError:
    if report is None:
        what = f"its size is not that of {version.label}"
    else:
        differing = int((report.wrong[:, 1] - report.wrong[:, 0]).sum())
        what = (
            f"{len(report.wrong):,} ranges ({format_bytes(differing)}) are not what "
            f"{version.label} says"
        )
    return MismatchError(
        f"{path} has changed since it was unpacked: {what}",
        hint="--force throws away what was written to it; to keep a disk updatable, let the guest "
        "write to an overlay (qemu-img create -b)",
    )


def _demand_space(old: OldDisk, held: Held, disk_map: Map, container: str) -> None:
    """Raise Error if the new disk cannot fit beside the old one; blocks that both share count
    once.
    """
    rows = disk_map.kind == Kind.CONTENT
    length = (disk_map.end - disk_map.start)[rows]
    whole = int(length.sum())
    needed = whole
    known = held.version.disk_map if held.version else None
    if known is not None and _shares_blocks(old):
        keys = digest_keys(disk_map.contents.digest)
        there = np.isin(keys, digest_keys(known.contents.digest))
        needed = int(length[~there[disk_map.content[rows]]].sum())
    partial = old.real.with_name(old.real.name + ".partial")
    if partial.exists():  # of an interrupted run, which goes on
        needed -= partial.stat().st_blocks * 512
    if container != "raw":
        needed += whole
    space = os.statvfs(old.real.parent)
    free = space.f_bavail * space.f_frsize
    if needed > free:
        raise Error(
            f"{old.path}: the new version needs {format_bytes(needed)} beside the old one, which "
            f"stays until it is complete; {old.real.parent} has {format_bytes(free)} left",
            hint="free some space; where the file system can share blocks (btrfs, XFS) only what "
            "has changed needs any",
        )


def _shares_blocks(old: OldDisk) -> bool:
    """Try whether blocks of the disk can be shared with another file of its folder."""
    if old.disk.container != "raw":
        return False
    fd = os.open(old.real, os.O_RDONLY | os.O_CLOEXEC)
    try:
        other = os.open(old.real.parent, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            return Cloner().clone_blocks(fd, 0, other, 0, CLONE_UNIT_BYTES)
        finally:
            os.close(other)
    except OSError:  # no files without a name here, no rights, no space
        return False
    finally:
        os.close(fd)
