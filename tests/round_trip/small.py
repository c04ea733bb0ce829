"""Small disks with files of known bytes, made in a second and packed in another."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from fixtures.guests import disk
from fixtures.guests.workshop import run
from tests.round_trip.command import Vmpack

ROOT_OFFSET = disk.ALIGNMENT_SECTORS * disk.SECTOR_BYTES


def write_files(folder: Path, *, seed: int, big: int = 2, small: int = 8) -> Path:
    """A tree of noise: `big` files of 1 to 3 MB, `small` ones of 1 byte to 40 kB."""
    chance = random.Random(seed)
    for number in range(big):
        path = folder / "srv" / "big" / f"{number:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randrange(1_000_000, 3_000_000)))
    for number in range(small):
        path = folder / "srv" / f"folder-{number % 5}" / f"{number:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(chance.randbytes(chance.randrange(1, 40_000)))
    return folder


def make_disk(image: Path, files: Path, *, size_mib: int) -> Path:
    """A disk with one partition, an ext4 that holds a folder's files."""
    disk.create(image, size_mib * disk.MIB)
    part = disk.partition_mbr(image, swap_mib=0)["root"]
    run(
        ["mke2fs", "-q", "-t", "ext4", "-d", files, "-E", f"offset={part.offset_bytes}", image,
         f"{part.size_bytes // 1024}k"]
    )  # fmt: skip
    return image


def make_swap_disk(image: Path, *, hibernated: bool) -> Path:
    """A disk with a swap partition; where a system is suspended its magic says S1SUSPEND."""
    disk.create(image, 16 * disk.MIB)
    parts = disk.partition_mbr(image, swap_mib=8)
    disk.make_swap(image, parts["swap"], "0b8d7f0a-0000-4000-8000-0123456789ab")
    if hibernated:
        disk.write_at(image, parts["swap"].offset_bytes + 4096 - 10, b"S1SUSPEND\0")
    return image


def add_overlapping_partition(image: Path) -> None:
    """A second entry of the MBR that begins inside the first partition."""
    with image.open("r+b") as file:
        file.seek(0x1BE)
        first = file.read(16)
        start, size = struct.unpack_from("<II", first, 8)
        file.seek(0x1BE + 16)
        file.write(first[:8] + struct.pack("<II", start + size // 2, size // 2))


def pack_small(author: Vmpack, folder: Path, *, seed: int = 1, version: int = 1) -> Path:
    """The pack, a folder, of a disk of 16 MiB."""
    folder.mkdir(exist_ok=True)
    image = make_disk(folder / f"small-{seed}.raw",
                      write_files(folder / f"files-{seed}", seed=seed), size_mib=16)  # fmt: skip
    target = folder / f"small-{seed}-{version}"
    author.good("pack", image, "-o", f"{target}/", "--no-packages", "--name", "small",
                "--pack-version", str(version))  # fmt: skip
    return target
