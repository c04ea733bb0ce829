"""What a piece of the master file table says, as columns: nothing is judged yet but its bounds."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from formats.filesystem.ntfs import c_ntfs
from formats.filesystem.ntfs.attributes import Attributes, find_attributes
from formats.filesystem.ntfs.boot import Boot
from formats.filesystem.ntfs.gather import Column, Flags, Rows, gather
from formats.filesystem.ntfs.records import Records
from formats.filesystem.ntfs.runs import Decoded, Runs, decode_runs

MAX_FILE_BYTES = 1 << 60
"""More is no file's size: NTFS stops at 2^63, and sums of these stay in an int64."""

UNNAMED = 0
"""The `name` of an attribute without a name, and of every attribute that is no $DATA."""

RECORD_ROW = np.dtype(
    [
        ("sequence", np.uint16),
        ("flags", np.uint16),  # 0 where the record cannot be read or is not in use
        ("base", np.uint64),  # reference of the base record; 0: it is one itself
    ]
)

ATTRIBUTE_ROW = np.dtype(
    [
        ("holder", np.int64),  # number of the record that it lies in
        ("owner", np.int64),  # number of that record's base record
        ("type", np.uint32),
        ("name", np.int32),  # row in the stream names
        ("instance", np.uint16),
        ("flags", np.uint16),
        ("nonresident", np.bool_),
        ("compression_unit", np.uint8),
        ("lowest", np.int64),  # first VCN that it maps; 0 where resident
        ("end", np.int64),  # VCN behind the last one
        ("allocated", np.int64),  # bytes; as the next two only where lowest is 0
        ("size", np.int64),
        ("initialized", np.int64),
    ]
)

NAME_ROW = np.dtype(
    [
        ("owner", np.int64),
        ("parent", np.uint64),  # reference
        ("namespace", np.uint8),
    ]
)

# Resident values that are kept
_KEPT_VALUES = (
    c_ntfs.ATTRIBUTE_LIST,
    c_ntfs.VOLUME_NAME,
    c_ntfs.VOLUME_INFORMATION,
    c_ntfs.REPARSE_POINT,
)


@dataclass(slots=True)
class StreamNames:
    """The different names of $DATA attributes; row 0 is that of unnamed ones."""

    texts: list[str] = field(default_factory=lambda: [""])
    _rows: dict[bytes, int] = field(default_factory=lambda: {b"": UNNAMED})

    def row(self, raw: bytes) -> int:
        """Return the row of a name in UTF-16."""
        row = self._rows.get(raw)
        if row is None:
            row = self._rows[raw] = len(self.texts)
            self.texts.append(decode_name(raw))
        return row


@dataclass(frozen=True, slots=True)
class Piece:
    """records: RECORD_ROW, one for each record. attributes: ATTRIBUTE_ROW; the non-resident ones,
    $DATA, and all of a file of several records. runs: of the attributes. names: NAME_ROW, with
    texts. values: (record, type) -> value of a resident attribute. damaged: bool[records].
    """

    records: Rows
    attributes: Rows
    runs: Runs
    names: Rows
    texts: list[str]
    values: dict[tuple[int, int], bytes]
    damaged: Flags


def read_piece(records: Records, boot: Boot, stream_names: StreamNames) -> Piece:
    """Return what the records say; a record that contradicts itself is damaged and says nothing."""
    found = find_attributes(records)
    mapped = np.flatnonzero(found.header["nonresident"] == 1)
    decoded = _decode(records, found, mapped, boot)
    highest = found.header["highest_vcn"][mapped]
    broken = found.broken.copy()
    broken[found.row[mapped[decoded.broken | (decoded.end - 1 != highest)]]] = True
    sound = ~broken[found.row]
    kept = sound & _wanted(found, records)
    owner = _owners(records)
    rows = _rows(records, found.where(kept), owner, stream_names)
    rows["end"][rows["nonresident"]] = decoded.end[kept[mapped]]
    names, texts = _names(records, found.where(sound), owner)
    return Piece(
        records=_record_rows(records, broken),
        attributes=rows,
        runs=_kept_runs(decoded.runs, mapped, kept),
        names=names,
        texts=texts,
        values=_values(records, found.where(kept)),
        damaged=records.damaged | broken,
    )


def _decode(records: Records, found: Attributes, mapped: Column, boot: Boot) -> Decoded:
    """Return the runs of the attributes in the rows `mapped`."""
    header, position = found.header[mapped], found.position[mapped]
    return decode_runs(
        records.buffer,
        position + header["runs_offset"],
        position + header["length"],
        header["lowest_vcn"],
        boot.clusters,
        MAX_FILE_BYTES // boot.cluster_size,
    )


