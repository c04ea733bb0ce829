"""Hand-made surveys of disks in memory whose block i is filled with byte i."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from formats.filesystem.model import DATA, plain
from formats.ranges import Ranges, as_ranges
from formats.source import Memory
from packer.artifact.hints import Package
from packer.guest.expected import Expected
from packer.guest.model import Guest, Judgement
from packer.pack.cut import Cut
from packer.survey.model import Survey, Volume

BLOCK = 4096


@dataclass
class File:
    """A file: extents are (file_offset, disk_offset, length) or, with a kind, four numbers."""

    size: int
    extents: list[tuple[int, ...]]
    names: list[str] = field(default_factory=list)
    package: int = -1
    expected: Expected | None = None
    boot: int = -1
    volume: int = 0
    valid: int | None = None

    @property
    def valid_size(self) -> int:
        return self.size if self.valid is None else self.valid


def numbered_disk(blocks: int, tail: int = 0) -> Memory:
    """Return a disk whose block i holds byte i (block 0 and every 256th: zeros)."""
    whole = b"".join(bytes([number % 256]) * BLOCK for number in range(blocks))
    return Memory(whole + bytes([blocks % 256]) * tail)


def volume(
    start: int, end: int, *, kind: str = "ext4", state: str = "clean", partition_type: str = ""
) -> Volume:
    return Volume(
        number=0,
        start=start,
        end=end,
        partition_type=partition_type,
        partition_uuid="",
        partition_label="",
        kind=kind,
        block_size=BLOCK,
        label="",
        uuid="",
        state=state,
        state_reason="" if state == "clean" else "for a test",
        note="",
        unread=(),
    )


def survey_of(
    size: int,
    files: Sequence[File] = (),
    free: Sequence[tuple[int, int]] = (),
    volumes: Sequence[Volume] | None = None,
) -> Survey:
    extents = [
        (row, *extent, *([DATA] if len(extent) == 3 else []))
        for row, file in enumerate(files)
        for extent in file.extents
    ]
    table = np.array(extents, dtype=np.int64).reshape(-1, 5)
    named = [(row, name) for row, file in enumerate(files) for name in file.names]
    return Survey(
        size=size,
        sector_size=512,
        container="raw",
        table="none",
        table_identifier="",
        volumes=tuple([volume(0, size)] if volumes is None else volumes),
        free=as_ranges(free),
        held=(),
        snapshots=(),
        dropped=(),
        volume=np.array([file.volume for file in files], dtype=np.int64),
        inode=np.arange(len(files), dtype=np.int64) + 12,
        file_size=np.array([file.size for file in files], dtype=np.int64),
        valid_size=np.array([file.valid_size for file in files], dtype=np.int64),
        form=plain(len(files)),
        stream=table[:, 0],
        file_offset=table[:, 1],
        disk_offset=table[:, 2],
        length=table[:, 3],
        kind=table[:, 4].astype(np.uint8),
        name_stream=np.array([row for row, _ in named], dtype=np.int64),
        name=[name for _, name in named],
        symlinks=(),
        warnings=(),
    )


def judgement_of(files: Sequence[File], packages: Sequence[Package] = ()) -> Judgement:
    return Judgement(
        guest=Guest(),
        path=[name for file in files for name in file.names],
        boot=np.array([file.boot for file in files], dtype=np.int64),
        boot_reasons=("for a test",),
        package=np.array([file.package for file in files], dtype=np.int64),
        expected=[file.expected for file in files],
        packages=tuple(packages),
        origin=np.full(len(files), -1, dtype=np.int64),
        origins=(),
        dropped=(),
        refusals=(),
        warnings=(),
    )


def fragment_ranges(pieces: Cut) -> Ranges:
    """Return where on the disk the extents of all fragments lie, in disk order."""
    rows = np.stack([pieces.disk_offset, pieces.disk_offset + pieces.length], axis=1)
    return rows[np.argsort(rows[:, 0], kind="stable")]


def owners(pieces: Cut, size: int) -> np.ndarray:
    """Return uint8[size]: how many of the cut's sets own each byte of the disk."""
    count = np.zeros(size, dtype=np.uint8)
    for one in (pieces.unused, pieces.dropped, pieces.zero, fragment_ranges(pieces)):
        for start, end in one.tolist():
            count[start:end] += 1
    return count
