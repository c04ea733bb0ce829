"""File systems that share blocks, disks that were built apart, and what both of them hold."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fixtures.loop_devices import loop_device
from tests.host import run
from tests.round_trip.disks import mounted
from tests.round_trip.small import make_disk, write_files

MIB = 1 << 20
BLOCK = 4096
END_S = 30.0
XFS = ("mkfs.xfs", "-q", "-m", "reflink=1")
BTRFS = ("mkfs.btrfs", "-q")


@contextmanager
def sharing(folder: Path, size_mib: int, maker: Sequence[str] = XFS) -> Iterator[Path]:
    """A new file system of that size, mounted below a folder."""
    image, point = folder / f"{maker[0]}.img", folder / maker[0]
    with image.open("wb") as file:
        file.truncate(size_mib * MIB)
    run(*maker, image)
    with loop_device(image) as device:
        point.mkdir(exist_ok=True)
        run("mount", device, point)
        try:
            yield point
        finally:
            _unmount(point)
    image.unlink()


def _unmount(point: Path) -> None:
    """Servers and supervisors of VMs that were told to end may take a moment for it."""
    deadline = time.monotonic() + END_S
    while (done := _umount(point)).returncode:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.2)


def _umount(point: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["umount", str(point)], check=False, capture_output=True, text=True)


def used_bytes(point: Path) -> int:
    """What a mounted file system says is in use."""
    os.sync()
    facts = os.statvfs(point)
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


def built_apart(folder: Path, name: str, *, seed: int, size_mib: int = 64) -> Path:
    """A disk with files that all such disks have, and others that nobody has, which come first and
    leave no file where another disk has it.
    """
    files = folder / f"{name}-files"
    chance = random.Random(seed)
    own = files / "alone"
    own.mkdir(parents=True)
    for number in range(3 + seed):
        (own / f"{number}").write_bytes(chance.randbytes(chance.randrange(300_000)))
    write_files(files, seed=1000, big=6, small=60)
    # Equally long, at the same path, and different.
    (files / "srv" / "differs").write_bytes(chance.randbytes(70_000))
    # Equal, at another path; the second one twice on this disk.
    moved = random.Random(2000)
    (files / "srv" / f"moved-{seed}").write_bytes(moved.randbytes(500_000))
    (files / "srv" / "twice-1").write_bytes(moved.randbytes(300_000))
    (files / "srv" / "twice-2").write_bytes((files / "srv" / "twice-1").read_bytes())
    return make_disk(folder / f"{name}.raw", files, size_mib=size_mib)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def allowed_bytes(disks: Sequence[tuple[Path, tuple[int, int]]], folder: Path) -> int:
    """How many bytes of blocks equal files of several file systems allow to be gained: all but
    the first of each, as the kernel and hashlib see them. disks: image and its partition.
    """
    copies: dict[tuple[int, str], int] = {}
    for number, (image, part) in enumerate(disks):
        with mounted(image, part, folder / f"mounted-{number}") as root:
            for key in _files(root):
                copies[key] = copies.get(key, 0) + 1
    return sum((count - 1) * -(-size // BLOCK) * BLOCK for (size, _), count in copies.items())


def _files(root: Path) -> Iterator[tuple[int, str]]:
    seen: set[int] = set()
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            facts = path.lstat()
            if path.is_symlink() or not path.is_file() or facts.st_ino in seen:
                continue
            seen.add(facts.st_ino)
            if 0 < facts.st_size <= facts.st_blocks * 512:  # what is sparse is counted by nobody
                yield facts.st_size, digest(path)
