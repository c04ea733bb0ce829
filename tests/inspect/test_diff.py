"""Why one of two packs is bigger: every table adds up to the difference."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.artifact.contents import Class
from packer.artifact.hints import Package
from packer.artifact.opened import OpenedPack
from packer.inspect.diff import (
    METADATA,
    NO_PACKAGE_SHIPS,
    UNPARSED,
    Amount,
    Difference,
    Row,
    diff_packs,
    stored_shares,
)
from packer.pack.pack import PackOptions, pack
from packer.sources.open import open_pack
from tests.artifact.make import contents_of
from tests.artifact.real_packs import MIB, hints_of, noise, write_pack
from tests.guest.material import ext4, write_tree
from tests.round_trip.packs import Packed


@dataclass(frozen=True)
class One:
    """A content: its bytes, its class, its path ("" for none), its package's row or -1."""

    data: bytes
    kind: Class = Class.PRIVATE
    path: str = ""
    package: int = -1


def a_pack(
    place: Path,
    contents: Sequence[One],
    packages: Sequence[Package] = (),
    carried: Sequence[Class] = tuple(Class),
) -> OpenedPack:
    data, kinds = [one.data for one in contents], [one.kind for one in contents]
    places = [(row, one.path, one.package) for row, one in enumerate(contents) if one.path]
    hints = hints_of(contents_of(data, kinds), places, packages)
    return write_pack(place, data, kinds, hints=hints, carried=carried)


def differences(rows: Iterable[Row]) -> dict[str, int]:
    return {row.what: row.difference_bytes for row in rows}


def adds_up(found: Difference) -> None:
    """What every table must keep to, to the byte, plain and as stored."""
    more = found.new.whole.size_bytes - found.old.whole.size_bytes
    assert found.differing.difference_bytes == more
    assert sum(row.difference_bytes for row in found.classes) == more
    for table in (found.packages, found.folders, found.files):
        for side in ("old", "new"):
            amounts: list[Amount] = [getattr(row, side) for row in table]
            whole: Amount = getattr(found.differing, side)
            assert sum(one.contents for one in amounts) == whole.contents
            assert sum(one.size_bytes for one in amounts) == whole.size_bytes
            if whole.stored_bytes is not None:
                assert sum(one.stored_bytes or 0 for one in amounts) == whole.stored_bytes
        assert len({row.what for row in table}) == len(table)
    for one in (found.old, found.new):
        if one.whole.stored_bytes is not None:
            parts = (one.whole.stored_bytes, one.idle_bytes, one.delta_bytes, one.table_bytes)
            assert sum(parts) == one.stored_bytes
    old, new = found.old.whole.stored_bytes, found.new.whole.stored_bytes
    if old is not None and new is not None:
        differing, repacked = found.differing.stored_difference_bytes, found.repacked_bytes
        assert differing is not None
        assert repacked is not None
        assert differing + repacked == new - old


# --- made-up packs ---

BASH_1, BASH_2 = (Package("dpkg", "bash", version, "amd64") for version in ("1", "2"))
OLD_ONE, NEW_ONE = Package("dpkg", "old", "3", "all"), Package("dpkg", "new", "4", "all")
SAME = Package("dpkg", "same", "5", "all")


