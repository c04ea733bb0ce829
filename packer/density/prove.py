"""Read a disk back as a VM would have it, and compare it with the original."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

from formats.ranges import Ranges, intersect, union
from formats.source import Source
from packer.artifact.map import Kind, Map
from packer.artifact.opened import OpenedPack
from packer.errors import MismatchError
from packer.progress import Advance, Progress
from packer.run.disk.device import LazyDisk
from packer.run.disk.export import Part
from packer.run.disk.resolve import Resolver
from packer.sources.store import Store

_STEP_BYTES = 4 << 20
_AT_ONCE = 4
_HOLD_SECONDS = 10.0
"""A slow disk with many readers needs that for a step of small files."""


def prove(pack: OpenedPack, store: Store, original: Source, where: str, progress: Progress) -> None:
    """Compare the disk that a pack and a store make with the original, byte for byte.

    What is unused or dropped is not looked at. where: names the original. Raises MismatchError for
    the first byte that differs, UnavailableError for contents that are not there.
    """
    compared = _compared(pack.map, original)
    total = int((compared[:, 1] - compared[:, 0]).sum())
    with progress.stage("verifying", total) as advance:
        asyncio.run(_compare(pack, store, original, where, compared, advance))


def _compared(disk_map: Map, original: Source) -> Ranges:
    """Return what is compared. Where the map says zero and the original has a hole, both agree."""
    data = original.data_ranges(0, original.size)
    zero = intersect(data, disk_map.ranges_of_kind(Kind.ZERO))
    return union(disk_map.ranges_of_kind(Kind.CONTENT), zero)


async def _compare(
    pack: OpenedPack,
    store: Store,
    original: Source,
    where: str,
    compared: Ranges,
    advance: Advance,
) -> None:
    resolver = Resolver(pack, (), store, hold_seconds=_HOLD_SECONDS)
    disk = LazyDisk(pack.map, resolver)
    await resolver.start()

    async def check(start: int, end: int) -> None:
        parts = await disk.read(start, end - start)
        await asyncio.to_thread(_demand_equal, original, where, start, parts)
        advance(end - start)

    try:
        steps = list(_steps(compared))
        for first in range(0, len(steps), _AT_ONCE):
            await asyncio.gather(*(check(*one) for one in steps[first : first + _AT_ONCE]))
    finally:
        await resolver.close()


def _steps(ranges: Ranges) -> Iterator[tuple[int, int]]:
    for low, high in ranges.tolist():
        for start in range(low, high, _STEP_BYTES):
            yield start, min(start + _STEP_BYTES, high)


def _demand_equal(original: Source, where: str, offset: int, parts: Sequence[Part]) -> None:
    for part in parts:
        length = part if isinstance(part, int) else len(part)
        found = bytes(length) if isinstance(part, int) else bytes(part)
        expected = original.pread(offset, length)
        if found != expected:
            raise MismatchError(
                f"{where}: byte {offset + _first_difference(expected, found)} does not come back "
                "as it was",
                hint="the original is untouched; this is a bug of vmpack or a fault of this host",
            )
        offset += length


def _first_difference(one: bytes, other: bytes) -> int:
    pairs = enumerate(zip(one, other, strict=True))
    return next(place for place, (left, right) in pairs if left != right)
