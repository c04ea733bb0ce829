"""What symbol servers know a program by, out of its first bytes.

Two fields at fixed places, no loop: cheap enough to ask of every file of a guest.
`formats.windows.pe` reads programs properly.

Source: Microsoft, "PE Format", sections "MS-DOS Stub", "COFF File Header", "Optional Header".
"""

from __future__ import annotations

import struct
from typing import NamedTuple

START_BYTES = 4096
"""Linkers put the headers behind a stub of some hundred bytes."""

_PE_OFFSET = struct.Struct("<I")  # e_lfanew, at byte 60 of the MS-DOS header
_PE_OFFSET_AT = 0x3C
_HEADERS = struct.Struct("<4s4xI8xH2xH54xI")
# 0 signature; 8 TimeDateStamp; 20 SizeOfOptionalHeader, bytes; 24 Magic; 80 SizeOfImage, bytes
_MAGICS = (0x10B, 0x20B)  # PE32, PE32+
_LEAST_OPTIONAL_BYTES = 60  # up to the end of SizeOfImage


class ImageKey(NamedTuple):
    """timestamp: TimeDateStamp. size_of_image: SizeOfImage, bytes."""

    timestamp: int
    size_of_image: int


def image_key(start: bytes) -> ImageKey | None:
    """Return the key of the program whose first START_BYTES these are.

    None for what is no program, and for one whose headers lie elsewhere.
    """
    if start[:2] != b"MZ" or len(start) < _PE_OFFSET_AT + _PE_OFFSET.size:
        return None
    (offset,) = _PE_OFFSET.unpack_from(start, _PE_OFFSET_AT)
    if offset + _HEADERS.size > len(start):
        return None
    signature, timestamp, optional_bytes, magic, size = _HEADERS.unpack_from(start, offset)
    if signature != b"PE\0\0" or magic not in _MAGICS or optional_bytes < _LEAST_OPTIONAL_BYTES:
        return None
    return ImageKey(timestamp, size)
