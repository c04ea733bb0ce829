"""What the kernel does with a block device: mounts, swap, and devices built on top of it.

Sources: proc(5) on `/proc/self/mountinfo` and `/proc/swaps`; Linux
`Documentation/ABI/stable/sysfs-block` on `holders`, `partition` and `stat`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Set
from pathlib import Path

_CLASS = Path("/sys/class/block")
_ESCAPE = re.compile(r"\\([0-7]{3})")


def kernel_text(path: str | Path) -> str:
    """Return a file of /proc or /sys; names in it are bytes, and may be no UTF-8."""
    return os.fsdecode(Path(path).read_bytes())


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
    found = []
    for line in kernel_text("/proc/self/mountinfo").rstrip("\n").split("\n"):
        # 36 35 98:0 /root /mnt rw,noatime master:1 - ext4 /dev/root rw,errors=continue
        before, _, after = line.partition(" - ")
        fields, behind = before.split(" "), after.split(" ")
        # btrfs has a number of its own, and is known by its source only
        if fields[2] in numbers or unescaped(behind[1]) in nodes:
            found.append(unescaped(fields[4]))
    return sorted(set(found))


def swaps_of(status: os.stat_result, devices: Set[str] = frozenset()) -> list[str]:
    """Return a clause for each active swap area in the given file or on the given devices."""
    found = []
    for line in kernel_text("/proc/swaps").rstrip("\n").split("\n")[1:]:
        place = unescaped(line.split()[0])
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
