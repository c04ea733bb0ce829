"""What a lazy disk fetches from web servers: blocks, little else, and again when they come back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.contents import BLOCK_BYTES, Class
from packer.artifact.map import Kind, Map
from packer.artifact.opened import OpenedPack
from packer.run.disk.export import UnavailableError
from packer.sources.base import Source
from packer.sources.open import SourceOpener, open_pack
from packer.sources.store import Store
from tests.artifact.make import contents_of, map_of
from tests.artifact.real_packs import disk_of, write_pack
from tests.round_trip.mirror import Mirror, Spoil, mirror
from tests.run.disk.lazy import (
    DISK,
    pack_with,
    place_of,
    read_content,
    running,
    thin_pack,
    until,
    within_time,
)
from tests.transport.servers import Answer
from tests.unpack.simulated import DATA, Simulated

MIB = 1 << 20
MOST_RATIO = 1.3
LARGE = 2


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VMPACK_HOME", str(tmp_path / "home"))


@contextmanager
def mirrored(
    folder: Path, spoil: Spoil | None = None
) -> Iterator[tuple[OpenedPack, Source, Mirror]]:
    """A thin pack of the sample disk, and a full one on a mirror as a source for it."""
    pack_with(f"{folder}/full/", tuple(Class)).close()
    with (
        mirror(folder / "full", spoil=spoil) as far,
        thin_pack(folder / "thin.vmpack") as pack,
        SourceOpener(Store(folder / "store"), pack) as opener,
    ):
        yield pack, opener.open(far.url), far


def large_contents() -> tuple[Map, list[bytes]]:
    """Large contents that shrink to about a half, and small ones that share frames."""
    chance = np.random.default_rng(3)
    sizes = [40 * MIB + 77, 9 * MIB, *[20_000] * 100]
    data = [chance.integers(0, 16, size, dtype=np.uint8).tobytes() for size in sizes]
    rows = []
    for row, one in enumerate(data):
        rows.append((Kind.CONTENT, len(one), row, 0))
        rows.append((Kind.UNUSED, 4096 - len(one) % 4096, -1, 0))
    return map_of(contents_of(data), rows), data


def test_only_the_blocks_that_are_read_are_fetched(tmp_path: Path) -> None:
    """From a pack on a server, with nothing here; the documents count, too."""
    disk_map, data = large_contents()
    write_pack(f"{tmp_path}/full/", data, [Class.SHARED] * len(data), disk_map=disk_map).close()
    disk = disk_of(disk_map, data)
    chance = random.Random(4)
    offsets = [chance.randrange(0, 49 * MIB) for _ in range(12)] + [50 * MIB]

    async def work() -> None:
        with mirror(tmp_path / "full") as far, open_pack(far.url) as pack:
            async with running(pack, [], tmp_path / "store") as lazy:
                documents = far.sent_bytes
                for offset in offsets:
                    assert await lazy.read(offset, 4096) == disk[offset : offset + 4096]
                rows, blocks = lazy.resolver.demanded().T
                index = pack.index
                entry = np.searchsorted(index.content, rows)
                frames = np.unique(index.first_frame[entry] + blocks)
                touched = int(index.stored_bytes[frames].sum())
                fetched = far.sent_bytes - documents
                assert touched <= fetched <= MOST_RATIO * touched
                given = f"pack:{far.url}"
                await until(lambda: lazy.given_by(given).fetched_bytes == touched)
                assert fetched < 14 * BLOCK_BYTES

    within_time(work())


def test_a_frame_gives_all_that_it_holds(tmp_path: Path) -> None:
    disk_map, data = large_contents()
    write_pack(f"{tmp_path}/full/", data, [Class.SHARED] * len(data), disk_map=disk_map).close()

    async def work() -> None:
        with mirror(tmp_path / "full") as far, open_pack(far.url) as pack:
            async with running(pack, [], tmp_path / "store") as lazy:
                await lazy.read(50 * MIB, 10)
                sent = far.sent_bytes
                await until(lambda: lazy.resolver.status().at_hand > 40)
                assert far.sent_bytes == sent

    within_time(work())


def zeros_in_bundles(_: Answer, data: bytes) -> bytes:
    return bytes(len(data)) if len(data) > 100_000 else data


def test_a_mirror_with_wrong_data_is_complained_of_and_replaced(tmp_path: Path) -> None:
    async def work() -> None:
        with mirrored(tmp_path, zeros_in_bundles) as (pack, source, _):
            good = Simulated("good:", local=False, cost=99 * MIB)
            async with running(pack, [source, good], tmp_path / "store") as lazy:
                assert await lazy.read_all(MIB) == DISK
                assert lazy.given_by("good:").proven_bytes > 0
                assert lazy.given_by(source.uri).complaints

    within_time(work())


def test_a_mirror_that_stalls_in_the_middle_is_replaced_meanwhile(tmp_path: Path) -> None:
    async def work() -> None:
        with mirrored(tmp_path) as (pack, source, far):
            good = Simulated("good:", local=False, cost=99 * MIB)
            async with running(pack, [source, good], tmp_path / "store") as lazy:
                assert await read_content(lazy, 4) == DATA[4]
                far.hold_at = far.sent_bytes + 1
                assert await lazy.read(place_of(LARGE), 3 * MIB) == DATA[LARGE][: 3 * MIB]
                assert lazy.given_by("good:").proven_bytes >= 2 * MIB
                far.go_on()

    within_time(work())


@pytest.mark.parametrize("absent", ["everything", "bundles"])
def test_a_mirror_that_comes_back_is_used_without_being_told(tmp_path: Path, absent: str) -> None:
    gone = True

    def spoil(request: Answer, data: bytes) -> bytes | None:
        if gone and (absent == "everything" or len(data) > 100_000):
            request.give(404, {"Content-Length": "0"}, b"")
            return None
        return data

    async def work() -> None:
        nonlocal gone
        with mirrored(tmp_path, spoil) as (pack, source, far):
            async with running(pack, [source], tmp_path / "store", hold_seconds=0.3) as lazy:
                with pytest.raises(UnavailableError):
                    await read_content(lazy, LARGE)
                await until(lambda: lazy.resolver.status().missing_contents == 1)
                gone = False
                await until(lambda: lazy.resolver.status().missing_contents == 0)
                assert await read_content(lazy, LARGE) == DATA[LARGE][:5]
                assert lazy.given_by(far.url).complaints

    within_time(work())


def test_the_rest_of_a_pack_on_a_server_is_brought(tmp_path: Path) -> None:
    pack_with(f"{tmp_path}/full/", tuple(Class)).close()

    async def work() -> None:
        with mirror(tmp_path / "full") as far, open_pack(far.url) as pack:
            async with running(pack, [], tmp_path / "store") as lazy:
                assert await read_content(lazy, LARGE) == DATA[LARGE][:5]
                await lazy.resolver.complete()
                sent = far.sent_bytes
                assert lazy.resolver.status().at_hand == len(DATA)
                assert await lazy.read_all() == DISK
                assert far.sent_bytes == sent

    within_time(work())
