"""Media that take no more: small, full and read-only file systems."""

from __future__ import annotations

import contextlib
import os
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
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("may not mount a small file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
