"""What of a predecessor goes on: never what is not there, never where it travels too seldom."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from packer.artifact import media_types
from packer.artifact.contents import Class
from packer.artifact.index import Index, decode_index, encode_index
from packer.artifact.opened import OpenedPack
from packer.pack import base as bases
from packer.pack.base import Carried, carry_on
from packer.progress import Advance, Silent
from packer.sources.base import Bytes, Wanted
from packer.sources.pack import PackSource
from tests.artifact.make import contents_of
from tests.artifact.real_packs import MIB, no_hints, noise, write_pack


def wanted_of(data: list[bytes], classes: list[Class]) -> Wanted:
    contents = contents_of(data, classes)
    return Wanted(contents, np.arange(len(contents), dtype=np.int64), no_hints())


def read_all(base: OpenedPack, wanted: Wanted, index: Index) -> dict[int, bytes]:
    """Read what an index says lies in a base's bundles, each piece proven."""
    source = PackSource("pack:", base.layout, wanted.contents, index)
    found: dict[int, dict[int, bytes]] = {}
    for piece in source.fetch(source.find(wanted, deep=False).rows):
        assert isinstance(piece, Bytes)
        expected = wanted.contents.block_digest(piece.row, piece.block)
        assert hashlib.sha256(piece.data).digest() == expected
        found.setdefault(piece.row, {})[piece.block] = bytes(piece.data)
    return {row: b"".join(blocks[n] for n in sorted(blocks)) for row, blocks in found.items()}


class Told:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int]] = []
        self.done_bytes = 0

    @contextmanager
    def stage(self, title: str, total_bytes: int) -> Iterator[Advance]:
        self.stages.append((title, total_bytes))
        yield self._advance

    def _advance(self, done_bytes: int) -> None:
        self.done_bytes += done_bytes


def test_what_both_have_is_read_from_the_base_and_nothing_else_is_named(tmp_path: Path) -> None:
    old = [noise(size, n) for n, size in enumerate((5000, 90_000, 3 * MIB + 7, 300, 200_000))]
    classes = [Class.BOOT, Class.PRIVATE, Class.SHARED, Class.SHARED, Class.SHARED]
    new = [noise(700, 99), old[2], old[0], old[3], noise(50, 98), old[1]]
    new_classes = [Class.BOOT, Class.SHARED, Class.BOOT, Class.SHARED, Class.SHARED, Class.PRIVATE]
    wanted = wanted_of(new, new_classes)
    told = Told()
    with write_pack(tmp_path / "v1.vmpack", old, classes) as base:
        carried = carry_on(base, wanted, told)
        assert read_all(base, wanted, carried.index) == {1: old[2], 2: old[0], 3: old[3], 5: old[1]}
        assert list(carried.bundles) == ["boot", "private", "shared-000"]
        both = sum(len(old[n]) for n in range(4))
        assert (told.stages, told.done_bytes) == ([("comparing with the base", both)], both)
    again = decode_index(encode_index(carried.index), wanted.contents)
    assert again.bundles == carried.index.bundles
    assert again.content.tolist() == [1, 2, 3, 5]


def test_a_class_can_be_left_behind(tmp_path: Path) -> None:
    """What is no longer boot must not travel with every copy."""
    old = [noise(5000, 1), noise(6000, 2), noise(7000, 3)]
    classes = [Class.BOOT, Class.BOOT, Class.PRIVATE]
    wanted = wanted_of(old, [Class.BOOT, Class.PRIVATE, Class.PRIVATE])
    with write_pack(tmp_path / "v1.vmpack", old, classes) as base:
        carried = carry_on(base, wanted, Silent(), anew=(Class.BOOT,))
    assert list(carried.bundles) == ["private"]
    assert carried.index.content.tolist() == [2]


