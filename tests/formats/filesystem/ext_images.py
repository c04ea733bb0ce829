"""Real ext images, made by mke2fs and the kernel, and what a reader of them must see."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from formats.filesystem.model import DATA, UNWRITTEN, FileSystem
from formats.ranges import Ranges
from tests.host import run


def make(path: Path, size_mib: int, options: str) -> Path:
    """Make a file system with mke2fs options, ext4 unless they say otherwise."""
    with path.open("wb") as file:
        file.truncate(size_mib << 20)
    kind = [] if "-t " in options else ["-t", "ext4"]
    run("mke2fs", "-q", "-F", *kind, *options.split(), path)
    return path


@contextlib.contextmanager
def mounted(image: Path, options: str = "loop") -> Iterator[Path]:
    """Mount the image; skip when this kernel cannot."""
    point = image.with_suffix(".mnt")
    point.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-o", options, image, point], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"this kernel does not mount it: {done.stderr.strip()}")
    try:
        yield point
    finally:
        run("umount", point)


def age(root: Path, seed: int, files: int = 150) -> None:
    """Create, grow, cut, punch and delete files until their blocks are scattered."""
    dice = random.Random(seed)
    for number in range(files):
        folder = root / f"folder{number % 7}"
        folder.mkdir(exist_ok=True)
        (folder / f"file{number}").write_bytes(
            dice.randbytes(dice.choice([0, 1, 700, 5000, 90000]))
        )
    for number in range(0, files, 3):
        (root / f"folder{number % 7}" / f"file{number}").unlink()
    for number in range(1, files, 3):
        with (root / f"folder{number % 7}" / f"file{number}").open("r+b") as file:
            if number % 2:
                file.seek(0, os.SEEK_END)
                file.write(dice.randbytes(30000))
            else:
                file.truncate(dice.randrange(9000))
    _special_files(root, dice)


def _special_files(root: Path, dice: random.Random) -> None:
    with (root / "sparse").open("wb") as file:
        for place in (0, 13 << 10, 300 << 10, 5 << 20, 9 << 20):
            file.seek(place)
            file.write(dice.randbytes(5000))
        file.truncate(12 << 20)
    with (root / "beyond 4 GiB").open("wb") as file:
        file.seek((4 << 30) + 12345)
        file.write(dice.randbytes(20000))
    with (root / "many extents").open("wb") as file:
        for number in range(1500):  # a tree of two levels, of three with blocks of 1 KiB
            file.seek(number * 12288)
            file.write(b"%8d" % number * 16)
    _preallocate(root, dice)
    os.link(root / "sparse", root / "folder1" / "second name of sparse")
    (root / "short link").symlink_to("sparse")
    (root / "long link").symlink_to("x" * 200)
    Path(os.fsdecode(bytes(root) + b"/bytes \xff\xfe")).write_bytes(b"no UTF-8" * 600)
    (root / ("n" * 255)).write_bytes(b"longest name" * 600)
    (root / "ünïcode").write_bytes(b"UTF-8" * 900)
    os.setxattr(root / "ünïcode", "user.small", b"1")
    os.setxattr(root / "ünïcode", "user.large", dice.randbytes(700))
    (root / "empty").touch()
    os.mkfifo(root / "pipe")


def _preallocate(root: Path, dice: random.Random) -> None:
    """Unwritten extents in the middle, partly written, past the end; none where unsupported."""
    (root / "past the end").write_bytes(dice.randbytes(6000))
    (root / "preallocated").touch()
    for words in (
        ["-l", "3000k", "preallocated"],
        ["-n", "-l", "800k", "past the end"],
    ):
        subprocess.run(["fallocate", *words], check=False, cwd=root, capture_output=True)
    with (root / "preallocated").open("r+b") as file:
        file.seek(100 << 10)
        file.write(dice.randbytes(70000))
    punch = ["fallocate", "-p", "-o", "8k", "-l", "64k", "preallocated"]
    subprocess.run(punch, check=False, cwd=root, capture_output=True)


class Seen(NamedTuple):
    """One path: mode, inode, links, size, blocks, time; digest or link target; attributes."""

    facts: tuple[int, ...]
    content: str | bytes
    attributes: tuple[tuple[str | bytes, bytes], ...]


def seen_by_the_kernel(root: Path) -> dict[bytes, Seen]:
    """Return what a reader of the mounted file system sees: every path, its status and content."""
    seen: dict[bytes, Seen] = {}
    for folder, folders, files in os.walk(bytes(root)):
        for name in (*folders, *files):
            path = folder + b"/" + name
            status = os.lstat(path)
            content: str | bytes = ""
            if stat.S_ISREG(status.st_mode):
                content = _digest(path)
            elif stat.S_ISLNK(status.st_mode):
                content = os.fsencode(Path(os.fsdecode(path)).readlink())
            attributes = [
                (key, os.getxattr(path, key, follow_symlinks=False))
                for key in os.listxattr(path, follow_symlinks=False)
            ]
            place = (status.st_mode, status.st_ino, status.st_nlink)
            facts = (*place, status.st_size, status.st_blocks, status.st_mtime_ns)
            seen[path.removeprefix(bytes(root))] = Seen(facts, content, tuple(attributes))
    return seen


def _digest(path: bytes) -> str:
    """Digest all bytes of a file; of a huge one, the last 32 MiB."""
    digest = hashlib.sha256()
    with Path(os.fsdecode(path)).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest.update(os.pread(file.fileno(), 32 << 20, max(size - (32 << 20), 0)))
    return digest.hexdigest()


def unused(found: FileSystem) -> Ranges:
    """Return all that may be forgotten: free space, unwritten extents, slack after the end."""
    streams = found.streams
    disk, size = streams.disk_offset, streams.size[streams.stream]
    unwritten = streams.kind == UNWRITTEN
    in_file = np.clip(size - streams.file_offset, 0, streams.length)
    slack = (streams.kind == DATA) & (in_file < streams.length)
    return np.concatenate(
        [
            found.free,
            np.stack([disk, disk + streams.length], axis=1)[unwritten],
            np.stack([disk + in_file, disk + streams.length], axis=1)[slack],
        ]
    )


def overwrite(image: Path, ranges: Ranges, seed: int | None) -> None:
    """Fill the ranges with noise, or with zeros when there is no seed."""
    dice = np.random.default_rng(seed)
    with image.open("r+b") as file:
        for start, end in ranges.tolist():
            for at in range(start, end, 1 << 24):
                length = min(end - at, 1 << 24)
                file.seek(at)
                file.write(bytes(length) if seed is None else dice.bytes(length))
