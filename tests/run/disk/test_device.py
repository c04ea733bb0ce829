"""The lazy disk reads like the disk that was packed, whoever has its bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.contents import Class
from packer.artifact.map import Kind, Map
from packer.artifact.opened import OpenedPack
from packer.run.disk.device import TOUCHED_BYTES, LazyDisk
from packer.run.disk.resolve import Resolver
from packer.sources.open import SourceOpener, open_pack
from packer.sources.store import Store
from tests.artifact.make import contents_of, map_of
from tests.artifact.real_packs import disk_of, write_pack
from tests.round_trip.mirror import mirror
from tests.round_trip.packs import Packed
from tests.run.disk.lazy import (
    DISK,
    Lazy,
    joined,
    pack_with,
    read_at_random,
    running,
    thin_pack,
    until,
    within_time,
)
from tests.unpack.simulated import DATA, Files, Simulated, numbered

MIB = 1 << 20
ALL = tuple(Class)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[OpenedPack]:
    with pack_with(tmp_path / "full.vmpack", ALL) as pack:
        yield pack


@pytest.mark.parametrize("step", [997, 4096, 65_536, MIB, 32 * MIB])
def test_every_byte_is_that_of_the_original(tmp_path: Path, full: OpenedPack, step: int) -> None:
    async def work() -> None:
        async with running(full, [], tmp_path / "store") as lazy:
            assert await lazy.read_all(step) == DISK

    within_time(work())


def test_what_is_at_hand_is_read_without_waiting(tmp_path: Path) -> None:
    async def work() -> None:
        with thin_pack(tmp_path / "thin.vmpack") as pack:
            async with running(pack, [Simulated()], tmp_path / "store") as lazy:
                assert lazy.disk.read_now(0, 512) is None
                assert joined(lazy.disk.read_now(512, 3584) or []) == bytes(3584)
                assert await lazy.read_all() == DISK
                for start in range(0, len(DISK), 70_001):
                    end = min(start + 70_001, len(DISK))
                    parts = lazy.disk.read_now(start, end - start)
                    assert parts is not None, start
                    assert joined(parts) == DISK[start:end]

    within_time(work())


def test_zeros_are_told_by_their_number(tmp_path: Path, full: OpenedPack) -> None:
    async def work() -> None:
        async with running(full, [], tmp_path / "store") as lazy:
            await lazy.read(0, 4096)
            parts = lazy.disk.read_now(100, 1000)
            assert parts is not None
            assert [part if isinstance(part, int) else len(part) for part in parts] == [412, 588]

    within_time(work())


def test_extents_add_up_and_neighbours_differ(tmp_path: Path, full: OpenedPack) -> None:
    empty = np.ones(len(DISK), dtype=bool)
    for start, end in full.map.ranges_of_kind(Kind.CONTENT).tolist():
        empty[start:end] = False
    disk = LazyDisk(full.map, Resolver(full, [], Store(tmp_path / "store")))
    chance = np.random.default_rng(1)
    for _ in range(200):
        offset = int(chance.integers(0, len(DISK)))
        length = int(chance.integers(1, len(DISK) - offset + 1))
        found = list(disk.extents(offset, length))
        assert all(one[1] != two[1] for one, two in pairwise(found))
        assert sum(count for count, _ in found) == length
        flags = np.repeat([zero for _, zero in found], [count for count, _ in found])
        assert (flags == empty[offset : offset + length]).all()


def test_it_is_known_what_was_read(tmp_path: Path, full: OpenedPack) -> None:
    async def work() -> None:
        async with running(full, [], tmp_path / "store") as lazy:
            assert lazy.disk.touched().tolist() == []
            await lazy.read(TOUCHED_BYTES - 1, 2)
            await lazy.read(5 * TOUCHED_BYTES, TOUCHED_BYTES)
            await lazy.read(len(DISK) - 1, 1)
            last = len(DISK) // TOUCHED_BYTES * TOUCHED_BYTES
            touched = [[0, 2], [5, 6]]
            expected = [[a * TOUCHED_BYTES, b * TOUCHED_BYTES] for a, b in touched]
            assert lazy.disk.touched().tolist() == [*expected, [last, len(DISK)]]
            lazy.disk.forget_touched()
            assert lazy.disk.touched().tolist() == []
            assert len(lazy.resolver.demanded()) > 0

    within_time(work())


def test_eight_readers_at_once_get_right_bytes(tmp_path: Path) -> None:
    """From files, a mirror and the pack itself, with little memory and few open files."""
    files = Files(tmp_path / "files", {3: DATA[3], 5: DATA[5]})
    pack_with(f"{tmp_path}/full/", ALL).close()

    async def work() -> None:
        store, options = tmp_path / "store", {"memory_bytes": 50_000, "most_open": 2}
        with (
            mirror(tmp_path / "full") as far,
            thin_pack(tmp_path / "thin.vmpack") as pack,
            SourceOpener(Store(store), pack) as opener,
        ):
            async with running(pack, [files, opener.open(far.url)], store, **options) as lazy:
                await asyncio.gather(*(read_at_random(lazy, DISK, 100, seed) for seed in range(8)))

    within_time(work())


def big_map(count: int) -> tuple[Map, list[bytes]]:
    data = [numbered(600 + number % 1000, number) for number in range(count)]
    contents = contents_of(data)
    rows = []
    for row, one in enumerate(data):
        rows.append((Kind.CONTENT, len(one), row, 0))
        rows.append((Kind.UNUSED, 4096 - len(one) % 4096, -1, 0))
    return map_of(contents, rows), data


def test_a_large_disk_is_ready_at_once(tmp_path: Path) -> None:
    """12,500 contents, as a Debian guest has; none of them is looked for before it is ready."""
    disk_map, data = big_map(12_500)
    place = tmp_path / "full.vmpack"
    write_pack(place, data, [Class.SHARED] * len(data), disk_map=disk_map).close()

    async def work() -> float:
        with open_pack(str(place)) as pack:
            started = time.monotonic()
            async with running(pack, [], tmp_path / "store") as lazy:
                await lazy.read(0, 4096)
                took = time.monotonic() - started
                await read_at_random(lazy, disk_of(disk_map, data), 100, 1)
                return took

    assert within_time(work()) < 1.0


def test_a_disk_in_crumbs_is_read_in_bounded_pieces(tmp_path: Path) -> None:
    """A hostile map: each byte lies elsewhere in one content."""
    data = numbered(65_536, 7)
    count = 200_000
    offsets = (np.arange(count) * 7919 % len(data)).tolist()
    crumbs = [(Kind.CONTENT, 1, 0, offset) for offset in offsets]
    disk_map = map_of(contents_of([data]), [*crumbs, (Kind.ZERO, -count % 512, -1, 0)])
    disk = disk_of(disk_map, [data])
    place = tmp_path / "full.vmpack"
    write_pack(place, [data], [Class.SHARED], disk_map=disk_map).close()

    async def work() -> None:
        with open_pack(str(place)) as pack:
            async with running(pack, [], tmp_path / "store") as lazy:
                longest = 0.0

                async def watch() -> None:
                    nonlocal longest
                    while True:
                        began = time.monotonic()
                        await asyncio.sleep(0)
                        longest = max(longest, time.monotonic() - began)

                watching = asyncio.create_task(watch())
                for _ in range(2):
                    parts = await lazy.disk.read(0, len(disk))
                    assert joined(parts) == disk
                    assert len(parts) <= 8
                assert lazy.disk.read_now(0, len(disk)) is None
                watching.cancel()
                assert longest < 0.2

    within_time(work())


# -- real guests -----------------------------------------------------------------------------------


async def compare(lazy: Lazy, pack: OpenedPack, image: Path) -> None:
    """Every byte is the original's, zero where the pack says that nothing is kept."""
    lost = [pack.map.ranges_of_kind(kind) for kind in (Kind.UNUSED, Kind.DROPPED)]
    ranges = np.concatenate(lost)
    with image.open("rb") as file:
        for offset in range(0, lazy.disk.size, MIB):
            expected = bytearray(file.read(MIB))
            near = (ranges[:, 0] < offset + len(expected)) & (ranges[:, 1] > offset)
            for start, end in ranges[near].tolist():
                low, high = max(start - offset, 0), min(end - offset, len(expected))
                expected[low:high] = bytes(high - low)
            assert await lazy.read(offset, len(expected)) == expected, offset


@pytest.mark.guest
@pytest.mark.parametrize("name", ["busybox", pytest.param("debian-bios", marks=pytest.mark.slow)])
def test_a_thin_guest_reads_like_its_original(
    pack_guest: Callable[[str], Packed], room: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From this host's files and a mirror; then from the store alone."""
    monkeypatch.setenv("VMPACK_HOME", str(room / "home"))
    packed = pack_guest(name)
    store = room / "store"

    async def work() -> None:
        with mirror(packed.full) as far, open_pack(str(packed.thin)) as pack:
            with SourceOpener(Store(store), pack) as opener:
                sources, _ = opener.open_all(["dir:/usr", far.url])
                async with running(pack, sources, store, hold_seconds=30) as lazy:
                    await compare(lazy, pack, packed.guest.image)
                    assert lazy.resolver.status().at_hand == len(pack.map.contents)
            async with running(pack, [], store) as lazy:
                await compare(lazy, pack, packed.guest.image)
                given = lazy.given_by(f"store:{store}")
                await until(lambda: lazy.resolver.status().at_hand == len(pack.map.contents))
                assert (given.proven_bytes > 0) == (name != "busybox")

    asyncio.run(work())
