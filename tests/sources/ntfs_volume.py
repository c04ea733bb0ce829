"""A small NTFS volume, made by mkntfs and filled through ntfs-3g."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.host import run

SIZE_BYTES = 24 << 20


@contextmanager
def ntfs_3g(image: Path, folder: Path, *options: str) -> Iterator[Path]:
    """A new volume in `image`, mounted at `folder`; complete in the image when the block ends."""
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    run("mkntfs", "-q", "-F", image)
    with mounted(image, folder, *options):
        yield folder


@contextmanager
def mounted(image: Path, folder: Path, *options: str) -> Iterator[Path]:
    """A volume, mounted at `folder` until the block ends."""
    server = subprocess.Popen(["ntfs-3g", "-o", ",".join(("no_detach", *options)), image, folder])
    try:
        for _ in range(200):
            if folder.is_mount() or server.poll() is not None:
                break
            time.sleep(0.05)
        assert folder.is_mount(), "ntfs-3g did not mount the volume"
        yield folder
    finally:
        for _ in range(50):  # somebody may look at it right now
            done = subprocess.run(["umount", folder], check=False, capture_output=True)
            if done.returncode == 0 or not folder.is_mount():
                break
            time.sleep(0.1)
        server.wait(20)  # it writes for a moment after the mount is gone
