"""What a medium takes when it cannot take everything."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace as replace_struct

from packer.artifact import fit as fits
from packer.artifact.contents import Class
from packer.artifact.copy import CopyReport, Extent, Fit, copy_packs
from packer.artifact.index import Index, decode_index, encode_index
from packer.artifact.layout.open import create_layout, open_layout
from packer.artifact.opened import OpenedPack, packs_of
from packer.errors import Error, InputError
from packer.sources.base import Wanted
from packer.sources.pack import PackSource
from tests.artifact.make import contents_of
from tests.artifact.real_packs import MIB, hints_of, noise, straight_map, write_pack

KIB = 1 << 10
SIZES = (3 * MIB + 5, *(200 * KIB,) * 30, *(700,) * 400, MIB, 5 * MIB, 90_000)


def data_of(seed: int) -> list[bytes]:
    return [noise(size, 1000 * seed + n) for n, size in enumerate(SIZES)]


def guest(
    place: Path, data: list[bytes], name: str = "demo", carried: Sequence[Class] = tuple(Class)
) -> OpenedPack:
    """Write a pack of one boot, one private and many shared contents."""
    everything = [b"boot" * 300, name.encode() * 50, *data]
    classes = [Class.BOOT, Class.PRIVATE, *(Class.SHARED for _ in data)]
    hints = hints_of(contents_of(everything, classes), [], [])
    return write_pack(place, everything, classes, hints=hints, name=name, carried=carried)


def fit(
    packs: list[OpenedPack],
    place: Path,
    capacity: int,
    chances: list[np.ndarray] | None = None,
) -> CopyReport:
    chances = chances or [np.full(len(pack.map.contents), 0.5) for pack in packs]
    with create_layout(place) as writer:
        return copy_packs(packs, writer, Fit(capacity, chances))


def held(pack: OpenedPack, rows: np.ndarray | None = None) -> dict[int, bytes]:
    """Return what the bundles of a copy really hold, of all or some contents."""
    contents = pack.map.contents
    source = PackSource("pack:", pack.layout, contents, pack.index)
    rows = np.arange(len(contents), dtype=np.int64) if rows is None else rows
    found: dict[int, dict[int, bytes]] = {}
    offered = source.find(Wanted(contents, rows, pack.hints), deep=False).rows
    for piece in source.fetch(offered):
        found.setdefault(piece.row, {})[piece.block] = bytes(piece.data)  # type: ignore[union-attr]
    assert sorted(found) == offered.tolist()
    return {row: b"".join(blocks[n] for n in sorted(blocks)) for row, blocks in found.items()}


@pytest.mark.parametrize("form", ["fit.vmpack", "fit/", "fit.iso"])
@pytest.mark.parametrize("capacity", [3 * MIB, 7 * MIB, 12 * MIB])
def test_a_medium_is_filled_and_never_overfilled(tmp_path: Path, capacity: int, form: str) -> None:
    data = data_of(1)
    with guest(tmp_path / "full.vmpack", data) as pack:
        with create_layout(f"{tmp_path}/{form}") as writer:
            report = copy_packs([pack], writer, Fit(capacity, [np.full(2 + len(data), 0.5)]))
        place = tmp_path / form
        files = [place] if place.is_file() else [one for one in place.rglob("*") if one.is_file()]
        assert sum(one.stat().st_size for one in files) <= report.medium_bytes <= capacity
        assert report.medium_bytes >= 0.95 * capacity
        with OpenedPack(open_layout(place)) as copy:
            assert copy.config_bytes == pack.config_bytes
            found = held(copy)
            everything = [b"boot" * 300, b"demo" * 50, *data]
            assert found == {row: everything[row] for row in found}
            assert {0, 1} < set(found) < set(range(len(everything)))
            lacking = report.packs[0].lacking["shared"]
            assert lacking[0] == len(everything) - len(found)


def test_what_the_audience_has_is_taken_last(tmp_path: Path) -> None:
    data = data_of(1)
    lacks = np.zeros(2 + len(data))
    lacks[20:32] = 1.0  # of the contents of 200 KiB
    with guest(tmp_path / "full.vmpack", data) as pack:
        fit([pack], tmp_path / "fit.vmpack", 3 * MIB, [lacks])
        with OpenedPack(open_layout(tmp_path / "fit.vmpack")) as copy:
            assert set(range(20, 32)) <= set(held(copy))


def test_a_medium_with_room_for_everything_holds_everything(tmp_path: Path) -> None:
    with guest(tmp_path / "full.vmpack", data_of(1)) as pack:
        report = fit([pack], tmp_path / "fit.vmpack", 100 * MIB)
        assert report.packs[0].lacking == {}
        assert report.medium_bytes < 18 * MIB


def test_a_medium_that_cannot_hold_boot_and_private_is_refused(tmp_path: Path) -> None:
    with guest(tmp_path / "full.vmpack", data_of(1)) as pack:
        with pytest.raises(
            Error, match=r"boot and private contents need .* the medium has 1\.0 kB"
        ):
            fit([pack], tmp_path / "fit.vmpack", 1000)
        assert [one.name for one in tmp_path.iterdir()] == ["full.vmpack"]


def test_two_packs_share_what_is_the_same_in_them(tmp_path: Path) -> None:
    """Of two guests that were packed apart, a medium holds a common content once."""
    common, own = data_of(1), [noise(300 * KIB, n) for n in range(3)]
    with (
        guest(tmp_path / "a.vmpack", common, "a") as a,
        guest(tmp_path / "b.vmpack", [*own, *reversed(common)], "b") as b,
    ):
        report = fit([a, b], tmp_path / "both.vmpack", 100 * MIB)
        assert [one.lacking for one in report.packs] == [{}, {}]
        assert report.medium_bytes < sum(SIZES) + 3 * 300 * KIB + MIB // 2
        layout = open_layout(tmp_path / "both.vmpack")
        assert [one.config.ref_name for one in packs_of(layout)] == ["a:1", "b:1"]
        found = held(OpenedPack(layout, "b"))
        assert found == dict(enumerate([b"boot" * 300, b"b" * 50, *own, *reversed(common)]))
        layout.close()


def test_of_two_packs_on_a_small_medium_each_says_what_it_lacks(tmp_path: Path) -> None:
    with (
        guest(tmp_path / "a.vmpack", data_of(1), "a") as a,
        guest(tmp_path / "b.vmpack", data_of(2), "b") as b,
    ):
        report = fit([a, b], tmp_path / "both.vmpack", 8 * MIB)
        for one, name in zip(report.packs, ("a", "b"), strict=True):
            with OpenedPack(open_layout(tmp_path / "both.vmpack"), name) as copy:
                assert one.lacking["shared"][0] == len(SIZES) + 2 - len(held(copy))


def test_whole_copies_of_two_packs_hold_common_bundles_once(tmp_path: Path) -> None:
    with (
        guest(tmp_path / "a.vmpack", data_of(1), "a") as a,
        guest(tmp_path / "b.vmpack", data_of(1), "b") as b,
        create_layout(tmp_path / "both.vmpack") as writer,
    ):
        report = copy_packs([a, b], writer, Extent.FULL)
    assert report.medium_bytes < sum(SIZES) + MIB // 2
    assert (tmp_path / "both.vmpack").stat().st_size == pytest.approx(report.medium_bytes, abs=9000)


def test_the_same_pack_twice_in_one_place_is_refused(tmp_path: Path) -> None:
    with (
        guest(tmp_path / "a.vmpack", data_of(1)) as a,
        guest(tmp_path / "b.vmpack", data_of(2)) as b,
        pytest.raises(InputError, match="found another demo:1"),
        create_layout(tmp_path / "both.vmpack") as writer,
    ):
        copy_packs([a, b], writer, Extent.THIN)
    assert not (tmp_path / "both.vmpack").exists()


def test_a_frame_that_was_tampered_with_is_not_carried_to_a_medium(tmp_path: Path) -> None:
    data = data_of(1)
    place = tmp_path / "full.vmpack"
    with guest(place, data) as pack:
        stored = place.read_bytes()
        with place.open("r+b") as file:
            file.seek(stored.index(data[5][1000:1008]))
            file.write(b"tampered")
        with pytest.raises(InputError, match=r"expected sha256:.* in it, found other bytes"):
            fit([pack], tmp_path / "fit.vmpack", 100 * MIB)
    assert not (tmp_path / "fit.vmpack").exists()


def test_the_same_medium_is_filled_with_the_same_bytes(tmp_path: Path) -> None:
    with guest(tmp_path / "full.vmpack", data_of(1)) as pack:
        fit([pack], tmp_path / "one.vmpack", 5 * MIB)
        fit([pack], tmp_path / "two.vmpack", 5 * MIB)
    assert (tmp_path / "one.vmpack").read_bytes() == (tmp_path / "two.vmpack").read_bytes()


CAPACITIES = range(300_000, 360_000, 1511)


def test_a_medium_is_never_larger_than_it_may_be(tmp_path: Path) -> None:
    """Not by a byte, wherever the last sector ends; and it never gets emptier with more room."""
    data = [noise(3000 + 7 * n, n) for n in range(300)]
    everything = [b"boot" * 300, b"demo" * 50, *data]
    classes = [Class.BOOT, Class.PRIVATE, *(Class.SHARED for _ in data)]
    places = [(row, f"/opt/{row}/file", -1) for row in range(2, len(everything))]
    hints = hints_of(contents_of(everything, classes), places)
    chances = [np.full(len(everything), 0.5)]
    sizes = []
    with write_pack(tmp_path / "full.vmpack", everything, classes, hints=hints) as pack:
        for capacity in CAPACITIES:
            place = tmp_path / f"{capacity}.vmpack"
            report = fit([pack], place, capacity, chances)
            assert place.stat().st_size <= report.medium_bytes <= capacity
            sizes.append(report.medium_bytes)
    assert min(np.array(sizes) / CAPACITIES) > 0.98
    assert (np.diff(sizes) >= 0).all()


@pytest.mark.parametrize("capacity", [0, 1, 1000])
def test_a_medium_of_almost_nothing_is_refused(tmp_path: Path, capacity: int) -> None:
    with guest(tmp_path / "full.vmpack", data_of(1)[:40]) as pack:
        with pytest.raises(Error, match="boot and private contents need"):
            fit([pack], tmp_path / "fit.vmpack", capacity)
        assert [one.name for one in tmp_path.iterdir()] == ["full.vmpack"]


def test_a_medium_that_just_holds_everything_holds_everything(tmp_path: Path) -> None:
    with guest(tmp_path / "full.vmpack", data_of(1)) as pack:
        whole = fit([pack], tmp_path / "large.vmpack", 1 << 50).medium_bytes
        # What the frame index takes at most counts: with other names of bundles it may be longer.
        exact = fit([pack], tmp_path / "exact.vmpack", whole + 512)
    assert (exact.medium_bytes, exact.packs[0].lacking) == (whole, {})
    assert (tmp_path / "exact.vmpack").read_bytes() == (tmp_path / "large.vmpack").read_bytes()


def test_a_copy_without_shared_bundles_fills_nothing(tmp_path: Path) -> None:
    thin = (Class.BOOT, Class.PRIVATE)
    with guest(tmp_path / "thin.vmpack", data_of(1), carried=thin) as pack:
        report = fit([pack], tmp_path / "fit.vmpack", 100 * MIB)
    assert report.packs[0].lacking["shared"][0] == len(SIZES)
    with OpenedPack(open_layout(tmp_path / "fit.vmpack")) as copy:
        assert list(copy.manifest.bundles()) == ["boot", "private"]
        assert sorted(held(copy)) == [0, 1]


def test_a_thin_pack_gets_from_its_sister_what_both_have(tmp_path: Path) -> None:
    common, own = data_of(1), [noise(300 * KIB, n) for n in range(3)]
    thin = (Class.BOOT, Class.PRIVATE)
    with (
        guest(tmp_path / "a.vmpack", common, "a") as a,
        guest(tmp_path / "b.vmpack", [*common, *own], "b", carried=thin) as b,
    ):
        report = fit([a, b], tmp_path / "both.vmpack", 100 * MIB)
    assert report.packs[1].lacking["shared"][0] == len(own)
    with OpenedPack(open_layout(tmp_path / "both.vmpack"), "b") as copy:
        assert held(copy) == dict(enumerate([b"boot" * 300, b"b" * 50, *common]))


def test_what_was_filled_can_be_copied_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sisters call a bundle that they have in common differently: each counts those it uses."""
    monkeypatch.setattr(fits, "BUNDLE_BYTES", MIB)
    data = data_of(1)
    few = [one for one in data if len(one) > 4 * MIB]
    with guest(tmp_path / "a.vmpack", data, "a") as a, guest(tmp_path / "b.vmpack", few, "b") as b:
        fit([a, b], tmp_path / "both.vmpack", 100 * MIB)
    layout = open_layout(tmp_path / "both.vmpack")
    packs = [OpenedPack(layout, name) for name in ("a", "b")]
    titles = [{one.digest: title for title, one in p.manifest.bundles().items()} for p in packs]
    assert any(titles[0].get(digest, title) != title for digest, title in titles[1].items())
    with create_layout(tmp_path / "again.vmpack") as writer:
        copy_packs(packs, writer, Extent.FULL)
    layout.close()
    for name, some in (("a", data), ("b", few)):
        with OpenedPack(open_layout(tmp_path / "again.vmpack"), name) as copy:
            assert held(copy) == dict(enumerate([b"boot" * 300, name.encode() * 50, *some]))


