"""Images that cannot be, or must not be, packed as they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.hostile.refusal import IN_USE, INPUT, refused
from tests.round_trip.command import Vmpack
from tests.round_trip.disks import copy_sparse, tool
from tests.round_trip.layouts import config_digest, config_of
from tests.round_trip.packs import Packed
from tests.round_trip.small import (
    ROOT_OFFSET,
    add_overlapping_partition,
    make_disk,
    make_swap_disk,
    write_files,
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    files = write_files(tmp_path / "files", seed=5)
    return make_disk(tmp_path / "small.raw", files, size_mib=16)


def nothing_beside(output: Path) -> None:
    """Neither the pack nor its parts under a temporary name."""
    left = [path.name for path in output.parent.iterdir() if path.name.startswith(output.stem)]
    assert [name for name in left if "vmpack" in name] == []


def test_an_empty_file_is_refused(author: Vmpack, tmp_path: Path) -> None:
    image = tmp_path / "empty.raw"
    image.touch()
    output = tmp_path / "empty.vmpack"
    done = author("pack", image, "-o", output, "--no-packages")
    refused(done, INPUT, str(image), output=output)
    nothing_beside(output)


def test_a_file_that_is_not_there_is_refused(author: Vmpack, tmp_path: Path) -> None:
    image, output = tmp_path / "absent.raw", tmp_path / "absent.vmpack"
    done = author("pack", image, "-o", output, "--no-packages")
    refused(done, INPUT, str(image), output=output)
    nothing_beside(output)


@pytest.mark.parametrize(
    ("container", "share"),
    [
        *(("qcow2", share) for share in (0.0001, 0.4, 0.999)),
        *(("vmdk", share) for share in (0.0001, 0.4, 0.999)),
        *(("vdi", share) for share in (0.4, 0.999)),
        *(("vhdx", share) for share in (0.4, 0.6)),
    ],
)
def test_a_truncated_container_is_refused(
    author: Vmpack, image: Path, container: str, share: float
) -> None:
    whole = image.with_name(f"cut.{container}")
    tool("qemu-img", "convert", "-O", container, image, whole)
    os.truncate(whole, int(whole.stat().st_size * share))
    output = whole.with_suffix(".vmpack")
    done = author("pack", whole, "-o", output, "--no-packages")
    refused(done, INPUT, str(whole), output=output)
    nothing_beside(output)


@pytest.mark.parametrize("container", ["qcow2", "vmdk", "vdi", "vhdx"])
def test_a_container_with_garbage_behind_its_header_is_refused(
    author: Vmpack, image: Path, container: str
) -> None:
    broken = image.with_name(f"garbage.{container}")
    tool("qemu-img", "convert", "-O", container, image, broken)
    size = broken.stat().st_size
    magic = 8 if container != "vdi" else 0x44
    with broken.open("r+b") as file:
        file.seek(magic)
        file.write(os.urandom(size - magic))
    output = broken.with_suffix(".vmpack")
    done = author("pack", broken, "-o", output, "--no-packages")
    refused(done, INPUT, str(broken), output=output)
    nothing_beside(output)


def test_a_raw_disk_cut_short_is_refused(author: Vmpack, image: Path) -> None:
    """Its partition ends behind the disk."""
    os.truncate(image, 8 << 20)
    output = image.with_suffix(".vmpack")
    done = author("pack", image, "-o", output, "--no-packages")
    refused(done, INPUT, str(image), "partition 1 ends at byte", output=output)
    nothing_beside(output)


def test_a_backing_file_that_nobody_named_is_refused_and_never_opened(
    author: Vmpack, image: Path
) -> None:
    overlay = image.with_name("overlay.qcow2")
    tool("qemu-img", "create", "-q", "-f", "qcow2", "-b", image, "-F", "raw", overlay)
    output = image.with_name("overlay.vmpack")
    done = author("pack", overlay, "-o", output, "--no-packages")
    refused(done, INPUT, str(overlay), "--backing", output=output)
    nothing_beside(output)
    author.good("pack", overlay, "-o", f"{output}/", "--backing", image, "--no-packages")
    plain = image.with_name("plain.vmpack")
    author.good("pack", image, "-o", f"{plain}/", "--no-packages", "--name", "overlay")
    assert config_of(output)["disks"] == config_of(plain)["disks"]
    assert config_digest(output) == config_digest(plain)


def test_overlapping_partitions_are_refused(author: Vmpack, image: Path) -> None:
    """Neither partition's word about free space can be taken: both may own the bytes."""
    add_overlapping_partition(image)
    output = image.with_suffix(".vmpack")
    done = author("pack", image, "-o", output, "--no-packages")
    refused(done, INPUT, str(image), "partition 2 begins before", output=output)
    nothing_beside(output)


def test_a_dirty_ext4_is_packed_whole_with_a_warning(author: Vmpack, image: Path) -> None:
    with image.open("r+b") as file:  # deleted data in the last block, which is free
        file.seek(-4096, os.SEEK_END)
        file.write(b"deleted" * 500)
    tool("debugfs", "-w", "-R", "feature needs_recovery", f"{image}?offset={ROOT_OFFSET}")
    output = image.with_suffix(".vmpack")
    said = author.good("pack", image, "-o", f"{output}/", "--no-packages")
    assert "not clean" in said
    assert ["not clean" in warning for warning in config_of(output)["warnings"]] == [True]
    rebuilt = image.with_name("rebuilt.raw")
    author.good("unpack", output, "-o", rebuilt, "--from", "store:")
    assert rebuilt.read_bytes() == image.read_bytes()


def test_a_hibernated_system_is_refused(author: Vmpack, tmp_path: Path) -> None:
    image = make_swap_disk(tmp_path / "asleep.raw", hibernated=True)
    output = tmp_path / "asleep.vmpack"
    done = author("pack", image, "-o", output, "--no-packages")
    refused(done, IN_USE, str(image), "hibernated", "shut it down", output=output)
    nothing_beside(output)
    awake = make_swap_disk(tmp_path / "awake.raw", hibernated=False)
    author.good("pack", awake, "-o", tmp_path / "awake.vmpack", "--no-packages")


@pytest.mark.guest
def test_an_image_that_another_program_writes_is_refused(
    author: Vmpack, busybox: Packed, room: Path
) -> None:
    image = copy_sparse(busybox.guest.image, room / "busy.raw")
    output = room / "busy.vmpack"
    with image.open("r+b"):
        done = author("pack", image, "-o", output, "--no-packages")
    refused(done, IN_USE, str(image), "in use", output=output)
    nothing_beside(output)
