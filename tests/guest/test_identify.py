"""What is installed, and what starts it."""

from __future__ import annotations

from pathlib import Path

import pytest

from packer.guest.identify import elf_machine, identify, kernel_machine, parse_os_release
from packer.guest.model import Guest
from tests.guest.material import (
    BIOS_BOOT,
    ESP,
    LINUX,
    MIB,
    Part,
    ext4,
    fat,
    gpt_disk,
    tree_of,
    write_tree,
)

DEBIAN = b"""PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"
NAME="Debian GNU/Linux"
VERSION_ID="12"
ID=debian
"""


@pytest.mark.parametrize(
    ("line", "value"),
    [
        (b"ID=debian", "debian"),
        (b'ID="debian"', "debian"),
        (b"ID='debian'", "debian"),
        (b'ID="a \\"b\\" \\$c"', 'a "b" $c'),
        (b"ID=", ""),
        (b"  ID=x  ", "x"),
        (b"ID=\x1b[31mred", "[31mred"),
        (b"ID=" + b"x" * 10_000, "x" * 200),
    ],
)
def test_a_value_is_plain_text_of_one_line(line: bytes, value: str) -> None:
    assert parse_os_release(line)["ID"] == value


def test_lines_that_assign_nothing_are_passed_over() -> None:
    assert parse_os_release(b"# ID=no\nno value\n1X=3\n\xff\xff=\n") == {}


def test_this_machine_is_recognised_by_its_own_programs() -> None:
    assert elf_machine(Path("/proc/self/exe").read_bytes()[:20]) in ("x86_64", "aarch64")


def test_the_byte_order_of_a_program_counts() -> None:
    ppc = b"\x7fELF\x02%c" + bytes(10)
    assert elf_machine(ppc % 1 + b"\x02\x00\x15\x00") == "ppc64le"
    assert elf_machine(ppc % 2 + b"\x00\x02\x00\x15") == "ppc64"


@pytest.mark.parametrize("header", [b"", b"\x7fELF", b"#!/bin/sh\n" + bytes(600), bytes(600)])
def test_what_is_no_program_has_no_machine(header: bytes) -> None:
    assert elf_machine(header) == ""
    assert kernel_machine(header) == ""


@pytest.mark.skipif(not list(Path("/boot").glob("vmlinuz-*-amd64")), reason="no kernel here")
def test_a_distribution_kernel_tells_its_machine() -> None:
    kernel = next(Path("/boot").glob("vmlinuz-*-amd64"))
    assert kernel_machine(kernel.read_bytes()[:568]) == "x86_64"


def test_a_guest_is_described_by_its_os_release_programs_and_loaders(tmp_path: Path) -> None:
    root = write_tree(
        tmp_path / "root",
        {
            "/usr/lib/os-release": DEBIAN,
            "/usr/bin/dash": Path("/proc/self/exe").read_bytes()[:4096],
        },
        {"/etc/os-release": "../usr/lib/os-release", "/bin": "usr/bin", "/usr/bin/sh": "dash"},
    )
    esp = write_tree(tmp_path / "esp", {"/EFI/debian/grubx64.efi": b"MZ"}, {})
    (tmp_path / "core").write_bytes(b"core" * MIB)
    disk = gpt_disk(
        tmp_path / "disk.raw",
        [
            Part(BIOS_BOOT, tmp_path / "core"),
            Part(ESP, fat(tmp_path / "esp.raw", esp)),
            Part(LINUX, ext4(tmp_path / "root.raw", root)),
        ],
    )
    guest = identify(tree_of(disk))
    assert guest.architecture
    assert guest == Guest(
        "linux",
        "debian",
        "12",
        "Debian GNU/Linux 12 (bookworm)",
        guest.architecture,
        "bios+uefi",
    )


def test_a_disk_without_a_system_is_unknown(tmp_path: Path) -> None:
    files = write_tree(tmp_path / "tree", {"/photos/1.jpg": b"\xff\xd8"}, {})
    assert identify(tree_of(ext4(tmp_path / "disk.raw", files))) == Guest()
