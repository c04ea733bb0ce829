"""$LogFile: whether Windows finished its work on the volume.

Source: ntfs-3g 2022.10.3 `libntfs-3g/logfile.c` (ntfs_check_logfile, ntfs_is_logfile_clean) and
`include/ntfs-3g/logfile.h`. As there, only the two restart pages are read.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from formats.filesystem.ntfs.c_ntfs import SECTOR_BYTES
from formats.filesystem.ntfs.records import apply_fixups
from formats.source import Source

EMPTY_BYTE = 0xFF  # with which mkntfs and ntfs-3g fill a log that nobody needs any more
CHUNK_BYTES = 1 << 20
MAX_PAGE_BYTES = 64 << 10
MAX_LOG_BYTES = 4 << 30  # logfile.h, MaxLogFileSize

# 0 magic; 4 offset and 6 count of fixups; 8 LSN of chkdsk; 16 system page size; 20 log page size;
# 24 offset of the restart area; 26 minor, 28 major version
PAGE = struct.Struct("<4sHHqIIHhh")
# 0 current LSN; 8 number of clients; 10 first free client; 12 first client in use; 14 flags;
# 16 bits of a sequence number; 20 length of the area; 22 offset of the clients; 24 size of the log
AREA = struct.Struct("<qHHHHIHHq")
CLIENT_BYTES = 160
RESTART, CHECKED = b"RSTR", b"CHKD"
NO_CLIENT = 0xFFFF
VOLUME_IS_CLEAN = 0x0002
FAST_STARTUP_VERSION = 2


@dataclass(frozen=True, slots=True)
class _Restart:
    lsn: int
    major: int
    page_size: int
    in_use: bool


def unfinished(log: Source) -> str:
    """Return why the log says that work on the volume is unfinished, or an empty string."""
    if log.size > MAX_LOG_BYTES:
        return f"$LogFile has {log.size} bytes, more than any"
    if _is_empty(log):
        return ""
    first = _restart(log, 0)
    if first is None:
        return "$LogFile has no sound restart page"
    second = _restart(log, first.page_size)
    if second is None and _magic(log, first.page_size) in (RESTART, CHECKED):
        return "$LogFile has a torn restart page: Windows was stopped while it wrote"
    last = first if second is None or first.lsn >= second.lsn else second
    if last.major >= FAST_STARTUP_VERSION:
        return (
            f"$LogFile has version {last.major}: Windows keeps a part of the volume's state in "
            "memory or in a hibernation file (fast startup)"
        )
    if last.in_use:
        return "$LogFile is open: Windows was not shut down cleanly"
    return ""


def _is_empty(log: Source) -> bool:
    for start in range(0, log.size, CHUNK_BYTES):
        length = min(CHUNK_BYTES, log.size - start)
        if log.pread(start, length) != bytes([EMPTY_BYTE]) * length:
            return False
    return log.size > 0


def _magic(log: Source, position: int) -> bytes:
    return log.pread(position, 4) if position + 4 <= log.size else b""


def _restart(log: Source, position: int) -> _Restart | None:
    """Return what the restart page says, or None if it cannot be believed."""
    if position + SECTOR_BYTES > log.size:
        return None
    head = log.pread(position, SECTOR_BYTES)
    magic, _, fixups, chkdsk_lsn, page_size, log_page_size, place, minor, major = PAGE.unpack_from(
        head
    )
    sizes = (page_size, log_page_size)
    legal = all(SECTOR_BYTES <= one <= MAX_PAGE_BYTES and one & (one - 1) == 0 for one in sizes)
    if magic not in (RESTART, CHECKED) or not legal or position not in (0, page_size):
        return None
    if position + page_size > log.size or (major, minor) < (1, 1):
        return None
    page = np.frombuffer(log.pread(position, page_size), dtype=np.uint8).reshape(1, -1).copy()
    unprotected = magic == CHECKED and fixups == 0  # chkdsk may leave the fixups out
    if not unprotected and not apply_fixups(page)[0]:
        return None
    area_end = place + AREA.size
    if place % 8 or place < PAGE.size or area_end > SECTOR_BYTES - 2:
        return None
    lsn, clients, free, in_use, flags, _, length, client_place, size = AREA.unpack_from(
        page.tobytes(), place
    )
    lists = all(one == NO_CLIENT or one < clients for one in (free, in_use))
    fits = client_place + clients * CLIENT_BYTES <= length and place + length <= page_size
    if not lists or not fits or size > log.size:
        return None
    return _Restart(
        lsn if magic == RESTART else chkdsk_lsn,
        major,
        page_size,
        in_use != NO_CLIENT and not flags & VOLUME_IS_CLEAN,
    )
