"""What the pack calls unused is what nobody can see: proven with noise, both ways."""

from __future__ import annotations

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
    tool,
    tree,
    write_noise,
)
from tests.round_trip.ext4_oracle import BLOCK, Unseen, unseen
from tests.round_trip.layouts import config_of
from tests.round_trip.packs import Guest, Packed
from tests.round_trip.test_round_trip import lost_ranges

pytestmark = pytest.mark.guest
MB = 1_000_000
slow = pytest.mark.slow
DEBIAN = (pytest.param("debian-bios", marks=slow), pytest.param("debian-uefi", marks=slow))
Pack = Callable[[str], Packed]


def noisy_copy(guest: Guest, target: Path, where: Unseen) -> Path:
    copy_sparse(guest.image, target)
    written = write_noise(target, [*where.free, *where.tails], seed=7)
    assert written > 5 * MB
    return target


@pytest.mark.parametrize("name", ["busybox", *DEBIAN[:1]])
def test_noise_in_free_blocks_and_file_tails_changes_nothing(
    author: Vmpack, pack_guest: Pack, name: str, room: Path
) -> None:
    """The oracle is e2fsprogs. The pack of the noisy disk has the same map, so what is rebuilt
    from it is the same disk as the one that the other tests boot.
    """
    packed = pack_guest(name)
    guest = packed.guest
    where = unseen(guest.image, guest.root_offset)
    noisy = noisy_copy(guest, room / "noisy.raw", where)
    check_ext4(noisy, guest.root_offset)
    author.good("pack", noisy, "-o", f"{room}/noisy/", "--no-packages", "--name", guest.name,
                "--level", "1", "--thin")  # fmt: skip
    assert config_of(room / "noisy")["disks"] == config_of(packed.full)["disks"]
    rebuilt = room / "rebuilt.raw"
    author.good("unpack", room / "noisy", "-o", rebuilt, "--from", f"pack:{packed.full}",
                "--no-store")  # fmt: skip
    check_ext4(rebuilt, guest.root_offset)
    # All files are those of the original, by an oracle that does not know our map.
    swap = [guest.partition("swap")] if "swap" in guest.facts["partitions"] else []
    assert differences(guest.image, rebuilt, [*where.all(), *swap]) == []
    if name == "busybox":
        result = boot(rebuilt)
        assert result.digests_ok, result.console[-3000:]
        assert result.disk_nonce == guest.facts["nonce"]


@pytest.mark.root
@needs_root
@pytest.mark.parametrize("name", ["busybox", *DEBIAN])
def test_noise_over_everything_unused_changes_no_file(
    run_vmpack: Vmpack, pack_guest: Pack, name: str, room: Path
) -> None:
    packed = pack_guest(name)
    guest = packed.guest
    noisy = copy_sparse(guest.image, room / "noisy.raw")
    lost = lost_ranges(run_vmpack, noisy, packed.boot)
    assert write_noise(noisy, lost, seed=8) > 5 * MB
    check_ext4(noisy, guest.root_offset)
    with (
        mounted(guest.image, guest.partition("root"), room / "before") as before,
        mounted(noisy, guest.partition("root"), room / "after") as after,
    ):
        expected = tree(before)
        assert len(expected) > 40
        assert tree(after) == expected
    if "esp" in guest.facts["partitions"]:
        start, end = guest.partition("esp")
        assert esp_files(noisy, start, room / "esp-after") == esp_files(
            guest.image, start, room / "esp-before"
        )
        volume = room / "esp.fat"
        with noisy.open("rb") as disk:
            disk.seek(start)
            volume.write_bytes(disk.read(end - start))
        tool("fsck.fat", "-n", volume)
    if "swap" in guest.facts["partitions"]:
        start, _ = guest.partition("swap")
        with noisy.open("rb") as disk, guest.image.open("rb") as original:
            for file in (disk, original):
                file.seek(start)
            header = disk.read(BLOCK)
            assert header == original.read(BLOCK)
            assert header.endswith(b"SWAPSPACE2")


def esp_files(image: Path, offset: int, folder: Path) -> dict[str, bytes]:
    """The files of a FAT volume, as mtools read them."""
    folder.mkdir()
    tool("mcopy", "-s", "-n", "-i", f"{image}@@{offset}", "::", folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 3
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", ["busybox", *DEBIAN[:1]])
def test_a_disk_that_was_zerofreed_comes_back_to_the_last_byte(
    author: Vmpack, pack_guest: Pack, name: str, room: Path
) -> None:
    """Beyond free blocks, which zerofree clears, what is lost is named: swap pages, the body of the
    journal, and extents that no file has written.
    """
    guest = pack_guest(name).guest
    disk = copy_sparse(guest.image, room / "wiped.raw")
    where = unseen(disk, guest.root_offset)
    tool("zerofree", f"{disk}?offset={guest.root_offset}")
    check_ext4(disk, guest.root_offset)
    swap = [guest.partition("swap")] if "swap" in guest.facts["partitions"] else []
    named = [*where.journal, *where.unwritten, *((low + BLOCK, high) for low, high in swap)]
    clear(disk, named)
    author.good("pack", disk, "-o", room / "wiped.vmpack", "--no-packages", "--level", "1")
    rebuilt = room / "rebuilt.raw"
    author.good("unpack", room / "wiped.vmpack", "-o", rebuilt, "--from", "store:", "--no-store")
    tool("cmp", disk, rebuilt)


def clear(disk: Path, ranges: list[tuple[int, int]]) -> None:
    for start, end in ranges:
        place = ("--offset", str(start), "--length", str(end - start))
        tool("fallocate", "--punch-hole", *place, disk)
