"""Drive letters, and the ways in which Windows writes where a file lies.

Sources: Microsoft, "Naming Files, Paths, and Namespaces" (Win32 and NT namespaces, `\\??\\`);
Knowledge Base 234048, "How Windows 2000 Assigns, Reserves, and Stores Drive Letters" (the values
of MountedDevices); for GPT disks, whose values begin "DMIO:ID:", the hives of the tests.
"""

from __future__ import annotations

import re
import struct
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from formats.windows.hive import Value
from packer.survey.model import Survey

MOUNTED_DEVICES = "MountedDevices"
MAX_PATH_CHARACTERS = 1024
"""Longer than any path that a registry value can hold for a driver (MAX_PATH is 260)."""

_DEVICE = re.compile(r"\\DosDevices\\([A-Za-z]):|\\\?\?\\(Volume\{[0-9A-Fa-f-]{36}\})")
_MBR = struct.Struct("<IQ")  # disk signature; start of the partition, bytes
_GPT_TAG = b"DMIO:ID:"  # then the partition's GUID

_NAMESPACE = re.compile(r"(?:\\\?\?\\|\\\\\?\\|\\\\\.\\|\\DosDevices\\)", re.IGNORECASE)
_DRIVE = re.compile(r"([A-Za-z]:|Volume\{[0-9A-Fa-f-]{36}\})(?=\\|$)", re.IGNORECASE)
_SYSTEM_ROOT = re.compile(r"(?:\\SystemRoot|%SystemRoot%|%windir%)(?=\\)", re.IGNORECASE)
_SYSTEM_DRIVE = re.compile(r"%SystemDrive%(?=\\)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Place:
    """A path within a volume: row of the survey, "/Windows/System32/hal.dll"."""

    volume: int
    path: str


@dataclass(frozen=True, slots=True)
class Drives:
    """What a Windows calls its volumes.

    boot: its own volume. folder: of Windows, within that. volumes: "C" or "VOLUME{…}" in upper
    case -> row of the survey.
    """

    boot: int
    folder: str
    volumes: Mapping[str, int]

    def locate(self, written: str) -> Place | None:
        r"""Return where a file lies, as the registry writes it; None if that is not on this disk.

        Forms: "system32\x.sys" (below Windows), "\SystemRoot\…", "%SystemRoot%\…", "\??\C:\…",
        "C:\…", "\Windows\…" (below the root of its volume), with or without quotes. A path with
        "..", or a device that is named otherwise, leads nowhere.
        """
        if len(written) > MAX_PATH_CHARACTERS:
            return None
        text = written.strip().replace("/", "\\")
        if text.startswith('"'):
            text = text[1:].partition('"')[0]
        if root := _SYSTEM_ROOT.match(text):
            return self._place(self.boot, self.folder + _slashed(text[root.end() :]))
        if drive := _SYSTEM_DRIVE.match(text):
            return self._place(self.boot, _slashed(text[drive.end() :]))
        if namespace := _NAMESPACE.match(text):
            text = text[namespace.end() :]
        if device := _DRIVE.match(text):
            volume = self._volume(device[1].rstrip(":"))
            return None if volume is None else self._place(volume, _slashed(text[device.end() :]))
        if namespace or text.casefold().startswith("\\device\\"):
            return None
        if text.startswith("\\"):
            return self._place(self.boot, _slashed(text))
        return self._place(self.boot, f"{self.folder}/{_slashed(text)}")

    def _volume(self, name: str) -> int | None:
        # A Windows whose hive cannot be read, or that never named its volume, calls itself C:.
        default = self.boot if name.upper() == "C" else None
        return self.volumes.get(name.upper(), default)

    @staticmethod
    def _place(volume: int, path: str) -> Place | None:
        parts = path.split("/")[1:]
        sane = path.startswith("/") and all(part not in ("", ".", "..") for part in parts)
        return Place(volume, path) if sane and "\0" not in path else None


def read_volumes(values: Iterable[Value], survey: Survey) -> dict[str, int]:
    """Return the volumes of this disk by their names in MountedDevices; see Drives.volumes."""
    names: dict[str, int] = {}
    for value in values:
        name = _DEVICE.fullmatch(value.name)
        row = _row_of(value.data, survey) if name else None
        if name and row is not None:
            names[(name[1] or name[2]).upper()] = row
    return names


def row_of_mbr(survey: Survey, signature: str, start: int) -> int | None:
    """Return the volume that begins at a byte of an MBR disk (signature: eight hex digits)."""
    if survey.table != "mbr" or survey.table_identifier != signature:
        return None
    rows = [row for row, one in enumerate(survey.volumes) if one.start == start]
    return rows[0] if rows else None


def row_of_gpt(survey: Survey, partition: str) -> int | None:
    """Return the volume in a GPT partition (GUID in lower case)."""
    rows = [row for row, one in enumerate(survey.volumes) if one.partition_uuid == partition]
    return rows[0] if rows and partition else None


def _row_of(data: bytes, survey: Survey) -> int | None:
    if len(data) == _MBR.size:
        signature, start = _MBR.unpack(data)
        return row_of_mbr(survey, f"{signature:08x}", start)
    if data.startswith(_GPT_TAG) and len(data) == len(_GPT_TAG) + 16:
        return row_of_gpt(survey, str(uuid.UUID(bytes_le=data[len(_GPT_TAG) :])))
    return None


def _slashed(text: str) -> str:
    return text.replace("\\", "/")