@pytest.mark.parametrize(
    ("old", "new", "carried"),
    [
        (Class.BOOT, Class.SHARED, True),
        (Class.PRIVATE, Class.SHARED, True),
        (Class.BOOT, Class.PRIVATE, True),
        (Class.SHARED, Class.PRIVATE, False),
        (Class.SHARED, Class.BOOT, False),
        (Class.PRIVATE, Class.BOOT, False),
    ],
)
def test_a_content_never_moves_to_a_bundle_that_travels_less_often(
    tmp_path: Path, old: Class, new: Class, carried: bool
) -> None:
    data = [noise(1000, 1)]
    with write_pack(tmp_path / "v1.vmpack", data, [old]) as base:
        found = carry_on(base, wanted_of(data, [new]), Silent())
    assert (len(found.index.content), len(found.bundles)) == ((1, 1) if carried else (0, 0))


def test_a_bundle_of_which_nothing_is_used_is_left_behind(tmp_path: Path) -> None:
    old = [noise(1000, 1), noise(1000, 2)]
    with write_pack(tmp_path / "v1.vmpack", old, [Class.PRIVATE, Class.SHARED]) as base:
        found = carry_on(base, wanted_of([old[1]], [Class.SHARED]), Silent())
    assert list(found.bundles) == ["shared-000"]
    assert len(found.index.bundles) == 1


def half_dead(tmp_path: Path, size: int) -> Carried:
    old = [noise(size, 1), noise(size, 2), noise(4000, 3)]
    classes = [Class.PRIVATE, Class.PRIVATE, Class.BOOT]
    with write_pack(tmp_path / "v1.vmpack", old, classes) as base:
        return carry_on(base, wanted_of(old[1:], classes[1:]), Silent())


def test_a_class_that_is_mostly_dead_is_packed_anew(tmp_path: Path) -> None:
    found = half_dead(tmp_path, bases.DEAD_BYTES + MIB)
    assert list(found.bundles) == ["boot"]
    assert found.index.content.tolist() == [1]


def test_a_little_that_is_dead_is_carried_on(tmp_path: Path) -> None:
    found = half_dead(tmp_path, MIB)
    assert list(found.bundles) == ["boot", "private"]


def test_a_frame_that_does_not_hold_what_its_index_says_is_not_carried_on(tmp_path: Path) -> None:
    """Nobody signs a frame index: an author's own mirror may have been changed."""
    data = [noise(300_000, n) for n in range(3)]
    place = tmp_path / "v1.vmpack"
    with write_pack(place, data, [Class.SHARED] * 3) as base:
        stored = place.read_bytes()
        assert stored.count(data[1][5000:5008]) == 1  # noise cannot be compressed
        with place.open("r+b") as file:
            file.seek(stored.index(data[1][5000:5008]))
            file.write(b"tampered")
        found = carry_on(base, wanted_of(data, [Class.SHARED] * 3), Silent())
    assert found.index.content.tolist() == [0, 2]


