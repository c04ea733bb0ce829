"""Who is asked for what a disk lacks, in which order, and what happens when they fail."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.contents import Class
from packer.artifact.opened import OpenedPack
from packer.run.disk.export import UnavailableError
from packer.sources.base import Offers, Piece, Wanted
from packer.sources.directory import DirectorySource
from packer.sources.store import Store
from tests.artifact.real_packs import hints_of
from tests.run.disk.lazy import (
    DISK,
    DISK_MAP,
    Lazy,
    pack_with,
    running,
    thin_pack,
    until,
    within_time,
)
from tests.sources.stores import put
from tests.unpack.simulated import (
    DATA,
    MISDEEDS,
    Fickle,
    Files,
    InBlocks,
    Simulated,
    breaks_after,
    for_others,
)

MIB = 1 << 20
ELSEWHERE = [2, 3, 4, 5]
"""The contents of the sample disk that its thin pack does not carry."""


@pytest.fixture
def thin(tmp_path: Path) -> Iterator[OpenedPack]:
    with thin_pack(tmp_path / "thin.vmpack") as pack:
        yield pack


def place_of(row: int) -> int:
    """Where on the disk a content begins."""
    whole = (DISK_MAP.content == row) & (DISK_MAP.offset == 0)
    return int(DISK_MAP.start[whole][0])


async def read_content(lazy: Lazy, row: int, length: int = 5) -> bytes:
    return await lazy.read(place_of(row), length)


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


# -- sources that fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("misdeed", MISDEEDS)
@pytest.mark.parametrize("local", [True, False])
def test_bad_sources_are_replaced_by_good_ones(
    tmp_path: Path, thin: OpenedPack, misdeed: str, local: bool
) -> None:
    bad = Simulated("bad:", local=local, twist=MISDEEDS[misdeed])

    async def work() -> None:
        async with running(thin, [bad, Simulated("good:", local=False, cost=9)],
                           tmp_path / "store") as lazy:  # fmt: skip
            assert await lazy.read_all(MIB) == DISK
            complaints = lazy.given_by("bad:").complaints
            assert len(set(complaints)) == len(complaints)
            if "lies" in misdeed:
                assert any("wrong bytes" in one for one in complaints)

    within_time(work())


class Broken(Simulated):
    """A source with a bug."""

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        if deep:
            raise RuntimeError("a bug")
        return super().find(wanted, deep=deep)

    def fetch(self, rows: np.ndarray) -> Iterator[Piece]:
        raise RuntimeError("another bug")


def test_a_bug_of_a_source_does_not_end_the_search(tmp_path: Path, thin: OpenedPack) -> None:
    async def work() -> None:
        sources = [Broken("broken:"), Simulated(held={3: DATA[3]}, local=False)]
        async with running(thin, sources, tmp_path / "store", hold_seconds=0.5) as lazy:
            assert await read_content(lazy, 3) == DATA[3][:5]
            with pytest.raises(UnavailableError):
                await read_content(lazy, 4)
            put(Store(tmp_path / "store"), DATA[4])
            await until(lambda: lazy.resolver.status().missing_contents == 0)
            assert await read_content(lazy, 4) == DATA[4]

    within_time(work())


def test_a_source_with_several_candidates_is_asked_for_the_next_one(
    tmp_path: Path, thin: OpenedPack
) -> None:
    fickle = Fickle("fickle:", wrong=2)

    async def work() -> None:
        async with running(thin, [fickle], tmp_path / "store") as lazy:
            assert await lazy.read_all() == DISK
            assert lazy.given_by("fickle:").complaints == ()

    within_time(work())


def test_a_source_that_stalls_is_not_waited_for(tmp_path: Path, thin: OpenedPack) -> None:
    go_on = threading.Event()

    def stall(pieces: Iterator[Piece]) -> Iterator[Piece]:
        go_on.wait(30)
        yield from pieces

    stalling = Simulated("stalling:", local=False, twist=stall)
    good = Simulated("good:", local=False, cost=9)

    async def work() -> None:
        async with running(thin, [stalling, good], tmp_path / "store") as lazy:
            started = time.monotonic()
            assert await read_content(lazy, 4) == DATA[4]
            assert await read_content(lazy, 3, 20_480) == DATA[3]
            assert time.monotonic() - started < 3
            assert lazy.given_by("stalling:").proven_bytes == 0
            go_on.set()

    within_time(work())


def change(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("meddle", [change, Path.unlink, lambda path: os.truncate(path, 3)])
def test_a_file_that_changes_or_vanishes_is_replaced_by_another_source(
    tmp_path: Path, thin: OpenedPack, meddle: Callable[[Path], None]
) -> None:
    """Just before it is read; what was kept of it before stays right."""
    files = Files(tmp_path / "files")

    async def work() -> None:
        async with running(thin, [files, Simulated(local=False)], tmp_path / "store") as lazy:
            assert await read_content(lazy, 3, 20_480) == DATA[3]
            for row in range(len(DATA)):
                meddle(files.path(row))
            assert await lazy.read_all() == DISK

    within_time(work())


def test_a_damaged_frame_of_the_pack_itself_is_had_elsewhere(tmp_path: Path) -> None:
    place = tmp_path / "full"
    pack_with(f"{place}/", tuple(Class)).close()

    async def work() -> None:
        with pack_with(f"{tmp_path}/damaged/", tuple(Class)) as pack:
            for bundle in pack.manifest.bundles().values():
                path = tmp_path / "damaged" / "blobs" / "sha256" / bundle.digest[7:]
                path.chmod(0o644)
                path.write_bytes(bytes(path.stat().st_size))
            sources = [Simulated(local=False)]
            async with running(pack, sources, tmp_path / "store") as lazy:
                assert await lazy.read_all() == DISK

    within_time(work())


def test_pieces_that_nobody_asked_for_are_no_harm(tmp_path: Path, thin: OpenedPack) -> None:
    async def work() -> None:
        sources = [Simulated("odd:", twist=for_others), Simulated(local=False)]
        async with running(thin, sources, tmp_path / "store") as lazy:
            assert await read_content(lazy, 4) == DATA[4]

    within_time(work())


# -- what nobody has -------------------------------------------------------------------------------


def test_what_nobody_has_is_an_error_after_a_while_and_found_when_it_appears(
    tmp_path: Path,
) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    hints = hints_of(DISK_MAP.contents, [(3, "/usr/bin/tool", -1)])

    async def work() -> None:
        with thin_pack(tmp_path / "thin.vmpack", hints) as pack:
            sources = [DirectorySource(tree)]
            async with running(pack, sources, tmp_path / "store", hold_seconds=0.5) as lazy:
                started = time.monotonic()
                with pytest.raises(UnavailableError, match="/usr/bin/tool") as caught:
                    await read_content(lazy, 3)
                assert 0.4 < time.monotonic() - started < 2
                assert f"dir:{tree}" in str(caught.value)
                assert await read_content(lazy, 0) == DATA[0][:5]  # others are not disturbed
                await until(lambda: lazy.resolver.status().missing_contents == 1)
                (missing,) = lazy.resolver.status().missing
                assert (missing.path, missing.size) == ("/usr/bin/tool", len(DATA[3]))
                assert f"dir:{tree}" in missing.looked_in
                assert f"store:{tmp_path / 'store'}" in missing.looked_in
                (tree / "usr" / "bin").mkdir(parents=True)
                (tree / "usr" / "bin" / "tool").write_bytes(DATA[3])
                await until(lambda: lazy.resolver.status().missing_contents == 0)
                assert await read_content(lazy, 3) == DATA[3][:5]

    within_time(work())


def test_a_read_that_waits_goes_on_when_its_content_appears(
    tmp_path: Path, thin: OpenedPack
) -> None:
    """In the store, as another VM's server or an unpack would bring it."""

    async def work() -> None:
        async with running(thin, [], tmp_path / "store") as lazy:
            late = asyncio.create_task(read_content(lazy, 4))
            await until(lambda: lazy.resolver.status().missing_contents == 1)
            put(Store(tmp_path / "store"), DATA[4])
            lazy.resolver.retry()
            assert await late == DATA[4]

    within_time(work())


