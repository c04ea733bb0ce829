from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest

from formats.errors import Corrupt, FormatError
from formats.source import FileSource, Memory
from formats.volume.table import read_table
from tests.formats.damage import at_most_one_gib
from tests.formats.volume.tables import MIB, blank, patch, sfdisk, sgdisk


def test_a_protective_mbr_leads_to_the_gpt(tmp_path: Path) -> None:
    disk = sgdisk(blank(tmp_path / "disk"), "--new=1:2048:+8M")
    table = read_table(FileSource(disk))
    assert table.kind == "gpt"
    assert len(table.partitions) == 1


def test_a_hybrid_mbr_leads_to_the_gpt_with_a_warning(tmp_path: Path) -> None:
    disk = sgdisk(blank(tmp_path / "disk"), "--new=1:2048:+8M")
    sgdisk(disk, "--hybrid=1")
    table = read_table(FileSource(disk))
    assert table.kind == "gpt"
    assert "hybrid" in table.warnings[0]


def test_a_protective_mbr_without_a_gpt_is_corrupt(tmp_path: Path) -> None:
    disk = sgdisk(blank(tmp_path / "disk"), "--new=1:2048:+8M")
    patch(disk, 512, bytes(512))
    patch(disk, 64 * MIB - 512, bytes(512))
    with pytest.raises(Corrupt):
        read_table(FileSource(disk))


def test_a_gpt_of_which_no_mbr_speaks_is_left_over(tmp_path: Path) -> None:
    disk = sgdisk(blank(tmp_path / "disk"), "--new=1:2048:+8M")
    patch(disk, 0, bytes(512))
    assert read_table(FileSource(disk)).kind == "none"


def test_an_mbr_is_an_mbr(tmp_path: Path) -> None:
    disk = sfdisk(blank(tmp_path / "disk"), "label: dos\nsize=8192, type=83\n")
    assert read_table(FileSource(disk)).kind == "mbr"


def test_an_mbr_without_partitions_is_an_mbr(tmp_path: Path) -> None:
    disk = sfdisk(blank(tmp_path / "disk"), "label: dos\nlabel-id: 0x1\n")
    table = read_table(FileSource(disk))
    assert (table.kind, table.partitions) == ("mbr", ())


@pytest.mark.parametrize("bits", ["12", "16", "32"])
def test_a_fat_volume_on_the_whole_disk_is_not_a_table(tmp_path: Path, bits: str) -> None:
    disk = blank(tmp_path / "disk")
    sectors_per_cluster = {"12": "64", "16": "8", "32": "1"}[bits]
    command = ["mkfs.fat", "-I", "-s", sectors_per_cluster, "-F", bits, str(disk)]
    subprocess.run(command, check=True, capture_output=True)
    assert read_table(FileSource(disk)).kind == "none"


@pytest.mark.parametrize("filler", [0x00, 0x80, 0xE8, 0xFF])
@pytest.mark.parametrize("name", [b"NTFS    ", b"MSDOS5.0"])
def test_code_in_place_of_entries_is_not_a_table(name: bytes, filler: int) -> None:
    fat = b"\x00\x02\x08\x20\x00\x02\x00\x00\x00\x00\xf8\x00\x01"
    start = b"\xeb\x52\x90" + name + fat
    sector = start + bytes([filler]) * (510 - len(start)) + b"\x55\xaa"
    assert read_table(Memory(sector + bytes(MIB))).kind == "none"


@pytest.mark.parametrize("size", [0, 1, 511, 512, MIB])
def test_zeros_are_one_volume(size: int) -> None:
    assert read_table(Memory(bytes(size))).kind == "none"


def test_random_sectors_never_do_more_than_raise_a_format_error() -> None:
    chance = random.Random(5)
    kinds = {"none": 0, "mbr": 0, "error": 0}
    with at_most_one_gib():
        for _ in range(1000):
            entries = b"".join(
                chance.choice((b"\0", b"\x80")) + chance.randbytes(15) for _ in range(4)
            )
            disk = chance.randbytes(446) + entries + b"\x55\xaa" + chance.randbytes(8192)
            try:
                kinds[read_table(Memory(disk)).kind] += 1
            except FormatError:
                kinds["error"] += 1
    assert kinds["error"] > 900
