"""The boot sector of an NTFS volume.

Sources: ntfs-3g 2022.10.3 `libntfs-3g/bootsect.c` (ntfs_boot_sector_is_ntfs,
ntfs_boot_sector_parse); Microsoft, "NTFS: How it works", for the negative encodings.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from formats.errors import Corrupt, Truncated, Unsupported
from formats.source import Source

BOOT_SECTOR_BYTES = 512
BOOT_CODE_BYTES = 8192  # $Boot, with the boot sector and the header of shadow copies
OEM_ID = b"NTFS    "  # at 3
BOOT_SIGNATURE = b"\x55\xaa"  # at 510
MIN_SECTOR_BYTES, MAX_SECTOR_BYTES = 256, 4096
MAX_CLUSTER_BYTES = 2 << 20  # Windows 10 1709 and later; 64 KiB before
MIN_RECORD_BYTES, MAX_RECORD_BYTES = 1024, 4096
MAX_CLUSTERS = (1 << 32) - 1  # what Windows formats and mounts
LITERAL_SECTORS = 0x80  # sectors per cluster above this are a negative power of two


@dataclass(frozen=True, slots=True)
class Boot:
    """The checked values of a boot sector, in bytes and clusters.

    clusters: whole clusters of the volume. mft, mft_mirror: first cluster of $MFT and $MFTMirr.
    """

    sector_size: int
    cluster_size: int
    record_size: int
    clusters: int
    mft: int
    mft_mirror: int
    serial: int

    @property
    def serial_text(self) -> str:
        """The serial number as blkid writes it (util-linux `superblocks/ntfs.c`)."""
        return f"{self.serial:016X}"


def read_boot(source: Source) -> Boot:
    """Return the checked boot sector.

    Raises Truncated, Corrupt or Unsupported.
    """
    sector = source.pread(0, BOOT_SECTOR_BYTES)
    if sector[3:11] != OEM_ID or sector[510:512] != BOOT_SIGNATURE:
        raise Corrupt("NTFS boot sector", 0, "the OEM id or the signature 0x55 0xAA is missing")
    sector_size: int = struct.unpack_from("<H", sector, 11)[0]
    cluster_size = sector_size * _sectors_per_cluster(sector[13])
    if not MIN_SECTOR_BYTES <= sector_size <= MAX_SECTOR_BYTES or not _is_power(sector_size):
        raise Corrupt("NTFS boot sector", 11, f"impossible bytes per sector {sector_size}")
    if not _is_power(cluster_size):
        raise Corrupt("NTFS boot sector", 13, f"impossible sectors per cluster {sector[13]}")
    if cluster_size > MAX_CLUSTER_BYTES:
        raise Unsupported("NTFS boot sector", 13, f"clusters of {cluster_size} bytes")
    # 40: sectors of the volume, without the copy of the boot sector behind them
    sectors, mft, mft_mirror = struct.unpack_from("<QQQ", sector, 40)
    record_size = _size(sector[64], cluster_size)  # 64: i8, clusters, or log2 of bytes, negated
    if not MIN_RECORD_BYTES <= record_size <= MAX_RECORD_BYTES or not _is_power(record_size):
        raise Corrupt("NTFS boot sector", 64, f"impossible record size {record_size}")
    clusters = sectors * sector_size // cluster_size
    if clusters > MAX_CLUSTERS:
        raise Unsupported("NTFS boot sector", 40, f"{clusters} clusters")
    if sectors * sector_size > source.size:
        raise Truncated(
            "NTFS volume", 0, f"expected {sectors * sector_size} bytes, found {source.size}"
        )
    if not 0 < mft < clusters or not 0 < mft_mirror < clusters or mft == mft_mirror:
        raise Corrupt("NTFS boot sector", 48, "$MFT or $MFTMirr lies outside the volume")
    serial: int = struct.unpack_from("<Q", sector, 72)[0]
    return Boot(sector_size, cluster_size, record_size, clusters, mft, mft_mirror, serial)


def _sectors_per_cluster(value: int) -> int:
    """Return what byte 13 means: 0xF4 to 0xFF are 2^12 down to 2^1 sectors."""
    return value if value <= LITERAL_SECTORS else 1 << min(256 - value, 32)


def _size(value: int, cluster_size: int) -> int:
    return value * cluster_size if value < 0x80 else 1 << min(256 - value, 32)


def _is_power(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0
