"""$ATTRIBUTE_LIST: which records hold the attributes of a file that needs several.

Source: ntfs-3g 2022.10.3 `libntfs-3g/attrib.c`, ntfs_external_attr_find. A list names every
attribute of its file but itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from formats.filesystem.ntfs import c_ntfs
from formats.filesystem.ntfs.gather import Column, Flags, Rows, gather, padded


@dataclass(frozen=True, slots=True)
class Entries:
    """Entries of several lists. row: int64[n], which list; entry: LIST_ENTRY[n].

    broken: bool[lists], whether a list ends nowhere.
    """

    row: Column
    entry: Rows
    broken: Flags


def parse_lists(lists: list[bytes]) -> Entries:
    """Return the entries of all lists, walked in lock step."""
    buffer = padded(b"".join(lists))
    lengths = np.array([len(one) for one in lists], dtype=np.int64)
    ends = np.cumsum(lengths)
    position = ends - lengths
    rows = np.arange(len(lists))
    broken = lengths > c_ntfs.MAX_LIST_BYTES
    rows, position = rows[~broken], position[~broken]
    found: list[tuple[Column, Rows]] = []
    while len(rows):
        going = position < ends[rows]
        rows, position = rows[going], position[going]
        entry = gather(buffer, position, c_ntfs.LIST_ENTRY)
        length = entry["length"].astype(np.int64)
        name_end = entry["name_offset"].astype(np.int64) + 2 * entry["name_length"]
        good = (length % 8 == 0) & (length >= c_ntfs.LIST_ENTRY.itemsize)
        good &= (position + length <= ends[rows]) & (name_end <= length)
        broken[rows[~good]] = True
        rows, position = rows[good], position[good] + length[good]
        found.append((rows, entry[good]))
    none = (np.empty(0, dtype=np.int64), np.empty(0, dtype=c_ntfs.LIST_ENTRY))
    row = np.concatenate([one for one, _ in [none, *found]])
    entries = np.concatenate([one for _, one in [none, *found]])
    return Entries(row, entries, broken)


def disagreements(
    owner_of_list: Column, entries: Entries, attributes: Rows, sequences: Column
) -> Column:
    """Return the owners whose lists do not name exactly the attributes that were found.

    owner_of_list: int64[lists]. attributes: ATTRIBUTE_ROW, all of these owners. sequences: of
    every record.
    """
    listed, found = entries.entry, attributes[attributes["type"] != c_ntfs.ATTRIBUTE_LIST]
    holder = (listed["holder"] & np.uint64(c_ntfs.NUMBER_MASK)).astype(np.int64)
    sequence = (listed["holder"] >> np.uint64(c_ntfs.NUMBER_BITS)).astype(np.int64)
    known = holder < len(sequences)
    stale = ~known | (sequences[np.where(known, holder, 0)] != sequence)
    sides = [
        (owner_of_list[entries.row], found["owner"]),
        (holder, found["holder"]),
        (listed["instance"].astype(np.int64), found["instance"].astype(np.int64)),
        (listed["type"].astype(np.int64), found["type"].astype(np.int64)),
        (listed["lowest_vcn"].astype(np.int64), found["lowest"]),
    ]
    columns = [np.concatenate(pair) for pair in sides]
    is_listed = np.arange(len(columns[0])) < len(listed)
    order = np.lexsort([is_listed, *columns])
    table = np.stack([column[order] for column in columns], axis=1)
    # Sorted, each attribute has to stand right before the entry that names it.
    same = (table[1:] == table[:-1]).all(axis=1) & ~is_listed[order][:-1] & is_listed[order][1:]
    paired = np.zeros(len(order), dtype=np.bool_)
    paired[1:] |= same
    paired[:-1] |= same
    return np.unique(
        np.concatenate(
            [
                owner_of_list[entries.broken],
                owner_of_list[entries.row[stale]],
                table[~paired, 0],
            ]
        )
    )