def test_two_packs_of_one_disk_share_map_and_hints(tmp_path: Path) -> None:
    data, classes = [b"boot" * 300, noise(90_000, 1)], [Class.BOOT, Class.SHARED]
    with (
        write_pack(tmp_path / "a.vmpack", data, classes, name="a") as a,
        write_pack(tmp_path / "b.vmpack", data, classes, name="b") as b,
    ):
        assert a.manifest.maps() == b.manifest.maps()
        chances = [np.ones(2)] * 2
        for extent in (Extent.FULL, Extent.BOOT, Fit(1 << 20, chances)):
            place = tmp_path / f"{extent}"[:9]
            with create_layout(place) as writer:
                copy_packs([a, b], writer, extent)
            for name in ("a", "b"):
                with OpenedPack(open_layout(place), name) as copy:
                    assert copy.config.name == name
                    assert len(held(copy)) == 1 + (extent is not Extent.BOOT)


def test_a_size_that_a_sister_contradicts_is_one_clear_error(tmp_path: Path) -> None:
    data, classes = [b"boot" * 300, noise(90_000, 1)], [Class.BOOT, Class.SHARED]
    with (
        write_pack(tmp_path / "a.vmpack", data, classes, name="a") as a,
        write_pack(tmp_path / "b.vmpack", data, classes, name="b") as b,
    ):
        shorter = [
            replace_struct(one, size=one.size - 1) if one in b.manifest.maps() else one
            for one in b.manifest.layers
        ]
        b.__dict__["manifest"] = replace_struct(b.manifest, layers=tuple(shorter))
        with (
            pytest.raises(InputError, match=r"b\.vmpack: blob .* as .*a\.vmpack says, found"),
            create_layout(tmp_path / "both.vmpack") as writer,
        ):
            copy_packs([a, b], writer, Extent.FULL)
    assert not (tmp_path / "both.vmpack").exists()


