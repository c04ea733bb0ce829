"""Lazy disks of small packs, and what must come out of them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from packer.artifact.contents import Class
from packer.artifact.hints import Hints
from packer.artifact.map import Map
from packer.artifact.opened import OpenedPack
from packer.run.disk.device import LazyDisk
from packer.run.disk.export import Part
from packer.run.disk.resolve import Resolver
from packer.run.disk.status import FromSource
from packer.sources.base import Source
from packer.sources.store import Store
from tests.artifact.real_packs import disk_of, write_pack
from tests.unpack.simulated import CLASSES, DATA, sample_map

_Result = TypeVar("_Result")
MIB = 1 << 20
WITHIN_SECONDS = 20.0
QUICK: dict[str, Any] = {"hold_seconds": 5.0, "stall_seconds": 0.3, "retry_seconds": 0.1}


def whole_sectors(disk_map: Map) -> Map:
    """The same map with more zeros at its end, so that a pack may have it."""
    size = -(-disk_map.size // 512) * 512
    return replace(disk_map, size=size, end=np.append(disk_map.end[:-1], size))


DISK_MAP = whole_sectors(sample_map())
DISK = disk_of(DISK_MAP, DATA)


def thin_pack(place: str | Path, hints: Hints | None = None) -> OpenedPack:
    """A pack of the sample disk that carries its boot and private contents: rows 0 and 1."""
    return pack_with(place, [Class.BOOT, Class.PRIVATE], hints)


def pack_with(
    place: str | Path, carried: Sequence[Class], hints: Hints | None = None
) -> OpenedPack:
    return write_pack(place, DATA, CLASSES, disk_map=DISK_MAP, carried=carried, hints=hints)


@dataclass(frozen=True, slots=True)
class Lazy:
    """A running lazy disk and what brings its contents."""

    disk: LazyDisk
    resolver: Resolver

    async def read(self, offset: int, length: int) -> bytes:
        return joined(await self.disk.read(offset, length))

    async def read_all(self, step: int = 100_000) -> bytes:
        size = self.disk.size
        return b"".join([await self.read(at, min(step, size - at)) for at in range(0, size, step)])

    def given_by(self, uri: str) -> FromSource:
        (found,) = [one for one in self.resolver.status().sources if one.uri == uri]
        return found


def place_of(row: int) -> int:
    """Where on the disk a content begins."""
    whole = (DISK_MAP.content == row) & (DISK_MAP.offset == 0)
    return int(DISK_MAP.start[whole][0])


async def read_content(lazy: Lazy, row: int, length: int = 5) -> bytes:
    return await lazy.read(place_of(row), length)


def joined(parts: Sequence[Part]) -> bytes:
    return b"".join(bytes(part) for part in parts)


@asynccontextmanager
async def running(
    pack: OpenedPack, sources: Sequence[Source], store: Path, **options: Any
) -> AsyncIterator[Lazy]:
    resolver = Resolver(pack, sources, Store(store), **{**QUICK, **options})
    await resolver.start()
    try:
        yield Lazy(LazyDisk(pack.map, resolver), resolver)
    finally:
        await resolver.close()


def within_time(work: Awaitable[_Result]) -> _Result:
    """Run something that must come to an end."""

    async def bounded() -> _Result:
        return await asyncio.wait_for(work, WITHIN_SECONDS)

    return asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    """Return when a condition holds."""
    while not condition():
        await asyncio.sleep(0.01)


async def read_at_random(
    lazy: Lazy, expected: bytes, count: int, seed: int, most: int = 300_000
) -> None:
    """Read parts of any size and alignment; each must be right."""
    chance = random.Random(seed)
    for _ in range(count):
        length = chance.choice([1, 512, 4096, 65_536, chance.randint(1, most)])
        length = min(length, len(expected))
        offset = chance.randint(0, len(expected) - length)
        assert await lazy.read(offset, length) == expected[offset : offset + length]
