"""A guest's files as one tree."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from formats.source import Memory
from packer.guest.mounts import Mount
from packer.guest.tree import MAX_DEPTH, Tree
from tests.guest.material import (
    ESP,
    LINUX,
    ROOT_UUID,
    SWAP,
    Part,
    ext4,
    fat,
    gpt_disk,
    survey_of_names,
    survey_of_volumes,
    swap,
    tree_of,
    volume,
    write_tree,
)


def test_windows_compares_names_letter_by_letter() -> None:
    names = ["/Straße/x", "/STRASSE/x", "/Übung/x"]
    survey = survey_of_volumes([volume(1, kind="ntfs")], names=names)
    tree = Tree(survey, Memory(bytes(survey.size)))
    looked_up = ["/straße/X", "/strasse/x", "/üBUNG/x"]
    assert [tree.stream_in(0, path) for path in looked_up] == [0, 1, 2]


OS_RELEASE = b'ID=debian\nVERSION_ID="12"\n'
BOOT_UUID = "0b0b0b0b-1111-2222-3333-444444444444"


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A root with merged /usr, links of every kind, and files with holes."""
    folder = tmp_path_factory.mktemp("merged")
    files = write_tree(
        folder / "tree",
        {
            "/usr/lib/os-release": OS_RELEASE,
            "/usr/lib/modules/6.1/kernel.ko": b"module",
            "/usr/bin/busybox": b"\x7fELF",
            "/boot/vmlinuz-6.1": b"kernel",
            "/etc/hostname": b"guest\n",
            "/long": b"x" * 5000,
        },
        {
            "/lib": "usr/lib",
            "/bin": "/usr/bin",
            "/etc/os-release": "../usr/lib/os-release",
            "/vmlinuz": "boot/vmlinuz-6.1",
            "/up": "usr/lib/../../../../../etc",
            "/itself": "itself",
            "/there": "back/again",
            "/back": "there",
            "/nowhere": "/not/there",
            **{f"/chain{i}": f"chain{i + 1}" for i in range(MAX_DEPTH * 2)},
        },
    )
    with (files / "sparse").open("wb") as file:
        file.seek(50_000)
        file.write(b"behind a hole")
        file.truncate(100_000)
    return tree_of(ext4(folder / "disk.raw", files))


def test_the_volume_with_an_os_release_is_the_root(merged: Tree) -> None:
    assert merged.mounts == (Mount("/", 0),)


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("/etc/hostname", b"guest\n"),
        ("/etc/os-release", OS_RELEASE),
        ("/lib/modules/6.1/kernel.ko", b"module"),
        ("/bin/busybox", b"\x7fELF"),
        ("/vmlinuz", b"kernel"),
        ("/up/hostname", b"guest\n"),
        ("//etc/./../etc//hostname", b"guest\n"),
        ("/lib/../bin/busybox", b"\x7fELF"),
    ],
)
def test_a_file_is_read_through_the_links_on_its_way(merged: Tree, path: str, data: bytes) -> None:
    assert merged.read(path, 1000) == data


@pytest.mark.parametrize(
    "path",
    [
        "/itself",
        "/there",
        "/back/x",
        "/nowhere",
        "/chain0",
        "/etc",
        "relative",
        "",
        "/a" * 9999,
    ],
)
def test_circles_chains_and_folders_lead_to_no_file(merged: Tree, path: str) -> None:
    assert merged.stream_of(path) is None
    assert merged.read(path, 1000) == b""


def test_holes_read_as_zeros(merged: Tree) -> None:
    assert merged.read("/sparse", 1 << 20) == bytes(50_000) + b"behind a hole" + bytes(49_987)


def test_a_file_above_the_bound_is_not_read_and_the_author_is_told(merged: Tree) -> None:
    warnings = len(merged.warnings)
    assert merged.read("/long", 4999) == b""
    assert merged.warnings[warnings:] == [
        "/long is not read: 5000 bytes, at most 4999 expected",
    ]


def test_a_folder_is_listed_through_the_links_on_its_way(merged: Tree) -> None:
    assert [path for path, _ in merged.below("/lib/modules")] == ["/usr/lib/modules/6.1/kernel.ko"]
    assert [path for path, _ in merged.below("/usr/li")] == []
    assert {path for path, _ in merged.below("/")} == set(merged.survey.name)


def test_the_links_of_a_folder_are_listed_without_those_below(merged: Tree) -> None:
    links = set(merged.links_below("/"))
    assert {"/lib", "/vmlinuz"} <= links
    assert "/etc/os-release" not in links
    assert list(merged.links_below("/etc")) == ["/etc/os-release"]