# -- what is slow ----------------------------------------------------------------------------------


def dripping(pieces: Iterator[Piece]) -> Iterator[Piece]:
    for piece in pieces:
        time.sleep(0.5)
        yield piece


async def read_last_block(lazy: Lazy) -> None:
    last = 3 * MIB
    assert await lazy.read(place_of(2) + last, 5) == DATA[2][last : last + 5]


def test_a_read_waits_longer_while_its_source_goes_on_sending(
    tmp_path: Path, thin: OpenedPack
) -> None:
    async def work() -> None:
        slow = Simulated("slow:", {2: DATA[2]}, local=False, twist=dripping)
        async with running(thin, [slow], tmp_path / "store", hold_seconds=1.2) as lazy:
            started = time.monotonic()
            await read_last_block(lazy)
            assert time.monotonic() - started > 1.5

    within_time(work())


def test_a_read_does_not_wait_for_ever(tmp_path: Path, thin: OpenedPack) -> None:
    async def work() -> None:
        slow = Simulated("slow:", {2: DATA[2]}, local=False, twist=dripping)
        times = {"hold_seconds": 0.6, "most_hold_seconds": 1.0}
        async with running(thin, [slow], tmp_path / "store", **times) as lazy:
            with pytest.raises(UnavailableError):
                await read_last_block(lazy)
            await until(lambda: lazy.given_by("slow:").proven_bytes == len(DATA[2]))
            await read_last_block(lazy)  # it was brought all the same

    within_time(work())


