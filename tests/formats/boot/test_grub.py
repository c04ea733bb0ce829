"""GRUB's own images and a real configuration, read here."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import pytest

from formats.boot import grub
from formats.errors import Corrupt, FormatError, Unsupported
from formats.source import Memory

IMAGES = Path("/usr/lib/grub/i386-pc")
needs_grub = pytest.mark.skipif(
    not (IMAGES / "boot.img").exists(), reason="GRUB's images for the BIOS are not installed"
)


@pytest.fixture
def disk(tmp_path: Path) -> bytearray:
    """Return a disk of 1 MiB with boot.img in sector 0 and core.img from sector 1, as installed."""
    core = tmp_path / "core.img"
    subprocess.run(
        ["grub-mkimage", "-O", "i386-pc", "-p", "/boot/grub", "-o", core, "biosdisk", "ext2"],
        check=True,
    )
    image = bytearray(1 << 20)
    image[:512] = (IMAGES / "boot.img").read_bytes()
    image[510:512] = b"\x55\xaa"
    data = core.read_bytes()
    image[512 : 512 + len(data)] = data
    image.extend(struct.pack("<I", len(data)))
    return image


@needs_grub
def test_the_core_image_that_grub_mkimage_makes_is_found_whole(disk: bytearray) -> None:
    (size,) = struct.unpack("<I", disk[-4:])
    core = grub.find_core(Memory(bytes(disk)))
    assert core is not None
    sectors = -(-size // 512)
    covered = [sector for first, count in core.runs for sector in range(first, first + count)]
    assert covered == list(range(1, 1 + sectors))


@needs_grub
def test_a_core_image_in_pieces_is_found(disk: bytearray) -> None:
    struct.pack_into("<QHH", disk, 512 + 500, 100, 5, 0x820)
    struct.pack_into("<QHH", disk, 512 + 488, 300, 7, 0x8C0)
    core = grub.find_core(Memory(bytes(disk)))
    assert core is not None
    assert core.runs == ((1, 1), (100, 5), (300, 7))


@needs_grub
def test_a_pointer_outside_the_disk_is_corrupt(disk: bytearray) -> None:
    struct.pack_into("<Q", disk, 0x5C, 1 << 40)
    with pytest.raises(Corrupt):
        grub.find_core(Memory(bytes(disk)))
    struct.pack_into("<Q", disk, 0x5C, 1)
    struct.pack_into("<QHH", disk, 512 + 500, 2040, 50, 0x820)
    with pytest.raises(Corrupt):
        grub.find_core(Memory(bytes(disk)))


@needs_grub
def test_a_pointer_to_something_else_is_corrupt(disk: bytearray) -> None:
    struct.pack_into("<Q", disk, 0x5C, 2000)
    with pytest.raises(Corrupt, match=r"diskboot\.img"):
        grub.find_core(Memory(bytes(disk)))


def test_another_boot_sector_is_not_grub() -> None:
    assert grub.find_core(Memory(bytes(510) + b"\x55\xaa" + bytes(4096))) is None
    with pytest.raises(FormatError):
        grub.find_core(Memory(bytes(100)))


CONFIG = rb"""
if [ -s $prefix/grubenv ]; then
  load_env
fi
if loadfont unicode ; then set gfxmode=auto; fi
insmod part_msdos
search --no-floppy --fs-uuid --set=root --hint-bios=hd0,msdos1 0a1b2c3d-1111-2222-3333-444455556666
menuentry 'Debian GNU/Linux, with "quotes"' --class debian $menuentry_id_option 'gnulinux-1' {
	load_video  # linux /not/this
	search.fs_uuid 9999-AAAA other
	echo	'Loading Linux 6.1 linux /nor/this ...'
	linux	/boot/vmlinuz-6.1 root=UUID=0a1b2c3d ro  quiet
	initrd	/boot/ucode.cpio "/boot/initrd img-6.1"
}
submenu 'more' {
	menuentry 'old' { linux ($root)/boot/vmlinuz-5.0 ro; initrd /boot/initrd\ 5.0
	}
}
if [ -f  ${config_directory}/custom.cfg ]; then
  source ${config_directory}/custom.cfg
fi
if configfile /boot/other.cfg; then true; fi
chainloader +1
chainloader /EFI/Microsoft/Boot/bootmgfw.efi
"""


def test_a_configuration_names_its_kernels_and_initial_ramdisks() -> None:
    config = grub.parse_config(CONFIG)
    named = [(found.command, found.path) for found in config.references]
    assert named == [
        ("loadfont", "unicode"),
        ("linux", "/boot/vmlinuz-6.1"),
        ("initrd", "/boot/ucode.cpio"),
        ("initrd", "/boot/initrd img-6.1"),
        ("linux", "/boot/vmlinuz-5.0"),
        ("initrd", "/boot/initrd 5.0"),
        ("source", "${config_directory}/custom.cfg"),
        ("configfile", "/boot/other.cfg"),
        ("chainloader", "/EFI/Microsoft/Boot/bootmgfw.efi"),
    ]
    assert config.uuids == ("0a1b2c3d-1111-2222-3333-444455556666", "9999-AAAA")
    incomplete = [found.path for found in config.references if not found.complete]
    assert incomplete == ["${config_directory}/custom.cfg"]
    lines = CONFIG.decode().split("\n")
    for found in config.references:
        assert found.command in lines[found.line - 1]


def test_the_entries_of_a_menu() -> None:
    first, old = grub.menu_entries(CONFIG)
    assert first.title == 'Debian GNU/Linux, with "quotes"'
    assert first.kernel == "/boot/vmlinuz-6.1"
    assert first.initrds == ("/boot/ucode.cpio", "/boot/initrd img-6.1")
    assert first.arguments == ("root=UUID=0a1b2c3d", "ro", "quiet")
    assert (old.title, old.kernel, old.initrds) == (
        *("old", "/boot/vmlinuz-5.0"),
        ("/boot/initrd 5.0",),
    )


def test_what_starts_without_a_menu_is_an_entry_without_title() -> None:
    text = b"linux /vmlinuz 'a=b c' root=$root\ninitrd /initrd\nboot\n"
    (entry,) = grub.menu_entries(text)
    assert (entry.title, entry.arguments) == ("", ("a=b c", "root=$root"))


def test_an_entry_of_several_branches_is_its_first() -> None:
    text = b"menuentry x { if $a; then linux /one 1; initrd /i; else linux /two 2; fi }"
    (entry,) = grub.menu_entries(text)
    assert (entry.kernel, entry.arguments, entry.initrds) == ("/one", ("1",), ("/i",))


def test_menus_of_other_systems_have_no_entries() -> None:
    text = b"menuentry Windows { chainloader /EFI/Microsoft/Boot/bootmgfw.efi }\nlinux\n"
    assert grub.menu_entries(text) == []


@pytest.mark.parametrize(
    "text", [b"", b"'", b'linux "', b"}}{{", b"linux \\", b"\xff\xfe linux /x"]
)
def test_odd_text_is_read_without_an_error(text: bytes) -> None:
    grub.parse_config(text)
    grub.menu_entries(text)


def test_too_much_text_is_unsupported() -> None:
    with pytest.raises(Unsupported):
        grub.parse_config(bytes(grub.MAX_CONFIG_BYTES + 1))
