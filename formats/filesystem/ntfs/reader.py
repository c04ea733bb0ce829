"""NTFS volumes from NT 5 to Windows 11: streams, names, and what is free.

Everything is read here, in columns over all records of the master file table; see
docs/decisions/0032-own-ntfs-reader.md.
"""

from __future__ import annotations

from formats.errors import FormatError
from formats.filesystem.model import FileSystem
from formats.filesystem.ntfs import c_ntfs, shadow, trust
from formats.filesystem.ntfs.boot import Boot, read_boot
from formats.filesystem.ntfs.files import Files, list_files
from formats.filesystem.ntfs.mft import open_mft
from formats.filesystem.ntfs.piece import decode_name
from formats.filesystem.ntfs.space import read_free
from formats.filesystem.ntfs.table import Table, read_table
from formats.ranges import Ranges, empty_ranges, intersect, total
from formats.source import Source

MAX_LABEL_CHARACTERS = 128  # Windows allows 32


def probe(source: Source) -> bool:
    """Say whether the first sector is a sound NTFS boot sector."""
    try:
        read_boot(source)
    except FormatError:
        return False
    return True


def read(source: Source) -> FileSystem:
    """Return streams, names, symbolic links and, when the volume is in order, what is free.

    `inode` is the number of a record, its sequence left out. Resident streams and the file
    system's own files are not listed.

    Raises Truncated, Corrupt or Unsupported when the master file table cannot be found. Damage
    behind it gives the state "dirty", and what is damaged is not listed.
    """
    try:
        return _read(source)
    except MemoryError as error:
        raise FormatError("NTFS volume", 0, "more than memory can hold") from error


def _read(source: Source) -> FileSystem:
    boot = read_boot(source)
    mft = open_mft(source, boot)
    table = read_table(mft, boot)
    files = list_files(source, boot, table)
    free, doubt = _free(source, boot, table, files)
    reason = trust.doubt(source, boot, mft, table) or doubt
    if files.contradictions and not reason:
        reason = f"the volume is damaged: {files.contradictions[0]}"
    pointer = empty_ranges() if reason else shadow.read_catalogue_pointer(source)
    free = empty_ranges() if reason else free
    is_held = (
        len(pointer) > 0
        or shadow.may_be_elsewhere(source)
        or any(shadow.is_store(path) for _, path in files.names)
    )
    return FileSystem(
        kind="ntfs",
        block_size=boot.cluster_size,
        label=_label(table),
        uuid=boot.serial_text,
        state="dirty" if reason else "clean",
        state_reason=reason,
        free=empty_ranges() if is_held else free,
        held=free if is_held else empty_ranges(),
        snapshots=pointer,
        streams=files.streams,
        names=files.names,
        symlinks=files.symlinks,
        unread=(*files.contradictions, *files.lost),
    )


def _label(table: Table) -> str:
    raw = table.values.get((c_ntfs.VOLUME_RECORD, c_ntfs.VOLUME_NAME), b"")
    return decode_name(raw[: len(raw) // 2 * 2])[:MAX_LABEL_CHARACTERS]


def _free(source: Source, boot: Boot, table: Table, files: Files) -> tuple[Ranges, str]:
    """Return (the bytes that $Bitmap calls free, why they cannot be believed)."""
    try:
        bitmap = table.content(source, boot, c_ntfs.BITMAP_RECORD, c_ntfs.DATA)
        free = read_free(bitmap, boot.clusters, boot.cluster_size)
    except FormatError as error:
        return empty_ranges(), f"$Bitmap cannot be read: {error}"
    if contradiction := total(intersect(files.used, free)):
        return empty_ranges(), f"$Bitmap calls {contradiction} bytes of files free"
    return free, ""
