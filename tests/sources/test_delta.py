"""Contents made of what a host has of the predecessor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.contents import BLOCK_BYTES, Class, Contents
from packer.artifact.deltas import Deltas, make_patch
from packer.artifact.layout.directory import DirectoryLayout, DirectoryWriter
from packer.artifact.manifest import Descriptor, Entry, build
from packer.sources.base import Bytes, Source, Wanted
from packer.sources.delta import DeltaSource
from packer.sources.store import Store
from tests.artifact.make import contents_of
from tests.artifact.real_packs import no_hints, noise

OLD = [noise(3 * BLOCK_BYTES + 11, 1), noise(70_000, 2), noise(9_000, 3)]
NEW = [OLD[0][:500] + b"changed" + OLD[0][500:], OLD[1][::-1][:100] + OLD[1], noise(5_000, 9)]
CONTENTS = contents_of(NEW)


class Patches:
    """Patches for the first two contents in a real layout."""

    def __init__(self, place: Path, patches: list[bytes]) -> None:
        with DirectoryWriter(place) as writer:
            with writer.stream() as stream:
                for patch in patches:
                    stream.write(patch)
                blob = stream.finish()
            writer.finish([Entry(build(config=blob, maps=[blob], bundles={}), "demo:1")])
        self.layout = DirectoryLayout(place)
        self.blob = Descriptor(media_type="a/b", digest=blob.digest, size=blob.size)
        self.deltas = Deltas(
            np.array([0, 1]),
            np.stack([np.frombuffer(hashlib.sha256(o).digest(), np.uint8) for o in OLD[:2]]),
            np.array([len(OLD[0]), len(OLD[1])]),
            np.array([len(patch) for patch in patches]),
        )

    def source(self, bases: list[Source], contents: Contents = CONTENTS) -> DeltaSource:
        return DeltaSource("deltas", self.layout, self.blob, self.deltas, contents, bases)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def patches(tmp_path: Path) -> Iterator[Patches]:
    made = Patches(
        tmp_path / "v2", [make_patch(o, n, 3) for o, n in zip(OLD, NEW, strict=True)][:2]
    )
    yield made
    made.layout.close()


def keep(store: Store, data: bytes) -> None:
    store.put(hashlib.sha256(data).digest(), len(data), iter([data]))


def found(source: DeltaSource, rows: list[int]) -> dict[int, bytes]:
    wanted = Wanted(CONTENTS, np.array(rows, dtype=np.int64), no_hints())
    made: dict[int, dict[int, bytes]] = {}
    for piece in source.fetch(source.find(wanted, deep=False).rows):
        assert isinstance(piece, Bytes)
        expected = CONTENTS.block_digest(piece.row, piece.block)
        assert hashlib.sha256(piece.data).digest() == expected
        made.setdefault(piece.row, {})[piece.block] = bytes(piece.data)
    return {row: b"".join(blocks[n] for n in sorted(blocks)) for row, blocks in made.items()}


def test_contents_are_made_of_what_this_host_has(patches: Patches, store: Store) -> None:
    for one in OLD:
        keep(store, one)
    assert found(patches.source([store]), [0, 1, 2]) == {0: NEW[0], 1: NEW[1]}
    assert found(patches.source([store]), [1, 2]) == {1: NEW[1]}
    assert found(patches.source([store]), [2]) == {}


def test_a_delta_whose_base_is_not_here_is_not_offered(patches: Patches, store: Store) -> None:
    keep(store, OLD[1])
    source = patches.source([store])
    offers = source.find(Wanted(CONTENTS, np.array([0, 1]), no_hints()), deep=True)
    assert offers.rows.tolist() == [1]
    assert found(source, [0, 1]) == {1: NEW[1]}
    assert found(patches.source([]), [0, 1]) == {}


def test_bases_may_lie_in_several_places(patches: Patches, tmp_path: Path) -> None:
    stores = [Store(tmp_path / name) for name in ("one", "two")]
    for one, data in zip(stores, OLD, strict=False):
        keep(one, data)
    assert found(patches.source(list(stores)), [0, 1]) == {0: NEW[0], 1: NEW[1]}


def test_a_patch_that_is_wrong_makes_nothing_that_anybody_believes(
    tmp_path: Path, store: Store
) -> None:
    for one in OLD:
        keep(store, one)
    right = make_patch(OLD[1], NEW[1], 3)
    broken = Patches(tmp_path / "broken", [b"no patch at all", right])
    assert found(broken.source([store]), [0, 1]) == {1: NEW[1]}
    broken.layout.close()


def test_a_question_about_another_pack_is_answered_with_nothing(
    patches: Patches, store: Store
) -> None:
    for one in OLD:
        keep(store, one)
    other = contents_of(NEW, [Class.PRIVATE] * 3)
    offers = patches.source([store]).find(Wanted(other, np.array([0]), no_hints()), deep=False)
    assert len(offers.rows) == 0
