"""Files of the boot set out of a pack, and packs that do not hold what they should."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from packer.artifact.contents import Class
from packer.errors import InputError, MissingError
from packer.run.netboot.guest_files import BootFiles
from packer.run.netboot.service import network_boot
from packer.sources.open import open_pack
from tests.round_trip.packs import Packed


@pytest.mark.guest
def test_the_boot_set_is_there_and_nothing_else(busybox: Packed) -> None:
    with open_pack(str(busybox.thin)) as pack:
        files = BootFiles(pack)
        assert "/boot/vmlinuz" in files.paths
        assert "/boot/grub/grub.cfg" in files.paths
        assert "/bin/busybox" not in files.paths
        assert files.read("/boot/grub/grub.cfg", 1 << 20).startswith(b"set timeout=0")
        assert files.read("/boot/vmlinuz", 1 << 30)[0x202:0x206] == b"HdrS"


@pytest.mark.guest
def test_a_file_above_the_bound_is_not_read(busybox: Packed) -> None:
    with (
        open_pack(str(busybox.thin)) as pack,
        pytest.raises(InputError, match=r"/boot/vmlinuz: expected at most 1,000 bytes"),
    ):
        BootFiles(pack).read("/boot/vmlinuz", 1000)


@pytest.mark.guest
def test_a_damaged_copy_is_said_and_nothing_of_it_is_given(busybox: Packed, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(busybox.full, folder)
    with open_pack(str(folder)) as pack:
        bundles = [blob.digest for blob in pack.manifest.bundles().values()]
    for digest in bundles:
        blob = folder / "blobs" / digest.replace(":", "/")
        data = bytearray(blob.read_bytes())
        data[100::5000] = bytes(byte ^ 0xFF for byte in data[100::5000])
        blob.write_bytes(data)
    with open_pack(str(folder)) as pack:
        files = BootFiles(pack)
        with pytest.raises(MissingError, match="which every copy should carry"):
            files.read("/boot/vmlinuz", 1 << 30)


@pytest.mark.guest
def test_hints_that_lie_about_a_file_are_refused(
    busybox: Packed,
) -> None:
    with open_pack(str(busybox.thin)) as pack:
        hints = pack.hints
        boot = pack.map.contents.classes[hints.content] == Class.BOOT
        assert boot.any()
        hints.file_size[boot] = 100
        hints.file_offset[boot] = 90
        with pytest.raises(InputError, match="a part ends at"):
            BootFiles(pack).read("/boot/vmlinuz", 1 << 30)


@pytest.mark.guest
def test_parts_that_are_more_than_their_file_are_not_read(busybox: Packed) -> None:
    with open_pack(str(busybox.thin)) as pack:
        hints = pack.hints
        boot = pack.map.contents.classes[hints.content] == Class.BOOT
        for place in boot.nonzero()[0].tolist():  # all of them over each other, in one file
            hints.path[place] = "/boot/vmlinuz"
        hints.file_size[boot] = pack.map.contents.size[hints.content[boot]].max()
        hints.file_offset[boot] = 0
        read = list[int]()
        with pytest.raises(InputError, match="its parts have"):
            BootFiles(pack).read("/boot/vmlinuz", 1 << 30, read.append)
        assert not read


@pytest.mark.guest
def test_what_is_started_is_bounded_in_all(busybox: Packed) -> None:
    with open_pack(str(busybox.thin)) as pack:
        boot = network_boot(pack)
        total = sum(map(len, boot.files.values()))
        assert network_boot(pack, max_bytes=total).files == boot.files
        with pytest.raises(InputError, match=f"at most {total - 1:,} bytes, found {total:,}"):
            network_boot(pack, max_bytes=total - 1)
