"""What a person is shown before a device is overwritten."""

from __future__ import annotations

from pathlib import Path

import pytest

from packer.errors import Error
from packer.media.device import Device, look_at
from packer.media.device_output import MARK
from packer.media.found import EDGE_BYTES, Found, Volume, look_into
from tests.host import needs_root, run
from tests.survey import disks
from tests.survey.disks import EXT, FAT, MIB, RAW, SWAP, empty, loop_device, whole_disk, write_at


def found_in(path: Path) -> Found:
    return look_into(look_at(path))


def test_a_device_that_reads_as_zeros_is_empty(tmp_path: Path) -> None:
    image = empty(tmp_path / "image", 8 * MIB)
    assert found_in(image) == Found(empty=True)


def test_a_disk_that_lost_only_its_table_is_not_empty(tmp_path: Path) -> None:
    """Somebody may want to save what lies in its middle."""
    image = empty(tmp_path / "image", 4096 * MIB)
    write_at(image, 3000 * MIB, bytes(15 * MIB) + b"x" * 2 * MIB)
    assert not found_in(image).empty


@pytest.mark.parametrize("offset", [0, 446, MIB + 4095, 8 * MIB - EDGE_BYTES, 8 * MIB - 1])
def test_one_byte_at_either_end_is_enough_to_ask(tmp_path: Path, offset: int) -> None:
    image = empty(tmp_path / "image", 8 * MIB)
    write_at(image, offset, b"x")
    found = found_in(image)
    assert not found.empty
    assert found.volumes == (Volume(0, 8 * MIB, "no known file system", ""),)


@pytest.mark.parametrize("size", [0, 1, 512, 100_000])
def test_small_files_are_looked_at_whole(tmp_path: Path, size: int) -> None:
    image = empty(tmp_path / "image", size)
    assert found_in(image).empty
    image.write_bytes(bytes(size) + b"x")
    assert not found_in(image).empty


def test_partitions_are_shown_with_the_labels_of_their_file_systems(tmp_path: Path) -> None:
    found = found_in(whole_disk(tmp_path))
    assert (found.empty, found.table) == (False, "gpt")
    assert found.volumes == (
        Volume(1, EXT.size, "ext", "root"),
        Volume(2, FAT.size, "FAT", "ESP"),
        Volume(3, SWAP.size, "swap", "sw"),
        Volume(4, RAW.size, "empty", ""),
    )


LABELLED = [
    ("XFS", "holiday", ("mkfs.xfs", "-q", "-L", "holiday"), 400),
    ("btrfs", "holiday", ("mkfs.btrfs", "-q", "-L", "holiday"), 128),
    ("NTFS", "", ("mkfs.ntfs", "-q", "-F", "-f", "-L", "holiday"), 16),
    ("FAT", "HOLIDAY", ("mkfs.vfat", "-F", "32", "-n", "HOLIDAY"), 64),
    ("FAT", "HOLIDAY", ("mkfs.vfat", "-F", "16", "-n", "HOLIDAY"), 16),
    ("FAT", "", ("mkfs.vfat", "-F", "16"), 16),
    ("ext", "holiday", ("mke2fs", "-q", "-t", "ext4", "-L", "holiday"), 16),
    ("ext", "", ("mke2fs", "-q", "-t", "ext2"), 16),
    ("swap", "holiday", ("mkswap", "-q", "-L", "holiday"), 16),
]


@pytest.mark.parametrize(("kind", "label", "maker", "size_mib"), LABELLED)
def test_a_file_system_without_a_table_is_named(
    tmp_path: Path, kind: str, label: str, maker: tuple[str, ...], size_mib: int
) -> None:
    """Whoever reads a label for people need not read the file system (NTFS keeps its in a file)."""
    image = empty(tmp_path / "image", size_mib * MIB)
    run(*maker, image)
    assert found_in(image).volumes == (Volume(0, size_mib * MIB, kind, label),)


def test_a_label_cannot_steer_the_terminal(tmp_path: Path) -> None:
    image = empty(tmp_path / "image", 16 * MIB)
    run("mke2fs", "-q", "-t", "ext4", "-L", "\x1b[2J\xff", image)
    (volume,) = found_in(image).volumes
    assert "\x1b" not in volume.label
    assert volume.label.endswith("[2J\xff")


def test_a_table_that_contradicts_itself_is_something_to_ask_about(tmp_path: Path) -> None:
    image = whole_disk(tmp_path)
    write_at(image, 512 + 16, b"broken")
    write_at(image, disks.DISK_BYTES - 512 + 16, b"broken")
    found = found_in(image)
    assert not found.empty
    assert "partition table" in found.note


def test_a_half_written_device_says_what_it_was_to_become(tmp_path: Path) -> None:
    image = empty(tmp_path / "image", 8 * MIB)
    write_at(image, 0, MARK + b"Run the same `vmpack write` again: demo:1 sha256:00\n")
    found = found_in(image)
    assert not found.empty
    assert found.note.startswith("vmpack: half written, not usable yet.")
    assert found.note.endswith("demo:1 sha256:00")


def test_what_cannot_be_read_is_one_clear_error(tmp_path: Path) -> None:
    gone = Device(tmp_path / "gone", "gone", MIB)
    with pytest.raises(Error, match="gone: cannot be read"):
        look_into(gone)


@needs_root
def test_a_real_device_is_looked_into(tmp_path: Path) -> None:
    with loop_device(whole_disk(tmp_path)) as path:
        assert [one.label for one in found_in(path).volumes] == ["root", "ESP", "sw", ""]