class Parcels(Simulated):
    """A source that receives for long before it can send the first piece."""

    received_bytes = 0

    def _pieces(self, rows: np.ndarray) -> Iterator[Piece]:
        for _ in range(20):
            time.sleep(0.1)
            self.received_bytes += 1000
        yield from super()._pieces(rows)


def test_bytes_on_their_way_are_waited_for_before_they_are_pieces(
    tmp_path: Path, thin: OpenedPack
) -> None:
    async def work() -> None:
        parcels = Parcels("parcels:", {4: DATA[4]}, local=False)
        async with running(thin, [parcels], tmp_path / "store", hold_seconds=0.6) as lazy:
            assert await read_content(lazy, 4) == DATA[4]

    within_time(work())


class Searching(Simulated):
    """A source that finds nothing unless it looks deep, which takes a while."""

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        found = super().find(wanted, deep=deep)
        if not deep:
            return Offers(*[column[:0] for column in astuple(found)])
        time.sleep(0.8)
        return found


def test_what_a_slow_search_found_is_fetched(tmp_path: Path, thin: OpenedPack) -> None:
    async def work() -> None:
        async with running(thin, [Searching()], tmp_path / "store") as lazy:
            assert await read_content(lazy, 4) == DATA[4]

    within_time(work())


class Lingering(Simulated):
    """A source that looks deep, or forgets, for as long as it likes."""

    def __init__(self, how: str) -> None:
        super().__init__("lingering:", {})
        self.how = how
        self.go_on = threading.Event()

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        if deep and self.how == "looks deep":
            self.go_on.wait(15)
        return super().find(wanted, deep=deep)

    def renew(self) -> None:
        if self.how == "forgets":
            self.go_on.wait(15)


@pytest.mark.parametrize("how", ["looks deep", "forgets"])
def test_a_source_that_takes_long_does_not_keep_others_from_being_asked_again(
    tmp_path: Path, thin: OpenedPack, how: str
) -> None:
    lingering, other = Lingering(how), Simulated("other:", {}, local=False)

    async def work() -> None:
        async with running(thin, [lingering, other], tmp_path / "store") as lazy:
            late = asyncio.create_task(read_content(lazy, 4))
            await asyncio.sleep(0.5)
            other.held[4] = DATA[4]
            assert await late == DATA[4]
            lingering.go_on.set()

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
            for _ in range(2):
                starts = range(place_of(2), place_of(2) + len(DATA[2]), MIB)
                found = await asyncio.gather(*(lazy.read(start, 5) for start in starts))
                assert found == [DATA[2][at : at + 5] for at in range(0, len(DATA[2]), MIB)]
            assert len(source.fetched) > 1
            assert lazy.given_by("files:").proven_bytes == len(DATA[2])

    within_time(work())


