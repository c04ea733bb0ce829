"""Real NTFS images, made by mkntfs and filled through ntfs-3g."""

from __future__ import annotations

import os
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.host import run

MOUNT_S = 30
STREAMS = "streams_interface=windows"

COMPRESSED = 0x800  # FILE_ATTRIBUTE_COMPRESSED
WOF, DEDUPLICATED = 0x8000_0017, 0x8000_0013
SYMBOLIC_LINK, JUNCTION = 0xA000_000C, 0xA000_0003


def make(path: Path, size_kib: int, *options: str) -> Path:
    """Make an empty volume with mkntfs options."""
    with path.open("wb") as file:
        file.truncate(size_kib << 10)
    run("mkntfs", "-q", "-F", "-f", "-L", "Volume ☃", *options, path)
    return path


@contextmanager
def mounted(image: Path, options: str = STREAMS) -> Iterator[Path]:
    """The volume through ntfs-3g; when the block ends everything is in the image."""
    point = image.with_suffix(".mnt")
    point.mkdir(exist_ok=True)
    process = subprocess.Popen(
        ["ntfs-3g", "-o", f"no_detach,{options}", str(image), str(point)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + MOUNT_S
        while not point.is_mount():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, f"not mounted within {MOUNT_S} s"
            time.sleep(0.01)
        yield point
    finally:
        if point.is_mount():
            run("umount", point)
        try:
            process.wait(MOUNT_S)  # what was written reaches the image when it ends
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 0


def reparse_point(tag: int, data: bytes) -> bytes:
    """The value of a reparse point of one of Microsoft's tags."""
    return struct.pack("<IHH", tag, len(data), 0) + data


def link_point(tag: int, target: str, flags: int = 0) -> bytes:
    """A symbolic link or a junction."""
    name = target.encode("utf-16-le")
    names = struct.pack("<HHHH", 0, len(name), len(name) + 2, 0)
    if tag == SYMBOLIC_LINK:
        names += struct.pack("<I", flags)
    return reparse_point(tag, names + name + b"\0\0\0\0")


def set_reparse_point(path: Path, value: bytes) -> None:
    os.setxattr(path, "system.ntfs_reparse_data", value)


def set_attributes(path: Path, attributes: int) -> None:
    os.setxattr(path, "system.ntfs_attrib_be", struct.pack(">I", attributes))
