"""A full volume whose free clusters lie scattered: the table itself needs several records."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from formats.filesystem import ntfs
from formats.filesystem.model import FileSystem
from formats.source import FileSource
from tests.formats.filesystem.ntfs_editor import Editor
from tests.formats.filesystem.ntfs_images import make, mounted
from tests.host import ROOT, run

pytestmark = [*ROOT]

ATTRIBUTE_LIST, MFT = 0x20, 0
FILE_BYTES = 1020  # two clusters, as a record needs


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fill it with small files, empty every other one, and fill the gaps with records and data."""
    path = make(tmp_path_factory.mktemp("ntfs") / "full", 12 << 10, "-c", "512")
    with mounted(path) as root:
        count = until_full(lambda number: write_small(root / f"small{number}", number))
        for number in range(0, count, 2):
            os.truncate(root / f"small{number}", 0)
        assert until_full(lambda number: (root / f"another name {number}").touch()) > 300
        with (root / "scattered").open("wb", buffering=0) as file:
            assert until_full(lambda number: file.write(b"%8d" % number * 64)) > 300
    return path


def write_small(path: Path, number: int) -> None:
    path.write_bytes(b"%6d" % number * (FILE_BYTES // 6))


def until_full(work: Callable[[int], object]) -> int:
    """How often it can be done before there is no room."""
    for number in range(100_000):
        try:
            work(number)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return number
    raise AssertionError("the volume does not get full")


def read(image: Path) -> FileSystem:
    with FileSource(image) as source:
        return ntfs.read(source)


def test_the_table_needs_a_list_of_its_own_attributes(image: Path) -> None:
    record = Editor(image).record(MFT)
    assert record.first_run(ATTRIBUTE_LIST) is not None


def test_every_file_with_data_is_listed_and_no_other(image: Path) -> None:
    system = read(image)
    assert (system.state, system.unread) == ("clean", ())
    with mounted(image, "ro") as root:
        with_data = {f"/{path.name}" for path in root.iterdir() if path.stat().st_size}
    assert len(with_data) > 2000
    sizes = system.streams.size
    assert {path for row, path in system.names if sizes[row]} == with_data


@pytest.mark.parametrize("path", ["/scattered", *(f"/small{n}" for n in range(1, 4001, 400))])
def test_runs_are_those_of_ntfscluster(image: Path, path: str) -> None:
    system = read(image)
    row = next(row for row, name in system.names if name == path)
    mine = system.streams.stream == row
    columns = (system.streams.disk_offset, system.streams.length)
    runs = list(zip(*(column[mine].tolist() for column in columns), strict=True))
    said = run("ntfscluster", "-f", "-I", str(system.streams.inode[row]), image)
    further = said.split("0x80 - non-resident\n")[1:]  # one for each record
    parts = [part.partition("0x")[0] for part in further]
    expected = [
        (int(lcn) * 512, int(length) * 512)
        for lcn, length in re.findall(r"^ +\d+ +(\d+) +(\d+)$", "".join(parts), re.MULTILINE)
    ]
    assert len(expected) > 300 or path != "/scattered"
    assert expected
    assert runs == expected


def test_contents_are_those_that_were_written(image: Path) -> None:
    system = read(image)
    streams = system.streams
    with FileSource(image) as source:
        for row, path in system.names:
            mine = streams.stream == row
            places = zip(streams.disk_offset[mine], streams.length[mine], strict=True)
            data = b"".join(source.pread(int(start), int(length)) for start, length in places)
            size = int(streams.size[row])
            if path == "/scattered":
                assert data[:size] == b"".join(b"%8d" % one * 64 for one in range(size // 512))
            elif size:
                number = int(path.removeprefix("/small"))
                assert data[:size] == b"%6d" % number * (FILE_BYTES // 6)