def test_a_map_that_gives_a_sisters_content_another_size_gets_nothing_of_it(
    tmp_path: Path,
) -> None:
    data = data_of(1)
    everything = [b"boot" * 300, b"b" * 50, noise(5 * MIB, 9)]
    classes = [Class.BOOT, Class.PRIVATE, Class.SHARED]
    honest = contents_of(everything, classes)
    digest = honest.digest.copy()
    digest[2] = contents_of(data[1:2]).digest[0]  # of 200 KiB
    lie = straight_map(replace(honest, digest=digest))
    with (
        guest(tmp_path / "a.vmpack", data, "a") as a,
        write_pack(
            tmp_path / "b.vmpack", everything, classes, disk_map=lie, name="b", carried=classes[:2]
        ) as b,
    ):
        report = fit([a, b], tmp_path / "both.vmpack", 100 * MIB)
    assert [one.lacking for one in report.packs] == [{}, {"shared": (1, 5 * MIB)}]
    with OpenedPack(open_layout(tmp_path / "both.vmpack"), "b") as copy:
        assert sorted(held(copy)) == [0, 1]


def lies(index: Index, chance: random.Random, count: int) -> Iterator[Index]:
    """Yield an index with one number replaced by one near it or by another one of its column."""
    for _ in range(count):
        name = chance.choice(["stored_bytes", "frame_bytes", "content", "first_frame", "offset"])
        column = getattr(index, name).copy()
        place = chance.randrange(len(column))
        near = max(0, int(column[place]) + chance.choice([-700, -1, 1, 700]))
        column[place] = chance.choice([near, chance.choice(column.tolist())])
        lie = replace(index, **{name: column})
        longer = np.array(lie.bundle_bytes()) > index.bundle_bytes()
        if (np.diff(lie.content) > 0).all() and not longer.any():
            yield lie


