"""Whether parts of files are in memory."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from packer.run.disk.page_cache import is_in_memory

MIB = 1 << 20


@pytest.fixture
def fd(tmp_path: Path) -> int:
    """A file of 4 MiB and 10 bytes, of which nothing is in memory."""
    path = tmp_path / "file"
    path.write_bytes(bytes(4 * MIB + 10))
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no reading ahead
    return fd


def kernel_tells() -> bool:
    major, minor = os.uname().release.split(".")[:2]
    return sys.platform == "linux" and (int(major), int(minor)) >= (6, 5)


@pytest.mark.skipif(not kernel_tells(), reason="Linux tells since 6.5")
def test_what_was_read_is_in_memory_and_nothing_else(fd: int) -> None:
    assert not is_in_memory(fd, 0, 1)
    os.pread(fd, MIB, MIB)
    assert is_in_memory(fd, MIB, MIB)
    assert is_in_memory(fd, MIB + 4097, 5)
    assert not is_in_memory(fd, MIB - 1, 2)
    assert not is_in_memory(fd, MIB, MIB + 1)


def test_what_is_not_there_is_not_in_memory(fd: int) -> None:
    os.pread(fd, MIB, 4 * MIB)
    assert is_in_memory(fd, 4 * MIB, 10) == kernel_tells()
    assert not is_in_memory(fd, 4 * MIB, 11)
    assert not is_in_memory(fd, 5 * MIB, 1)
