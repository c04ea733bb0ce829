"""Which bytes of a FAT32 nobody can read, by mtools alone."""

from __future__ import annotations

import re
from pathlib import Path

from tests.round_trip.disks import Range, joined, tool

FIRST_CLUSTER = 2
_CLUSTERS = re.compile(r"<(\d+)(?:-(\d+))?>")


def unseen_of_fat(image: Path, offset: int) -> list[Range]:
    """Ranges of the disk, in bytes: clusters of no file or folder; after the last byte of files."""
    volume = f"{image}@@{offset}"
    facts = tool("minfo", "-i", volume, "::")
    sector = _number(facts, r"sector size: (\d+) bytes")
    cluster = sector * _number(facts, r"cluster size: (\d+) sectors")
    tables = _number(facts, r"fats: (\d+)") * _number(facts, r"Big fatlen=(\d+)")
    data = sector * (_number(facts, r"reserved \(boot\) sectors: (\d+)") + tables)
    total = (sector * _number(facts, r"big size: (\d+) sectors") - data) // cluster

    names = tool("mdir", "-i", volume, "-/", "-b", "::").split("\n")
    files = {name for name in names if name and not name.endswith("/")}
    assert files
    free, tails = set(range(FIRST_CLUSTER, FIRST_CLUSTER + total)), []
    for name in ["::/", *filter(None, names)]:
        chain = _clusters(tool("mshowfat", "-i", volume, name))
        free -= set(chain)
        if name in files and chain:
            rest = -_size_of(volume, name) % cluster
            end = data + (chain[-1] + 1 - FIRST_CLUSTER) * cluster
            tails.append((end - rest, end))
    listing = tool("mdir", "-i", volume, "::")
    assert len(free) * cluster == _number(listing.replace(" ", ""), r"(\d+)bytesfree")
    blank = [(data + (one - FIRST_CLUSTER) * cluster, cluster) for one in free]
    ranges = [*((start, start + length) for start, length in blank), *tails]
    return joined([(offset + start, offset + end) for start, end in ranges])


def _clusters(text: str) -> list[int]:
    """The clusters of "::/NAME <3> <5-9>", in order."""
    found: list[int] = []
    for first, last in _CLUSTERS.findall(text):
        found.extend(range(int(first), int(last or first) + 1))
    return found


def _size_of(volume: str, name: str) -> int:
    """The size of a file, which mtools print in groups of three digits."""
    return _number(tool("mdir", "-i", volume, name).replace(" ", ""), r"1file(\d+)bytes")


def _number(text: str, pattern: str) -> int:
    found = re.search(pattern, text)
    assert found is not None, f"{pattern!r} is not in:\n{text}"
    return int(found[1])
