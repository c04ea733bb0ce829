from __future__ import annotations

import struct
from pathlib import Path

import pytest

from formats.errors import Corrupt, FormatError
from formats.source import FileSource, Memory
from formats.volume.mbr import read_mbr
from formats.volume.model import PartitionTable
from tests.formats.damage import at_most_one_gib, damaged
from tests.formats.volume.tables import MIB, blank, patch, sfdisk, sfdisk_delete, sfdisk_says

SCRIPT = """label: dos
label-id: 0x12345678
start=2048, size=8192, type=83, bootable
size=8192, type=7
type=5
size=4096, type=83
size=4096, type=82
size=4096, type=c
"""


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return sfdisk(blank(tmp_path / "disk"), SCRIPT)


def read(disk: Path) -> PartitionTable:
    return read_mbr(FileSource(disk))


def test_partitions_are_those_that_sfdisk_lists(disk: Path) -> None:
    expected = [
        (int(one["node"].removeprefix(str(disk))), one["start"] * 512, one["size"] * 512)
        for one in sfdisk_says(disk)["partitions"]
        if one["type"] != "5"
    ]
    found = read(disk).partitions
    assert [(one.number, one.start, one.end - one.start) for one in found] == expected
    assert [one.number for one in found] == [1, 2, 5, 6, 7]
    assert [one.type for one in found] == ["83", "07", "83", "82", "0c"]


def test_the_disk_signature_is_the_identifier(disk: Path) -> None:
    assert read(disk).identifier == "12345678"


def test_a_deleted_logical_partition_leaves_the_others_numbered_as_the_kernel_does(
    disk: Path,
) -> None:
    sfdisk_delete(disk, 6)
    starts = {one["node"]: one["start"] * 512 for one in sfdisk_says(disk)["partitions"]}
    found = read(disk).partitions
    assert [one.number for one in found] == [1, 2, 5, 6]
    assert found[-1].start == starts[f"{disk}6"]


def test_an_empty_extended_partition_has_no_logical_ones(tmp_path: Path) -> None:
    disk = sfdisk(blank(tmp_path / "disk"), "label: dos\nsize=8192, type=83\ntype=f\n")
    table = read(disk)
    assert [one.number for one in table.partitions] == [1]


def test_an_extended_partition_without_a_record_is_only_a_warning(disk: Path) -> None:
    extended = next(one for one in sfdisk_says(disk)["partitions"] if one["type"] == "5")
    patch(disk, extended["start"] * 512, bytes(512))
    table = read(disk)
    assert [one.number for one in table.partitions] == [1, 2]
    assert "extended partition 3" in table.warnings[0]
    assert table.own == ((0, 512),)


def entry(kind: int, start: int, size: int, status: int = 0) -> bytes:
    return struct.pack("<B3sB3sII", status, bytes(3), kind, bytes(3), start, size)


def record(*entries: bytes) -> bytes:
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + b"\x55\xaa"


def test_overlapping_partitions_are_corrupt_and_both_are_named() -> None:
    disk = Memory(record(entry(0x83, 10, 20), entry(0x07, 29, 10)) + bytes(63 * 512))
    with pytest.raises(Corrupt, match="partition 2 begins before partition 1 ends"):
        read_mbr(disk)


def test_a_partition_past_the_end_of_the_disk_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="partition 1 ends at byte 33280, the disk at byte 32768"):
        read_mbr(Memory(record(entry(0x83, 1, 64)) + bytes(63 * 512)))


def test_the_table_lies_in_its_boot_records(disk: Path) -> None:
    sectors = disk.read_bytes()
    signed = [
        at for at in range(0, len(sectors), 512) if sectors[at + 510 : at + 512] == b"\x55\xaa"
    ]
    assert len(signed) == 4
    assert read(disk).own == tuple((at, at + 512) for at in signed)


def test_a_chain_of_very_many_records_is_corrupt() -> None:
    sectors = [record(entry(0x05, 1, 999))]
    sectors += [record(entry(0, 0, 0), entry(0x05, number, 1)) for number in range(1, 1000)]
    with pytest.raises(Corrupt, match="a chain of more than 256 records"):
        read_mbr(Memory(b"".join(sectors)))


def test_a_chain_that_loops_is_corrupt() -> None:
    sectors = [bytes(512)] * 64
    sectors[0] = record(entry(0x05, 8, 56))
    sectors[8] = record(entry(0x83, 1, 2), entry(0x05, 8, 8))
    sectors[16] = record(entry(0x83, 1, 2), entry(0x05, 8, 8))
    with pytest.raises(Corrupt, match="loops"):
        read_mbr(Memory(b"".join(sectors)))


def test_a_link_out_of_the_extended_partition_is_corrupt() -> None:
    sectors = [bytes(512)] * 64
    sectors[0] = record(entry(0x05, 8, 16))
    sectors[8] = record(entry(0x83, 1, 2), entry(0x05, 40, 8))
    with pytest.raises(Corrupt, match="leaves extended partition 1"):
        read_mbr(Memory(b"".join(sectors)))


def test_a_logical_partition_that_leaves_its_extended_one_is_corrupt() -> None:
    sectors = [bytes(512)] * 64
    sectors[0] = record(entry(0x05, 8, 16))
    sectors[8] = record(entry(0x83, 1, 30))
    with pytest.raises(Corrupt, match="logical partition 5"):
        read_mbr(Memory(b"".join(sectors)))


def test_sectors_of_4096_bytes_can_be_asked_for() -> None:
    disk = Memory(record(entry(0x83, 1, 2)) + bytes(16 * 4096 - 512))
    (partition,) = read_mbr(disk, sector_size=4096).partitions
    assert (partition.start, partition.end) == (4096, 3 * 4096)


def test_damage_is_an_error_or_partitions_inside_the_disk(tmp_path: Path) -> None:
    script = "label: dos\nsize=300, type=83\ntype=5\nsize=200, type=83\nsize=200, type=82\n"
    disk = sfdisk(blank(tmp_path / "small", 4 * MIB), script)
    good = disk.read_bytes()
    extended = next(one for one in sfdisk_says(disk)["partitions"] if one["type"] == "5")
    ebr = extended["start"] * 512
    areas = [(440, 512), (ebr + 446, ebr + 512)]
    refused = 0
    with at_most_one_gib():
        for broken in damaged(good, areas, 600):
            try:
                table = read_mbr(Memory(broken))
            except FormatError:
                refused += 1
                continue
            ends = [0, *(one.end for one in sorted(table.partitions, key=lambda one: one.start))]
            starts = sorted(one.start for one in table.partitions)
            assert all(end <= start for end, start in zip(ends, starts, strict=False))
            assert ends[-1] <= len(broken)
    assert 100 < refused < 600
