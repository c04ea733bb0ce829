"""How large a medium is: "700M", "4G", "cd", "dvd"."""

from __future__ import annotations

import re

from packer.errors import UsageError

SECTOR_BYTES = 2048

KINDS = {
    "cd": 359_849 * SECTOR_BYTES,  # 80 minutes; ECMA-394 leaves it to the maker, all keep this
    "dvd": 2_295_104 * SECTOR_BYTES,  # DVD+R, ECMA-349; DVD-R holds a little more
    "bluray": 12_219_392 * SECTOR_BYTES,  # BD-R with one layer
}

_UNITS = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,15})([kMGT]?)", re.ASCII)


def capacity_bytes(text: str) -> int:
    """Return the size of a medium in bytes: a kind, or a number with k, M, G or T (of 1024).

    Raises UsageError for anything else.
    """
    match = _SIZE.fullmatch(text)
    size = KINDS.get(text) or (int(match[1]) * _UNITS[match[2]] if match else 0)
    if not size:
        raise UsageError(
            f"{text}: expected the size of a medium: {', '.join(KINDS)}, or a number with "
            "k, M, G or T"
        )
    return size
