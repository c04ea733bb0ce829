"""What lies on a device before it is overwritten, so that a person can recognise it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from formats.errors import FormatError
from formats.source import FileSource, Source
from packer.errors import Error, InputError
from packer.media.device import Device
from packer.media.device_output import MARK
from packer.survey.child import clean_text
from packer.survey.disk import open_disk
from packer.survey.survey import read_partitions

EDGE_BYTES = (1 << 20) + 4096
"""At each end of a device. Everything that marks a disk or a file system begins or ends with it;
VMFS is the last to do so, with its sign at 1 MiB."""

SAMPLES = 512
"""Of a disk that lost its table only, somebody may want to save the rest."""

_SAMPLE_BYTES = 4096
_MARK_BYTES = 512


@dataclass(frozen=True, slots=True)
class Volume:
    """A partition, or the whole device. kind: "ext", "NTFS", "no known file system", …"""

    number: int
    size: int
    kind: str
    label: str


@dataclass(frozen=True, slots=True)
class Found:
    """What a device holds. table: "gpt", "mbr", "none". note: what else there is to say of it.

    empty: both of its ends read as zeros, and SAMPLES places between.
    """

    empty: bool
    table: str = "none"
    volumes: tuple[Volume, ...] = ()
    note: str = ""


def look_into(device: Device) -> Found:
    """Return what a device or an image file that is there holds; a child process parses it.

    Raises Error when it cannot be read.
    """
    try:
        with FileSource(device.path) as source:
            edge = min(EDGE_BYTES, source.size)
            start = source.pread(0, edge)
            empty = not (
                any(start) or any(source.pread(source.size - edge, edge)) or _sampled(source)
            )
    except (OSError, FormatError) as error:
        raise Error(f"{device.path}: cannot be read: {error}") from error
    if empty:
        return Found(empty=True)
    if start.startswith(MARK):
        text = start[:_MARK_BYTES].rstrip(b"\0").decode("utf-8", "replace")
        return Found(empty=False, note=clean_text(text.replace("\n", " ").strip()))
    return _look_closer(device.path)


def _sampled(source: Source) -> bool:
    """Return whether there is something in one of the places that are looked at."""
    last = max(0, source.size - _SAMPLE_BYTES)
    places = (last * number // SAMPLES for number in range(SAMPLES))
    return any(any(source.pread(place, min(_SAMPLE_BYTES, source.size))) for place in places)


def _look_closer(path: Path) -> Found:
    try:
        with open_disk(path, container="raw", allow_in_use=True) as disk:
            table = read_partitions(disk)
    except InputError as error:
        return Found(empty=False, note=error.message)
    volumes = tuple(
        Volume(
            one.number,
            one.end - one.start,
            one.reader or one.note.partition(":")[0],
            one.volume_label or one.label,
        )
        for one in table.partitions
    )
    return Found(empty=False, table=table.kind, volumes=volumes)
