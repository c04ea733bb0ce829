"""The whole master file table: where it lies, and what all its records say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from formats.errors import Corrupt
from formats.filesystem.ntfs import c_ntfs
from formats.filesystem.ntfs.boot import Boot
from formats.filesystem.ntfs.gather import Flags, Rows
from formats.filesystem.ntfs.mft import content, read_value
from formats.filesystem.ntfs.piece import (
    UNNAMED,
    Piece,
    StreamNames,
    read_piece,
)
from formats.filesystem.ntfs.records import parse_records
from formats.filesystem.ntfs.runs import HOLE, Runs, join
from formats.source import Source

PIECE_BYTES = 4 << 20

MAX_SMALL_VALUES_BYTES = 64 << 20
"""Of all values of a kind that lie outside their records; files of a forged volume share them."""


@dataclass(frozen=True, slots=True)
class Table:
    """All records, as the columns of `Piece`; row i of `records` is record i.

    stream_names: names of $DATA attributes, the first one empty. blank: bool[records], whether
    the place of a record holds something else.
    """

    records: Rows
    attributes: Rows
    runs: Runs
    names: Rows
    texts: list[str]
    values: dict[tuple[int, int], bytes]
    damaged: Flags
    blank: Flags
    stream_names: list[str]

    @property
    def is_base(self) -> Flags:
        """Records that are in use and begin a file; bool[records]."""
        in_use = self.records["flags"] & c_ntfs.IN_USE != 0
        return np.asarray(in_use & (self.records["base"] == 0), dtype=np.bool_)

    @property
    def is_directory(self) -> Flags:
        """Base records of directories; bool[records]."""
        directory = self.records["flags"] & c_ntfs.IS_DIRECTORY != 0
        return np.asarray(self.is_base & directory, dtype=np.bool_)

    def owned_by(self, owners: Flags) -> Flags:
        """Return the attributes that belong to any of the owners, bool[records]."""
        owner = self.attributes["owner"]
        known = owner < len(owners)
        return np.asarray(known & owners[np.where(known, owner, 0)], dtype=np.bool_)

    def owners_of(self, attributes: Flags) -> Flags:
        """Return the records that any of the attributes belong to; bool[records]."""
        owner = self.attributes["owner"][attributes]
        owners = np.zeros(len(self.records), dtype=np.bool_)
        owners[owner[owner < len(owners)]] = True
        return owners

    def content(self, source: Source, boot: Boot, owner: int, kind: int) -> Source:
        """Return what was written of an unnamed attribute of the file system's own.

        It is neither resident nor sparse, compressed or encrypted. Raises Corrupt.
        """
        rows = self.attributes
        mine = (rows["owner"] == owner) & (rows["type"] == kind) & rows["nonresident"]
        mine &= (rows["name"] == UNNAMED) & self.owned_by(self.is_base)
        heads = rows[mine & (rows["lowest"] == 0)]
        if len(heads) != 1:
            raise Corrupt(f"NTFS record {owner}", 0, f"expected one attribute of type {kind:#x}")
        runs = self.runs.where(mine[self.runs.attribute])
        if (runs.lcn == HOLE).any() or heads["flags"][0]:
            raise Corrupt(f"NTFS record {owner}", 0, "it has holes, or is not stored as it is read")
        runs = runs.where(np.argsort(runs.vcn, kind="stable"))
        size = min(int(heads["size"][0]), int(heads["initialized"][0]))
        return content(source, boot, runs, size)

    def small_values(
        self, source: Source, boot: Boot, kind: int, limit: int
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (base record, value) of a type of attribute, resident or not; unreadable ones not.

        At most one of each that is not resident.

        kind: one whose resident values are kept. limit: most bytes of a value.
        """
        budget = MAX_SMALL_VALUES_BYTES
        is_base = self.is_base
        for (number, of_kind), value in self.values.items():
            if of_kind == kind and is_base[number]:
                yield number, value
        rows = self.attributes
        places = np.flatnonzero((rows["type"] == kind) & rows["nonresident"])
        _, first = np.unique(rows["holder"][places], return_index=True)  # a sound file has one
        for place in places[first].tolist():
            number = int(rows["holder"][place])
            bounds = np.searchsorted(self.runs.attribute, (place, place + 1))
            runs = self.runs.where(np.arange(*bounds))
            if is_base[number]:
                try:
                    value = read_value(source, boot, rows[place], runs, min(limit, budget))
                except Corrupt:
                    continue
                budget -= len(value)
                yield number, value


def read_table(mft: Source, boot: Boot) -> Table:
    """Return what all records say; mft: as from `open_mft`."""
    count = mft.size // boot.record_size
    names = StreamNames()
    pieces: list[Piece] = []
    blanks: list[Flags] = []
    runs: list[Runs] = []
    attributes = 0
    step = PIECE_BYTES // boot.record_size
    for first in range(0, count, step):
        length = min(step, count - first) * boot.record_size
        data = mft.pread(first * boot.record_size, length)
        records = parse_records(data, first, boot.record_size)
        piece = read_piece(records, boot, names)
        one = piece.runs
        runs.append(Runs(one.attribute + attributes, one.vcn, one.lcn, one.clusters))
        attributes += len(piece.attributes)
        pieces.append(piece)
        blanks.append(records.blank)
    return Table(
        records=np.concatenate([one.records for one in pieces]),
        attributes=np.concatenate([one.attributes for one in pieces]),
        runs=join(runs),
        names=np.concatenate([one.names for one in pieces]),
        texts=[text for one in pieces for text in one.texts],
        values={key: value for one in pieces for key, value in one.values.items()},
        damaged=np.concatenate([one.damaged for one in pieces]),
        blank=np.concatenate(blanks),
        stream_names=names.texts,
    )
