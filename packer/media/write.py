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
from packer.media.read_back import Damage, mismatch, read_back
from packer.progress import Progress, Silent
from packer.sources.base import Source
from packer.sources.store import Store
from packer.survey.in_use import kept_from_qemu
from packer.text import format_bytes
from packer.unpack.gather import Supplied
from packer.unpack.output import Output, Target
from packer.unpack.part import Part, whole
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
    part: Part | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> WriteReport:
    """Rebuild the pack's disk in place. Whom to trust was decided before, and what may be lost.

    device: as `look_at` returned it to whoever agreed that its bytes may be lost. Sources, store
    and part as for `fill`. Raises UsageError when it does not fit, InUseError when it is used or
    has changed since, MissingError when nobody has a content, MismatchError when it does not read
    back as it was written.
    """
    progress = progress or Silent()
    work = _Work(pack, part or whole(pack), sources, store, jobs or os.cpu_count() or 1, progress)
    notes: list[str] = []
    if device.is_new:
        filled = work.write_new(device)
    else:
        with _kept_from_guests(device):
            refuse(pack, device, sources, store)
            filled, notes = work.write_over(device)
    return WriteReport(
        device,
        pack.map.size,
        int(work.part.map.contents.size.sum()),
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


@dataclass(frozen=True, slots=True)
class _Work:
    """What is to be written, and how."""

    pack: OpenedPack
    part: Part
    sources: Sequence[Source]
    store: Store | None
    jobs: int
    progress: Progress

    def write_new(self, device: Device) -> Filled:
        """Write a file that gets its name when it has been read back."""
        with Output(device.path, self.part.map.size) as target:
            # What an earlier run wrote and the medium did not keep must not come from the cache.
            os.posix_fadvise(target.fd, 0, 0, os.POSIX_FADV_DONTNEED)
            filled = self._fill(target)
            target.flush()
            self._expect_right(str(target.partial), self._read_back(target.fd))
            target.commit()
        return filled

    def write_over(self, device: Device) -> tuple[Filled, list[str]]:
        """Write in place; return what its user should know about the rest of the device, too."""
        where, what = str(device.path), f"{self.pack.config.ref_name} {self.pack.config_digest}"
        with DeviceOutput(device, self.part.map.size) as target:
            if look_at(device.path) != device:
                raise InUseError(f"{where}: is not what it was when it was shown")
            target.begin(what)
            filled = self._fill(target)
            with self.progress.stage("flushing", 0):
                target.flush()
            self._expect_right(where, self._read_back(target.fd, head=target.head))
            target.commit()
            damage = self._read_back(target.fd, end=HEAD_BYTES)
            if damage:
                target.begin(what)
            self._expect_right(where, damage)
            target.announce()
            return filled, _notes(self.pack, target)

    def _fill(self, target: Target) -> Filled:
        return fill(
            self.pack,
            target,
            self.sources,
            store=self.store,
            part=self.part,
            jobs=self.jobs,
            progress=self.progress,
        )

    def _read_back(
        self, fd: int, *, head: bytes | bytearray = b"", end: int | None = None
    ) -> list[Damage]:
        return read_back(
            fd, self.part.map, head=head, end=end, jobs=self.jobs, progress=self.progress
        )

    def _expect_right(self, where: str, damage: Sequence[Damage]) -> None:
        if damage:
            raise mismatch(where, damage, self.part.map, self.part.hints())


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
