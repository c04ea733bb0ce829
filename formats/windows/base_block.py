"""The base block: the header of a registry hive, and of each of its transaction logs.

Source: msuhanov/regf, "Windows registry file format specification" (2018), "Base block", "Hive
bin"; libyal/libregf, "Windows NT Registry File (REGF) format". All fields are little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from formats.errors import Corrupt, Truncated

BASE_BLOCK_BYTES = 4096
"""The base block of a hive; offsets inside the hive count from its end."""

SECTOR_BYTES = 512
"""What the checksum covers and what a log holds of it, at least."""

BIN_ALIGNMENT = 4096
"""Hive bins begin and end at multiples of this."""

PRIMARY = 0
"""file_type of a hive."""

OLD_LOGS = (1, 2)
"""file_type of logs with a dirty vector; 2 is how Windows 2000 and NT write it."""

NEW_LOG = 6
"""file_type of logs with entries: Windows 8.1 and later."""

_SIGNATURE = b"regf"
_FIELDS = struct.Struct("<4sIIQIIIIIII64s")
# 0 signature; 4 primary and 8 secondary sequence number, equal unless a write is under way;
# 12 last written, FILETIME; 20 major version, 1; 24 minor version, 3 to 6; 28 file type; 32 file
# format, 1; 36 root cell, offset; 40 size of the hive bins, bytes; 44 clustering factor, sector
# size / 512; 48 file name, UTF-16, for debugging
_SEQUENCE_NUMBERS = struct.Struct("<II")  # at 4
_FILE_TYPE_AT = 28
_BINS_SIZE_AT = 40
_FLAGS_AT = 144  # u32, Windows 10; bit 0: transactions lock the hive
_TRANSACTIONS = 0x1
_CHECKSUM_AT = 508  # u32
_U32 = struct.Struct("<I")

_BIN = struct.Struct("<4sII8xQ")
# hive bin: 0 "hbin"; 4 its own offset; 8 its size, bytes; 20 last written, FILETIME (first bin)


@dataclass(frozen=True, slots=True)
class BaseBlock:
    """The fields that tell which log belongs to which state of a hive.

    sound: whether signature and checksum fit; without that nothing else means anything.
    bins_size: bytes. sector_size: bytes, of the disk that the file was written to.
    """

    sound: bool
    primary_sequence: int
    secondary_sequence: int
    last_written: int
    file_type: int
    bins_size: int
    sector_size: int
    name: str

    @property
    def settled(self) -> bool:
        """Whether no write was under way."""
        return self.sound and self.primary_sequence == self.secondary_sequence


def read_base_block(data: bytes | bytearray) -> BaseBlock:
    """Return the base block of a hive or log, be it sound or not.

    Raises Truncated when the file is shorter than a sector.
    """
    if len(data) < SECTOR_BYTES:
        raise Truncated("base block", 0, f"expected {SECTOR_BYTES} bytes, found {len(data)}")
    fields = _FIELDS.unpack_from(data)
    signature, primary, secondary, written, _, _, kind, _, _, bins_size, clustering, name = fields
    (stored,) = _U32.unpack_from(data, _CHECKSUM_AT)
    return BaseBlock(
        signature == _SIGNATURE and stored == checksum(data),
        primary,
        secondary,
        written,
        kind,
        bins_size,
        clustering * SECTOR_BYTES,
        name.decode("utf-16-le", "replace").split("\0", 1)[0],
    )


def checksum(data: bytes | bytearray) -> int:
    """Return the XOR of the first 508 bytes as 32-bit words; 0 and -1 stand for other things."""
    found = int(np.bitwise_xor.reduce(np.frombuffer(data, "<u4", _CHECKSUM_AT // 4)))
    return {0xFFFF_FFFF: 0xFFFF_FFFE, 0: 1}.get(found, found)


def settle(hive: bytearray, sequence: int, bins_size: int, flags: int | None = None) -> None:
    """Make a hive in memory look as after a completed write.

    sequence: becomes both numbers. flags: of the last log entry, which only knows bit 0.
    """
    hive[:4] = _SIGNATURE
    _SEQUENCE_NUMBERS.pack_into(hive, 4, sequence, sequence)
    _U32.pack_into(hive, _FILE_TYPE_AT, PRIMARY)
    _U32.pack_into(hive, _BINS_SIZE_AT, bins_size)
    if flags is not None:
        (own,) = _U32.unpack_from(hive, _FLAGS_AT)
        _U32.pack_into(hive, _FLAGS_AT, own & ~_TRANSACTIONS | flags & _TRANSACTIONS)
    _U32.pack_into(hive, _CHECKSUM_AT, checksum(hive))


def first_bin_written(data: bytes) -> int:
    """Return the time in the first hive bin, the copy of the base block's; 0 if there is none."""
    if len(data) < BASE_BLOCK_BYTES + _BIN.size:
        return 0
    signature, _, _, written = _BIN.unpack_from(data, BASE_BLOCK_BYTES)
    return int(written) if signature == b"hbin" else 0


def check_bins(data: bytes | bytearray, bins_size: int) -> None:
    """Raise Corrupt or Truncated unless hive bins fill `bins_size` bytes without gaps."""
    if bins_size % BIN_ALIGNMENT or bins_size == 0:
        reason = f"hive bins of {bins_size} bytes, which is no multiple of {BIN_ALIGNMENT}"
        raise Corrupt("base block", _BINS_SIZE_AT, reason)
    if len(data) < BASE_BLOCK_BYTES + bins_size:
        reason = f"expected {bins_size} bytes, the file ends after {len(data) - BASE_BLOCK_BYTES}"
        raise Truncated("hive bins", BASE_BLOCK_BYTES, reason)
    position = 0
    while position < bins_size:
        signature, offset, size, _ = _BIN.unpack_from(data, BASE_BLOCK_BYTES + position)
        fits = BIN_ALIGNMENT <= size <= bins_size - position and size % BIN_ALIGNMENT == 0
        if signature != b"hbin" or offset != position or not fits:
            reason = f"expected one at {position}, found {signature!r}, {offset}, {size} bytes"
            raise Corrupt("hive bin", BASE_BLOCK_BYTES + position, reason)
        position += size
