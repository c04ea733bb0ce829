from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from formats.errors import Corrupt, FormatError
from formats.ranges import as_ranges, union
from formats.source import FileSource, Memory
from formats.volume.gpt import read_gpt
from tests.formats.damage import at_most_one_gib, damaged
from tests.formats.volume.tables import MIB, blank, patch, sfdisk_says, sgdisk

PARTITIONS = (
    "--new=1:2048:+8M",
    "--typecode=1:ef00",
    "--change-name=1:EFI ☃ system",
    "--new=3:0:+16M",
    "--typecode=3:8300",
    "--change-name=3:" + "x" * 36,
    "--new=128:0:+1M",
    "--disk-guid=01234567-89AB-CDEF-0123-456789ABCDEF",
)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return sgdisk(blank(tmp_path / "disk"), *PARTITIONS)


def test_partitions_are_those_that_sfdisk_lists(disk: Path) -> None:
    table = read_gpt(FileSource(disk))
    expected = [
        (
            int(one["node"].removeprefix(str(disk))),
            one["start"] * 512,
            (one["start"] + one["size"]) * 512,
            one["type"].lower(),
            one["uuid"].lower(),
        )
        for one in sfdisk_says(disk)["partitions"]
    ]
    found = [(one.number, one.start, one.end, one.type, one.uuid) for one in table.partitions]
    assert found == expected
    assert [one.number for one in table.partitions] == [1, 3, 128]
    assert table.partitions[0].label == "EFI ☃ system"
    assert table.partitions[1].label == "x" * 36
    assert table.identifier == "01234567-89ab-cdef-0123-456789abcdef"
    assert table.sector_size == 512
    assert table.warnings == ()


def test_the_table_lies_in_the_first_and_the_last_sectors(disk: Path) -> None:
    last = 64 * MIB // 512
    own = union(as_ranges(read_gpt(FileSource(disk)).own))
    assert (own // 512).tolist() == [[0, 34], [last - 33, last]]


def test_a_damaged_backup_is_a_warning(disk: Path) -> None:
    patch(disk, 64 * MIB - 512, bytes(512))
    table = read_gpt(FileSource(disk))
    assert len(table.partitions) == 3
    assert "backup GPT is damaged" in table.warnings[0]


def test_a_grown_disk_has_its_backup_in_the_middle(disk: Path) -> None:
    with disk.open("r+b") as file:
        file.truncate(80 * MIB)
    (warning,) = read_gpt(FileSource(disk)).warnings
    assert warning == "the backup GPT is expected at sector 131071, the disk's last is 163839"


@pytest.mark.parametrize("offset", [512, 512 + 40, 1024 + 10])
def test_a_damaged_primary_is_replaced_by_the_backup(disk: Path, offset: int) -> None:
    good = read_gpt(FileSource(disk))
    patch(disk, offset, b"\xa5")
    table = read_gpt(FileSource(disk))
    assert table.partitions == good.partitions
    assert "the primary GPT is damaged" in table.warnings[0]


def test_a_disk_without_a_good_copy_is_corrupt(disk: Path) -> None:
    patch(disk, 512, bytes(512))
    patch(disk, 64 * MIB - 512, bytes(512))
    with pytest.raises(Corrupt, match="neither copy"):
        read_gpt(FileSource(disk))


def with_header(image: bytes, offset: int, layout: str, value: int) -> bytes:
    """Change a field of the primary header and make its checksum right again."""
    changed = bytearray(image)
    struct.pack_into(layout, changed, 512 + offset, value)
    struct.pack_into("<I", changed, 512 + 16, 0)
    struct.pack_into("<I", changed, 512 + 16, zlib.crc32(changed[512 : 512 + 92]))
    return bytes(changed)


@pytest.mark.parametrize(
    ("offset", "layout", "value"),
    [
        (24, "<Q", 7),
        (72, "<Q", 1 << 60),
        (80, "<I", 0xFFFF_FFFF),
        (84, "<I", 0),
        (84, "<I", 100),
        (84, "<I", 1 << 31),
    ],
)
def test_a_checksummed_but_impossible_header_is_not_believed(
    disk: Path, offset: int, layout: str, value: int
) -> None:
    image = with_header(disk.read_bytes(), offset, layout, value)
    assert "the primary GPT is damaged" in read_gpt(Memory(image)).warnings[0]


def with_entry(image: bytes, index: int, first_lba: int, last_lba: int) -> bytes:
    changed = bytearray(image)
    struct.pack_into("<QQ", changed, 1024 + index * 128 + 32, first_lba, last_lba)
    entries = zlib.crc32(changed[1024 : 1024 + 128 * 128])
    return with_header(bytes(changed), 88, "<I", entries)


def test_overlapping_partitions_are_corrupt_and_both_are_named(disk: Path) -> None:
    image = with_entry(disk.read_bytes(), 2, 2048 + 100, 40000)
    with pytest.raises(Corrupt, match="partition 3 begins before partition 1 ends"):
        read_gpt(Memory(image))


@pytest.mark.parametrize(("first", "last"), [(40000, 131072), (40000, 39000), (0, (1 << 64) - 1)])
def test_a_partition_outside_the_disk_is_corrupt(disk: Path, first: int, last: int) -> None:
    with pytest.raises(Corrupt):
        read_gpt(Memory(with_entry(disk.read_bytes(), 2, first, last)))


def test_a_disk_of_4096_byte_sectors_is_recognised() -> None:
    sector = 4096
    disk = bytearray(1024 * sector)
    type_guid, unique, disk_guid = b"T" * 16, b"U" * 16, b"D" * 16
    name = "data".encode("utf-16-le").ljust(72, b"\0")
    entries = struct.pack("<16s16sQQQ72s", type_guid, unique, 256, 511, 0, name).ljust(128 * 128)
    entries = entries[:128] + bytes(127 * 128)
    for mine, other, at in ((1, 1023, 2), (1023, 1, 1019)):
        header = struct.pack(
            "<8sIIIIQQQQ16sQIII",
            *(b"EFI PART", 0x10000, 92, 0, 0, mine, other, 6, 1018, disk_guid, at, 128, 128),
            zlib.crc32(entries),
        )
        header = header[:16] + struct.pack("<I", zlib.crc32(header)) + header[20:]
        disk[mine * sector : mine * sector + 92] = header
        disk[at * sector : at * sector + len(entries)] = entries
    table = read_gpt(Memory(bytes(disk)))
    assert table.sector_size == 4096
    assert [(one.start, one.end, one.label) for one in table.partitions] == [
        (256 * sector, 512 * sector, "data")
    ]
    assert table.warnings == ()
    disk[sector : 2 * sector] = bytes(sector)
    assert read_gpt(Memory(bytes(disk))).partitions == table.partitions


def test_damage_is_an_error_or_the_same_partitions(tmp_path: Path) -> None:
    small = blank(tmp_path / "small", MIB)
    good = sgdisk(small, "--new=1:64:+100K", "--new=2:0:+200K").read_bytes()
    backup = len(good) - 512
    areas = [(512, 604), (1024, 1024 + 512), (backup, backup + 92), (backup - 16384, backup)]
    expected = read_gpt(Memory(good)).partitions
    refused = warned = 0
    with at_most_one_gib():
        for broken in damaged(good, areas, 600):
            try:
                table = read_gpt(Memory(broken))
            except FormatError:
                refused += 1
                continue
            assert table.partitions == expected
            warned += bool(table.warnings)
    assert refused > 0
    assert warned > 300
