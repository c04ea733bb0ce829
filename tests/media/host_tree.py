"""A host's /sys, /proc and /dev as a tree of files, with as much in it as the block tree reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path


class HostTree:
    """Block devices, mounts and swap of a host that does not exist. Numbers: "8:1"."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._mounts: list[str] = []
        self._swaps = ["Filename Type Size Used Priority"]
        for folder in ("sys/class/block", "sys/dev/block", "dev", "proc/self"):
            (root / folder).mkdir(parents=True)
        self._write_tables()

    def disk(
        self,
        name: str,
        number: str,
        *,
        slaves: Sequence[str] = (),
        backing: str = "",
        bus: str = "pci0000:00/0000:00:1f.2/ata1",
        size: int = 1 << 30,
        sector_size: int = 512,
        read_only: bool = False,
        facts: Mapping[str, str] | None = None,
    ) -> None:
        """A whole disk. slaves: what it is built on; backing: of a loop device.

        facts: further files and what is in them.
        """
        folder = self.root / "sys/devices" / bus / "block" / name
        self._device(folder, name, number, size, read_only=read_only)
        self._file(folder / "queue/logical_block_size", f"{sector_size}\n")
        for slave in slaves:
            self._link(folder / "slaves" / slave, self._folder_of(slave))
        if backing:
            self._file(folder / "loop/backing_file", f"{backing}\n")
        for fact, value in (facts or {}).items():
            self._file(folder / fact, f"{value}\n")

    def partition(self, disk: str, name: str, number: str, *, size: int = 1 << 29) -> None:
        folder = self._folder_of(disk) / name
        self._device(folder, name, number, size)
        self._file(folder / "partition", "1\n")

    def mount(self, point: str, number: str, kind: str = "ext4", source: str = "/dev/root") -> None:
        point = point.replace(" ", "\\040")
        line = f"{30 + len(self._mounts)} 1 {number} / {point} rw shared:1 - {kind} {source} rw"
        self._mounts.append(line)
        self._write_tables()

    def swap(self, path: str) -> None:
        self._swaps.append(f"{path} partition 1 0 -2")
        self._write_tables()

    def btrfs(self, *members: str) -> None:
        for member in members:
            self._link(self.root / "sys/fs/btrfs/uuid/devices" / member, self._folder_of(member))

    def link(self, path: str, target: str) -> None:
        """A symbolic link below /dev."""
        self._link(self.root / path.lstrip("/"), self.root / target.lstrip("/"))

    def _device(
        self, folder: Path, name: str, number: str, size: int, *, read_only: bool = False
    ) -> None:
        self._file(folder / "size", f"{size // 512}\n")
        self._file(folder / "ro", f"{int(read_only)}\n")
        self._link(self.root / "sys/class/block" / name, folder)
        self._link(self.root / "sys/dev/block" / number, folder)
        self._file(self.root / "dev" / name, "")

    def _folder_of(self, name: str) -> Path:
        return (self.root / "sys/class/block" / name).resolve()

    def _write_tables(self) -> None:
        self._file(self.root / "proc/self/mountinfo", "\n".join([*self._mounts, ""]))
        self._file(self.root / "proc/swaps", "\n".join([*self._swaps, ""]))

    @staticmethod
    def _file(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @staticmethod
    def _link(path: Path, target: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
