"""Whether a volume is in order, so that what it calls free may be believed."""

from __future__ import annotations

import struct

from formats.errors import FormatError
from formats.filesystem.ntfs import c_ntfs, log
from formats.filesystem.ntfs.boot import Boot
from formats.filesystem.ntfs.records import parse_records
from formats.filesystem.ntfs.space import read_bits
from formats.filesystem.ntfs.table import Table
from formats.source import Source

VERSIONS = ((3, 0), (3, 1))  # NT 5.0; XP and everything later
RESERVED_RECORDS = slice(16, 24)  # allocated from the start, in whatever state

_INFORMATION = struct.Struct("<8xBBH")  # 8: major, 9: minor version, 10: flags
_UNFINISHED = {
    c_ntfs.VOLUME_IS_DIRTY: "not cleanly unmounted, or errors were found",
    c_ntfs.VOLUME_CHKDSK_UNDERWAY: "chkdsk has not finished",
    c_ntfs.VOLUME_DELETE_USN_UNDERWAY: "the change journal is being deleted",
}


def doubt(source: Source, boot: Boot, mft: Source, table: Table) -> str:
    """Return why the volume is not in order, or an empty string."""
    return (
        _flags_doubt(table)
        or _log_doubt(source, boot, table)
        or _mirror_doubt(source, boot, mft, table)
        or _records_doubt(source, boot, table)
    )


def _flags_doubt(table: Table) -> str:
    value = table.values.get((c_ntfs.VOLUME_RECORD, c_ntfs.VOLUME_INFORMATION), b"")
    if len(value) < _INFORMATION.size:
        return "$Volume says nothing about the volume's state"
    major, minor, flags = _INFORMATION.unpack_from(value)
    for flag, meaning in _UNFINISHED.items():
        if flags & flag:
            return f"$Volume has the flags {flags:#06x}: {meaning}"
    if (major, minor) not in VERSIONS:
        return f"NTFS version {major}.{minor} is not known"
    return ""


def _log_doubt(source: Source, boot: Boot, table: Table) -> str:
    try:
        journal = table.content(source, boot, c_ntfs.LOG_FILE_RECORD, c_ntfs.DATA)
        return log.unfinished(journal)
    except FormatError as error:
        return f"$LogFile cannot be read: {error}"


def _mirror_doubt(source: Source, boot: Boot, mft: Source, table: Table) -> str:
    """Compare the first records with their copies, as ntfs-3g does before it mounts."""
    length = c_ntfs.MIRRORED_RECORDS * boot.record_size
    try:
        mirror = table.content(source, boot, c_ntfs.MFT_RECORD + 1, c_ntfs.DATA)
        pair = [parse_records(one.pread(0, length), 0, boot.record_size) for one in (mft, mirror)]
    except FormatError as error:
        return f"$MFTMirr cannot be read: {error}"
    records, copies = pair
    for number in range(c_ntfs.MIRRORED_RECORDS):
        # What comes before the attributes holds the fixups, which change with every write.
        start = number * boot.record_size + int(records.header["attributes"][number])
        end = number * boot.record_size + int(records.header["used"][number])
        same = records.buffer[start:end].tobytes() == copies.buffer[start:end].tobytes()
        if not same or not copies.sound[number]:
            return f"$MFTMirr differs from $MFT in record {number}"
    return ""


def _records_doubt(source: Source, boot: Boot, table: Table) -> str:
    damaged = table.damaged.copy()
    try:
        bitmap = table.content(source, boot, c_ntfs.MFT_RECORD, c_ntfs.BITMAP)
        allocated = read_bits(bitmap, 0, len(table.blank))
    except FormatError as error:
        return f"the bitmap of $MFT cannot be read: {error}"
    lost = allocated & table.blank
    lost[RESERVED_RECORDS] = False
    damaged |= lost
    if damaged.any():
        return f"damaged records: {int(damaged.sum())}, the first is {int(damaged.argmax())}"
    return ""