@pytest.fixture
def two(tmp_path: Path) -> Difference:
    common = [
        One(noise(4096, 0), Class.BOOT),
        One(noise(5000, 1), Class.SHARED, "/usr/share/same", 1),
        One(noise(900, 2), Class.PRIVATE, "/etc/becomes-shared"),
    ]
    old = [
        *common,
        One(noise(300_000, 3), Class.SHARED, "/usr/bin/bash", 0),
        One(noise(3000, 4), Class.SHARED, "/usr/share/old/a/b", 2),
        One(noise(2000, 5), Class.PRIVATE, "/srv/before"),
        One(noise(8192, 6), Class.BOOT),
    ]
    new = [
        *common[:2],
        One(common[2].data, Class.SHARED, "/etc/becomes-shared"),
        One(noise(310_000, 7), Class.SHARED, "/usr/bin/bash", 0),
        One(noise(70_000, 8), Class.SHARED, "/usr/share/new/x", 2),
        One(noise(2000, 5), Class.PRIVATE, "/srv/renamed"),
        One(noise(12288, 9), Class.BOOT),
        One(noise(512, 10), Class.PRIVATE),
        One(noise(3 * MIB, 11), Class.PRIVATE, "/srv/large"),
    ]
    with (
        a_pack(tmp_path / "old.vmpack", old, [BASH_1, SAME, OLD_ONE]) as left,
        a_pack(tmp_path / "new.vmpack", new, [BASH_2, SAME, NEW_ONE]) as right,
    ):
        return diff_packs(left, right, depth=2)


def test_every_table_adds_up(two: Difference) -> None:
    adds_up(two)


def test_packages_say_what_became_of_them(two: Difference) -> None:
    assert [(row.what, row.change, row.difference_bytes) for row in two.packages] == [
        ("new:all", "added 4", 70_000),
        ("bash:amd64", "1 -> 2", 10_000),
        ("old:all", "removed 3", -3000),
        (NO_PACKAGE_SHIPS, "", 3 * MIB),
        (METADATA, "", 4096),
        (UNPARSED, "", 512),
    ]


def test_folders_are_cut_at_a_depth(two: Difference) -> None:
    assert differences(two.folders) == {
        "/srv": 3 * MIB,
        "/usr/share": 67_000,
        "/usr/bin": 10_000,
        METADATA: 4096,
        UNPARSED: 512,
    }


def test_files_come_by_what_is_new_or_gone(two: Difference) -> None:
    assert [(row.what, row.change) for row in two.files] == [
        ("/srv/large", "new"),
        ("/usr/bin/bash", "changed"),
        ("/usr/share/new/x", "new"),
        ("/usr/share/old/a/b", "gone"),
        (METADATA, "changed"),
        (UNPARSED, "new"),
    ]


def test_a_content_that_changed_its_class_moves_between_classes_alone(two: Difference) -> None:
    by_class = differences(two.classes)
    assert by_class["private"] == 3 * MIB + 512 - 900
    assert by_class["shared"] == 70_000 + 10_000 - 3000 + 900
    assert not any("becomes" in row.what for row in two.files)


def test_a_large_content_is_stored_in_frames_of_its_own(two: Difference) -> None:
    (large,) = (row for row in two.files if row.what == "/srv/large")
    assert large.new.stored_bytes is not None
    assert abs(large.new.stored_bytes - 3 * MIB) < 1000  # noise cannot be compressed


def test_a_package_of_another_version_is_listed_without_bytes_of_its_own(tmp_path: Path) -> None:
    contents = [One(noise(500, 1), Class.SHARED, "/usr/bin/bash", 0)]
    with (
        a_pack(tmp_path / "1.vmpack", contents, [BASH_1]) as left,
        a_pack(tmp_path / "2.vmpack", contents, [BASH_2]) as right,
    ):
        found = diff_packs(left, right, depth=2)
    assert [(row.what, row.change, row.new) for row in found.packages] == [
        ("bash:amd64", "1 -> 2", Amount())
    ]
    adds_up(found)


def test_each_release_of_windows_has_its_row(tmp_path: Path) -> None:
    """A Windows has files of hundreds of releases at once, one for each update."""
    rtm, update = (Package("windows", "Windows", f"10.0.1.{n}", "amd64") for n in (1, 2))
    signed = Package("windows", "Microsoft", "", "")
    old = [One(noise(500, 1), Class.SHARED, "/a", 0), One(noise(300, 2), Class.SHARED, "/b", 1)]
    new = [One(noise(400, 3), Class.SHARED, "/a", 1), One(noise(300, 2), Class.SHARED, "/b", 0)]
    with (
        a_pack(tmp_path / "1.vmpack", old, [rtm, signed]) as left,
        a_pack(tmp_path / "2.vmpack", new, [signed, update]) as right,
    ):
        found = diff_packs(left, right, depth=2)
    assert [(row.what, row.change) for row in found.packages] == [
        ("Windows 10.0.1.1:amd64", "removed 10.0.1.1"),
        ("Windows 10.0.1.2:amd64", "added 10.0.1.2"),
    ]
    adds_up(found)


