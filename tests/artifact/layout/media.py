"""Media that take no more: small, full and read-only file systems."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_medium(folder: Path, size_bytes: int, *, read_only: bool = False) -> Iterator[Path]:
    """Mount a file system of that size; skip the test where this process may not."""
    folder.mkdir()
    options = f"size={size_bytes}" + (",ro" if read_only else "")
    mount = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
    if (
        os.geteuid() != 0
        or subprocess.run(mount, check=False, stderr=subprocess.DEVNULL).returncode != 0
    ):
        pytest.skip("may not mount a small file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextlib.contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond that size, as FAT does at 4 GiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
