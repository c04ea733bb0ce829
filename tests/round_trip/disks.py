"""Compare, damage and mount disks; knows nothing of vmpack's map."""

from __future__ import annotations

import hashlib
import os
import random
import stat
import subprocess
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fixtures.guests.workshop import SEARCH_PATH
from fixtures.loop_devices import loop_device

Range = tuple[int, int]
CHUNK = 1 << 20
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="loop devices and mounts need root")


def tool(*command: str | Path) -> str:
    """What a program printed; it must succeed."""
    done = subprocess.run(
        [str(word) for word in command],
        env={**os.environ, "PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    text = done.stdout.decode(errors="replace")
    assert done.returncode == 0, f"{command}: {done.stderr.decode(errors='replace')}{text}"
    return text


def copy_sparse(source: Path, target: Path) -> Path:
    tool("cp", "--sparse=always", "--reflink=auto", source, target)
    return target


def data_ranges(path: Path) -> list[Range]:
    """The parts of a file that are not holes."""
    found = []
    with path.open("rb") as file:
        position, size = 0, path.stat().st_size
        while position < size:
            try:
                start = os.lseek(file.fileno(), position, os.SEEK_DATA)
            except OSError:
                break
            position = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, position))
    return found


def joined(ranges: Sequence[Sequence[int]]) -> list[Range]:
    """Ranges sorted, neighbours and overlaps made one."""
    found: list[Range] = []
    for start, end in sorted((int(one[0]), int(one[1])) for one in ranges):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        elif start < end:
            found.append((start, end))
    return found


def not_within(ranges: Sequence[Sequence[int]], allowed: Sequence[Range]) -> list[Range]:
    """Those ranges that do not lie inside the union of the allowed ones."""
    union = joined(allowed)
    starts = [start for start, _ in union]
    outside = []
    for start, end in joined(ranges):
        row = bisect_right(starts, start) - 1
        if row < 0 or union[row][1] < end:
            outside.append((start, end))
    return outside


def differences(
    left: Path, right: Path, ignored: Sequence[Sequence[int]] = (), most: int = 20
) -> list[int]:
    """Offsets at which two disks differ outside the ignored ranges, the first few of each MiB."""
    assert left.stat().st_size == right.stat().st_size
    chunks = sorted(
        {
            chunk
            for start, end in data_ranges(left) + data_ranges(right)
            for chunk in range(start // CHUNK, -(-end // CHUNK))
        }
    )
    passed_over = np.array(joined(ignored), dtype=np.int64).reshape(-1, 2)
    found: list[int] = []
    with left.open("rb") as one, right.open("rb") as other:
        for chunk in chunks:
            start = chunk * CHUNK
            a, b = os.pread(one.fileno(), CHUNK, start), os.pread(other.fileno(), CHUNK, start)
            if a == b:
                continue
            differ = np.frombuffer(a, np.uint8) != np.frombuffer(b, np.uint8)
            _clear(differ, start, passed_over)
            found.extend((start + np.flatnonzero(differ)[:most]).tolist())
            if len(found) >= most:
                break
    return found


def _clear(differ: NDArray[np.bool_], start: int, ignored: NDArray[np.int64]) -> None:
    first = int(np.searchsorted(ignored[:, 1], start, side="right"))
    last = int(np.searchsorted(ignored[:, 0], start + len(differ), side="left"))
    for low, high in (ignored[first:last] - start).tolist():
        differ[max(0, low) : max(0, high)] = False


def filled(path: Path, ranges: Sequence[Sequence[int]]) -> list[int]:
    """Offsets of 4 KiB pieces inside the ranges that hold anything but zeros, the first few."""
    found: list[int] = []
    with path.open("rb") as file:
        for start, end in ranges:
            for position in range(start, end, CHUNK):
                data = os.pread(file.fileno(), min(CHUNK, end - position), position)
                if data.strip(b"\0"):
                    found.append(position)
            if len(found) > 20:
                break
    return found


def write_noise(path: Path, ranges: Sequence[Sequence[int]], *, seed: int) -> int:
    """Overwrite the ranges, every byte of them, with noise; return how many bytes those are."""
    noise = random.Random(seed).randbytes(CHUNK)
    written = 0
    with path.open("r+b") as file:
        for start, end in joined(ranges):
            for low in range(start, end, CHUNK):
                data = noise[: end - low]
                assert os.pwrite(file.fileno(), data, low) == len(data)
                written += len(data)
    return written


def check_ext4(image: Path, offset: int) -> None:
    """e2fsck finds nothing to do."""
    tool("e2fsck", "-f", "-n", f"{image}?offset={offset}")


@contextmanager
def mounted(image: Path, part: Range, folder: Path) -> Iterator[Path]:
    """A partition of an image, mounted read-only by the kernel."""
    # Not mount's own loop option: it refuses an image that another test has mounted as well.
    window = ("--offset", str(part[0]), "--sizelimit", str(part[1] - part[0]))
    with loop_device(image, "--read-only", *window) as device:
        folder.mkdir()
        tool("mount", "-o", "ro", device, folder)
        try:
            yield folder
        finally:
            tool("umount", folder)


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder as a guest sees it: kind, mode, owner, data, attributes, times."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in [".", *folders, *files]:
            path = Path(folder, name)
            found[str(path.relative_to(root))] = _entry(path)
    return found


def _entry(path: Path) -> tuple[object, ...]:
    facts = path.lstat()
    data: bytes | Path = b""
    if stat.S_ISREG(facts.st_mode):
        with path.open("rb") as file:
            data = hashlib.file_digest(file, "sha256").digest()
    elif stat.S_ISLNK(facts.st_mode):
        data = path.readlink()
    attributes = {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in os.listxattr(path, follow_symlinks=False)
    }
    return (
        *(facts.st_mode, facts.st_uid, facts.st_gid, facts.st_size, facts.st_rdev),
        *(facts.st_nlink, facts.st_mtime_ns, facts.st_ino, data, attributes),
    )
