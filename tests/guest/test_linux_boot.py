"""Which files a Linux guest needs before anything can be fetched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from packer.guest.boot_config import MAX_LOOKUPS
from packer.guest.linux_boot import BOOT_REASONS, find_boot_set
from packer.guest.mounts import Mount
from packer.guest.tree import Tree
from tests.guest.material import (
    ESP,
    LINUX,
    ROOT_UUID,
    Part,
    ext4,
    fat,
    gpt_disk,
    guest_in_memory,
    tree_of,
    volume,
    write_tree,
)

BOOT_UUID = "0b0b0b0b-1111-2222-3333-444444444444"

# What grub-mkconfig of Debian 12 writes, shortened; %s: where /boot is, as GRUB sees it.
GRUB_CFG = """\
if [ -s $prefix/grubenv ]; then
  set have_grubenv=true
  load_env
fi
if [ x$feature_default_font_path = xy ] ; then
   font=unicode
fi
### BEGIN /etc/grub.d/10_linux ###
menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple' {
\tload_video
\tinsmod gzio
\tsearch --no-floppy --fs-uuid --set=root 0a0a0a0a-1111-2222-3333-444444444444
\techo\t'Loading Linux 6.1.0-56-amd64 ...'
\tlinux\t%s/special/kernel-of-my-own root=UUID=0a0a0a0a-1111-2222-3333-444444444444 ro  quiet
\techo\t'Loading initial ramdisk ...'
\tinitrd\t%s/early-ucode.cpio %s/special/ramdisk
}
"""

FILES = {
    "/etc/os-release": b"ID=debian\n",
    "/boot/special/kernel-of-my-own": b"kernel",
    "/boot/special/ramdisk": b"ramdisk",
    "/boot/early-ucode.cpio": b"microcode",
    "/boot/vmlinuz-6.1": b"kernel 6.1",
    "/boot/initrd.img-6.1": b"initrd 6.1",
    "/boot/config-6.1": b"CONFIG_X=y",
    "/boot/memtest86+.bin": b"nothing names it",
    "/boot/backup/vmlinuz": b"in a folder that nothing names",
    "/boot/grub/grub.cfg": (GRUB_CFG % ("/boot", "/boot", "/boot")).encode(),
    "/boot/grub/grubenv": b"# GRUB Environment Block\n",
    "/boot/grub/i386-pc/normal.mod": b"module",
    "/boot/grub/fonts/unicode.pf2": b"font",
    "/usr/bin/env": b"\x7fELF",
    "/opt/kernel": b"linked to",
}
EXPECTED = {
    "/boot/special/kernel-of-my-own": "kernel",
    "/boot/special/ramdisk": "initramfs",
    "/boot/early-ucode.cpio": "initramfs",
    "/boot/vmlinuz-6.1": "kernel",
    "/boot/initrd.img-6.1": "initramfs",
    "/boot/config-6.1": "kernel",
    "/boot/grub/grub.cfg": "boot configuration",
    "/boot/grub/grubenv": "boot configuration",
    "/boot/grub/i386-pc/normal.mod": "boot loader",
    "/boot/grub/fonts/unicode.pf2": "boot loader",
    "/opt/kernel": "kernel",
}


def boot_set(tree: Tree) -> dict[str, str]:
    """Guest path -> reason, of every name of every stream in the boot set."""
    reason = find_boot_set(tree)
    rows = tree.survey.name_stream.tolist()
    return {
        tree.paths[row]: BOOT_REASONS[reason[stream]]
        for row, stream in enumerate(rows)
        if reason[stream] >= 0
    }


def guest(folder: Path, files: Mapping[str, bytes], links: Mapping[str, str]) -> Tree:
    tree = write_tree(folder / "tree", {"/etc/os-release": b"ID=x\n"} | dict(files), links)
    return tree_of(ext4(folder / "disk.raw", tree))


def test_loader_configuration_and_what_it_names_is_the_boot_set(tmp_path: Path) -> None:
    assert boot_set(guest(tmp_path, FILES, {"/vmlinuz.old": "opt/kernel"})) == EXPECTED


def test_a_separate_boot_volume_is_the_root_that_grub_sees(tmp_path: Path) -> None:
    fstab = f"UUID={ROOT_UUID} / ext4\nUUID={BOOT_UUID} /boot ext4\n".encode()
    boot = {
        path.removeprefix("/boot"): data for path, data in FILES.items() if path.startswith("/boot")
    }
    boot["/grub/grub.cfg"] = (GRUB_CFG % ("", "", "")).encode()
    root = {path: data for path, data in FILES.items() if not path.startswith("/boot")}
    root |= {"/etc/fstab": fstab}
    boot_tree = write_tree(tmp_path / "boot", boot, {})
    root_tree = write_tree(tmp_path / "root", root, {"/vmlinuz.old": "opt/kernel"})
    parts = [
        Part(LINUX, ext4(tmp_path / "boot.raw", boot_tree, uuid=BOOT_UUID)),
        Part(LINUX, ext4(tmp_path / "root.raw", root_tree)),
    ]
    disk = gpt_disk(tmp_path / "disk.raw", parts)
    assert boot_set(tree_of(disk)) == EXPECTED


def test_the_whole_esp_is_in_the_boot_set(tmp_path: Path) -> None:
    esp = write_tree(
        tmp_path / "esp",
        {"/EFI/BOOT/BOOTX64.EFI": b"MZ", "/EFI/debian/grub.cfg": b"configfile", "/notes": b"x"},
        {},
    )
    root = write_tree(tmp_path / "root", {"/etc/os-release": b"ID=x\n", "/data": b"x"}, {})
    parts = [Part(ESP, fat(tmp_path / "e", esp)), Part(LINUX, ext4(tmp_path / "r", root))]
    assert boot_set(tree_of(gpt_disk(tmp_path / "disk.raw", parts))) == {
        "/boot/efi/EFI/BOOT/BOOTX64.EFI": "ESP",
        "/boot/efi/EFI/debian/grub.cfg": "ESP",
        "/boot/efi/notes": "ESP",
    }


def test_a_fat_volume_at_boot_is_in_the_boot_set_whatever_its_type(tmp_path: Path) -> None:
    """The firmware of a Raspberry Pi reads its files by name from the first FAT volume."""
    fstab = b"/dev/sda1 /boot/firmware vfat\n"
    firmware = write_tree(tmp_path / "fat", {"/start4.elf": b"x", "/overlays/a.dtbo": b"x"}, {})
    root = write_tree(tmp_path / "root", {"/etc/os-release": b"ID=x\n", "/etc/fstab": fstab}, {})
    parts = [Part(LINUX, fat(tmp_path / "f", firmware)), Part(LINUX, ext4(tmp_path / "r", root))]
    assert boot_set(tree_of(gpt_disk(tmp_path / "disk.raw", parts))) == {
        "/boot/firmware/start4.elf": "boot partition",
        "/boot/firmware/overlays/a.dtbo": "boot partition",
    }


ENTRY = b"""title Fedora Linux 39
version 6.5
linux /boot/abc/6.5/linux
initrd /boot/abc/6.5/initrd
initrd /boot/abc/6.5/second-initrd $tuned_initrd
devicetree /boot/abc/6.5/board.dtb
options root=UUID=x ro
"""


def test_entries_of_the_boot_loader_specification_name_kernels(tmp_path: Path) -> None:
    files = {
        f"/boot/abc/6.5/{name}": name.encode()
        for name in ("linux", "initrd", "second-initrd", "board.dtb", "unused")
    }
    tree = guest(tmp_path, files | {"/boot/loader/entries/abc-6.5.conf": ENTRY}, {})
    assert boot_set(tree) == {
        "/boot/loader/entries/abc-6.5.conf": "boot configuration",
        "/boot/abc/6.5/linux": "kernel",
        "/boot/abc/6.5/initrd": "initramfs",
        "/boot/abc/6.5/second-initrd": "initramfs",
        "/boot/abc/6.5/board.dtb": "device tree",
    }


EXTLINUX = b"""DEFAULT linux
UI menu.c32
LABEL linux
  LINUX ../my/kernel
  APPEND root=/dev/vda1 initrd=/my/append.gz,/my/second.gz
