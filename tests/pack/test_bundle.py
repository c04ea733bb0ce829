"""Contents in frames: who mixes with whom, how large a frame gets, and that all comes back."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from packer.artifact.contents import Class
from packer.artifact.hints import NO_PACKAGE, Hints, Package
from packer.artifact.index import Index, decode_index, encode_index
from packer.artifact.layout.directory import DirectoryWriter
from packer.errors import InUseError
from packer.pack.bundle import Frame, estimate_bytes, frames_of, write_bundles
from packer.sources.base import Bytes, Wanted
from packer.sources.pack import PackSource
from tests.artifact.make import contents_of
from tests.artifact.real_packs import LEVELS, MIB, blocks_of, hints_of, no_hints, noise, write_pack

KIB = 1 << 10
PACKAGES = (Package("dpkg", "one", "1", "all"), Package("dpkg", "two", "1", "all"))


def frames(
    sizes: Sequence[int], one: Class, places: Sequence[tuple[int, str, int]] = ()
) -> list[Frame]:
    contents = contents_of([noise(size, n) for n, size in enumerate(sizes)], [one] * len(sizes))
    return list(frames_of(contents, hints_of(contents, places, PACKAGES), one))


def test_small_shared_contents_of_one_package_share_frames_of_at_most_a_mib() -> None:
    found = frames([100 * KIB] * 25, Class.SHARED, [(n, f"/usr/{n:03}", 0) for n in range(25)])
    assert [len(frame.rows) for frame in found] == [10, 10, 5]
    assert all(frame.size == sum(100 * KIB for _ in frame.rows) <= MIB for frame in found)


def test_a_shared_frame_never_mixes_packages() -> None:
    places = [(n, f"/usr/share/{n}", n % 2) for n in range(40)]
    found = frames([1000] * 40, Class.SHARED, places)
    assert sorted(len(frame.rows) for frame in found) == [20, 20]
    assert all(len({row % 2 for row in frame.rows}) == 1 for frame in found)


def test_a_shared_frame_mixes_neither_folders_nor_a_folder_with_a_package() -> None:
    places = [
        (0, "/opt/a/1", NO_PACKAGE),
        (1, "/opt/b/1", NO_PACKAGE),
        (2, "/opt/a/2", NO_PACKAGE),
        (3, "/opt/a/3", 0),
    ]
    found = frames([1000] * 5, Class.SHARED, places)
    assert sorted(frame.rows for frame in found) == [(0, 2), (1,), (3,), (4,)]


def test_two_versions_of_one_package_do_not_mix() -> None:
    contents = contents_of([noise(100, n) for n in range(2)], [Class.SHARED] * 2)
    packages = [Package("dpkg", "linux", version, "amd64") for version in "12"]
    hints = hints_of(contents, [(0, "/a", 0), (1, "/b", 1)], packages)
    assert [frame.rows for frame in frames_of(contents, hints, Class.SHARED)] == [(0,), (1,)]


@pytest.mark.parametrize("one", list(Class))
def test_a_content_of_128_kib_has_frames_of_its_own_one_for_each_mib(one: Class) -> None:
    sizes = [10, 128 * KIB - 1, 128 * KIB, 2 * MIB + 5, 20]
    found = frames(sizes, one, [(n, f"/x/{n}", 0) for n in range(5)])
    assert [frame for frame in found if 2 in frame.rows] == [Frame((2,), 0, 128 * KIB)]
    assert [frame for frame in found if 3 in frame.rows] == [
        Frame((3,), 0, MIB),
        Frame((3,), 1, MIB),
        Frame((3,), 2, 5),
    ]
    assert [frame.rows for frame in found if 0 in frame.rows] == [(0, 1, 4)]


@pytest.mark.parametrize("one", [Class.BOOT, Class.PRIVATE])
def test_boot_and_private_contents_mix_up_to_four_mib(one: Class) -> None:
    places = [(n, f"/folder-{n}/x", n % 3 - 1) for n in range(100)]
    found = frames([100 * KIB] * 100, one, places)
    assert [len(frame.rows) for frame in found] == [40, 40, 20]
    assert max(frame.size for frame in found) <= 4 * MIB


def test_every_content_of_a_class_is_in_frames_exactly_once() -> None:
    rng = random.Random(5)
    sizes = [rng.choice([1, 500, 70_000, 131_072, 300_000, MIB, MIB + 1]) for _ in range(120)]
    classes = [rng.choice(list(Class)) for _ in sizes]
    contents = contents_of([noise(size, n) for n, size in enumerate(sizes)], classes)
    places = [(n, f"/{rng.randrange(4)}/{n}", rng.choice([-1, 0, 1])) for n in range(0, 120, 2)]
    hints = hints_of(contents, places, PACKAGES)
    for one in Class:
        held: dict[int, int] = {}
        for frame in frames_of(contents, hints, one):
            for row in frame.rows:
                part = min(MIB, sizes[row] - frame.block * MIB) if sizes[row] >= MIB else sizes[row]
                held[row] = held.get(row, 0) + part
        assert held == {n: sizes[n] for n in range(120) if classes[n] == one}


def guest() -> tuple[list[bytes], list[Class], Hints]:
    """Contents of every class and size, some of them in packages, some without a name."""
    rng = random.Random(7)
    sizes = [rng.choice([40, 700, 30_000, 127 * KIB]) for _ in range(60)]
    sizes += [128 * KIB, MIB - 1, MIB, MIB + 1, 3 * MIB + 7]
    data = [noise(size // 2, n) + bytes(size - size // 2) for n, size in enumerate(sizes)]
    classes = [Class(n % 3) for n in range(len(data))]
    contents = contents_of(data, classes)
    places = [(n, f"/usr/{n % 5}/{n}.so", n % 3 - 1) for n in range(0, len(data), 2)]
    return data, classes, hints_of(contents, places, PACKAGES)


def write(
    folder: Path, jobs: int, told: list[int] | None = None, taken: Sequence[str] = ()
) -> tuple[dict[str, bytes], Index]:
    """Return ({title: bundle's bytes}, index)."""
    data, classes, hints = guest()
    contents = contents_of(data, classes)
    written: dict[str, bytes] = {}
    with DirectoryWriter(folder / f"{jobs}") as writer:
        titled, index = write_bundles(
            writer,
            contents,
            hints,
            blocks_of(data),
            levels=LEVELS,
            jobs=jobs,
            taken=taken,
            progress=(told if told is not None else []).append,
        )
        for title, blob in titled.items():
            (path,) = folder.rglob(blob.digest.removeprefix("sha256:"))
            written[title] = path.read_bytes()
            assert len(written[title]) == blob.size
    return written, index


def test_the_number_of_threads_does_not_change_a_byte(tmp_path: Path) -> None:
    told: list[int] = []
    one, one_index = write(tmp_path, 1, told)
    four, four_index = write(tmp_path, 4)
    assert one == four
    assert encode_index(one_index) == encode_index(four_index)
    assert list(one) == ["boot", "private", "shared-000"]
    assert sum(told) == sum(map(len, guest()[0]))


@pytest.mark.parametrize(
    ("taken", "titles"),
    [
        (["private"], ["boot", "private-001", "shared-000"]),
        (["boot", "boot-001", "boot-003"], ["boot-002", "private", "shared-000"]),
        (["boot-001", "shared-000"], ["boot", "private", "shared-001"]),
        (["shared-999999999", "private-999999999"], ["boot", "private", "shared-000"]),
    ],
)
def test_new_bundles_have_the_first_titles_that_are_free(
    tmp_path: Path, taken: list[str], titles: list[str]
) -> None:
    assert list(write(tmp_path, 2, taken=taken)[0]) == titles


def test_the_index_obeys_the_rules_that_a_reader_checks(tmp_path: Path) -> None:
    data, classes, _ = guest()
    written, index = write(tmp_path, 2)
    again = decode_index(encode_index(index), contents_of(data, classes))
    assert all(
        np.array_equal(getattr(again, name), getattr(index, name)) for name in Index.__slots__
    )
    for number, bundle in enumerate(written.values()):
        rows = index.bundle == number
        assert int(index.stored_bytes[rows].sum()) == len(bundle)


@pytest.mark.parametrize("carried", [(Class.BOOT,), (Class.BOOT, Class.PRIVATE), tuple(Class)])
def test_every_carried_content_can_be_read_back_and_proves_right(
    tmp_path: Path, carried: tuple[Class, ...]
) -> None:
    data, classes, hints = guest()
    pack = write_pack(tmp_path / "a.vmpack", data, classes, hints=hints, carried=carried)
    source = PackSource("pack:", pack.layout, pack.map.contents, pack.index)
    everything = np.arange(len(data), dtype=np.int64)
    offered = source.find(Wanted(pack.map.contents, everything, hints), deep=False).rows
    assert offered.tolist() == [n for n, one in enumerate(classes) if one in carried]
    found: dict[int, dict[int, bytes]] = {}
    for piece in source.fetch(offered):
        assert isinstance(piece, Bytes)
        assert piece.block not in found.setdefault(piece.row, {})
        expected = pack.map.contents.block_digest(piece.row, piece.block)
        assert hashlib.sha256(piece.data).digest() == expected
        found[piece.row][piece.block] = bytes(piece.data)
    whole = {row: b"".join(blocks[n] for n in sorted(blocks)) for row, blocks in found.items()}
    assert whole == {row: data[row] for row in offered.tolist()}
    pack.close()


def test_an_image_that_changes_between_hashing_and_compressing_is_noticed(tmp_path: Path) -> None:
    data = [noise(500, n) for n in range(20)] + [noise(2 * MIB, 99)]
    contents = contents_of(data, [Class.PRIVATE] * 21)
    data[20] = data[20][:-1] + b"\0"
    with (
        pytest.raises(InUseError, match="changed while it was packed") as caught,
        DirectoryWriter(tmp_path / "pack") as writer,
    ):
        write_bundles(
            writer,
            contents,
            no_hints(),
            blocks_of(data),
            levels=LEVELS,
            jobs=2,
            progress=lambda _: None,
        )
    assert contents.name(20) in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_class_without_contents_has_no_bundle(tmp_path: Path) -> None:
    pack = write_pack(tmp_path / "a.vmpack", [b"x" * 10], [Class.PRIVATE])
    assert list(pack.manifest.bundles()) == ["private"]
    pack.close()


def test_a_content_may_go_on_in_the_next_shared_bundle(tmp_path: Path) -> None:
    """Bundles are closed at 192 MiB, wherever a content's blocks happen to be."""
    size = 200 * MIB
    block = noise(MIB, 1)
    varied = [n.to_bytes(4, "little") + block[4:] for n in range(4)]
    content = b"".join(varied) * (size // (4 * MIB)) + b"tail"
    pack = write_pack(tmp_path / "pack/", [b"first", content], [Class.SHARED] * 2)
    assert list(pack.manifest.bundles()) == ["shared-000", "shared-001"]
    source = PackSource("pack:", pack.layout, pack.map.contents, pack.index)
    rows = np.array([0, 1], dtype=np.int64)
    assert source.find(Wanted(pack.map.contents, rows, no_hints()), deep=False).rows.tolist() == [
        0,
        1,
    ]
    hasher = hashlib.sha256()
    for count, piece in enumerate(source.fetch(rows[1:])):
        assert isinstance(piece, Bytes)
        assert piece.block == count
        hasher.update(piece.data)
    assert hasher.digest() == pack.map.contents.digest[1].tobytes()
    pack.close()


def test_the_estimate_comes_near_what_the_bundles_weigh(tmp_path: Path) -> None:
    data, classes, hints = guest()
    written, _ = write(tmp_path, 1)
    told: list[int] = []
    guessed = estimate_bytes(
        contents_of(data, classes), hints, blocks_of(data), jobs=2, progress=told.append
    )
    weighed = len(written["boot"]) + len(written["private"])
    assert 0.8 * weighed < guessed < 1.2 * weighed
    assert sum(told) == sum(
        len(d) for d, one in zip(data, classes, strict=True) if one != Class.SHARED
    )
