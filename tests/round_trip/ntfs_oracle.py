"""Which bytes of an NTFS volume nobody can read, by ntfsprogs alone."""

from __future__ import annotations

import re
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.round_trip.disks import Range, joined, tool

MFT, BITMAP = 0, 6
FIRST_USER = 24
"""Records below are the file system's own files."""

COMPRESSED, ENCRYPTED = 0x0001, 0x4000
_ATTRIBUTE = re.compile(r"^Dumping attribute \$?(\w+) .*\n((?:(?!Dumping ).*\n)*)", re.M)
_RUN = re.compile(r"^\t\t\t0x([0-9a-f]+)\t\t0x([0-9a-f]+)\t\t0x([0-9a-f]+)$", re.M)


@dataclass(frozen=True, slots=True)
class NtfsUnseen:
    """Ranges of the volume, in bytes.

    free: clusters that $Bitmap calls free. tails: of plain streams, from the end of the valid data
    to the end of the last cluster.
    """

    free: tuple[Range, ...]
    tails: tuple[Range, ...]

    def all(self) -> list[Range]:
        return joined([*self.free, *self.tails])


@dataclass(frozen=True, slots=True)
class _Stream:
    """runs: file offset, volume offset and length, in bytes. hidden: not what a reader sees."""

    size: int
    valid: int
    runs: tuple[tuple[int, int, int], ...]
    hidden: bool


def unseen_of_ntfs(volume: Path) -> NtfsUnseen:
    """What ntfsinfo and ntfscat say of a volume that is a file of its own."""
    facts = tool("ntfsinfo", "--force", "--mft", volume)
    cluster = _number(facts, r"Cluster Size: (\d+)")
    clusters = _number(facts, r"Volume Size in Clusters: (\d+)")
    bits = np.frombuffer(_content(volume, BITMAP), dtype=np.uint8)
    used = np.unpackbits(bits, count=clusters, bitorder="little")
    free = [(one * cluster, (one + 1) * cluster) for one in np.flatnonzero(used == 0).tolist()]
    assert len(free) == _number(facts, r"Free Clusters: (\d+)")
    tails: list[Range] = []
    for record in _records(volume, _number(facts, r"MFT Record Size: (\d+)")):
        for stream in _streams(volume, ("--inode", str(record)), cluster):
            tails.extend(_tails(stream, cluster))
    return NtfsUnseen(tuple(joined(free)), tuple(joined(tails)))


def clusters_of(volume: Path, path: str) -> list[Range]:
    """Where the unnamed and the named streams of a file lie, in bytes of the volume."""
    cluster = _number(tool("ntfsinfo", "--force", "--mft", volume), r"Cluster Size: (\d+)")
    streams = _streams(volume, ("--file", path), cluster)
    found = [(start, start + size) for one in streams for _, start, size in one.runs]
    assert found, f"{path} has no clusters"
    return found


def _records(volume: Path, record_bytes: int) -> list[int]:
    """Numbers of the files' base records that are in use."""
    data = _content(volume, MFT)
    found = []
    for number in range(FIRST_USER, len(data) // record_bytes):
        start = number * record_bytes
        (flags,) = struct.unpack_from("<H", data, start + 0x16)
        (base,) = struct.unpack_from("<Q", data, start + 0x20)
        if data[start : start + 4] == b"FILE" and flags & 1 and base == 0:
            found.append(number)
    return found


def _streams(volume: Path, which: tuple[str, str], cluster: int) -> list[_Stream]:
    """The streams of a file that have clusters."""
    text = tool("ntfsinfo", "--force", "--verbose", *which, volume)
    attributes = _ATTRIBUTE.findall(text)
    reparse = any(kind == "REPARSE_POINT" for kind, _ in attributes)
    parts: dict[str, list[str]] = {}
    for kind, body in attributes:
        if kind == "DATA" and re.search(r"Resident:\s+No", body):
            name = re.search(r"Attribute name:\s+'(.*)'", body)
            parts.setdefault(name[1] if name else "", []).append(body)
    found = []
    for bodies in parts.values():
        (head,) = (body for body in bodies if _number(body, r"Lowest VCN\s+(\d+)") == 0)
        flags = _number(head, r"Attribute flags:\s+0x([0-9a-f]+)", 16)
        runs = tuple(
            tuple(int(word, 16) * cluster for word in run)
            for body in bodies
            for run in _RUN.findall(body)
        )
        found.append(
            _Stream(
                _number(head, r"Data size:\s+(\d+)"),
                _number(head, r"Initialized size:\s+(\d+)"),
                runs,  # type: ignore[arg-type]  # three words in each
                reparse or bool(flags & (COMPRESSED | ENCRYPTED)),
            )
        )
    return found


def _tails(stream: _Stream, cluster: int) -> list[Range]:
    if stream.hidden:
        return []
    end = -(-stream.size // cluster) * cluster
    found = []
    for offset, start, length in stream.runs:
        low, high = max(offset, stream.valid), min(offset + length, end)
        if low < high:
            found.append((start + low - offset, start + high - offset))
    return found


def _content(volume: Path, record: int) -> bytes:
    return subprocess.run(
        ["ntfscat", "--force", "--inode", str(record), volume], check=True, capture_output=True
    ).stdout


def _number(text: str, pattern: str, base: int = 10) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern!r} is not in:\n{text}"
    return int(found[1], base)
