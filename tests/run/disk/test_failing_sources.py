"""Sources of a running disk that lie, stall, break or change: others are asked instead."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.contents import Class
from packer.artifact.opened import OpenedPack
from packer.run.disk.export import UnavailableError
from packer.sources.base import Offers, Piece, Wanted
from packer.sources.store import Store
from tests.run.disk.lazy import DISK, MIB, pack_with, read_content, running, until, within_time
from tests.sources.stores import put
from tests.unpack.simulated import DATA, MISDEEDS, Fickle, Files, Simulated, for_others


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
