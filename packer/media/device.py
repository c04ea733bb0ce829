"""What a disk can be written to: a block device, an image file that is there, or a new one.

Nothing here writes. What must never be overwritten is refused, whoever agrees to it: the disk
that this host runs from, what is mounted, what another program uses.
"""

from __future__ import annotations

import os
import shlex
import stat
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from formats.container.detect import detect
from formats.source import FileSource
from packer.artifact.layout.open import is_layout
from packer.errors import Error, InUseError, UsageError
from packer.media.block_tree import BlockTree
from packer.survey.block_devices import kernel_text
from packer.survey.child import clean_text
from packer.survey.in_use import refuse_if_replaced_under_somebody
from packer.text import format_bytes

_SECTOR_BYTES = 512
"""The unit of `size` in sysfs, whatever the device's own sectors are."""

_SERIAL_NUMBERS = ("diskseq", "device/serial", "device/wwid", "device/cid", "wwid")
"""Where sysfs may tell one medium from another; sticks often have none of the maker's."""

_SYSTEM_POINTS = frozenset(("/", "/boot", "/boot/efi", "/efi", "/usr", "/var"))
_SYSTEM_HINT = "nothing overrides this: name another device (lsblk shows what there is)"


@dataclass(frozen=True, slots=True)
class Device:
    """Where a disk is to go, as it was found; two of them are equal only if nothing has changed.

    path: without symbolic links. name: what a person calls it, "sdb" or "disk.img". size: bytes; 0
    for a file that is not there yet. sector_size: logical sector in bytes; 0 for a file, which
    has none. model: "SanDisk Ultra", "" if unknown. is_new: a file that is not there yet.
    number: of a block device, "8:16"; "" for a file. part_of: the disk that a partition is one of,
    "sdb". identity: what another medium, or a file that was put in its place, would have otherwise.
    """

    path: Path
    name: str
    size: int
    sector_size: int = 0
    model: str = ""
    removable: bool = False
    usb: bool = False
    is_new: bool = False
    number: str = ""
    part_of: str = ""
    identity: str = ""

    @property
    def is_block_device(self) -> bool:
        """Whether it is a block device."""
        return bool(self.number)


def look_at(path: str | Path) -> Device:
    """Return what a path leads to; symbolic links (`/dev/disk/by-id/…`) are followed.

    Raises UsageError for what is neither a block device nor a regular file, and for a device that
    is not there.
    """
    try:
        place = Path(path).resolve()
        status = place.stat()
    except FileNotFoundError:
        return _new_file(place)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise UsageError(f"{path}: cannot be looked at: {error}") from error
    if stat.S_ISBLK(status.st_mode):
        number = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
        return block_device(place, number)
    if stat.S_ISREG(status.st_mode):
        identity = f"{status.st_dev}:{status.st_ino}"
        return Device(place, place.name, status.st_size, identity=identity)
    raise UsageError(f"{path}: is neither a block device nor a disk image")


def block_device(path: Path, number: str, root: Path = Path("/")) -> Device:
    """Return what the kernel says about a block device.

    number: "8:16". root: below which `sys` lies. Raises UsageError when it knows no such device
    or it holds no medium.
    """
    try:
        folder = (root / "sys/dev/block" / number).resolve(strict=True)
        disk = folder.parent if (folder / "partition").exists() else folder
        size = int(kernel_text(folder / "size")) * _SECTOR_BYTES
        sector_size = int(kernel_text(disk / "queue/logical_block_size"))
        if kernel_text(folder / "ro").strip() == "1":
            raise UsageError(
                f"{path}: is write-protected", hint="look for a switch on the medium or its adapter"
            )
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: the kernel does not know this device: {error}") from error
    if size == 0:
        raise UsageError(f"{path}: holds no medium", hint="put one in")
    return Device(
        path,
        folder.name,
        size,
        sector_size,
        _model(disk),
        _fact(disk / "removable") == "1",
        any(part.startswith("usb") for part in disk.parts),
        number=number,
        part_of=disk.name if disk != folder else "",
        identity=_identity(disk),
    )


def refuse_if_unfit(device: Device, disk_bytes: int, sector_size: int) -> None:
    """Raise UsageError when a disk of that size, with sectors of that size, does not go there."""
    if not device.is_new and device.size < disk_bytes:
        raise UsageError(
            f"{device.path}: too small: the disk has {disk_bytes:,} bytes "
            f"({format_bytes(disk_bytes)}), this {device.size:,} ({format_bytes(device.size)})",
            hint="name a larger one; nothing was written",
        )
    if device.sector_size and device.sector_size != sector_size:
        raise UsageError(
            f"{device.path}: expected sectors of {sector_size} bytes, as the pack's disk has them, "
            f"found {device.sector_size}: its partition table would mean other places there",
            hint="name a device with such sectors, or an image file",
        )
    if not device.is_new and not device.is_block_device:
        _refuse_container(device.path)
        if is_layout(device.path):
            raise UsageError(
                f"{device.path}: is a pack, not a disk image",
                hint="name another file, or delete this one first",
            )