def test_a_content_of_a_package_and_of_somebody_else_is_the_packages(tmp_path: Path) -> None:
    data = [noise(500, 1)]
    places = [(0, "/a/copy", -1), (0, "/usr/bin/bash", 0)]
    hints = hints_of(contents_of(data, [Class.SHARED]), places, [BASH_1])
    with (
        write_pack(tmp_path / "1.vmpack", [b"x"], [Class.BOOT]) as left,
        write_pack(tmp_path / "2.vmpack", data, [Class.SHARED], hints=hints) as right,
    ):
        found = diff_packs(left, right, depth=2)
    assert differences(found.packages)["bash:amd64"] == 500
    assert differences(found.folders)["/usr/bin"] == 500
    adds_up(found)


@pytest.mark.parametrize("carried", [[Class.BOOT], [Class.BOOT, Class.PRIVATE]])
def test_a_thin_copy_says_what_it_does_not_carry(tmp_path: Path, carried: list[Class]) -> None:
    old = [One(noise(5000, 1), Class.SHARED, "/usr/a", 0), One(noise(4096, 2), Class.BOOT)]
    new = [One(noise(6000, 3), Class.SHARED, "/usr/a", 0), One(noise(4096, 2), Class.BOOT)]
    with (
        a_pack(tmp_path / "1.vmpack", old, [BASH_1]) as left,
        a_pack(tmp_path / "2.vmpack", new, [BASH_2], carried=carried) as right,
    ):
        found = diff_packs(left, right, depth=2)
    adds_up(found)
    (row,) = (row for row in found.packages if row.what == "bash:amd64")
    assert (row.new.size_bytes, row.new.stored_bytes) == (6000, None)
    assert row.old.stored_bytes is not None
    assert row.stored_difference_bytes is None
    stored = {row.what: row.new.stored_bytes is None for row in found.classes}
    assert stored == {"boot": False, "private": False, "shared": True}


def test_a_pack_does_not_differ_from_its_copy(tmp_path: Path) -> None:
    contents = [One(noise(5000, 1), Class.SHARED, "/usr/a", 0)]
    with a_pack(tmp_path / "1.vmpack", contents, [BASH_1]) as one:
        found = diff_packs(one, one, depth=2)
    assert found.old == found.new
    assert (found.packages, found.folders, found.files) == ((), (), ())
    assert found.differing == Row("", "", Amount(), Amount())
    adds_up(found)


def test_what_a_next_version_carries_on_and_does_not_use_is_told(tmp_path: Path) -> None:
    """Of the base's frames, small files that are gone share one with those that stay."""
    files = {f"/srv/{row}": noise(4000, row) for row in range(40)}
    files["/etc/os-release"] = b"ID=debian\n"
    image = ext4(tmp_path / "1.raw", write_tree(tmp_path / "1", files, {}))
    pack(image, tmp_path / "1.vmpack", PackOptions("demo"), [])
    for row in range(3):
        del files[f"/srv/{row}"]
    changed = ext4(tmp_path / "2.raw", write_tree(tmp_path / "2", files, {}))
    with open_pack(str(tmp_path / "1.vmpack")) as old:
        pack(changed, tmp_path / "2.vmpack", PackOptions("demo", version=2, base=old), [])
        with open_pack(str(tmp_path / "2.vmpack")) as new:
            found = diff_packs(old, new, depth=1)
    adds_up(found)
    assert found.old.idle_bytes == 0
    assert found.new.idle_bytes >= 3 * 4000
    assert differences(found.folders)["/srv"] == -3 * 4000


