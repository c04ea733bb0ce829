"""The config: the JSON document at the root of a pack, whose digest is the pack's identity.

It names the digests of the *uncompressed* map and hints, so that the identity stays the same
under any version of zstd; the manifest's layers hold them compressed, and a reader decompresses
with the size given here as its bound. Unknown keys are passed over (a later vmpack may add facts
that older ones can ignore); an unknown `schema` is refused.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Iterable
from typing import Annotated

import msgspec

from packer.artifact import strict_json
from packer.artifact.manifest import Digest
from packer.artifact.strict_json import invalid
from packer.errors import InputError, UsageError
from packer.text import printable as text_for_people

SCHEMA = 1
MAX_CONFIG_BYTES = 1 << 20
MAX_DISK_BYTES = 1 << 62
MAX_DISKS = 64
MAX_MAP_BYTES = 1 << 30
"""Upper bound of an uncompressed map: 32 bytes for each content and block of a full 16 TiB."""
MAX_HINTS_BYTES = 1 << 30
MAX_VERSION = (1 << 53) - 1
"""The largest integer that every JSON reader keeps exact (RFC 8259, section 6)."""
MAX_NAME_CHARACTERS = 128
MAX_TEXT_CHARACTERS = 1024
MAX_ENTRIES = 1024

_CONTROLS = "\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069"
"""Characters that change how a terminal shows the text around them."""

SECTOR_SIZES = (512, 4096)
_MAX_COUNT = (1 << 63) - 1

Text = Annotated[str, msgspec.Meta(max_length=MAX_TEXT_CHARACTERS, pattern=rf"\A[^{_CONTROLS}]*\Z")]
Uri = Annotated[
    str,
    msgspec.Meta(
        max_length=MAX_TEXT_CHARACTERS, pattern=rf"\A[a-z][a-z0-9+.-]*:[^\s{_CONTROLS}]*\Z"
    ),
]
Name = Annotated[
    str,
    msgspec.Meta(
        max_length=MAX_NAME_CHARACTERS, pattern=r"\A[a-z0-9]+(?:(?:[._-]|--)[a-z0-9]+)*\Z"
    ),
]
"""Both a repository name of the OCI distribution-spec and a ref name of the image-spec."""
Day = Annotated[
    str,
    msgspec.Meta(pattern=r"\A(?:[2-9][0-9]{3}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01]))?\Z"),
]
"""A full-date of RFC 3339 from the year 2000 on, or nothing."""
Count = Annotated[int, msgspec.Meta(ge=0, le=_MAX_COUNT)]


class Guest(msgspec.Struct, frozen=True):
    """What is installed; "" is unknown.

    family: "linux", "windows", "unknown". id, release, name: as os-release has them ("debian",
    "12", "Debian GNU/Linux 12 (bookworm)"). architecture: "x86_64", "aarch64", … firmware: "bios",
    "uefi", "bios+uefi".
    """

    family: Text = "unknown"
    id: Text = ""
    release: Text = ""
    name: Text = ""
    architecture: Text = ""
    firmware: Text = ""

    @property
    def line(self) -> str:
        """Return what is installed: "Debian GNU/Linux 12 (bookworm), x86_64, bios"."""
        name = self.name or " ".join(part for part in (self.id, self.release) if part)
        words = [name or f"{self.family} guest", self.architecture, self.firmware]
        return ", ".join(word for word in words if word)


class Disk(msgspec.Struct, frozen=True):
    """One disk: sizes in bytes, digest and size of its uncompressed map."""

    size: Annotated[int, msgspec.Meta(gt=0, le=MAX_DISK_BYTES)]
    sector_size: int
    map: Digest
    map_size: Annotated[int, msgspec.Meta(gt=0, le=MAX_MAP_BYTES)]


class HintsRef(msgspec.Struct, frozen=True):
    """Digest and size in bytes of the uncompressed hints."""

    digest: Digest
    size: Annotated[int, msgspec.Meta(gt=0, le=MAX_HINTS_BYTES)]


class Dropped(msgspec.Struct, frozen=True):
    """What the pack's author accepted to lose."""

    what: Text
    bytes: Count
    reason: Text


class Total(msgspec.Struct, frozen=True):
    """How many contents there are of a class, and their bytes."""

    count: Count = 0
    bytes: Count = 0


class Totals(msgspec.Struct, frozen=True):
    """The contents by class; see packer.artifact.contents.Class."""

    boot: Total = Total()
    private: Total = Total()
    shared: Total = Total()