def refuse_if_needed(
    device: Device, kept: Sequence[tuple[Path, str]], tree: BlockTree | None = None
) -> None:
    """Raise InUseError when anything on the device is used; nothing overrides that.

    kept: (path, what it is) of files, folders and devices that must not be lost ("the store").
    """
    if device.is_new:
        return
    if device.is_block_device:
        running = (Path(sys.prefix).resolve(), "vmpack")
        try:
            _refuse_system_disk(device, [*kept, running], tree or BlockTree())
        except OSError as error:
            raise Error(f"{device.path}: what is mounted cannot be told: {error}") from error
    else:
        _refuse_kept_file(device, kept)
    _refuse_used(device)


def _new_file(place: Path) -> Device:
    if place.is_relative_to("/dev") and not place.is_relative_to("/dev/shm"):
        raise UsageError(f"{place}: there is no such device", hint="lsblk shows those there are")
    if not place.parent.is_dir():
        raise UsageError(f"{place}: there is no folder {place.parent}")
    return Device(place, place.name, 0, is_new=True)


def _refuse_container(path: Path) -> None:
    try:
        with FileSource(path) as file:
            container = detect(file)
    except OSError as error:
        raise Error(f"{path}: cannot be read: {error.strerror or error}") from error
    if container != "raw":
        raise UsageError(
            f"{path}: is a {container} image; the raw disk would not fit into it",
            hint=f"vmpack unpack --format {container} --force replaces it",
        )


def _refuse_system_disk(device: Device, kept: Sequence[tuple[Path, str]], tree: BlockTree) -> None:
    name = tree.name_of(device.number) or device.name
    whole = tree.whole_disk(name)
    mounted = tree.uses_of(name)
    for path, what in kept:
        tree.mark(path, what)
    uses, needed = tree.uses_of(whole), {what for _, what in kept}
    system = [use for use in uses if use in _SYSTEM_POINTS or use.startswith("swap (")]
    system = system or [use for use in uses if use in needed]
    if system:
        part = f"a part of /dev/{whole}, " if whole != name else ""
        raise InUseError(
            clean_text(
                f"{device.path}: is {part}a disk that this host runs from; it holds "
                f"{', '.join(system)}"
            ),
            hint=_SYSTEM_HINT,
        )
    if mounted:
        raise InUseError(
            clean_text(f"{device.path}: is mounted at {', '.join(mounted)}"),
            hint=clean_text(f"unmount it first: umount {shlex.join(mounted)}"),
        )
    for file in tree.files_below(name):
        if owner := _owner_of(file, kept):
            raise InUseError(
                clean_text(f"{device.path}: stands on {file}, which is {owner}, or a part of it"),
                hint=_SYSTEM_HINT,
            )


def _refuse_kept_file(device: Device, kept: Sequence[tuple[Path, str]]) -> None:
    if owner := _owner_of(device.path, kept):
        raise InUseError(f"{device.path}: is {owner}, or a part of it")
    names = device.path.stat().st_nlink
    if names > 1:
        raise InUseError(
            f"{device.path}: has {names} names, and under each the same bytes would be overwritten",
            hint="backups are made so; give it bytes of its own first: cp --reflink=auto",
        )


def _owner_of(file: Path, kept: Sequence[tuple[Path, str]]) -> str:
    """Return what a file is, or is a part of, that must not be lost; "" for any other."""
    for path, what in kept:
        if file.is_relative_to(path):
            return what
        with suppress(OSError):  # it is not there, or hidden from this user, who cannot open it
            if file.samefile(path):
                return what
    return ""


def _refuse_used(device: Device) -> None:
    try:
        refuse_if_replaced_under_somebody(device.path)
    except OSError as error:
        hint = "only root may write to devices: sudo" if device.is_block_device else ""
        raise Error(f"{device.path}: cannot be opened: {error.strerror}", hint=hint) from error


def _identity(disk: Path) -> str:
    """Return what sysfs calls a disk, with what tells its medium from others.

    A device that is plugged in again may get the same letter, but never the same folder: that
    counts hosts.
    """
    return " ".join(filter(None, [str(disk), *(_fact(disk / one) for one in _SERIAL_NUMBERS)]))


def _model(disk: Path) -> str:
    """Return vendor and model, or what a virtual device stands for."""
    words = [_fact(disk / "device" / name) for name in ("vendor", "model", "name")]
    if any(words) and not words[0].startswith("0x"):
        return " ".join(word for word in words if word)
    backing = _fact(disk / "loop/backing_file")
    if backing:
        return f"loop device on {backing}"
    mapped = _fact(disk / "dm/name")
    return f"device-mapper {mapped}" if mapped else ""


def _fact(path: Path) -> str:
    try:
        return clean_text(kernel_text(path).strip())
    except OSError:
        return ""