def _kept_runs(runs: Runs, mapped: Column, kept: Flags) -> Runs:
    """Return the runs of kept attributes, which they name by row; before by row in `mapped`."""
    runs = runs.where(kept[mapped[runs.attribute]])
    row = (np.cumsum(kept) - 1)[mapped[runs.attribute]]
    return Runs(row, runs.vcn, runs.lcn, runs.clusters)


def decode_name(raw: bytes) -> str:
    """Return a name in UTF-16, whose surrogates need not come in pairs, as Python names files.

    What is no UTF-16 gets the three bytes that UTF-8 would have for it, as ntfs-3g shows it.
    """
    text = raw.decode("utf-16-le", "surrogatepass")
    if text.isascii():
        return text
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")


def _record_rows(records: Records, broken: Flags) -> Rows:
    rows = np.zeros(len(records.header), dtype=RECORD_ROW)
    good = records.sound & ~broken
    for name in ("sequence", "flags", "base"):
        rows[name] = np.where(good, records.header[name], 0)
    return rows


def _owners(records: Records) -> Column:
    """Return the number of each record's base record."""
    own = np.arange(records.first, records.first + len(records.header))
    base = records.header["base"]
    return np.where(base != 0, base & np.uint64(c_ntfs.NUMBER_MASK), own).astype(np.int64)


def _wanted(attributes: Attributes, records: Records) -> Flags:
    """Say which attributes matter for clusters, streams or the lists of files in pieces."""
    kind = attributes.header["type"]
    spread = records.header["base"] != 0
    spread[attributes.row[kind == c_ntfs.ATTRIBUTE_LIST]] = True
    wanted = (attributes.header["nonresident"] == 1) | np.isin(kind, (c_ntfs.DATA, *_KEPT_VALUES))
    return np.asarray(wanted | spread[attributes.row], dtype=np.bool_)


def _rows(
    records: Records, attributes: Attributes, owner: Column, stream_names: StreamNames
) -> Rows:
    header = attributes.header
    nonresident = header["nonresident"] == 1
    rows = np.zeros(len(header), dtype=ATTRIBUTE_ROW)
    rows["holder"] = records.first + attributes.row
    rows["owner"] = owner[attributes.row]
    for name in ("type", "instance", "flags"):
        rows[name] = header[name]
    rows["nonresident"] = nonresident
    rows["lowest"] = np.where(nonresident, header["lowest_vcn"], 0)
    for name in ("compression_unit", "allocated", "size", "initialized"):
        rows[name] = np.where(nonresident, header[name], 0)
    named = np.flatnonzero((header["type"] == c_ntfs.DATA) & (header["name_length"] > 0))
    start = attributes.position[named] + header["name_offset"][named]
    end = start + 2 * header["name_length"][named].astype(np.int64)
    raw = records.buffer.data
    bounds = zip(start.tolist(), end.tolist(), strict=True)
    rows["name"][named] = [stream_names.row(bytes(raw[a:b])) for a, b in bounds]
    return rows


def _names(records: Records, attributes: Attributes, owner: Column) -> tuple[Rows, list[str]]:
    """Return the files' names; what is too short for one is none."""
    header = attributes.header
    chosen = attributes.where(
        (header["type"] == c_ntfs.FILE_NAME)
        & (header["nonresident"] == 0)
        & (header["value_length"] >= c_ntfs.NAME.itemsize)
    )
    start = chosen.position + chosen.header["value_offset"]
    name = gather(records.buffer, start, c_ntfs.NAME)
    length = 2 * name["length"].astype(np.int64)
    fits = c_ntfs.NAME.itemsize + length <= chosen.header["value_length"]
    rows = np.zeros(int(fits.sum()), dtype=NAME_ROW)
    rows["owner"] = owner[chosen.row[fits]]
    rows["parent"] = name["parent"][fits]
    rows["namespace"] = name["namespace"][fits]
    text = start[fits] + c_ntfs.NAME.itemsize
    raw = records.buffer.tobytes()
    bounds = zip(text.tolist(), (text + length[fits]).tolist(), strict=True)
    return rows, [decode_name(raw[a:b]) for a, b in bounds]


def _values(records: Records, attributes: Attributes) -> dict[tuple[int, int], bytes]:
    header = attributes.header
    number = records.first + attributes.row
    rows = np.flatnonzero(np.isin(header["type"], _KEPT_VALUES) & (header["nonresident"] == 0))
    start = attributes.position[rows] + header["value_offset"][rows]
    end = start + header["value_length"][rows]
    raw = records.buffer.data
    keys = zip(number[rows].tolist(), header["type"][rows].tolist(), strict=True)
    bounds = zip(start.tolist(), end.tolist(), strict=True)
    return {key: bytes(raw[a:b]) for key, (a, b) in zip(keys, bounds, strict=True)}
