"""Small real disks: a table with ext4, FAT and swap, made by the field's own tools."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures.loop_devices import losetup
from tests.host import run

MIB = 1 << 20
DISK_BYTES = 96 * MIB


@dataclass(frozen=True)
class Part:
    """A partition of the disk, in bytes."""

    start: int
    size: int
    gpt_type: str


EXT = Part(1 * MIB, 48 * MIB, "L")
FAT = Part(50 * MIB, 16 * MIB, "U")
SWAP = Part(67 * MIB, 8 * MIB, "S")
RAW = Part(76 * MIB, 18 * MIB, "L")
PARTS = (EXT, FAT, SWAP, RAW)

FILES = {f"/folder/file-{number}": bytes([number + 1]) * (5000 + number) for number in range(20)}


def empty(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        file.truncate(size)
    return path


def write_at(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def make_volume(folder: Path, name: str, size: int, *command: str | Path) -> bytes:
    volume = empty(folder / name, size)
    run(*command, volume)
    data = volume.read_bytes()
    volume.unlink()
    return data


def ext4(folder: Path, size: int = EXT.size) -> bytes:
    tree = folder / "tree"
    for path, data in FILES.items():
        target = tree / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    if not (tree / "link").is_symlink():
        (tree / "link").symlink_to("folder/file-1")
    options: list[str | Path] = ["-t", "ext4", "-b", "4096", "-L", "root", "-d", tree]
    return make_volume(folder, "ext4.img", size, "mke2fs", "-q", "-F", *options)


def table(path: Path, parts: tuple[Part, ...] = PARTS, kind: str = "gpt") -> None:
    lines = [f"label: {kind}"]
    for part in parts:
        lines.append(f"start={part.start // 512}, size={part.size // 512}, type={part.gpt_type}")
    run("sfdisk", "-q", path, stdin="\n".join(lines))


@functools.cache
def _pieces() -> dict[int, bytes]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return {
            EXT.start: ext4(folder),
            FAT.start: make_volume(folder, "fat", FAT.size, "mkfs.vfat", "-n", "ESP"),
            SWAP.start: make_volume(folder, "swap", SWAP.size, "mkswap", "-q", "-L", "sw"),
        }


def whole_disk(folder: Path, raw: bytes = b"") -> Path:
    """Make a GPT disk with an ext4, a FAT, a swap and a further partition that begins `raw`."""
    disk = empty(folder / "guest.raw", DISK_BYTES)
    table(disk)
    for start, data in {**_pieces(), RAW.start: raw}.items():
        for offset in range(0, len(data), 4096):  # holes stay holes
            if any(block := data[offset : offset + 4096]):
                write_at(disk, start + offset, block)
    return disk


@contextmanager
def loop_device(path: Path, *options: str) -> Iterator[Path]:
    """A file as a block device; skipped where this host gives none."""
    try:
        device = Path(losetup("--find", "--show", *options, path))
    except OSError as error:
        pytest.skip(f"no loop device to be had: {error}")
    try:
        yield device
    finally:
        losetup("--detach", device)
