"""Disks and files on their way to a child: what the parent has open, opened there once more."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from formats.container.flat import FlatDisk
from formats.container.raw import SECTOR_BYTES, open_raw
from formats.source import FileSource, Runs, Source
from packer.survey.wire import (
    MAX_BYTES,
    FileRuns,
    FlatColumns,
    MalformedError,
    NbdExport,
    Opening,
    PlainFile,
    pack_table,
    unpack_table,
)
from packer.transport.nbd import NbdSource


def pack_flat(disk: FlatDisk) -> FlatColumns:
    """Return the columns that another process can read the disk with."""
    return FlatColumns(
        disk.size,
        disk.cluster_size,
        disk.compression,
        pack_table(disk.runs),
        pack_table(disk.compressed),
        pack_table(disk.backed),
    )


def unpack_flat(columns: FlatColumns, file: Source, backing: Source | None) -> FlatDisk:
    """Return the disk; its own checks keep every read inside the file.

    Raises MalformedError, and FormatError for rows that contradict each other.
    """
    if not 0 <= columns.size <= MAX_BYTES:
        raise MalformedError(f"a disk of {columns.size} bytes")
    return FlatDisk(
        file,
        columns.size,
        unpack_table(columns.runs, "runs", 3),
        unpack_table(columns.compressed, "compressed clusters", 4),
        columns.cluster_size,
        columns.compression,
        backing,
        unpack_table(columns.backed, "backed ranges", 2),
    )


def open_source(opening: Opening) -> Source:
    """Open, in the child, what the parent has open.

    Raises OSError, FormatError, and Error for a server that does not answer.
    """
    if isinstance(opening, NbdExport):
        return NbdSource(opening.uri)
    file = inherited_file(opening.fd)
    if isinstance(opening, PlainFile):
        return raw_source(file)
    backing = open_source(opening.backing) if opening.backing is not None else None
    return unpack_flat(opening.columns, file, backing)


def inherited_file(fd: int) -> FileSource:
    """Open an inherited descriptor's file again, because a shared one has a shared position."""
    return FileSource(f"/dev/fd/{fd}")


def raw_source(file: FileSource) -> Source:
    """Return a raw image as a disk, which is always whole sectors long."""
    return file if file.size % SECTOR_BYTES == 0 else open_raw(file)


def pack_files(files: Sequence[NDArray[np.int64]]) -> FileRuns:
    """Return files, each as the runs that make it one (see formats.source.Runs)."""
    rows = [
        np.stack([np.full(len(runs), number), runs[:, 1] + 1, runs[:, 2]], axis=1)
        for number, runs in enumerate(files)
    ]
    return FileRuns(len(files), pack_table(np.concatenate([np.empty((0, 3), np.int64), *rows])))


def open_files(files: FileRuns, disk: Source) -> list[Runs]:
    """Return the files of a disk that the parent asks about."""
    rows = unpack_table(files.runs, "files", 3)
    bounds = np.searchsorted(rows[:, 0], np.arange(files.count + 1))
    return [Runs(disk, _runs(rows[low:high])) for low, high in pairwise(bounds.tolist())]


def _runs(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    starts = np.cumsum(rows[:, 2]) - rows[:, 2]
    return np.stack([starts, rows[:, 1] - 1, rows[:, 2]], axis=1)
