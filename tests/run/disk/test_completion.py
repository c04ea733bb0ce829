"""The rest of a pack is brought in the background, while nobody waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

from packer.artifact.opened import OpenedPack
from packer.sources.base import Piece
from tests.run.disk.lazy import DISK, read_content, running, until, within_time
from tests.unpack.simulated import DATA, Simulated


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
