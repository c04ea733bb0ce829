"""How long a read waits for what nobody has, or what is slow to come."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.opened import OpenedPack
from packer.run.disk.export import UnavailableError
from packer.sources.base import Offers, Piece, Wanted
from packer.sources.directory import DirectorySource
from packer.sources.store import Store
from tests.artifact.real_packs import hints_of
from tests.run.disk.lazy import (
    DISK_MAP,
    MIB,
    Lazy,
    place_of,
    read_content,
    running,
    thin_pack,
    until,
    within_time,
)
from tests.sources.stores import put
from tests.unpack.simulated import DATA, Simulated

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


def test_nothing_waits_when_the_disk_is_closed(tmp_path: Path, thin: OpenedPack) -> None:
    async def work() -> None:
        async with running(thin, [], tmp_path / "store") as lazy:
            late = asyncio.create_task(read_content(lazy, 4))
            await until(lambda: lazy.resolver.status().missing_contents == 1)
        with pytest.raises(asyncio.CancelledError):
            await late

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