class InParcels(Simulated):
    """All that it has comes in one parcel."""

    def find(self, wanted: Wanted, *, deep: bool) -> Offers:
        found = super().find(wanted, deep=deep)
        return replace(
            found, group=np.zeros_like(found.rows), group_bytes=np.array([5000], dtype=np.int64)
        )


def test_what_is_offered_again_and_again_is_not_kept_as_often(
    tmp_path: Path, thin: OpenedPack
) -> None:
    parcels = InParcels("parcels:", {row: DATA[row] for row in (2, 3)}, local=False)

    async def work() -> None:
        async with running(thin, [parcels], tmp_path / "store") as lazy:
            missing = asyncio.create_task(read_content(lazy, 4))
            await until(lambda: len(parcels.asked) > 5)
            parcels.held[4] = DATA[4]
            await missing
            (supplier,) = lazy.resolver.tiers[2]
            assert len(supplier.offers_of(np.arange(len(DATA))).group_bytes) <= 2
            assert lazy.given_by("parcels:").fetched_bytes == 5000

    within_time(work())


# -- the rest in the background --------------------------------------------------------------------


def test_the_rest_is_brought_while_nobody_waits(tmp_path: Path, thin: OpenedPack) -> None:
    local = Simulated("local:", {2: DATA[2], 4: DATA[4]})
    far = Simulated("far:", local=False)

    async def work() -> None:
        async with running(thin, [local, far], tmp_path / "store") as lazy:
            await read_content(lazy, 5)
            await lazy.resolver.complete()
            status = lazy.resolver.status()
            assert (status.at_hand, status.completing) == (len(DATA), False)
            assert status.at_hand_bytes == status.content_bytes
            assert {row for rows in far.fetched for row in rows} == {3, 5}
        async with running(thin, [], tmp_path / "store") as lazy:
            assert await lazy.read_all() == DISK

    within_time(work())


def test_what_nobody_has_does_not_keep_the_rest_from_coming(
    tmp_path: Path, thin: OpenedPack
) -> None:
    some = Simulated("some:", {2: DATA[2], 5: DATA[5]}, local=False)

    async def work() -> None:
        async with running(thin, [some], tmp_path / "store") as lazy:
            await lazy.resolver.complete()
            assert lazy.resolver.status().at_hand == 4
            assert lazy.resolver.status().missing == ()  # nobody has read it

    within_time(work())


def test_completion_waits_while_somebody_reads_and_can_be_stopped(
    tmp_path: Path, thin: OpenedPack
) -> None:
    go_on = threading.Event()

    def wait_for_tiny(pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if piece.row == 4:
                go_on.wait(30)
            yield piece

    far = Simulated("far:", local=False, twist=wait_for_tiny)

    async def work() -> None:
        async with running(thin, [far], tmp_path / "store") as lazy:
            reading = asyncio.create_task(read_content(lazy, 4))
            await until(lambda: far.fetched == [[4]])
            completing = asyncio.create_task(lazy.resolver.complete())
            await asyncio.sleep(0.1)
            assert lazy.resolver.status().completing
            assert far.fetched == [[4]]
            completing.cancel()
            go_on.set()
            assert await reading == DATA[4]
            await until(completing.done)
            assert not lazy.resolver.status().completing
            assert far.fetched == [[4]]

    within_time(work())


def test_nothing_waits_when_the_disk_is_closed(tmp_path: Path, thin: OpenedPack) -> None:
    async def work() -> None:
        async with running(thin, [], tmp_path / "store") as lazy:
            late = asyncio.create_task(read_content(lazy, 4))
            await until(lambda: lazy.resolver.status().missing_contents == 1)
        with pytest.raises(asyncio.CancelledError):
            await late

    within_time(work())


def test_what_was_demanded_is_told_by_piece(tmp_path: Path, thin: OpenedPack) -> None:
    async def work() -> None:
        async with running(thin, [Simulated()], tmp_path / "store") as lazy:
            await lazy.read(place_of(2) + MIB - 1, 2)
            assert lazy.resolver.demanded().tolist() == [[2, 0], [2, 1]]
            assert np.issubdtype(lazy.resolver.demanded().dtype, np.int64)

    within_time(work())