def test_no_index_of_a_stranger_brings_a_wrong_byte_to_a_medium(tmp_path: Path) -> None:
    data = [noise(size, n) for n, size in enumerate((500, 90_000, 300_000, 2 * MIB + 5, 700, 900))]
    everything = [b"boot" * 300, *data]
    classes = [Class.BOOT, *(Class.SHARED for _ in data)]
    chance, refused, filled = random.Random(4), 0, 0
    with write_pack(tmp_path / "full.vmpack", everything, classes) as pack:
        contents = pack.map.contents
        for lie in lies(pack.index, chance, 600):
            capacity = chance.choice([200, 500, 2600, 8000]) << 10
            lacks = np.array([chance.random() for _ in everything])
            try:
                pack.__dict__["index"] = decode_index(encode_index(lie), contents)
                fit([pack], tmp_path / "fit.vmpack", capacity, [lacks])
            except InputError:
                refused += 1
                continue
            with OpenedPack(open_layout(tmp_path / "fit.vmpack")) as copy:
                index = copy.index  # the boot bundle is copied as it is, frames unseen
                rows = index.content[index.bundle[index.first_frame] > 0]
                assert {row: everything[row] for row in rows.tolist()} == held(copy, rows)
            (tmp_path / "fit.vmpack").unlink()
            filled += 1
    assert min(refused, filled) > 50
