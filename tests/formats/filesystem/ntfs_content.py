"""Files of every kind that NTFS knows, written through ntfs-3g, and how others see them."""

from __future__ import annotations

import os
import random
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyfsntfs

from formats.filesystem.model import FileSystem
from formats.ranges import Ranges, union
from tests.formats.filesystem.ntfs_images import (
    COMPRESSED,
    DEDUPLICATED,
    JUNCTION,
    SYMBOLIC_LINK,
    WOF,
    link_point,
    reparse_point,
    set_attributes,
    set_reparse_point,
)

DIRECTORY = 0x10
SPARSE_OR_HOLE = 0x1  # flag of an extent in libfsntfs


def fill(root: Path, seed: int, *, compression: bool, small: bool = False) -> None:
    """Create, grow, cut and delete files until they are scattered; then one of every kind.

    small: for a volume of a few MiB.
    """
    dice = random.Random(seed)
    files = 24 if small else 120
    for number in range(files):
        folder = root / f"Folder {number % 7}"
        folder.mkdir(exist_ok=True)
        size = dice.choice([0, 1, 600, 5000, 9000 if small else 90000])
        (folder / f"file{number}.dll").write_bytes(dice.randbytes(size))
    for number in range(0, files, 3):
        (root / f"Folder {number % 7}" / f"file{number}.dll").unlink()
    for number in range(1, files, 3):
        with (root / f"Folder {number % 7}" / f"file{number}.dll").open("r+b") as file:
            if number % 2:
                file.seek(0, os.SEEK_END)
                file.write(dice.randbytes(3000 if small else 30000))
            else:
                file.truncate(dice.randrange(9000))
    _scatter(root, dice, 700 if small else 1500)
    _name(root, dice)
    _point_elsewhere(root, dice)
    if compression:
        _compress(root, dice, units=2 if small else 20)


def _scatter(root: Path, dice: random.Random, pieces: int) -> None:
    """Sparse files, thousands of runs in many records, data that ends before its file."""
    with (root / "sparse").open("wb") as file:
        for place in (0, 13 << 10, 300 << 10, 5 << 20, 9 << 20):
            file.seek(place)
            file.write(dice.randbytes(5000))
        file.truncate(12 << 20)
    with (root / "many holes").open("wb") as file:
        for number in range(pieces):
            file.seek(number * 12288)
            file.write(b"%8d" % number * 16)
    with (root / "longer than its data").open("wb") as file:
        file.write(dice.randbytes(70001))
        file.truncate(200003)
    (root / "nothing but a size").touch()
    os.truncate(root / "nothing but a size", 3 << 20)
    (root / "Folder 4" / "Tiny.ini").write_bytes(b"[boot loader]" * 30)  # crosses a fixup
    (root / "deleted").write_bytes(dice.randbytes(300000))
    (root / "deleted").unlink()


def _name(root: Path, dice: random.Random) -> None:
    folder = root / "käse ☃ 𝄞"
    folder.mkdir()
    (folder / "ünïcode").write_bytes(dice.randbytes(5000))
    (folder / ("n" * 255)).write_bytes(dice.randbytes(5000))
    os.link(folder / "ünïcode", root / "second name")
    os.link(folder / "ünïcode", root / "Folder 1" / "third name")
    (folder / "ünïcode:Zone.Identifier").write_bytes(b"[ZoneTransfer]")  # resident
    (folder / "ünïcode:a large stream").write_bytes(dice.randbytes(40000))
    (folder / "only a stream").touch()
    (folder / "only a stream:☃").write_bytes(dice.randbytes(9000))
    (root / "Folder 2:of a folder").write_bytes(dice.randbytes(9000))


def _point_elsewhere(root: Path, dice: random.Random) -> None:
    for name, tag in (("WOF", WOF), ("deduplicated", DEDUPLICATED)):
        path = root / name
        path.touch()
        os.truncate(path, 50000)
        if tag == WOF:
            (root / "WOF:WofCompressedData").write_bytes(dice.randbytes(9000))
        else:
            path.write_bytes(dice.randbytes(20000))
        set_reparse_point(path, reparse_point(tag, struct.pack("<IIII", 1, 2, 1, 0)))
    for name, value in (
        ("relative link", link_point(SYMBOLIC_LINK, r"..\Folder 1\third name", flags=1)),
        ("absolute link", link_point(SYMBOLIC_LINK, r"\??\C:\second name")),
        ("link elsewhere", link_point(SYMBOLIC_LINK, r"\??\UNC\server\share")),
    ):
        (root / "Folder 3" / name).touch()
        set_reparse_point(root / "Folder 3" / name, value)
    for name, target in (
        ("junction", "\\??\\C:\\Folder 1\\"),
        ("mount point", r"\??\Volume{01234567-0123-0123-0123-0123456789ab}" + "\\"),
    ):
        (root / name).mkdir()
        set_reparse_point(root / name, link_point(JUNCTION, target))


LINKS = {
    "/Folder 3/relative link": "../Folder 1/third name",
    "/Folder 3/absolute link": "/second name",
    "/junction": "/Folder 1",
}


def _compress(root: Path, dice: random.Random, units: int) -> None:
    folder = root / "compressed"
    folder.mkdir()
    set_attributes(folder, DIRECTORY | COMPRESSED)
    (folder / "text").write_bytes(b"compresses well " * 20000)
    (folder / "noise").write_bytes(
        dice.randbytes(10_000 * units)
    )  # units that do not become smaller
    mixed = b"".join(dice.choice([bytes(65536), dice.randbytes(65536)]) for _ in range(units))
    (folder / "mixed").write_bytes(mixed[:-1000])


@dataclass(frozen=True)
class Stream:
    """A stream as libfsntfs sees it: its size, and (file offset, disk offset, length) of runs."""

    size: int
    runs: tuple[tuple[int, int, int], ...]


def seen_by_libfsntfs(image: Path) -> dict[str, Stream]:
    """Return the non-resident streams of every file, by path."""
    volume = pyfsntfs.volume()
    volume.open(str(image))
    found: dict[str, Stream] = {}
    pending = [(volume.get_root_directory(), "")]
    while pending:
        entry, path = pending.pop()
        if path.startswith("/$"):
            continue
        if entry.has_default_data_stream() and entry.number_of_extents:
            found[path] = _stream(entry)
        for index in range(entry.number_of_alternate_data_streams):
            stream = entry.get_alternate_data_stream(index)
            if stream.number_of_extents:
                found[f"{path}:{stream.name}"] = _stream(stream)
        if entry.has_directory_entries_index():
            for index in range(entry.number_of_sub_file_entries):
                child = entry.get_sub_file_entry(index)
                pending.append((child, f"{path}/{child.name}"))
    return found


def _stream(entry: Any) -> Stream:
    runs: list[tuple[int, int, int]] = []
    offset = 0
    for index in range(entry.number_of_extents):
        place, length, flags = entry.get_extent(index)
        if not flags & SPARSE_OR_HOLE:
            runs.append((offset, place, length))
        offset += length
    return Stream(entry.size, tuple(runs))


def unused(found: FileSystem) -> Ranges:
    """Return all that may be forgotten: free clusters, and what lies behind valid data."""
    streams = found.streams
    valid = streams.valid[streams.stream]
    kept = np.clip(valid - streams.file_offset, 0, streams.length)
    start = streams.disk_offset + kept
    return union(found.free, np.stack([start, streams.disk_offset + streams.length], axis=1))
