"""The tools of the field find nothing wrong with a rebuilt disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.round_trip.command import Vmpack
from tests.round_trip.disks import check_ext4, tool
from tests.round_trip.packs import Packed

pytestmark = pytest.mark.guest


@pytest.mark.slow
def test_partition_tables_and_file_systems_of_a_rebuilt_uefi_disk_are_sound(
    run_vmpack: Vmpack, pack_guest: Callable[[str], Packed], room: Path
) -> None:
    pack = pack_guest("debian-uefi")
    disk = room / "rebuilt.raw"
    run_vmpack.good("unpack", pack.full, "-o", disk, "--from", "store:", "--no-store")
    assert "No problems found" in tool("sgdisk", "-v", disk)
    before, after = (tool("sfdisk", "--dump", image) for image in (pack.guest.image, disk))
    assert after.replace(str(disk), "DISK") == before.replace(str(pack.guest.image), "DISK")
    check_ext4(disk, pack.guest.root_offset)
    start, end = pack.guest.partition("esp")
    volume = room / "esp.fat"
    with disk.open("rb") as file:
        file.seek(start)
        volume.write_bytes(file.read(end - start))
    tool("fsck.fat", "-n", volume)
    start, _ = pack.guest.partition("swap")
    assert "swap" in tool("blkid", "-p", "-O", str(start), disk)


def test_the_partition_table_of_a_rebuilt_bios_disk_is_the_same(
    run_vmpack: Vmpack, busybox: Packed, room: Path
) -> None:
    disk = room / "rebuilt.raw"
    run_vmpack.good("unpack", busybox.full, "-o", disk, "--from", "store:")
    before, after = (tool("sfdisk", "--dump", image) for image in (busybox.guest.image, disk))
    assert after.replace(str(disk), "DISK") == before.replace(str(busybox.guest.image), "DISK")
    check_ext4(disk, busybox.guest.root_offset)