LABEL other
  KERNEL /my/kernel2
  INITRD /my/ramdisk
"""


def test_extlinux_names_kernels_and_keeps_its_folder(tmp_path: Path) -> None:
    files = {
        f"/my/{name}": name.encode()
        for name in ("kernel2", "ramdisk", "append.gz", "second.gz", "unused")
    } | {
        "/boot/my/kernel": b"kernel",
        "/boot/extlinux/extlinux.conf": EXTLINUX,
        "/boot/extlinux/ldlinux.sys": b"stage",
        "/boot/extlinux/menu.c32": b"module",
        "/boot/extlinux/below/x": b"not in the folder itself",
    }
    assert boot_set(guest(tmp_path, files, {})) == {
        "/boot/extlinux/extlinux.conf": "boot configuration",
        "/boot/extlinux/ldlinux.sys": "boot loader",
        "/boot/extlinux/menu.c32": "boot loader",
        "/boot/my/kernel": "kernel",
        "/my/kernel2": "kernel",
        "/my/ramdisk": "initramfs",
        "/my/append.gz": "initramfs",
        "/my/second.gz": "initramfs",
    }


def test_a_file_with_a_second_name_in_boot_is_in_the_set(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree", {"/etc/os-release": b"", "/boot/vmlinuz": b"k"}, {})
    (tree / "kernel-elsewhere").hardlink_to(tree / "boot/vmlinuz")
    assert set(boot_set(tree_of(ext4(tmp_path / "disk.raw", tree)))) == {
        "/boot/vmlinuz",
        "/kernel-elsewhere",
    }


def test_a_menu_without_end_is_followed_for_a_while_and_warned_of() -> None:
    followed = MAX_LOOKUPS // 2  # each is looked for below / and /boot
    menu = b"".join(b"linux /x%d\n" % i for i in range(followed + 10))
    files = {"/etc/os-release": b"", "/boot/grub/grub.cfg": menu, "/boot/grub/more.cfg": menu}
    tree = Tree(*guest_in_memory({**files, "/x5": b"kernel", f"/x{followed + 5}": b"late"}))
    assert set(boot_set(tree)) == {"/boot/grub/grub.cfg", "/boot/grub/more.cfg", "/x5"}
    assert [warning.split(" ", 1)[1] for warning in tree.warnings] == [
        "names too many files: not all of them are followed"
    ] * 2


def test_many_mount_points_do_not_multiply_the_work() -> None:
    menu = b"".join(b"linux /x%d\n" % i for i in range(1000))
    files = {"/etc/os-release": b"", "/boot/grub/grub.cfg": menu}
    followed = MAX_LOOKUPS // 102  # below 100 mount points, / and /boot
    first, later = f"/x{followed - 1}", f"/x{followed}"
    survey, source = guest_in_memory({**files, first: b"kernel", later: b"kernel"})
    tree = Tree(replace(survey, volumes=(*survey.volumes, volume(2))), source)
    tree.mounts = (*(Mount(f"/mnt/{i}", 1) for i in range(100)), *tree.mounts)
    assert set(boot_set(tree)) == {"/boot/grub/grub.cfg", first}


@pytest.mark.parametrize(
    "config",
    [b"", b"\0" * 10_000, b"linux", b"linux " + b"/x" * 50_000, b"linux /../../../etc/passwd"],
)
def test_a_configuration_that_makes_no_sense_names_nothing(tmp_path: Path, config: bytes) -> None:
    tree = guest(tmp_path, {"/boot/grub/grub.cfg": config, "/etc/shadow": b"x"}, {})
    assert boot_set(tree) in ({"/boot/grub/grub.cfg": "boot configuration"}, {})
