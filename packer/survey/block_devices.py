"""What the kernel does with a block device: mounts, swap, and devices built on top of it.

Sources: proc(5) on `/proc/self/mountinfo` and `/proc/swaps`; Linux
`Documentation/ABI/stable/sysfs-block` on `holders`, `partition` and `stat`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

_CLASS = Path("/sys/class/block")
_ESCAPE = re.compile(r"\\([0-7]{3})")
_DELETED = " (deleted)"


@dataclass(frozen=True, slots=True)
class Mount:
    """number: "8:1"; point: where it is mounted; type: "ext4"; source: "/dev/sda1"."""

    number: str
    point: str
    type: str
    source: str


def kernel_text(path: str | Path) -> str:
    """Return a file of /proc or /sys; names in it are bytes, and may be no UTF-8."""
    return os.fsdecode(Path(path).read_bytes())


def mounts(root: Path = Path("/")) -> list[Mount]:
    """Return what is mounted in this process's namespace. root: below which `proc` lies."""
    found = []
    for line in filter(None, kernel_text(root / "proc/self/mountinfo").split("\n")):
        # 36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/root rw,errors=continue
        before, _, after = line.partition(" - ")
        fields, behind = before.split(" "), after.split(" ")
        found.append(Mount(fields[2], unescaped(fields[4]), behind[0], unescaped(behind[1])))
    return found


def swap_places(root: Path = Path("/")) -> list[str]:
    """Return the files and devices that this host swaps to."""
    lines = filter(None, kernel_text(root / "proc/swaps").split("\n")[1:])
    return [unescaped(line.split()[0]).removesuffix(_DELETED) for line in lines]


def backing_file(folder: Path) -> str:
    """Return what the loop device of a folder in /sys shows, "" for any other device."""
    try:
        text = kernel_text(folder / "loop" / "backing_file")
    except OSError:
        return ""
    return text.rstrip("\n").removesuffix(_DELETED)


def overlapping_devices(device: int) -> dict[int, str]:
    """Return number and kernel name of what shares bytes with a block device, itself among them.

    Its partitions, the disk that it is a part of, and all that is built on them. Numbers are such
    as `st_rdev` has.
    """
    folder = Path(f"/sys/dev/block/{_pair(device)}").resolve()
    names = related_devices(folder.name)
    if (folder / "partition").exists():
        names.add(folder.parent.name)
    numbers = {name: _number(name).split(":") for name in names}
    return {device: folder.name} | {
        os.makedev(int(pair[0]), int(pair[1])): name
        for name, pair in numbers.items()
        if len(pair) == 2
    }


def related_devices(name: str) -> set[str]:
    """Return the kernel names of a block device, its partitions, and all that is built on them."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        one = waiting.pop()
        if one in found:
            continue
        found.add(one)
        folder = (_CLASS / one).resolve()
        try:
            waiting += [entry.name for entry in folder.iterdir() if (entry / "partition").exists()]
            waiting += [entry.name for entry in (folder / "holders").iterdir()]
        except OSError:  # it is gone, or the kernel does not say
            continue
    return found


def mounts_of(devices: Set[str]) -> list[str]:
    """Return the mount points of the given devices in this process's namespace."""
    numbers = set(filter(None, map(_number, devices)))
    nodes = {f"/dev/{name}" for name in devices}
    # btrfs has a number of its own, and is known by its source only
    found = {one.point for one in mounts() if one.number in numbers or one.source in nodes}
    return sorted(found)


def swaps_of(status: os.stat_result, devices: Set[str] = frozenset()) -> list[str]:
    """Return a clause for each active swap area in the given file or on the given devices."""
    found = []
    for place in swap_places():
        try:
            other = Path(place).stat()
        except OSError:
            continue
        if stat.S_ISBLK(other.st_mode):
            name = Path(f"/sys/dev/block/{_pair(other.st_rdev)}").resolve().name
            hit = name in devices
        else:
            hit = (other.st_dev, other.st_ino) == (status.st_dev, status.st_ino)
        if hit:
            found.append(f"this host swaps to {place}")
    return found


def sectors_written(device: int) -> int:
    """Return how many sectors were written to a block device since it appeared; 0 if unknown.

    device: its number, as `st_rdev` has it.
    """
    try:
        fields = kernel_text(f"/sys/dev/block/{_pair(device)}/stat").split()
    except OSError:
        return 0
    return int(fields[6])  # write sectors


def unescaped(text: str) -> str:
    """Return a field of a file in /proc with its octal escapes (space, tab, newline) resolved."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def _number(name: str) -> str:
    try:
        return kernel_text(_CLASS / name / "dev").strip()
    except OSError:
        return ""


def _pair(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"
