"""write: a pack becomes the disk on a device or in an image file, proven by reading it back.

In this order: refuse what is used or does not fit; make the device one that nobody takes for a
disk; put everything in place but its beginning; wait until it is on the medium; read all of it
back; then the beginning. Whatever ends it earlier, the same call goes on: what is right on the
device is hashed and kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from packer.artifact.opened import OpenedPack
from packer.errors import Error, InUseError
from packer.media.device import Device, look_at, refuse_if_needed, refuse_if_unfit
from packer.media.device_output import HEAD_BYTES, DeviceOutput
from packer.media.read_back import mismatch, read_back
from packer.progress import Progress, Silent
from packer.sources.base import Source
from packer.sources.store import Store
from packer.survey.in_use import kept_from_qemu
from packer.text import format_bytes
from packer.unpack.gather import Supplied
from packer.unpack.output import Output
from packer.unpack.unpack import Filled, fill

_GPT_SIGNATURE = b"EFI PART"  # UEFI specification 2.10, 5.3.2: begins the header, in sector 1

_DISKS = ("disk:", "pack:")
"""What sources are called that are one file or device. Folders lie on something mounted."""


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What was written, and where its bytes came from; see UnpackReport.

    resumed_bytes: of contents that were right on the device already. notes: what its user should
    know about the rest of the device.
    """

    device: Device
    disk_bytes: int
    content_bytes: int
    resumed_bytes: int
    supplied: tuple[Supplied, ...]
    notes: tuple[str, ...]


def refuse(
    pack: OpenedPack, device: Device, sources: Sequence[Source], store: Store | None
) -> None:
    """Raise an error if the pack's disk cannot or must not go there; see packer.media.device."""
    disk = pack.config.disks[0]
    places = [(pack.layout.location, "the pack")]
    places += [
        (one.uri.partition(":")[2], one.uri) for one in sources if one.uri.startswith(_DISKS)
    ]
    places += [(str(store.folder), "the store")] if store else []
    kept = [(Path(place).resolve(), what) for place, what in places if Path(place).exists()]
    refuse_if_needed(device, kept)
    refuse_if_unfit(device, disk.size, disk.sector_size)


def write(
    pack: OpenedPack,
    device: Device,
    sources: Sequence[Source],
    *,
    store: Store | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> WriteReport:
    """Rebuild the pack's disk in place. Whom to trust was decided before, and what may be lost.

    device: as `look_at` returned it to whoever agreed that its bytes may be lost. Sources and
    store as for `unpack`. Raises UsageError when it does not fit, InUseError when it is used or
    has changed since, MissingError when nobody has a content, MismatchError when it does not read
    back as it was written.
    """
    progress = progress or Silent()
    jobs = jobs or os.cpu_count() or 1
    notes: list[str] = []
    if device.is_new:
        filled = _write_new(pack, device, sources, store, jobs, progress)
    else:
        with _kept_from_guests(device):
            refuse(pack, device, sources, store)
            filled, notes = _write_over(pack, device, sources, store, jobs, progress)
    return WriteReport(
        device,
        pack.map.size,
        int(pack.map.contents.size.sum()),
        filled.resumed_bytes,
        filled.supplied,
        tuple(notes),
    )


@contextmanager
def _kept_from_guests(device: Device) -> Iterator[None]:
    """Let no QEMU begin to write to it, which would not ask the kernel for it alone."""
    with ExitStack() as stack:
        try:
            stack.enter_context(kept_from_qemu(device.path))
        except OSError as error:
            raise Error(f"{device.path}: cannot be opened: {error.strerror}") from error
        yield


def _write_new(
    pack: OpenedPack,
    device: Device,
    sources: Sequence[Source],
    store: Store | None,
    jobs: int,
    progress: Progress,
) -> Filled:
    """Write a file that gets its name when it has been read back."""
    with Output(device.path, pack.map.size) as target:
        # What an earlier run wrote and the medium did not keep must not come from the cache.
        os.posix_fadvise(target.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        filled = fill(pack, target, sources, store=store, jobs=jobs, progress=progress)
        target.flush()
        damage = read_back(target.fd, pack.map, jobs=jobs, progress=progress)
        if damage:
            raise mismatch(str(target.partial), damage, pack.map, pack.hints)
        target.commit()
    return filled


def _write_over(
    pack: OpenedPack,
    device: Device,
    sources: Sequence[Source],
    store: Store | None,
    jobs: int,
    progress: Progress,
) -> tuple[Filled, list[str]]:
    disk_map, where = pack.map, str(device.path)
    with DeviceOutput(device, disk_map.size) as target:
        if look_at(device.path) != device:
            raise InUseError(f"{where}: is not what it was when it was shown")
        target.begin(f"{pack.config.ref_name} {pack.config_digest}")
        filled = fill(pack, target, sources, store=store, jobs=jobs, progress=progress)
        with progress.stage("flushing", 0):
            target.flush()
        damage = read_back(target.fd, disk_map, head=target.head, jobs=jobs, progress=progress)
        if damage:
            raise mismatch(where, damage, disk_map, pack.hints)
        target.commit()
        damage = read_back(target.fd, disk_map, end=HEAD_BYTES, jobs=jobs, progress=progress)
        if damage:
            target.begin(f"{pack.config.ref_name} {pack.config_digest}")
            raise mismatch(where, damage, disk_map, pack.hints)
        target.announce()
        return filled, _notes(pack, target)


def _notes(pack: OpenedPack, target: DeviceOutput) -> list[str]:
    """Return what to know about a partition, and about a device that is larger than the disk."""
    device, size = target.device, target.size
    notes = []
    if device.part_of:
        notes.append(
            f"{device.path}: is a partition; firmware starts from {device.part_of} only, not from "
            "a disk inside of it"
        )
    if device.size == size:
        return notes
    rest = device.size - size
    notes.append(
        f"{device.path}: the last {rest:,} bytes ({format_bytes(rest)}) are as they were; "
        f"the disk ends at {size:,}"
    )
    if target.head[pack.config.disks[0].sector_size :].startswith(_GPT_SIGNATURE):
        notes.append(
            f"{device.path}: the backup of its GPT lies where the disk ends, not at the end of the "
            f"device; sgdisk -e {device.path} moves it there"
        )
    return notes
