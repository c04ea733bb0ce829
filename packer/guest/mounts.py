"""Which volume of a guest is mounted where."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from packer.guest.fstab import Entry, volume_of
from packer.survey.model import Survey, Volume

# UEFI Specification 2.10, section 5.3.3; "ef": MBR system id of the same (section 5.2.2).
ESP_TYPES = frozenset({"c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "ef"})
# Discoverable Partitions Specification (uapi-group.org): what systemd mounts without an fstab.
_MOUNTED_BY_TYPE = {
    "bc13c2ff-59e6-4262-a352-b275fd6f7172": "/boot",
    "933ac7e1-2eb4-4f13-b844-0e14e2aef915": "/home",
    "3b8f8425-20e0-4f3b-907f-1a25a76f98e8": "/srv",
}
# Names that only a Linux root has, the best proof first.
_ROOT_MARKERS = (
    ("/etc/os-release", "/usr/lib/os-release"),
    ("/etc/fstab",),
    ("/sbin/init", "/usr/sbin/init", "/bin/busybox", "/init"),
)
_BOOT_FOLDERS = ("/grub/", "/grub2/", "/loader/entries/", "/extlinux/", "/syslinux/")
_KERNEL_PREFIXES = ("/vmlinuz", "/vmlinux")


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume (row of the survey) and the guest path where it is mounted ("/boot")."""

    path: str
    volume: int


def volume_name(volume: Volume) -> str:
    """Return what to call a volume when talking to people."""
    return f"partition {volume.number}" if volume.number else "the disk"


def is_esp(survey: Survey, row: int) -> bool:
    """Return whether a volume is an EFI system partition with a file system we can read."""
    volume = survey.volumes[row]
    return volume.partition_type in ESP_TYPES and volume.kind == "vfat"


def find_mounts(
    survey: Survey, root: int | None, entries: Iterable[Entry] = ()
) -> tuple[Mount, ...]:
    """Return where the guest mounts the volumes of this disk, the longest path first.

    Its fstab says so; without one (or without a root: an encrypted guest still has a readable
    /boot) the types of partitions and the names in volumes do.
    """
    taken: dict[str, int] = {} if root is None else {"/": root}
    for entry in entries:
        row = volume_of(entry.spec, survey) if entry.path.startswith("/") else None
        if row is not None and row not in taken.values():
            taken.setdefault(entry.path, row)
    for row in range(len(survey.volumes)):
        place = "" if row in taken.values() else _usual_place(survey, row)
        if place:
            taken.setdefault(place, row)
    mounts = (Mount(path, row) for path, row in taken.items())
    return tuple(sorted(mounts, key=lambda mount: (-len(mount.path), mount.path)))


def find_roots(survey: Survey) -> list[int]:
    """Return the volumes that hold a Linux root, equally certain, in their order on disk."""
    wanted = {marker: rank for rank, group in enumerate(_ROOT_MARKERS) for marker in group}
    best: dict[int, int] = {}
    for row, name in enumerate(survey.name):
        if name in wanted:
            volume = int(survey.volume[survey.name_stream[row]])
            best[volume] = min(wanted[name], best.get(volume, len(_ROOT_MARKERS)))
    for volume, name, _ in survey.symlinks:
        if name in wanted:
            best[volume] = min(wanted[name], best.get(volume, len(_ROOT_MARKERS)))
    return sorted(volume for volume in best if best[volume] == min(best.values()))


def _usual_place(survey: Survey, row: int) -> str:
    if is_esp(survey, row):
        return "/boot/efi"
    by_type = _MOUNTED_BY_TYPE.get(survey.volumes[row].partition_type, "")
    if by_type:
        return by_type
    for name_row in (survey.volume[survey.name_stream] == row).nonzero()[0].tolist():
        name = survey.name[name_row]
        if name.startswith(_BOOT_FOLDERS) or name.startswith(_KERNEL_PREFIXES):
            return "/boot"
    return ""
