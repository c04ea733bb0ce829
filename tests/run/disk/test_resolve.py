"""Who is asked for what a disk lacks, in which order, how often, and what is told of it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.contents import Class
from packer.artifact.opened import OpenedPack
from packer.run.disk.resolve import WRITE_AFTER_SECONDS
from packer.sources.directory import DirectorySource
from packer.sources.store import Store
from tests.artifact.real_packs import hints_of
from tests.run.disk.lazy import (
    DISK,
    DISK_MAP,
    MIB,
    pack_with,
    place_of,
    read_content,
    running,
    thin_pack,
    until,
    within_time,
)
from tests.sources.stores import put, sha256
from tests.unpack.simulated import DATA, Files, InBlocks, InOneFrame, Simulated, breaks_after

ELSEWHERE = [2, 3, 4, 5]
"""The contents of the sample disk that its thin pack does not carry."""


# -- the order -------------------------------------------------------------------------------------


def test_who_is_near_is_asked_before_who_is_far(tmp_path: Path, thin: OpenedPack) -> None:
    local, near = Simulated("local:", {2: DATA[2]}), Simulated("near:", {3: DATA[3]}, local=False)
    far = Simulated("far:", local=False, cost=7)
    near.near = True
    put(Store(tmp_path / "store"), DATA[4])

    async def work() -> None:
        async with running(thin, [far, near, local], tmp_path / "store") as lazy:
            assert await lazy.read_all() == DISK
            carried = lazy.given_by(f"pack:{thin.layout.location}")
            assert carried.proven_bytes == len(DATA[0]) + len(DATA[1])
            assert lazy.given_by(f"store:{tmp_path}/store").proven_bytes == len(DATA[4])
            assert lazy.given_by("local:").proven_bytes == len(DATA[2])
            assert lazy.given_by("near:").proven_bytes == len(DATA[3])
            last = lazy.given_by("far:")
            assert (last.proven_bytes, last.fetched_bytes) == (len(DATA[5]), 7)

    within_time(work())


def test_of_those_far_away_the_cheapest_is_asked(tmp_path: Path, thin: OpenedPack) -> None:
    dear, cheap = (Simulated(f"{cost}:", local=False, cost=cost) for cost in (100, 10))

    async def work() -> None:
        async with running(thin, [dear, cheap], tmp_path / "store") as lazy:
            assert await lazy.read_all() == DISK
            assert dear.fetched == []
            assert lazy.resolver.status().missing == ()

    within_time(work())


def test_nobody_is_asked_for_what_the_pack_carries(tmp_path: Path) -> None:
    source = Simulated("far:", local=False)

    async def work() -> None:
        with pack_with(tmp_path / "full.vmpack", tuple(Class)) as pack:
            async with running(pack, [source], tmp_path / "store") as lazy:
                assert await lazy.read_all() == DISK
                assert source.asked == []
                assert not (tmp_path / "store").exists()
                status = lazy.resolver.status()
                assert status.at_hand == status.contents == len(DATA)
                assert status.demanded_bytes == status.content_bytes == sum(map(len, DATA))

    within_time(work())


def test_what_was_brought_once_is_found_in_the_store(tmp_path: Path, thin: OpenedPack) -> None:
    async def work() -> None:
        async with running(thin, [Simulated(local=False)], tmp_path / "store") as lazy:
            assert await lazy.read_all() == DISK
        async with running(thin, [], tmp_path / "store") as lazy:
            assert await lazy.read_all() == DISK
            given = lazy.given_by(f"store:{tmp_path}/store")
            assert given.proven_bytes == sum(len(DATA[row]) for row in ELSEWHERE)

    within_time(work())


def test_a_file_that_was_moved_is_found_by_looking_deep(tmp_path: Path) -> None:
    (tmp_path / "tree" / "lib").mkdir(parents=True)
    (tmp_path / "tree" / "lib" / "moved").write_bytes(DATA[3])
    hints = hints_of(DISK_MAP.contents, [(3, "/usr/lib/here", -1)])

    async def work() -> None:
        with thin_pack(tmp_path / "thin.vmpack", hints) as pack:
            source = DirectorySource(tmp_path / "tree")
            async with running(pack, [source], tmp_path / "store") as lazy:
                assert await read_content(lazy, 3, len(DATA[3])) == DATA[3]

    within_time(work())


def test_a_source_that_is_slow_to_look_delays_only_what_it_may_have(
    tmp_path: Path, thin: OpenedPack
) -> None:
    slow = Simulated("slow:")
    go_on = threading.Event()
    find = slow.find
    slow.find = lambda *given, **named: (go_on.wait(30), find(*given, **named))[1]  # type: ignore[method-assign]

    async def work() -> None:
        async with running(thin, [slow], tmp_path / "store", stall_seconds=30) as lazy:
            assert await read_content(lazy, 0) == DATA[0][:5]
            late = asyncio.create_task(read_content(lazy, 4))
            await asyncio.sleep(0.1)
            assert not late.done()
            go_on.set()
            assert await late == DATA[4]

    within_time(work())


# -- many at once ----------------------------------------------------------------------------------


def test_what_many_want_at_once_is_fetched_once(tmp_path: Path, thin: OpenedPack) -> None:
    source = Simulated(local=False)

    async def work() -> None:
        async with running(thin, [source], tmp_path / "store") as lazy:
            found = await asyncio.gather(*(read_content(lazy, 4) for _ in range(50)))
            assert set(found) == {DATA[4]}
            assert source.fetched == [[4]]

    within_time(work())


def test_pieces_that_travel_are_waited_for_and_others_fetched_alone(
    tmp_path: Path, thin: OpenedPack
) -> None:
    source = InBlocks("far:", local=False)

    async def work() -> None:
        async with running(thin, [source], tmp_path / "store") as lazy:
            start = place_of(2)
            await asyncio.gather(*(lazy.read(start + n * 4096, 4096) for n in range(20)))
            assert source.sent == [(2, 0)]
            await lazy.read(start + 3 * MIB - 1, 2)
            assert sorted(source.sent) == [(2, 0), (2, 2), (2, 3)]
            assert lazy.given_by("far:").fetched_bytes == 3

    within_time(work())


@pytest.mark.parametrize("wait", [True, False])
def test_what_comes_along_is_not_fetched_again_and_put_into_the_store(
    tmp_path: Path, thin: OpenedPack, wait: bool
) -> None:
    """By and by, and when the disk is closed."""
    source, store = InOneFrame(local=False), Store(tmp_path / "store")
    source.held = {row: DATA[row] for row in (3, 4)}

    def is_stored() -> bool:
        return store.holds(sha256(DATA[4]), len(DATA[4]))

    async def work() -> None:
        async with running(thin, [source], store.folder) as lazy:
            assert await read_content(lazy, 3) == DATA[3][:5]
            assert await read_content(lazy, 4) == DATA[4][:5]
            assert source.sent == [(3, 0)]
            await until(lambda: not wait or is_stored())

    within_time(work())
    assert is_stored()


def test_what_comes_along_and_cannot_be_stored_is_served_all_the_same(
    tmp_path: Path, thin: OpenedPack
) -> None:
    source = InOneFrame(local=False)
    source.held = {row: DATA[row] for row in (3, 4)}
    (tmp_path / "store").touch()

    async def work() -> None:
        async with running(thin, [source], tmp_path / "store") as lazy:
            assert await read_content(lazy, 3) == DATA[3][:5]
            await asyncio.sleep(WRITE_AFTER_SECONDS + 0.5)
            assert await read_content(lazy, 4) == DATA[4][:5]
            assert source.sent == [(3, 0)]

    within_time(work())


# -- what is told ----------------------------------------------------------------------------------


def test_bytes_are_counted_where_they_came_from(tmp_path: Path, thin: OpenedPack) -> None:
    put(Store(tmp_path / "store"), DATA[3])
    broken = Simulated("broken:", {2: DATA[2]}, local=False, cost=4000, twist=breaks_after(1))
    good = InBlocks("good:", local=False)
    good.cost = 99_000

    async def work() -> None:
        async with running(thin, [broken, good], tmp_path / "store") as lazy:
            for _ in range(2):  # from the store, the second time
                assert await lazy.read_all(16 * MIB) == DISK
            proven = {one.uri: one.proven_bytes for one in lazy.resolver.status().sources}
            assert proven["broken:"] == MIB
            assert proven[f"store:{tmp_path / 'store'}"] == len(DATA[3])
            assert sum(proven.values()) == sum(map(len, DATA))
            assert lazy.given_by("broken:").fetched_bytes == 4000 * MIB // len(DATA[2])
            assert lazy.given_by("good:").fetched_bytes == len(good.sent)

    within_time(work())


@pytest.mark.parametrize("files", [True, False])
def test_what_comes_again_counts_once(tmp_path: Path, thin: OpenedPack, files: bool) -> None:
    held = {2: DATA[2]}
    source = Files(tmp_path / "files", held) if files else Simulated("files:", held)
    (tmp_path / "store").touch()  # nothing can be kept there

    async def work() -> None:
        options = {"memory_bytes": 1}
        async with running(thin, [source], tmp_path / "store", **options) as lazy:
            while len(source.fetched) < 2:
                starts = range(place_of(2), place_of(2) + len(DATA[2]), MIB)
                found = await asyncio.gather(*(lazy.read(start, 5) for start in starts))
                assert found == [DATA[2][at : at + 5] for at in range(0, len(DATA[2]), MIB)]
                await asyncio.sleep(0.1)
            assert lazy.given_by("files:").proven_bytes == len(DATA[2])

    within_time(work())


def test_what_was_demanded_is_told_by_piece(tmp_path: Path, thin: OpenedPack) -> None:
    async def work() -> None:
        async with running(thin, [Simulated()], tmp_path / "store") as lazy:
            await lazy.read(place_of(2) + MIB - 1, 2)
            assert lazy.resolver.demanded().tolist() == [[2, 0], [2, 1]]
            assert np.issubdtype(lazy.resolver.demanded().dtype, np.int64)

    within_time(work())
