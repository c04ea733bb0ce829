"""Where the master file table lies: it describes itself, a record at a time."""

from __future__ import annotations

import numpy as np

from formats import source as sources
from formats.errors import Corrupt, Unsupported
from formats.filesystem.ntfs import c_ntfs
from formats.filesystem.ntfs.boot import Boot
from formats.filesystem.ntfs.gather import Rows
from formats.filesystem.ntfs.lists import parse_lists
from formats.filesystem.ntfs.piece import UNNAMED, Piece, StreamNames, read_piece
from formats.filesystem.ntfs.records import parse_records
from formats.filesystem.ntfs.runs import HOLE, Runs, join
from formats.ranges import overlap_of_sorted
from formats.source import Source

MAX_RECORDS = 1 << 26
"""Far more than there are files on any disk; bounds the memory for a forged table."""

MAX_EXTENSIONS = 1024
"""Records that $MFT itself may need; one holds about 200 runs."""

_WHAT = "NTFS master file table"


def content(source: Source, boot: Boot, runs: Runs, size: int) -> Source:
    """Return the first `size` bytes of a stream with these runs, by VCN.

    Raises Corrupt when they do not map it.
    """
    end = np.append(0, runs.vcn + runs.clusters)
    if not np.array_equal(runs.vcn, end[:-1]) or not 0 <= size <= int(end[-1]) * boot.cluster_size:
        raise Corrupt("NTFS run list", 0, f"it does not map the {size} bytes of its stream")
    cluster = boot.cluster_size
    target = np.where(runs.lcn == HOLE, -1, runs.lcn * cluster)
    pieces = np.stack([runs.vcn * cluster, target, runs.clusters * cluster], axis=1)
    return sources.Window(sources.Runs(source, pieces), 0, size)


def read_value(source: Source, boot: Boot, row: np.void, runs: Runs, limit: int) -> bytes:
    """Return the value of a small attribute that one attribute, not resident, maps.

    Raises Corrupt when it has more than `limit` bytes.
    """
    size = int(row["size"])
    if not 0 <= size <= limit or int(row["initialized"]) != size:
        raise Corrupt("NTFS attribute", 0, f"expected at most {limit} bytes, found {size}")
    return content(source, boot, runs, size).pread(0, size)


def open_mft(source: Source, boot: Boot) -> Source:
    """Return all records of the table that were ever written.

    Raises Corrupt or Unsupported.
    """
    place = boot.mft * boot.cluster_size
    base = _read_record(source, boot, place, c_ntfs.MFT_RECORD)
    data, runs = _unnamed_data(base)
    if len(data) != 1 or data["lowest"][0] != 0 or runs.lcn[:1].tolist() != [boot.mft]:
        raise Corrupt(_WHAT, place, "record 0 does not say where the table begins")
    size = min(int(data["size"][0]), int(data["initialized"][0]))
    runs = _with_extensions(source, boot, base, runs)
    used = np.stack([runs.lcn, runs.lcn + runs.clusters], axis=1)
    used = used[np.argsort(used[:, 0], kind="stable")]
    if (runs.lcn == HOLE).any() or overlap_of_sorted(used) >= 0:
        raise Corrupt(_WHAT, place, "the table has holes or overlaps itself")
    count = size // boot.record_size
    if count <= c_ntfs.FIRST_USER_RECORD - 8:  # 16 to 23 are reserved and may be missing
        raise Corrupt(_WHAT, place, f"it has room for {count} records")
    if count > MAX_RECORDS:
        raise Unsupported(_WHAT, place, f"{count} records")
    return content(source, boot, runs, count * boot.record_size)


def _with_extensions(source: Source, boot: Boot, base: Piece, runs: Runs) -> Runs:
    """Return the runs with those that lie in further records, which the runs before map."""
    entries = parse_lists([_own_list(source, boot, base)])
    entry = entries.entry
    further = entry[
        (entry["type"] == c_ntfs.DATA) & (entry["name_length"] == 0) & (entry["lowest_vcn"] > 0)
    ]
    if entries.broken.any() or len(further) > MAX_EXTENSIONS:
        raise Unsupported(_WHAT, boot.mft * boot.cluster_size, "its attribute list is too long")
    mapped = content(source, boot, runs, _mapped_bytes(boot, runs))
    for holder in further[np.argsort(further["lowest_vcn"], kind="stable")]["holder"].tolist():
        number = holder & c_ntfs.NUMBER_MASK
        place = number * boot.record_size
        if place + boot.record_size > mapped.size:
            mapped = content(source, boot, runs, _mapped_bytes(boot, runs))
        piece = _read_record(mapped, boot, place, number)
        data, more = _unnamed_data(piece)
        if len(data) != 1 or data["owner"][0] != c_ntfs.MFT_RECORD:
            raise Corrupt(_WHAT, place, f"record {number} does not continue it")
        runs = join([runs, more])
    return runs


def _mapped_bytes(boot: Boot, runs: Runs) -> int:
    return int(runs.clusters.sum()) * boot.cluster_size


def _read_record(source: Source, boot: Boot, place: int, number: int) -> Piece:
    data = source.pread(place, boot.record_size)
    piece = read_piece(parse_records(data, number, boot.record_size), boot, StreamNames())
    if piece.records["flags"][0] & c_ntfs.IN_USE == 0:
        raise Corrupt(_WHAT, place, f"record {number} cannot be read")
    return piece


def _unnamed_data(piece: Piece) -> tuple[Rows, Runs]:
    rows = piece.attributes
    chosen = (rows["type"] == c_ntfs.DATA) & (rows["name"] == UNNAMED) & rows["nonresident"]
    return rows[chosen], piece.runs.where(chosen[piece.runs.attribute])


def _own_list(source: Source, boot: Boot, base: Piece) -> bytes:
    rows = base.attributes
    chosen = (rows["type"] == c_ntfs.ATTRIBUTE_LIST) & rows["nonresident"]
    if not chosen.any():
        return base.values.get((c_ntfs.MFT_RECORD, c_ntfs.ATTRIBUTE_LIST), b"")
    runs = base.runs.where(chosen[base.runs.attribute])
    return read_value(source, boot, rows[chosen][0], runs, c_ntfs.MAX_LIST_BYTES)
