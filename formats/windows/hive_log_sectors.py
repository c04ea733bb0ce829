"""A registry hive's transaction log as a vector of dirty sectors: until Windows 8.

Source: msuhanov/regf, "Windows registry file format specification" (2018), "Old format".
"""

from __future__ import annotations

import numpy as np

from formats.errors import Corrupt, Truncated
from formats.ranges import from_bits
from formats.windows.base_block import BASE_BLOCK_BYTES, BIN_ALIGNMENT, BaseBlock

_SIGNATURE = b"DIRT"
_UNIT = 512  # bytes of the hive bins for one bit, whatever the disk's sectors
_SECTOR_SIZES = (512, 4096)


def apply_sectors(hive: bytearray, log: bytes, head: BaseBlock, max_bins_size: int) -> int:
    """Write the log's base block and dirty sectors into the hive; return how many sectors.

    The vector begins in the log's second sector, with a bit for each 512 bytes of hive bins, the
    lowest bit first; the dirty sectors follow from the next sector on without gaps.

    Raises Truncated or Corrupt; the hive is then unchanged.
    """
    sector, bins_size = head.sector_size, head.bins_size
    if sector not in _SECTOR_SIZES:
        raise Corrupt("base block", 44, f"sectors of {sector} bytes")
    if bins_size % BIN_ALIGNMENT or not 0 < bins_size <= max_bins_size:
        raise Corrupt("base block", 40, f"hive bins of {bins_size} bytes")
    vector_at = sector + len(_SIGNATURE)
    vector_end = vector_at + bins_size // _UNIT // 8
    if len(log) < vector_end:
        raise Truncated("dirty vector", sector, f"the log ends at byte {len(log)}")
    if log[sector:vector_at] != _SIGNATURE:
        raise Corrupt("dirty vector", sector, f"found {log[sector:vector_at]!r}")
    vector = np.frombuffer(log, np.uint8, vector_end - vector_at, vector_at)
    bits = np.unpackbits(vector, bitorder="little").astype(bool)
    source = -(-vector_end // sector) * sector
    count = int(bits.sum())
    if len(log) < source + count * _UNIT:
        raise Truncated("dirty sectors", source, f"expected {count}, the log ends at {len(log)}")
    hive.extend(bytes(max(BASE_BLOCK_BYTES + bins_size - len(hive), 0)))
    hive[:sector] = log[:sector]
    for start, end in from_bits(bits, _UNIT, BASE_BLOCK_BYTES).tolist():
        hive[start:end] = log[source : source + end - start]
        source += end - start
    return count
