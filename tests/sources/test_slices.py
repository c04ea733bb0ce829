"""A file that a profile has cut: each piece of it is found in the same file elsewhere."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from formats.ranges import as_ranges
from packer.artifact.hints import Hints, Package
from packer.artifact.map import Kind, Map
from packer.pack.recut import name_slices, redraw, slice_contents
from packer.sources.against import holds
from packer.sources.base import Source, Wanted
from packer.sources.deb import DebSource
from packer.sources.directory import DirectorySource
from packer.sources.disk import DiskSource
from tests.artifact.make import contents_of, map_of
from tests.round_trip.small import make_disk
from tests.sources.guest import build_deb

MIB = 1 << 20
PATH = "/usr/lib/large.so"
DATA = random.Random(5).randbytes(5 * MIB + 123)
PACKAGE = Package("dpkg", "demo", "1.0", "all")


def wanted() -> Wanted:
    """What is asked for of a file that was touched in two places, of which five pieces came."""
    contents = contents_of([DATA])
    disk: Map = map_of(contents, [(Kind.CONTENT, len(DATA), 0, 0)])
    size, zero = np.array([len(DATA)]), np.zeros(1, dtype=np.int64)
    hints = Hints(zero, [PATH], size, zero, zero, (PACKAGE,))
    touched = as_ranges([(MIB - 65536, MIB + 65536), (2 * MIB, 4 * MIB)])
    slices = slice_contents(disk, touched)
    names = name_slices(
        slices,
        contents,
        lambda _, start, end: DATA[start:end],
        jobs=1,
        progress=lambda _: None,
    )
    after = redraw(disk, hints, slices, names, contents.classes)
    assert len(after.map.contents) == 5
    return Wanted(after.map.contents, np.arange(5), after.hints)


def in_folder(folder: Path) -> Source:
    file = folder / PATH.lstrip("/")
    file.parent.mkdir(parents=True)
    file.write_bytes(DATA)
    return DirectorySource(folder / "usr")


def in_package(folder: Path) -> Source:
    build_deb(folder, {PATH: DATA})
    return DebSource(folder)


def on_disk(folder: Path) -> Source:
    in_folder(folder / "tree").close()
    return DiskSource(str(make_disk(folder / "disk.raw", folder / "tree", size_mib=24)))


def in_image(folder: Path) -> Source:
    on_disk(folder).close()
    image = folder / "disk.qcow2"
    command = ["qemu-img", "convert", "-c", "-O", "qcow2", str(folder / "disk.raw"), str(image)]
    subprocess.run(command, check=True)
    return DiskSource(str(image))


@pytest.mark.parametrize("place", [in_folder, in_package, on_disk, in_image])
def test_every_piece_is_found_in_the_file(place: Callable[[Path], Source], tmp_path: Path) -> None:
    if place is in_package and not shutil.which("dpkg-deb"):
        pytest.skip("dpkg-deb is not installed")
    source = place(tmp_path)
    try:
        assert holds(source, wanted(), deep=False).tolist() == [0, 1, 2, 3, 4]
    finally:
        source.close()
