"""A Linux guest's /etc/fstab: which volume it mounts where, and which files it swaps to."""

from __future__ import annotations

import re
from dataclasses import dataclass

from packer.survey.model import Survey, Volume

MAX_FSTAB_BYTES = 1 << 20
MAX_ENTRIES = 256

# The one disk of a survey is the guest's first one; names of further disks match nothing.
_FIRST_DISK = re.compile(r"/dev/(?:(?:sd|vd|hd|xvd)a|(?:nvme0n1|mmcblk0)p)([0-9]{1,3})")
_OCTAL = re.compile(rb"\\([0-7]{3})")
_BLANKS = re.compile(rb"[ \t]+")
_BY_FOLDER = {
    "/dev/disk/by-uuid/": "UUID",
    "/dev/disk/by-label/": "LABEL",
    "/dev/disk/by-partuuid/": "PARTUUID",
    "/dev/disk/by-partlabel/": "PARTLABEL",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of fstab(5): what to mount (fs_spec), where (fs_file), as which type."""

    spec: str
    path: str
    kind: str


def parse_fstab(data: bytes) -> tuple[Entry, ...]:
    """Return the entries of an fstab; lines that are none are passed over.

    At most MAX_ENTRIES are returned. Source: fstab(5), util-linux: fields are separated by blanks,
    a blank inside a field is written \\040, a tag's value may stand in quotes.
    """
    entries: list[Entry] = []
    for line in data.split(b"\n"):
        fields = _BLANKS.split(line.strip(b" \t\r"))
        if len(fields) < 3 or fields[0].startswith(b"#"):
            continue
        spec, path, kind = (_text(field) for field in fields[:3])
        entries.append(Entry(spec, path.rstrip("/") or "/", kind))
        if len(entries) == MAX_ENTRIES:
            break
    return tuple(entries)


def volume_of(spec: str, survey: Survey) -> int | None:
    """Return the row of the volume that an fs_spec names, or None when it is not on this disk."""
    tag, value = _tag_and_value(spec)
    wanted = value.casefold()
    if not wanted:
        return None
    for row, volume in enumerate(survey.volumes):
        if wanted == _identity(tag, volume, survey).casefold():
            return row
    return None


def _tag_and_value(spec: str) -> tuple[str, str]:
    tag, equals, value = spec.partition("=")
    if equals and not tag.startswith("/"):
        return tag.upper(), value.strip("\"'")
    for folder, name in _BY_FOLDER.items():
        if spec.startswith(folder):
            return name, spec.removeprefix(folder)
    device = _FIRST_DISK.fullmatch(spec)
    return ("NUMBER", device[1]) if device else ("", "")


def _identity(tag: str, volume: Volume, survey: Survey) -> str:
    if tag == "UUID":
        return volume.uuid
    if tag == "LABEL":
        return volume.label
    if tag == "PARTLABEL":
        return volume.partition_label
    if tag == "NUMBER":
        return str(volume.number)
    if tag == "PARTUUID":
        # The kernel makes one up for MBR: disk signature and number (block/partitions/msdos.c).
        made_up = f"{survey.table_identifier}-{volume.number:02x}" if survey.table == "mbr" else ""
        return volume.partition_uuid or made_up
    return ""


def _text(field: bytes) -> str:
    octets = _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 0xFF]), field)
    return octets.decode("utf-8", "surrogateescape")
