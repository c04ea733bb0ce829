"""Windows guests in memory: volumes with files, and hives made for them."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fixtures.windows.hive import (
    Form as HiveForm,
)
from fixtures.windows.hive import (
    Key,
    Value,
    binary,
    dword,
    expand_sz,
    hive,
    multi_sz,
    sz,
)
from formats.filesystem.model import DATA, PLAIN
from formats.ranges import Ranges
from formats.source import Memory, Source
from packer.guest.judge import judge
from packer.guest.model import Judgement
from packer.guest.windows.file_lists import GROUPS
from packer.survey.model import Survey
from tests.formats.windows.make_pe import Form, program
from tests.guest.material import MIB, DirectExaminer, survey_of_volumes, volume

CLUSTER = 4096
SIGNATURE = 0x1234ABCD
ESP_TYPE = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
C_GUID = "aaaaaaaa-0000-4000-8000-00000000000c"
DISK_GUID = "dddddddd-0000-4000-8000-000000000001"

WINDOWS = "/Windows"
SYSTEM32 = "/Windows/System32"
CONFIG = "/Windows/System32/config"
DRIVERS = "/Windows/System32/drivers"

KERNEL = program(Form(imports=("HAL.dll",), tail=b"kernel"))
HAL = program(Form(tail=b"hal"))


@dataclass(slots=True)
class Vol:
    """A volume to be made. small: files that lie in its metadata."""

    files: dict[str, bytes]
    kind: str = "ntfs"
    type: str = "07"
    guid: str = ""
    state: str = "clean"
    reason: str = ""


@dataclass(slots=True)
class Disk:
    """A guest in memory, and how to look at it. stored: paths whose streams are compressed."""

    volumes: Sequence[Vol]
    table: str = "mbr"
    small: dict[str, bytes] = field(default_factory=dict)
    stored: tuple[str, ...] = ()
    held: Sequence[tuple[int, Ranges]] = ()
    snapshots: Sequence[tuple[int, Ranges]] = ()
    hard_links: Mapping[str, str] = field(default_factory=dict)

    def survey(self) -> tuple[Survey, Source]:
        """The survey and the disk it speaks of; volume n begins at n MiB times its own size."""
        data = bytearray(MIB)
        names: list[str] = []
        owner: list[int] = []
        rows: list[tuple[int, int, int]] = []  # volume, size, disk offset
        starts = []
        for number, one in enumerate(self.volumes):
            starts.append(len(data))
            for path, content in one.files.items():
                names.append(path)
                owner.append(len(rows))
                rows.append((number, len(content), len(data)))
                data += content + bytes(-len(content) % CLUSTER)
            data += bytes(-len(data) % MIB)
        first = dict(zip(names, owner, strict=True))
        for link, target in self.hard_links.items():
            names.append(link)
            owner.append(first[target])
        order = sorted(range(len(names)), key=lambda row: owner[row])
        starts.append(len(data))
        volumes = [
            replace(
                volume(
                    number + 1,
                    kind=one.kind,
                    partition_type=one.type,
                    partition_uuid=one.guid,
                    state=one.state,
                    reason=one.reason,
                ),
                start=starts[number],
                end=starts[number + 1],
            )
            for number, one in enumerate(self.volumes)
        ]
        identifier = f"{SIGNATURE:08x}" if self.table == "mbr" else DISK_GUID
        table = np.array(rows, dtype=np.int64).reshape(-1, 3)
        some = np.flatnonzero(table[:, 1] > 0)
        form = [0] * len(rows)
        for path in self.stored:
            form[first[path]] = 1
        survey = replace(
            survey_of_volumes(volumes, table=self.table, table_identifier=identifier),
            size=len(data),
            volume=table[:, 0],
            inode=np.arange(len(rows), dtype=np.int64) + 30,
            file_size=table[:, 1],
            valid_size=table[:, 1],
            form=np.array(form, dtype=np.uint8),
            stream=some,
            file_offset=np.zeros(len(some), dtype=np.int64),
            disk_offset=table[some, 2],
            length=-(-table[some, 1] // CLUSTER) * CLUSTER,
            kind=np.full(len(some), DATA, dtype=np.uint8),
            name_stream=np.array([owner[row] for row in order], dtype=np.int64),
            name=[names[row] for row in order],
            held=tuple(self.held),
            snapshots=tuple(self.snapshots),
        )
        assert PLAIN == 0
        return survey, Memory(bytes(data))

    def judged(self, *, drop_snapshots: bool = False) -> Seen:
        """The disk, judged without children."""
        survey, source = self.survey()
        examiner = DirectExaminer(survey, source, self.small)
        return Seen(survey, judge(survey, source, examiner, drop_snapshots=drop_snapshots))


@dataclass(frozen=True, slots=True)
class Seen:
    """A judged guest."""

    survey: Survey
    judgement: Judgement

    def group(self, path: str) -> str:
        """The group of a file's boot reason, "" if it is not in the boot set."""
        row = self._stream(path)
        group = int(self.judgement.boot[row])
        assert self.judgement.boot_reasons == GROUPS
        return GROUPS[group] if group >= 0 else ""

    def rule(self, path: str) -> str:
        """The rule that put a file into the boot set, "" if it is not there."""
        return self.judgement.boot_rules.get(self._stream(path), "")

    def boot(self) -> set[str]:
        """The paths of the boot set."""
        rows = zip(self.survey.name_stream.tolist(), self.judgement.path, strict=True)
        return {path for row, path in rows if self.judgement.boot[row] >= 0}

    def dropped(self) -> dict[str, int]:
        """What is dropped, and how many bytes."""
        return {
            one.what: int((one.ranges[:, 1] - one.ranges[:, 0]).sum())
            for one in self.judgement.dropped
        }

    def warning(self, words: str) -> str:
        """The one warning with these words."""
        (found,) = [one for one in self.judgement.warnings if words in one]
        return found

    def _stream(self, path: str) -> int:
        return int(self.survey.name_stream[self.judgement.path.index(path)])


