"""What stands on a block device: every mounted file system and swap area, down to whole disks.

`survey/block_devices.py` climbs from a device to what the kernel calls its holders. That is not
enough before something is overwritten: a loop device holds nothing of what it stands on, nor does
a disk learn what its partitions' sisters are for. Here it is the other way round: from each mount
down through partitions, device mapper, RAID and loop devices, marking all on the way.

Everything is read below `root`, so that a tree of files can stand for a host. Sources: proc(5) on
`/proc/self/mountinfo` and `/proc/swaps`; Linux `Documentation/ABI/stable/sysfs-block` on
`partition` and `slaves`, `drivers/block/loop.c` on `backing_file`, `fs/btrfs/sysfs.c` on `devices`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from packer.survey.block_devices import Mount, backing_file, mounts, swap_places

_ANONYMOUS = "0:"
"""Device numbers of file systems that lie on no device, or on several."""


class BlockTree:
    """The block devices of a host, as the kernel shows them now."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._class = root / "sys/class/block"
        self._mounts = mounts(root)
        self._uses: dict[str, set[str]] = {}
        for mount in self._mounts:
            for name in self._devices_of(mount):
                self._mark(name, mount.point)
        for place in swap_places(root):
            self.mark(Path(place), f"swap ({place})")

    def mark(self, path: Path, use: str) -> None:
        """Count a file, a folder or a device as a use of all that it stands on."""
        for name in self._devices_at(str(path)):
            self._mark(name, use)

    def uses_of(self, name: str) -> list[str]:
        """Return mount points, swap areas ("swap (/dev/sda3)") and what else stands on a device.

        name: as the kernel has it ("sda", "dm-0"). A whole disk carries what its partitions do.
        """
        return sorted(self._uses.get(name, ()))

    def whole_disk(self, name: str) -> str:
        """Return the disk that a partition is a part of; of anything else, itself."""
        folder = (self._class / name).resolve()
        return folder.parent.name if (folder / "partition").exists() else name

    def files_below(self, name: str) -> list[Path]:
        """Return the files that a device stands on, as loop devices do."""
        folders = [(self._class / one).resolve() for one in self._with_all_below(name)]
        files = filter(None, map(backing_file, folders))
        return sorted(Path(file) for file in files if not self._node(self._root / file.lstrip("/")))

    def name_of(self, number: str) -> str:
        """Return the kernel's name of a device number ("8:16"), "" if there is none."""
        folder = self._root / "sys/dev/block" / number
        return folder.resolve().name if folder.exists() else ""

    def _mark(self, name: str, use: str) -> None:
        for one in self._with_all_below(name):
            self._uses.setdefault(one, set()).add(use)

    def _with_all_below(self, name: str) -> set[str]:
        found: set[str] = set()
        waiting = [name]
        while waiting:
            one = waiting.pop()
            if one not in found:  # a loop device may stand on a file system on itself
                found.add(one)
                waiting += self._below(one)
        return found

    def _below(self, name: str) -> list[str]:
        """Return the devices that a device stands on directly."""
        folder = (self._class / name).resolve()
        whole = self.whole_disk(name)
        found = [whole] if whole != name else []
        found += _names(folder / "slaves")
        backing = backing_file(folder)
        return found + self._devices_at(backing) if backing else found

    def _devices_at(self, path: str) -> list[str]:
        """Return the device that a path names, or those that hold the file at that path."""
        node = self._root / path.lstrip("/")
        name = self._node(node)
        if name:
            return [name]
        mount = self._mount_of(path)
        return self._devices_of(mount) if mount else []

    def _node(self, node: Path) -> str:
        """Return the kernel's name of a device node, or of a link to one; "" for anything else."""
        try:
            status = node.stat()
        except OSError:
            status = None
        if status is not None and stat.S_ISBLK(status.st_mode):
            return self.name_of(f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")
        place = node.resolve()
        is_node = place.is_relative_to((self._root / "dev").resolve())
        return place.name if is_node and (self._class / place.name).exists() else ""

    def _devices_of(self, mount: Mount) -> list[str]:
        name = "" if mount.number.startswith(_ANONYMOUS) else self.name_of(mount.number)
        if not name and mount.source.startswith("/dev/"):
            name = self._node(self._root / mount.source.lstrip("/"))
        if not name:
            return []
        return self._all_of_btrfs(name) if mount.type == "btrfs" else [name]

    def _all_of_btrfs(self, name: str) -> list[str]:
        """Return all devices of the btrfs that one of them belongs to."""
        for folder in (self._root / "sys/fs/btrfs").glob("*/devices"):
            members = _names(folder)
            if name in members:
                return members
        return [name]

    def _mount_of(self, path: str) -> Mount | None:
        """Return the mount with the longest path above; of several, the last covers the others."""
        above = [one for one in self._mounts if _is_below(path, one.point)]
        longest = max((len(one.point) for one in above), default=0)
        return next((one for one in reversed(above) if len(one.point) == longest), None)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:  # the kernel does not say
        return []


def _is_below(path: str, point: str) -> bool:
    return point == "/" or path == point or path.startswith(f"{point}/")
