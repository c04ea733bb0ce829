"""The boot set of a Linux guest: what firmware, boot loader and kernel read by themselves.

Nothing can supply these bytes to them later, so every copy of a pack carries them. What lies at
absolute addresses (boot code, GRUB's core, partition tables) is in no stream and always kept.
The set is generous: a font too many costs kilobytes, a kernel too few costs the boot.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from packer.guest.boot_config import (
    CONFIGURATION,
    DEVICE_TREE,
    INITRAMFS,
    KERNEL,
    LOADER,
    find_configs,
    named_files,
)
from packer.guest.mounts import is_esp
from packer.guest.tree import Tree

ESP = "ESP"
BOOT_PARTITION = "boot partition"
BOOT_REASONS = (ESP, BOOT_PARTITION, CONFIGURATION, LOADER, KERNEL, INITRAMFS, DEVICE_TREE)

_WITH_KERNEL = (ESP, BOOT_PARTITION, KERNEL)

# What a kernel package and its initramfs are called when no configuration names them.
_FALLBACK = (
    ("vmlinuz*", KERNEL),
    ("initrd*", INITRAMFS),
    ("initramfs*", INITRAMFS),
    ("*.img", INITRAMFS),
    ("config-*", KERNEL),
    ("System.map*", KERNEL),
)
# Second stages of SYSLINUX and EXTLINUX: boot code has their absolute sectors, and they read
# their modules from the folder they lie in.
_SYSLINUX_STAGES = ("/ldlinux.sys", "/extlinux.sys")


class BootSet:
    """Which streams are needed to boot, each with the first reason that was found."""

    def __init__(self, streams: int) -> None:
        self.reason: NDArray[np.int64] = np.full(streams, -1, dtype=np.int64)

    def add(self, stream: int | None, reason: str) -> None:
        """Put a stream into the set; without stream or reason, or twice, changes nothing."""
        if stream is not None and reason and self.reason[stream] < 0:
            self.reason[stream] = BOOT_REASONS.index(reason)

    def add_all(self, streams: Iterable[int], reason: str) -> None:
        """Put several streams into the set."""
        for stream in streams:
            self.add(stream, reason)


def find_boot_set(tree: Tree) -> NDArray[np.int64]:
    """Return for each stream its row in BOOT_REASONS, or -1: int64[n].

    A stream is one file with all its names: if any name is in the set, the stream is.
    """
    found = BootSet(len(tree.survey.inode))
    _add_fat_volumes(tree, found)
    configs = find_configs(tree)
    found.add_all((config.stream for config in configs), CONFIGURATION)
    for stream, reason in named_files(tree, configs):
        found.add(stream, reason)
    _add_boot_folder(tree, found)
    _add_links(tree, found)
    _add_syslinux_folders(tree, found)
    if not np.isin(found.reason, [BOOT_REASONS.index(one) for one in _WITH_KERNEL]).any():
        tree.warn(
            "no kernel was found: a copy of this pack that carries only what is needed to boot"
            " will not boot"
        )
    return found.reason


def _add_fat_volumes(tree: Tree, found: BootSet) -> None:
    """Add ESPs, and FAT volumes below /boot: firmware of small boards reads these by itself."""
    survey = tree.survey
    mounted = {mount.volume: mount.path for mount in tree.mounts}
    for row, volume in enumerate(survey.volumes):
        if is_esp(survey, row):
            found.reason[survey.volume == row] = BOOT_REASONS.index(ESP)
        elif volume.kind == "vfat" and (mounted.get(row, "") + "/").startswith("/boot/"):
            found.reason[survey.volume == row] = BOOT_REASONS.index(BOOT_PARTITION)


def _add_syslinux_folders(tree: Tree, found: BootSet) -> None:
    survey = tree.survey
    volumes = survey.volume[survey.name_stream].tolist()
    folders = {
        (volumes[row], name.rpartition("/")[0])
        for row, name in enumerate(survey.name)
        if name.endswith(_SYSLINUX_STAGES)
    }
    if not folders:
        return
    for row, name in enumerate(survey.name):
        if (volumes[row], name.rpartition("/")[0]) in folders:
            found.add(int(survey.name_stream[row]), LOADER)


def _add_boot_folder(tree: Tree, found: BootSet) -> None:
    for path, stream in tree.below("/boot"):
        inside = path.removeprefix("/boot/")
        if inside.startswith("loader/") or inside.endswith("/grubenv"):
            found.add(stream, CONFIGURATION)
        elif inside.startswith("grub") and "/" in inside:
            found.add(stream, LOADER)
        elif "/" not in inside:
            found.add(stream, _fallback_reason(inside))


def _add_links(tree: Tree, found: BootSet) -> None:
    """Add what links like /vmlinuz lead to: LILO, old fstabs and people use them."""
    for folder in ("/", "/boot"):
        for path in tree.links_below(folder):
            reason = _fallback_reason(path.rpartition("/")[2])
            if reason:
                found.add(tree.stream_of(path), reason)


def _fallback_reason(name: str) -> str:
    return next((reason for pattern, reason in _FALLBACK if fnmatchcase(name, pattern)), "")
