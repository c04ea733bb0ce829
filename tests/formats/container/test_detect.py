from __future__ import annotations

from pathlib import Path

import pytest

from formats.container.detect import detect
from formats.source import FileSource, Memory
from tests.formats.container.qemu import MIB, qemu_img


@pytest.mark.parametrize(
    ("qemu_format", "options", "name"),
    [
        ("raw", (), "raw"),
        ("qcow2", (), "qcow2"),
        ("qcow2", ("-o", "compat=0.10"), "qcow2"),
        ("qcow", (), "qcow"),
        ("qed", (), "qed"),
        ("vmdk", (), "vmdk"),
        ("vmdk", ("-o", "subformat=monolithicFlat"), "vmdk"),
        ("vmdk", ("-o", "subformat=streamOptimized"), "vmdk"),
        ("vpc", (), "vhd"),
        ("vpc", ("-o", "subformat=fixed"), "vhd"),
        ("vhdx", (), "vhdx"),
        ("vdi", (), "vdi"),
        ("parallels", (), "parallels"),
    ],
)
def test_what_qemu_creates_is_recognised(
    tmp_path: Path, qemu_format: str, options: tuple[str, ...], name: str
) -> None:
    image = tmp_path / "image"
    qemu_img("create", "-q", "-f", qemu_format, *options, image, str(8 * MIB))
    assert detect(FileSource(image)) == name


def test_the_last_sector_of_a_raw_disk_may_say_conectix() -> None:
    assert detect(Memory(bytes(4096) + b"conectix" + bytes(504))) == "raw"


@pytest.mark.parametrize("size", [0, 1, 4, 68, 511])
def test_a_short_file_is_raw(size: int) -> None:
    assert detect(Memory(bytes(size))) == "raw"
