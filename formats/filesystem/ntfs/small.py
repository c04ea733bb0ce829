"""Files so small that they lie in their record: they own no clusters, so no survey lists them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from formats.filesystem.ntfs import c_ntfs
from formats.filesystem.ntfs.attributes import find_attributes
from formats.filesystem.ntfs.boot import Boot, read_boot
from formats.filesystem.ntfs.mft import open_mft
from formats.filesystem.ntfs.paths import find_paths
from formats.filesystem.ntfs.records import parse_records
from formats.filesystem.ntfs.table import read_table
from formats.source import Source


def read_small_files(source: Source, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Yield (path, contents) of each resident file at one of the paths, in any case.

    Its path is as it was asked for. Raises FormatError when the master file table cannot be found.
    """
    asked = {path.casefold(): path for path in paths}
    last_names = {path.rpartition("/")[2] for path in asked}
    boot = read_boot(source)
    mft = open_mft(source, boot)
    table = read_table(mft, boot)
    wanted = np.zeros(len(table.records), dtype=np.bool_)
    named = [row for row, text in enumerate(table.texts) if text.casefold() in last_names]
    owner = table.names["owner"][np.array(named, dtype=np.int64)]
    wanted[owner[owner < len(wanted)]] = True
    for number, found in find_paths(table, wanted).of.items():
        for path in {one.casefold() for one in found} & asked.keys():
            data = _resident_data(mft, boot, number)
            if data is not None:
                yield asked[path], data


def _resident_data(mft: Source, boot: Boot, number: int) -> bytes | None:
    data = mft.pread(number * boot.record_size, boot.record_size)
    records = parse_records(data, number, boot.record_size)
    attributes = find_attributes(records)
    header = attributes.header
    chosen = (header["type"] == c_ntfs.DATA) & (header["nonresident"] == 0)
    chosen &= (header["name_length"] == 0) & (header["flags"] == 0)
    found = attributes.where(chosen)
    if len(found.row) != 1:
        return None
    start = int(found.position[0]) + int(found.header["value_offset"][0])
    return records.buffer[start : start + int(found.header["value_length"][0])].tobytes()
