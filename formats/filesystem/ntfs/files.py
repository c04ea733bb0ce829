"""The files of a volume: which of them may be listed, and what contradicts what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from formats.filesystem.model import Streams
from formats.filesystem.ntfs import c_ntfs
from formats.filesystem.ntfs.boot import BOOT_CODE_BYTES, Boot
from formats.filesystem.ntfs.gather import Flags
from formats.filesystem.ntfs.lists import disagreements, parse_lists
from formats.filesystem.ntfs.paths import Paths, find_paths
from formats.filesystem.ntfs.reparse import MAX_REPARSE_BYTES, link_target
from formats.filesystem.ntfs.runs import HOLE, clashing
from formats.filesystem.ntfs.shadow import is_store
from formats.filesystem.ntfs.streams import (
    Groups,
    group_streams,
    inconsistent,
    to_streams,
)
from formats.filesystem.ntfs.table import Table
from formats.ranges import Ranges, as_ranges, union
from formats.source import Source


@dataclass(frozen=True, slots=True)
class Files:
    """names: (row of the streams, path). symlinks: (path, target).

    used: bytes of all clusters that any attribute maps, listed or not, and of $Boot's.
    contradictions: what cannot be in a sound volume, one sentence each. lost: likewise, what is
    harmless and yet not listed.
    """

    streams: Streams
    names: tuple[tuple[int, str], ...]
    symlinks: tuple[tuple[str, str], ...]
    used: Ranges
    contradictions: tuple[str, ...]
    lost: tuple[str, ...]


def list_files(source: Source, boot: Boot, table: Table) -> Files:
    """Return the streams that are plain, whole and in conflict with nothing."""
    users = table.is_base
    users[: c_ntfs.FIRST_USER_RECORD] = False
    groups = group_streams(table, users)
    reparse = table.owners_of(table.attributes["type"] == c_ntfs.REPARSE_POINT)
    wanted = users & reparse
    wanted[groups.heads["owner"]] = True
    paths = find_paths(table, wanted)
    lost = np.zeros(len(wanted), dtype=np.bool_)
    lost[paths.lost] = True
    faults = [
        ("continued by records that do not fit", _strayed(table)),
        ("other attributes than the list names", _mislisted(source, boot, table)),
        ("parts or sizes that contradict each other", _inconsistent(table, groups, boot)),
        ("clusters that belong to others as well", table.owners_of(_sharing(table))),
    ]
    listed = wanted & ~lost & ~np.any([faulty for _, faulty in faults], axis=0)
    listed[paths.internal] = False
    groups = group_streams(table, listed)
    foreign = reparse | _stores(paths, len(listed))
    return Files(
        streams=to_streams(table, groups, foreign, boot),
        names=tuple(_stream_names(table, groups, paths)),
        symlinks=tuple(_links(source, boot, table, paths)),
        used=_used(table, boot),
        contradictions=tuple(_sentences(faults, paths)),
        lost=tuple(_sentences([("no path leads there from the root", lost)], paths)),
    )


def _used(table: Table, boot: Boot) -> Ranges:
    runs = table.runs.where(table.runs.lcn != HOLE)
    mapped = np.stack([runs.lcn, runs.lcn + runs.clusters], axis=1) * boot.cluster_size
    return union(mapped, as_ranges([(0, BOOT_CODE_BYTES)]))


def _stores(paths: Paths, records: int) -> Flags:
    """Return the stores of shadow copies, which are written past the file system."""
    stores = np.zeros(records, dtype=np.bool_)
    stores[[number for number, own in paths.of.items() if any(map(is_store, own))]] = True
    return stores


def _sentences(faults: list[tuple[str, Flags]], paths: Paths) -> Iterator[str]:
    for reason, owners in faults:
        count, first = int(owners.sum()), int(owners.argmax())
        place = paths.of.get(first, [f"record {first}"])[0]
        if count:
            yield f"{place}{f' and {count - 1} more' if count > 1 else ''}: {reason}"


def _strayed(table: Table) -> Flags:
    """Return the files, or else the records, that attributes in further records name wrongly."""
    rows = table.attributes
    strayed = np.zeros(len(table.records), dtype=np.bool_)
    further = rows[rows["holder"] != rows["owner"]]
    known = further["owner"] < len(strayed)
    owner = np.where(known, further["owner"], 0)
    base = table.records["base"][further["holder"]]
    known &= table.is_base[owner]
    fits = known & (table.records["sequence"][owner] == base >> np.uint64(c_ntfs.NUMBER_BITS))
    strayed[np.where(known, owner, further["holder"])[~fits]] = True
    return strayed


def _mislisted(source: Source, boot: Boot, table: Table) -> Flags:
    """Return the files in several records whose attribute lists name something else."""
    rows = table.attributes
    is_list = rows["type"] == c_ntfs.ATTRIBUTE_LIST
    mislisted = table.owners_of(is_list | (rows["holder"] != rows["owner"]))
    lists = dict(table.small_values(source, boot, c_ntfs.ATTRIBUTE_LIST, c_ntfs.MAX_LIST_BYTES))
    owners = np.array(list(lists), dtype=np.int64)
    mislisted[owners] = False
    has_list = np.zeros(len(mislisted), dtype=np.bool_)
    has_list[owners] = True
    mine = rows[table.owned_by(has_list)]
    sequences = table.records["sequence"].astype(np.int64)
    entries = parse_lists(list(lists.values()))
    mislisted[disagreements(owners, entries, mine, sequences)] = True
    return mislisted


def _inconsistent(table: Table, groups: Groups, boot: Boot) -> Flags:
    faulty = np.zeros(len(table.records), dtype=np.bool_)
    faulty[groups.heads["owner"][inconsistent(table, groups, boot)]] = True
    return faulty


def _sharing(table: Table) -> Flags:
    """Return the attributes that share a cluster with any other."""
    sharing = np.zeros(len(table.attributes), dtype=np.bool_)
    sharing[table.runs.attribute[clashing(table.runs)]] = True
    return sharing


def _stream_names(table: Table, groups: Groups, paths: Paths) -> Iterator[tuple[int, str]]:
    """Yield (stream, path) for every name of its file, with the stream's own name behind it."""
    suffixes = [f":{name}" if name else "" for name in table.stream_names]
    heads = groups.heads
    pairs = zip(heads["owner"].tolist(), heads["name"].tolist(), strict=True)
    for stream, (owner, name) in enumerate(pairs):
        for path in paths.of[owner]:
            yield stream, path + suffixes[name]


def _links(source: Source, boot: Boot, table: Table, paths: Paths) -> Iterator[tuple[str, str]]:
    """Yield (path, target) for symbolic links and junctions that stay in the volume."""
    points = table.small_values(source, boot, c_ntfs.REPARSE_POINT, MAX_REPARSE_BYTES)
    for number, value in points:
        target = link_target(value)
        if target:
            yield from ((path, target) for path in paths.of.get(number, ()))