def hive_of(root: Key) -> bytes:
    """A clean hive."""
    return hive("ROOT", root, HiveForm(5, "", 0))


def driver(
    start: int = 0,
    *,
    type: int = 1,
    error: int = 1,
    image: str | None = None,
    **values: Value,
) -> Key:
    """The key of a service that is a driver."""
    found = {"Type": dword(type), "Start": dword(start), "ErrorControl": dword(error)}
    if image is not None:
        found["ImagePath"] = expand_sz(image)
    return Key(found | values)


def system(
    services: Mapping[str, Key] | None = None,
    *,
    last_known_good: Mapping[str, Key] | None = None,
    control: Key | None = None,
    devices: Mapping[str, bytes] | None = None,
    further: Mapping[str, Key] | None = None,
) -> Key:
    """A SYSTEM hive of one control set, or of two."""
    root = Key()
    select = {"Current": dword(1), "Default": dword(1), "LastKnownGood": dword(1)}
    sets = {"ControlSet001": services or {}}
    if last_known_good is not None:
        sets["ControlSet002"] = last_known_good
        select["LastKnownGood"] = dword(2)
    root.put("Select", **select)
    for name, found in sets.items():
        root.key(name).subkeys["Services"] = Key({}, dict(found))
        root.key(name).subkeys["Control"] = control or Key()
    root.key("MountedDevices").values.update(
        {name: binary(data) for name, data in (devices or {}).items()}
    )
    root.subkeys.update(further or {})
    return root


def version(name: str = "Windows 7 Professional", number: str = "6.1", **values: Value) -> Key:
    """A SOFTWARE hive."""
    root = Key()
    root.put(
        "Microsoft\\Windows NT\\CurrentVersion",
        ProductName=sz(name),
        CurrentVersion=sz(number),
        CurrentBuildNumber=sz("7601"),
        **values,
    )
    return root


XP = version("Microsoft Windows XP", "5.1", CSDVersion=sz("Service Pack 3"))
TEN = version(
    *("Windows 10 Pro", "6.3"),
    CurrentMajorVersionNumber=dword(10),
    CurrentMinorVersionNumber=dword(0),
    UBR=dword(2965),
    DisplayVersion=sz("22H2"),
)


def windows(
    root: Key | None = None, files: Mapping[str, bytes] | None = None, software: Key | None = None
) -> dict[str, bytes]:
    """The files of a C: with all that a Windows 7 cannot be without, and those given."""
    return {
        f"{SYSTEM32}/ntoskrnl.exe": KERNEL,
        f"{SYSTEM32}/hal.dll": HAL,
        f"{SYSTEM32}/winload.exe": b"winload" * 200,
        f"{CONFIG}/SYSTEM": hive_of(root or system()),
        f"{CONFIG}/SOFTWARE": hive_of(software or version()),
        **(files or {}),
    }


def bios(files: dict[str, bytes], **options: object) -> Disk:
    """A disk of one volume that a BIOS starts."""
    return Disk([Vol({"/bootmgr": b"manager" * 300, **files})], **options)  # type: ignore[arg-type]


def xp(
    services: Mapping[str, Key],
    files: Mapping[str, bytes] | None = None,
    *,
    ini: bytes = b"",
    **options: object,
) -> Disk:
    """A Windows XP: only its registry puts drivers into the boot set."""
    root = system(services)
    everything = {"/ntldr": b"ntldr" * 300, **windows(root, files, XP)}
    del everything[f"{SYSTEM32}/winload.exe"]
    small = {"/boot.ini": ini} if ini else {}
    return Disk([Vol(everything)], small=small, **options)  # type: ignore[arg-type]


def mounted_mbr(start: int) -> bytes:
    """A value of MountedDevices for a partition of an MBR."""
    return struct.pack("<IQ", SIGNATURE, start)


def mounted_gpt(guid: str) -> bytes:
    """The same for a partition of a GPT."""
    return b"DMIO:ID:" + uuid.UUID(guid).bytes_le


__all__ = ["Key", "binary", "dword", "expand_sz", "multi_sz", "sz"]
