"""What an fstab says about the volumes of a disk."""

from __future__ import annotations

import pytest

from packer.guest.fstab import MAX_ENTRIES, Entry, parse_fstab, volume_of
from packer.survey.model import Survey
from tests.guest.material import survey_of_volumes, volume


def disk(table: str = "mbr") -> Survey:
    return survey_of_volumes(
        [
            volume(1, uuid="0A-root", label="rootfs", partition_uuid="part-one"),
            volume(5, uuid="ABCD-1234", label="", kind="vfat", partition_label="EFI system"),
        ],
        table=table,
        table_identifier="d3adb33f",
    )


def test_each_line_gives_what_where_and_as_which_type() -> None:
    data = (
        b"# comment\nUUID=1-2 / ext4 defaults 0 1\n\nLABEL=x /home/ xfs\n/swapfile none swap sw 0 0"
    )
    assert parse_fstab(data) == (
        Entry("UUID=1-2", "/", "ext4"),
        Entry("LABEL=x", "/home", "xfs"),
        Entry("/swapfile", "none", "swap"),
    )


def test_a_blank_in_a_path_is_written_in_octal() -> None:
    assert parse_fstab(b"LABEL=a\\040b /mnt/my\\040disk ext4")[0] == Entry(
        "LABEL=a b", "/mnt/my disk", "ext4"
    )


def test_octal_is_a_byte_and_only_blanks_part_fields() -> None:
    entry = Entry("LABEL=b\u00fcch", "/mnt/a\u00a0b\udcff", "ext4")
    assert parse_fstab("LABEL=b\\303\\274ch\t /mnt/a\u00a0b\\377 ext4\n".encode()) == (entry,)


def test_bytes_that_are_no_text_and_lines_that_are_no_entries_are_passed_over() -> None:
    assert parse_fstab(b"\xff\xfe\0 nothing\n\n/only-two fields\n") == ()


def test_a_list_without_end_is_cut() -> None:
    assert len(parse_fstab(b"a / b\n" * 100_000)) == MAX_ENTRIES


@pytest.mark.parametrize(
    ("spec", "row"),
    [
        ("UUID=0a-ROOT", 0),
        ('UUID="0a-root"', 0),
        ("UUID=abcd-1234", 1),
        ("LABEL=rootfs", 0),
        ("PARTUUID=part-one", 0),
        ("PARTUUID=d3adb33f-05", 1),
        ('PARTLABEL="EFI system"', 1),
        ("/dev/disk/by-uuid/ABCD-1234", 1),
        ("/dev/sda1", 0),
        ("/dev/vda5", 1),
        ("/dev/nvme0n1p5", 1),
    ],
)
def test_a_volume_is_found_by_every_name_the_kernel_gives_it(spec: str, row: int) -> None:
    assert volume_of(spec, disk()) == row


@pytest.mark.parametrize(
    "spec",
    ["LABEL=", "UUID=", "UUID=elsewhere", "/dev/sdb1", "/dev/sda2", "tmpfs", "/swapfile", "proc"],
)
def test_what_is_not_on_this_disk_is_not_found(spec: str) -> None:
    assert volume_of(spec, disk()) is None


def test_a_gpt_partition_has_no_made_up_partuuid() -> None:
    assert volume_of("PARTUUID=d3adb33f-05", disk("gpt")) is None
