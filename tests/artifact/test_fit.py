"""What a medium takes when it cannot take everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from packer.artifact.contents import Class
from packer.artifact.copy import CopyReport, Extent, Fit, copy_packs
from packer.artifact.layout.open import create_layout, open_layout
from packer.artifact.opened import OpenedPack, ref_names
from packer.errors import Error, InputError
from packer.sources.base import Wanted
from packer.sources.pack import PackSource
from tests.artifact.make import contents_of
from tests.artifact.real_packs import MIB, hints_of, noise, write_pack

KIB = 1 << 10
SIZES = (3 * MIB + 5, *(200 * KIB,) * 30, *(700,) * 400, MIB, 5 * MIB, 90_000)


def data_of(seed: int) -> list[bytes]:
    return [noise(size, 1000 * seed + n) for n, size in enumerate(SIZES)]


def guest(place: Path, data: list[bytes], name: str = "demo") -> OpenedPack:
    """Write a pack of one boot, one private and many shared contents."""
    everything = [b"boot" * 300, name.encode() * 50, *data]
    classes = [Class.BOOT, Class.PRIVATE, *(Class.SHARED for _ in data)]
    hints = hints_of(contents_of(everything, classes), [], [])
    return write_pack(place, everything, classes, hints=hints, name=name)


def fit(
    packs: list[OpenedPack],
    place: Path,
    capacity: int,
    chances: list[np.ndarray] | None = None,
) -> CopyReport:
    chances = chances or [np.full(len(pack.map.contents), 0.5) for pack in packs]
    with create_layout(place) as writer:
        return copy_packs(packs, writer, Fit(capacity, chances))


def held(pack: OpenedPack) -> dict[int, bytes]:
    """Return what the bundles of a copy really hold, each piece proven."""
    contents = pack.map.contents
    source = PackSource("pack:", pack.layout, contents, pack.index)
    rows = np.arange(len(contents), dtype=np.int64)
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
        assert ref_names(layout) == ["a:1", "b:1"]
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