def test_a_frame_is_as_dead_as_most_of_what_it_holds(tmp_path: Path) -> None:
    """One small file that stays must not keep megabytes of others alive for ever."""
    old = [noise(20_000, n) for n in range(2000)]  # 40 MB in ten mixed frames
    with write_pack(tmp_path / "v1.vmpack", old, [Class.PRIVATE] * len(old)) as base:
        kept = {
            left: carry_on(
                base, wanted_of(old[:: len(old) // left], [Class.PRIVATE] * left), Silent()
            )
            for left in (1000, 2000)
        }
    assert list(kept[2000].bundles) == ["private"]
    assert (list(kept[1000].bundles), kept[1000].index.content.tolist()) == ([], [])


def lying(base: OpenedPack, index: Index) -> OpenedPack:
    """Return the base with another frame index, which nobody signs."""
    base.__dict__["index"] = index
    return base


def test_a_content_that_begins_where_copies_have_it_and_ends_where_they_have_not(
    tmp_path: Path,
) -> None:
    """Its first block in a shared bundle, the last one in the boot bundle, as an index may say."""
    data = [noise(2 * MIB, 1), noise(3000, 2)]
    with write_pack(tmp_path / "v1.vmpack", data, [Class.SHARED, Class.BOOT]) as base:
        boot, shared = base.index.bundles
        swapped = np.array([1, 2, 0])  # the shared bundle's two frames, then the boot bundle's
        lie = lying(
            base,
            replace(
                base.index,
                bundles=(shared, boot),
                bundle=np.array([0, 0, 1]),
                frame_offset=base.index.frame_offset[swapped],
                stored_bytes=base.index.stored_bytes[swapped],
                frame_bytes=base.index.frame_bytes[swapped],
                content=np.array([0]),
                first_frame=np.array([1]),
                offset=np.array([0]),
            ),
        )
        found = carry_on(lie, wanted_of(data, [Class.BOOT, Class.BOOT]), Silent())
    assert found.index.content.tolist() == []


def test_a_bundle_that_the_index_does_not_speak_of_is_left_behind(tmp_path: Path) -> None:
    data = [noise(3000, 1), noise(3000, 2)]
    with write_pack(tmp_path / "v1.vmpack", data, [Class.BOOT, Class.PRIVATE]) as base:
        boot = base.manifest.bundles()["boot"].digest
        lie = lying(base, base.index.only([boot], base.map.contents))
        found = carry_on(lie, wanted_of(data, [Class.BOOT, Class.PRIVATE]), Silent())
    assert (list(found.bundles), found.index.content.tolist()) == (["boot"], [0])


def test_a_bundle_that_holds_more_than_its_frames_is_not_carried_on(tmp_path: Path) -> None:
    """Nobody has looked at the rest, and no limit for what is dead would count it."""
    data = [noise(3000, 1), noise(3000, 2)]
    place = tmp_path / "v1"
    with write_pack(f"{place}/", data, [Class.BOOT, Class.PRIVATE]) as base:
        *others, private = base.manifest.layers
        blobs = place / "blobs" / "sha256"
        grown = (blobs / private.digest.removeprefix("sha256:")).read_bytes() + b"anything"
        name = hashlib.sha256(grown).hexdigest()
        (blobs / name).write_bytes(grown)
        digest = f"sha256:{name}"
        layer = msgspec.structs.replace(private, digest=digest, size=len(grown))
        lie = lying(base, replace(base.index, bundles=(base.index.bundles[0], digest)))
        lie.__dict__["manifest"] = msgspec.structs.replace(base.manifest, layers=(*others, layer))
        found = carry_on(lie, wanted_of(data, [Class.BOOT, Class.PRIVATE]), Silent())
    assert (list(found.bundles), found.index.content.tolist()) == (["boot"], [0])


def test_one_bundle_under_two_titles_travels_as_seldom_as_either(tmp_path: Path) -> None:
    data = [noise(3000, 1)]
    with write_pack(tmp_path / "v1.vmpack", data, [Class.SHARED]) as base:
        *others, shared = base.manifest.layers
        boot = msgspec.structs.replace(shared, annotations={media_types.TITLE: "boot"})
        for layers in ((shared, boot), (boot, shared)):
            manifest = msgspec.structs.replace(base.manifest, layers=(*others, *layers))
            lie = OpenedPack(base.layout)
            lie.__dict__["manifest"] = manifest
            found = carry_on(lie, wanted_of(data, [Class.BOOT]), Silent())
            assert found.index.content.tolist() == []


def test_a_map_that_gives_a_digest_another_size_is_not_believed(tmp_path: Path) -> None:
    data = [noise(3000, 1), noise(3000, 2)]
    wanted = wanted_of(data, [Class.SHARED] * 2)
    grown = replace(wanted.contents, size=wanted.contents.size * np.array([5000, 1]))
    with write_pack(tmp_path / "v1.vmpack", data, [Class.SHARED] * 2) as base:
        found = carry_on(base, Wanted(grown, wanted.rows, no_hints()), Silent())
    assert found.index.content.tolist() == [1]
