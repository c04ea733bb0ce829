"""The store below a running disk: hostile, damaged, full, shared by several processes."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from packer.artifact.contents import Class
from packer.artifact.opened import OpenedPack
from packer.sources.open import SourceOpener, open_pack
from packer.sources.store import Store
from tests.host import as_nobody, in_processes, let_others_enter, needs_root, run
from tests.round_trip.mirror import mirror
from tests.run.disk.lazy import (
    DISK,
    DISK_MAP,
    pack_with,
    place_of,
    read_at_random,
    read_content,
    running,
    thin_pack,
    until,
    within_time,
)
from tests.sources.stores import put, sha256
from tests.unpack.simulated import DATA, Files, Simulated

MIB = 1 << 20
LARGE = 2
"""A shared content of four blocks."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def partial_path(store: Store, row: int) -> Path:
    return store.partials.path_of(DISK_MAP.contents, row)


def reads_right(pack: OpenedPack, store: Store, source: Simulated) -> None:
    async def work() -> None:
        async with running(pack, [source], store.folder) as lazy:
            assert await lazy.read_all(MIB) == DISK

    within_time(work())


# -- what lies in a store --------------------------------------------------------------------------


def wrong_bytes(path: Path) -> None:
    path.write_bytes(bytes(len(DATA[LARGE])))


def wrong_size(path: Path) -> None:
    path.write_bytes(DATA[LARGE] + b"x")


def too_short(path: Path) -> None:
    path.write_bytes(DATA[LARGE][:-1])


def empty(path: Path) -> None:
    path.touch()


def link_elsewhere(path: Path) -> None:
    victim = path.parent.parent.parent / "victim"
    victim.write_bytes(bytes(len(DATA[LARGE])))
    path.symlink_to(victim)


def second_name(path: Path) -> None:
    victim = path.parent.parent.parent / "victim"
    victim.write_bytes(bytes(len(DATA[LARGE])))
    path.hardlink_to(victim)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    "make", [wrong_bytes, wrong_size, too_short, empty, link_elsewhere, second_name, pipe, folder]
)
def test_a_hostile_partial_object_is_no_harm(
    tmp_path: Path, thin: OpenedPack, store: Store, make: Callable[[Path], None]
) -> None:
    path = partial_path(store, LARGE)
    path.parent.mkdir(parents=True)
    make(path)

    async def work() -> None:
        async with running(thin, [Simulated(local=False)], store.folder) as lazy:
            assert await lazy.read_all(MIB) == DISK
            if make is not folder:  # which is left, and in the way: the content stays in memory
                await until(lambda: store.holds(sha256(DATA[LARGE]), len(DATA[LARGE])))

    within_time(work())
    victim = tmp_path / "victim"
    assert not victim.exists() or victim.read_bytes() == bytes(len(DATA[LARGE]))


def test_blocks_that_are_there_are_not_fetched_again(thin: OpenedPack, store: Store) -> None:
    path = partial_path(store, LARGE)
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA[LARGE][: 2 * MIB] + bytes(MIB + 5000))
    source = Simulated(local=False)

    async def work() -> None:
        async with running(thin, [source], store.folder) as lazy:
            start = place_of(LARGE)
            assert await lazy.read(start, 2 * MIB) == DATA[LARGE][: 2 * MIB]
            assert source.fetched == []
            assert await lazy.read(start, 3 * MIB) == DATA[LARGE][: 3 * MIB]
            assert source.fetched == [[LARGE]]
            await until(lambda: not path.exists())  # it became an object

    within_time(work())
    assert store.path_of(sha256(DATA[LARGE])).read_bytes() == DATA[LARGE]


@pytest.mark.parametrize("row", [LARGE, 3])
def test_a_damaged_object_is_replaced(thin: OpenedPack, store: Store, row: int) -> None:
    path = store.path_of(put(store, DATA[row]))
    path.chmod(0o644)
    path.write_bytes(DATA[row][:-1] + b"x")

    async def work() -> None:
        async with running(thin, [Simulated(local=False)], store.folder) as lazy:
            assert await lazy.read_all() == DISK
            await until(path.exists)

    within_time(work())
    assert path.read_bytes() == DATA[row]


@pytest.mark.parametrize("most_open", [1, 100])
def test_an_object_that_is_cut_while_in_use_is_replaced(
    thin: OpenedPack, store: Store, most_open: int
) -> None:
    async def work() -> None:
        options = {"most_open": most_open}
        async with running(thin, [Simulated(local=False)], store.folder, **options) as lazy:
            assert await lazy.read_all() == DISK
            path = store.path_of(sha256(DATA[LARGE]))
            await until(path.exists)
            path.chmod(0o644)
            os.truncate(path, MIB)
            assert await lazy.read_all() == DISK

    within_time(work())


