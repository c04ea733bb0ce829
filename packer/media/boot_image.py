"""A disk with the boot set alone: loader, kernel and initramfs at their own addresses.

As qcow2 it has those of the disk's clusters that the boot set decides alone, and names a server of
the whole disk for all others, so QEMU starts from it as from the disk. Raw, or on a device, it is
the disk with zeros in place of everything else: enough to start, for a guest whose initramfs finds
its root elsewhere. The bytes are the pack's own, which every copy of it carries.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from formats.container.qcow2_writer import Image, clusters_inside, fitting_cluster_bits
from formats.errors import FormatError
from formats.ranges import Ranges, empty_ranges
from packer.artifact.map import Kind, Map
from packer.artifact.opened import OpenedPack
from packer.errors import UsageError
from packer.media.device import Device
from packer.media.write import write
from packer.progress import Progress, Silent
from packer.unpack.output import Output
from packer.unpack.part import boot_only
from packer.unpack.unpack import fill

RAW, QCOW2 = "raw", "qcow2"
FORMATS = (RAW, QCOW2)
BACKING_FORMAT = "raw"
"""What a server of a disk serves, as QEMU calls it."""


@dataclass(frozen=True, slots=True)
class BootImageReport:
    """What was written. boot_bytes: of the boot set. own_bytes: of the disk that a qcow2 image has
    itself, 0 otherwise. notes: what its user should know of a device.
    """

    output: Path
    disk_bytes: int
    boot_bytes: int
    own_bytes: int = 0
    notes: tuple[str, ...] = ()


def boot_image(
    pack: OpenedPack,
    output: Path,
    *,
    container: str = RAW,
    backing: str = "",
    replace: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> BootImageReport:
    """Write a new file with a pack's boot set; whom to trust was decided before.

    container: see FORMATS. backing: for qcow2, the URI of a server of the pack's disk. replace: a
    file of that name may be replaced. Raises MissingError when the pack does not hold its boot
    set, Error when the output cannot be written, UsageError for what no image can name.
    """
    jobs, progress = jobs or os.cpu_count() or 1, progress or Silent()
    part = boot_only(pack)
    boot_bytes = int(part.map.contents.size.sum())
    if container == RAW:
        with Output(output, part.map.size, force=replace) as target:
            fill(pack, target, [], part=part, jobs=jobs, progress=progress)
            target.commit()
        return BootImageReport(output, part.map.size, boot_bytes)
    try:
        image = lay_out(pack.map, part.map, backing)
    except FormatError as error:
        raise UsageError(f"{output}: {error}") from error
    with Output(output, image.file_size, force=replace) as target:
        target.clear(0, image.file_size)
        inside = _Clusters(target, image)
        fill(pack, inside, [], part=part, jobs=jobs, progress=progress)
        for offset, data in image.head():
            target.pwrite(offset, data)
        target.commit()
    own_bytes = len(image.clusters) * image.cluster_size
    return BootImageReport(output, part.map.size, boot_bytes, own_bytes)


def boot_device(
    pack: OpenedPack,
    device: Device,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> BootImageReport:
    """Write a pack's boot set to a device, proven by reading it back; see packer.media.write."""
    part = boot_only(pack)
    report = write(pack, device, [], part=part, jobs=jobs, progress=progress)
    return BootImageReport(device.path, report.disk_bytes, report.content_bytes, notes=report.notes)


def lay_out(full: Map, boot: Map, backing: str) -> Image:
    """Return the image that has every cluster with bytes of the boot set, if all of it is known.

    What is in no content reads as zeros, so it is known; a cluster with any byte of another content
    is left to `backing`. Raises Unsupported for a disk too large or a name too long for qcow2.
    """
    elsewhere = (full.kind == Kind.CONTENT) & (boot.kind != Kind.CONTENT)
    known = np.stack([full.start, full.end], axis=1)[~elsewhere]
    bits = fitting_cluster_bits(full.size)
    clusters = clusters_inside(known, boot.ranges_of_kind(Kind.CONTENT), full.size, bits)
    return Image(full.size, clusters, bits, backing, BACKING_FORMAT if backing else "")


class _Clusters:
    """See packer.unpack.output.Target: the guest's bytes in the clusters of an image.

    What lies in other clusters is not written, nor ever read by whoever fills it.
    """

    resumed = False
    keeps_times = False
    shared_fd: int | None = None

    def __init__(self, output: Output, image: Image) -> None:
        self._output = output
        runs = image.runs()
        self._start: NDArray[np.int64] = runs[:, 0]
        self._end: NDArray[np.int64] = runs[:, 0] + runs[:, 2]
        self._place: NDArray[np.int64] = runs[:, 1]

    def pread(self, offset: int, length: int) -> bytes:
        """See Target; other clusters read as zeros."""
        data = bytearray(length)
        for place, low, high in self._pieces(offset, length):
            data[low:high] = self._output.pread(place, high - low)
        return bytes(data)

    def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        """See Target."""
        view = memoryview(data)
        for place, low, high in self._pieces(offset, len(view)):
            self._output.pwrite(place, view[low:high])

    def clone(self, fd: int, offset: int, target: int, length: int) -> bool:  # noqa: ARG002
        """See Target; nothing is shared."""
        return False

    def data_ranges(self) -> Ranges:
        """See Target: the image is new, so nothing is there yet."""
        return empty_ranges()

    def clear(self, start: int, end: int) -> None:
        """See Target: nothing is there yet."""

    def _pieces(self, offset: int, length: int) -> list[tuple[int, int, int]]:
        """Return (place in the file, low, high) of the parts of `[offset, offset + length)`."""
        first = int(np.searchsorted(self._end, offset, side="right"))
        last = int(np.searchsorted(self._start, offset + length))
        found = []
        for run in range(first, last):
            start, end = int(self._start[run]), int(self._end[run])
            low, high = max(start, offset), min(end, offset + length)
            found.append((int(self._place[run]) + low - start, low - offset, high - offset))
        return found
