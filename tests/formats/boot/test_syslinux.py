"""A real installation by extlinux, and configurations."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from formats.boot import syslinux
from formats.errors import Corrupt, FormatError, Unsupported
from tests.host import needs_root


@needs_root
@pytest.mark.skipif(shutil.which("extlinux") is None, reason="extlinux is not installed")
def test_the_sector_map_is_where_the_file_lies(tmp_path: Path) -> None:
    image, point = tmp_path / "image", tmp_path / "mnt"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, point], check=True)
    try:
        subprocess.run(["extlinux", "--install", point], check=True, capture_output=True)
        data = (point / "ldlinux.sys").read_bytes()
        listing = subprocess.run(
            ["filefrag", "-v", "-b512", point / "ldlinux.sys"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    finally:
        subprocess.run(["umount", point], check=True)
    expected: list[int] = []
    for first, length in re.findall(r"\d+:\s+\d+\.\.\s*\d+:\s+(\d+)\.\.\s*\d+:\s+(\d+):", listing):
        expected.extend(range(int(first), int(first) + int(length)))
    sector = image.read_bytes()[:512]
    assert syslinux.is_boot_sector(sector)
    found = syslinux.parse_ldlinux(data)
    covered = [n for first, count in found.runs for n in range(first, first + count)]
    assert syslinux.first_sector(sector, found) == expected[0]
    assert covered == expected[1 : 1 + len(covered)]
    assert len(covered) + 1 >= found.data_sectors
    for size in range(0, len(data), 997):
        with pytest.raises(FormatError):
            syslinux.parse_ldlinux(data[: min(size, 4000)])


def test_another_boot_sector_is_not_syslinux() -> None:
    assert not syslinux.is_boot_sector(bytes(510) + b"\x55\xaa")
    assert not syslinux.is_boot_sector(b"")


def test_a_file_without_a_patch_area_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        syslinux.parse_ldlinux(bytes(5000))


CONFIG = b"""\
# KERNEL /not/this
DEFAULT linux
UI vesamenu.c32 menu.conf
MENU BACKGROUND splash.png
MENU INCLUDE more.cfg
include other.cfg
LABEL linux
  MENU LABEL Linux
  LINUX /boot/vmlinuz
  INITRD /boot/a.img,/boot/b.img
LABEL old
  kernel ../vmlinuz-old
  append root=/dev/sda1 initrd=../initrd-old ro
  FDT /dtb/board.dtb
LABEL next
  CONFIG /boot/next/extlinux.conf
"""


def test_a_configuration_names_its_files() -> None:
    named = [(found.keyword, found.path) for found in syslinux.parse_config(CONFIG)]
    assert named == [
        ("UI", "vesamenu.c32"),
        ("CONFIG", "menu.conf"),
        ("MENU BACKGROUND", "splash.png"),
        ("INCLUDE", "more.cfg"),
        ("INCLUDE", "other.cfg"),
        ("LINUX", "/boot/vmlinuz"),
        ("INITRD", "/boot/a.img"),
        ("INITRD", "/boot/b.img"),
        ("KERNEL", "../vmlinuz-old"),
        ("INITRD", "../initrd-old"),
        ("FDT", "/dtb/board.dtb"),
        ("CONFIG", "/boot/next/extlinux.conf"),
    ]


def test_labels_are_the_entries_of_a_menu() -> None:
    usual = b"APPEND console=ttyS0 quiet\n"
    linux, old = syslinux.menu_entries(usual + CONFIG)
    assert (linux.title, linux.kernel) == ("linux", "/boot/vmlinuz")
    assert linux.initrds == ("/boot/a.img", "/boot/b.img")
    assert linux.arguments == ("console=ttyS0", "quiet")
    assert (old.title, old.kernel, old.initrds) == (
        *("old", "../vmlinuz-old"),
        ("../initrd-old",),
    )
    assert old.arguments == ("root=/dev/sda1", "ro")


def test_a_label_may_refuse_the_usual_arguments() -> None:
    (entry,) = syslinux.menu_entries(b"append quiet\nlabel a\nkernel /k\nappend -\n")
    assert entry.arguments == ()


def test_too_much_text_is_unsupported() -> None:
    with pytest.raises(Unsupported):
        syslinux.menu_entries(bytes(syslinux.MAX_CONFIG_BYTES + 1))
    with pytest.raises(Unsupported):
        syslinux.parse_config(bytes(syslinux.MAX_CONFIG_BYTES + 1))
    assert syslinux.parse_config(b"MENU\n\xff KERNEL\nAPPEND\nINITRD") == ()
    assert syslinux.menu_entries(b"MENU\n\xff KERNEL\nLABEL\nAPPEND\nINITRD") == []
