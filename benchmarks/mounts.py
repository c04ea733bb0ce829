"""Loop-mounted file systems for measurements that depend on sharing blocks (needs root)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def xfs(image: Path, size_bytes: int, mountpoint: Path) -> Iterator[Path]:
    """Mount a new XFS with shared blocks; it is gone when the block ends."""
    image.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    mountpoint.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(mountpoint)], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", str(mountpoint)], check=True)
        image.unlink()


@contextmanager
def guest_tree(image: Path, offset_bytes: int, mountpoint: Path) -> Iterator[Path]:
    """Mount a guest's root file system read-only, as a stand-in for a host of its release."""
    mountpoint.mkdir(parents=True, exist_ok=True)
    options = f"loop,ro,noload,offset={offset_bytes}"
    subprocess.run(["mount", "-o", options, str(image), str(mountpoint)], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run(["umount", str(mountpoint)], check=True)


def used_bytes(folder: Path) -> int:
    """Return how much of its file system is in use, after everything was written back."""
    subprocess.run(["sync", "-f", str(folder)], check=True)
    facts = os.statvfs(folder)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize
