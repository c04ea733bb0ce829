"""Survey a disk: which volumes it has, and who owns which bytes of them.

One child reads the table and looks at each volume; one more child for each file system reads it,
unless one is asked to read all. A table that cannot be read is an error. A volume that cannot be
read is raw: it travels as it is.
That all together take too long is an error: what travels shall not depend on when time is up.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from formats.ranges import Ranges, empty_ranges, total
from packer.columns import Column
from packer.errors import InputError
from packer.survey import wire
from packer.survey.believe import VolumeColumns, believe_table, believe_volume
from packer.survey.child import ChildError, clean_text, lied
from packer.survey.disk import Disk
from packer.survey.limits import Limits
from packer.survey.model import Survey, Volume

RAW = "raw"
WALL_FACTOR = 8
"""How many times as long as one child all of them together may take."""
_UNITS = ("bytes", "kB", "MB", "GB", "TB", "PB")


def survey(disk: Disk, *, limits: Limits | None = None, at_once: bool = False) -> Survey:
    """Return who owns which bytes of the disk.

    limits: of each child. After WALL_FACTOR times its wall clock no further one is started,
    because a table may list thousands of volumes that each take as long as they can.
    at_once: have one child read it all, which is quicker; if that one fails, as without.
    Raises InputError when its partition table cannot be read, or when that time is over.
    """
    limits = limits or Limits()
    if at_once and (found := _survey_at_once(disk, limits)):
        return found
    allowed = WALL_FACTOR * limits.wall_seconds
    deadline = time.monotonic() + allowed
    table = read_partitions(disk, limits=limits)
    gathered = _Gathered()
    for row, partition in enumerate(table.partitions):
        if partition.reader and time.monotonic() > deadline:
            raise InputError(
                f"{disk.path} cannot be surveyed: expected to read all of its "
                f"{len(table.partitions)} volumes within {allowed:g} seconds, found {row} done",
                hint="copy the disk to faster storage; if it has very many volumes, it may be made "
                "to do harm",
            )
        gathered.add(partition, *_read_volume(disk, partition, limits))
    return gathered.survey(disk, table)


def _survey_at_once(disk: Disk, limits: Limits) -> Survey | None:
    """Return the survey, or None if one child does not read the table and all volumes."""
    request = wire.ReadDisk(disk.opening)
    gathered = _Gathered()
    try:
        reply = disk.ask("disk", _name(disk), request, wire.DiskReply, limits)
        if isinstance(reply, wire.Failure):
            return None
        table = believe_table(reply.table, disk.size)
        readable = sum(bool(one.reader) for one in table.partitions)
        if len(reply.volumes) != readable:
            return None
        answers = iter(reply.volumes)
        for one in table.partitions:
            found = _judge(disk, one, next(answers)) if one.reader else _unread(disk, one)
            gathered.add(one, *found)
    except (ChildError, wire.MalformedError):
        return None
    return gathered.survey(disk, table)


def read_partitions(disk: Disk, *, limits: Limits | None = None) -> wire.TableReply:
    """Return the disk's partitions and what each seems to be; a disk without a table is one.

    Raises InputError when the table cannot be read.
    """
    limits = limits or Limits()
    request = wire.ReadTable(disk.opening)
    reply = disk.ask("partition table", _name(disk), request, wire.TableReply, limits)
    if isinstance(reply, wire.Failure):
        raise InputError(
            f"the partition table of {disk.path} cannot be read: {clean_text(reply.reason)}",
            hint=_table_hint(disk, reply.by_server),
        )
    try:
        return believe_table(reply, disk.size)
    except wire.MalformedError as error:
        raise lied("partition table", _name(disk), error) from error


def _table_hint(disk: Disk, by_server: bool) -> str:
    if not by_server:
        return "check it with sgdisk --verify or sfdisk --verify"
    if disk.files:  # the server is our own
        return "`qemu-img check` says more about the image"
    return "its server must take several clients at once (qemu-nbd --shared=0)"


def _read_volume(
    disk: Disk, partition: wire.WirePartition, limits: Limits
) -> tuple[VolumeColumns | None, str]:
    """Return (what its reader found, warning); None for a volume that stays raw."""
    if not partition.reader:
        return _unread(disk, partition)
    request = wire.ReadVolume(disk.opening, partition.reader, partition.start, partition.end)
    place = _place(disk, partition)
    try:
        return _judge(
            disk, partition, disk.ask(partition.reader, place, request, wire.VolumeReply, limits)
        )
    except ChildError as error:
        return None, _raw_warning(disk, partition, error.message)


def _judge(
    disk: Disk, partition: wire.WirePartition, reply: wire.VolumeReply | wire.Failure
) -> tuple[VolumeColumns | None, str]:
    """Return the same of what a child says about a volume. Raises ChildError for lies."""
    if isinstance(reply, wire.Failure):
        return None, _raw_warning(disk, partition, clean_text(reply.reason))
    try:
        return believe_volume(reply, partition.end - partition.start), ""
    except wire.MalformedError as error:
        raise lied(partition.reader, _place(disk, partition), error) from error


def _unread(disk: Disk, partition: wire.WirePartition) -> tuple[None, str]:
    return None, "" if partition.quiet else _raw_warning(disk, partition, partition.note)


def _place(disk: Disk, partition: wire.WirePartition) -> str:
    return f"volume {partition.number} of {_name(disk)}" if partition.number else _name(disk)


def _raw_warning(disk: Disk, partition: wire.WirePartition, why: str) -> str:
    stored = total(disk.source.data_ranges(partition.start, partition.end))
    what = f"partition {partition.number}" if partition.number else "the disk"
    return f"{what}: {why}; it cannot be stubbed: up to {_amount(stored)} travel"


@dataclass(slots=True)
class _Gathered:
    """The survey as it grows, volume by volume; every offset is one of the disk."""

    volumes: list[Volume] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    free: list[Ranges] = field(default_factory=lambda: [empty_ranges()])
    held: list[tuple[int, Ranges]] = field(default_factory=list)
    snapshots: list[tuple[int, Ranges]] = field(default_factory=list)
    dropped: list[tuple[int, Ranges]] = field(default_factory=list)
    streams: list[tuple[Column, ...]] = field(default_factory=list)
    extents: list[tuple[Column, ...]] = field(default_factory=list)
    name_streams: list[Column] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    symlinks: list[tuple[int, str, str]] = field(default_factory=list)
    stream_count: int = 0

    def add(self, partition: wire.WirePartition, found: VolumeColumns | None, warning: str) -> None:
        row = len(self.volumes)
        self.volumes.append(_volume(partition, found, warning))
        if warning:
            self.warnings.append(warning)
        if found is None:
            return
        start, first = partition.start, self.stream_count
        self.free.append(found.free + start)
        for ranges, of_volumes in (
            (found.held, self.held),
            (found.snapshots, self.snapshots),
            (found.dropped, self.dropped),
        ):
            if len(ranges):
                of_volumes.append((row, ranges + start))
        self.streams.append(
            (
                np.full_like(found.inode, row),
                found.inode,
                found.file_size,
                found.valid_size,
                found.form,
            )
        )
        self.extents.append(
            (
                found.stream + first,
                found.file_offset,
                found.disk_offset + start,
                found.length,
                found.extent_kind,
            )
        )
        self.name_streams.append(found.name_stream + first)
        self.names += found.name
        self.symlinks += [(row, path, target) for path, target in found.symlinks]
        self.stream_count += len(found.inode)

    def survey(self, disk: Disk, table: wire.TableReply) -> Survey:
        volume, inode, file_size, valid_size, form = _joined(self.streams, 5)
        stream, file_offset, disk_offset, length, kind = _joined(self.extents, 5)
        free = np.concatenate(self.free)
        return Survey(
            size=disk.size,
            sector_size=table.sector_size,
            container=disk.container,
            table=table.kind,
            table_identifier=table.identifier,
            volumes=tuple(self.volumes),
            free=free[np.argsort(free[:, 0], kind="stable")],
            held=tuple(self.held),
            snapshots=tuple(self.snapshots),
            dropped=tuple(self.dropped),
            volume=volume,
            inode=inode,
            file_size=file_size,
            valid_size=valid_size,
            form=form.astype(np.uint8),
            stream=stream,
            file_offset=file_offset,
            disk_offset=disk_offset,
            length=length,
            kind=kind.astype(np.uint8),
            name_stream=_joined([(one,) for one in self.name_streams], 1)[0],
            name=self.names,
            symlinks=tuple(self.symlinks),
            warnings=(*table.warnings, *self.warnings),
        )


def _joined(parts: list[tuple[Column, ...]], count: int) -> list[Column]:
    if not parts:
        return [np.empty(0, dtype=np.int64) for _ in range(count)]
    return [np.concatenate([part[column] for part in parts]) for column in range(count)]


def _volume(partition: wire.WirePartition, found: VolumeColumns | None, warning: str) -> Volume:
    return Volume(
        number=partition.number,
        start=partition.start,
        end=partition.end,
        partition_type=partition.type,
        partition_uuid=partition.uuid,
        partition_label=partition.label,
        kind=found.kind if found else RAW,
        block_size=found.block_size if found else 0,
        label=found.label if found else "",
        uuid=found.uuid if found else "",
        state=found.state if found else "",
        state_reason=found.state_reason if found else "",
        note=partition.note or (warning if found is None else ""),
        unread=found.unread if found else (),
    )


def _name(disk: Disk) -> str:
    return Path(disk.path).name if disk.files else disk.path


def _amount(size_bytes: int) -> str:
    value, unit = float(size_bytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} {_UNITS[unit]}" if unit < 2 else f"{value:.1f} {_UNITS[unit]}"
