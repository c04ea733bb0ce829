"""A volume with shadow copies: kept to the last byte, or left out and said."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.host import needs_root
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import (
    Range,
    copy_sparse,
    differences,
    filled,
    not_within,
    tool,
    write_noise,
)
from tests.round_trip.layouts import config_of
from tests.round_trip.ntfs_oracle import unseen_of_ntfs
from tests.round_trip.packs import Guest
from tests.round_trip.test_round_trip import lost_ranges
from tests.round_trip.windows import (
    dropped_files,
    files_on_disk,
    planted,
    seen_through_ntfs_3g,
    take_out,
)

pytestmark = [pytest.mark.guest, pytest.mark.slow]
POINTER = struct.Struct("<Q")


@dataclass(frozen=True)
class Snapshotted:
    """A disk with shadow copies. pointer, stores, unseen: bytes of the disk; unseen: free clusters
    and file tails of the volume, with noise in them.
    """

    guest: Guest
    disk: Path
    pointer: Range
    stores: list[Range]
    unseen: list[Range]


@pytest.fixture
def snapshotted(build_guest: Callable[[str], Guest], room: Path) -> Snapshotted:
    """The guest that has what shadow copies left over, with the catalogue's address back in its
    place; noise stands for the blocks of the shadow copies.
    """
    guest = build_guest("windows-7")
    disk = copy_sparse(guest.image, room / "snapshotted.raw")
    start, _ = guest.partition("root")
    (header,) = (
        row
        for row in guest.facts["volumes"]["root"]["planted"]
        if row["kind"] == "shadow copy header"
    )
    place = start + header["pointer_offset_bytes"]
    with disk.open("r+b") as file:
        file.seek(place)
        assert file.read(POINTER.size) == bytes(POINTER.size)
        file.seek(place)
        file.write(POINTER.pack(header["catalogue_offset_bytes"]))
    volume = take_out(guest, disk, "root", room / "root.ntfs")
    unseen = [(start + low, start + high) for low, high in unseen_of_ntfs(volume).all()]
    assert write_noise(disk, unseen, seed=3) > 400_000_000
    return Snapshotted(
        guest,
        disk,
        (place, place + POINTER.size),
        files_on_disk(guest, planted(guest, "shadow copy"), volume),
        unseen,
    )


def test_they_are_kept_with_every_byte_that_they_may_read(
    author: Vmpack, snapshotted: Snapshotted, room: Path
) -> None:
    """Free clusters and what lies behind the end of files."""
    said = author.good("pack", snapshotted.disk, "-o", f"{room}/pack/", "--level", "1")
    assert "shadow copies on partition 2 are kept" in said
    assert "--drop-snapshots" in said
    rebuilt = room / "rebuilt.raw"
    author.good("unpack", room / "pack", "-o", rebuilt, "--no-store")
    start, end = snapshotted.guest.partition("root")
    lost = lost_ranges(author, rebuilt, room / "pack")
    assert lost, "the system partition has no shadow copies"
    assert not_within(lost, [(0, start), (end, rebuilt.stat().st_size)]) == []
    assert differences(snapshotted.disk, rebuilt, lost) == []


@needs_root
def test_they_are_left_out_with_all_that_belongs_to_them(
    author: Vmpack, snapshotted: Snapshotted, room: Path
) -> None:
    name = "shadow copies on partition 2"
    said = author.good("pack", snapshotted.disk, "-o", f"{room}/pack/", "--level", "1",
                       "--drop-snapshots")  # fmt: skip
    assert name in said
    assert name in author.good("inspect", room / "pack")
    dropped = {one["what"]: one["bytes"] for one in config_of(room / "pack")["dropped"]}
    assert dropped[name] > sum(high - low for low, high in snapshotted.stores)
    rebuilt = room / "rebuilt.raw"
    author.good("unpack", room / "pack", "-o", rebuilt, "--no-store")
    gone = [snapshotted.pointer, *snapshotted.stores, *snapshotted.unseen]
    assert filled(snapshotted.disk, gone)
    assert filled(rebuilt, gone) == []
    lost = lost_ranges(author, rebuilt, room / "pack")
    assert differences(snapshotted.disk, rebuilt, lost) == []
    the_same_but_for_them(snapshotted, rebuilt, room)


def the_same_but_for_them(snapshotted: Snapshotted, rebuilt: Path, room: Path) -> None:
    """Nothing to mend, and the same files through ntfs-3g."""
    guest = snapshotted.guest
    before = take_out(guest, snapshotted.disk, "root", room / "before.ntfs")
    after = take_out(guest, rebuilt, "root", room / "after.ntfs")
    assert "processed successfully" in tool("ntfsfix", "--no-action", after)
    expected = seen_through_ntfs_3g(before, room / "mounted")
    found = seen_through_ntfs_3g(after, room / "mounted")
    changed = {f"/{path}" for path in expected if found[path] != expected[path]}
    assert changed == {*dropped_files(guest), *planted(guest, "shadow copy")}
    assert found.keys() == expected.keys()
