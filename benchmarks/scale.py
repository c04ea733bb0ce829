"""Scale: a 1 TiB sparse disk costs what a 10 GiB one does; memory at a million files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import Row, run, run_measured, side_by_side, words_of
from packer.text import format_bytes

GIB = 1 << 30
FILES = 1_000_000
FILES_A_FOLDER = 1000
MEMORY_AIM_BYTES = 1 << 30


def measure_scale(work: Path) -> list[Row]:
    """Return the rows about sparse disks and about a million files."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    os.environ["VMPACK_HOME"] = str(work.absolute() / "home")
    rows = [_sparse(work)]
    rows.extend(_million(work))
    shutil.rmtree(work)
    return rows


def _sparse(work: Path) -> Row:
    small, large = work / "10g.raw", work / "1t.raw"
    for image, size in ((small, 10 * GIB), (large, 1024 * GIB)):
        _make_ext4(image, size)
        with _mounted(image, work / "mnt") as mounted:
            for number in range(64):
                (mounted / f"{number}.bin").write_bytes(os.urandom(GIB // 64))
    commands = [_pack(image, work / "sparse.vmpack") for image in (large, small)]
    mine, other, ratio = side_by_side(lambda: run(commands[0]), lambda: run(commands[1]), 3)
    small.unlink()
    large.unlink()
    return Row(
        "pack of a 1 TiB disk with 1 GiB in it",
        f"{mine:.1f} s",
        ratio,
        f"of a 10 GiB disk with 1 GiB in it ({other:.1f} s)",
        1.25,
        words_of(commands[0]),
    )


def _million(work: Path) -> Iterator[Row]:
    image, pack, disk = work / "million.raw", work / "million.vmpack", work / "million.out"
    _make_ext4(image, 8 * GIB, "-N", str(FILES + 100_000))
    with _mounted(image, work / "mnt") as mounted:
        for number in range(FILES):
            folder = mounted / str(number // FILES_A_FOLDER)
            if number % FILES_A_FOLDER == 0:
                folder.mkdir()
            (folder / str(number)).write_bytes(f"content {number}\n".encode() * 20)
    packing = _pack(image, pack)
    unpacking = [
        sys.executable,
        "-m",
        "packer.cli.main",
        "unpack",
        str(pack),
        "-o",
        str(disk),
        "--allow-unsigned",
        "--quiet",
        "--force",
        "--from",
        "store:",
    ]
    for what, command in (("pack", packing), ("unpack", unpacking)):
        measured = run_measured(command)
        yield Row(
            f"{what} of {FILES:,} files, peak memory",
            format_bytes(measured.peak_bytes),
            measured.peak_bytes / MEMORY_AIM_BYTES,
            f"1 GiB ({measured.seconds:.0f} s)",
            1.0,
            words_of(command),
        )


def _pack(image: Path, output: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "packer.cli.main",
        "pack",
        str(image),
        "-o",
        str(output),
        "--unsigned",
        "--no-packages",
        "--quiet",
        "--force",
        "--name",
        "scale",
        "--thin",
    ]


def _make_ext4(image: Path, size: int, *more: str) -> None:
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", *more, str(image)], check=True)


@contextmanager
def _mounted(image: Path, folder: Path) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