def test_what_is_not_shared_never_becomes_an_object(tmp_path: Path, store: Store) -> None:
    """Objects are offered to neighbours; what others cannot have stays a partial object."""
    full = pack_with(f"{tmp_path}/full/", tuple(Class))
    full.close()

    async def work() -> None:
        with mirror(tmp_path / "full") as far, open_pack(far.url) as pack:
            async with running(pack, [], store.folder) as lazy:
                assert await lazy.read_all() == DISK
            sent = far.sent_bytes
            async with running(pack, [], store.folder) as lazy:
                assert await lazy.read_all() == DISK
            assert far.sent_bytes == sent

    within_time(work())
    assert {one.digest for one in store.list()} == {sha256(DATA[row]) for row in (2, 3, 4, 5)}
    assert {one.digest for one in store.partials.list()} == {sha256(DATA[row]) for row in (0, 1)}


def test_a_large_content_of_a_file_becomes_an_object_at_once(
    tmp_path: Path, thin: OpenedPack, store: Store
) -> None:
    async def work() -> None:
        async with running(thin, [Files(tmp_path / "files")], store.folder) as lazy:
            assert await read_content(lazy, LARGE) == DATA[LARGE][:5]

    within_time(work())
    assert store.holds(sha256(DATA[LARGE]), len(DATA[LARGE]))


# -- a store that takes nothing --------------------------------------------------------------------


def test_without_a_usable_store_contents_stay_in_memory(tmp_path: Path, thin: OpenedPack) -> None:
    (tmp_path / "store").write_text("not a folder")

    async def work() -> None:
        async with running(thin, [Simulated(local=False)], tmp_path / "store") as lazy:
            assert await lazy.read_all() == DISK
            (complaint, *_) = lazy.given_by(f"store:{tmp_path}/store").complaints
            assert "expected a folder" in complaint or "Not a directory" in complaint

    within_time(work())


@needs_root
def test_a_store_on_a_full_disk_costs_no_byte(tmp_path: Path, thin: OpenedPack) -> None:
    place = tmp_path / "small"
    place.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1M", "none", place)
    try:

        async def work() -> None:
            async with running(thin, [Simulated(local=False)], place / "store") as lazy:
                assert await lazy.read_all() == DISK
                complaints = lazy.given_by(f"store:{place}/store").complaints
                assert any("No space left" in one for one in complaints)

        within_time(work())
    finally:
        gc.collect()  # closes the files of the store
        run("umount", place)


@needs_root
def test_a_store_that_may_only_be_read_serves_what_it_has(tmp_path: Path) -> None:
    thin_pack(tmp_path / "thin.vmpack").close()
    store = Store(tmp_path / "store")
    put(store, DATA[3])
    path = partial_path(store, LARGE)
    path.write_bytes(DATA[LARGE])
    let_others_enter(tmp_path)
    for one in [tmp_path, *tmp_path.rglob("*")]:
        one.chmod(0o755 if one.is_dir() else 0o444)

    def as_other_user() -> None:
        with open_pack(str(tmp_path / "thin.vmpack")) as pack:
            source = Simulated(held={row: DATA[row] for row in (4, 5)}, local=False)
            reads_right(pack, store, source)

    as_nobody(as_other_user)


# -- several processes -----------------------------------------------------------------------------


def fill(pack: str, url: str, store: str, seed: int) -> None:
    """Read at random, then everything. In a process of its own."""

    async def work() -> None:
        with open_pack(pack) as opened, SourceOpener(Store(Path(store)), opened) as opener:
            async with running(opened, [opener.open(url)], Path(store)) as lazy:
                await read_at_random(lazy, DISK, 60, seed)
                assert hashlib.sha256(await lazy.read_all()).digest() == sha256(DISK)

    asyncio.run(work())


def test_two_processes_fill_one_store(
    tmp_path: Path, thin: OpenedPack, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VMPACK_HOME", str(tmp_path / "home"))
    pack_with(f"{tmp_path}/full/", tuple(Class)).close()
    with mirror(tmp_path / "full") as far:
        each = [(thin.layout.location, far.url, str(store.folder), seed) for seed in range(2)]
        in_processes(fill, each)
    reads_right(thin, store, Simulated(held={}))
    assert store.verify() == ()
    assert list(store.partials.list()) == []
