"""Boot Loader Specification entries."""

from __future__ import annotations

import pytest

from formats.boot.bls import MAX_ENTRY_BYTES, parse_entry
from formats.errors import Unsupported

ENTRY = b"""\
# a comment
title        Fedora 40
version      6.8.5
machine-id   6a9857a393724b7a981ebb5b8495b9ea
options      root=UUID=6d3376e4
options      ro  quiet
linux        /6a98/6.8.5/linux
initrd       /ucode.img
initrd       /6a98/6.8.5/initrd $tuned_initrd
devicetree   /6a98/board.dtb
devicetree-overlay /a.dtbo /b.dtbo
architecture x64
linux-something-new x
"""


def test_an_entry_names_its_files_in_order() -> None:
    entry = parse_entry(ENTRY)
    assert entry.title == "Fedora 40"
    assert entry.version == "6.8.5"
    assert entry.machine_id == "6a9857a393724b7a981ebb5b8495b9ea"
    assert entry.options == "root=UUID=6d3376e4 ro  quiet"
    assert entry.paths == (
        "/6a98/6.8.5/linux",
        "/6a98/board.dtb",
        "/ucode.img",
        "/6a98/6.8.5/initrd",
        "/a.dtbo",
        "/b.dtbo",
    )


def test_an_entry_is_a_line_of_a_menu() -> None:
    entry = parse_entry(ENTRY).menu_entry
    assert entry is not None
    assert (entry.title, entry.kernel) == ("Fedora 40", "/6a98/6.8.5/linux")
    assert entry.initrds == ("/ucode.img", "/6a98/6.8.5/initrd", "$tuned_initrd")
    assert entry.arguments == ("root=UUID=6d3376e4", "ro", "quiet")
    assert parse_entry(b"efi /EFI/shell.efi\n").menu_entry is None


def test_an_entry_of_efi_programs_is_read() -> None:
    assert parse_entry(b"efi /EFI/shell.efi\n").paths == ("/EFI/shell.efi",)
    assert parse_entry(b"uki /EFI/Linux/a.efi").paths == ("/EFI/Linux/a.efi",)
    assert parse_entry(b"").paths == ()


def test_too_large_an_entry_is_unsupported() -> None:
    with pytest.raises(Unsupported):
        parse_entry(bytes(MAX_ENTRY_BYTES + 1))
