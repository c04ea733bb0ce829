"""NTFS as it lies on disk; all fields are little-endian.

Sources: ntfs-3g 2022.10.3 `include/ntfs-3g/layout.h`, and the libyal project's `libfsntfs`,
`documentation/New Technologies File System (NTFS).asciidoc`.
"""

from __future__ import annotations

import numpy as np

SECTOR_BYTES = 512
"""What a fixup protects, whatever the device's sectors are (layout.h, NTFS_BLOCK_SIZE)."""

# Records of the master file table that mean something to the file system
MFT_RECORD = 0
LOG_FILE_RECORD = 2
VOLUME_RECORD = 3
ROOT_RECORD = 5
BITMAP_RECORD = 6
EXTEND_RECORD = 11
FIRST_USER_RECORD = 24
MIRRORED_RECORDS = 4
"""Records 0 to 3 have copies in $MFTMirr."""

# A reference to a record: 48 bits of number, 16 bits of sequence
NUMBER_BITS = 48
NUMBER_MASK = (1 << NUMBER_BITS) - 1

FILE_MAGIC = int.from_bytes(b"FILE", "little")
BAD_MAGIC = int.from_bytes(b"BAAD", "little")  # chkdsk and drivers mark torn records so

# Flags of a record
IN_USE = 0x1
IS_DIRECTORY = 0x2

# Types of attributes
ATTRIBUTE_LIST = 0x20
FILE_NAME = 0x30
VOLUME_NAME = 0x60
VOLUME_INFORMATION = 0x70
DATA = 0x80
BITMAP = 0xB0
REPARSE_POINT = 0xC0
END = 0xFFFF_FFFF

# Flags of an attribute
COMPRESSION_MASK = 0x00FF
ENCRYPTED = 0x4000
SPARSE = 0x8000

# Namespaces of names
POSIX, WIN32, DOS, WIN32_AND_DOS = range(4)

RECORD = np.dtype(
    {
        "names": [
            "magic",  # "FILE", "BAAD"
            "sequence",  # counts how often the record was given to another file; 0 is legal
            "attributes",  # where the first attribute begins, bytes from the record's start
            "flags",  # IN_USE, IS_DIRECTORY
            "used",  # bytes of the record that are in use
            "allocated",  # bytes of the record
            "base",  # reference of the base record, 0 in a base record itself
            "number",  # number of this record; only where the fixups leave room (XP and later)
        ],
        "formats": ["<u4", "<u2", "<u2", "<u2", "<u4", "<u4", "<u8", "<u4"],
        "offsets": [0, 16, 20, 22, 24, 28, 32, 44],
        "itemsize": 48,
    }
)
RECORD_HEADER_BYTES = 42  # up to NT 5.0; then a u16 of padding and `number`
FIXUPS_BEHIND_NUMBER = 48  # where the fixups begin if there is a `number`

ATTRIBUTE = np.dtype(
    {
        "names": [
            "type",
            "length",  # bytes, with header and padding; a multiple of 8
            "nonresident",  # 0 or 1
            "name_length",  # UTF-16 units
            "name_offset",  # bytes from the attribute's start
            "flags",  # COMPRESSION_MASK, ENCRYPTED, SPARSE
            "instance",  # unique in its record
            # resident
            "value_length",  # bytes
            "value_offset",  # bytes from the attribute's start
            # non-resident
            "lowest_vcn",  # first cluster of the stream that this attribute maps
            "highest_vcn",  # last one; -1 when there is none
            "runs_offset",  # bytes from the attribute's start
            "compression_unit",  # log2 of clusters; 0: not compressed
            "allocated",  # bytes, with holes; the sizes count only where lowest_vcn is 0
            "size",  # bytes as a reader sees them
            "initialized",  # bytes that were ever written; the rest reads as zeros
        ],
        "formats": [
            *("<u4", "<u4", "u1", "u1", "<u2", "<u2", "<u2"),
            *("<u4", "<u2"),
            *("<i8", "<i8", "<u2", "u1", "<i8", "<i8", "<i8"),
        ],
        "offsets": [0, 4, 8, 9, 10, 12, 14, 16, 20, 16, 24, 32, 34, 40, 48, 56],
        "itemsize": 64,
    }
)
RESIDENT_HEADER_BYTES = 24
NONRESIDENT_HEADER_BYTES = 64

NAME = np.dtype(
    {
        "names": [
            "parent",  # reference of the directory
            "length",  # UTF-16 units
            "namespace",
        ],
        "formats": ["<u8", "u1", "u1"],
        "offsets": [0, 64, 65],
        "itemsize": 66,
    }
)
"""$FILE_NAME; the name itself follows."""

LIST_ENTRY = np.dtype(
    {
        "names": [
            "type",
            "length",  # bytes of the entry, a multiple of 8
            "name_length",  # UTF-16 units
            "name_offset",  # bytes from the entry's start
            "lowest_vcn",
            "holder",  # reference of the record that holds the attribute
            "instance",
        ],
        "formats": ["<u4", "<u2", "u1", "u1", "<i8", "<u8", "<u2"],
        "offsets": [0, 4, 6, 7, 8, 16, 24],
        "itemsize": 26,
    }
)
"""One attribute in an $ATTRIBUTE_LIST."""
MAX_LIST_BYTES = 256 << 10  # ntfs-3g attrlist.c: "Windows cannot handle more"

# Flags in $VOLUME_INFORMATION
VOLUME_IS_DIRTY = 0x0001
VOLUME_DELETE_USN_UNDERWAY = 0x0010
VOLUME_CHKDSK_UNDERWAY = 0x4000
