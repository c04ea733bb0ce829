"""Seeded damage to good images, and a bound on what reading them may cost."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

GIB = 1 << 30
PAGE_BYTES = resource.getpagesize()
INTERESTING = (0x00, 0x01, 0x7F, 0x80, 0xFE, 0xFF)


def damaged(
    image: bytes, areas: Sequence[tuple[int, int]], count: int, seed: int = 1
) -> Iterator[bytes]:
    """Yield `count` damaged copies: bits flipped and bytes set in `areas`, or the end cut off."""
    chance = random.Random(seed)
    areas = [(start, min(end, len(image))) for start, end in areas]
    for attempt in range(count):
        broken = bytearray(image)
        if attempt % 8 == 7:
            start, end = chance.choice(areas)
            yield bytes(broken[: chance.randrange(start, end)])
            continue
        for _ in range(chance.choice((1, 1, 1, 2, 8))):
            position = chance.randrange(*chance.choice(areas))
            if chance.random() < 0.5:
                broken[position] ^= 1 << chance.randrange(8)
            else:
                broken[position] = chance.choice(INTERESTING)
        yield bytes(broken)


@contextmanager
def at_most_one_gib() -> Iterator[None]:
    """Let the process grow by one GiB and no more; beyond that is a MemoryError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped_pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (mapped_pages * PAGE_BYTES + GIB, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
