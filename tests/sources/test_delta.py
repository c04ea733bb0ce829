"""Contents made of what a host has of the predecessor."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from formats.source import FileSource
from packer.artifact.contents import BLOCK_BYTES, Class
from packer.artifact.deltas import Deltas, as_base, encode_deltas, make_patch
from packer.artifact.layout.open import open_layout
from packer.artifact.layout.tar import TarLayout
from packer.artifact.map import Kind
from packer.artifact.opened import OpenedPack
from packer.sources.base import Bytes, FileRange, Source, SourceError, Wanted
from packer.sources.delta import DeltaSource, delta_sources
from packer.sources.directory import DirectorySource
from packer.sources.mapped import MappedSource
from packer.sources.pack import PackSource
from packer.sources.store import Store
from packer.survey.disk import open_disk
from tests.artifact.make import contents_of, map_of
from tests.artifact.real_packs import disk_of, no_hints, noise, write_pack

OLD = [noise(3 * BLOCK_BYTES + 11, 1), noise(70_000, 2), noise(9_000, 3)]
NEW = [OLD[0][:500] + b"changed" + OLD[0][500:], OLD[1][::-1][:100] + OLD[1], noise(5_000, 9)]
CLASSES = [Class.SHARED] * 3
PATCHES = [make_patch(as_base(o), n, 3) for o, n in zip(OLD, NEW, strict=True)][:2]


def table(patches: Sequence[bytes]) -> bytes:
    return encode_deltas(
        Deltas(
            np.array([0, 1]),
            np.stack([np.frombuffer(hashlib.sha256(o).digest(), np.uint8) for o in OLD[:2]]),
            np.array([len(OLD[0]), len(OLD[1])]),
            np.array([len(patch) for patch in patches]),
        )
    )


def on_the_network(place: Path) -> OpenedPack:
    """Open a pack in a tar file as one whose reading costs traffic."""
    file = FileSource(place)
    return OpenedPack(TarLayout(file, str(place), remote=True, on_close=file.close))


def pack_with(
    place: Path, patches: Sequence[bytes] = PATCHES, data: bytes | None = None
) -> OpenedPack:
    """Write a pack whose first two contents have deltas; data: its table of them."""
    write_pack(place, NEW, CLASSES, deltas=(data or table(patches), patches)).close()
    return on_the_network(place)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def pack(tmp_path: Path) -> Iterator[OpenedPack]:
    with pack_with(tmp_path / "v2.vmpack") as pack:
        yield pack


def keep(store: Store, data: bytes) -> None:
    store.put(hashlib.sha256(data).digest(), len(data), iter([data]))


def found(pack: OpenedPack, bases: list[Source], rows: list[int]) -> dict[int, bytes]:
    """Return what is made of the bases, every block proven."""
    source, contents = DeltaSource(pack, bases), pack.map.contents
    wanted = Wanted(contents, np.array(rows, dtype=np.int64), no_hints())
    made: dict[int, dict[int, bytes]] = {}
    for piece in source.fetch(source.find(wanted, deep=False).rows):
        assert isinstance(piece, Bytes)
        expected = contents.block_digest(piece.row, piece.block)
        assert hashlib.sha256(piece.data).digest() == expected
        made.setdefault(piece.row, {})[piece.block] = bytes(piece.data)
    return {row: b"".join(blocks[n] for n in sorted(blocks)) for row, blocks in made.items()}


def test_contents_are_made_of_what_this_host_has(pack: OpenedPack, store: Store) -> None:
    for one in OLD:
        keep(store, one)
    assert found(pack, [store], [0, 1, 2]) == {0: NEW[0], 1: NEW[1]}
    assert found(pack, [store], [1, 2]) == {1: NEW[1]}
    assert found(pack, [store], [2]) == {}


def test_a_delta_whose_base_is_not_here_is_not_offered(pack: OpenedPack, store: Store) -> None:
    keep(store, OLD[1])
    wanted = Wanted(pack.map.contents, np.array([0, 1]), no_hints())
    offers = DeltaSource(pack, [store]).find(wanted, deep=True)
    assert (offers.rows.tolist(), offers.cost_bytes.tolist()) == ([1], [len(PATCHES[1])])
    assert found(pack, [store], [0, 1]) == {1: NEW[1]}
    assert found(pack, [], [0, 1]) == {}


def test_bases_may_lie_in_several_places(pack: OpenedPack, tmp_path: Path) -> None:
    """In a store, in the bundles of the old pack, on the old disk."""
    store = Store(tmp_path / "store")
    keep(store, OLD[0])
    with write_pack(tmp_path / "v1.vmpack", OLD[1:], CLASSES[1:]) as old:
        bundles = PackSource("pack:", old.layout, old.map.contents, old.index)
        assert found(pack, [store, bundles], [0, 1]) == {0: NEW[0], 1: NEW[1]}
    old_map = map_of(contents_of(OLD[:1]), [(Kind.CONTENT, len(OLD[0]), 0, 0)])
    (tmp_path / "old.raw").write_bytes(disk_of(old_map, OLD[:1]))
    with (
        open_disk(tmp_path / "old.raw") as disk,
        closing(MappedSource(disk, old_map, tmp_path / "old.raw")) as mapped,
    ):
        assert found(pack, [mapped], [0, 1]) == {0: NEW[0]}


def test_a_patch_that_is_wrong_makes_nothing_that_anybody_believes(
    tmp_path: Path, store: Store
) -> None:
    for one in OLD:
        keep(store, one)
    with pack_with(tmp_path / "broken.vmpack", [b"no patch at all", PATCHES[1]]) as broken:
        assert found(broken, [store], [0, 1]) == {1: NEW[1]}


def test_a_base_that_is_not_what_its_name_says_makes_nothing(
    pack: OpenedPack, tmp_path: Path
) -> None:
    """As after a power cut; another place may have it whole."""
    stores = [Store(tmp_path / name) for name in ("one", "two")]
    for one in stores:
        keep(one, OLD[1])
    path = stores[0].path_of(hashlib.sha256(OLD[1]).digest())
    path.chmod(0o600)
    path.write_bytes(bytes(len(OLD[1])))
    assert found(pack, list(stores[:1]), [0, 1]) == {}
    assert found(pack, list(stores), [0, 1]) == {1: NEW[1]}


class Failing(Store):
    """A store on a medium with a bad sector."""

    def fetch(self, rows: np.ndarray) -> Iterator[FileRange]:
        write_only = os.open(os.devnull, os.O_WRONLY)
        yield from (FileRange(row, write_only, 0) for row in rows.tolist())
        os.close(write_only)


class Breaking(Store):
    """A store on a medium that is pulled out."""

    def fetch(self, rows: np.ndarray) -> Iterator[FileRange]:
        yield from ()
        raise SourceError(f"{len(rows)} contents are gone")


@pytest.mark.parametrize("kind", [Failing, Breaking])
def test_a_base_that_cannot_be_read_costs_its_own_delta_only(
    pack: OpenedPack, tmp_path: Path, kind: type[Store]
) -> None:
    bad, good = kind(tmp_path / "store"), Store(tmp_path / "good")
    keep(bad, OLD[0])
    keep(bad, OLD[1])
    keep(good, OLD[1])
    assert found(pack, [bad, good], [0, 1]) == {1: NEW[1]}


def test_a_damaged_table_is_a_complaint_and_no_more(tmp_path: Path, store: Store) -> None:
    """Nobody signs it: whoever changed it on the way must not keep anybody from unpacking."""
    with pack_with(tmp_path / "broken.vmpack", data=b"no table") as broken:
        (source,) = delta_sources(broken, [store])
        wanted = Wanted(broken.map.contents, np.array([0, 1]), no_hints())
        with pytest.raises(SourceError, match=r"deltas of .*: deltas: not the Mess"):
            source.find(wanted, deep=False)


def test_the_table_is_not_fetched_before_something_is_missing(tmp_path: Path, store: Store) -> None:
    with pack_with(tmp_path / "broken.vmpack", data=b"no table") as broken:
        (source,) = delta_sources(broken, [store])
        nothing = Wanted(broken.map.contents, np.array([], dtype=np.int64), no_hints())
        assert len(source.find(nothing, deep=False).rows) == 0


def test_a_question_about_another_pack_is_answered_with_nothing(
    pack: OpenedPack, store: Store
) -> None:
    for one in OLD:
        keep(store, one)
    other = contents_of(NEW, [Class.PRIVATE] * 3)
    offers = DeltaSource(pack, [store]).find(Wanted(other, np.array([0]), no_hints()), deep=False)
    assert len(offers.rows) == 0


def test_deltas_are_of_use_where_the_pack_is_far_and_a_base_may_be_near(
    pack: OpenedPack, tmp_path: Path, store: Store
) -> None:
    (tmp_path / "tree").mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    tree = DirectorySource(tmp_path / "tree")
    assert delta_sources(pack, []) == []
    assert delta_sources(pack, [tree]) == [], "its files are found by path"
    assert [one.local for one in delta_sources(pack, [tree, store])] == [False]
    with OpenedPack(open_layout(tmp_path / "v2.vmpack")) as here:
        assert delta_sources(here, [store]) == []
    write_pack(tmp_path / "plain.vmpack", NEW, CLASSES).close()
    with on_the_network(tmp_path / "plain.vmpack") as plain:
        assert delta_sources(plain, [store]) == []
    tree.close()