@pytest.fixture(scope="module")
def parted(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A root, a separate /boot and an ESP, mounted by UUID, PARTLABEL and type."""
    folder = tmp_path_factory.mktemp("parted")
    root = write_tree(
        folder / "root",
        {
            "/etc/os-release": OS_RELEASE,
            "/etc/fstab": f"UUID={ROOT_UUID} / ext4\nPARTLABEL=boot /boot ext4\n".encode(),
            "/boot/vmlinuz": b"hidden by the mount",
            "/home/one": b"home",
        },
        {},
    )
    boot = write_tree(
        folder / "boot", {"/vmlinuz": b"kernel", "/grub/grub.cfg": b"cfg"}, {"/boot": "."}
    )
    esp = write_tree(folder / "esp", {"/EFI/BOOT/BOOTX64.EFI": b"MZ"}, {})
    disk = gpt_disk(
        folder / "disk.raw",
        [
            Part(ESP, fat(folder / "esp.raw", esp)),
            Part(LINUX, ext4(folder / "boot.raw", boot, uuid=BOOT_UUID), "boot"),
            Part(SWAP, swap(folder / "swap.raw")),
            Part(LINUX, ext4(folder / "root.raw", root)),
        ],
    )
    return tree_of(disk)


def test_volumes_are_mounted_where_fstab_says_and_the_esp_where_it_usually_is(parted: Tree) -> None:
    assert parted.mounts == (Mount("/boot/efi", 0), Mount("/boot", 1), Mount("/", 3))


def test_what_lies_below_a_mount_point_is_hidden(parted: Tree) -> None:
    assert parted.read("/boot/vmlinuz", 100) == b"kernel"
    assert parted.read("/boot/boot/grub/grub.cfg", 100) == b"cfg"
    assert [path for path, _ in parted.below("/boot")] == [
        "/boot/grub/grub.cfg",
        "/boot/vmlinuz",
        "/boot/efi/EFI/BOOT/BOOTX64.EFI",
    ]


def test_a_fat_volume_knows_no_case(parted: Tree) -> None:
    assert parted.read("/boot/efi/efi/Boot/bootx64.efi", 100) == b"MZ"


def test_every_name_gets_its_path_in_the_guest(parted: Tree) -> None:
    assert sorted(parted.paths) == [
        "/boot/efi/EFI/BOOT/BOOTX64.EFI",
        "/boot/grub/grub.cfg",
        "/boot/vmlinuz",
        "/boot/vmlinuz",
        "/etc/fstab",
        "/etc/os-release",
        "/home/one",
    ]


def test_an_encrypted_root_still_has_a_boot_folder(tmp_path: Path) -> None:
    boot = write_tree(tmp_path / "boot", {"/vmlinuz": b"kernel"}, {})
    noise = tmp_path / "luks.raw"
    noise.write_bytes(b"LUKS\xba\xbe\x00\x02" + os.urandom(1 << 20))
    parts = [Part(LINUX, ext4(tmp_path / "boot.raw", boot)), Part(LINUX, noise)]
    tree = tree_of(gpt_disk(tmp_path / "disk.raw", parts))
    assert tree.mounts == (Mount("/boot", 0),)
    assert tree.root is None
    assert tree.read("/boot/vmlinuz", 100) == b"kernel"
    assert tree.read("/etc/fstab", 100) == b""


def test_of_two_systems_one_is_looked_into_and_the_author_is_told(tmp_path: Path) -> None:
    files = write_tree(tmp_path / "tree", {"/etc/os-release": OS_RELEASE}, {})
    one, two = ext4(tmp_path / "1", files), ext4(tmp_path / "2", files, uuid=BOOT_UUID)
    tree = tree_of(gpt_disk(tmp_path / "disk.raw", [Part(LINUX, one), Part(LINUX, two)]))
    assert tree.mounts == (Mount("/", 0),)
    assert "partition 2 holds another system" in tree.warnings[0]


def test_links_that_multiply_end_in_bounded_time() -> None:
    """Each link leads through the next one twice: 2^500 steps for whoever does not remember."""
    links = {f"/x{i}": f"x{i + 1}/../x{i + 1}" for i in range(500)}
    tree = Tree(survey_of_names(["/etc/os-release"], links), Memory(bytes(4096)))
    start = time.monotonic()
    assert tree.stream_of("/x0/file") is None
    assert time.monotonic() - start < 1


@pytest.mark.slow
def test_a_million_names_are_looked_up_in_seconds() -> None:
    names = [f"/usr/share/folder{i % 5000}/file{i}" for i in range(1_000_000)]
    survey = survey_of_names(["/etc/os-release", *names], {"/share": "usr/share"})
    start = time.monotonic()
    tree = Tree(survey, Memory(bytes(4096)))
    wanted = [f"/share/folder{i % 5000}/file{i}" for i in range(0, 1_000_000, 10)]
    found = np.array([tree.stream_of(path) for path in wanted])
    assert np.array_equal(found, np.arange(0, 1_000_000, 10) + 1)
    assert len(list(tree.below("/usr/share/folder77"))) == 200
    assert len(tree.paths) == 1_000_001
    assert time.monotonic() - start < 20