class Boots(msgspec.Struct, frozen=True):
    """What is known of the boot class by booting.

    level: PROFILED, the class is what boots were seen to read; PROVEN, and this pack's boot copy
    has reached the same point with no source beside it. Until when: marker is a text on the serial
    console, or "", and then nothing new was read for idle_seconds. boots: how many were watched.
    touched_bytes: what they read of the disk together, at 64 KiB.
    """

    level: Text
    marker: Text = ""
    idle_seconds: Count = 0
    boots: Count = 0
    touched_bytes: Count = 0


PROFILED, PROVEN = "profiled", "proven"


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The root of a pack; its keys are written in this order.

    expires: the last day on which its author thinks it good, "2027-06-30"; "" for no such day.
    """

    schema: int = SCHEMA
    name: Name
    version: Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)]
    expires: Day = ""
    guest: Guest = Guest()
    disks: Annotated[tuple[Disk, ...], msgspec.Meta(min_length=1, max_length=MAX_DISKS)]
    hints: HintsRef
    sources: Annotated[tuple[Uri, ...], msgspec.Meta(max_length=MAX_ENTRIES)] = ()
    dropped: Annotated[tuple[Dropped, ...], msgspec.Meta(max_length=MAX_ENTRIES)] = ()
    totals: Totals = Totals()
    warnings: Annotated[tuple[Text, ...], msgspec.Meta(max_length=MAX_ENTRIES)] = ()
    boots: Boots | msgspec.UnsetType = msgspec.UNSET
    """Left out of a pack that nobody has profiled."""

    @property
    def ref_name(self) -> str:
        """How a copy is called in its layout: "demo:3"."""
        return f"{self.name}:{self.version}"

    def expired(self, today: datetime.date) -> bool:
        """Return whether the author's last day is over. Advice: nothing is refused for it."""
        return bool(self.expires) and datetime.date.fromisoformat(self.expires) < today


class _Schema(msgspec.Struct, frozen=True):
    schema: int


def encode(config: Config) -> bytes:
    """Return the config's bytes; the same config always gives the same ones.

    Raises InputError, with the key path, when a value is not one that `decode` would accept.
    """
    data = strict_json.encode(config)
    decode(data)
    return data


def decode(data: bytes, what: str = "config") -> Config:
    """Return the config that these bytes are.

    what: names it in errors. Raises InputError with the key path of what is wrong
    ("disks[0].map"); the schema is checked before anything else is looked at.
    """
    schema = strict_json.decode(data, _Schema, what, MAX_CONFIG_BYTES).schema
    if schema != SCHEMA:
        raise InputError(
            f"{what}: schema: expected {SCHEMA}, found {schema}",
            hint="a newer vmpack wrote this" if schema > SCHEMA else "",
        )
    config = strict_json.decode(data, Config, what, MAX_CONFIG_BYTES)
    if config.expires and not _in_calendar(config.expires):
        raise invalid(what, "expires", "a day of the calendar", config.expires)
    for row, disk in enumerate(config.disks):
        if disk.sector_size not in SECTOR_SIZES:
            raise invalid(what, f"disks[{row}].sector_size", "512 or 4096", disk.sector_size)
        if disk.size % disk.sector_size:
            expected = f"a multiple of the sector size, {disk.sector_size} bytes"
            raise invalid(what, f"disks[{row}].size", expected, disk.size)
    return config


def check_author(name: str, version: int, sources: Iterable[str], expires: str = "") -> None:
    """Raise UsageError, with the key path, for what no config can hold."""
    stand_in = "sha256:" + "0" * 64
    try:
        encode(
            Config(
                name=name,
                version=version,
                expires=expires,
                disks=(Disk(SECTOR_SIZES[0], SECTOR_SIZES[0], stand_in, 1),),
                hints=HintsRef(stand_in, 1),
                sources=tuple(sources),
            )
        )
    except InputError as error:
        raise UsageError(str(error), hint=error.hint) from error


def _in_calendar(day: str) -> bool:
    try:
        datetime.date.fromisoformat(day)
    except ValueError:
        return False
    return True


def digest(data: bytes) -> str:
    """Return the identity of the pack whose config has these bytes: "sha256:…"."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def printable(text: str) -> str:
    """Return text from a guest as a config may hold it: no control characters, not too long."""
    clean = text_for_people(text)
    if len(clean) <= MAX_TEXT_CHARACTERS:
        return clean
    return clean[: MAX_TEXT_CHARACTERS - 1] + "…"


def printable_warnings(warnings: Iterable[str]) -> tuple[str, ...]:
    """Return warnings as a config may hold them: printable, and at most MAX_ENTRIES of them."""
    lines = [printable(warning) for warning in warnings]
    if len(lines) <= MAX_ENTRIES:
        return tuple(lines)
    more = len(lines) - MAX_ENTRIES + 1
    return (*lines[: MAX_ENTRIES - 1], f"… and {more} more")