# --- any packs ---

KINDS = st.sampled_from(list(Class))
PATHS = st.sampled_from(["", "/a", "/a/b", "/a/b/c/d", "/\x1b[31m", "/a\nb", "/" + "x" * 4000])
SIZES = st.sampled_from([1, 100, 4096, 5000, 128 << 10, MIB, MIB + 1])
PICKED = st.lists(
    st.tuples(st.integers(0, 7), KINDS, PATHS, st.integers(-1, 1), SIZES),
    max_size=8,
    unique_by=lambda one: one[0],
)


def some_pack(
    folder: Path, name: str, picked: Sequence[tuple[int, Class, str, int, int]]
) -> OpenedPack:
    contents = [
        One(bytes([seed]) + noise(size - 1, seed), kind, path, package if path else -1)
        for seed, kind, path, package, size in picked
    ]
    return a_pack(folder / name, contents, [BASH_1 if name == "1" else BASH_2, SAME])


@settings(max_examples=60, deadline=None)
@given(PICKED, PICKED, st.integers(1, 4))
def test_the_tables_of_any_two_packs_add_up(
    left: list[tuple[int, Class, str, int, int]],
    right: list[tuple[int, Class, str, int, int]],
    depth: int,
) -> None:
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        old, new = (
            stack.enter_context(some_pack(Path(name), *one)) for one in (("1", left), ("2", right))
        )
        found = diff_packs(old, new, depth=depth)
        adds_up(found)
        back = diff_packs(new, old, depth=depth)
        assert back.differing.difference_bytes == -found.differing.difference_bytes
        for pack_of_two in (old, new):
            contents, index = pack_of_two.map.contents, pack_of_two.index
            assert stored_shares(contents, index).sum() == index.stored_bytes.sum()


# --- real guests ---


@pytest.mark.guest
def test_an_upgrade_shows_its_packages_at_the_top(pack_guest: Callable[[str], Packed]) -> None:
    before, after = pack_guest("debian-bios"), pack_guest("debian-bios-upgraded")
    with open_pack(str(before.full)) as old, open_pack(str(after.full)) as new:
        found = diff_packs(old, new, depth=3)
    adds_up(found)
    assert found.repacked_bytes is not None
    upgraded = {
        one["package"]: f"{one['old']} -> {one['new']}"
        for one in after.guest.facts["packages_changed"]
        if one["old"] != "-"  # installed again, the same version
    }
    packages = [row for row in found.packages if row.what not in (METADATA, NO_PACKAGE_SHIPS)]
    assert {row.what.partition(":")[0]: row.change for row in packages} == upgraded
    assert found.packages[: len(packages)] == tuple(packages)
    assert found.packages[0].what.startswith("libssl3:")
    paths = {row.what for row in found.files}
    assert "/usr/share/zoneinfo/tzdata.zi" in paths
    assert "/etc/vmpack-nonce" in paths
    assert {"/usr/share/zoneinfo", "/usr/share/doc"} <= {row.what for row in found.folders}
    # Only what the packages ship is shared; of that, nothing else changed.
    shared = chain.from_iterable((row.old.size_bytes, row.new.size_bytes) for row in packages)
    assert sum(shared) > 10 * MIB


@pytest.mark.guest
def test_thin_copies_of_real_guests_have_the_same_plain_sizes(
    pack_guest: Callable[[str], Packed],
) -> None:
    before, after = pack_guest("debian-bios"), pack_guest("debian-bios-upgraded")
    with (
        open_pack(str(before.full)) as old,
        open_pack(str(after.full)) as new,
        open_pack(str(after.thin)) as thin,
    ):
        full, partial = diff_packs(old, new, depth=3), diff_packs(old, thin, depth=3)
    adds_up(partial)
    assert differences(partial.packages) == differences(full.packages)
    assert partial.packages[0].stored_difference_bytes is None
    assert partial.repacked_bytes is None
