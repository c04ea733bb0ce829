"""What the pack calls unused is what nobody can see: proven with noise, both ways."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from fixtures.boot import boot
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import (
    check_ext4,
    copy_sparse,
    differences,
    mounted,
    needs_root,
    not_within,
    tool,
    tree,
    write_noise,
)
from tests.round_trip.ext4_oracle import BLOCK
from tests.round_trip.layouts import config_of
from tests.round_trip.oracle import nobody_sees, root_of, swap_pages
from tests.round_trip.packs import Guest, Packed
from tests.round_trip.test_round_trip import lost_ranges

pytestmark = pytest.mark.guest
MB = 1_000_000
slow = pytest.mark.slow
DEBIAN = (pytest.param("debian-bios", marks=slow), pytest.param("debian-uefi", marks=slow))
GUESTS = ("busybox", *DEBIAN)
Pack = Callable[[str], Packed]


@pytest.mark.parametrize("name", GUESTS)
def test_only_what_other_tools_call_unseen_is_lost(
    run_vmpack: Vmpack, pack_guest: Pack, name: str
) -> None:
    """The oracles: e2fsprogs, mtools, and where the swap partition lies; not our own map."""
    pack = pack_guest(name)
    lost = lost_ranges(run_vmpack, pack.guest.image, pack.boot)
    unseen = nobody_sees(pack.guest)
    assert not_within(lost, unseen) == []
    assert sum(end - start for start, end in lost) > 0.99 * total(unseen)


def total(ranges: list[tuple[int, int]]) -> int:
    return sum(end - start for start, end in ranges)


@pytest.mark.parametrize("name", GUESTS)
def test_noise_where_nobody_sees_it_changes_nothing(
    author: Vmpack, pack_guest: Pack, name: str, room: Path
) -> None:
    """Noise in every free block and cluster, file tail, swap page. The noisy disk has the same
    map, so what the other tests rebuild and boot is what is rebuilt from it, too.
    """
    packed = pack_guest(name)
    guest = packed.guest
    unseen = nobody_sees(guest)
    noisy = copy_sparse(guest.image, room / "noisy.raw")
    assert write_noise(noisy, unseen, seed=7) == total(unseen) > 50 * MB
    check_ext4(noisy, guest.root_offset)
    author.good("pack", noisy, "-o", f"{room}/noisy/", "--no-packages", "--name", guest.name,
                "--level", "1", "--thin")  # fmt: skip
    assert config_of(room / "noisy")["disks"] == config_of(packed.full)["disks"]
    rebuilt = room / "rebuilt.raw"
    author.good("unpack", room / "noisy", "-o", rebuilt, "--from", f"pack:{packed.full}",
                "--no-store")  # fmt: skip
    assert differences(noisy, rebuilt, unseen) == []
    assert differences(guest.image, rebuilt, unseen) == []
    noisy.unlink()
    assert rebuilt.stat().st_blocks * 512 < 1000 * MB, "the noise travelled"


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("name", GUESTS)
def test_noise_over_everything_that_a_pack_calls_unused_changes_no_file_and_no_boot(
    run_vmpack: Vmpack, pack_guest: Pack, name: str, room: Path
) -> None:
    """Every byte of every such range, dropped ones as well."""
    packed = pack_guest(name)
    guest = packed.guest
    noisy = copy_sparse(guest.image, room / "noisy.raw")
    lost = [(start, end) for start, end in lost_ranges(run_vmpack, noisy, packed.boot)]
    assert write_noise(noisy, lost, seed=8) == total(lost) > 50 * MB
    check_ext4(noisy, guest.root_offset)
    with (
        mounted(guest.image, guest.partition("root"), room / "before") as before,
        mounted(noisy, guest.partition("root"), room / "after") as after,
    ):
        expected = tree(before)
        assert len(expected) > 40
        assert tree(after) == expected
    if "esp" in guest.facts["partitions"]:
        the_same_esp(guest, noisy, room)
    if "swap" in guest.facts["partitions"]:
        start, _ = guest.partition("swap")
        header = read(noisy, start, BLOCK)
        assert header == read(guest.image, start, BLOCK)
        assert header.endswith(b"SWAPSPACE2")
    every_file = name == "debian-bios"
    result = boot(noisy, firmware=guest.firmware, check_all=every_file, timeout_s=400)
    assert not every_file or result.files > 10_000
    assert result.digests_ok, result.console[-3000:]
    assert result.disk_nonce == guest.facts["nonce"]


def the_same_esp(guest: Guest, disk: Path, room: Path) -> None:
    """mtools read the same files from both disks, and dosfstools find nothing to mend."""
    start, end = guest.partition("esp")
    found = esp_files(disk, start, room / "esp-after")
    assert found == esp_files(guest.image, start, room / "esp-before")
    volume = room / "esp.fat"
    volume.write_bytes(read(disk, start, end - start))
    tool("fsck.fat", "-n", volume)


def esp_files(image: Path, offset: int, folder: Path) -> dict[str, bytes]:
    """The files of a FAT volume, as mtools read them."""
    folder.mkdir()
    tool("mcopy", "-s", "-n", "-i", f"{image}@@{offset}", "::", folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 3
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def read(disk: Path, offset: int, length: int) -> bytes:
    with disk.open("rb") as file:
        file.seek(offset)
        return file.read(length)


@pytest.mark.parametrize("name", GUESTS)
def test_a_disk_that_was_zerofreed_comes_back_to_the_last_byte(
    author: Vmpack, pack_guest: Pack, name: str, room: Path
) -> None:
    """Beyond free blocks, which zerofree clears, what is lost is named: swap pages, the body of the
    journal, and extents that no file has written.
    """
    packed = pack_guest(name)
    guest = packed.guest
    disk = copy_sparse(guest.image, room / "wiped.raw")
    said = tool("zerofree", "-v", f"{disk}?offset={guest.root_offset}")
    cleared = re.search(r"(\d+)/\d+/\d+\s*$", said)
    assert cleared is not None, said
    assert int(cleared[1]) > 1000, "there was nothing to clear"
    check_ext4(disk, guest.root_offset)
    where = root_of(guest)
    clear(disk, [*where.journal, *where.unwritten, *swap_pages(guest)])
    author.good("pack", disk, "-o", room / "wiped.vmpack", "--no-packages", "--level", "1",
                "--thin")  # fmt: skip
    rebuilt = room / "rebuilt.raw"
    author.good("unpack", room / "wiped.vmpack", "-o", rebuilt, "--from", f"pack:{packed.full}",
                "--no-store")  # fmt: skip
    tool("cmp", disk, rebuilt)


def clear(disk: Path, ranges: list[tuple[int, int]]) -> None:
    for start, end in ranges:
        place = ("--offset", str(start), "--length", str(end - start))
        tool("fallocate", "--punch-hole", *place, disk)
