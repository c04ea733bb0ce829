"""Damage done to bytes that nobody signs: bits, numbers, pieces cut out, doubled and swapped."""

from __future__ import annotations

import random
from collections.abc import Iterator

EDGES = (0, 1, 0x7F, 0x80, 0xC0, 0xFF)
"""Bytes at which lengths, types and widths change their meaning."""

MOST_CHANGES = 3


def mutations(data: bytes, chance: random.Random, count: int) -> Iterator[bytes]:
    """Yield `count` damaged versions of `data`; the same seed gives the same ones."""
    for _ in range(count):
        broken = bytearray(data)
        for _ in range(chance.randint(1, MOST_CHANGES)):
            _damage(broken, chance)
        yield bytes(broken)


def _damage(data: bytearray, chance: random.Random) -> None:
    start, other = sorted(chance.randrange(len(data) + 1) for _ in range(2))
    kind = chance.randrange(6)
    if kind < 2 and start < len(data):
        data[start] ^= 1 << chance.randrange(8)
    elif kind == 2 and start < len(data):
        data[start] = chance.choice(EDGES)
    elif kind == 3:
        del data[start : start + chance.randint(1, 8)]
    elif kind == 4:
        data[start:start] = data[other : other + chance.randint(1, 8)]
    else:
        data[start : start + 4], data[other : other + 4] = (
            data[other : other + 4],
            data[start : start + 4],
        )
    if not data:
        data.append(0)
