"""$LogFile as Windows leaves it: two restart pages, and record pages behind them.

Source: ntfs-3g 2022.10.3 `include/ntfs-3g/logfile.h`. ntfs-3g itself judges what is made here.
"""

from __future__ import annotations

import struct

PAGE = 4096
SECTOR = 512
NO_CLIENT = 0xFFFF
IS_CLEAN = 2


def restart_page(
    log_bytes: int,
    *,
    lsn: int = 1000,
    version: tuple[int, int] = (1, 1),
    in_use: int = 0,
    flags: int = IS_CLEAN,
    magic: bytes = b"RSTR",
) -> bytes:
    """One restart page with its fixups; in_use: the first client that has the log open."""
    page = bytearray(PAGE)
    fixups, area, clients = 30, 64, 64
    major, minor = version
    chkdsk_lsn = lsn if magic == b"CHKD" else 0
    struct.pack_into(
        "<4sHHqIIHhh", page, 0, magic, fixups, PAGE // SECTOR + 1, chkdsk_lsn, PAGE, PAGE, area,
        minor, major,
    )  # fmt: skip
    free = NO_CLIENT if in_use != NO_CLIENT else 0
    sequence_bits = 67 - log_bytes.bit_length()
    struct.pack_into(
        "<qHHHHIHHqIHH", page, area, lsn, 1, free, in_use, flags, sequence_bits, clients + 160,
        clients, log_bytes, 0, 48, 64,
    )  # fmt: skip
    struct.pack_into("<qqHHH", page, area + clients, 0, 0, NO_CLIENT, NO_CLIENT, 0)
    struct.pack_into("<I8s", page, area + clients + 28, 8, "NTFS".encode("utf-16-le"))
    return protected(page)


def protected(page: bytearray) -> bytes:
    """The page with a number at the end of each sector, and what was there in its header."""
    number = b"\7\0"
    first = struct.unpack_from("<H", page, 4)[0]
    page[first : first + 2] = number
    for sector in range(len(page) // SECTOR):
        last = (sector + 1) * SECTOR - 2
        page[first + 2 + 2 * sector : first + 4 + 2 * sector] = page[last : last + 2]
        page[last : last + 2] = number
    return bytes(page)
